"""Tables, figures and one offline page from whatever a run holds so far.

python scripts/report.py --run runs/default
python scripts/report.py --only table-1
"""

from emodistill import cli, stages
from emodistill.configs import ReportConfig


def main() -> None:
    stages.report(cli.parse(ReportConfig, "report", description=__doc__))


if __name__ == "__main__":
    cli.run(main)
