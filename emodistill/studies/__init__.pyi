from .arm_runner import run_study as run_study
from .pipeline import quickstart as quickstart
