"""Serve a trained student, or the whole negotiator, as an OpenAI-compatible API.

    python scripts/serve.py --run runs/quickstart --domain crad --port 8000
    python scripts/serve.py --student /path/to/Qwen2.5-7B-Instruct --run runs/qwen \\
        --api-key-env EMODISTILL_KEY --adapters-below /path/to/adapters

A client asks for the model `student` (the base), for an adapter (`sft`, `jpo:kappa=0.5-e21b`) or
for a method (`iql+sft+jpo`), which picks the emotion too; docs/serving.md has the requests.
"""

from emodistill import cli
from emodistill.configs import ServeConfig
from emodistill.settings import Cell


def serve(cell: Cell) -> None:
    from emodistill.serving.server import run_server  # not for --help

    run_server(cell.config)


if __name__ == "__main__":
    cli.main(ServeConfig, __doc__, serve)
