"""Table figures worked out by hand on a handful of dialogues."""

import math

import numpy as np
import pytest
from builders import dialogue, trajectory, turns

from emodistill.evaluation import metrics


def test_summary_by_hand():
    rows = [
        dialogue("a", 60.0, num_turns=4),  # 0.5
        dialogue("b", 20.0, num_turns=6),  # past the target: 1
        dialogue("c", None, num_turns=8, scenario_id="debt_002"),
        dialogue("d", None, num_turns=10, outcome="ongoing", scenario_id="debt_002"),
    ]
    found = metrics.summarize(rows)
    assert (found.num_dialogues, found.num_scenarios) == (4, 2)
    assert found.success == 0.5
    assert (found.outcomes, found.outcomes_std) == pytest.approx((0.75, 0.25))
    assert found.utility == pytest.approx(0.375)
    assert found.utility_std == pytest.approx(np.std([0.5, 1, 0, 0]))  # population, not n - 1
    assert (found.rounds, found.rounds_std) == pytest.approx((7.0, math.sqrt(5)))


def test_summary_without_a_success_or_a_dialogue():
    failed = metrics.summarize([dialogue("a", None)])
    assert math.isnan(failed.outcomes)
    assert (failed.success, failed.utility, failed.utility_std) == (0.0, 0.0, 0.0)
    empty = metrics.summarize([])
    assert empty.num_dialogues == 0
    assert math.isnan(empty.success) and math.isnan(empty.utility) and math.isnan(empty.rounds)


def test_outcomes_carry_their_scenarios():
    rows = [dialogue("a", None), dialogue("b", 45.0, scenario_id="debt_009")]
    values, ids = metrics.dialogue_outcomes(rows)
    np.testing.assert_allclose(values, [0.75])
    assert ids == ["debt_009"]


def test_emotion_scores_count_scenarios_once():
    rows = [
        dialogue("a", 60.0, emotions=("anger", "joy")),
        dialogue("b", 60.0, emotions=("anger", "anger")),
        dialogue("c", 60.0, emotions=("anger", "fear"), scenario_id="debt_002"),
    ]
    scores = {("a", 0): 2, ("a", 2): 9, ("b", 0): 4, ("b", 2): 6, ("c", 0): 8}
    joy, anger = metrics.emotion_scores(rows, scores, n_resamples=2_000)
    assert (joy.emotion, joy.mean, joy.num_turns, joy.num_scenarios) == ("joy", 9.0, 1, 1)
    # anger: scenario means 4 and 8, so 6; the mean over its four turns would be 5.
    assert (anger.emotion, anger.mean, anger.num_turns, anger.num_scenarios) == ("anger", 6.0, 4, 2)
    assert (anger.low, anger.high) == (4.0, 8.0)


def test_emotion_ties_keep_the_vocabulary_order():
    rows = [dialogue("a", 60.0, emotions=("joy", "anger"))]
    found = metrics.emotion_scores(rows, {("a", 0): 5, ("a", 2): 5}, n_resamples=10)
    assert [score.emotion for score in found] == ["anger", "joy"]


def test_figures_without_an_offer_are_counted():
    assert metrics.num_unread_offers(dialogue("a", 60.0, num_turns=9)) == 1
    assert metrics.num_unread_offers(dialogue("b", None, num_turns=2)) == 0


def offers(*values, target=30.0):
    """A dialogue of these offers, the focal side's first."""
    texts = ["-" if value is None else f"{value:g} days" for value in values]
    return trajectory("a", turns(*values, texts=texts), focal_target=target)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((30.0, 90.0, 40.0, 70.0, 70.0), [True, True, True]),  # opens at the target, takes theirs
        ((35.0, 90.0, 35.0), [False, True]),  # opens elsewhere, holds
        ((30.0, 90.0, 25.0), [True, False]),  # a step back
        ((30.0, 60.0, 61.0), [True, False]),  # past what the other side offers
        ((30.0, 60.0, None, 50.0, 55.0), [True, False]),  # 50 is on the table by now
        ((30.0, None, 30.0, None, 31.0), [True, True, False]),  # nothing to give ground to yet
        ((None, 90.0, None), []),
    ],
)
def test_offers_in_bounds_by_hand(values, expected):
    assert metrics.in_bounds(offers(*values)) == expected
    assert (
        metrics.in_bounds(offers(*(v and 120 - v for v in values), target=90.0)) == expected
    )  # the other direction


def test_the_share_in_bounds_is_over_all_offers():
    both = [offers(30.0, 90.0, 40.0, 70.0, 70.0), offers(20.0)]
    assert metrics.summarize(both).in_bounds == 0.75
    assert math.isnan(metrics.summarize([offers(None)]).in_bounds)
