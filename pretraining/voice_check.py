"""How well a student places figures in the teacher's words, before SFT has taught it to speak so.

SFT teaches the manner, in a few hundred steps; whether the figures in it can be trusted is decided
before. Here the teacher's replies on unseen scenarios are cut off before their figure, and the
student goes on. The teacher takes smaller steps than the novice, so that a figure that is misread
by little already goes back on the last offer.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

from emodistill.configs import SIMULATED_MODELS
from emodistill.domains import DOMAINS
from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS, NEUTRAL
from emodistill.model import (
    Engine,
    GenerationRequest,
    decode_reply,
    encode_chat,
    load_qwen2,
    load_tokenizer,
)
from emodistill.negotiation.episode import Match, PlannedDialogue, Player, play
from emodistill.prompts import Message, load_pack
from emodistill.seeding import stream
from emodistill.simulator.reading import last_figure
from emodistill.simulator.response_model import PHRASES
from emodistill.simulator.writer import SimulatedWriter
from pretraining.corpus import Dialogue, prompted_replies
from pretraining.novice import gap_of
from pretraining.reading_check import NUM_SLOTS, is_between, read_prompt, unseen_scenarios

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_FIGURE_TOKENS = 9
"""As many as "11:45 PM." has, and some more."""

MOVES = ("concede", "hold", "accept")
COLUMNS = {
    ("concede", "between"): "steps between the two last offers, either included",
    ("concede", "back"): "that go back on its own",
    ("concede", "past"): "or past theirs",
    ("hold", "right"): "its own last offer, where it stays",
    ("accept", "right"): "theirs, where it takes it",
}
"""What is counted of each move; the other figures can't be read, or are wrong."""


class Begun(NamedTuple):
    """A reply of the teacher's that is cut off before its figure."""

    domain: str
    move: str
    start: str
    rest: str
    messages: list[Message]
    own: float
    theirs: float

    def verdict(self, rest: str) -> str:
        """What the figure is that the reply goes on with: one of `COLUMNS`, or "wrong"."""
        figure = last_figure(f"I say {rest.partition('.')[0]}.", self.domain)
        if figure is None:
            return "wrong"
        if self.move != "concede":
            expected = self.own if self.move == "hold" else self.theirs
            return "right" if figure == expected else "wrong"
        if is_between(figure, self.own, self.theirs):
            return "between"
        return "back" if (figure - self.own) * (self.theirs - self.own) < 0 else "past"


def begun_replies(scenario: Scenario, seed: int = 0) -> Iterator[Begun]:
    """What the teacher begins to say in a dialogue with the simulated counterparty."""
    rng = stream(seed, "voice check", scenario.scenario_id)
    players = {
        role: Player(
            writer=SimulatedWriter(SIMULATED_MODELS[role]),
            choose_for=lambda _, choose=choose: lambda state: choose(),
            method="sweep",
        )
        for role, choose in {
            "focal": lambda: EMOTIONS[rng.integers(len(EMOTIONS))],
            "counterparty": lambda: NEUTRAL,
        }.items()
    }
    pack = load_pack()
    match = Match(**players, pack=pack, seed=seed)
    trajectory = asyncio.run(play(PlannedDialogue(scenario, 0, scenario.scenario_id), match))
    dialogue = Dialogue(scenario, trajectory, pack)
    for messages, replies in prompted_replies(dialogue, "focal", rng, replies_per_turn=2):
        _, own, theirs = read_prompt(messages)
        for text in (reply.text for reply in replies if not reply.is_novice):
            cut = _cut_at_figure(text, scenario.domain)
            if cut is not None and own and theirs:
                yield Begun(scenario.domain, *cut, messages, own[-1], theirs[-1])


def _cut_at_figure(text: str, domain: str) -> tuple[str, str, str] | None:
    """The move of a reply, what stands before its figure, and the rest; None without one of
    `MOVES`."""
    for move in MOVES:
        for template in PHRASES[domain][move]:
            for found in gap_of(template).finditer(text):
                start = text[: found.start(1)].rstrip()
                return move, start, text[len(start) :]
    return None


def count_verdicts(
    folder: Path, begun: Sequence[Begun], temperature: float
) -> dict[tuple[str, str], Counter[str]]:
    """(domain, move) -> how often a student's figures are what."""
    tokenizer = load_tokenizer(folder)
    engine = Engine(load_qwen2(folder, dtype=jnp.float32), num_slots=NUM_SLOTS)
    requests = [
        GenerationRequest(
            [*encode_chat(tokenizer, one.messages), *_ids(tokenizer, one.start)],
            max_new_tokens=MAX_FIGURE_TOKENS,
            temperature=temperature,
            seed=number,
        )
        for number, one in enumerate(begun)
    ]
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for one, generated in zip(begun, engine.generate(requests), strict=True):
        verdict = one.verdict(decode_reply(tokenizer, generated.ids))
        counts[one.domain, one.move][verdict] += 1
    return counts


def voice_table(folder: Path, temperatures: Sequence[float], scenarios_per_domain: int) -> str:
    """The counts of a student as lines of text: a table for each sampling temperature."""
    begun = [
        one
        for scenario in unseen_scenarios(scenarios_per_domain)
        for one in begun_replies(scenario)
    ]
    lines = [f"{' '.join(column):18}{meaning}" for column, meaning in COLUMNS.items()]
    for temperature in temperatures:
        lines += ["", f"the teacher's words, sampled at {temperature:g}; per cent of how many"]
        lines.append(" " * 11 + "".join(f"{' '.join(column):>18}" for column in COLUMNS))
        counts = count_verdicts(folder, begun, temperature)
        for domain in DOMAINS:
            cells = (
                f"{100 * counter[verdict] / max(1, counter.total()):.1f} of {counter.total()}"
                for move, verdict in COLUMNS
                for counter in [counts[domain, move]]
            )
            lines.append(f"{domain:11}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
