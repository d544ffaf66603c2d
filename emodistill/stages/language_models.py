"""Which language model plays which part, and the connections to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from emodistill.configs import (
    SIMULATED,
    SIMULATED_MODELS,
    ApiConfig,
    DialogueConfig,
    EmotionReaderKind,
)
from emodistill.errors import InputError
from emodistill.llm.cassette import CALLS, Recorder, Replayer
from emodistill.llm.client import ChatClient, RetryPolicy
from emodistill.llm.endpoints import ModelEndpoint, read_endpoint
from emodistill.llm.providers import CUSTOM, Provider, get_provider, load_providers
from emodistill.negotiation.hearing import EmotionReader, LlmEmotionReader
from emodistill.negotiation.readers import LlmReader
from emodistill.negotiation.writers import ApiWriter
from emodistill.operating_system import num_connections
from emodistill.prompts import hearing_prompt_sha256, reading_prompt_sha256
from emodistill.selectors.hearing import SimulatedEmotionReader
from emodistill.simulator.process import running_simulator

NOWHERE = "http://replay.invalid/v1"
"""The simulator's address while a recording speaks for it."""
SIMULATOR = "simulator"

ClientOf = Callable[[ModelEndpoint], ChatClient]


def usual_provider(config: Any) -> Provider | None:
    """Who serves a model that is named without a server; None where nobody is named."""
    if config.provider in (None, SIMULATOR) and config.base_url is None:
        return None
    return get_provider(config.provider, base_url=config.base_url)


def endpoint_of(config: ApiConfig, role: str) -> ModelEndpoint:
    """The language model for `focal`, `counterparty`, `judge` or `reader`.

    Raises:
      InputError: a real model is asked for without a server (it is never simulated); or its server
        lacks a key, a usable address, a default for that role, or serves it no longer.
    """
    named, flag = getattr(config, role), f"--{role}"
    usual = usual_provider(config)
    if usual is None and (named in SIMULATED or (named is None and config.is_simulated)):
        model = named or SIMULATED_MODELS[role]
        return ModelEndpoint(load_providers()[SIMULATOR], model, model)
    if named is None:
        if usual is None:
            raise InputError(
                f"{flag} needs a --provider or --base-url that serves it, or a model with its "
                f"server (PROVIDER:MODEL, URL#MODEL, or {SIMULATED_MODELS[role]}), since other "
                "models here are real."
            )
        named = usual.default_model(role)
    endpoint = read_endpoint(named, usual, flag=flag)
    if endpoint.provider.name == SIMULATOR and endpoint.model not in SIMULATED:
        raise InputError(f"{flag} {named}: the simulator serves {', '.join(SIMULATED)} only.")
    if config.replay is None:
        endpoint.provider.read_keys()
        _notices(endpoint)
    return endpoint


def default_model(config: Any, role: str) -> str | None:
    """The model that has a role where none is named; None where one has to be named."""
    if config.is_simulated:
        return SIMULATED_MODELS[role]
    usual = usual_provider(config)
    return None if usual is None else usual.models.get(role)


def reader_of(config: DialogueConfig, *, hears: bool = False) -> ModelEndpoint | None:
    """The model that reads offers or emotions; None where none is asked.

    Args:
      hears: whether a player looks at the other side's emotions.
    """
    if config.offer_reader == "llm" or (hears and hearing_kind(config) == "model"):
        return endpoint_of(config, "reader")
    if config.reader is not None:
        besides = ", or --emotion-reader model" if hears else ""
        raise InputError(
            f"--reader {config.reader} reads nothing without --offer-reader llm{besides}."
        )
    return None


def hearing_kind(config: Any) -> EmotionReaderKind:
    """Who hears emotions where a player looks at them; see `MatchConfig.emotion_reader`."""
    named: EmotionReaderKind | None = getattr(config, "emotion_reader", None)
    return named or ("simulator" if config.is_simulated else "model")


def emotion_reader(
    client_of: ClientOf, endpoint: ModelEndpoint | None, config: DialogueConfig
) -> EmotionReader | None:
    """Who hears emotions; None for nobody."""
    kind = hearing_kind(config)
    if kind == "model" and endpoint is not None:
        return LlmEmotionReader(client_of(endpoint), endpoint.model, config.reader_max_tokens)
    return SimulatedEmotionReader() if kind == "simulator" else None


