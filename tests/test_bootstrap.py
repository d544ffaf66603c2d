"""Intervals: coverage on data whose truth is known, and what happens at the edges."""

import numpy as np
import pytest

from emodistill.errors import InputError
from emodistill.evaluation import bootstrap
from emodistill.evaluation.bootstrap import bootstrap_ci, clustered_ci, paired_difference_ci


def test_coverage_of_a_skewed_mean():
    rng = np.random.default_rng(0)
    truth, hits, trials = 0.25, 0, 800
    for trial in range(trials):
        sample = rng.beta(1, 3, 120)  # savings-like: bounded, skewed
        _, low, high = bootstrap_ci(sample, n_resamples=400, seed=trial)
        hits += low <= truth <= high
    assert 0.93 <= hits / trials <= 0.97


def clustered_sample(rng, num_scenarios, shift, scenario_effect):
    """Four dialogues a scenario, which share the scenario's effect."""
    values = shift + np.repeat(scenario_effect, 4) + rng.normal(0, 0.5, 4 * num_scenarios)
    return values, np.repeat([f"s{i:03d}" for i in range(num_scenarios)], 4)


def test_clustered_coverage_where_the_plain_interval_is_too_narrow():
    rng = np.random.default_rng(1)
    trials, hits, plain_hits = 300, 0, 0
    for trial in range(trials):
        values, ids = clustered_sample(rng, 80, 0.0, rng.normal(0, 1, 80))
        _, low, high = clustered_ci(values, ids, 300, trial)
        hits += low <= 0 <= high
        _, low, high = bootstrap_ci(values, 300, trial)
        plain_hits += low <= 0 <= high
    assert 0.92 <= hits / trials <= 0.975
    assert plain_hits / trials < 0.8


def test_paired_coverage_and_gain_from_pairing():
    rng = np.random.default_rng(2)
    trials, hits, widths, unpaired = 300, 0, [], []
    for trial in range(trials):
        effect = rng.normal(0, 1, 80)
        ours, ids = clustered_sample(rng, 80, 0.3, effect)
        theirs, their_ids = clustered_sample(rng, 80, 0.0, effect)
        _, low, high = paired_difference_ci(ours, ids, theirs, their_ids, 300, trial)
        hits += low <= 0.3 <= high
        widths.append(high - low)
        ci = clustered_ci(ours, ids, 300, trial)
        unpaired.append(ci.high - ci.low)
    assert 0.92 <= hits / trials <= 0.975
    assert np.mean(widths) < 0.5 * np.mean(unpaired)


def test_mean_and_interval_by_brute_force():
    values = np.array([0.0, 1.0, 0.5])
    mean, low, high = bootstrap_ci(values, n_resamples=20_000)
    every = np.array(
        [values[[i, j, k]].mean() for i in range(3) for j in range(3) for k in range(3)]
    )
    assert mean == 0.5
    # All 27 resamples are equally likely: the 2.5 % and 97.5 % points are the extreme atoms.
    assert low == pytest.approx(every.min())
    assert high == pytest.approx(every.max())


def test_clusters_of_one_value_are_the_plain_bootstrap():
    values = np.random.default_rng(3).normal(size=200)
    plain = bootstrap_ci(values, 20_000)
    clustered = clustered_ci(values, [str(i) for i in range(200)], 20_000)
    np.testing.assert_allclose(clustered, plain, atol=0.01)


def test_dialogues_of_a_scenario_move_together():
    # Two scenarios, each unanimous: a resample's mean can only be 0, 1 or the 1:3 mix.
    ci = clustered_ci([0, 1, 1, 1], ["a", "b", "b", "b"], 5_000)
    assert ci == (0.75, 0.0, 1.0)
    constant = clustered_ci([0, 1, 0, 1], ["a", "a", "b", "b"], 5_000)
    assert constant == (0.5, 0.5, 0.5)


def test_the_difference_of_twins_has_no_width():
    values, ids = [0.1, 0.9, 0.4, 0.6], ["a", "b", "c", "d"]
    order = [2, 0, 3, 1]
    ci = paired_difference_ci(values, ids, [values[i] for i in order], [ids[i] for i in order], 500)
    np.testing.assert_allclose(ci, 0.0, atol=1e-15)


def test_the_difference_uses_shared_scenarios_and_weighs_dialogues():
    ci = paired_difference_ci(
        [1.0, 1.0, 0.0, 9.0], ["a", "a", "b", "ours"], [0.5, 0.5, 7.0], ["a", "b", "theirs"], 2_000
    )
    assert ci.mean == pytest.approx(2 / 3 - 0.5)
    assert (ci.low, ci.high) == (-0.5, 0.5)
    assert np.isnan(paired_difference_ci([1.0], ["a"], [1.0], ["b"], 100)).all()


def test_same_seed_same_interval_whatever_the_memory(monkeypatch):
    values = np.random.default_rng(4).normal(size=50)
    first = bootstrap_ci(values, 1_000, 7)
    assert bootstrap_ci(values, 1_000, 7) == first
    assert bootstrap_ci(values, 1_000, 8) != first
    monkeypatch.setattr(bootstrap, "MAX_DRAWS", 333)
    assert bootstrap_ci(values, 1_000, 7) == first


def test_nothing_and_a_single_value():
    assert np.isnan(bootstrap_ci([])).all()
    assert np.isnan(clustered_ci([], [])).all()
    assert bootstrap_ci([0.3], 100) == (0.3, 0.3, 0.3)


def test_bad_input():
    with pytest.raises(InputError, match=r"values\[1\]=nan is not finite"):
        bootstrap_ci([1.0, float("nan")])
    with pytest.raises(InputError, match="n_resamples=0 must be at least 1"):
        bootstrap_ci([1.0], n_resamples=0)
    with pytest.raises(InputError, match="2 values but clusters of shape"):
        clustered_ci([1.0, 2.0], ["a"])
