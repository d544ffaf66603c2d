"""Bradley–Terry: closed forms, scipy's optimiser, known strengths, and one that always wins."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from emodistill.errors import InputError
from emodistill.evaluation.ratings import PRIOR_BOUTS, Bout, bradley_terry

TRUTH = {"e": 1.0, "i": 0.2, "v": -1.2}


def tournament(rng, *, num_scenarios=20, num_rounds=1, truth=TRUTH):
    """Every pair on every scenario, won with the true odds."""
    return [
        Bout(a, b, float(rng.random() < expit(truth[a] - truth[b])), f"debt_{scenario:03d}")
        for scenario in range(num_scenarios)
        for a, b in itertools.combinations(truth, 2)
        for _ in range(num_rounds)
    ]


def rated(*args, **kwargs):
    return [*bradley_terry(*args, **kwargs).itertuples(index=False)]


def width(rating):
    return rating.interval_high - rating.interval_low


def strengths(bouts, **kwargs):
    return {rating.method: rating.strength for rating in rated(bouts, 1, **kwargs)}


def test_two_methods_have_a_closed_form():
    bouts = [Bout("a", "b", score, str(i)) for i, score in enumerate([1.0, 0.5, 0.75, 0.0, 1.0])]
    first, second = rated(bouts, 100)
    odds = (3.25 + PRIOR_BOUTS / 2) / (1.75 + PRIOR_BOUTS / 2)
    assert (first.method, second.method, first.num_bouts) == ("a", "b", 5)
    assert first.strength - second.strength == pytest.approx(math.log(odds))
    assert first.strength + second.strength == pytest.approx(0.0, abs=1e-12)


def test_the_fit_is_the_maximum_that_scipy_finds():
    rng = np.random.default_rng(0)
    names = list("abcd")
    bouts = [
        Bout(*rng.choice(names, 2, replace=False).tolist(), float(rng.beta(1, 2)), str(i % 7))
        for i in range(60)
    ]

    def loss(theta):
        place = {name: theta[i] for i, name in enumerate(names)}
        total = 0.01 * theta.sum() ** 2  # only pins the mean
        for a, b in itertools.permutations(names, 2):
            total -= PRIOR_BOUTS / 2 * log_expit(place[a] - place[b])
        for bout in bouts:
            gap = place[bout.first] - place[bout.second]
            total -= bout.score * log_expit(gap) + (1 - bout.score) * log_expit(-gap)
        return total

    best = minimize(loss, np.zeros(4), tol=1e-10).x
    found = strengths(bouts)
    np.testing.assert_allclose([found[name] for name in names], best, atol=1e-5)


def test_known_strengths_come_back():
    bouts = tournament(np.random.default_rng(1), num_scenarios=100, num_rounds=20)
    ratings = rated(bouts, 500)
    assert [rating.method for rating in ratings] == ["e", "i", "v"]
    for rating in ratings:
        assert rating.strength == pytest.approx(TRUTH[rating.method], abs=0.1)
        assert rating.interval_low < rating.strength < rating.interval_high
        assert rating.num_bouts == 4_000


def test_intervals_cover():
    rng = np.random.default_rng(2)
    trials, hits = 200, 0
    for trial in range(trials):
        for rating in rated(tournament(rng, num_scenarios=60), 300, trial):
            hits += rating.interval_low <= TRUTH[rating.method] <= rating.interval_high
    assert 0.92 <= hits / (3 * trials) <= 0.98


def test_intervals_take_scenarios_whole():
    rng = np.random.default_rng(3)
    bouts = tournament(rng, num_scenarios=20)
    tenfold = [bout for bout in bouts for _ in range(10)]
    once, often = rated(bouts, 2_000)[0], rated(tenfold, 2_000)[0]
    # Repeating what a scenario said adds nothing; resampled by bout, a third of the width is left.
    assert width(often) > 0.9 * width(once)


def test_neither_order_nor_seats_matter():
    bouts = tournament(np.random.default_rng(4))
    mixed = [
        bout if i % 2 else Bout(bout.second, bout.first, 1 - bout.score, bout.scenario_id)
        for i, bout in enumerate(reversed(bouts))
    ]
    for one, other in zip(rated(bouts, 200, 5), rated(mixed, 200, 5), strict=True):
        assert one.method == other.method
        np.testing.assert_allclose(one[1:], other[1:], atol=1e-8)


@pytest.mark.parametrize("num_scenarios", [1, 10, 5_000])
def test_one_that_always_wins_is_finite_and_solved(num_scenarios):
    pairs = [("a", "b"), ("b", "c"), ("a", "c")]
    bouts = [Bout(*pair, 1.0, str(i)) for i in range(num_scenarios) for pair in pairs]
    ratings = rated(bouts, 50)
    assert [rating.method for rating in ratings] == ["a", "b", "c"]
    assert np.isfinite([rating[1:4] for rating in ratings]).all()
    # At the maximum, what a method is expected to win is what it won, drawn bouts included.
    found, num = {r.method: r.strength for r in ratings}, num_scenarios + PRIOR_BOUTS
    expected = sum(num * expit(found["a"] - found[name]) for name in "bc")
    assert expected == pytest.approx(2 * num_scenarios + PRIOR_BOUTS, rel=1e-9)


def test_a_lopsided_tournament_on_which_plain_newton_steps_never_settle():
    won = {"cb": 7442, "db": 714, "dc": 4832, "ea": 1408, "eb": 309, "ad": 16}
    bouts = [Bout(*pair, 1.0, "s") for pair, num in won.items() for _ in range(num)]
    found = strengths(bouts)
    for name in "abcde":
        expected = sum(
            (won.get(name + other, 0) + won.get(other + name, 0) + PRIOR_BOUTS)
            * expit(found[name] - found[other])
            for other in "abcde"
            if other != name
        )
        total = sum(num for pair, num in won.items() if pair[0] == name)
        assert expected == pytest.approx(total + 4 * PRIOR_BOUTS / 2, rel=1e-6)


def test_methods_that_never_met_and_no_bouts():
    found = strengths([Bout("a", "b", 1.0, "s"), Bout("c", "d", 1.0, "s")])
    assert found["a"] == pytest.approx(found["c"])
    assert bradley_terry([]).empty
    (alone,) = rated([Bout("a", "a", 0.9, "s")], 10)
    assert alone == ("a", 0.0, 0.0, 0.0, 0)


def test_bad_input():
    with pytest.raises(InputError, match=r"bouts\[0\]: score=1.5 of 'a' against 'b' on 's'"):
        bradley_terry([Bout("a", "b", 1.5, "s")])
    with pytest.raises(InputError, match="n_resamples=0"):
        bradley_terry([Bout("a", "b", 1.0, "s")], 0)
