"""Samples with the statistics of a real sweep, without text, for training and for generation.

Each scenario has a context, from which dialogues of alternating turns branch. By default prompts
have about 785 tokens and replies about 51, as measured on a CRAD sweep of real models.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from emodistill.batches import Example, PackedBatches
from emodistill.seeding import stream

Turn = tuple[np.ndarray, int]
"""A focal turn's prompt, and how many tokens its reply has."""


def dialogue_examples(
    *,
    num_scenarios: int,
    num_dialogues: int,
    num_turns: int = 7,
    is_exact: bool = False,
    context_tokens: int = 480,
    turn_tokens: int = 51,
    cue_tokens: int = 30,
    vocab_size: int = 10_000,
) -> list[Example]:
    """A sample for each focal turn of each dialogue.

    Args:
      num_turns: mean number of focal turns in a dialogue; the counterparty has as many.
      is_exact: all dialogues have that many.
      context_tokens: rules, role and scenario; four fifths of them are the same in all scenarios.
      turn_tokens: mean length of an utterance.
      cue_tokens: what stands between the history and the reply: the emotion and the cue.
    """
    rng = stream(0, "workload")
    text = _Text(rng, turn_tokens, cue_tokens, vocab_size)
    rules = text.words(0.8 * context_tokens)
    examples = []
    for scenario in range(num_scenarios):
        context = np.concatenate([rules, text.words(0.2 * context_tokens)])
        for dialogue in range(num_dialogues):
            number = num_turns if is_exact else max(1, rng.poisson(num_turns))
            turns = text.turns(context, number)
            examples += [
                Example(
                    sample_id=f"synthetic/{scenario:04}/{dialogue:04}#{2 * turn}",
                    prompt_ids=prompt,
                    response_ids=reply,
                )
                for turn, (prompt, reply) in enumerate(turns)
            ]
    return examples


class _Text:
    """Token ids of no meaning, with the lengths of real dialogues."""

    def __init__(
        self, rng: np.random.Generator, turn_tokens: int, cue_tokens: int, vocab_size: int
    ) -> None:
        self.rng = rng
        self.turn_tokens, self.cue_tokens, self.vocab_size = turn_tokens, cue_tokens, vocab_size

    def words(self, number: float) -> np.ndarray:
        return self.rng.integers(1, self.vocab_size, max(1, round(number)), dtype=np.int32)

    def length(self) -> float:
        return self.turn_tokens * self.rng.uniform(0.6, 1.4)

    def turns(self, context: np.ndarray, num_turns: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Prompt and reply of each focal turn of a dialogue."""
        history = context
        for _ in range(num_turns):
            reply = self.words(self.length())
            yield np.concatenate([history, self.words(self.cue_tokens)]), reply
            history = np.concatenate([history, reply, self.words(self.length())])


def evaluation_dialogues(*, num_dialogues: int, num_turns: int, **shape: int) -> list[list[Turn]]:
    """For each dialogue, each on a scenario of its own, its focal turns; the history
    holds other tokens than those a model would say.

    Args:
      shape: as of `dialogue_examples`.
    """
    examples = dialogue_examples(
        num_scenarios=num_dialogues, num_dialogues=1, num_turns=num_turns, is_exact=True, **shape
    )
    turns = [(one.prompt_ids, len(one.response_ids)) for one in examples]
    return [turns[i : i + num_turns] for i in range(0, len(turns), num_turns)]


epoch = functools.partial(PackedBatches, batch_size=16, seed=0, num_epochs=1)
"""The steps of one epoch over the samples."""


def statistics(batches: PackedBatches) -> dict[str, float]:
    """How many samples there are, their mean lengths, and what packing makes of them."""
    examples = batches.examples
    num_computed = batches.num_positions
    return {
        "num_samples": len(examples),
        "prompt_tokens": float(np.mean([len(example.prompt_ids) for example in examples])),
        "reply_tokens": float(np.mean([len(example.response_ids) for example in examples])),
        "tokens_per_computed_token": sum(one.num_tokens - 1 for one in examples) / num_computed,
        "filled": batches.num_tokens / num_computed,
    }
