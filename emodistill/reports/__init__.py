"""Tables, figures and the page of a run."""

from emodistill.reports.report import PARTS, write_report

__all__ = ["PARTS", "write_report"]
