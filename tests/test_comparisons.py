"""Tests of emotions and methods: hand-written formulas, published tables, rates under the null."""

import itertools
import math

import numpy as np
import pytest
from builders import dialogue
from scipy import stats

from emodistill.errors import InputError
from emodistill.evaluation.comparisons import (
    emotion_tests,
    holm,
    paired_p_value,
    scenario_differences,
    scenarios_needed,
)


def study(emotions, *, num_scenarios=20, num_runs=3, seed=0):
    """Dialogues of two focal turns under one emotion; its effect is given, a scenario's shared."""
    rng = np.random.default_rng(seed)
    rows, scores = [], {}
    for scenario in range(num_scenarios):
        base = rng.normal(6, 1)
        for emotion, effect in emotions.items():
            for run in range(num_runs):
                name = f"{emotion}/{scenario:02d}/{run}"
                scenario_id = f"debt_{scenario:03d}"
                rows.append(dialogue(name, 60.0, emotions=(emotion,) * 2, scenario_id=scenario_id))
                for turn in (0, 2):
                    scores[name, turn] = base + effect + rng.normal(0, 0.5)
    return rows, scores


def by_scenario(scores, emotion):
    """[scenarios, turns] in the order of names."""
    names = [name for name in sorted(scores) if name[0].startswith(f"{emotion}/")]
    return np.array([scores[name] for name in names]).reshape(20, -1)


def test_emotions_against_neutral_by_the_formulas():
    rows, scores = study({"anger": 0.6, "joy": -0.05, "neutral": 0.0})
    anger, joy = emotion_tests(rows, scores)
    assert (anger["emotion"], joy["emotion"], anger["num_scenarios"]) == ("anger", "joy", 20)
    neutral = by_scenario(scores, "neutral")
    for found in (anger, joy):
        ours = by_scenario(scores, found["emotion"])
        delta = ours.mean(axis=1) - neutral.mean(axis=1)
        error = delta.std(ddof=1) / math.sqrt(20)
        t = delta.mean() / error  # Eq. 10
        p = 2 * stats.t.sf(abs(t), 19)
        half = stats.t.isf(0.025, 19) * error
        assert (found["t"], found["p"]) == pytest.approx((t, p))
        assert found["p_bonferroni"] == pytest.approx(min(1.0, 27 * p))
        expected = (delta.mean(), delta.mean() - half, delta.mean() + half)
        difference = found["difference"], found["interval_low"], found["interval_high"]
        np.testing.assert_allclose(difference, expected)

        a, b = (side.mean(axis=1).var(ddof=1) / 20 for side in (ours, neutral))
        freedom = (a + b) ** 2 / ((a**2 + b**2) / 19)
        half = stats.t.isf(0.025, freedom) * math.sqrt(a + b)
        welch = found["welch_low"], found["welch_high"]
        np.testing.assert_allclose(welch, (delta.mean() - half, delta.mean() + half))
    assert anger["p_bonferroni"] < 0.05 < joy["p_bonferroni"]


def test_only_scenarios_with_both_count_and_once_each():
    rows = [
        dialogue("a", 60.0, emotions=("anger", "anger"), scenario_id="s1"),
        dialogue("b", 60.0, emotions=("anger", "neutral"), scenario_id="s2"),
        dialogue("c", 60.0, emotions=("neutral", "neutral"), scenario_id="s1"),
        dialogue("d", 60.0, emotions=("anger", "joy"), scenario_id="s3"),
    ]
    scores = {("a", 0): 8, ("a", 2): 6, ("b", 0): 9, ("b", 2): 4, ("c", 0): 5, ("c", 2): 5}
    (anger,) = emotion_tests(rows, scores | {("d", 0): 1, ("d", 2): 1})
    # s1: 7 - 5, s2: 9 - 4; s3 has no neutral turn, and joy nothing but s3.
    assert (anger["num_scenarios"], anger["difference"]) == (2, 3.5)


