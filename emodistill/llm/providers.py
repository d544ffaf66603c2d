"""Who answers chat completions: address, key variable, default models and prices, all as data."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

from emodistill.errors import InputError
from emodistill.llm.keys import UNLIMITED, Limits
from emodistill.untrusted import brief, parse_toml, read_bytes

OVERRIDE_ENV = "EMODISTILL_PROVIDERS"


class Price(NamedTuple):
    """USD per million tokens; input from the provider's prompt cache costs `cached_usd`."""

    input_usd: float
    output_usd: float
    cached_usd: float | None = None

    def cost_usd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """Of a call; `cached_tokens` are among its `prompt_tokens`."""
        cached_usd = self.input_usd if self.cached_usd is None else self.cached_usd
        fresh_tokens = prompt_tokens - cached_tokens
        return (
            fresh_tokens * self.input_usd
            + cached_tokens * cached_usd
            + completion_tokens * self.output_usd
        ) / 1e6


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One endpoint; the entries of its table are explained in providers.toml."""

    name: str
    base_url: str
    key_env: str | None = None
    key: Literal["required", "optional", "none"] = "optional"
    models: Mapping[str, str] = {}
    prices: Mapping[str, Price] = {}
    limits: Limits = UNLIMITED
    max_tokens_field: str = "max_tokens"
    extra_body: Mapping[str, Any] = {}
    json_schema: bool = False
    batch_share: float | None = None
    dead_codes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.base_url:
            url = _checked_url(self.base_url, self.name)
            msgspec.structs.force_setattr(self, "base_url", url)

    def price(self, model: str) -> Price | None:
        """The model's price, None where it is not known."""
        return self.prices.get(model, self.prices.get("*"))

    def response_format(self, schema: Mapping[str, Any] | None) -> dict[str, Any]:
        """The field of a request that holds the answer to a JSON Schema; none where there is no
        schema, or the provider takes none."""
        if schema is None or not self.json_schema:
            return {}
        named = {"name": "answer", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": named}}

    def default_model(self, role: str) -> str:
        """The model for `focal`, `counterparty`, `judge` or `reader`.

        Raises:
          InputError: this provider names none; the user has to.
        """
        if role not in self.models:
            flag = {"focal": "--model"}.get(role, f"--{role}")
            raise InputError(
                f"provider {self.name!r} has no default {role} model; name one with {flag}."
            )
        return self.models[role]

    def read_keys(self) -> tuple[str, ...]:
        """The API keys in the environment; `()` where none is needed and none is set.

        Raises:
          InputError: a key is required and missing, or is no printable ASCII.
        """
        if self.key == "none" or self.key_env is None:
            return ()
        parts = os.environ.get(self.key_env, "").split(",")
        keys = tuple(filter(None, map(str.strip, parts)))
        if not keys and self.key == "required":
            raise InputError(
                f"provider {self.name!r} needs an API key: set {self.key_env} (several keys are "
                "separated by commas), or leave out --provider to use the simulator."
            )
        for position, key in enumerate(keys, 1):
            if not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(
                    f"{self.key_env}: key number {position} holds spaces or characters that no "
                    "HTTP header takes. Copy it again, without quotes."
                )
        return keys


def load_providers() -> dict[str, Provider]:
    """The built-in providers, updated by the file that EMODISTILL_PROVIDERS names."""
    text = resources.files("emodistill.llm").joinpath("providers.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    if path := os.environ.get(OVERRIDE_ENV):
        try:
            own = parse_toml(read_bytes(Path(path)))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: no readable TOML file of providers ({brief(error)})."
            ) from None
        for name, table in own.items():
            if not isinstance(table, dict) or "name" in table:
                raise InputError(f"{path}: {name} must be a table, e.g. [{name}], without a name.")
            tables[name] = {**tables.get(name, {}), **table}
    providers = {}
    for name, table in tables.items():
        try:
            providers[name] = msgspec.convert({"name": name, **table}, Provider)
        except msgspec.ValidationError as error:
            raise InputError(
                f"{path}: [{name}]: {error}. The package's llm/providers.toml says what each entry "
                "holds; prices are USD per million tokens."
            ) from None
    return providers


def get_provider(
    name: str | None = None, *, base_url: str | None = None, flag: str = "--base-url"
) -> Provider:
    """The provider `name`, at `base_url` if that is given; `custom` where only a URL is.

    Args:
      flag: which setting gave the URL, for the message.

    Raises:
      InputError: unknown name (the message lists the known ones), no URL, or no http(s) URL.
    """
    providers = load_providers()
    name = name or "custom"
    if name not in providers:
        raise InputError(f"--provider {name} is none of {', '.join(providers)}.")
    provider = providers[name]
    if base_url is not None:
        provider = msgspec.structs.replace(provider, base_url=_checked_url(base_url, flag))
    if not provider.base_url:
        raise InputError(f"provider {name!r} has no address of its own; give {flag}.")
    return provider


def is_loopback(url: str) -> bool:
    """Whether the address is this machine's own."""
    try:
        host = urlsplit(url.strip()).hostname or ""
        return host in ("localhost", "::1") or host.startswith("127.")
    except ValueError:
        return False


def _checked_url(url: str, where: str) -> str:
    """The URL without what follows its path; credentials in URLs are refused, they'd be logged."""
    try:
        parts = urlsplit(url.strip())
    except ValueError as error:  # such as an open bracket
        raise InputError(f"{where}: {brief(url)} is no URL ({error}).") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"{where}: the base URL must look like http://127.0.0.1:8000/v1 or https://…/v1, "
            f"not {parts.path if parts.username else url!r}."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            f"{where}: the base URL of {parts.hostname} must hold no credentials and no query; "
            "keys go into the environment."
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path}"
