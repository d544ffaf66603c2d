"""Which language model plays which part, and the connection to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from emodistill.configs import SIMULATED_MODELS, ApiConfig
from emodistill.errors import InputError

if TYPE_CHECKING:
    from emodistill.llm.client import ChatClient


def model_name(config: ApiConfig, role: str, named: str | None) -> str:
    """The model for `focal`, `counterparty` or `judge`.

    Raises:
      InputError: a real model is asked for without a provider (it is never simulated), or the
        provider lacks its key, a usable address or a default for that role.
    """
    if config.is_simulated:
        if named is not None and named not in SIMULATED_MODELS.values():
            flag = {"focal": "--model"}.get(role, f"--{role}")
            raise InputError(
                f"{flag} {named} needs a --provider or --base-url that serves it; without one the "
                f"simulator answers, and it serves {', '.join(SIMULATED_MODELS.values())} only."
            )
        return named or SIMULATED_MODELS[role]
    from emodistill.llm.providers import get_provider

    provider = get_provider(config.provider, base_url=config.base_url)
    provider.read_keys()
    return provider.default_model(role) if named is None else named


@asynccontextmanager
async def open_client(config: ApiConfig) -> AsyncIterator[ChatClient]:
    """A client for the provider that is named, or for a simulator that lives as long as it."""
    from emodistill.llm.client import ChatClient
    from emodistill.llm.providers import get_provider

    with _endpoint(config) as base_url:
        provider = get_provider(
            "simulator" if config.is_simulated else config.provider, base_url=base_url
        )
        connections = 2 * config.concurrency + 8
        async with ChatClient(provider, max_connections=connections) as client:
            yield client


@contextmanager
def _endpoint(config: ApiConfig) -> Iterator[str | None]:
    if not config.is_simulated:
        yield config.base_url
        return
    from emodistill.simulator.process import running_simulator

    with running_simulator() as base_url:
        yield base_url
