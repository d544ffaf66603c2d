"""A GGUF checkpoint as a folder of safetensors, without torch (extra `gguf`).

python scripts/convert_gguf.py --source SmolLM2-135M-Instruct.Q4_1.gguf --out models/smollm2
"""

from emodistill import cli
from emodistill.configs import ConvertConfig
from emodistill.settings import Cell


def convert(cell: Cell) -> None:
    from emodistill.model.gguf_checkpoints import convert_gguf  # JAX

    config = convert_gguf(cell.config.source, cell.config.out)
    print(
        f"convert: {cell.config.out} holds a {config.architecture} model of {config.num_layers} "
        f"layers; give it to --model and --student."
    )


if __name__ == "__main__":
    cli.main(ConvertConfig, __doc__, convert)
