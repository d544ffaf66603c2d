"""What is known of a model at a provider: what a request to it has to say, its price and limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from fnmatch import fnmatchcase
from typing import Annotated, Any

import msgspec

from emodistill.errors import InputError
from emodistill.llm.keys import UNLIMITED, Limits
from emodistill.llm.prices import Price

NOTICE = timedelta(days=60)
"""So long before a model is withdrawn its use is warned of."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The entries are explained in providers.toml."""

    price: Price | None = None
    limits: Limits = UNLIMITED
    max_tokens_field: str = "max_tokens"
    add: Mapping[str, Any] = {}
    omit: tuple[str, ...] = ()
    headers: Mapping[str, str] = {}
    thinking_off: Mapping[str, Any] = {}
    thinking_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    json_schema: bool = False
    ends: date | None = None
    successor: str | None = None

    def body(self, body: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
        """A request's fields as this model takes them.

        Args:
          max_tokens: of the answer, without thoughts.
        """
        full = {**body, self.max_tokens_field: max_tokens + self.thinking_tokens}
        kept = {name: value for name, value in full.items() if name not in self.omit}
        return {**kept, **self.thinking_off, **self.add}

    def response_format(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The field of a request that holds the answer to a JSON Schema; none where the model can't
        be held to one."""
        if not self.json_schema:
            return {}
        named = {"name": "answer", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": named}}

    def notices(self, name: str, today: date) -> list[str]:
        """What to say of a model before it is called.

        Args:
          name: of the model, with its provider.

        Raises:
          InputError: it is no longer served.
        """
        told = []
        advice = f"use {self.successor}" if self.successor else "name another model"
        if self.ends is not None and today >= self.ends:
            raise InputError(
                f"{name} has not been served since {self.ends}; {advice}. If it still is, give it "
                "a later `ends` in a providers file of your own (EMODISTILL_PROVIDERS)."
            )
        if self.ends is not None and today >= self.ends - NOTICE:
            told.append(f"{name} ends on {self.ends}; {advice}.")
        if self.price is not None and (warning := self.price.age_warning(today)):
            told.append(f"{name}: {warning}.")
        return told


def merged_profile(tables: Iterable[tuple[str, Mapping[str, Any]]], model: str) -> Profile:
    """The profile of a model: of each entry, what the last matching table says.

    Args:
      tables: patterns of names, as fnmatch has them, and what they say.
    """
    entries: dict[str, Any] = {}
    for pattern, table in tables:
        if fnmatchcase(model.lower(), pattern.lower()):
            entries |= table
    return msgspec.convert(entries, Profile)
