"""Benchmarks against the libraries that people would use instead (extra `bench`).

python scripts/bench.py sweep
python scripts/bench.py sft
python scripts/bench.py jpo --size embedded --steps 4
python scripts/bench.py mfu
python scripts/bench.py packing
python scripts/bench.py iql
python scripts/bench.py generate
python scripts/bench.py generate --size embedded --peer-turns 8
python scripts/bench.py load --num-layers 8
python scripts/bench.py memory
python scripts/bench.py gpu --dry-run
python scripts/bench.py modelled-step
"""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are part of the checkout, not of the package

from benchmarks.configs import BENCHMARKS  # noqa: E402
from emodistill import cli  # noqa: E402
from emodistill.errors import InputError  # noqa: E402
from emodistill.settings import Cell  # noqa: E402


def benchmark(cell: Cell) -> None:
    try:
        importlib.import_module(f"benchmarks.{cell.config.module}").run(cell.config)
    except ModuleNotFoundError as error:
        raise InputError(
            f"this benchmark takes {error.name}: pip install -e '.[bench]', or leave out the peer "
            "that needs it (--peers)."
        ) from None


if __name__ == "__main__":
    cli.main(BENCHMARKS, __doc__, benchmark)
