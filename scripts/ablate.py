"""An ablation of the paper, from whatever the run holds to its table.

python scripts/ablate.py kappa
python scripts/ablate.py transfer --selector target
python scripts/ablate.py counterparty --provider openrouter --counterparties deepseek/deepseek-chat
"""

from emodistill import cli
from emodistill.studies.configs import ABLATIONS


def main() -> None:
    config, settings = cli.parse_study(ABLATIONS, description=__doc__)
    from emodistill.studies import run_study

    run_study(config, settings)


if __name__ == "__main__":
    cli.run(main)
