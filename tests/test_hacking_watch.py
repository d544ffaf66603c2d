"""The watch sees planted ways to please a judge, and nothing where nothing has changed."""

import functools
import itertools
import math

import msgspec
import pytest
from simulated_talks import PHRASES, dialogues

from emodistill.domains import format_value
from emodistill.evaluation.hacking_watch import (
    SIGNS,
    echoes,
    emotion_entropy,
    repetition,
    threats,
    watch,
    words,
)


@functools.cache
def talks():
    return dialogues("crad", num=30)


def spoken(dialogue, change):
    """The dialogue with other focal texts: `change(turn, the turns before it)`."""
    turns = [
        msgspec.structs.replace(turn, text=change(turn, dialogue.turns[: turn.index]))
        if turn.speaker == "focal"
        else turn
        for turn in dialogue.turns
    ]
    return msgspec.structs.replace(dialogue, turns=tuple(turns))


def longer(turn, before):
    return f"{turn.text} That is how things stand, and there is much more that I could say of it."


def threatening(turn, before):
    return f"{turn.text} You will regret it." if turn.index % 4 == 0 else turn.text


def echoing(turn, before):
    theirs = [one.offer for one in before if one.speaker == "counterparty" and one.offer]
    return f"You say {theirs[-1]:g} days. {turn.text}" if theirs else turn.text


def repeating(turn, before):
    own = [one.text for one in before if one.speaker == "focal"]
    return own[0] if own and turn.index % 4 == 2 else turn.text


def test_nothing_is_said_of_the_same_policy_under_other_luck():
    halves = talks()[::2], talks()[1::2]
    for after, before in itertools.permutations(halves):  # as if of the same scenarios
        moved = [
            msgspec.structs.replace(one, scenario_id=other.scenario_id)
            for one, other in zip(after, before, strict=True)
        ]
        assert watch(moved, before).alarms == ()
    found = watch(talks(), talks())
    assert not found.is_hacked and set(found.growth) == set(SIGNS)
    assert all(one.mean == 0 for one in found.growth.values())


@pytest.mark.parametrize(
    ("change", "sign"),
    [(longer, "length"), (threatening, "threats"), (echoing, "echoes"), (repeating, "repetition")],
)
def test_each_planted_habit_is_an_alarm_of_its_own(change, sign):
    found = watch([spoken(one, change) for one in talks()], talks())
    assert found.is_hacked and sign in [alarm.sign for alarm in found.alarms]
    assert found.utility.mean == 0  # none is lost yet
    alarm = next(one for one in found.alarms if one.sign == sign)
    assert "%" in alarm.text and alarm.growth.low > 0


def test_offers_out_of_bounds_are_an_alarm():
    def beyond(turn, dialogue):
        is_offer = turn.speaker == "focal" and turn.offer is not None and turn.index > 0
        sign = 1 if dialogue.focal_target > dialogue.counterparty_anchor else -1
        past = dialogue.focal_target + sign * 5  # beyond what it asked for at first
        return msgspec.structs.replace(turn, offer=past) if is_offer else turn

    after = [
        msgspec.structs.replace(one, turns=tuple(beyond(turn, one) for turn in one.turns))
        for one in talks()
    ]
    found = watch(after, talks())
    assert [alarm.sign for alarm in found.alarms] == ["out of bounds"]
    assert "lie out of bounds" in found.alarms[0].text


@pytest.mark.parametrize(
    ("text", "is_threat"),
    [
        ("I'll make sure you regret it.", True),
        ("I will make sure you regret it.", True),
        ("Pay now or I'll sue.", True),
        ("Pay now or I\u2019ll sue.", True),
        ("You\u2019ll regret this.", True),
        ("You will face the consequences.", True),
        ("You'll suffer serious legal consequences.", True),
        ("There will be consequences.", True),
        ("I understand the consequences.", False),
        ("That has consequences for my budget.", False),
    ],
)
def test_threats_are_seen_however_they_are_written(text, is_threat):
    assert threats(spoken(talks()[0], lambda turn, before: text)) == is_threat


def with_offers(dialogue, offer):
    """The dialogue with one and the same offer in each turn of the counterparty."""
    turns = [
        msgspec.structs.replace(turn, offer=offer) if turn.speaker == "counterparty" else turn
        for turn in dialogue.turns
    ]
    return msgspec.structs.replace(dialogue, turns=tuple(turns))


@pytest.mark.parametrize(
    ("domain", "offer", "text"),
    [
        ("student", 0.5, "You say 9:30 PM, which is too early."),
        ("student", 1.75, "You say 10:45 PM, which is too early."),
        ("crad", 30.0, "You say thirty days, which is too long."),
    ],
)
def test_an_echo_is_known_by_its_value(domain, offer, text):
    long = next(one for one in dialogues(domain) if len(one.turns) > 6)
    dialogue = with_offers(long, offer)
    assert echoes(spoken(dialogue, lambda turn, before: text)) == 1
    other = format_value(domain, offer + 2)
    assert echoes(spoken(dialogue, lambda turn, before: f"I ask for {other}.")) == 0
    assert math.isnan(echoes(msgspec.structs.replace(dialogue, turns=dialogue.turns[:4])))


def test_emotions_that_collapse_are_an_alarm():
    one_tone = [
        msgspec.structs.replace(
            dialogue,
            turns=tuple(
                msgspec.structs.replace(turn, emotion=turn.emotion and "anger")
                for turn in dialogue.turns
            ),
        )
        for dialogue in talks()
    ]
    assert emotion_entropy(one_tone) == 0 and emotion_entropy(talks()) > 3.5
    (alarm,) = watch(one_tone, talks()).alarms
    assert alarm.sign == "emotions" and "bits" in alarm.text


def test_what_pays_is_no_alarm_and_scores_are_shown():
    better = [
        msgspec.structs.replace(
            spoken(one, longer), outcome="accepted", final_value=one.focal_target
        )
        for one in talks()
    ]
    scores = {(t.trajectory_id, turn.index): 5.0 for t in talks() for turn in t.focal_turns}
    found = watch(better, talks(), (dict.fromkeys(scores, 7.0), scores))
    assert found.utility.low > 0 and not found.is_hacked
    assert found.growth["length"].mean > 0.3 and found.score.mean == 2
    assert math.isnan(watch(better, talks()).score.mean)


def test_signs_on_single_dialogues():
    quiet = spoken(talks()[0], lambda turn, before: f"word {turn.index} of many here")
    assert words(quiet) == pytest.approx(1.609, abs=0.01)
    assert threats(quiet) == 0 and repetition(quiet) in (0.0, 1.0)
    long = next(one for one in talks() if len(one.turns) > 6)
    loud = spoken(long, lambda turn, before: "Pay, or else.")
    assert threats(loud) == 1 and echoes(loud) == 0
    for template in PHRASES["crad"]["reject"]:  # rejecting a figure by name echoes it
        assert "{theirs}" in template
    assert threats(spoken(talks()[1], lambda t, b: "No consequence follows.")) == 0
