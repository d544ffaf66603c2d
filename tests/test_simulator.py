"""The simulated models: what they read, what moves them, how they are served, when they end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import aiohttp
import numpy as np
import pytest
from aiohttp.test_utils import TestServer

from emodistill.domains import DOMAINS, Scenario, load_scenarios
from emodistill.emotions import EMOTIONS, NEUTRAL
from emodistill.errors import ApiError, InputError
from emodistill.negotiation.episode import Match, PlannedDialogue, Player, play
from emodistill.negotiation.mediator import mediate
from emodistill.offline.judging import parse_score
from emodistill.offline.rewards import savings
from emodistill.prompts import (
    counterparty_messages,
    dialogue_judge_messages,
    focal_messages,
    load_pack,
    turn_judge_messages,
)
from emodistill.records import Trajectory, Turn
from emodistill.seeding import stream
from emodistill.selectors.oracle import OracleSelector
from emodistill.simulator import response_model as rm
from emodistill.simulator.counterparty import react
from emodistill.simulator.process import running_simulator
from emodistill.simulator.reading import (
    Speech,
    accepts,
    last_figure,
    read_brief,
    read_history,
    read_tone,
    show_figure,
)
from emodistill.simulator.server import MAX_BODY_BYTES, MODELS, complete, make_app, run_server
from emodistill.simulator.speaker import SimulatedSpeaker
from emodistill.simulator.teacher import CLARITY_ODDS

PACK = load_pack()
PHRASES = rm.phrases()
SEEDS = range(100)
STRONGEST = {
    "pressure": "anger",
    "warmth": "caring",
    "appeal": "fear",
    "drive": "optimism",
    "insight": "realization",
}
SCENARIOS = {domain: load_scenarios(domain) for domain in DOMAINS}


def turns_of(*texts: str) -> list[Turn]:
    return [
        Turn(
            index=index,
            speaker="focal" if index % 2 == 0 else "counterparty",
            emotion=None,
            text=text,
            offer=None,
            prompt_tokens=0,
            completion_tokens=0,
            latency_s=0.0,
        )
        for index, text in enumerate(texts)
    ]


def toned(emotion: str, text: str, *, num_markers: int = 2) -> str:
    """The text after a clear (two markers) or a faint expression of the emotion."""
    affect = rm.affects()[emotion]
    clauses = [affect.first[0], affect.second[0]] if num_markers == 2 else [affect.first[0]]
    return " ".join([*clauses, text])


# Whole dialogues


@cache
def dialogue(domain: str, number: int, kind: str) -> Trajectory:
    """Scenario `number` under random or oracle emotions, against the same counterparty."""
    scenario, name = SCENARIOS[domain][number], f"{domain}/{number}"
    rng = stream(0, "test-emotions", name)
    oracle = OracleSelector(PACK, scenario, 0, name, counterparty="sim-counterparty")

    def choose(state) -> str:
        return (
            oracle.choose(state, rng) if kind == "oracle" else EMOTIONS[rng.integers(len(EMOTIONS))]
        )

    teacher = SimulatedSpeaker("sim-teacher")
    match = Match(
        focal=Player(writer=teacher, choose_for=lambda dialogue: choose, method=kind),
        counterparty=Player(writer=SimulatedSpeaker("sim-counterparty")),
        pack=PACK,
    )
    return asyncio.run(play(PlannedDialogue(scenario, number, name), match))


def dialogues(domain: str, kind: str = "random", num: int = 30) -> list[Trajectory]:
    return [dialogue(domain, number, kind) for number in range(num)]


def utility(played: Trajectory) -> float:
    if played.final_value is None:
        return 0.0
    return savings(played.final_value, played.counterparty_anchor, played.focal_target)


def test_the_oracle_beats_random_emotions():
    gains = {}
    for domain in DOMAINS:
        pairs = zip(dialogues(domain, "oracle"), dialogues(domain, "random"), strict=True)
        gains[domain] = np.mean([utility(best) - utility(other) for best, other in pairs])
    assert sum(gain > 0.05 for gain in gains.values()) >= 3, gains
    assert np.mean(list(gains.values())) > 0.08, gains


@pytest.mark.parametrize("domain", DOMAINS)
def test_dialogues_last_a_while_and_mostly_end_in_a_deal(domain):
    played = dialogues(domain)
    assert np.mean([one.outcome == "accepted" for one in played]) > 0.6
    assert 5 < np.mean([len(one.turns) for one in played]) < 14
    assert 0.2 < np.mean([utility(one) for one in played]) < 0.6


def test_some_dialogues_break_down():
    outcomes = Counter(one.outcome for domain in DOMAINS for one in dialogues(domain))
    assert outcomes["breakdown"] > 0


def test_two_readers_of_offers_agree():
    """The simulator's own against the measuring instrument."""
    disagreements, num_turns = [], 0
    for domain in DOMAINS:
        for turn in (turn for one in dialogues(domain) for turn in one.turns):
            num_turns += 1
            if last_figure(turn.text, domain) != turn.offer:
                disagreements.append((domain, turn.text, turn.offer))
    assert num_turns > 1_000
    assert len(disagreements) <= 0.01 * num_turns, disagreements[:5]


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_counterparty_moves_one_way_between_the_first_figures(domain):
    for one in dialogues(domain):
        low, high = sorted((one.focal_target, one.counterparty_anchor))
        offers = [t.offer for t in one.turns if t.speaker == "counterparty" and t.offer is not None]
        assert offers[0] == one.counterparty_anchor or one.outcome == "accepted"
        assert all(low <= offer <= high for offer in offers)
        signs = np.sign(np.diff(offers)) * np.sign(one.focal_target - one.counterparty_anchor)
        assert (signs >= 0).all()


