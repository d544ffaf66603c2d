"""The simulated teacher: its figures, its tones, its varied skill."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from simulated_talks import PACK, PHRASES, SCENARIOS, dialogues, turns_of

from emodistill.domains import DOMAINS
from emodistill.emotions import EMOTIONS, NEUTRAL
from emodistill.prompts import (
    focal_messages,
)
from emodistill.simulator import response_model as rm
from emodistill.simulator.reading import (
    last_figure,
)
from emodistill.simulator.server import complete
from emodistill.simulator.teacher import CLARITY_ODDS

FELT = [label for label in EMOTIONS if label != NEUTRAL]


def spoken(domain: str, emotion: str | None, seed: int, *texts: str) -> str:
    scenario = SCENARIOS[domain][seed % 40]
    messages = focal_messages(PACK, scenario, turns_of(*texts), emotion)
    return complete("sim-teacher", messages, seed=seed, temperature=0.7)[0]


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_teacher_opens_at_its_target(domain):
    for seed in range(40):
        text = spoken(domain, EMOTIONS[seed % 28], seed)
        assert last_figure(text, domain) == SCENARIOS[domain][seed].focal_target


@pytest.mark.parametrize("domain", DOMAINS)
def test_later_offers_lie_between_the_positions_on_the_table(domain):
    num_later = 0
    for one in dialogues(domain):
        mine = theirs = None
        for turn in one.turns:
            if turn.offer is None:
                continue
            if turn.speaker == "counterparty":
                theirs = turn.offer
                continue
            if mine is not None and theirs is not None:
                assert min(mine, theirs) <= turn.offer <= max(mine, theirs), turn.text
                num_later += turn.offer not in (mine, theirs)
            mine = turn.offer
    assert num_later > 40


def test_the_teacher_expresses_what_it_is_asked_for():
    wrong = {}
    for emotion in FELT:
        heard = [rm.expressed(spoken("disaster", emotion, seed)) for seed in range(60)]
        clear = [one for one in heard if one.clarity > 0]
        share = np.mean([one.emotion == emotion for one in clear])
        # Facts have words of feeling; "thank you for your patience" also sounds of annoyance.
        least = 0.8 if emotion == "gratitude" else 0.92
        odds = np.array([np.mean([one.clarity == c for one in heard]) for c in (1.0, 0.6, 0.0)])
        if share < least or np.abs(odds - CLARITY_ODDS).max() >= 0.25:
            wrong[emotion] = share, odds
    assert not wrong


def test_a_quarter_of_the_utterances_says_nothing_of_the_emotion():
    heard = [rm.expressed(spoken("hospital", "joy", seed)).clarity for seed in range(400)]
    odds = [np.mean([clarity == c for clarity in heard]) for c in (1.0, 0.6, 0.0)]
    assert np.abs(np.array(odds) - CLARITY_ODDS).max() < 0.08


@pytest.mark.parametrize("emotion", [NEUTRAL, None])
def test_without_an_emotion_the_teacher_sounds_of_none(emotion):
    heard = [rm.expressed(spoken("disaster", emotion, seed)) for seed in range(60)]
    assert np.mean([one.emotion is None for one in heard]) > 0.9


def test_clauses_carry_their_own_markers():
    wrong = []
    for emotion in FELT:
        affect = rm.AFFECTS[emotion]
        for clauses in itertools.product(affect.first, affect.second):
            expression = rm.expressed(" ".join(clauses))
            if expression != (emotion, 1.0):
                wrong.append((emotion, clauses, expression))
    assert not wrong


def test_skill_has_nothing_to_do_with_the_emotion():
    """Arguments and figures come as often under one emotion as under another."""
    texts = {one: [spoken("crad", one, seed) for seed in range(300)] for one in ("anger", "joy")}
    shares = {
        one: np.mean([any(w in t.lower() for w in PHRASES["keywords"]["crad"]) for t in said])
        for one, said in texts.items()
    }
    assert abs(shares["anger"] - shares["joy"]) < 0.12
    assert 0.3 < shares["joy"] < 0.5


def test_a_fact_with_a_figure_of_its_own_is_not_used_as_an_argument():
    plain = SCENARIOS["student"][0]
    scenario = msgspec.structs.replace(plain, fields={**plain.fields, "situation": "exam at 8 AM"})
    messages = focal_messages(PACK, scenario, [], "joy")
    texts = [complete("sim-teacher", messages, seed=seed)[0] for seed in range(200)]
    assert {last_figure(text, "student") for text in texts} == {scenario.focal_target}
