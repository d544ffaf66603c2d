"""Benchmarks against the libraries that people would use instead (extra `bench`).

python scripts/bench.py sweep
"""

import sys

from emodistill import cli
from emodistill.configs import BenchSweepConfig
from emodistill.errors import InputError


def main() -> None:
    args = sys.argv[1:]
    if args and not args[0].startswith("-") and args.pop(0) != "sweep":
        raise InputError(f"bench.py {sys.argv[1]}: there is `sweep`.")
    config = cli.parse(BenchSweepConfig, "bench", description=__doc__, args=args)
    from emodistill.bench.sweep import run

    run(config)


if __name__ == "__main__":
    cli.run(main)
