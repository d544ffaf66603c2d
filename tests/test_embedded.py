"""The student in the package reads its prompt in both roles: a negotiator, if not a good one."""

import asyncio

import numpy as np
import pytest

from emodistill.model import embedded_path
from pretraining.reading_check import count_findings, play_unseen

TEMPERATURE = 0.4
SCENARIOS_PER_DOMAIN = 3


@pytest.fixture(scope="module")
def counts():
    """(role, domain) -> check -> held and asked, under random emotions on unseen scenarios."""
    played = asyncio.run(play_unseen(embedded_path(), TEMPERATURE, SCENARIOS_PER_DOMAIN))
    return count_findings(played)


@pytest.mark.parametrize(
    ("check", "least"),
    [
        ("opening", 0.97),
        ("between", 0.85),
        ("theirs", 0.9),
        ("fact", 0.9),
        ("possible", 0.95),
        ("ended", 0.99),
    ],
)
def test_it_reads_its_prompt_in_both_roles(counts, check, least):
    found = {seat: checks[check] for seat, checks in counts.items()}
    assert len(found) == 8
    # A fact is stated in every fifth reply: not in each seat of so few dialogues.
    assert check == "fact" or all(asked > 0 for _, asked in found.values())
    for role in ("focal", "counterparty"):
        held, asked = np.sum([one for seat, one in found.items() if seat[0] == role], axis=0)
        assert asked > 0 and held / asked >= least, (role, found)
