"""Two judges, and one judge twice: figures against counting by hand."""

import itertools
import math

import numpy as np
import pytest

from emodistill.errors import InputError
from emodistill.offline.agreement import compare_scores, repeat_spread
from emodistill.offline.rewards import scenario_advantages
from emodistill.records import Judgement
from emodistill.seeding import stream


def scores(values, name="d"):
    return {(f"{name}{i // 4}", 2 * (i % 4)): value for i, value in enumerate(values)}


SCENARIOS = {f"d{i}": f"s{i}" for i in range(100)}


def test_a_judge_agrees_with_itself():
    same = scores([1, 5, 9, 10, 3, 3, 7, 8])
    found = compare_scores(same, same, SCENARIOS)
    assert (found.num_items, found.kendall_tau, found.sign_flips, found.same) == (8, 1, 0, 1)
    assert found.counts.trace() == 8


def test_kendalls_tau_by_counting_pairs():
    rng = stream(0, "test")
    a, b = rng.integers(1, 11, (2, 40))
    pairs = list(itertools.combinations(range(40), 2))
    concordant = sum(np.sign((a[i] - a[j]) * (b[i] - b[j])) for i, j in pairs)
    untied = [sum(int(v[i] != v[j]) for i, j in pairs) for v in (a, b)]
    found = compare_scores(scores(a), scores(b), SCENARIOS)
    assert found.kendall_tau == pytest.approx(concordant / math.sqrt(untied[0] * untied[1]))


def test_sign_flips_are_those_of_the_advantages():
    rng = stream(1, "test")
    a, b = rng.integers(1, 11, (2, 40))
    names = [f"s{i // 4}" for i in range(40)]
    first, second = (scenario_advantages(v.astype(float), names) for v in (a, b))
    expected = np.mean(first * second < 0)
    assert 0 < expected < 1
    assert compare_scores(scores(a), scores(b), SCENARIOS).sign_flips == pytest.approx(expected)


def test_only_items_of_both_judges_count_and_none_is_an_error():
    found = compare_scores(scores([1, 2, 3]), scores([2, 2, 2, 9]), SCENARIOS)
    assert found.num_items == 3 and found.mean_difference == 0
    assert math.isnan(found.kendall_tau) and math.isnan(found.sign_flips)
    with pytest.raises(InputError, match="no item in common"):
        compare_scores(scores([1]), scores([1], name="e"), SCENARIOS)


def test_the_table_has_the_first_judge_in_rows():
    found = compare_scores(scores([3]), scores([10]), SCENARIOS)
    assert found.counts[2, 9] == found.counts.sum() == 1
    assert "+7.00" in found.text
    assert found.text.splitlines()[5].split() == ["3", *["."] * 9, "1"]


def line(repeat, score, name="d0", attempt=0):
    return Judgement(
        trajectory_id=name,
        turn_index=0,
        judge="j",
        repeat=repeat,
        attempt=attempt,
        rubric_sha256="0",
        raw=str(score),
        status="failed" if score is None else "scored",
        score=score,
        prompt_tokens=0,
        completion_tokens=0,
        cost_usd=0.0,
    )


def test_the_spread_of_repeated_scores():
    lines = [line(0, None), line(0, 4, attempt=1), line(1, 6), line(0, 9, "d1"), line(1, 9, "d1")]
    found = repeat_spread([*lines, line(0, 2, "d2")])
    assert found.num_items == 2
    assert found.variance == pytest.approx((2.0 + 0.0) / 2)
    assert found.reliability == pytest.approx(1 - 1.0 / np.var([4, 6, 9, 9], ddof=1))
    assert repeat_spread(lines[:2]).num_items == 0