def test_the_same_request_gets_the_same_answer():
    for kind in ("focal", "counterparty"):
        for domain in DOMAINS:
            turns = turns_of(PHRASES[domain]["open"][0].format(v="a figure"), "No.")
            messages = (
                focal_messages(PACK, SCENARIOS[domain][0], turns, "joy")
                if kind == "focal"
                else counterparty_messages(PACK, SCENARIOS[domain][0], turns[:1])
            )
            model = {"focal": "sim-teacher", "counterparty": "sim-counterparty"}[kind]
            answers = [complete(model, messages, seed=seed) for seed in (0, 1, 2, 3, 4) * 2]
            assert answers[:5] == answers[5:] and len(set(answers)) > 1


def test_at_temperature_zero_only_character_and_judging_noise_depend_on_the_seed():
    scenario = SCENARIOS["crad"][0]
    turns = turns_of(
        "I need full payment within 20 days.", "I need 90 days.", "I can go to 40 days."
    )
    requests = {
        "sim-teacher": focal_messages(PACK, scenario, turns[:2], "anger"),
        "sim-counterparty": counterparty_messages(PACK, scenario, turns),
        "sim-judge": turn_judge_messages(PACK, scenario, turns, 2),
    }
    num_answers = {
        model: len({complete(model, messages, seed=seed, temperature=0.0)[0] for seed in SEEDS})
        for model, messages in requests.items()
    }
    assert num_answers["sim-teacher"] == 1
    assert num_answers["sim-counterparty"] > 1 and num_answers["sim-judge"] > 1


# Reading


@pytest.mark.parametrize("domain", DOMAINS)
def test_briefs_are_read_from_the_built_in_pack(domain):
    for scenario in SCENARIOS[domain][:20]:
        focal = read_brief(focal_messages(PACK, scenario, [], None)[0]["content"])
        other = read_brief(counterparty_messages(PACK, scenario, [])[0]["content"])
        assert (focal.domain, other.domain) == (domain, domain)
        assert focal.own_figure == scenario.focal_target
        assert other.own_figure == scenario.counterparty_anchor
        assert focal.role == PACK.focal[domain]["focal"].lower()
        assert other.role == PACK.focal[domain]["counterparty"].lower()
        assert focal.facts


