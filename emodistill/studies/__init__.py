"""Studies: grids of trainings and evaluations, each behind one command and one table."""

from emodistill.studies.runner import run_study

__all__ = ["run_study"]
