"""mediate against labelled exchanges, and the rules that it is made of."""

import json
from pathlib import Path

import pytest
from builders import trajectory

from emodistill.errors import InputError
from emodistill.negotiation import Verdict, mediate, read_offer
from emodistill.records import Turn

GOLDEN = [
    json.loads(line)
    for line in (Path(__file__).parent / "golden" / "mediator.jsonl").read_text().splitlines()
]


def turns_of(lines, domain):
    return [
        Turn(index=i, speaker=speaker, emotion=None, text=text, offer=read_offer(text, domain))
        for i, (speaker, text) in enumerate(lines)
    ]


def verdict(lines, domain="crad", target=30.0, anchor=90.0, **kwargs):
    game = trajectory("game", domain=domain, focal_target=target, counterparty_anchor=anchor)
    return mediate(turns_of(lines, domain), game, **kwargs)


def test_every_exchange_of_the_golden_set_ends_as_labelled():
    wrong = []
    for case in GOLDEN:
        game = (case["domain"], case["focal_target"], case["counterparty_anchor"])
        got = verdict(case["turns"], *game)
        if got != (case["outcome"], pytest.approx(case["final_value"], abs=1e-5)):
            wrong.append((case["about"], case["turns"], got))
    assert not wrong, "\n".join(map(str, wrong))


def test_golden_dialogues_do_not_end_before_their_last_turn():
    for case in GOLDEN:
        for end in range(len(case["turns"])):
            got = verdict(
                case["turns"][:end],
                case["domain"],
                case["focal_target"],
                case["counterparty_anchor"],
            )
            assert got.outcome == "ongoing", case["turns"][:end]


def test_no_turns():
    assert verdict([]) == Verdict("ongoing", None)


@pytest.mark.parametrize("text", ["", "—", "...", ": ;", "-- !"])
def test_a_turn_without_a_word_decides_nothing(text):
    assert verdict([("focal", "40 days."), ("counterparty", text)]) == Verdict("ongoing", None)


def test_crossing_follows_the_direction_of_the_game():
    lines = [("focal", "40 days."), ("counterparty", "50 days.")]
    assert verdict(lines, target=30, anchor=90).outcome == "ongoing"
    assert verdict(lines, "hospital", target=90, anchor=30) == Verdict("accepted", 50)


def test_tolerance_is_the_domains():
    quarter = [("focal", "11 PM."), ("counterparty", "11:15 PM.")]
    twenty = [("focal", "11 PM."), ("counterparty", "11:20 PM.")]
    assert verdict(quarter, "student", 1.5, 4.5) == Verdict("accepted", 2.25)
    assert verdict(twenty, "student", 1.5, 4.5).outcome == "ongoing"
    one_day = [("focal", "40 days."), ("counterparty", "41 days.")]
    assert verdict(one_day).outcome == "ongoing"


def test_a_yes_takes_the_others_value_and_not_ones_own():
    lines = [("focal", "40 days."), ("counterparty", "60 days."), ("focal", "Deal.")]
    assert verdict(lines) == Verdict("accepted", 60)


def test_upstream_rule():
    close = [("focal", "40 days."), ("counterparty", "45 days.")]
    assert verdict(close, rule="stand").outcome == "ongoing"
    assert verdict(close, rule="upstream") == Verdict("accepted", 42)
    far = [("focal", "40 days."), ("counterparty", "46 days.")]
    assert verdict(far, rule="upstream").outcome == "ongoing"
    over = [("focal", "40 days."), ("counterparty", "This conversation is over.")]
    assert verdict(over, rule="upstream").outcome == "breakdown"
    hours = [("focal", "10 PM."), ("counterparty", "2 AM.")]
    assert verdict(hours, "student", 1.0, 5.0, rule="upstream").outcome == "accepted"


def test_bad_input():
    with pytest.raises(InputError, match="rule='near' is not known; use one of stand, upstream"):
        verdict([("focal", "40 days.")], rule="near")
    with pytest.raises(InputError, match="nothing to negotiate"):
        verdict([("focal", "40 days.")], target=40, anchor=40)
    with pytest.raises(InputError, match="'rent'"):
        verdict([], "rent")
