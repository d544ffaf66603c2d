"""Samples on the terminal, token by token: what is trained stands out from what is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from emodistill.batches import Example
from emodistill.seeding import stream
from emodistill.train.mask_checks import TrainedTokens
from emodistill.untrusted import printable, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NUM_FIRST, NUM_LAST = 24, 72
"""Tokens of a prompt that are shown of its start and of its end, unless it is asked for whole."""
TRAINED_STYLES = ("bold green", "bold cyan")
"""By turns, so that one sees where a token ends."""


def chosen_samples(examples: Sequence[Example], *, seed: int, num_shown: int) -> dict[int, str]:
    """Which samples to show, by index, and why: some drawn, the longest, one that was trimmed."""
    longest = max(range(len(examples)), key=lambda i: examples[i].num_tokens)
    trimmed = max(range(len(examples)), key=lambda i: examples[i].num_dropped_turns)
    chosen = {longest: "the longest"}
    if examples[trimmed].num_dropped_turns:
        also = f"{chosen[longest]}, " if trimmed == longest else ""
        chosen[trimmed] = f"{also}its oldest turns left out"
    if num_shown:
        for i in stream(seed, "preflight").permutation(len(examples))[:num_shown].tolist():
            chosen.setdefault(i, "drawn")
    return chosen


class TokenPiece(NamedTuple):
    """One token's text."""

    text: str
    is_trained: bool


def pieces(sample: TrainedTokens, tokenizer: PreTrainedTokenizerFast) -> Iterator[TokenPiece]:
    """The sample's tokens as printable text; a character of several tokens is U+FFFD in each."""
    trained = {*sample.trained}
    for i, id_ in enumerate(sample.ids.tolist()):
        text = printable(str(tokenizer.decode([id_], clean_up_tokenization_spaces=False)))
        yield TokenPiece(text, i in trained)


def title(
    sample: TrainedTokens, example: Example, why: str, tokenizer: PreTrainedTokenizerFast
) -> str:
    """Name, sizes, and the first and the last trained token of a sample."""
    parts = [
        f"{example.sample_id} ({why}): {len(sample.ids) - len(sample.trained):,} tokens given, "
        f"{len(sample.trained):,} trained"
    ]
    if example.num_dropped_turns:
        parts.append(f"{example.num_dropped_turns} oldest turns left out")
    if sample.trained:
        ends = np.array([sample.trained[0], sample.trained[-1]])
        first, last = (
            f"{shown(str(tokenizer.decode([id_])))} ({id_})" for id_ in sample.ids[ends].tolist()
        )
        parts.append(f"first trained {first}, last {last}")
    return ", ".join(parts)


def show_sample(
    console: Console,
    sample: TrainedTokens,
    tokenizer: PreTrainedTokenizerFast,
    *,
    is_whole: bool,
) -> None:
    """Print a sample: what is given dimmed, each trained token in colour, or else in brackets."""
    has_colour = console.color_system is not None and not console.no_color
    tokens = list(pieces(sample, tokenizer))
    first = sample.trained[0] if sample.trained else len(tokens)
    hidden = range(NUM_FIRST, first - NUM_LAST)
    if is_whole or len(hidden) < NUM_FIRST:
        hidden = range(0)
    text = Text()
    num_trained = 0
    for i, token in enumerate(tokens):
        if i in hidden:
            if i == hidden.start:
                text.append(f" … {len(hidden):,} tokens … ", "dim italic")
        elif not token.is_trained:
            text.append(token.text, "dim")
        elif has_colour:
            text.append(token.text, TRAINED_STYLES[num_trained % 2])
        else:
            text.append(f"[{token.text}]")
        num_trained += token.is_trained
    console.print(text, soft_wrap=True)
