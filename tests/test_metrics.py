"""Figures of dialogues worked out by hand."""

import math

import numpy as np
import pytest
from builders import dialogue, trajectory, turns

from emodistill.evaluation import metrics
from emodistill.offline.rewards import dialogue_utility


def test_utility_by_hand():
    rows = [
        dialogue("a", 60.0),  # half of the way from 90 to 30
        dialogue("b", 20.0),  # past the target
        dialogue("c", None),
        dialogue("d", None, outcome="ongoing"),
    ]
    assert [dialogue_utility(row) for row in rows] == [0.5, 1.0, 0.0, 0.0]


def test_a_run_counts_once_whatever_its_length():
    """Eq. 7: a run of one turn that scores 10 and one of nine that score 1 make 5.5."""
    rows = [
        dialogue("a", 60.0, num_turns=2, emotions=("joy",)),
        dialogue("b", 60.0, num_turns=18, emotions=("joy",) * 9),
    ]
    scores = {("a", 0): 10.0} | {("b", turn): 1.0 for turn in range(0, 18, 2)}
    (joy,) = metrics.emotion_scores(rows, scores)
    assert (joy.mean, joy.num_turns, joy.num_scenarios) == (5.5, 10, 1)
    assert math.isnan(joy.low) and math.isnan(joy.high)  # one scenario has no spread


def test_emotion_scores_count_scenarios_once():
    rows = [
        dialogue("a", 60.0, emotions=("anger", "joy")),
        dialogue("b", 60.0, emotions=("anger", "anger")),
        dialogue("c", 60.0, emotions=("anger", "fear"), scenario_id="debt_002"),
        dialogue("d", 60.0, emotions=("anger", "fear"), scenario_id="debt_003"),
    ]
    scores = {("a", 0): 2, ("a", 2): 9, ("b", 0): 4, ("b", 2): 6, ("c", 0): 8, ("d", 0): 7}
    joy, anger = metrics.emotion_scores(rows, scores)
    assert (joy.emotion, joy.mean, joy.num_turns, joy.num_scenarios) == ("joy", 9.0, 1, 1)
    # anger: runs 2 and 5 make 3.5 of the first scenario; with 8 and 7 of the others, 18.5 / 3
    assert (anger.emotion, anger.num_turns, anger.num_scenarios) == ("anger", 5, 3)
    assert anger.mean == pytest.approx(18.5 / 3)
    half = 4.302653 * np.std([3.5, 8, 7], ddof=1) / math.sqrt(3)  # t of two degrees of freedom
    assert (anger.low, anger.high) == pytest.approx((18.5 / 3 - half, 18.5 / 3 + half), rel=1e-5)


def test_emotion_ties_keep_the_vocabulary_order():
    rows = [dialogue("a", 60.0, emotions=("joy", "anger"))]
    found = metrics.emotion_scores(rows, {("a", 0): 5, ("a", 2): 5})
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
