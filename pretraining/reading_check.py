"""How well a student reads its prompt: dialogues on scenarios that no training has seen.

It plays the focal side against the simulated counterparty, and the counterparty against the
simulated teacher. Since it speaks as the novice does, its sentences say what they name: its own
figure, the other side's, a fact. Each is compared with what stands in its prompt.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import jax.numpy as jnp

from emodistill.configs import SIMULATED_MODELS
from emodistill.domains import DOMAINS
from emodistill.domains.generator import NUM_SCENARIOS, generate_scenarios
from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS, NEUTRAL
from emodistill.evaluation.student_writer import StudentWriter
from emodistill.model import Engine, EngineWorker, load_qwen2, load_tokenizer
from emodistill.negotiation.episode import ChooseEmotion, Match, PlannedDialogue, Player, play
from emodistill.prompts import Message, load_pack
from emodistill.records import Role
from emodistill.seeding import stream
from emodistill.simulator.reading import (
    Brief,
    last_figure,
    messages_text,
    read_brief,
    read_figures,
    read_history,
    read_sections,
)
from emodistill.simulator.writer import SimulatedWriter
from pretraining.corpus import NUM_PRETRAINING_SCENARIOS, Dialogue
from pretraining.novice import WORDS, fact_name, gap_of

FIRST_UNSEEN = NUM_SCENARIOS + NUM_PRETRAINING_SCENARIOS
MAX_REPLY_TOKENS, MAX_PROMPT_TOKENS, MAX_TURNS, NUM_SLOTS = 80, 2048, 12, 16

CHECKS = {
    "opening": "the first offer is its own figure",
    "between": "a later offer lies between the two positions",
    "theirs": "a figure taken or quoted is the other side's last one",
    "own": "a figure that stays is its own last one",
    "fact": "a fact is what the prompt says",
    "possible": "an offer lies between both sides' first figures",
    "ended": "the reply has an end",
}
"""What is counted, by name; a perfect reader has 100 % throughout."""


class CheckResult(NamedTuple):
    check: str
    holds: bool


def read_prompt(messages: list[Message]) -> tuple[Brief, list[float], list[float]]:
    """A prompt's brief, and the figures that its reader and the other side have named so far."""
    sections = read_sections(*messages_text(messages))
    brief = read_brief(sections.scenario)
    return brief, *read_figures(read_history(sections.talks, brief.role), brief.domain)


def findings(messages: list[Message], text: str) -> Iterator[CheckResult]:
    """What a reply in the novice's words says of how its prompt was read."""
    brief, own, theirs = read_prompt(messages)
    offer = last_figure(text, brief.domain)
    if offer is not None and brief.own_figure is not None:
        if not own:
            yield CheckResult("opening", offer == brief.own_figure)
        elif theirs:
            yield CheckResult("between", is_between(offer, own[-1], theirs[-1]))
            yield CheckResult("possible", is_between(offer, brief.own_figure, theirs[0]))
    named = [("theirs", theirs, WORDS["quote"] + WORDS["accept"]), ("own", own, WORDS["hold"])]
    for check, figures, templates in named:
        if figures:
            for template in templates:
                for found in gap_of(template).findall(text):
                    yield CheckResult(check, last_figure(found, brief.domain) == figures[-1])
    for template in WORDS["facts"][brief.domain]:
        stated = brief.facts.get(fact_name(template))
        for found in gap_of(template).findall(text):
            yield CheckResult("fact", found == stated)


def is_between(value: float, one: float, other: float) -> bool:
    return min(one, other) <= value <= max(one, other)


def unseen_scenarios(number: int) -> list[Scenario]:
    """So many of each domain, that follow those of the experiments and of pretraining."""
    return [
        scenario
        for domain in DOMAINS
        for scenario in generate_scenarios(domain, FIRST_UNSEEN + number)[FIRST_UNSEEN:]
    ]


async def play_unseen(
    folder: Path, temperature: float, scenarios_per_domain: int, seed: int = 0
) -> list[tuple[Role, Dialogue]]:
    """Dialogues of the student in each role, under random emotions, and which role it had."""
    pack = load_pack()
    model = load_qwen2(folder, dtype=jnp.float32)

    async def one(scenario: Scenario, role: Role, student: StudentWriter) -> tuple[Role, Dialogue]:
        name = f"{role}/{scenario.scenario_id}"
        rng = stream(seed, "reading check", scenario.domain, name)
        opponents = {"focal": "counterparty", "counterparty": "focal"}
        opponent = SimulatedWriter(SIMULATED_MODELS[opponents[role]])

        def choose(state: object) -> str:
            return EMOTIONS[rng.integers(len(EMOTIONS))]

        choosers: Mapping[Role, ChooseEmotion] = {
            "focal": choose,
            "counterparty": lambda state: NEUTRAL,
        }
        players = {
            of: Player(
                writer=student if of == role else opponent,
                choose_for=lambda dialogue, choose=choosers[of]: choose,
                method="vanilla-slm",
            )
            for of in get_args(Role)
        }
        match = Match(**players, pack=pack, seed=seed, max_turns=MAX_TURNS)
        trajectory = await play(PlannedDialogue(scenario, 0, name), match)
        return role, Dialogue(scenario, trajectory, pack)

    async with EngineWorker(lambda _: Engine(model, num_slots=NUM_SLOTS)) as worker:
        student = StudentWriter(
            worker,
            None,
            load_tokenizer(folder),
            model=folder.name,
            temperature=temperature,
            max_reply_tokens=MAX_REPLY_TOKENS,
            max_prompt_tokens=MAX_PROMPT_TOKENS,
        )
        games = unseen_scenarios(scenarios_per_domain)
        return await asyncio.gather(
            *(one(scenario, role, student) for role in get_args(Role) for scenario in games)
        )


def count_findings(
    played: Sequence[tuple[Role, Dialogue]],
) -> dict[tuple[Role, str], dict[str, tuple[int, int]]]:
    """(role, domain) -> check -> how often it holds, and how often it could."""
    counts: dict[tuple[Role, str], Counter[CheckResult]] = {}
    for role, dialogue in played:
        counter = counts.setdefault((role, dialogue.scenario.domain), Counter())
        for turn in dialogue.trajectory.turns:
            if turn.speaker == role:
                counter.update(findings(dialogue.messages(turn), turn.text))
                counter.update([CheckResult("ended", turn.finish_reason != "length")])
    return {
        seat: {
            check: (held, held + counter[CheckResult(check, False)])
            for check in CHECKS
            for held in [counter[CheckResult(check, True)]]
        }
        for seat, counter in counts.items()
    }


def reading_table(folder: Path, temperatures: Sequence[float], scenarios_per_domain: int) -> str:
    """The checks of a student as lines of text: a table for each sampling temperature."""
    lines = [f"{check:9} {meaning}" for check, meaning in CHECKS.items()]
    for temperature in temperatures:
        lines += ["", f"sampled at {temperature:g}; per cent of how many"]
        lines.append(" " * 24 + "".join(f"{check:>14}" for check in CHECKS))
        played = asyncio.run(play_unseen(folder, temperature, scenarios_per_domain))
        for (role, domain), counts in count_findings(played).items():
            cells = (
                f"{100 * held / asked:.1f} of {asked}" if asked else "-"
                for held, asked in counts.values()
            )
            lines.append(f"{role:13}{domain:11}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)
