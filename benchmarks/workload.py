"""Samples with the statistics of a real sweep, without text, for the training benchmarks.

Each scenario has a context, from which dialogues of alternating turns branch. By default prompts
have about 785 tokens and replies about 51, as measured on a CRAD sweep of real models.
"""

from __future__ import annotations

import functools

import numpy as np

from emodistill.batches import Example, PackedBatches
from emodistill.seeding import stream


def dialogue_examples(
    *,
    num_scenarios: int,
    num_dialogues: int,
    num_turns: int = 7,
    context_tokens: int = 480,
    turn_tokens: int = 51,
    cue_tokens: int = 30,
    vocab_size: int = 10_000,
) -> list[Example]:
    """A sample for each focal turn of each dialogue.

    Args:
      num_turns: mean number of focal turns in a dialogue; the counterparty has as many.
      context_tokens: rules, role and scenario; four fifths of them are the same in all scenarios.
      turn_tokens: mean length of an utterance.
      cue_tokens: what stands between the history and the reply: the emotion and the cue.
    """
    rng = stream(0, "workload")

    def words(number: float) -> np.ndarray:
        return rng.integers(1, vocab_size, max(1, round(number)), dtype=np.int32)

    def length() -> float:
        return turn_tokens * rng.uniform(0.6, 1.4)

    rules = words(0.8 * context_tokens)
    examples = []
    for scenario in range(num_scenarios):
        context = np.concatenate([rules, words(0.2 * context_tokens)])
        for dialogue in range(num_dialogues):
            history = context
            for turn in range(max(1, rng.poisson(num_turns))):
                reply = words(length())
                examples.append(
                    Example(
                        sample_id=f"synthetic/{scenario:04}/{dialogue:04}#{2 * turn}",
                        prompt_ids=np.concatenate([history, words(cue_tokens)]),
                        response_ids=reply,
                    )
                )
                history = np.concatenate([history, reply, words(length())])
    return examples


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
