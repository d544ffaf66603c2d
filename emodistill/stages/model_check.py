"""Before money is spent: a call to each model shows that it is there, and what is to come is said.

These calls are counted in no stage's usage or cost; all of them together cost less than a cent.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from emodistill.configs import ApiConfig
from emodistill.errors import StoppedError
from emodistill.llm.client import ChatClient
from emodistill.llm.endpoints import ModelEndpoint
from emodistill.stages.language_models import SIMULATOR, ClientOf

QUESTION = ({"role": "user", "content": "Reply with the one word OK."},)
MAX_TOKENS = 64
"""Of the answer: what a judge has."""
YES = ("y", "yes")


class TypicalCalls(NamedTuple):
    """Calls of a role for one dialogue, or one score, and the tokens of each."""

    num_calls: float
    prompt_tokens: int
    completion_tokens: int


TYPICAL: Mapping[str, TypicalCalls] = {
    "focal": TypicalCalls(4.9, 785, 51),
    "counterparty": TypicalCalls(4.3, 785, 51),
    "reader": TypicalCalls(9.2, 490, 15),
    "judge": TypicalCalls(1.0, 972, 9),
}
"""Calls as in the simulator's CRAD dialogues (docs/sweep.md), tokens as in a realistic sweep; a
model that talks for longer costs more, and `plan.py sweep` measures it."""


async def check_models(
    config: ApiConfig,
    name: str,
    client_of: ClientOf,
    roles: Mapping[str, ModelEndpoint | None],
    *,
    num_jobs: int,
    unit: str,
    price_share: float = 1.0,
    typical: Mapping[str, TypicalCalls] = TYPICAL,
) -> bool:
    """Ask each model that costs money for a word, say what the work will cost, and ask the user.

    The user is asked only on a terminal, only if all prices are known, and not with --yes.

    Args:
      name: what the terminal calls the stage.
      num_jobs: `unit`s that are still to be done.
      price_share: what is left of the prices, as by file batch.
      typical: the calls of each role for a job.

    Returns: whether the user was asked, and said yes.

    Raises:
      ApiError: a model is not there, refuses such calls, or only thinks.
      StoppedError: the user says no.
    """
    paid = {
        role: endpoint
        for role, endpoint in roles.items()
        if endpoint is not None and config.replay is None and _is_paid(endpoint)
    }
    if not paid or num_jobs == 0:
        return False
    asked = {one.key: one for one in paid.values()}  # one that plays both roles is asked once
    texts = await asyncio.gather(*(_checked(client_of(one), one.model) for one in asked.values()))
    text_of = dict(zip(asked, texts, strict=True))
    total_usd: float | None = 0.0
    now = datetime.now(UTC)
    for role, endpoint in paid.items():
        price, usual = endpoint.provider.price(endpoint.model), typical[role]
        if price is None:
            total_usd, cost = None, "no price of it is known"
            if endpoint.provider.states_cost:
                cost = "its answers state what they cost"
        else:
            _, *tokens = usual
            usd = price_share * usual.num_calls * price.cost_usd(*tokens, at=now)
            total_usd = None if total_usd is None else total_usd + num_jobs * usd
            cost = f"about ${1_000 * usd:,.2f} for 1,000 {unit}"
            if price.is_peak(now):
                cost += f", at {price.peak:g} times the usual price until the peak is over"
        print(f"{name}: {role} {endpoint.text}: {text_of[endpoint.key]}; {cost}.", flush=True)
    if total_usd is None:
        return False
    print(f"{name}: about ${total_usd:,.2f} for {num_jobs:,} {unit}.", flush=True)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not is_terminal or config.yes:
        return False
    if not _goes_on():
        raise StoppedError(f"{name}: stopped as asked; no {unit} were paid for.")
    return True


def _goes_on() -> bool:
    """Whether the user says yes; the end of the input, as by Ctrl-D, is a no.

    Raises:
      KeyboardInterrupt: by Ctrl-C. The handler of asyncio, which is in force here, would wait for
        the answer first.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input("Go on? [y/N] ").strip().lower() in YES
    except EOFError:
        print(flush=True)
        return False
    finally:
        signal.signal(signal.SIGINT, before)


def _is_paid(endpoint: ModelEndpoint) -> bool:
    """Whether calls cost money, as far as can be known."""
    provider, model, _ = endpoint
    if provider.name == SIMULATOR:
        return False
    price = provider.price(model)
    return provider.key == "required" if price is None else price.input + price.output > 0


async def _checked(client: ChatClient, model: str) -> str:
    """What an answer to QUESTION says of a model.

    Raises:
      ApiError: there is none.
    """
    before = client.usage
    completion = await client.first_answer(QUESTION, model=model, max_tokens=MAX_TOKENS)
    thoughts = client.usage.minus(before).reasoning_tokens
    found = ["answers"]
    if completion.finish_reason != "stop":
        found.append(f"goes on beyond {MAX_TOKENS} tokens")
    if not completion.text.strip():
        found.append("says nothing")
    if thoughts or client.usage.minus(before).num_thinking:
        found.append(
            f"thinks ({thoughts} of {completion.completion_tokens} tokens), which is billed "
            "and fills the limits of answers; see thinking_off in llm/providers.toml"
        )
    return ", ".join(found)