@pytest.mark.parametrize("num_scenarios", [1, 3])
def test_no_spread_is_no_test(num_scenarios):
    rows, scores = study({"anger": 0.0, "neutral": 0.0}, num_scenarios=num_scenarios, num_runs=1)
    same = {name: 6.0 + name[0].startswith("anger") for name in scores}
    (anger,) = emotion_tests(rows, same)
    assert anger["difference"] == 1.0
    ends = (f"{name}_{end}" for name in ("interval", "welch") for end in ("low", "high"))
    assert np.isnan([anger[name] for name in ("t", "p", "p_bonferroni", *ends)]).all()


def test_emotions_need_neutral():
    rows, scores = study({"anger": 0.0}, num_scenarios=1)
    with pytest.raises(InputError, match="no scored focal turn under 'neutral'"):
        emotion_tests(rows, scores)


def test_holm_by_hand():
    # Smallest first: 4 x .005, 3 x .01, 2 x .03, 1 x .04, the last raised to the one before.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.9]), [1.0, 1.0])
    np.testing.assert_allclose(holm([np.nan, 0.02, 0.01]), [np.nan, 0.02, 0.02])
    assert len(holm([])) == 0
    with pytest.raises(InputError, match=r"p_values\[1\]=1.2 must lie in \[0, 1\]"):
        holm([0.1, 1.2])


def test_holm_rejects_what_its_step_down_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.beta(0.3, 3, size=8)
        expected = np.zeros(8, bool)
        for step, place in enumerate(np.argsort(p)):
            if p[place] > 0.05 / (8 - step):
                break
            expected[place] = True
        np.testing.assert_array_equal(holm(p) <= 0.05, expected)


def test_differences_are_of_scenario_means():
    found = scenario_differences(
        [1.0, 0.0, 0.4, 9.0], ["a", "a", "b", "ours"], [0.1, 0.2, 0.4], ["b", "a", "a"]
    )
    np.testing.assert_allclose(found, [0.5 - 0.3, 0.4 - 0.1])


def test_sign_flips_by_brute_force():
    delta = np.array([0.7, -0.1, 0.7, 0.2, 0.3, 0.4])
    flips = np.array(list(itertools.product([-1, 1], repeat=6)))
    means = (flips * delta).mean(axis=1)
    expected = np.mean(np.abs(means) >= abs(delta.mean()) - 1e-12)
    assert paired_p_value(delta) == pytest.approx(expected)
    assert paired_p_value(-delta) == pytest.approx(expected)
    assert paired_p_value(np.zeros(6)) == 1.0
    assert math.isnan(paired_p_value(np.array([1.0])))


def test_random_sign_flips_repeat_and_come_near_the_t_test():
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(0.2, 1, 40), rng.normal(0, 1, 40)
    p = paired_p_value(ours - theirs, seed=3)
    assert paired_p_value(ours - theirs, seed=3) == p
    assert p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, rel=0.1)


def test_sign_flips_reject_as_often_as_they_say():
    rng = np.random.default_rng(2)
    is_rejected = [paired_p_value(rng.beta(1, 3, 8) - rng.beta(1, 3, 8)) <= 0.1 for _ in range(400)]
    assert 0.06 <= np.mean(is_rejected) <= 0.14


@pytest.mark.parametrize(
    ("size", "power", "expected"),
    # Pairs for a two-sided t-test at 0.05, as tabulated for G*Power (Faul et al., 2007).
    [(0.2, 0.8, 199), (0.5, 0.8, 34), (0.8, 0.8, 15), (0.5, 0.95, 54)],
)
def test_scenarios_needed_as_tabulated(size, power, expected):
    differences = np.array([-1.0, 0.0, 1.0]) * 0.25  # a deviation of 0.25
    assert scenarios_needed(differences, 0.25 * size, power) == expected
    assert scenarios_needed(differences + 7, -0.25 * size, power) == expected


def test_scenarios_needed_at_the_edges():
    assert scenarios_needed([0.1, 0.1], 0.05) == 2
    assert scenarios_needed([0.0, 1e-6], 5.0) == 2
    assert scenarios_needed([0.0, 1.0], 0.001) > 1_000_000
    with pytest.raises(InputError, match="at least two finite"):
        scenarios_needed([0.1], 0.05)
    with pytest.raises(InputError, match="effect=0 must be"):
        scenarios_needed([0.1, 0.2], 0)
    with pytest.raises(InputError, match="power=80"):
        scenarios_needed([0.1, 0.2], 0.05, power=80)