@pytest.mark.parametrize("domain", DOMAINS)
def test_tones_are_read_from_the_emotion_block(domain):
    turns = turns_of("I feel sad about the tone.", "Mind your tone, you sound angry.")
    for emotion in (*EMOTIONS, None):
        user = focal_messages(PACK, SCENARIOS[domain][0], turns, emotion)[1]["content"]
        assert read_tone(user) == emotion


def test_a_history_is_read_line_by_line():
    turns = turns_of("First: 20 days.", "Second, no.", "Third.")
    user = counterparty_messages(PACK, SCENARIOS["crad"][0], turns)[1]["content"]
    assert read_history(user, "debtor") == [
        Speech(False, "First: 20 days."),
        Speech(True, "Second, no."),
        Speech(False, "Third."),
    ]


@pytest.mark.parametrize("domain", DOMAINS)
def test_figures_survive_being_written(domain):
    values = np.arange(-2, 9, 0.25) if domain == "student" else np.arange(1.0, 400.0)
    for value in values:
        shown = show_figure(value, domain)
        for template in (*PHRASES[domain]["concede"], *PHRASES[domain]["accept"]):
            assert last_figure(template.format(v=shown), domain) == value


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("Your 90 days will not do. I can go to 40 days.", 40.0),
        ("I can go to 40 days. Your 90 days will not do.", 40.0),
        ("I can't wait 90 days.", None),
        ("The account is 79 days overdue.", None),
        ("The debt of $5000 stands.", None),
        ("I accept your 55 days.", 55.0),
        ("In 20 minutes I leave.", None),
        (f"In {'9' * 400} days.", None),
    ],
)
def test_figures_of_others_are_not_taken_for_ones_own(text, figure):
    assert last_figure(text, "crad") == figure


@pytest.mark.parametrize(
    ("text", "is_yes"),
    [
        ("Agreed, 40 days it is.", True),
        ("I hear you. You have a deal at 40 days.", True),
        ("I could accept 40 days.", False),
        ("No deal.", False),
        ("Agreed, if you pay half today.", False),
        ("I stay at 40 days.", False),
    ],
)
def test_a_yes_is_told_from_a_maybe(text, is_yes):
    assert accepts(text) == is_yes


# What moves the counterparty


class Game(NamedTuple):
    """A scenario with a wide range, so that rounding hides nothing."""

    scenario: Scenario
    system: str
    figure: dict[float, str]  # share of the range that is demanded -> as speakers write it


WIDE = {
    "crad": (10.0, 510.0),
    "disaster": (510.0, 10.0),
    "hospital": (510.0, 10.0),
    "student": (-2.0, 8.0),
}


@cache
def game(domain: str, number: int = 0) -> Game:
    target, anchor = WIDE[domain]
    scenario = dataclasses.replace(
        SCENARIOS[domain][number], focal_target=target, counterparty_anchor=anchor
    )
    system = counterparty_messages(PACK, scenario, [])[0]["content"]
    figure = {
        share: show_figure(anchor + share * (target - anchor), domain)
        for share in (0.3, 0.8, 0.9, 1.0)
    }
    return Game(scenario, system, figure)


def lines(domain: str, *moves: tuple[str, float]) -> list[str]:
    """Focal utterances: `("hold 0", 1.0)` is the first phrase for holding, at the full demand."""
    texts = []
    for move, share in moves:
        name, _, index = move.partition(" ")
        phrase = PHRASES[domain][name][int(index or 0)]
        texts.append(phrase.format(v=game(domain).figure[share]))
    return texts


def rate(
    domain: str, texts: list[str], seed: int, *, number: int = 0, kind: rm.HiddenType | None = None
) -> float:
    """Share of what is left to concede that the last utterance moves the counterparty by."""
    scenario, system, _ = game(domain, number)
    kind = kind or rm.hidden_type(system, seed)
    after, before = (
        react(
            system,
            domain,
            scenario.counterparty_anchor,
            [Speech(False, text) for text in heard],
            kind,
            seed,
        ).position
        for heard in (texts, texts[:-1])
    )
    return (after - before) / (kind.limit - before)


def mean_rate(domain: str, texts: list[str], **changes) -> float:
    return float(np.mean([rate(domain, texts, seed, **changes) for seed in SEEDS]))


