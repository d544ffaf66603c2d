"""The simulated judge and its blind double."""

from __future__ import annotations

import re

import numpy as np
import pytest
from simulated_talks import PACK, PHRASES, SCENARIOS, STRONGEST, dialogue, toned, turns_of

from emodistill.configs import JUDGE_VALIDITIES
from emodistill.domains import DOMAINS
from emodistill.emotions import EMOTIONS
from emodistill.offline.judging import parse_score
from emodistill.prompts import (
    dialogue_judge_messages,
    turn_judge_messages,
)
from emodistill.seeding import stream
from emodistill.simulator import response_model as rm
from emodistill.simulator.judge import JudgedTurn, read_case, read_turn, rubric, share_of
from emodistill.simulator.reading import Speech, messages_text, show_figure
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
    argued = f"Mind the {PHRASES['keywords'][domain][0]}. {hold}"
    assert mean_score(domain, argued, 1.0) > plain + 0.1
    assert mean_score(domain, toned(best, hold), 1.0) > plain + 1
    assert mean_score(domain, toned(worst, hold), 1.0) < plain - 1
    assert mean_score(domain, PHRASES[domain]["silent"][0], 1.0) < plain - 0.3


def reading(domain: str, *shares: float, text: str) -> float:
    """Noiseless, of an utterance after talks in which the own side went through these shares."""
    history = []
    for number, share in enumerate(shares):
        own = PHRASES[domain]["hold"][number % len(PHRASES[domain]["hold"])]
        history.append(Speech(True, own.format(v=at(domain, 0, share))))
        reply = PHRASES["counterparty"][domain]["hold"][0]
        history.append(Speech(False, reply.format(v=at(domain, 0, 0.02 * number))))
    return read_turn(JudgedTurn(domain, SCENARIOS[domain][0].focal_target, history, text))


@pytest.mark.parametrize("domain", DOMAINS)
def test_standing_still_costs_more_the_longer_the_talks_go_on(domain):
    """And a concession that was a gift at first is what the talks need in the end."""
    hold = f"I say it again: {at(domain, 0, 1.0)}."
    give = PHRASES[domain]["concede"][0].format(v=at(domain, 0, 0.7))
    early, late = ([1.0] * 1, [1.0] * 6)
    held = [reading(domain, *shares, text=hold) for shares in (early, late)]
    given = [reading(domain, *shares, text=give) for shares in (early, late)]
    assert held[1] < held[0] - 0.5
    assert given[1] - held[1] > given[0] - held[0] + 0.5


def test_words_that_were_said_before_cost():
    said = PHRASES["crad"]["hold"][0].format(v=at("crad", 0, 1.0))
    other = f"Well now. {said}"
    assert reading("crad", 1.0, 1.0, text=said) < reading("crad", 1.0, 1.0, text=other) - 0.5


def test_the_other_sides_moods_tell_which_tones_it_likes():
    """Two opponents that have answered one tone differently are not spoken to alike."""
    texts = PHRASES["counterparty"]
    scores = []
    for mood in ("pleased", "cross"):
        history = []
        for share in (1.0, 0.95):
            own = toned("anger", f"My figure is {at('crad', 0, share)}.")
            reply = texts["crad"]["hold"][0].format(v=at("crad", 0, 0.0))
            history += [Speech(True, own), Speech(False, f"{texts[mood][0]} {reply}")]
        text = toned("caring", f"Let us say {at('crad', 0, 0.9)}.")
        scores.append(
            read_turn(JudgedTurn("crad", SCENARIOS["crad"][0].focal_target, history, text))
        )
    assert abs(scores[0] - scores[1]) > 0.1


def test_a_name_says_the_validity():
    """The scores keep the share of the reading that the name's level needs."""
    rng = stream(0, "cases")
    turns = [dialogue("crad", number, "random") for number in range(30)]
    asked, readings = [], []
    for trajectory in turns:
        index = int(rng.choice([turn.index for turn in trajectory.focal_turns]))
        scenario = SCENARIOS["crad"][int(trajectory.trajectory_id.partition("/")[2])]
        asked.append(turn_judge_messages(PACK, scenario, trajectory.turns, index))
        readings.append(read_turn(read_case(*messages_text(asked[-1]))))
    for name in ("sim-judge", "sim-judge-0.2", "sim-judge-0"):
        answers = [
            (parse_score(complete(name, messages, seed=seed)[0]), reading)
            for messages, reading in zip(asked, readings, strict=True)
            for seed in range(10)
        ]
        pairs = [(score, reading) for score, reading in answers if score is not None]
        share = share_of(JUDGE_VALIDITIES[name])
        signal = share * np.std(readings)
        expected = signal / np.hypot(signal, np.sqrt(1 - share**2))
        found = np.corrcoef(*zip(*pairs, strict=True))[0, 1]
        assert found == pytest.approx(expected, abs=0.1), name
    assert share_of(0.0) == 0.0 and share_of(rubric().validities[-1]) == 1.0
    with pytest.raises(ValueError, match="above the rubric's top"):
        share_of(0.9)


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
    assert len(set(read)) >= 5 and set(read) <= set(range(1, 11))
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
        answers = [complete("sim-judge-0", messages, seed=seed)[0] for seed in range(500)]
        scores[share] = [parse_score(answer) for answer in answers]
        assert answers[3] == complete("sim-judge-0", messages, seed=3)[0]
        assert {score for score in scores[share] if score} == set(range(1, 11))
    means = [np.mean([score for score in one if score]) for one in scores.values()]
    assert abs(means[0] - means[1]) < 0.4  # three standard errors


def test_a_judge_without_a_case_gives_no_score():
    answer, _ = complete("sim-judge", [{"role": "user", "content": "Is 7 good?"}], seed=1)
    assert parse_score(answer) is None
