"""A trained adapter for other servers: PEFT, a merged checkpoint or GGUF, with canaries.

python scripts/export_adapter.py --stage jpo --out exports/crad
python scripts/export_adapter.py --run runs/qwen --form merged
python scripts/export_adapter.py --adapter FOLDER --model /path/to/Qwen2.5-7B-Instruct --form gguf
"""

from emodistill import cli
from emodistill.configs import ExportAdapterConfig
from emodistill.settings import Cell


def export(cell: Cell) -> None:
    from emodistill import stages  # --help must not wait for what the stages import

    out = stages.export_adapter(cell.config)
    print(f"adapter: {out}")
    if cell.config.num_canaries:
        print(
            "next: serve it, then python scripts/verify_adapter.py --url URL --model NAME "
            f"--adapter {out}"
        )


if __name__ == "__main__":
    cli.main(ExportAdapterConfig, __doc__, export)
