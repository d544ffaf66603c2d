"""Which turns SFT, JPO, A-LoL and DPO take."""

import dataclasses

import numpy as np
import pytest
from judged_sweep import SCORES, TRAJECTORIES

from emodistill.configs import ALoLConfig, DPOConfig, JPOConfig, SFTConfig
from emodistill.errors import InputError
from emodistill.offline.rewards import FocalTurns, jpo_advantages, sft_quality
from emodistill.train.objectives import OBJECTIVES

TURNS = FocalTurns.from_trajectories(TRAJECTORIES, SCORES)
ADVANTAGES = jpo_advantages(TURNS)


def select(config, turns=TURNS):
    return OBJECTIVES[config.stage].select(config, turns)


def test_sft_takes_the_best_in_the_order_of_the_turns():
    groups, advantages = select(SFTConfig(top_fraction=0.5))
    rows = groups[:, 0]
    assert advantages is None
    assert len(rows) == len(TURNS) // 2 and (np.diff(rows) > 0).all()
    quality = sft_quality(TURNS)
    assert quality[rows].min() >= np.delete(quality, rows).max()


def test_sft_can_rank_by_signed_scores():
    """As in Appendix Q: a scenario whose turns score high no longer has more of them kept."""
    rows = select(SFTConfig(top_fraction=0.5, quality_score="advantage")).groups[:, 0]
    quality = ADVANTAGES + 0.5 * TURNS.returns
    assert quality[rows].min() >= np.delete(quality, rows).max()
    assert rows.tolist() != select(SFTConfig(top_fraction=0.5)).groups[:, 0].tolist()


def test_jpo_takes_all_that_have_a_score_or_the_best_of_them():
    groups, advantages = select(JPOConfig(kappa=0.5))
    assert groups[:, 0].tolist() == list(range(len(TURNS)))
    np.testing.assert_array_equal(advantages, ADVANTAGES)  # κ is the loss's business
    top = select(JPOConfig(data="top", top_fraction=0.5)).groups
    np.testing.assert_array_equal(top, select(SFTConfig(top_fraction=0.5)).groups)
    scores = TURNS.scores.copy()
    scores[3] = np.nan
    some = select(JPOConfig(), dataclasses.replace(TURNS, scores=scores)).groups
    assert some[:, 0].tolist() == [row for row in range(len(TURNS)) if row != 3]


def test_alol_takes_the_good_ones_and_needs_no_reference():
    groups, advantages = select(ALoLConfig())
    assert groups[:, 0].tolist() == np.flatnonzero(ADVANTAGES > 0).tolist() != []
    np.testing.assert_array_equal(advantages, ADVANTAGES)


def test_sft_and_alol_alone_need_no_reference():
    without = {stage for stage, one in OBJECTIVES.items() if not one.needs_reference}
    assert without == {"sft", "alol"}


def test_dpo_pairs_share_scenario_turn_and_emotion_and_the_better_comes_first():
    pairs = select(DPOConfig()).groups
    assert len(pairs) and len(set(pairs.reshape(-1))) == pairs.size
    for better, worse in pairs:
        assert ADVANTAGES[better] > ADVANTAGES[worse]
        prompts = []
        for row in (better, worse):
            trajectory = TRAJECTORIES[TURNS.trajectory_index[row]]
            turn = trajectory.turns[TURNS.turn_index[row]]
            prompts.append((trajectory.scenario_id, turn.index, turn.emotion))
        assert prompts[0] == prompts[1]


def test_the_best_meets_the_worst_and_equals_are_no_pair():
    is_first = (TURNS.turn_index == 0) & (TURNS.scenario_ids == TURNS.scenario_ids[0])
    rows = np.flatnonzero(is_first)
    scores = np.full(len(TURNS), np.nan)
    scores[rows] = [2.0, 5.0, 1.0, 2.0]
    turns = dataclasses.replace(TURNS, scores=scores)
    assert select(DPOConfig(), turns).groups.tolist() == [[rows[1], rows[2]]]


def test_without_a_pair_there_is_nothing_to_learn():
    equal = FocalTurns.from_trajectories(TRAJECTORIES, dict.fromkeys(SCORES, 5.0))
    with pytest.raises(InputError, match="DPO has no pair to learn from"):
        select(DPOConfig(), equal)
