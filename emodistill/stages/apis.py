"""Which language model plays which part, and the connection to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from emodistill.configs import (
    SIMULATED,
    SIMULATED_MODELS,
    ApiConfig,
    MatchConfig,
    SweepConfig,
)
from emodistill.errors import InputError

if TYPE_CHECKING:
    from emodistill.llm.client import ChatClient
    from emodistill.negotiation.readers import OfferReader

NOWHERE = "http://replay.invalid/v1"
"""The simulator's address while a recording speaks for it."""


def model_name(config: ApiConfig, role: str, named: str | None) -> str:
    """The model for `focal`, `counterparty`, `judge` or `reader`.

    Raises:
      InputError: a real model is asked for without a provider (it is never simulated), or the
        provider lacks its key, a usable address or a default for that role.
    """
    if config.is_simulated:
        if named is not None and named not in SIMULATED:
            flag = {"focal": "--model"}.get(role, f"--{role}")
            raise InputError(
                f"{flag} {named} needs a --provider or --base-url that serves it; without one the "
                f"simulator answers, and it serves {', '.join(SIMULATED)} only."
            )
        return named or SIMULATED_MODELS[role]
    from emodistill.llm.providers import get_provider

    provider = get_provider(config.provider, base_url=config.base_url)
    if config.replay is None:
        provider.read_keys()
    return provider.default_model(role) if named is None else named


def offer_model(config: SweepConfig | MatchConfig) -> str | None:
    """The model that reads the offers; None where patterns do."""
    if config.offer_reader == "pattern":
        if config.reader is not None:
            raise InputError(f"--reader {config.reader} reads nothing without --offer-reader llm.")
        return None
    return model_name(config, "reader", config.reader)


def offer_reader(client: ChatClient, model: str | None) -> OfferReader:
    from emodistill.negotiation.readers import PATTERNS, LlmReader

    return PATTERNS if model is None else LlmReader(client, model)


@asynccontextmanager
async def open_client(config: ApiConfig) -> AsyncIterator[ChatClient]:
    """A client for the provider that is named, for a recording, or for a simulator of its own."""
    from emodistill.llm.cassette import Recorder, Replayer
    from emodistill.llm.client import ChatClient, RetryPolicy
    from emodistill.llm.providers import get_provider

    name = "simulator" if config.is_simulated else config.provider
    with ExitStack() as stack:
        tape = keys = None
        base_url = config.base_url
        if config.replay is not None:
            tape, keys = Replayer(config.replay), ()
            base_url = base_url or (NOWHERE if config.is_simulated else None)
        elif config.is_simulated:
            from emodistill.simulator.process import running_simulator

            base_url = stack.enter_context(running_simulator())
        if config.record is not None:
            tape = stack.enter_context(Recorder(config.record, str(config.run.resolve())))
        client = ChatClient(
            get_provider(name, base_url=base_url),
            keys,
            max_in_flight=config.concurrency,
            retry=RetryPolicy(timeout_s=config.timeout_s),
            tape=tape,
        )
        async with client:
            yield client
