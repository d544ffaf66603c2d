"""What a student is pretrained on: simulated dialogues, bare and full.

*Bare* dialogues have prompts that are cut down to the first sentences, the target and one fact, no
emotion, and figures from the whole range: little text, many figures. From them the student learns
to read the table: to name its target, to quote the other side, to stay between the two. *Full*
dialogues have the prompts of the pipeline, under random emotions. The novice, the simulated teacher
and the simulated counterparty have spoken in them; what the student learns is what the novice says
in their place, on either side. The scenarios are those that no experiment uses.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from emodistill.configs import SIMULATED_MODELS
from emodistill.domains import DOMAINS
from emodistill.domains.generator import NUM_SCENARIOS, generate_scenarios
from emodistill.domains.registry import get_domain
from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS, NEUTRAL
from emodistill.negotiation.episode import ChooseEmotion, Match, PlannedDialogue, Player, play
from emodistill.negotiation.states import DialogueState
from emodistill.progress import Progress
from emodistill.prompts import (
    Message,
    PromptPack,
    counterparty_messages,
    focal_messages,
    load_pack,
)
from emodistill.records import Role, Trajectory, Turn
from emodistill.seeding import stream
from emodistill.simulator.writer import SimulatedWriter
from pretraining.config import PretrainConfig
from pretraining.novice import FACT_ODDS, NoviceWriter, novice_reply

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NUM_PRETRAINING_SCENARIOS = 700
"""Scenarios per domain: those that follow the generator's first hundred, which experiments use."""
CASTS = ((1.0, 0.0), (0.3, 0.0), (1.0, 1.0), (0.0, 1.0), (0.5, 0.5))
CAST_ODDS = (0.3, 0.2, 0.2, 0.15, 0.15)
"""Shares of the turns in which the novice speaks for the focal side and for the counterparty. Where
it seldom speaks the talks are long, and their histories full of other people's words, which is what
a student meets that has been trained."""
COUNTERPARTY_NEUTRAL_ODDS = 0.7
"""A student is a counterparty in tournaments alone: neutral there, or with a method of its own."""
BARE_FACT_ODDS = 0.6
"""Share of the novice's replies to bare prompts that state a fact: copying words is learned late,
and elsewhere there are few to copy."""
NUM_KEPT_LINES = 4
"""Bare prompts keep one of the first lines of their context, of so many."""
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
    """The prompts that both players were given."""
    is_bare: bool = False
    """Whether the prompts are cut down to little but the figures."""

    def messages(self, turn: Turn) -> list[Message]:
        """The prompt that `turn` answers."""
        prompt = focal_messages if turn.speaker == "focal" else counterparty_messages
        return prompt(self.pack, self.scenario, self.trajectory.turns[: turn.index], turn.emotion)


class PossibleReply(NamedTuple):
    text: str
    is_novice: bool
    """Otherwise the simulated model says it whose role it is."""


class Prompted(NamedTuple):
    """A prompt, and what might be said to it."""

    messages: list[Message]
    replies: list[PossibleReply]


