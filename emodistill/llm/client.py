"""Chat completions over HTTP: the one socket outwards.

What a server does wrong falls into four kinds. A refusal (400 and most other 4xx) concerns this
request alone and is never repeated. A trouble (429, 5xx, a time-out, a cut or alien body) is
tried again with jittered backoff up to a ceiling. A key may be bad (401, 402: dropped) or not
allowed what is asked (403: the other keys are tried). A wrong setting (404, redirects, no live
key, nobody listening) would meet every other request too, so it ends the job.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import operator
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Protocol, Self

import aiohttp
import stamina

from emodistill.errors import ApiError, EmodistillError
from emodistill.llm.cassette import Recorder, Replayer
from emodistill.llm.gate import Gate
from emodistill.llm.keys import ApiKey, KeyPool
from emodistill.llm.providers import Provider
from emodistill.logs import fields

log = logging.getLogger("emodistill.llm")

logging.getLogger("stamina").addHandler(logging.NullHandler())  # we say ourselves what is retried

NUM_DETAIL_CHARS = 200
"""Of a server's own words in an error: a line or two of a terminal."""
BYTES_PER_TOKEN = 4
"""About, in English; a request's size in tokens is only needed for the limits of its key."""
FIRST_BYTE_S = 90.0
"""For a connected server to begin its answer, and between two parts of it."""
CONNECT_S = 10.0
"""For a connection: a server that is there accepts one at once, however busy it is."""
NUM_FIRST_CONTACTS = 3
"""Attempts at an address that has never answered: most likely it is wrong, so waiting is vain."""
KIND_OF_STATUS = {
    401: "dead",
    402: "dead",
    403: "forbidden",
    404: "misplaced",
    405: "misplaced",
    408: "broken",
    429: "limited",
}
"""All others go by their first digit."""
FINAL_KINDS = ("refused", "forbidden", "misplaced")

_MASKED = re.compile(r"\S*\*{3,}\S*")
"""A key with its middle blotted out, as OpenAI's own messages quote it."""

Message = Mapping[str, object]


class RefusedError(ApiError):
    """The server refused this request for good (a 400); other requests may well pass."""

    def __init__(self, message: str, status: int = 0) -> None:  # 0 until it is unpickled
        super().__init__(message)
        self.status = status


class CeilingError(EmodistillError):
    """The money that may be spent is spent; nothing was asked."""


class ExhaustedError(ApiError):
    """All attempts at this request met trouble; later ones may pass."""


class Usage(NamedTuple):
    """Attempts at calls, how many of them were repetitions, and what the answers used."""

    num_calls: int = 0
    num_retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    latency_s: float = 0.0
    """Of all answers together, however many came at once."""

    def plus(self, other: Usage) -> Usage:
        return Usage._make(map(operator.add, self, other))

    def minus(self, other: Usage) -> Usage:
        return Usage._make(map(operator.sub, self, other))


def total_usage(usages: Iterable[Usage]) -> Usage:
    return functools.reduce(Usage.plus, usages, Usage())


class Completion(NamedTuple):
    """A model's answer. `text` may be empty; `latency_s` is of the attempt that succeeded.

    Local models give the same record, at no cost.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    cost_usd: float

    @property
    def usage(self) -> Usage:
        """What the answer used, without the call."""
        used = (self.prompt_tokens, self.completion_tokens, self.cost_usd, self.latency_s)
        return Usage(0, 0, *used)


class AnswerCache(Protocol):
    """Answers that a dialogue (`sticky`) has got before, by the bytes of the request."""

    def get(self, dialogue: str, body: bytes) -> Completion | None: ...

    def add(self, dialogue: str, body: bytes, completion: Completion) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long an attempt at a request may take, and how often it is repeated."""

    timeout_s: float = 120.0
    """For one attempt, from connecting to the last byte."""
    max_attempts: int = 8
    """At one request, the first included."""
    backoff_s: float = 0.5
    """The first pause after trouble, doubled each time."""
    max_backoff_s: float = 30.0
    """Bound of a pause."""


