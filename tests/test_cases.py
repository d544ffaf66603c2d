"""Case studies: the query's answer on dialogues made for it."""

import pytest
from builders import negotiation

from emodistill.evaluation.cases import (
    best_utterance,
    largest_flip,
    quickest_close,
    selector_difference,
)
from emodistill.offline.rewards import FocalTurns


def scored(dialogues, values):
    """The focal turns with these scores, in order."""
    turns = [(t.trajectory_id, turn.index) for t in dialogues for turn in t.focal_turns]
    scores = dict(zip(turns, values, strict=True))
    return FocalTurns.from_trajectories(dialogues, scores)


def four(shares=(0.5, 0.5, 0.5, 0.5)):
    """Four dialogues of one scenario with two focal turns each."""
    return [negotiation(number=1, seed=i, share=s, num_turns=4) for i, s in enumerate(shares)]


def test_the_quickest_of_the_best_closes_is_taken():
    slow = negotiation(number=1, share=0.9, num_turns=8)
    quick = negotiation(number=2, share=0.9, num_turns=4)
    worse = negotiation(number=3, share=0.4, num_turns=4)
    case = quickest_close([slow, worse, quick])
    assert case.trajectory == quick and case.turns == tuple(quick.focal_turns)
    assert case.values[0] == pytest.approx(1.0)  # it opens at its target
    assert quickest_close([negotiation(share=None)]) is None


def test_the_best_utterance_has_the_highest_hybrid_quality():
    dialogues = four()
    case = best_utterance(dialogues, scored(dialogues, [3, 4, 5, 9, 2, 2, 4, 4]))
    assert (case.trajectory, case.turns) == (dialogues[1], (dialogues[1].turns[2],))
    assert best_utterance(dialogues, FocalTurns.from_trajectories(dialogues, {})) is None


def test_the_largest_flip_is_within_one_dialogue():
    dialogues = four()
    case = largest_flip(dialogues, scored(dialogues, [6, 5, 9, 2, 9, 8, 1, 2]))
    assert case.trajectory == dialogues[1]
    assert case.values[0] > 0 > case.values[1]
    same = scored(dialogues, [5] * 8)
    assert largest_flip(dialogues, same) is None


def test_the_selector_s_case_is_where_it_gains_most():
    played = four((0.5, 0.9, 0.2, 0.4))
    plain = four((0.4, 0.3, None, 0.8))
    assert selector_difference(plain, played) == (plain[1], played[1])
    assert selector_difference(played[3:], plain[3:]).after == plain[3]
    assert selector_difference(plain[3:], played[3:]) is None