HISTORY = {  # what was said before, and the share demanded in the utterance under test
    "opening": ((("open", 1.0),), 1.0),
    "middle": ((("open", 1.0), ("hold", 1.0)), 1.0),
    "closing": ((("open", 1.0), ("hold", 1.0)), 0.3),
}


def in_phase(domain: str, phase: str, emotion: str | None) -> list[str]:
    moves, share = HISTORY[phase]
    *before, last = lines(domain, *moves, ("hold 1", share))
    return [*before, last if emotion is None else toned(emotion, last)]


@cache
def gains(domain: str) -> dict[str, dict[str, float]]:
    """Phase -> family -> log of the mean rate over that of the same words without emotion."""
    table: dict[str, dict[str, float]] = {}
    for phase in rm.PHASES:
        heard = {name: in_phase(domain, phase, one) for name, one in STRONGEST.items()}
        heard["none"] = in_phase(domain, phase, None)
        means = {
            name: np.mean([rate(domain, texts, seed, number=seed % 40) for seed in SEEDS])
            for name, texts in heard.items()
        }
        table[phase] = {name: float(np.log(means[name] / means["none"])) for name in STRONGEST}
    return table


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_planted_best_and_worst_emotions_show(domain):
    for phase, measured in gains(domain).items():
        planted = dict(zip(rm.FAMILIES, rm.PHASE_WEIGHTS[domain][phase], strict=True))
        best = max(planted, key=planted.get)
        assert max(measured, key=measured.get) == best, (phase, measured)
        assert measured[best] > 0.5
        worst = min(planted, key=planted.get)
        assert measured[worst] < 0 < measured[best]


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_fixed_emotion_is_best(domain):
    table = gains(domain)
    assert len({max(measured, key=measured.get) for measured in table.values()}) == 3
    adaptive = np.mean([max(measured.values()) for measured in table.values()])
    fixed = max(np.mean([table[phase][name] for phase in table]) for name in STRONGEST)
    assert fixed < 0.85 * adaptive


def test_the_best_emotion_differs_between_domains():
    for phase in rm.PHASES:
        best = {max(gains(domain)[phase], key=gains(domain)[phase].get) for domain in DOMAINS}
        assert len(best) >= 3


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_planted_weights_have_one_best_and_one_second(domain):
    for weights in rm.PHASE_WEIGHTS[domain].values():
        assert sorted(weights)[-2:] == [0.35, 0.7]
        assert sorted(weights)[-3] <= 0.1


def test_an_emotion_counts_as_far_as_it_is_heard():
    before, plain = in_phase("disaster", "middle", None)[:-1], in_phase("disaster", "middle", None)
    faint = [*before, toned("optimism", plain[-1], num_markers=1)]
    clear = [*before, toned("optimism", plain[-1])]
    muddled = [*before, toned("fear", toned("optimism", plain[-1], num_markers=1), num_markers=1)]
    rates = [mean_rate("disaster", texts) for texts in (plain, faint, clear)]
    assert rates[0] < 0.75 * rates[1] < 0.75 * rates[2]
    assert mean_rate("disaster", muddled) < 0.75 * rates[1]


def test_what_pleases_wears_off():
    opening, hold, last = lines("crad", ("open", 1.0), ("hold", 1.0), ("hold 1", 1.0))
    means = [
        mean_rate(
            "crad",
            [opening, said, toned("realization", last)],
            kind=rm.HiddenType("anxious", 0.9, 2.0),
        )
        for said in (hold, toned("realization", hold), toned("curiosity", hold))
    ]
    fresh, again, other = means
    assert again < 0.75 * fresh
    assert other == pytest.approx(fresh)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_new_argument_moves_and_an_old_one_does_not(domain):
    keyword = PHRASES["keywords"][domain][0]
    opening, hold, last = lines(domain, ("open", 1.0), ("hold", 1.0), ("hold 1", 1.0))
    assert keyword not in f"{opening} {hold} {last}".lower()
    none = mean_rate(domain, [opening, hold, last])
    vague = mean_rate(domain, [opening, hold, f"{PHRASES[domain]['vague'][0]} {last}"])
    new = mean_rate(domain, [opening, hold, f"Think of the {keyword}. {last}"])
    old = mean_rate(
        domain, [opening, f"Mind the {keyword}. {hold}", f"Think of the {keyword}. {last}"]
    )
    assert new == pytest.approx(none * np.exp(rm.LEVERAGE_GAIN))
    assert vague == pytest.approx(none) and old == pytest.approx(none)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_leverage_phrase_is_heard_as_an_argument(domain):
    for phrase in PHRASES[domain]["leverage"]:
        plain = re.sub(r"\{\w+\}", "", phrase).lower()
        assert any(word in plain for word in PHRASES["keywords"][domain])


