"""Which language model plays which part, and the connection to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from emodistill.configs import (
    SIMULATED,
    SIMULATED_MODELS,
    ApiConfig,
    DialogueConfig,
    ExperimentConfig,
)
from emodistill.errors import InputError
from emodistill.llm.cassette import CALLS, Recorder, Replayer
from emodistill.llm.client import ChatClient, RetryPolicy
from emodistill.llm.providers import get_provider
from emodistill.negotiation.readers import LlmReader
from emodistill.operating_system import num_connections
from emodistill.simulator.process import running_simulator

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
    provider = get_provider(config.provider, base_url=config.base_url)
    if config.replay is None:
        provider.read_keys()
    return provider.default_model(role) if named is None else named


def default_model(config: ExperimentConfig, role: str) -> str | None:
    """The model that has a role where none is named; None where one has to be named."""
    if config.is_simulated:
        return SIMULATED_MODELS[role]
    return get_provider(config.provider, base_url=config.base_url).models.get(role)


def offer_model(config: DialogueConfig) -> str | None:
    """The model that reads the offers; None where patterns do."""
    if config.offer_reader == "pattern":
        if config.reader is not None:
            raise InputError(f"--reader {config.reader} reads nothing without --offer-reader llm.")
        return None
    return model_name(config, "reader", config.reader)


def offer_reader(client: ChatClient, model: str | None, config: DialogueConfig) -> LlmReader | None:
    return None if model is None else LlmReader(client, model, config.reader_max_tokens)


@asynccontextmanager
async def open_client(config: ApiConfig, name: str) -> AsyncIterator[ChatClient]:
    """A client for the provider that is named, for a recording, or for a simulator of its own.

    It says which of the last two answers, since nobody has named them.

    Args:
      name: what the terminal calls the stage.

    Raises:
      InputError: a recording is to answer, and there is none.
    """
    if config.replay is not None:
        if not (config.replay / CALLS).is_file():
            raise InputError(f"--replay {config.replay} holds no {CALLS}; --record makes one.")
        print(f"{name}: {config.replay / CALLS} answers all calls, nothing is connected to.")
    elif config.is_simulated:
        print(f"{name}: no --provider named, so the simulator plays all language models.")
    provider = "simulator" if config.is_simulated else config.provider
    with ExitStack() as stack:
        tape = keys = None
        base_url = config.base_url
        if config.replay is not None:
            tape, keys = Replayer(config.replay), ()
            base_url = base_url or (NOWHERE if config.is_simulated else None)
        elif config.is_simulated:
            base_url = stack.enter_context(running_simulator())
        if config.record is not None:
            tape = stack.enter_context(Recorder(config.record, str(config.run.resolve())))
        room = num_connections()
        if config.concurrency > room:
            print(
                f"{name}: --concurrency {config.concurrency} takes more open files than this "
                f"process may have; {room} calls are in flight at once. ulimit -n 1024 allows more."
            )
        served = get_provider(provider, base_url=base_url)
        if config.base_url is not None and tape is None and served.read_keys():
            print(f"{name}: the key in {served.key_env} goes to {served.base_url}.", flush=True)
        client = ChatClient(
            served,
            keys,
            max_in_flight=min(config.concurrency, room),
            retry=RetryPolicy(timeout_s=config.timeout_s or served.timeout_s),
            tape=tape,
        )
        async with client:
            yield client
