"""Tables, figures and one offline page from whatever a run holds so far.

python scripts/report.py --run runs/default
python scripts/report.py --only table-1
"""

from emodistill import cli
from emodistill.configs import ReportConfig
from emodistill.settings import Cell


def report(cell: Cell) -> None:
    from emodistill import reports  # --help must not wait for Matplotlib

    reports.report(cell.config)


if __name__ == "__main__":
    cli.main(ReportConfig, __doc__, report)
