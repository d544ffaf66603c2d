"""The student in the package reads its prompt, in both roles: it is a negotiator, if a mediocre
one."""

import asyncio
from collections import Counter

import numpy as np
import pytest

from emodistill.domains import DOMAINS
from emodistill.model import embedded_path
from emodistill.simulator.response_model import expressed
from pretraining import reading_check
from pretraining.reading_check import CHECKS, count_findings, play_unseen, reading_table

SCENARIOS_PER_DOMAIN = 3
LEAST = {
    "opening": 0.9,
    "between": 0.8,
    "theirs": 0.85,
    "own": 0.8,
    "fact": 0.8,
    "possible": 0.85,
    "ended": 0.99,
}
"""Below what `pretrain_embedded.py` found for it over more scenarios (docs/notes.md), since few
dialogues scatter."""


@pytest.fixture(scope="module")
def played():
    return asyncio.run(play_unseen(embedded_path(), 0.4, SCENARIOS_PER_DOMAIN))


@pytest.mark.parametrize("role", ["focal", "counterparty"])
def test_it_reads_its_prompt(played, role):
    held, asked = Counter(), Counter()
    for (of, _), counts in count_findings(played).items():
        if of == role:
            for check, (is_held, is_asked) in counts.items():
                held[check] += is_held
                asked[check] += is_asked
    shares = {check: held[check] / asked[check] for check in CHECKS}
    assert all(shares[check] >= LEAST[check] for check in CHECKS), shares


def test_it_shows_the_asked_emotion_seldom(played):
    """Which leaves it to be taught."""
    turns = [t for role, d in played if role == "focal" for t in d.trajectory.focal_turns]
    shown = [expressed(turn.text).emotion == turn.emotion for turn in turns]
    assert 0.05 <= np.mean(shown) <= 0.4


def test_the_table_of_its_reading(played, monkeypatch):
    async def recorded(*args):
        return played

    monkeypatch.setattr(reading_check, "play_unseen", recorded)
    lines = reading_table(embedded_path(), (0.4,), SCENARIOS_PER_DOMAIN).splitlines()
    rows = [line for line in lines if line.startswith(("focal", "counterparty"))]
    assert len(rows) == 2 * len(DOMAINS)
    for row in rows:
        assert row.count(" of ") == len(CHECKS) - row.count(" -")
