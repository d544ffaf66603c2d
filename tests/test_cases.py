"""Case studies: the query's answer on dialogues made for it."""

import pytest
from report_runs import make_dialogue, run_data

from emodistill.evaluation.cases import (
    best_utterance,
    largest_flip,
    quickest_close,
    selector_difference,
)
from emodistill.reports.case_studies import cases_markdown
from emodistill.reports.run_data import CAVEAT


def scored(dialogues, values):
    """Scores of the focal turns, in order."""
    turns = [(t.trajectory_id, turn.index) for t in dialogues for turn in t.focal_turns]
    return dict(zip(turns, values, strict=True))


def four(shares=(0.5, 0.5, 0.5, 0.5)):
    """Four dialogues of one scenario with two focal turns each."""
    return [make_dialogue(number=1, seed=i, share=s, turns=4) for i, s in enumerate(shares)]


def test_the_quickest_of_the_best_closes_is_taken():
    slow = make_dialogue(number=1, share=0.9, turns=8)
    quick = make_dialogue(number=2, share=0.9, turns=4)
    worse = make_dialogue(number=3, share=0.4, turns=4)
    case = quickest_close([slow, worse, quick])
    assert case.trajectory == quick and case.turns == tuple(quick.focal_turns)
    assert case.values[0] == pytest.approx(1.0)  # it opens at its target
    assert quickest_close([make_dialogue(share=None)]) is None


def test_the_best_utterance_has_the_highest_hybrid_quality():
    dialogues = four()
    case = best_utterance(dialogues, scored(dialogues, [3, 4, 5, 9, 2, 2, 4, 4]))
    assert (case.trajectory, case.turns) == (dialogues[1], (dialogues[1].turns[2],))
    assert best_utterance(dialogues, {}) is None


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
    pair = selector_difference(played, plain)
    assert (pair.with_selector, pair.without) == (played[1], plain[1])
    assert selector_difference(plain[3:], played[3:]).with_selector == plain[3]
    assert selector_difference(played[3:], plain[3:]) is None


def test_the_file_has_each_case_and_quotes_what_was_said(tmp_path):
    dialogues = four()
    data = run_data(
        tmp_path,
        sweep=dialogues,
        evaluations={"crad": {"iql+sft+jpo": four((0.9,) * 4), "iql+sft+jpo-stripped": four()}},
    )
    text = cases_markdown(data)
    assert "## CRAD" in text and CAVEAT in text
    assert "Emotions that close the gap" in text and "with the selector and without" in text
    assert "worth learning" not in text, "nothing is judged"
    assert dialogues[0].turns[0].text.split(",")[0] in text
    assert cases_markdown(run_data(tmp_path)) is None