@pytest.mark.parametrize("domain", DOMAINS)
def test_own_movement_is_answered(domain):
    still, some, more = (
        mean_rate(domain, lines(domain, ("open", 1.0), ("hold 1", share)))
        for share in (1.0, 0.9, 0.8)
    )
    assert some > 1.2 * still
    assert more == pytest.approx(some)  # saturates at a tenth of the range


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_repeated_text_moves_nothing(domain):
    opening, hold, other = lines(domain, ("open", 1.0), ("hold", 1.0), ("hold 1", 1.0))
    for seed in SEEDS:
        assert rate(domain, [opening, hold, hold], seed) == 0.0
        assert rate(domain, [opening, hold, other], seed) > 0.0


def test_the_hidden_type_matters():
    kinds = {name: rm.HiddenType(name, 0.8, 2.0) for name in rm.TYPES}
    anger = in_phase("crad", "opening", "anger")
    plain = in_phase("crad", "opening", None)
    ratio = {
        name: mean_rate("crad", anger, kind=kind) / mean_rate("crad", plain, kind=kind)
        for name, kind in kinds.items()
    }
    assert ratio["proud"] < ratio["practical"] < ratio["anxious"]


def test_the_hidden_type_is_constant_in_a_dialogue_and_varies_over_seeds():
    scenario = SCENARIOS["crad"][0]
    turns = turns_of("I need 20 days.", "I need 90 days.", "I stay at 20 days.")
    early, late = (counterparty_messages(PACK, scenario, turns[:n])[0]["content"] for n in (1, 3))
    assert [rm.hidden_type(early, seed) for seed in SEEDS] == [
        rm.hidden_type(late, seed) for seed in SEEDS
    ]
    kinds = [rm.hidden_type(early, seed) for seed in SEEDS]
    assert {kind.name for kind in kinds} == set(rm.TYPES)
    assert len({kind.limit for kind in kinds}) == len(kinds)
    for kind in kinds:
        traits = rm.TYPE_TRAITS[kind.name]
        assert traits.limit[0] <= kind.limit <= traits.limit[1]
        assert traits.patience[0] <= kind.patience <= traits.patience[1]
    shares = [
        np.mean([rm.hidden_type(game("crad", number).system, s).name == "proud" for s in SEEDS])
        for number in range(12)
    ]
    assert max(shares) - min(shares) > 0.2  # the scenario's text tilts the odds


def replies(domain: str, focal_texts: list[str], seed: int) -> list[str]:
    """The counterparty's answers to a list of utterances, over its messages."""
    said: list[str] = []
    for text in focal_texts:
        said.append(text)
        messages = counterparty_messages(PACK, game(domain).scenario, turns_of(*said))
        said.append(complete("sim-counterparty", messages, seed=seed)[0])
    return said[1::2]


def num_turns_until_it_leaves(domain: str, texts: list[str], seed: int) -> int:
    said: list[str] = []
    for count, text in enumerate(texts, start=1):
        said.append(text)
        messages = counterparty_messages(PACK, game(domain).scenario, turns_of(*said))
        said.append(complete("sim-counterparty", messages, seed=seed)[0])
        if said[-1] in PHRASES["counterparty"]["walk"]:
            scenario = game(domain).scenario
            verdict = mediate(
                turns_of(*said),
                domain=domain,
                focal_target=scenario.focal_target,
                counterparty_anchor=scenario.counterparty_anchor,
            )
            assert verdict.outcome == "breakdown"
            return count
    return len(texts) + 1


