"""What the simulated models read out of the messages that they are sent."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_talks import PACK, PHRASES, SCENARIOS, turns_of

from emodistill.domains import DOMAINS
from emodistill.emotions import EMOTIONS
from emodistill.prompts import (
    counterparty_messages,
    focal_messages,
)
from emodistill.simulator.reading import (
    Speech,
    accepts,
    last_figure,
    messages_text,
    read_brief,
    read_history,
    read_sections,
    read_tone,
    show_figure,
)


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
        messages = focal_messages(PACK, SCENARIOS[domain][0], turns, emotion)
        assert read_tone(read_sections(*messages_text(messages))) == emotion


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
