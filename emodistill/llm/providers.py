"""Who answers chat completions: address, key variable, default models and prices, all as data."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from emodistill.errors import InputError
from emodistill.llm.keys import UNLIMITED, Limits

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One endpoint. `key` says whether it is `required`, `optional` or there is `none`."""

    name: str
    base_url: str
    key_env: str | None = None
    key: str = "optional"
    models: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prices: Mapping[str, Price] = dataclasses.field(default_factory=dict)
    limits: Limits = UNLIMITED
    max_tokens_field: str = "max_tokens"
    extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dead_codes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.key not in ("required", "optional", "none"):
            raise InputError(
                f"provider {self.name!r}: key={self.key!r} must be required, optional or none."
            )
        if self.base_url:
            object.__setattr__(self, "base_url", _checked_url(self.base_url, self.name))

    def price(self, model: str) -> Price | None:
        """The model's price, None where it is not known."""
        return self.prices.get(model, self.prices.get("*"))

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

    def read_keys(self, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
        """The API keys in the environment; `()` where none is needed and none is set.

        Raises:
          InputError: a key is required and missing, or is no printable ASCII.
        """
        environ = os.environ if environ is None else environ
        if self.key == "none" or self.key_env is None:
            return ()
        keys = tuple(k for part in environ.get(self.key_env, "").split(",") if (k := part.strip()))
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


def load_providers(path: Path | None = None) -> dict[str, Provider]:
    """The built-in providers, updated by `path` or by the file that EMODISTILL_PROVIDERS names."""
    text = resources.files("emodistill.llm").joinpath("providers.toml").read_text("utf-8")
    tables = tomllib.loads(text)
    if path is None and os.environ.get(OVERRIDE_ENV):
        path = Path(os.environ[OVERRIDE_ENV])
    if path is not None:
        try:
            own = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"{path}: no readable TOML file of providers ({error}).") from None
        for name, table in own.items():
            if not isinstance(table, dict):
                raise InputError(f"{path}: {name} must be a table, e.g. [{name}].")
            tables[name] = {**tables.get(name, {}), **table}
    return {name: _provider(name, table, path) for name, table in tables.items()}


def get_provider(
    name: str | None = None, *, base_url: str | None = None, path: Path | None = None
) -> Provider:
    """The provider `name`, at `base_url` if that is given; `custom` where only a URL is.

    Raises:
      InputError: unknown name (the message lists the known ones), no URL, or no http(s) URL.
    """
    providers = load_providers(path)
    if name is None:
        name = "custom"
    if name not in providers:
        raise InputError(f"--provider {name} is none of {', '.join(providers)}.")
    provider = providers[name]
    if base_url is not None:
        provider = dataclasses.replace(provider, base_url=_checked_url(base_url, "--base-url"))
    if not provider.base_url:
        raise InputError(f"provider {name!r} has no address of its own; give --base-url.")
    return provider


def _provider(name: str, table: Mapping[str, Any], path: Path | None) -> Provider:
    where = f"{path or 'providers.toml'}: [{name}]"
    known = {field.name for field in dataclasses.fields(Provider)} - {"name"}
    if unknown := sorted(set(table) - known):
        raise InputError(f"{where} has the unknown entry {unknown[0]!r}; known: {sorted(known)}.")
    if "base_url" not in table:
        raise InputError(f"{where} lacks base_url.")
    try:
        prices = {
            model: Price(float(entry[0]), *map(float, entry[1:]))
            for model, entry in table.get("prices", {}).items()
        }
    except (TypeError, ValueError, IndexError, AttributeError):
        raise InputError(
            f"{where}: prices are USD per million tokens, [input, output] or [input, output, "
            "cached input]."
        ) from None
    limits = table.get("limits", {})
    is_good = isinstance(limits, dict) and set(limits) <= set(Limits._fields)
    if not is_good or not all(isinstance(n, int | float) and n > 0 for n in limits.values()):
        raise InputError(f"{where}: limits may hold {' and '.join(Limits._fields)}, above 0.")
    codes = table.get("dead_codes", [])
    if not isinstance(codes, list) or not all(isinstance(code, str) for code in codes):
        raise InputError(f'{where}: dead_codes is a list of texts, e.g. ["insufficient_quota"].')
    parsed = {"prices": prices, "limits": Limits(**limits), "dead_codes": tuple(codes)}
    return Provider(name=name, **{**table, **parsed})


def _checked_url(url: str, where: str) -> str:
    """The URL without what follows its path; credentials in URLs are refused, they'd be logged."""
    parts = urlsplit(url.strip())
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
