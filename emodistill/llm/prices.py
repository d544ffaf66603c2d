"""What calls cost: a provider's prices per million tokens, with the hours that cost more."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal

import msgspec

MAX_AGE = timedelta(days=90)
"""Older prices are used all the same, with a warning."""
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

_PEAK = re.compile(rf"({'|'.join(DAYS)})-({'|'.join(DAYS)}) (\d\d)-(\d\d)")

Amount = Annotated[float, msgspec.Meta(ge=0)]


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a million tokens of each kind, in `currency`; providers.toml explains the entries."""

    input: Amount
    output: Amount
    cached: Amount | None = None
    cache_write: Amount | None = None
    batch: Amount | None = None
    currency: Literal["USD", "CNY"] = "USD"
    usd: Amount = 1.0
    peak: Amount = 1.0
    peak_hours: tuple[str, ...] = ()
    dated: date | None = None

    def __post_init__(self) -> None:
        for hours in self.peak_hours:
            match = _PEAK.fullmatch(hours)
            if match is None or not int(match[3]) < int(match[4]) <= 24:
                raise ValueError(f"peak_hours: {hours!r} is not like 'Mon-Fri 01-04'")
        if self.currency != "USD" and self.usd == 1.0:
            raise ValueError(f"usd must say how many US dollars one {self.currency} is")

    def cost_usd(
        self,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
        *,
        at: datetime | None = None,
    ) -> float:
        """Of a call; cached tokens, and those written to the cache, are among `prompt_tokens`.

        Args:
          at: when it was made; at no peak hour without it.
        """
        cached = self.input if self.cached is None else self.cached
        cache_write = self.input if self.cache_write is None else self.cache_write
        fresh_tokens = prompt_tokens - cached_tokens - cache_write_tokens
        amount = (
            fresh_tokens * self.input
            + cached_tokens * cached
            + cache_write_tokens * cache_write
            + completion_tokens * self.output
        )
        is_peak = at is not None and self.is_peak(at)
        return amount * self.usd * (self.peak if is_peak else 1.0) / 1e6

    def is_peak(self, at: datetime) -> bool:
        """Whether a moment lies in the hours that cost more, which are in UTC.

        Holidays are not known, and count as any other day.
        """
        at = at.astimezone(UTC)
        for match in filter(None, map(_PEAK.fullmatch, self.peak_hours)):
            first, last = DAYS.index(match[1]), DAYS.index(match[2])
            if first <= at.weekday() <= last and int(match[3]) <= at.hour < int(match[4]):
                return True
        return False

    def age_warning(self, today: date) -> str | None:
        """What to say of prices that are older than MAX_AGE."""
        if self.dated is None or today - self.dated <= MAX_AGE:
            return None
        return f"prices of {self.dated}, {(today - self.dated).days} days old; check them"