def reader_inputs(
    config: DialogueConfig, endpoint: ModelEndpoint | None, *, hears: bool = False
) -> dict[str, str]:
    """The prompts of the model that reads, by their hashes, for manifests."""
    inputs = {}
    if endpoint is not None and config.offer_reader == "llm":
        inputs["reader's prompt"] = reading_prompt_sha256()
    if endpoint is not None and hears and hearing_kind(config) == "model":
        inputs["emotion reader's prompt"] = hearing_prompt_sha256()
    return inputs


def offer_reader(
    client_of: ClientOf, endpoint: ModelEndpoint | None, config: DialogueConfig
) -> LlmReader | None:
    if endpoint is None or config.offer_reader == "pattern":
        return None
    return LlmReader(client_of(endpoint), endpoint.model, config.reader_max_tokens)


def api_writer(
    client_of: ClientOf, endpoint: ModelEndpoint, temperature: float, config: DialogueConfig
) -> ApiWriter:
    client = client_of(endpoint)
    return ApiWriter(client, endpoint.model, temperature, config.max_reply_tokens)


def named_models(endpoints: Mapping[str, ModelEndpoint | None]) -> dict[str, dict[str, str]]:
    """What a manifest says of who has played or judged."""
    return {
        role: {"provider": endpoint.provider.label, "model": endpoint.model}
        for role, endpoint in endpoints.items()
        if endpoint is not None
    }


@asynccontextmanager
async def open_clients(
    config: ApiConfig, name: str, endpoints: Iterable[ModelEndpoint | None]
) -> AsyncIterator[ClientOf]:
    """A client for each endpoint, for a recording, or for a simulator of its own.

    It says which of the last two answers, since nobody has named them.

    Args:
      name: what the terminal calls the stage.

    Raises:
      InputError: a recording is to answer, and there is none.
    """
    wanted = {endpoint.key: endpoint for endpoint in endpoints if endpoint is not None}
    if config.replay is not None:
        if not (config.replay / CALLS).is_file():
            raise InputError(f"--replay {config.replay} holds no {CALLS}; --record makes one.")
        print(f"{name}: {config.replay / CALLS} answers all calls, nothing is connected to.")
    elif config.is_simulated:
        print(f"{name}: no --provider named, so the simulator plays all language models.")
    room = num_connections()
    if config.concurrency > room:
        print(
            f"{name}: --concurrency {config.concurrency} takes more open files than this "
            f"process may have; {room} calls are in flight at once. ulimit -n 1024 allows more."
        )
    async with AsyncExitStack() as stack:
        tape = None
        if config.replay is not None:
            tape = Replayer(config.replay)
        elif config.record is not None:
            tape = stack.enter_context(Recorder(config.record, str(config.run.resolve())))
        simulator_url: str | None = None
        clients: dict[tuple[str, str, str], ChatClient] = {}
        told: set[str] = set()
        for key, (provider, model, _) in wanted.items():
            if provider.name == SIMULATOR and not provider.base_url:
                if simulator_url is None:
                    is_replay = config.replay is not None
                    simulator_url = (
                        NOWHERE if is_replay else stack.enter_context(running_simulator())
                    )
                provider = msgspec.structs.replace(provider, base_url=simulator_url)
            elif tape is None:
                for notice in _notices(wanted[key]):
                    print(f"{name}: {notice}", flush=True)
                is_own = provider.name == CUSTOM or config.base_url is not None
                if is_own and provider.read_keys() and provider.base_url not in told:
                    told.add(provider.base_url)
                    where = f"{provider.key_env} goes to {provider.base_url}"
                    print(f"{name}: the key in {where}.", flush=True)
            clients[key] = await stack.enter_async_context(
                ChatClient(
                    provider,
                    () if isinstance(tape, Replayer) else None,
                    model=model,
                    # All clients together have `room`, and dialogues go to and fro between them.
                    max_in_flight=max(1, min(config.concurrency, room // len(wanted))),
                    retry=RetryPolicy(timeout_s=config.timeout_s or provider.timeout_s),
                    tape=tape,
                )
            )
        yield lambda endpoint: clients[endpoint.key]


def _notices(endpoint: ModelEndpoint) -> list[str]:
    """What to say before a model is called; see `Profile.notices`."""
    provider, model, _ = endpoint
    today = datetime.now(UTC).date()
    return provider.profile(model).notices(f"{model} at {provider.label}", today)
