"""The whole pipeline on this machine: sweep, judge, IQL, SFT, JPO, evaluation, report.

    python scripts/quickstart.py
    python scripts/quickstart.py --fast
    python scripts/quickstart.py --config configs/embedded_full.yaml

No key, no GPU and no internet: language models are simulated behind a real HTTP API, the student
is a small Qwen2 that ships in the package. Started again, it goes on where it was.
"""

from emodistill import cli

if __name__ == "__main__":
    cli.quickstart(__doc__)
