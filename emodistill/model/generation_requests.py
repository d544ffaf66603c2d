"""What an engine is asked for, and what it answers. Free of jax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from emodistill.errors import InputError

if TYPE_CHECKING:
    from emodistill.model.config import Qwen2Config

MAX_LOGPROBS = 20
"""Likeliest tokens whose log-probs can be asked for at each position, as many as OpenAI's API
takes."""


class GenerationRequest(NamedTuple):
    """A prompt to continue.

    Attributes:
      temperature: 0 takes the likeliest token.
      top_p: draw from the likeliest tokens that reach this probability together.
      seed: the same request with the same seed gets the same tokens.
      stop_ids: tokens that end the continuation; the one that did is its last.
      num_logprobs: None for no log-probs, 0 for those of the chosen tokens, more for those of the
        likeliest ones as well.
    """

    ids: Sequence[int]
    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    num_logprobs: int | None = None

    def check(self, config: Qwen2Config, max_tokens: int, name: str = "the prompt") -> None:
        """Whether an engine of the model can serve it.

        Args:
          max_tokens: most tokens of prompt and continuation.
          name: of the prompt, for the message.

        Raises:
          InputError: a field is out of range, or the prompt is empty, holds an unknown token id or
            has no room.
        """
        ids, vocab_size = self.ids, config.vocab_size
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens={self.max_new_tokens} must be at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature={self.temperature} must be 0 or above.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p} must lie in (0, 1].")
        if not 0 <= (self.num_logprobs or 0) <= MAX_LOGPROBS:
            raise InputError(
                f"num_logprobs={self.num_logprobs} must lie between 0 and {MAX_LOGPROBS}."
            )
        for token in self.stop_ids:
            if not 0 <= token < vocab_size:
                raise InputError(f"stop_ids holds {token}, outside 0 … {vocab_size - 1}.")
        if not len(ids):
            raise InputError(f"{name} is empty; it needs at least one token.")
        if min(ids) < 0 or max(ids) >= vocab_size:
            raise InputError(
                f"{name} holds a token id outside 0 … {vocab_size - 1}; its tokenizer belongs to "
                "another model."
            )
        limit = max_tokens - self.max_new_tokens
        if len(ids) > limit:
            raise InputError(
                f"{name} has {len(ids)} tokens, but with max_new_tokens={self.max_new_tokens} "
                f"there is room for {max(0, limit)}; shorten it."
            )


class TokenLogprobs(NamedTuple):
    """Log-probs where a token was chosen, at temperature 1 whatever it was drawn at."""

    chosen: float
    likeliest: tuple[tuple[int, float], ...] = ()
    """Token ids with theirs, the likeliest first; as many as were asked for."""


class Generated(NamedTuple):
    """A finished continuation; `finish_reason` is `stop` or, where the limit came first,
    `length`."""

    ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: Literal["stop", "length"]


class NewTokens(NamedTuple):
    """What a step gave one request."""

    handle: int
    ids: list[int]
    """New tokens."""
    logprobs: list[TokenLogprobs] | None
    generated: Generated | None
    """The whole, where it has ended."""
