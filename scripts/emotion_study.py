"""Every emotion at every turn, judged: which ones work in a domain (Figure 1, Appendix B).

python scripts/emotion_study.py --domain hospital --num-seeds 5
"""

from emodistill import cli
from emodistill.studies.configs import EmotionStudy


def main() -> None:
    config, settings = cli.parse_study(EmotionStudy, description=__doc__)
    from emodistill.studies import run_study

    run_study(config, settings)


if __name__ == "__main__":
    cli.run(main)
