"""A pool of API keys: sticky per dialogue, within limits, silent while cooling, dropped when dead.

A dialogue keeps to one key (prompt caches live per key), chosen by rendezvous hashing, so that a
key that dies moves only its own dialogues. Secrets leave this module in request headers only.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import math
import time
from collections.abc import Collection, Sequence
from operator import itemgetter
from typing import Annotated

import msgspec
from aiolimiter import AsyncLimiter

from emodistill.errors import ApiError
from emodistill.logs import fields
from emodistill.seeding import stream

log = logging.getLogger("emodistill.llm")

NUM_SHOWN_CHARS = 4
"""Enough to tell one's own keys apart, and what OpenAI shows of them too."""
LONG_WAIT_S = 30.0
"""From which on a rest is worth telling the user."""
PERIOD_S = 6.0
"""A minute's limits are applied to each tenth of it, so that no minute sees twice its share."""


Rate = Annotated[float, msgspec.Meta(gt=0)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a provider allows each key within a minute; None is no limit."""

    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None


UNLIMITED = Limits()


class ApiKey:
    """One key, shown by its last four characters only."""

    __slots__ = ("_limiters", "_secret", "headers", "label", "ready_at_s", "salt")

    def __init__(self, secret: str, index: int, limits: Limits = UNLIMITED) -> None:
        self._secret = secret
        self.label = (
            f"key …{secret[-NUM_SHOWN_CHARS:]}" if len(secret) >= 8 else f"key number {index + 1}"
        )
        self.headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self.salt = f"\x1f{index}".encode()
        self.ready_at_s = 0.0
        self._limiters = [_limiter(limit) for limit in msgspec.structs.astuple(limits)]

    def __repr__(self) -> str:
        return f"ApiKey({self.label})"

    @property
    def is_ready(self) -> bool:
        """Whether it may be called with now: not cooling."""
        return self.ready_at_s <= time.monotonic()

    def scrub(self, text: str) -> str:
        """`text` with this key, should a server echo it or a part of it, replaced by its label."""
        if len(self._secret) <= NUM_SHOWN_CHARS:
            return text.replace(self._secret, f"<{self.label}>") if self._secret else text
        size = NUM_SHOWN_CHARS + 1
        is_secret = [False] * len(text)
        for start in range(len(text) - NUM_SHOWN_CHARS):
            if text[start : start + size] in self._secret:
                is_secret[start : start + size] = [True] * size
        runs = itertools.groupby(zip(is_secret, text, strict=True), key=itemgetter(0))
        return "".join(
            f"<{self.label}>" if is_hidden else "".join(letter for _, letter in run)
            for is_hidden, run in runs
        )

    async def admit(self, num_tokens: float) -> None:
        """Wait until the key's limits allow a request of so many tokens."""
        for limiter, amount in zip(self._limiters, (1.0, num_tokens), strict=True):
            while limiter is not None and amount > 0:  # a large request waits for several periods
                await limiter.acquire(min(amount, limiter.max_rate))
                amount -= limiter.max_rate


class KeyPool:
    """The keys of one provider. An empty `secrets` is one nameless key: no Authorization header."""

    def __init__(
        self, secrets: Sequence[str], *, key_env: str | None = None, limits: Limits = UNLIMITED
    ) -> None:
        names = list(dict.fromkeys(secrets)) or [""]
        self._live = [ApiKey(secret, i, limits) for i, secret in enumerate(names)]
        self._all = tuple(self._live)
        self._is_keyless = not secrets
        self._key_env = key_env
        self._deaths: list[str] = []
        self._rng = stream(0, "key-wake-up")

    def __repr__(self) -> str:
        return f"KeyPool({len(self._live)} of {len(self._all)} keys live)"

    @property
    def num_live(self) -> int:
        return len(self._live)

    @property
    def num_cooling(self) -> int:
        """Live keys that get no call at the moment."""
        now = time.monotonic()
        return sum(key.ready_at_s > now for key in self._live)

    def scrub(self, text: str) -> str:
        for key in self._all:
            text = key.scrub(text)
        return text

    async def acquire(
        self, sticky: str, num_tokens: float = 0.0, without: Collection[ApiKey] = ()
    ) -> ApiKey | None:
        """The key to call with: the dialogue's own, or while that cools the next in its order.

        Waits while all keys cool, and while the chosen one is at its limits.

        Args:
          num_tokens: of the request and its answer, about.
          without: keys that won't do for this request.

        Returns:
          None where `without` holds every live key.

        Raises:
          ApiError: no key is left alive.
        """
        while True:
            if not self._live:
                variable = self._key_env or "the provider's key variable"
                if self._is_keyless:
                    raise ApiError(
                        f"the server asks for an API key ({self._deaths[0]}). Set {variable}."
                    )
                raise ApiError(
                    f"no API key is left: {'; '.join(self._deaths)}. Check {variable} and the "
                    "account's balance, then start again."
                )
            fit = [key for key in self._live if key not in without]
            if not fit:
                return None
            now = time.monotonic()
            ready = [key for key in fit if key.ready_at_s <= now]
            if not ready:
                wait_s = min(key.ready_at_s for key in fit) - now
                # Those who waited together shouldn't all knock in the same millisecond.
                spread_s = self._rng.uniform(0.001, min(1.0, 0.01 + 0.1 * wait_s))
                await asyncio.sleep(wait_s + spread_s)
                continue
            name = sticky.encode()
            # Rendezvous hashing: of the keys that are ready, the one of highest rank.
            key = max(
                ready, key=lambda key: hashlib.blake2b(name + key.salt, digest_size=8).digest()
            )
            await key.admit(num_tokens)
            if key in self._live and key.is_ready:
                return key

    def cool(self, key: ApiKey, seconds: float) -> None:
        """Give `key` no call for `seconds`; a longer rest that it already has stays."""
        key.ready_at_s = max(key.ready_at_s, time.monotonic() + seconds)
        level = logging.WARNING if seconds >= LONG_WAIT_S else logging.DEBUG
        extra = fields(event="key rests", key=key.label, seconds=round(seconds, 3))
        log.log(level, "%s rests for %.3g s.", key.label, seconds, extra=extra)

    def drop(self, key: ApiKey, reason: str) -> None:
        """Take a dead key out for good."""
        if key in self._live:
            self._live.remove(key)
            key.ready_at_s = math.inf
            self._deaths.append(f"{key.label}: {reason}")
            extra = fields(event="key dropped", key=key.label)
            log.warning("%s is dropped: %s", key.label, reason, extra=extra)


def _limiter(per_minute: float | None) -> AsyncLimiter | None:
    if per_minute is None:
        return None
    in_period = per_minute * PERIOD_S / 60.0
    return AsyncLimiter(max(1.0, in_period), PERIOD_S * max(1.0, 1.0 / in_period))
