"""Serve the simulated teacher, counterparty and judge as an OpenAI-compatible API.

    python scripts/simulate_api.py --port 8000
    python scripts/sweep.py --base-url http://127.0.0.1:8000/v1 --focal sim-teacher \\
        --counterparty sim-counterparty
    python scripts/simulate_api.py --faults 429=0.1 500 hang=0.01 cut empty --log calls.jsonl
"""

from emodistill import cli
from emodistill.configs import SimulatorConfig
from emodistill.settings import Cell


def serve(cell: Cell) -> None:
    from emodistill.simulator import faults, server  # not for --help

    config = cell.config
    shares = {} if config.faults is None else faults.parse_faults(config.faults)
    log = faults.open_log(config.log) if config.log is not None else None
    server.run_server(config.host, config.port, faults.Faults(shares, seed=config.seed, log=log))


if __name__ == "__main__":
    cli.main(SimulatorConfig, __doc__, serve)