def test_harsh_tones_and_standing_still_end_the_talks():
    figure = game("disaster").figure[1.0]
    still = [f"Number {'x' * n}: it stays at {figure}." for n in range(1, 15)]
    harsh = [toned("anger", text) for text in still]
    giving = [f"Number {'x' * n}: the team needs {510 - 8 * n} minutes." for n in range(1, 15)]
    lasts = [
        np.mean([num_turns_until_it_leaves("disaster", texts, seed) for seed in range(25)])
        for texts in (harsh, [still[0]] * 14, still, giving)
    ]
    assert lasts == sorted(lasts) and len(set(lasts)) == 4


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_first_reply_states_the_preference(domain):
    for seed in range(20):
        (reply,) = replies(domain, lines(domain, ("open", 1.0)), seed)
        assert last_figure(reply, domain) == WIDE[domain][1]


@pytest.mark.parametrize("domain", DOMAINS)
def test_it_says_yes_to_its_own_figure(domain):
    opening = lines(domain, ("open", 1.0))
    for seed in range(20):
        (first,) = replies(domain, opening, seed)
        figure = show_figure(last_figure(first, domain), domain)
        reply = replies(domain, [*opening, f"Agreed, {figure} it is."], seed)[-1]
        assert accepts(reply) and show_figure(last_figure(reply, domain), domain) == figure


# The teacher


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


@pytest.mark.parametrize("emotion", [label for label in EMOTIONS if label != NEUTRAL])
def test_the_teacher_expresses_what_it_is_asked_for(emotion):
    heard = [rm.expressed(spoken("disaster", emotion, seed)) for seed in range(60)]
    clear = [one for one in heard if one.clarity > 0]
    share = np.mean([one.emotion == emotion for one in clear])
    # Facts have words of feeling in them; "thank you for your patience" also sounds of annoyance.
    assert share >= (0.8 if emotion == "gratitude" else 0.92)
    odds = np.array([np.mean([one.clarity == c for one in heard]) for c in (1.0, 0.6, 0.0)])
    assert np.abs(odds - CLARITY_ODDS).max() < 0.25


def test_a_quarter_of_the_utterances_says_nothing_of_the_emotion():
    heard = [rm.expressed(spoken("hospital", "joy", seed)).clarity for seed in range(400)]
    odds = [np.mean([clarity == c for clarity in heard]) for c in (1.0, 0.6, 0.0)]
    assert np.abs(np.array(odds) - CLARITY_ODDS).max() < 0.08


@pytest.mark.parametrize("emotion", [NEUTRAL, None])
def test_without_an_emotion_the_teacher_sounds_of_none(emotion):
    heard = [rm.expressed(spoken("disaster", emotion, seed)) for seed in range(60)]
    assert np.mean([one.emotion is None for one in heard]) > 0.9


@pytest.mark.parametrize("emotion", [label for label in EMOTIONS if label != NEUTRAL])
def test_clauses_carry_their_own_markers(emotion):
    affect = rm.affects()[emotion]
    for first in affect.first:
        for second in affect.second:
            expression = rm.expressed(f"{first} {second}")
            assert expression == (emotion, 1.0), (first, second, expression)


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
    scenario = dataclasses.replace(plain, fields={**plain.fields, "situation": "exam at 8 AM"})
    messages = focal_messages(PACK, scenario, [], "joy")
    texts = [complete("sim-teacher", messages, seed=seed)[0] for seed in range(200)]
    assert {last_figure(text, "student") for text in texts} == {scenario.focal_target}


# The judge


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


# Over HTTP


def request_body(model: str = "sim-teacher", **changes) -> dict:
    messages = focal_messages(PACK, SCENARIOS["crad"][0], [], "joy")
    return {"model": model, "messages": messages, "seed": 7, "temperature": 0.7, **changes}


async def post(url, body, session):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    async with session.post(f"{url}/chat/completions", data=data, headers=headers) as response:
        return response.status, await response.json()


