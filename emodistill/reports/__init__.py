"""Tables, figures and the page of a run."""

from emodistill.reports.catalogue import RunData
from emodistill.reports.report import PARTS, write_report

__all__ = ["PARTS", "RunData", "write_report"]
