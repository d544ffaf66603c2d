"""Tables, figures and the page of a run."""

from emodistill.reports.report import PARTS, write_report
from emodistill.reports.run_data import RunData

__all__ = ["PARTS", "RunData", "write_report"]
