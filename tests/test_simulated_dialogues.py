"""Whole simulated dialogues, and what an answer of the simulator depends on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from simulated_talks import PACK, PHRASES, SCENARIOS, SEEDS, dialogues, turns_of

from emodistill.domains import DOMAINS
from emodistill.offline.rewards import savings
from emodistill.prompts import (
    counterparty_messages,
    focal_messages,
    turn_judge_messages,
)
from emodistill.records import Trajectory
from emodistill.simulator.reading import (
    last_figure,
)
from emodistill.simulator.server import complete


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
