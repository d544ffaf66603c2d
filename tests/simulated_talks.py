"""Simulated talks that several test modules share: scenarios, utterances, whole dialogues."""

from __future__ import annotations

import asyncio
from functools import cache

from builders import turns

from emodistill.domains import DOMAINS, load_scenarios
from emodistill.emotions import EMOTIONS
from emodistill.negotiation.episode import Match, PlannedDialogue, Player, play
from emodistill.prompts import (
    load_pack,
)
from emodistill.records import Trajectory, Turn
from emodistill.seeding import stream
from emodistill.selectors.oracle import OracleSelector
from emodistill.simulator import response_model as rm
from emodistill.simulator.writer import SimulatedWriter

PACK = load_pack()
PHRASES = rm.PHRASES
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
    return list(turns(*[None] * len(texts), texts=texts))


def toned(emotion: str, text: str, *, num_markers: int = 2) -> str:
    """The text after a clear (two markers) or a faint expression of the emotion."""
    affect = rm.AFFECTS[emotion]
    clauses = [affect.first[0], affect.second[0]] if num_markers == 2 else [affect.first[0]]
    return " ".join([*clauses, text])


@cache
def dialogue(domain: str, number: int, kind: str, repeat: int = 0) -> Trajectory:
    """Scenario `number` under random or oracle emotions, against the same counterparty.

    Dialogues of another `repeat` are others.
    """
    scenario, name = SCENARIOS[domain][number], f"{domain}/{number}"
    name += f"/{repeat}" if repeat else ""
    rng = stream(0, "test-emotions", name)
    oracle = OracleSelector(PACK, scenario, 0, name, counterparty="sim-counterparty")

    def choose(state) -> str:
        return (
            oracle.choose(state, rng) if kind == "oracle" else EMOTIONS[rng.integers(len(EMOTIONS))]
        )

    teacher = SimulatedWriter("sim-teacher")
    match = Match(
        focal=Player(writer=teacher, choose_for=lambda dialogue: choose, method=kind),
        counterparty=Player(writer=SimulatedWriter("sim-counterparty")),
        pack=PACK,
    )
    return asyncio.run(play(PlannedDialogue(scenario, number, name), match))


def dialogues(domain: str, kind: str = "random", num: int = 30) -> list[Trajectory]:
    return [dialogue(domain, number, kind) for number in range(num)]