def prompted_replies(
    dialogue: Dialogue, role: Role, rng: np.random.Generator, replies_per_turn: int
) -> list[Prompted]:
    """What might be said in each turn of a role, whoever spoke there.

    To a full prompt half of the replies are the simulated model's, since a student that knows no
    manner of speaking but the novice's can hardly be taught another one (docs/notes.md). The
    replies to a prompt share it, so that in a row each costs its own tokens alone.
    """
    usual = SimulatedWriter(SIMULATED_MODELS[role])
    turns = [turn for turn in dialogue.trajectory.turns if turn.speaker == role]
    num_usual = 0 if dialogue.is_bare else replies_per_turn // 2
    fact_odds = BARE_FACT_ODDS if dialogue.is_bare else FACT_ODDS

    def replies(messages: list[Message]) -> Iterator[PossibleReply]:
        for _ in range(num_usual):
            seed = int(rng.integers(2**31))
            yield PossibleReply(usual.answer(messages, seed).text, is_novice=False)
        for _ in range(replies_per_turn - num_usual):
            yield PossibleReply(novice_reply(messages, rng, fact_odds), is_novice=True)

    return [
        Prompted(messages, list(replies(messages))) for messages in map(dialogue.messages, turns)
    ]


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

    Every bare dialogue and half of the full ones replace their scenario's figures and facts by free
    ones (`with_free_figures`, `with_free_facts`).
    """
    pack = load_pack()
    num_dialogues = config.num_bare_dialogues if kind == "bare" else config.num_dialogues
    packs = [bare_pack(pack, line) for line in range(NUM_KEPT_LINES)] if kind == "bare" else [pack]
    scenarios = _pretraining_scenarios()
    others = [SimulatedWriter(SIMULATED_MODELS[role]) for role in ("focal", "counterparty")]

    async def play_one(number: int) -> Dialogue:
        name = f"{kind}/{number}"
        rng = stream(config.seed, "pretrain", name)
        scenario = scenarios[number % len(scenarios)]
        if kind == "bare" or rng.random() < 0.5:
            scenario = with_free_facts(with_free_figures(scenario, rng), rng)
        has_no_emotion = kind == "bare" or rng.random() < config.tone_free_share
        shares = CASTS[rng.choice(len(CASTS), p=CAST_ODDS)]
        writers = [NoviceWriter(*one) for one in zip(others, shares, strict=True)]
        chosen_pack = packs[rng.integers(len(packs))]

        def chooser(neutral_odds: float) -> ChooseEmotion:
            def choose(state: DialogueState) -> str | None:
                if has_no_emotion:
                    return None
                is_neutral = rng.random() < neutral_odds
                return NEUTRAL if is_neutral else EMOTIONS[rng.integers(len(EMOTIONS))]

            return choose

        focal, counterparty = (
            Player(writer=writer, choose_for=_always(chooser(odds)), method="sweep")
            for writer, odds in zip(writers, (0.0, COUNTERPARTY_NEUTRAL_ODDS), strict=True)
        )
        match = Match(focal=focal, counterparty=counterparty, pack=chosen_pack, seed=config.seed)
        trajectory = await play(PlannedDialogue(scenario, number, f"pretrain/{name}"), match)
        return Dialogue(scenario, trajectory, chosen_pack, kind == "bare")

    with Progress(f"{kind} dialogues", total=num_dialogues, unit="dialogues") as bar:
        dialogues = []
        for number in range(num_dialogues):
            dialogues.append(asyncio.run(play_one(number)))
            bar.advance()
        return dialogues


def _always(choose: ChooseEmotion) -> Callable[[PlannedDialogue], ChooseEmotion]:
    return lambda dialogue: choose


def bare_pack(pack: PromptPack, kept_line: int) -> PromptPack:
    """`pack` with the first sentence of its rules and role, and two lines of its context.

    Args:
      kept_line: which line of the context is kept beside the last one, which has the figure.
    """

    def cut(name: str, text: str) -> str:
        if name == "context":
            lines = text.strip().splitlines()
            return "\n".join([lines[kept_line % (len(lines) - 1)], lines[-1]])
        if name in ("rules", "role"):
            return re.split(r"\. |;", text.strip())[0].rstrip(".") + "."
        return text

    def bared(texts: Mapping[str, Any]) -> dict[str, Any]:
        domains = {
            domain: {name: cut(name, text) for name, text in texts[domain].items()}
            for domain in DOMAINS
        }
        return {**texts, **domains}

    return replace(pack, focal=bared(pack.focal), counterparty=bared(pack.counterparty))


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


def with_free_facts(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """The scenario with two to four words, of all scenarios' facts, in place of each fact.

    There are so few facts that a student would learn them by heart instead of copying them.
    """
    words = _fact_words()
    fields = {
        name: " ".join(rng.choice(words, rng.integers(2, 5))) if isinstance(value, str) else value
        for name, value in scenario.fields.items()
    }
    return msgspec.structs.replace(scenario, fields=fields)


@functools.cache
def _fact_words() -> tuple[str, ...]:
    """The plain words of the facts of all scenarios, sorted."""
    values = (value for one in _pretraining_scenarios() for value in one.fields.values())
    words = {word for value in values if isinstance(value, str) for word in value.split()}
    return tuple(sorted(word for word in words if re.fullmatch(r"[a-z]+", word)))


def last_texts(dialogues: Sequence[Dialogue]) -> Iterator[str]:
    """The last prompt of each side of a dialogue, history included, and the reply to it."""
    for dialogue in dialogues:
        for turn in dialogue.trajectory.turns[-2:]:
            for message in dialogue.messages(turn):
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
