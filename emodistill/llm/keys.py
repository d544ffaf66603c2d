"""A pool of API keys: sticky per dialogue, silent while cooling, dropped when dead.

A dialogue keeps to one key (prompt caches live per key), chosen by rendezvous hashing, so that a
key that dies moves only its own dialogues. Secrets leave this module in request headers only.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Sequence

from emodistill.errors import ApiError
from emodistill.seeding import stream

log = logging.getLogger("emodistill.llm")

LONG_WAIT_S = 30.0


class ApiKey:
    """One key, shown by its last four characters only."""

    __slots__ = ("_secret", "headers", "label", "ready_at_s", "salt")

    def __init__(self, secret: str, index: int) -> None:
        self._secret = secret
        self.label = f"key …{secret[-4:]}" if len(secret) >= 8 else f"key number {index + 1}"
        self.headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self.salt = f"\x1f{index}".encode()
        self.ready_at_s = 0.0

    def __repr__(self) -> str:
        return f"ApiKey({self.label})"

    def scrub(self, text: str) -> str:
        """`text` with this key, should a server echo it, replaced by its label."""
        return text.replace(self._secret, f"<{self.label}>") if self._secret else text


class KeyPool:
    """The keys of one provider. An empty `secrets` is one nameless key: no Authorization header."""

    def __init__(self, secrets: Sequence[str], *, key_env: str | None = None) -> None:
        self._live = [ApiKey(secret, i) for i, secret in enumerate(dict.fromkeys(secrets) or [""])]
        self._all = tuple(self._live)
        self._is_keyless = not secrets
        self._key_env = key_env
        self._deaths: list[str] = []
        self._rng = stream(0, "key-wake-up")

    def __repr__(self) -> str:
        return f"KeyPool({len(self._live)} of {len(self._all)} keys live)"

    def scrub(self, text: str) -> str:
        for key in self._all:
            text = key.scrub(text)
        return text

    async def acquire(self, sticky: str) -> ApiKey:
        """The key to call with: the dialogue's own, or while that cools the next in its order.

        Waits while all keys cool.

        Raises:
          ApiError: no key is left alive.
        """
        while True:
            if not self._live:
                raise ApiError(self._no_key_left())
            now = time.monotonic()
            ready = [key for key in self._live if key.ready_at_s <= now]
            if len(ready) == 1:
                return ready[0]
            if ready:
                name = sticky.encode()
                return max(ready, key=lambda key: _rank(name + key.salt))
            wait_s = min(key.ready_at_s for key in self._live) - now
            # Those who waited together shouldn't all knock in the same millisecond.
            await asyncio.sleep(wait_s + self._rng.uniform(0.001, min(1.0, 0.01 + 0.1 * wait_s)))

    def cool(self, key: ApiKey, seconds: float) -> None:
        """Give `key` no call for `seconds`; a longer rest that it already has stays."""
        key.ready_at_s = max(key.ready_at_s, time.monotonic() + seconds)
        if seconds >= LONG_WAIT_S:
            log.warning("%s rests for %.0f s, as the server asked.", key.label, seconds)

    def drop(self, key: ApiKey, reason: str) -> None:
        """Take a dead key out for good."""
        if key in self._live:
            self._live.remove(key)
            self._deaths.append(f"{key.label}: {reason}")
            log.warning("%s is dropped: %s", key.label, reason)

    def _no_key_left(self) -> str:
        variable = f" {self._key_env}" if self._key_env else " the provider's key variable"
        if self._is_keyless:
            return f"the server asks for an API key ({self._deaths[0]}). Set{variable}."
        return (
            f"no API key is left: {'; '.join(self._deaths)}. Check{variable} and the account's "
            "balance, then start again."
        )


def _rank(name: bytes) -> bytes:
    return hashlib.blake2b(name, digest_size=8).digest()
