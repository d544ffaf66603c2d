"""Canaries: prompts whose answers tell a server with an adapter from one without it.

    canaries.json                beside adapter_config.json; PEFT and vLLM don't look at it

Each canary is a chat with the greedy replies of both, and for every position of either reply the
likeliest tokens with their log-probs with the adapter and without it. Free of jax, as a check of
somebody's server should be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from emodistill.errors import InputError
from emodistill.files import canonical_json, replacing
from emodistill.records import SCHEMA, Record
from emodistill.untrusted import read_typed

CANARIES_FILE = "canaries.json"

Score = tuple[int, float, float]
"""A token's id, and its log-prob in nats with the adapter and without it."""


class CanaryReply(Record, frozen=True, kw_only=True):
    """A greedy reply, and what is known at each of its positions."""

    text: str
    ids: tuple[int, ...]
    scores: tuple[tuple[Score, ...], ...]
    """Of the reply's own token, then of the likeliest others."""

    def __post_init__(self) -> None:
        if tuple(row[0][0] if row else None for row in self.scores) != self.ids:
            raise ValueError("scores must begin with the reply's tokens, one list for each")
        for _, *logps in (score for row in self.scores for score in row):
            if not all(math.isfinite(logp) and logp <= 0 for logp in logps):
                raise ValueError(f"log-probs {logps} must be finite and not above 0")


class Canary(Record, frozen=True, kw_only=True):
    """A chat, and what follows it with the adapter and without it."""

    messages: tuple[Mapping[str, str], ...]
    prompt_ids: tuple[int, ...]
    """As the chat template has them, generation prompt included."""
    adapter: CanaryReply
    base: CanaryReply

    @property
    def num_shared(self) -> int:
        """How many tokens the two replies begin with that are the same."""
        pairs = enumerate(zip(self.adapter.ids, self.base.ids, strict=False))
        shortest = min(len(self.adapter.ids), len(self.base.ids))
        return next((i for i, (ours, theirs) in pairs if ours != theirs), shortest)

    def scores(self) -> Iterator[Score]:
        """All scores, those of positions that both replies share once."""
        for row in (*self.adapter.scores, *self.base.scores[self.num_shared + 1 :]):
            yield from row


class Canaries(Record, frozen=True, kw_only=True):
    """The canaries of an adapter, and what they were made with."""

    schema: int = SCHEMA
    base_fingerprint: str
    chat_template_sha256: str
    weights_sha256: str | None
    """Of the adapter's file of weights, where it lies beside."""
    source_sha256: str | None = None
    """Of the file of weights that was exported, in whatever form."""
    dtype: str
    """Of the base's weights when the log-probs were computed."""
    max_reply_tokens: int
    tokens: Mapping[str, tuple[str, str]]
    """Of every token that is scored: id -> its text, and its piece in the vocabulary."""
    canaries: tuple[Canary, ...]

    def __post_init__(self) -> None:
        for canary in self.canaries:
            rows = (*canary.adapter.scores, *canary.base.scores)
            for token_id, *_ in (score for row in rows for score in row):
                if str(token_id) not in self.tokens:
                    raise ValueError(f"tokens has no text for {token_id}")

    @property
    def effect(self) -> float:
        """By how many nats the adapter changes a log-prob, on average."""
        return mean_distance((ours, base) for c in self.canaries for _, ours, base in c.scores())


def mean_distance(pairs: Iterable[tuple[float, float]]) -> float:
    """The mean of |a - b| over pairs; 0 of none."""
    distances = [abs(first - second) for first, second in pairs]
    return sum(distances) / len(distances) if distances else 0.0


def export_dir(home: Path, adapter: str, form: str) -> Path:
    """Where an adapter of a run is written for other servers, with its canaries.

    Args:
      home: the folder of its domain in the run.
      adapter: STAGE-CELL.
    """
    return home / "export" / f"{adapter}-{form}"


def write_canaries(folder: Path, canaries: Canaries) -> None:
    with replacing(folder / CANARIES_FILE) as partial:  # in one line, a fifth of its size indented
        partial.write_text(canonical_json(canaries.to_json()) + "\n", encoding="utf-8")


def read_canaries(folder: Path) -> Canaries:
    """The canaries in an adapter's folder.

    Raises:
      InputError: there are none, or the file can't be used.
    """
    path = folder / CANARIES_FILE
    try:
        value = read_typed(path, dict[str, Any], "Export the adapter again.")
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing; scripts/export_adapter.py writes an adapter with its canaries."
        ) from None
    canaries = Canaries.from_json(value, where=str(path))
    if not canaries.canaries:
        raise InputError(f"{path} holds no canary; export the adapter again.")
    return canaries
