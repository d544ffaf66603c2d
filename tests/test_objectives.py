"""Which turns JPO, A-LoL and DPO take."""

import numpy as np
import pytest
from test_train import SCORES, TRAJECTORIES

from emodistill.configs import ALoLConfig, DPOConfig, JPOConfig
from emodistill.errors import InputError
from emodistill.offline import rewards
from emodistill.train.objectives import objective_of, pairs

TABLE = rewards.focal_turn_table(TRAJECTORIES, SCORES)
VALUES = rewards.jpo_advantages(TABLE).values


def test_jpo_takes_all_and_leaves_kappa_to_the_loss():
    found = objective_of(JPOConfig(kappa=0.5), TABLE, TRAJECTORIES)
    assert found.units[:, 0].tolist() == list(range(len(TABLE)))
    np.testing.assert_array_equal(found.advantages, VALUES)
    assert found.needs_reference


def test_alol_takes_the_good_ones_and_needs_no_reference():
    found = objective_of(ALoLConfig(), TABLE, TRAJECTORIES)
    assert found.units[:, 0].tolist() == np.flatnonzero(VALUES > 0).tolist() != []
    assert not found.needs_reference


def test_dpo_pairs_share_scenario_turn_and_emotion_and_the_better_comes_first():
    found = objective_of(DPOConfig(), TABLE, TRAJECTORIES).units
    assert len(found) and len(set(found.reshape(-1))) == found.size
    for better, worse in found:
        assert VALUES[better] > VALUES[worse]
        turns = []
        for row in (better, worse):
            trajectory = TRAJECTORIES[TABLE.trajectory_index[row]]
            turn = trajectory.turns[TABLE.turn_index[row]]
            turns.append((trajectory.scenario_id, turn.index, turn.emotion))
        assert turns[0] == turns[1]


def test_the_best_meets_the_worst_and_equals_are_no_pair():
    values = np.full(len(TABLE), np.nan)
    rows = [
        row
        for row in range(len(TABLE))
        if TABLE.scenario_ids[row] == TABLE.scenario_ids[0] and TABLE.turn_index[row] == 0
    ]
    values[rows] = [2.0, 5.0, 1.0, 2.0]
    assert pairs(TABLE, values, TRAJECTORIES).tolist() == [[rows[1], rows[2]]]


def test_without_a_pair_there_is_nothing_to_learn():
    equal = dict.fromkeys(SCORES, 5.0)
    table = rewards.focal_turn_table(TRAJECTORIES, equal)
    with pytest.raises(InputError, match="DPO has no pair to learn from"):
        objective_of(DPOConfig(), table, TRAJECTORIES)
