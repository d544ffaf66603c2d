"""Benchmarks against the libraries that people would use instead (extra `bench`).

python scripts/bench.py sweep
python scripts/bench.py sft
python scripts/bench.py jpo --size embedded --steps 4
python scripts/bench.py mfu
python scripts/bench.py packing
python scripts/bench.py iql
python scripts/bench.py load --num-layers 8
python scripts/bench.py memory
"""

import importlib
import sys

from emodistill import cli, configs
from emodistill.errors import InputError

BENCHMARKS = {
    config.name: config
    for config in (
        configs.BenchSweepConfig,
        configs.BenchSFTConfig,
        configs.BenchJPOConfig,
        configs.BenchMFUConfig,
        configs.BenchPackingConfig,
        configs.BenchIQLConfig,
        configs.BenchLoadConfig,
        configs.BenchMemoryConfig,
    )
}
MODULES: dict[str, str] = dict.fromkeys(("sft", "jpo", "mfu"), "training")


def main() -> None:
    name, *args = sys.argv[1:] or ["--help"]
    if name.startswith("-"):
        name, args = "sweep", sys.argv[1:] or ["--help"]
    if name not in BENCHMARKS:
        raise InputError(f"bench.py {name}: there are {', '.join(BENCHMARKS)}.")
    config = cli.parse(BENCHMARKS[name], "bench", description=__doc__, args=args)
    importlib.import_module(f"emodistill.bench.{MODULES.get(name, name)}").run(config)


if __name__ == "__main__":
    cli.run(main)
