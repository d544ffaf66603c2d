"""What a call has used, by what the server states of it, or else by lengths."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import NamedTuple

from emodistill.llm.profiles import Profile
from emodistill.llm.replies import Reply, StatedUsage
from emodistill.llm.usage import Usage

BYTES_PER_TOKEN = 4
"""About, in English; for limits of tokens, and for costs where a server states no usage."""


class Call(NamedTuple):
    """One call: its body, and what is known of it without reading that."""

    data: bytes
    model: str
    max_tokens: int
    sticky: str
    profile: Profile
    price_share: float = 1.0
    """What is left of the price, as where it is asked by file batch."""

    @property
    def num_prompt_tokens(self) -> int:
        """About how many tokens the prompt has."""
        return len(self.data) // BYTES_PER_TOKEN


def used_by(
    call: Call, stated: StatedUsage, num_completion_tokens: int, *, states_cost: bool
) -> Usage:
    """The tokens and the cost of an answer: the server's own bill, or its tokens by their prices.

    Args:
      num_completion_tokens: the estimate, where the server states none.
      states_cost: whether the cost that it states is its bill.
    """
    prompt_tokens, completion_tokens = stated.prompt_tokens, stated.completion_tokens
    is_estimated = prompt_tokens is None or completion_tokens is None
    if prompt_tokens is None:
        prompt_tokens = call.num_prompt_tokens
    if completion_tokens is None:
        completion_tokens = max(num_completion_tokens, stated.reasoning_tokens)
    cached_tokens = min(prompt_tokens, stated.cached_tokens)
    written_tokens = min(prompt_tokens - cached_tokens, stated.cache_write_tokens)
    cost_usd = 0.0
    if states_cost and stated.cost_usd is not None:
        cost_usd = stated.cost_usd
    elif price := call.profile.price:
        kinds = prompt_tokens, completion_tokens, cached_tokens, written_tokens
        cost_usd = call.price_share * price.cost_usd(*kinds, at=datetime.now(UTC))
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost_usd=cost_usd,
        num_estimated=int(is_estimated),
        cached_tokens=cached_tokens,
        reasoning_tokens=min(completion_tokens, stated.reasoning_tokens),
    )


def used_by_reply(call: Call, reply: Reply, is_cut: bool, *, states_cost: bool) -> Usage:
    """What a whole answer has used, and of what kind it was; see `used_by`."""
    num_tokens = math.ceil(reply.num_written / BYTES_PER_TOKEN)
    most_likely = max(num_tokens, call.max_tokens) if is_cut else num_tokens
    return used_by(call, reply.usage, most_likely, states_cost=states_cost)._replace(
        num_cut=int(is_cut),
        num_filtered=int(reply.is_filtered),
        num_thinking=int(reply.is_thinking),
        num_in_parts=int(reply.is_in_parts),
    )
