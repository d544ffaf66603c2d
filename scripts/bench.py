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
from pathlib import Path

from emodistill import cli
from emodistill.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    if not (ROOT / "benchmarks").is_dir():
        raise InputError(f"{ROOT} has no folder benchmarks/: run this script from a checkout.")
    sys.path.insert(0, str(ROOT))
    import tyro  # `cli` takes it on in the same way: only a command line needs it

    from benchmarks.configs import BENCHMARKS  # the checkout has only now been put on the path

    file, args = cli.take_config(sys.argv[1:])
    defaults = {config.name: config() for config in BENCHMARKS}
    if file is not None and args and (name := args[0]) in defaults:
        settings, where = cli.read_settings(file), f"--config {file}"
        defaults[name] = cli.make_config(type(defaults[name]), "bench", settings, where=where)
    benchmarks = tyro.extras.subcommand_type_from_defaults(
        defaults, {name: str(config.__doc__) for name, config in defaults.items()}
    )
    config = tyro.cli(
        benchmarks,
        args=args or ["--help"],
        description=f"{__doc__}\n--config FILE.yaml is the base for all flags; flags override it.",
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    try:
        importlib.import_module(f"benchmarks.{config.module}").run(config)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{config.name} takes {error.name}: pip install -e '.[bench]', or leave out the peer "
            "that needs it (--peers)."
        ) from None


if __name__ == "__main__":
    cli.run(main)
