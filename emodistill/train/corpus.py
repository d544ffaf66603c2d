"""What the embedded student is pretrained on: simulated dialogues, bare and full.

*Bare* dialogues have prompts cut down to the first sentences and the target, no emotion, and
figures from all over the range: little text, many figures. From them the student learns to read
the table: name its target, quote the other side, stay between the two. *Full* dialogues have the
prompts of the pipeline, under random emotions. Both are the simulated teacher as it comes, good
turns and bad, on scenarios that no experiment uses.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emodistill.configs import SIMULATED_MODELS, PretrainConfig
from emodistill.domains import DOMAINS
from emodistill.domains.generator import NUM_SCENARIOS, generate_scenarios
from emodistill.domains.registry import get_domain
from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS
from emodistill.negotiation.episode import Match, PlannedDialogue, Player, play
from emodistill.negotiation.states import DialogueState
from emodistill.progress import progress
from emodistill.prompts import PromptPack, focal_messages
from emodistill.records import Trajectory
from emodistill.seeding import stream
from emodistill.simulator.speaker import SimulatedSpeaker

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NUM_OWN_SCENARIOS = 400
"""Per domain, beyond the built-in hundred that experiments use."""
FIGURES = {
    "days": np.arange(1.0, 220.0),
    "minutes": np.arange(1.0, 300.0),
    "hours past 9 PM": np.arange(-2.0, 7.0, 0.25),
}
"""By unit, wider than any scenario's."""


class Dialogue(NamedTuple):
    scenario: Scenario
    trajectory: Trajectory
    pack: PromptPack
    """The prompts that the focal side was shown."""


def bare_dialogues(config: PretrainConfig, pack: PromptPack) -> list[Dialogue]:
    """Dialogues over free figures, with little text around them."""
    return _played(config, bare_pack(pack), "bare", config.num_bare_dialogues)


def full_dialogues(config: PretrainConfig, pack: PromptPack) -> list[Dialogue]:
    """Dialogues under random emotions; half of them keep their scenario's own figures."""
    return _played(config, pack, "full", config.num_dialogues)


def bare_pack(pack: PromptPack) -> PromptPack:
    """`pack` with the first sentence of its rules and role, and the last line of its context."""

    def first_sentence(text: str) -> str:
        return text.strip().split(". ")[0].split(";")[0].rstrip(".") + "."

    domains = {
        domain: {
            **pack.focal[domain],
            "rules": first_sentence(pack.focal[domain]["rules"]),
            "role": first_sentence(pack.focal[domain]["role"]),
            "context": pack.focal[domain]["context"].strip().splitlines()[-1],
        }
        for domain in DOMAINS
    }
    return replace(pack, focal={**pack.focal, **domains})


def _played(
    config: PretrainConfig, pack: PromptPack, kind: str, num_dialogues: int
) -> list[Dialogue]:
    games = _own_scenarios()
    teacher = SimulatedSpeaker(SIMULATED_MODELS["focal"])
    counterparty = Player(writer=SimulatedSpeaker(SIMULATED_MODELS["counterparty"]))

    async def one(number: int) -> Dialogue:
        name = f"{kind}/{number}"
        rng = stream(config.seed, "pretrain", name)
        scenario = games[number % len(games)]
        if kind == "bare" or rng.random() < 0.5:
            scenario = with_free_figures(scenario, rng)
        is_toneless = kind == "bare" or rng.random() < config.tone_free_share

        def choose(state: DialogueState) -> str | None:
            return None if is_toneless else EMOTIONS[rng.integers(len(EMOTIONS))]

        match = Match(
            focal=Player(writer=teacher, choose_for=lambda dialogue: choose, method="sweep"),
            counterparty=counterparty,
            pack=pack,
            seed=config.seed,
        )
        trajectory = await play(PlannedDialogue(scenario, number, f"pretrain/{name}"), match)
        return Dialogue(scenario, trajectory, pack)

    async def all_of_them() -> list[Dialogue]:
        with progress(f"{kind} dialogues", total=num_dialogues, unit="dialogues") as bar:
            dialogues = []
            for number in range(num_dialogues):
                dialogues.append(await one(number))
                bar.advance()
            return dialogues

    return asyncio.run(all_of_them())


@cache
def _own_scenarios() -> list[Scenario]:
    """Those that no experiment uses, the domains by turns."""
    by_domain = (
        generate_scenarios(domain, NUM_SCENARIOS + NUM_OWN_SCENARIOS)[NUM_SCENARIOS:]
        for domain in DOMAINS
    )
    return [scenario for quartet in zip(*by_domain, strict=True) for scenario in quartet]


def with_free_figures(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """The scenario over two figures from all over its unit's range, near each other or far apart.

    The text around them no longer gives the figures away, so that they have to be read.
    """
    figures = FIGURES[scenario.unit]
    low, high = np.sort(rng.choice(len(figures), 2, replace=False))
    if rng.random() < 0.5:
        high = low + max(1, round((high - low) * rng.uniform(0.1, 0.5)))
    ends = float(figures[low]), float(figures[high])
    target, anchor = ends if get_domain(scenario.domain).direction < 0 else ends[::-1]
    return replace(scenario, focal_target=target, counterparty_anchor=anchor)


def last_texts(dialogues: Sequence[Dialogue]) -> Iterator[str]:
    """The last prompt of each dialogue, history included, and the reply to it."""
    for scenario, trajectory, pack in dialogues:
        turn = trajectory.focal_turns[-1]
        before = trajectory.turns[: turn.index]
        for message in focal_messages(pack, scenario, before, turn.emotion):
            yield message["content"]
        yield turn.text


def train_tokenizer(texts: Iterator[str], vocab_size: int, folder: Path) -> None:
    """A byte-level BPE with single digits and Qwen's chat format, in Hugging Face files."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    words = (
        r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[
            AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS
        ],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
