"""A pool of API keys: sticky per dialogue, within limits, silent while resting, dropped when dead.

A dialogue keeps to one key (prompt caches live per key or account), chosen by rendezvous hashing,
so that a key that dies moves only its own dialogues. What is limited, and rests, is an allowance: a
key's own, or where a provider counts by account, that of all its keys. Secrets leave this module in
request headers only.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import math
import time
from collections.abc import Collection, Sequence
from operator import itemgetter
from typing import Annotated, Literal

import msgspec
from aiolimiter import AsyncLimiter

from emodistill.errors import ApiError
from emodistill.logs import fields

log = logging.getLogger("emodistill.llm")

NUM_SHOWN_CHARS = 4
"""Enough to tell one's own keys apart, and what OpenAI shows of them too."""
LONG_WAIT_S = 30.0
"""From which on a rest is worth telling the user."""
PERIOD_S = 6.0
"""A minute's limits are applied to each tenth of it, so that no minute sees twice its share."""
PROBE_S = 5.0
"""How long the first call after a rest goes alone; after that another call may probe."""
MAX_QUEUE_S = 0.1
"""If a dialogue's own key is busy for longer than this, it takes the key that is free first."""
FIRST_PER_S = 8.0
"""Calls in the first second where the growth of their number is limited."""

Rate = Annotated[float, msgspec.Meta(gt=0)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a provider allows a key, or all keys of an account or project; None is no limit."""

    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    requests_per_second: Rate | None = None
    growth: Annotated[float, msgspec.Meta(gt=1)] | None = None
    scope: Literal["account", "project", "key"] = "key"


UNLIMITED = Limits()


class Allowance:
    """Calls within limits, and none while it rests.

    After a rest calls go one by one until the server has let one in, so that a limit that still
    holds costs one call and not one of everybody who waits.

    Args:
      first_rest_s, max_rest_s: of rests whose length the server leaves open; each is twice as long
        as the one before.
    """

    def __init__(self, limits: Limits, *, first_rest_s: float, max_rest_s: float) -> None:
        self.ready_at_s = 0.0
        self._bounds_s = first_rest_s, max_rest_s
        self._rest_s = 0.0
        self._limited_at_s = -math.inf
        self._is_on_probation = False
        self._limiters = _limiter(limits.requests_per_minute), _limiter(limits.tokens_per_minute)
        self._pace = Pace(limits.requests_per_second, limits.growth)

    @property
    def is_ready(self) -> bool:
        """Whether a call may go now."""
        return self.ready_at_s <= time.monotonic()

    @property
    def queue_s(self) -> float:
        """How long the calls that wait for their turn will take to go."""
        return self._pace.queue_s

    async def admit(self, num_tokens: float) -> None:
        """Wait until the limits allow a request of so many tokens."""
        for limiter, amount in zip(self._limiters, (1.0, num_tokens), strict=True):
            while limiter is not None and amount > 0:  # a large request waits for several periods
                await limiter.acquire(min(amount, limiter.max_rate))
                amount -= limiter.max_rate
        await self._pace.admit()

    def begin(self) -> None:
        """A call goes; after a rest the others wait for how it fares."""
        if self._is_on_probation:
            self.ready_at_s = time.monotonic() + PROBE_S

    def rest(self, asked_at_s: float, seconds: float | None) -> float:
        """A call that was made at `asked_at_s` was one too many.

        Args:
          seconds: the rest that the server asks for.

        Returns: the seconds for which there is no call.
        """
        now = time.monotonic()
        if seconds is None:
            if asked_at_s < self._limited_at_s:  # made before the rest that is under way
                return max(0.0, self.ready_at_s - now)
            first_s, max_s = self._bounds_s
            seconds = self._rest_s = min(max_s, 2 * self._rest_s or first_s)
        is_probe = self._is_on_probation and asked_at_s >= self._limited_at_s
        before_s = 0.0 if is_probe else self.ready_at_s
        self.ready_at_s = max(before_s, now + seconds)
        self._limited_at_s = now
        self._is_on_probation = True
        return seconds

    def let_in(self, asked_at_s: float) -> bool:
        """A call that was made at `asked_at_s` was not one too many.

        Returns: whether that ends a probation.
        """
        if not self._is_on_probation or asked_at_s < self._limited_at_s:
            return False
        self._is_on_probation = False
        self._rest_s = self.ready_at_s = 0.0
        return True


class Pace:
    """Calls at even distances, no more of them a second than allowed.

    Args:
      growth: how many times the last second's calls a second may have.
    """

    def __init__(self, per_second: float | None, growth: float | None) -> None:
        self._per_second = math.inf if per_second is None else per_second
        self._growth = growth
        self._next_s = 0.0
        self._second = 0
        self._num_now = self._num_before = 0

    @property
    def queue_s(self) -> float:
        """How far off the next moment that is free is."""
        return max(0.0, self._next_s - time.monotonic())

    async def admit(self) -> None:
        """Wait for the next moment that is free."""
        now = time.monotonic()
        moment_s = max(now, self._next_s)
        second = int(moment_s)
        if second != self._second:
            self._num_before = self._num_now if second == self._second + 1 else 0
            self._second, self._num_now = second, 0
        rate = self._per_second
        if self._growth is not None:
            rate = min(rate, max(FIRST_PER_S, self._growth * self._num_before))
        self._num_now += 1
        self._next_s = moment_s + 1.0 / rate
        if moment_s > now:
            await asyncio.sleep(moment_s - now)


class ApiKey:
    """One key, shown by its last four characters only."""

    __slots__ = ("_secret", "allowance", "headers", "label", "salt")

    def __init__(self, secret: str, index: int, allowance: Allowance) -> None:
        self._secret = secret
        self.allowance = allowance
        self.label = (
            f"key …{secret[-NUM_SHOWN_CHARS:]}" if len(secret) >= 8 else f"key number {index + 1}"
        )
        self.headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self.salt = f"\x1f{index}".encode()

    def __repr__(self) -> str:
        return f"ApiKey({self.label})"

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


class KeyPool:
    """The keys of one provider, for calls to one model.

    Args:
      accounts: the keys of each; none at all are one nameless key: no Authorization header.
      limits: of each key, or of each account's together, as their scope says.
      first_rest_s, max_rest_s: see `Allowance`.
    """

    def __init__(
        self,
        accounts: Sequence[tuple[str, ...]],
        *,
        key_env: str | None = None,
        limits: Limits = UNLIMITED,
        first_rest_s: float = 0.5,
        max_rest_s: float = 30.0,
    ) -> None:
        def allowance() -> Allowance:
            return Allowance(limits, first_rest_s=first_rest_s, max_rest_s=max_rest_s)

        known: dict[str, ApiKey] = {}
        for secrets in accounts or [("",)]:
            shared = allowance()
            for secret in secrets:
                own = allowance() if limits.scope == "key" else shared
                known.setdefault(secret, ApiKey(secret, len(known), own))
        self._live = list(known.values())
        self._all = tuple(self._live)
        self._scope = limits.scope
        self._is_keyless = not accounts
        self._key_env = key_env
        self._deaths: list[str] = []
        self._changed = asyncio.Event()  # when somebody may be ready sooner than it was

    def __repr__(self) -> str:
        return f"KeyPool({len(self._live)} of {len(self._all)} keys live)"

    @property
    def num_live(self) -> int:
        return len(self._live)

    @property
    def num_cooling(self) -> int:
        """Live keys that get no call at the moment."""
        return sum(not key.allowance.is_ready for key in self._live)

    @property
    def num_allowances(self) -> int:
        """How many times what the limits say may be asked for."""
        return len({key.allowance for key in self._live})

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
            self._check_live()
            fit = [key for key in self._live if key not in without]
            if not fit:
                return None
            ready = [key for key in fit if key.allowance.is_ready]
            if not ready:
                await self._until(min(key.allowance.ready_at_s for key in fit))
                continue
            key = _highest(ready, sticky)
            if key.allowance.queue_s > MAX_QUEUE_S:
                key = min(ready, key=lambda key: key.allowance.queue_s)
            await key.allowance.admit(num_tokens)
            if key in self._live and key.allowance.is_ready:
                key.allowance.begin()
                return key

    def own(self, sticky: str) -> ApiKey:
        """The key that a dialogue would always have, were it always ready: for calls of which one
        account alone knows, whose key must be the same after a restart. Calls with it wait for
        `admit`.

        Raises:
          ApiError: no key is left alive.
        """
        self._check_live()
        return _highest(self._live, sticky)

    async def admit(self, key: ApiKey) -> None:
        """Wait until a call with this very key may go."""
        while True:
            while not key.allowance.is_ready:
                await self._until(key.allowance.ready_at_s)
            await key.allowance.admit(0.0)
            if key.allowance.is_ready:
                key.allowance.begin()
                return

    async def _until(self, ready_at_s: float) -> None:
        """Wait for a moment, or until somebody may be ready sooner."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), max(0.001, ready_at_s - time.monotonic()))

    def _check_live(self) -> None:
        if self._live:
            return
        variable = self._key_env or "the provider's key variable"
        if self._is_keyless:
            raise ApiError(f"the server asks for an API key ({self._deaths[0]}). Set {variable}.")
        raise ApiError(
            f"no API key is left: {'; '.join(self._deaths)}. Check {variable} and the account's "
            "balance, then start again."
        )

    def rest(self, key: ApiKey, asked_at_s: float, seconds: float | None = None) -> None:
        """A call with `key` was one too many; see `Allowance.rest`."""
        rest_s = key.allowance.rest(asked_at_s, seconds)
        self._wake()
        level = logging.WARNING if rest_s >= LONG_WAIT_S else logging.DEBUG
        extra = fields(event="key rests", key=key.label, seconds=round(rest_s, 3))
        whose = "" if self._scope == "key" else f" and the other keys of its {self._scope}"
        verb = "rests" if self._scope == "key" else "rest"
        log.log(level, "%s%s %s for %.3g s.", key.label, whose, verb, rest_s, extra=extra)

    def let_in(self, key: ApiKey, asked_at_s: float) -> None:
        """A call with `key` was not one too many."""
        if key.allowance.let_in(asked_at_s):
            self._wake()

    def drop(self, key: ApiKey, reason: str) -> None:
        """Take a dead key out for good."""
        if key in self._live:
            self._live.remove(key)
            self._wake()
            self._deaths.append(f"{key.label}: {reason}")
            extra = fields(event="key dropped", key=key.label)
            log.warning("%s is dropped: %s", key.label, reason, extra=extra)

    def _wake(self) -> None:
        """Have those who wait for a key look again."""
        self._changed.set()
        self._changed = asyncio.Event()


def _highest(keys: Sequence[ApiKey], sticky: str) -> ApiKey:
    """Of some keys, the one of highest rank for a dialogue, by rendezvous hashing."""
    name = sticky.encode()
    return max(keys, key=lambda key: hashlib.blake2b(name + key.salt, digest_size=8).digest())


def _limiter(per_minute: float | None) -> AsyncLimiter | None:
    if per_minute is None:
        return None
    in_period = per_minute * PERIOD_S / 60.0
    return AsyncLimiter(max(1.0, in_period), PERIOD_S * max(1.0, 1.0 / in_period))
