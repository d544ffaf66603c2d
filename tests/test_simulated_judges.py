"""The simulated judge and its blind double."""

from __future__ import annotations

import re

import numpy as np
import pytest
from simulated_talks import PACK, PHRASES, SCENARIOS, STRONGEST, toned, turns_of

from emodistill.domains import DOMAINS
from emodistill.emotions import EMOTIONS
from emodistill.offline.judging import parse_score
from emodistill.prompts import (
    dialogue_judge_messages,
    turn_judge_messages,
)
from emodistill.simulator import response_model as rm
from emodistill.simulator.reading import (
    show_figure,
)
from emodistill.simulator.server import complete


def judged(domain: str, number: int, *texts: str) -> str:
    turns = turns_of(*texts)
    messages = turn_judge_messages(PACK, SCENARIOS[domain][number], turns, len(turns) - 1)
    return complete("sim-judge", messages, seed=number, temperature=0.0)[0]


def at(domain: str, number: int, share: float) -> str:
    """The figure at a share of the scenario's range; 0 is the counterparty's anchor."""
    scenario = SCENARIOS[domain][number]
    return show_figure(scenario.counterparty_anchor + share * scenario.gap, domain)


def mean_score(domain: str, utterance: str, share: float) -> float:
    """Over 50 scenarios, for an utterance after both sides have opened."""
    scores = []
    for number in range(50):
        opening = PHRASES[domain]["open"][0].format(v=at(domain, number, 1.0))
        reply = PHRASES["counterparty"][domain]["open"][0].format(v=at(domain, number, 0.0))
        text = utterance.format(v=at(domain, number, share), theirs=at(domain, number, 0.0))
        score = parse_score(judged(domain, number, opening, reply, text))
        if score is not None:
            scores.append(score)
    assert len(scores) > 40
    return float(np.mean(scores))


@pytest.mark.parametrize("domain", DOMAINS)
def test_giving_in_scores_below_a_small_concession(domain):
    small = mean_score(domain, PHRASES[domain]["concede"][0], 0.9)
    large = mean_score(domain, PHRASES[domain]["concede"][0], 0.3)
    capitulation = mean_score(domain, PHRASES[domain]["accept"][2], 0.0)
    assert capitulation + 0.5 < large < small - 2
    assert capitulation < 2 and small > 5


@pytest.mark.parametrize("domain", DOMAINS)
def test_arguments_and_fitting_tones_score_and_silence_costs(domain):
    hold = PHRASES[domain]["hold"][0]
    weights = rm.PHASE_WEIGHTS[domain]["opening"]
    best, worst = (STRONGEST[rm.FAMILIES[int(pick(weights))]] for pick in (np.argmax, np.argmin))
    plain = mean_score(domain, hold, 1.0)
    assert mean_score(domain, f"Mind the {PHRASES['keywords'][domain][0]}. {hold}", 1.0) > plain + 1
    assert mean_score(domain, toned(best, hold), 1.0) > plain + 0.5
    assert mean_score(domain, toned(worst, hold), 1.0) < plain - 0.2
    assert mean_score(domain, PHRASES[domain]["silent"][0], 1.0) < plain - 1


def test_one_answer_in_sixty_cannot_be_read():
    answers = [
        judged(domain, number, toned(emotion, PHRASES[domain]["open"][0].format(v=figure)))
        for domain in DOMAINS
        for number in range(25)
        for emotion in EMOTIONS[:-1:3]
        for figure in [at(domain, number, 1.0)]
    ] + [judged("crad", n, f"I need {n + v} days.") for n in range(20) for v in range(10)]
    assert len(answers) >= 1_000
    scores = [parse_score(answer) for answer in answers]
    read = [score for score in scores if score is not None]
    assert 0.005 < 1 - len(read) / len(scores) < 0.03
    assert len(set(read)) >= 6 and set(read) <= set(range(1, 11))
    assert all(re.match(r"SCORE: \d+\n\S", a) for a, s in zip(answers, scores, strict=True) if s)


@pytest.mark.parametrize("domain", DOMAINS)
def test_dialogues_score_by_their_ending(domain):
    means = []
    for outcome, share in (("breakdown", None), ("accepted", 0.1), ("accepted", 0.9)):
        scores = []
        for number in range(40):
            texts = [at(domain, number, 1.0), at(domain, number, 0.0)]
            turns = turns_of(f"My figure is {texts[0]}.", f"I still say {texts[1]}.")
            scenario = SCENARIOS[domain][number]
            final = None if share is None else scenario.counterparty_anchor + share * scenario.gap
            messages = dialogue_judge_messages(PACK, scenario, turns, outcome, final)
            scores.append(parse_score(complete("sim-judge", messages, seed=number)[0]))
        means.append(np.mean([score for score in scores if score is not None]))
    assert means[0] + 0.5 < means[1] < means[2] - 2


def test_the_blind_judge_scores_at_random_whatever_is_judged():
    scenario = SCENARIOS["crad"][0]
    scores = {}
    for share in (1.0, 0.0):
        turns = turns_of(f"My figure is {at('crad', 0, share)}.")
        messages = turn_judge_messages(PACK, scenario, turns, 0)
        answers = [complete("sim-blind-judge", messages, seed=seed)[0] for seed in range(500)]
        scores[share] = [parse_score(answer) for answer in answers]
        assert answers[3] == complete("sim-blind-judge", messages, seed=3)[0]
        assert {score for score in scores[share] if score} == set(range(1, 11))
    assert abs(np.mean(scores[1.0]) - np.mean(scores[0.0])) < 0.6  # three standard errors


def test_a_judge_without_a_case_gives_no_score():
    answer, _ = complete("sim-judge", [{"role": "user", "content": "Is 7 good?"}], seed=1)
    assert parse_score(answer) is None
