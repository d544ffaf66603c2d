"""Log-probabilities that a server states of the tokens of its answer, read by allow-list.

Servers write tokens in many ways: as text, as the vocabulary's own piece ("Ġdays"), as an id in a
text ("token_id:42") or beside it, with their bytes or without. All that is kept is what may name
the token; whoever compares decides what is the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from emodistill.untrusted import count

MAX_TOKENS, MAX_ALTERNATIVES = 4_096, 20
"""Of an answer, and of the likeliest tokens at each of its positions, that are read; OpenAI's and
vLLM's servers give 20 at most."""
MAX_TOKEN_CHARS = 256
"""A longer token is none of any vocabulary that is compared here."""
LOWEST = -200.0
"""Log-probs below it are no measurement: servers write -9999 for what they have cut off."""
ROUNDING = 1e-3
"""By so much a server's arithmetic may put a log-prob above 0."""

_TOKEN_ID = re.compile(r"token_id:(\d{1,9})")


class TokenScore(NamedTuple):
    """A token as a server names it, and its log-prob in nats."""

    names: frozenset[str]
    token_id: int | None
    logp: float


class ScoredPosition(NamedTuple):
    """A position of an answer: the token there, and the likeliest ones, itself perhaps included."""

    chosen: TokenScore
    alternatives: tuple[TokenScore, ...]


def read_token_scores(choice: Mapping[str, Any]) -> tuple[ScoredPosition, ...]:
    """The log-probs in a choice of a chat completion; as far as they can be read, else none.

    Both forms are read: `logprobs.content` of chat completions, and `logprobs.tokens`,
    `token_logprobs` and `top_logprobs` of the older text completions.
    """
    stated = choice.get("logprobs")
    if not isinstance(stated, dict):
        return ()
    entries = stated.get("content")
    found = _entries(entries) if isinstance(entries, list) else _columns(stated)
    return tuple(found)


def _entries(entries: list[Any]) -> Iterator[ScoredPosition]:
    for entry in entries[:MAX_TOKENS]:
        chosen = _score(entry)
        if chosen is None:  # what follows can't be placed any more
            return
        top = entry.get("top_logprobs")
        scores = map(_score, top[:MAX_ALTERNATIVES] if isinstance(top, list) else ())
        yield ScoredPosition(chosen, tuple(score for score in scores if score is not None))


def _columns(stated: Mapping[str, Any]) -> Iterator[ScoredPosition]:
    tokens, logps, tops = (
        value if isinstance(value, list) else []
        for value in map(stated.get, ("tokens", "token_logprobs", "top_logprobs"))
    )
    for i, (token, logp) in enumerate(zip(tokens[:MAX_TOKENS], logps, strict=False)):
        chosen = _score({"token": token, "logprob": logp})
        if chosen is None:
            return
        top = tops[i] if i < len(tops) and isinstance(tops[i], dict) else {}
        pairs = [{"token": name, "logprob": value} for name, value in top.items()]
        scores = map(_score, pairs[:MAX_ALTERNATIVES])
        yield ScoredPosition(chosen, tuple(score for score in scores if score is not None))


def _score(entry: Any) -> TokenScore | None:
    if not isinstance(entry, dict):
        return None
    logp, token, token_id = entry.get("logprob"), entry.get("token"), count(entry.get("id"))
    if not isinstance(logp, int | float) or isinstance(logp, bool) or not math.isfinite(logp):
        return None
    names = set()
    if isinstance(token, str) and len(token) <= MAX_TOKEN_CHARS:
        names.add(token)
        if match := _TOKEN_ID.fullmatch(token):
            token_id = int(match[1])
    if (text := _from_bytes(entry.get("bytes"))) is not None:
        names.add(text)
    is_possible = LOWEST <= logp <= ROUNDING
    if not (names or token_id is not None):
        return None
    return TokenScore(frozenset(names), token_id, float(logp) if is_possible else LOWEST)


def _from_bytes(values: Any) -> str | None:
    if not isinstance(values, list) or not 0 < len(values) <= MAX_TOKEN_CHARS:
        return None
    if not all(isinstance(value, int) and 0 <= value < 256 for value in values):
        return None
    return bytes(values).decode("utf-8", "replace")