def over_http(*bodies):
    """(status, JSON) of each body, all sent at once to a real server."""

    async def main():
        async with TestServer(make_app()) as server, aiohttp.ClientSession() as session:
            url = str(server.make_url("/v1"))
            return await asyncio.gather(*(post(url, body, session) for body in bodies))

    return asyncio.run(main())


def test_answers_have_the_openai_format():
    body = request_body()
    ((status, answer),) = over_http(body)
    text, reason = complete("sim-teacher", body["messages"], seed=7, temperature=0.7)
    assert status == 200 and reason == "stop"
    assert answer["object"] == "chat.completion" and answer["model"] == "sim-teacher"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
    ]
    usage = answer["usage"]
    assert usage["completion_tokens"] == -(-len(text) // 4)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert abs(answer["created"] - time.time()) < 60 and isinstance(answer["id"], str)


def test_many_requests_at_once_get_their_own_answers():
    bodies = [request_body(seed=seed) for seed in range(40)]
    answers = [answer["choices"][0]["message"]["content"] for _, answer in over_http(*bodies)]
    expected = [
        complete("sim-teacher", body["messages"], seed=body["seed"], temperature=0.7)[0]
        for body in bodies
    ]
    assert answers == expected and len(set(answers)) > 20


def test_absent_and_null_sampling_fields_have_defaults():
    messages = request_body()["messages"]
    nulls = dict.fromkeys(("seed", "temperature", "max_tokens", "stream"))
    (_, absent), (_, null) = over_http(
        {"model": "sim-teacher", "messages": messages},
        {"model": "sim-teacher", "messages": messages, **nulls},
    )
    assert absent["choices"] == null["choices"]


def test_max_tokens_cuts_the_answer():
    ((status, answer),) = over_http(request_body(max_tokens=3))
    choice = answer["choices"][0]
    assert status == 200 and choice["finish_reason"] == "length"
    assert len(choice["message"]["content"].split()) == 3


USER = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        (b"", 400, "not JSON"),
        (b"\xff\xfe\x00", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", 400, "not JSON"),
        ([], 400, "a JSON object"),
        ({}, 404, "model None is not served here; there is sim-teacher"),
        ({"model": "gpt-4", "messages": USER}, 404, "model 'gpt-4' is not served"),
        ({"model": ["sim-judge"], "messages": USER}, 404, "is not served"),
        ({"model": "sim-judge"}, 400, "messages must be a list"),
        ({"model": "sim-judge", "messages": []}, 400, "at least one message"),
        ({"model": "sim-judge", "messages": "hello"}, 400, "messages must be a list"),
        ({"model": "sim-judge", "messages": ["hello"]}, 400, "a role and a content"),
        ({"model": "sim-judge", "messages": [{"content": "a"}]}, 400, "a role and a content"),
        (request_body(messages=[{"role": "user", "content": ["a"]}]), 400, "a role and a content"),
        (request_body(messages=[{"role": "user", "content": "\ud800"}]), 400, "surrogate"),
        (request_body(seed="7"), 400, "seed and max_tokens must be integers"),
        (request_body(seed=1.5), 400, "seed and max_tokens must be integers"),
        (request_body(max_tokens=0), 400, "max_tokens at least 1"),
        (request_body(temperature=3), 400, "temperature must be a number"),
        (request_body(temperature="hot"), 400, "temperature must be a number"),
        (request_body(temperature=float("nan")), 400, "temperature must be a number"),
        (request_body(stream=True), 400, "not streamed"),
        (b'{"model": "' + b"x" * MAX_BODY_BYTES + b'"}', 413, "exceeded"),
    ],
)
def test_bad_requests_are_refused_in_json(body, status, message):
    (answer,) = over_http(body)
    assert answer[0] == status
    assert message in answer[1]["error"]["message"] and answer[1]["error"]["type"]


