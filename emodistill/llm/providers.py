"""Who answers chat completions: address, key variable, default models and profiles, all as data."""

from __future__ import annotations

import functools
import itertools
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from emodistill.errors import InputError
from emodistill.llm.prices import Price
from emodistill.llm.profiles import Profile, merged_profile
from emodistill.untrusted import brief, parse_toml, read_bytes

OVERRIDE_ENV = "EMODISTILL_PROVIDERS"
CUSTOM = "custom"
"""The provider of an address that is given without one."""


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One endpoint; the entries of its table are explained in providers.toml."""

    name: str
    base_url: str
    key_env: str | None = None
    key: Literal["required", "optional", "none"] = "optional"
    models: Mapping[str, str] = {}
    profiles: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Patterns of models' names and what they say of them; later ones have the last word."""
    dead_codes: tuple[str, ...] = ()
    states_cost: bool = False
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0

    def __post_init__(self) -> None:
        if self.base_url:
            url = _checked_url(self.base_url, self.name)
            msgspec.structs.force_setattr(self, "base_url", url)

    @property
    def label(self) -> str:
        """The provider as records name it: by its address where it has no name."""
        return self.base_url if self.name == CUSTOM else self.name

    def profile(self, model: str) -> Profile:
        """What is known of a model."""
        return merged_profile(self.profiles, model)

    def price(self, model: str) -> Price | None:
        """The model's price, None where it is not known."""
        return self.profile(model).price

    def is_priced(self, model: str) -> bool:
        """Whether it can be known what a call costs."""
        return self.states_cost or self.price(model) is not None

    def batch_share(self, model: str) -> float | None:
        """What is left of a model's price by file batch; None where it is not known to go that
        way."""
        price = self.price(model)
        return None if price is None else price.batch

    def default_model(self, role: str) -> str:
        """The model for `focal`, `counterparty`, `judge` or `reader`.

        Raises:
          InputError: this provider names none; the user has to.
        """
        if role not in self.models:
            raise InputError(
                f"provider {self.name!r} has no default {role} model; name one with --{role}."
            )
        return self.models[role]

    def read_keys(self) -> tuple[tuple[str, ...], ...]:
        """The API keys in the environment, account by account; none where none is needed and set.

        Raises:
          InputError: a key is required and missing, or is no printable ASCII.
        """
        if self.key == "none" or self.key_env is None:
            return ()
        accounts = [
            tuple(filter(None, map(str.strip, part.split(","))))
            for part in os.environ.get(self.key_env, "").split(";")
        ]
        accounts = [keys for keys in accounts if keys]
        if not accounts and self.key == "required":
            raise InputError(
                f"provider {self.name!r} needs an API key: set {self.key_env} (several keys of an "
                "account are separated by commas, accounts by semicolons), or leave out --provider "
                "to use the simulator."
            )
        for position, key in enumerate(itertools.chain(*accounts), 1):
            if not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(
                    f"{self.key_env}: key number {position} holds spaces or characters that no "
                    "HTTP header takes. Copy it again, without quotes."
                )
        return tuple(accounts)


def load_providers() -> dict[str, Provider]:
    """The built-in providers, updated by the file that EMODISTILL_PROVIDERS names."""
    path = os.environ.get(OVERRIDE_ENV)
    try:
        content = read_bytes(Path(path)) if path else b""
    except OSError as error:
        raise _unreadable(path, error) from None
    return dict(_providers_with(path, content))


def _unreadable(path: str | None, error: Exception) -> InputError:
    return InputError(f"{path}: no readable TOML file of providers ({brief(error)}).")


@functools.lru_cache(maxsize=8)
def _providers_with(path: str | None, content: bytes) -> dict[str, Provider]:
    """The built-in providers, updated by what the user's file holds, which may change."""
    text = resources.files("emodistill.llm").joinpath("providers.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    profiles = {name: list(table.pop("profiles", {}).items()) for name, table in tables.items()}
    if path:
        try:
            own = parse_toml(content)
        except ValueError as error:
            raise _unreadable(path, error) from None
        for name, table in own.items():
            if not isinstance(table, dict) or "name" in table:
                raise InputError(f"{path}: {name} must be a table, e.g. [{name}], without a name.")
            more = table.pop("profiles", {})
            if not isinstance(more, dict):
                raise InputError(
                    f'{path}: [{name}]: profiles must be tables, e.g. [{name}.profiles."*"].'
                )
            profiles.setdefault(name, []).extend(more.items())
            tables[name] = {**tables.get(name, {}), **table}
    providers = {}
    for name, table in tables.items():
        where = f"[{name}]"
        try:
            for pattern, profile in profiles[name]:
                where = f"[{name}.profiles.{pattern!r}]"
                msgspec.convert(profile, Profile)
            where = f"[{name}]"
            full = {"name": name, "profiles": profiles[name], **table}
            providers[name] = msgspec.convert(full, Provider)
        except msgspec.ValidationError as error:
            raise InputError(
                f"{path}: {where}: {error}. The package's llm/providers.toml says what each entry "
                "holds; prices are per million tokens."
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
    name = name or CUSTOM
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
        address = url.rpartition("@")[2]
        raise InputError(f"{where}: {brief(address)} is no URL ({error}).") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"{where}: the base URL must look like http://127.0.0.1:8000/v1 or https://…/v1, "
            f"not {url.rpartition('@')[2]!r}."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            f"{where}: the base URL of {parts.hostname} must hold no credentials and no query; "
            "keys go into the environment."
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path}"
