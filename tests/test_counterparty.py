"""What moves the simulated counterparty, as planted, and what ends the talks."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple, get_args

import msgspec
import numpy as np
import pytest
from simulated_talks import PACK, PHRASES, SCENARIOS, SEEDS, STRONGEST, toned, turns_of

from emodistill.domains import DOMAINS, Scenario
from emodistill.negotiation.mediator import mediate
from emodistill.prompts import (
    counterparty_messages,
)
from emodistill.simulator import response_model as rm
from emodistill.simulator.counterparty import react
from emodistill.simulator.forked_seeds import ForkedSeed
from emodistill.simulator.reading import (
    Speech,
    accepts,
    last_figure,
    show_figure,
)
from emodistill.simulator.server import complete


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
    scenario = msgspec.structs.replace(
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
            ForkedSeed(seed),
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
    for phase in get_args(rm.Phase):
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
    for phase in get_args(rm.Phase):
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
            assert mediate(turns_of(*said), game(domain).scenario).outcome == "breakdown"
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
