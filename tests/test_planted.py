"""What the simulator has planted comes out of the pipeline, at the size of a study (minutes)."""

import csv
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from emodistill.configs import EmotionStudy
from emodistill.domains import DOMAINS
from emodistill.emotions import EMOTIONS
from emodistill.evaluation.arms import read_arms
from emodistill.offline.rewards import dialogue_utility
from emodistill.offline.store import read_trajectories
from emodistill.settings import Settings
from emodistill.simulator import response_model as rm
from emodistill.studies import run_study

pytestmark = pytest.mark.slow


def planted_effects(domain, trajectories) -> dict[str, float]:
    """Mean effect of each emotion, clearly expressed, over the phases that dialogues go through."""
    phases = Counter()
    for t in trajectories:
        latest, num_turns = {}, 0
        for turn in t.turns:
            if turn.speaker == "focal":
                num_turns += 1
                apart = abs(np.subtract(*latest.values())) if len(latest) == 2 else np.inf
                gap = apart / abs(t.focal_target - t.counterparty_anchor)
                phases[rm.phase_of(num_turns, gap)] += 1
            if turn.offer is not None:
                latest[turn.speaker] = turn.offer
    return {
        emotion: sum(
            count * rm.emotional_effect(domain, phase, None, emotion, 1.0, 0)
            for phase, count in phases.items()
        )
        / phases.total()
        for emotion in EMOTIONS
    }


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_emotion_study_ranks_emotions_as_planted(domain, tmp_path):
    study = EmotionStudy(run=tmp_path, domain=domain, num_seeds=5, concurrency=32)
    run_study(study, Settings({"sweep": {"num_seeds": 1}}))
    rows = csv.DictReader((tmp_path / "report/emotions.csv").open(newline=""))
    scores = {row["emotion"]: float(row["difference"]) for row in rows} | {"neutral": 0.0}
    played = {
        arm.label: read_trajectories(tmp_path / str(arm.path))
        for arm in read_arms(tmp_path, "emotions")
    }
    planted = planted_effects(domain, played["neutral"])
    utilities = {e: float(np.mean([dialogue_utility(t) for t in ts])) for e, ts in played.items()}

    def agreement(found: dict[str, float]) -> float:
        pairs = [(planted[emotion], found[emotion]) for emotion in EMOTIONS]
        return float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)

    print(f"{domain}: scores {agreement(scores):.2f}, utility {agreement(utilities):.2f}")
    best = sorted(EMOTIONS, key=lambda emotion: -planted[emotion])[:3]
    assert agreement(scores) > 0.7
    assert agreement(utilities) > 0.6
    assert set(best) & set(sorted(EMOTIONS, key=lambda emotion: -scores[emotion])[:3])
