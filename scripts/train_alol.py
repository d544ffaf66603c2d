"""In place of JPO: A-LoL, which weights the likelihood of good turns by their advantage.

python scripts/train_alol.py
"""

from emodistill import cli
from emodistill.configs import ALoLConfig

if __name__ == "__main__":
    cli.main(ALoLConfig, __doc__)
