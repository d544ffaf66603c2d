"""Every emotion at every turn, judged: which ones work in a domain (Figure 1, Appendix B).

python scripts/emotion_study.py --domain hospital --num-seeds 5
"""

from emodistill import cli
from emodistill.configs import EmotionStudy

if __name__ == "__main__":
    cli.main(EmotionStudy, __doc__, cli.run_study)
