"""Fitted Q-evaluation on an MDP solved by hand, and the support map."""

import dataclasses
import math

import numpy as np
import pytest
from tiny_mdp import CONFIG, MDP, transitions

from emodistill.train import selector_checks
from emodistill.train.q_learning import train_networks
from emodistill.train.selector_checks import (
    MIN_SUPPORT,
    estimated_values,
    fitted_q_values,
    support_map,
)

DATA = transitions(MDP, 3, np.array([0, 0, 0, 0, 1, 2, 2, 3, 3, 4], np.int32))


def deterministic(choices):
    """The policy that expresses the chosen emotion in each state."""
    policy_SA = np.zeros((3, 28), np.float32)
    for state, action in enumerate(choices):
        policy_SA[state, action] = 1
    return lambda states_NS: states_NS @ policy_SA


def test_fitted_q_is_the_value_of_the_policy(monkeypatch):
    monkeypatch.setattr(selector_checks, "FQE_STEPS", 4_000)
    config = dataclasses.replace(CONFIG, discount=0.9)
    found = fitted_q_values(
        {"good": deterministic((0, 0, 5)), "bad": deterministic((5, 5, 0))},
        DATA,
        config,
    )
    # Q of the policy by hand, in the states that begin DATA's five dialogues.
    good = [0.9 * 1.0, 1.0, 0.8]
    bad = [0.3 + 0.9 * -0.5, -1.0, -0.5]
    states = [0, 1, 1, 2, 2]
    assert found["good"] == pytest.approx(np.mean([good[s] for s in states]), abs=0.02)
    assert found["bad"] == pytest.approx(np.mean([bad[s] for s in states]), abs=0.02)


def test_the_selector_is_worth_more_than_what_it_learned_from(monkeypatch):
    monkeypatch.setattr(selector_checks, "FQE_STEPS", 2_000)  # as outside of tests
    (networks,) = train_networks(DATA, [CONFIG])
    values = estimated_values(networks, DATA, CONFIG)
    assert values["iql"] > values["behaviour-cloning"]
    assert set(values) == {"iql", "behaviour-cloning", "random"}
    assert values == estimated_values(networks, DATA, CONFIG)


def test_the_support_map_counts_and_finds_choices_without_data():
    (networks,) = train_networks(DATA, [CONFIG])
    found = support_map(networks, DATA, seed=0)
    data, policy = np.array(found["data"]), np.array(found["policy"])
    assert data.sum() == len(MDP)
    assert policy.sum() == pytest.approx(len(MDP), abs=0.0005 * policy.size)  # rounded to 0.001
    assert (data.max(axis=1) < MIN_SUPPORT).all()
    assert found["unsupported"] == pytest.approx(1)
    many = transitions(MDP * MIN_SUPPORT, 3)
    of_many = support_map(networks, many, seed=0)
    assert of_many["unsupported"] < 0.2
    assert support_map(networks, many, seed=0) == of_many


def test_probabilities_sum_to_one():
    (networks,) = train_networks(DATA, [CONFIG])
    probabilities = networks.probabilities(DATA.observation_NS)
    assert probabilities.sum(axis=1).tolist() == pytest.approx([1] * len(MDP))
    assert math.isfinite(probabilities.min())
