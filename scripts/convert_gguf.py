"""A GGUF checkpoint as a folder of safetensors, without torch (extra `gguf`).

python scripts/convert_gguf.py --source SmolLM2-135M-Instruct.Q4_1.gguf --out models/smollm2
"""

from emodistill import cli
from emodistill.configs import ConvertConfig
from emodistill.errors import InputError
from emodistill.settings import Cell


def convert(cell: Cell) -> None:
    from emodistill.model.gguf_checkpoints import convert_gguf  # JAX

    source, out = cell.config.source, cell.config.out
    if source is None or out is None:
        raise InputError("--source FILE.gguf and --out FOLDER are both needed.")
    config = convert_gguf(source, out)
    print(
        f"convert: {out} holds a {config.architecture} model of {config.num_layers} "
        f"layers; give it to --model and --student."
    )


if __name__ == "__main__":
    cli.main(ConvertConfig, __doc__, convert)