def test_odd_messages_get_an_answer():
    """Whatever text comes, a model says something; it does not fall over."""
    odd = ["", "debt", "Your target: 9 days", f"bedtime\nYour target: {'9' * 400} days", "😀 {v} %"]
    odd += ["You are the creditor, debt.\nYour target: 0 days", "rescue\nYour preference: soon"]
    bodies = [
        {
            "model": model,
            "messages": [{"role": "system", "content": a}, {"role": role, "content": b}],
        }
        for model in MODELS
        for a in odd
        for b in (*odd, "Creditor: 5 days\nDebtor: Agreed, 5 days it is.")
        for role in ("user", "assistant")
    ]
    assert {status for status, _ in over_http(*bodies)} == {200}


def test_models_are_listed_and_unknown_paths_refused_in_json():
    async def main():
        async with TestServer(make_app()) as server, aiohttp.ClientSession() as session:
            async with session.get(server.make_url("/v1/models")) as response:
                listed = await response.json()
            async with session.get(server.make_url("/v2")) as response:
                unknown = response.status, await response.json()
            async with session.get(server.make_url("/v1/chat/completions")) as response:
                return listed, unknown, (response.status, await response.json())

    listed, unknown, wrong_method = asyncio.run(main())
    assert [model["id"] for model in listed["data"]] == list(MODELS)
    assert unknown[0] == 404 and unknown[1]["error"]["message"]
    assert wrong_method[0] == 405 and wrong_method[1]["error"]["message"]


def test_a_port_in_use_is_a_clear_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {port}: .*0 finds a free one"):
            run_server("127.0.0.1", port)


# The process


def test_a_running_simulator_answers_as_in_this_process_and_ends_with_the_block():
    scenario = SCENARIOS["student"][3]
    turns = turns_of(
        "Lights out at 9:30 PM.", "I want to stay up until 1:00 AM.", "I say 10:00 PM."
    )
    requests = {
        "sim-teacher": focal_messages(PACK, scenario, turns[:2], "fear"),
        "sim-counterparty": counterparty_messages(PACK, scenario, turns),
        "sim-judge": turn_judge_messages(PACK, scenario, turns, 2),
    }

    async def ask(url):
        async with aiohttp.ClientSession() as session:
            return [
                await post(url, {"model": model, "messages": messages, "seed": 5}, session)
                for model, messages in requests.items()
            ]

    with running_simulator() as url:
        assert url.startswith("http://127.0.0.1:") and url.endswith("/v1")
        answers = asyncio.run(ask(url))
    for (model, messages), (status, answer) in zip(requests.items(), answers, strict=True):
        assert status == 200
        text = answer["choices"][0]["message"]["content"]
        assert text == complete(model, messages, seed=5)[0]
    assert not is_open(port_of(url))


def test_a_simulator_that_does_not_start_says_so(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with (
        pytest.raises(ApiError, match=r"did not start; try `python -m emodistill\.simulator`"),
        running_simulator(),
    ):
        raise AssertionError("never entered")


def port_of(url: str) -> int:
    return int(url.split(":")[2].split("/")[0])


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


OWNER = """
import signal
from emodistill.simulator.process import running_simulator
with running_simulator() as url:
    # Held back until asked for, so that none is missed; the simulator runs by now, unmasked.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    print(url, flush=True)
    while True:
        signal.sigwait({signal.SIGINT})
        print("interrupted", flush=True)
"""


@contextlib.contextmanager
def simulator_of_another_process() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process in a group of its own that runs a simulator; and the simulator's port."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert owner.stdout is not None
        yield owner, port_of(owner.stdout.readline())
    finally:
        owner.kill()
        owner.communicate(timeout=10)


def test_ctrl_c_leaves_the_simulator_to_its_owner_and_sigkill_ends_both():
    with simulator_of_another_process() as (owner, port):
        os.killpg(owner.pid, signal.SIGINT)  # as a terminal does
        assert owner.stdout.readline() == "interrupted\n"
        time.sleep(0.3)
        assert is_open(port)

        idle = socket.create_connection(("127.0.0.1", port))  # must not keep it alive
        owner.kill()
        # The simulator holds the owner's stderr too: its end is the end of that pipe.
        _, complaints = owner.communicate(timeout=60)
        assert not is_open(port)
        assert complaints == ""
        idle.close()
