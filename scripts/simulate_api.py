"""Serve the simulated teacher, counterparty and judge as an OpenAI-compatible API.

    python scripts/simulate_api.py --port 8000
    python scripts/sweep.py --base-url http://127.0.0.1:8000/v1 --model sim-teacher \
        --counterparty sim-counterparty
"""

from emodistill import cli
from emodistill.configs import SimulatorConfig


def main() -> None:
    config = cli.parse(SimulatorConfig, "simulator", description=__doc__)
    from emodistill.simulator.server import run_server

    run_server(config.host, config.port)


if __name__ == "__main__":
    cli.run(main)
