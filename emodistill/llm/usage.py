"""What calls have used, and the answers that they got."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from emodistill.llm.replies import FinishReason


class Usage(NamedTuple):
    """Attempts at calls, how many of them were repetitions, and what the answers used."""

    num_calls: int = 0
    num_retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    latency_s: float = 0.0
    """Of all answers together, however many came at once."""
    num_cut: int = 0
    """Answers cut at their limit of tokens."""
    num_filtered: int = 0
    """Answers withheld by a filter."""
    num_thinking: int = 0
    """Answers with thoughts in their text, which were cut off it."""
    num_in_parts: int = 0
    """Answers whose text came as a list of parts."""
    num_errors_in_200: int = 0
    """Errors inside an HTTP 200."""
    num_estimated: int = 0
    """Answers whose tokens the server does not state, or that could not be read; estimated."""
    cached_tokens: int = 0
    """Of the prompt tokens: read out of a prompt cache."""
    reasoning_tokens: int = 0
    """Of the completion tokens: thoughts."""

    @property
    def unusual(self) -> dict[str, int]:
        """How many answers there were of each kind that is not simply whole."""
        kinds = {
            "cut at their limit": self.num_cut,
            "withheld by a filter": self.num_filtered,
            "with thoughts cut off": self.num_thinking,
            "in parts": self.num_in_parts,
            "an error inside HTTP 200": self.num_errors_in_200,
            "with estimated tokens": self.num_estimated,
        }
        return {kind: count for kind, count in kinds.items() if count}

    def plus(self, other: Usage) -> Usage:
        return Usage._make(map(operator.add, self, other))

    def minus(self, other: Usage) -> Usage:
        return Usage._make(map(operator.sub, self, other))


def total_usage(usages: Iterable[Usage]) -> Usage:
    return functools.reduce(Usage.plus, usages, Usage())


@dataclass(slots=True)
class Purse:
    """Money that is spent together."""

    spent_usd: float = 0.0
    ceiling_usd: float = math.inf

    @property
    def is_empty(self) -> bool:
        return self.spent_usd >= self.ceiling_usd


class Completion(NamedTuple):
    """A model's answer. `text` may be empty; `latency_s` is of the attempt that succeeded.

    Local models give the same record, at no cost.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    cost_usd: float
    finish_reason: FinishReason = "stop"

    @property
    def usage(self) -> Usage:
        """What the answer used, without the call."""
        used = (self.prompt_tokens, self.completion_tokens, self.cost_usd, self.latency_s)
        return Usage(0, 0, *used)

    def after(self, earlier: Completion) -> Completion:
        """This answer, at the cost of an earlier one as well that was of no use."""
        return self._replace(
            prompt_tokens=self.prompt_tokens + earlier.prompt_tokens,
            completion_tokens=self.completion_tokens + earlier.completion_tokens,
            latency_s=self.latency_s + earlier.latency_s,
            cost_usd=self.cost_usd + earlier.cost_usd,
        )
