"""What the embedded student is pretrained on: simulated dialogues, bare and full.

*Bare* dialogues have prompts that are cut down to the first sentences and the target, no emotion,
and figures from the whole range: little text, many figures. From them the student learns to read
the table: to name its target, to quote the other side, to stay between the two. *Full* dialogues
have the prompts of the pipeline, under random emotions. In both, the simulated teacher speaks as it
does in a sweep, in good turns and bad ones, on scenarios that no experiment uses.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from emodistill.configs import SIMULATED_MODELS
from emodistill.domains import DOMAINS
from emodistill.domains.generator import NUM_SCENARIOS, generate_scenarios
from emodistill.domains.registry import get_domain
from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS
from emodistill.negotiation.episode import Match, PlannedDialogue, Player, play
from emodistill.negotiation.states import DialogueState
from emodistill.progress import Progress
from emodistill.prompts import PromptPack, focal_messages, load_pack
from emodistill.records import Trajectory
from emodistill.seeding import stream
from emodistill.simulator.writer import SimulatedWriter
from pretraining.config import PretrainConfig

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NUM_PRETRAINING_SCENARIOS = 400
"""Scenarios per domain: those that follow the generator's first hundred, which experiments use."""
FIGURES = {
    "days": np.arange(1.0, 220.0),
    "minutes": np.arange(1.0, 300.0),
    "hours past 9 PM": np.arange(-2.0, 7.0, 0.25),
}
"""The figures that bare dialogues draw from, by unit: a wider range than any scenario's."""


class Dialogue(NamedTuple):
    scenario: Scenario
    trajectory: Trajectory
    pack: PromptPack
    """The prompts that the focal player was given."""


@functools.cache
def _pretraining_scenarios() -> tuple[Scenario, ...]:
    """The domains taking turns; none is among those that are built in."""
    by_domain = (
        generate_scenarios(domain, NUM_SCENARIOS + NUM_PRETRAINING_SCENARIOS)[NUM_SCENARIOS:]
        for domain in DOMAINS
    )
    return tuple(itertools.chain(*zip(*by_domain, strict=True)))


def play_dialogues(config: PretrainConfig, kind: Literal["bare", "full"]) -> list[Dialogue]:
    """The dialogues of one kind that `config` asks for, the domains taking turns.

    Every bare dialogue and half of the full ones replace their scenario's figures by free ones
    (`with_free_figures`).
    """
    pack, num_dialogues = load_pack(), config.num_dialogues
    if kind == "bare":
        pack, num_dialogues = bare_pack(pack), config.num_bare_dialogues
    scenarios = _pretraining_scenarios()
    teacher = SimulatedWriter(SIMULATED_MODELS["focal"])
    counterparty = Player(writer=SimulatedWriter(SIMULATED_MODELS["counterparty"]))

    async def play_one(number: int) -> Dialogue:
        name = f"{kind}/{number}"
        rng = stream(config.seed, "pretrain", name)
        scenario = scenarios[number % len(scenarios)]
        if kind == "bare" or rng.random() < 0.5:
            scenario = with_free_figures(scenario, rng)
        has_no_emotion = kind == "bare" or rng.random() < config.tone_free_share

        def choose(state: DialogueState) -> str | None:
            return None if has_no_emotion else EMOTIONS[rng.integers(len(EMOTIONS))]

        match = Match(
            focal=Player(writer=teacher, choose_for=lambda dialogue: choose, method="sweep"),
            counterparty=counterparty,
            pack=pack,
            seed=config.seed,
        )
        planned = PlannedDialogue(scenario, number, f"pretrain/{name}")
        return Dialogue(scenario, await play(planned, match), pack)

    with Progress(f"{kind} dialogues", total=num_dialogues, unit="dialogues") as bar:
        dialogues = []
        for number in range(num_dialogues):
            dialogues.append(asyncio.run(play_one(number)))
            bar.advance()
        return dialogues


def bare_pack(pack: PromptPack) -> PromptPack:
    """`pack` with the first sentence of its rules and role, and the last line of its context."""

    def cut(name: str, text: str) -> str:
        if name == "context":
            return text.strip().splitlines()[-1]
        if name in ("rules", "role"):
            return re.split(r"\. |;", text.strip())[0].rstrip(".") + "."
        return text

    domains = {
        domain: {name: cut(name, text) for name, text in pack.focal[domain].items()}
        for domain in DOMAINS
    }
    return replace(pack, focal={**pack.focal, **domains})


def with_free_figures(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """The scenario with two other figures of its unit, near each other or far apart.

    The text around the figures then no longer gives them away: the student has to read them.
    """
    figures = FIGURES[scenario.unit]
    low, high = np.sort(rng.choice(len(figures), 2, replace=False))
    if rng.random() < 0.5:
        high = low + max(1, round((high - low) * rng.uniform(0.1, 0.5)))
    ends = float(figures[low]), float(figures[high])
    target, anchor = ends if get_domain(scenario.domain).direction < 0 else ends[::-1]
    return msgspec.structs.replace(scenario, focal_target=target, counterparty_anchor=anchor)


def last_texts(dialogues: Sequence[Dialogue]) -> Iterator[str]:
    """The last prompt of each dialogue, history included, and the reply to it."""
    for scenario, trajectory, pack in dialogues:
        turn = trajectory.focal_turns[-1]
        before = trajectory.turns[: turn.index]
        for message in focal_messages(pack, scenario, before, turn.emotion):
            yield message["content"]
        yield turn.text


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Qwen2's tokenizer, a byte-level BPE with single digits, whose words are learned anew."""
    untrained = Qwen2Tokenizer(
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )
    return untrained.train_new_from_iterator(texts, vocab_size, show_progress=False)