@dataclass(eq=False)  # errors are hashed by identity
class _FaultError(Exception):
    """What went wrong with an attempt."""

    kind: str
    detail: str
    status: int = 0
    retry_after_s: float | None = None
    attempt: int = 0
    """Which attempt at its request it ended, from 1."""


_ADVICE = {
    "unreachable": "Check that the server runs and that the base URL is right.",
    "alien": (
        "Something answers there, but not as an OpenAI-compatible API: check the base URL, "
        "which usually ends in /v1."
    ),
    "cut": "Check the network or proxy between here and there, then start again.",
    "silent": "Lower --concurrency, or give the server more time.",
    "limited": "Lower --concurrency, or add keys (several are separated by commas).",
    "broken": "The server is in trouble; start again later, finished work is kept.",
    "forbidden": "Check that the account and its keys may use this model.",
    "misplaced": "Check the model's name and the base URL, which usually ends in /v1.",
}


class ChatClient:
    """An async context manager around one session; any number of `chat` calls may run at once.

    Args:
      keys: API keys; those of the provider's environment variable unless given.
      max_in_flight: calls at the same time; fewer for a while when the server is in trouble.
      retry: time-outs, attempts and the pauses between them.
      tape: a recorder keeps every call that is finished; a replayer answers every call, and
        nothing is ever connected to.

    `usage` counts all attempts so far and what the answers used. `cache`, where it is set, is
    asked before the server and told what that answers. Once `usage.cost_usd` reaches
    `ceiling_usd`, every call raises CeilingError.
    """

    def __init__(
        self,
        provider: Provider,
        keys: Sequence[str] | None = None,
        *,
        max_in_flight: int = 1_000,
        retry: RetryPolicy = RetryPolicy(),
        tape: Recorder | Replayer | None = None,
    ) -> None:
        self.provider = provider
        self.keys = KeyPool(
            provider.read_keys() if keys is None else keys,
            key_env=provider.key_env,
            limits=provider.limits,
        )
        self.gate = Gate(max_in_flight)
        self.usage = Usage()
        self.cache: AnswerCache | None = None
        self.ceiling_usd = math.inf
        self.url = f"{provider.base_url}/chat/completions"
        self._retry = retry
        self._silence_s = min(FIRST_BYTE_S, retry.timeout_s)
        self._tape = tape
        self._session: aiohttp.ClientSession | None = None
        self._first_call_s: float | None = None
        self._was_reached = False
        self._has_answered = False

    @property
    def health(self) -> str:
        """What a progress line should say of the API: trouble, calls per second, tokens so far."""
        parts = []
        usage = self.usage
        if usage.num_retries:
            parts.append(f"{usage.num_retries:,} of {usage.num_calls:,} calls repeated")
        if cooling := self.keys.num_cooling:
            parts.append(f"{cooling} of {self.keys.num_live} keys cooling")
        if self.gate.limit < self.gate.ceiling:
            parts.append(f"at most {int(self.gate.limit)} in flight")
        if self._first_call_s is not None:
            elapsed_s = max(time.monotonic() - self._first_call_s, 1e-3)
            parts.append(f"{usage.num_calls / elapsed_s:,.1f} calls/s")
        if num_tokens := usage.prompt_tokens + usage.completion_tokens:
            parts.append(f"{num_tokens / 1e6:.2f} M tokens")
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"ChatClient({self.url}, {self.keys!r})"

    async def __aenter__(self) -> Self:
        is_local = re.match(r"https?://(127\.|localhost|\[::1\])", self.url) is not None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=2 * self.gate.ceiling, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(
                total=self._retry.timeout_s,
                sock_connect=min(CONNECT_S, self._retry.timeout_s),
                sock_read=self._silence_s,
            ),
            headers={"Content-Type": "application/json", "Accept": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=not is_local,
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        model: str,
        temperature: float,
        max_tokens: int,
        seed: int | None = None,
        sticky: str = "",
    ) -> Completion:
        """One completion; `sticky` (a dialogue's id) picks the API key.

        Raises:
          RefusedError: the server refuses this request (400 and its like).
          ExhaustedError: trouble on every attempt.
          ApiError: nothing can work as things are set up: URL, model name, keys.
        """
        body: dict[str, Any] = {
            "model": model,
            "messages": messages,
            "temperature": temperature,
            self.provider.max_tokens_field: max_tokens,
        }
        if seed is not None:
            body["seed"] = seed
        body.update(self.provider.extra_body)
        data = json.dumps(body).encode()
        completion = self.cache.get(sticky, data) if self.cache else None
        if completion is None:
            completion = await self._answer(data, model, max_tokens, sticky)
            if self.cache:
                self.cache.add(sticky, data, completion)
        return completion

    async def _answer(self, data: bytes, model: str, max_tokens: int, sticky: str) -> Completion:
        """From a recording, or from the server and into one."""
        if isinstance(self._tape, Replayer):
            call = await self._tape.play(sticky, data)
            self._count(Usage(num_calls=1))
            if "error" in call:
                message, status = call["error"]["message"], call["error"]["status"]
                raise ExhaustedError(message) if status is None else RefusedError(message, status)
            completion = Completion(**call["answer"])
            self._count(completion.usage)
            return completion
        if self.usage.cost_usd >= self.ceiling_usd:
            raise CeilingError(f"${self.ceiling_usd:.2f} are spent.")
        num_tokens = len(data) / BYTES_PER_TOKEN + max_tokens
        try:
            completion = await self._call(data, model, sticky, num_tokens)
        except (RefusedError, ExhaustedError) as error:
            if self._tape is not None:
                status = error.status if isinstance(error, RefusedError) else None
                call = {"error": {"message": str(error), "status": status}}
                self._tape.add(sticky, data, call)
            raise
        if self._tape is not None:
            self._tape.add(sticky, data, {"answer": completion._asdict()})
        return completion

    def _count(self, used: Usage) -> None:
        self.usage = self.usage.plus(used)

    async def _call(self, data: bytes, model: str, sticky: str, num_tokens: float) -> Completion:
        try:
            return await self._with_some_key(data, model, sticky, num_tokens, 1)
        except _FaultError as fault:
            first = fault  # only now is the machinery of retries worth its time
        attempts = stamina.retry_context(
            on=self._pause_after,
            attempts=self._retry.max_attempts,
            timeout=None,
            wait_initial=self._retry.backoff_s,
            wait_max=self._retry.max_backoff_s,
            wait_jitter=self._retry.backoff_s,
        )
        try:
            async for attempt in attempts:
                with attempt:
                    if attempt.num == 1:
                        raise first
                    return await self._with_some_key(data, model, sticky, num_tokens, attempt.num)
        except _FaultError as fault:
            last = fault
        raise self._error(last, model)  # out here, so that the error has no context to show

    async def _with_some_key(
        self, data: bytes, model: str, sticky: str, num_tokens: float, number: int
    ) -> Completion:
        """The `number`-th attempt; it goes on to another key where one is dead or may not."""
        forbidden: dict[ApiKey, _FaultError] = {}
        while (key := await self.keys.acquire(sticky, num_tokens, without=forbidden)) is not None:
            try:
                async with self.gate:
                    if not key.is_ready:  # limited while this call waited for its turn
                        continue
                    completion = await self._attempt(key, data, model)
            except _FaultError as fault:
                fault.attempt = number
                self._log_fault(fault, key, sticky)
                if fault.kind == "dead":
                    self.keys.drop(key, fault.detail)
                elif fault.kind == "forbidden":
                    forbidden[key] = fault
                else:
                    self._slow_down(key, fault)
                    raise
            else:
                for other, fault in forbidden.items():  # the same request passes with this key
                    self.keys.drop(other, fault.detail)
                return completion
        raise next(reversed(forbidden.values()))

    def _log_fault(self, fault: _FaultError, key: ApiKey, sticky: str) -> None:
        log.debug(
            "%s: %s.",
            self.url,
            fault.detail,
            extra=fields(
                event="fault",
                kind=fault.kind,
                status=fault.status or None,
                attempt=fault.attempt,
                retry_after_s=fault.retry_after_s,
                key=key.label,
                dialogue=sticky,
            ),
        )

    def _slow_down(self, key: ApiKey, fault: _FaultError) -> None:
        """Cool the key where the server limits it, and let fewer calls into a server in trouble."""
        if fault.retry_after_s:
            self.keys.cool(key, fault.retry_after_s)
        elif fault.kind == "limited":
            pause_s = self._retry.backoff_s * 2 ** (fault.attempt - 1)
            self.keys.cool(key, min(self._retry.max_backoff_s, pause_s))
        if fault.kind in ("limited", "broken", "silent"):
            self.gate.overloaded()

    def _pause_after(self, error: Exception) -> bool | float:
        """For stamina: whether to try again, or after how many seconds where that is known."""
        if not isinstance(error, _FaultError) or error.kind in FINAL_KINDS:
            return False
        is_new = error.kind == "unreachable" and not self._was_reached
        if is_new and error.attempt >= NUM_FIRST_CONTACTS:  # most likely a wrong address
            return False
        if error.attempt < self._retry.max_attempts:
            self._count(Usage(num_retries=1))
        is_key_resting = error.retry_after_s or error.kind == "limited"
        return 0.0 if is_key_resting else True

    async def _attempt(self, key: ApiKey, data: bytes, model: str) -> Completion:
        if self._session is None:
            raise RuntimeError("ChatClient is an async context manager: async with ChatClient(…).")
        self._count(Usage(num_calls=1))
        if self._first_call_s is None:
            self._first_call_s = time.monotonic()
        started_s = time.perf_counter()
        try:
            async with self._session.post(
                self.url, data=data, headers=key.headers, allow_redirects=False
            ) as response:
                status, headers = response.status, response.headers
                content = await response.read()
        except aiohttp.ConnectionTimeoutError:
            raise _FaultError("unreachable", "no connection in time") from None
        except TimeoutError:
            raise _FaultError("silent", f"no answer within {self._silence_s:g} s") from None
        except (aiohttp.ClientConnectorError, aiohttp.ClientOSError) as error:
            reason = self.keys.scrub(str(error.strerror or type(error).__name__))
            raise _FaultError("unreachable", f"no connection ({reason})") from None
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
            detail = "the connection broke off before the answer was complete"
            raise _FaultError("cut", detail) from None
        except aiohttp.ClientError as error:
            detail = f"no valid HTTP answer ({type(error).__name__})"
            raise _FaultError("cut", detail) from None
        latency_s = time.perf_counter() - started_s
        self._was_reached = True
        if status != 200:
            raise self._fault(status, content, headers)
        completion = self._read(content, headers, latency_s, model)
        self.gate.went_well()
        return completion

    def _read(
        self, content: bytes, headers: Mapping[str, str], latency_s: float, model: str
    ) -> Completion:
        content_type = headers.get("Content-Type", "")
        if "json" not in content_type.lower():
            raise _FaultError("alien", f"content type {content_type[:60]!r} instead of JSON")
        try:
            answer = json.loads(content)
        except ValueError:
            raise _FaultError("cut", f"broken JSON ({len(content)} bytes)") from None
        try:
            text = answer["choices"][0]["message"].get("content") or ""
            if not isinstance(text, str):
                raise TypeError
            usage = answer.get("usage") or {}
            prompt_tokens = int(usage.get("prompt_tokens") or 0)
            completion_tokens = int(usage.get("completion_tokens") or 0)
        except (LookupError, TypeError, AttributeError, ValueError):
            detail = f"JSON without choices[0].message: {self._detail(content)}"
            raise _FaultError("alien", detail) from None
        if not text.isascii():  # half a surrogate pair, as of an emoji cut by max_tokens
            text = text.encode("utf-8", "replace").decode("utf-8")
        cost_usd = 0.0
        if price := self.provider.price(model):
            cached_tokens = min(prompt_tokens, _cached_tokens(usage))
            cost_usd = price.cost_usd(prompt_tokens, completion_tokens, cached_tokens)
        completion = Completion(text, prompt_tokens, completion_tokens, latency_s, cost_usd)
        self._count(completion.usage)
        self._has_answered = True
        return completion

    def _fault(self, status: int, content: bytes, headers: Mapping[str, str]) -> _FaultError:
        detail = f"HTTP {status}"
        if words := self._detail(content):
            detail += f": {words}"
        error = _error_in(content)
        code = str(error.get("code") or error.get("type")) if isinstance(error, dict) else None
        by_digit = "broken" if status >= 500 else "misplaced" if 300 <= status < 400 else "refused"
        kind = KIND_OF_STATUS.get(status, by_digit)
        if code in self.provider.dead_codes:
            kind = "dead"
        pause_s = retry_after_s(headers) if kind in ("limited", "broken") else None
        return _FaultError(kind, detail, status, pause_s)

    def _detail(self, content: bytes) -> str:
        """The server's own words, in a line, without any key that they may quote."""
        error = _error_in(content)
        if error is None:
            text = content[:4_000].decode("utf-8", "replace")
        else:
            text = str(error.get("message") if isinstance(error, dict) else error)
        text = " ".join(_MASKED.sub("…", self.keys.scrub(text)).split())
        return text if len(text) <= NUM_DETAIL_CHARS else text[:NUM_DETAIL_CHARS] + "…"

    def _error(self, fault: _FaultError, model: str) -> ApiError:
        if fault.kind == "refused" or (fault.kind == "forbidden" and self._has_answered):
            return RefusedError(
                f"{self.url} refused a request to {model}: {fault.detail}", fault.status
            )
        tried = f" after {fault.attempt} attempts" if fault.attempt > 1 else ""
        message = (
            f"{self.url} gave no usable answer for model {model}{tried}: {fault.detail}. "
            f"{_ADVICE[fault.kind]}"
        )
        is_alien = fault.kind == "alien" and not self._has_answered
        if is_alien or fault.kind in ("forbidden", "misplaced", "unreachable"):
            return ApiError(message)
        return ExhaustedError(message)


def _cached_tokens(usage: Mapping[str, Any]) -> int:
    """Prompt tokens out of the provider's cache, by OpenAI's or DeepSeek's name for them."""
    details = usage.get("prompt_tokens_details")
    count = details.get("cached_tokens") if isinstance(details, dict) else None
    count = usage.get("prompt_cache_hit_tokens") if count is None else count
    return count if isinstance(count, int) and count > 0 else 0


def _error_in(content: bytes) -> Any:
    """What an answer holds under `error`: an object, or words; None for anything else."""
    try:
        return json.loads(content)["error"]
    except (ValueError, LookupError, TypeError):
        return None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The pause that a server asks for, in seconds: `Retry-After` as number or HTTP date,
    or `retry-after-ms`; None where it asks for none that can be read."""
    for name, scale in (("retry-after-ms", 1e-3), ("Retry-After", 1.0)):
        try:
            pause_s = scale * float(headers.get(name, ""))
        except ValueError:
            continue
        if math.isfinite(pause_s):
            return max(0.0, pause_s)
    try:
        moment = parsedate_to_datetime(headers.get("Retry-After", ""))
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
