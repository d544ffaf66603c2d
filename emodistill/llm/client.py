"""Chat completions over HTTP: the one socket outwards.

What goes wrong is of one of four kinds:

- a refusal (400 and most other 4xx, an answer that a filter withholds) concerns this request alone
  and is never repeated;
- trouble (429, 5xx, a time-out, a cut or alien body) is met by trying again, with jittered backoff
  up to a ceiling;
- a key may be bad (401, 402, a rest of more than MAX_REST_S) and is dropped, or may not do what is
  asked (403), so that the other keys are tried;
- a wrong setting (404, redirects, no live key, nobody listening) would meet every other request
  too, so it ends the job.

An error inside an HTTP 200 is what it says it is.

Nothing that a server sends is believed: answers are bounded in bytes, depth and digits (`replies`,
`untrusted`), and an answer without usable token counts costs what its length suggests.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import aiohttp
import stamina

from emodistill.errors import ApiError, EmodistillError
from emodistill.llm.cassette import Recorder, Replayer
from emodistill.llm.gate import Gate
from emodistill.llm.keys import ApiKey, KeyPool
from emodistill.llm.providers import Provider
from emodistill.llm.replies import (
    FaultError,
    Reply,
    ServerError,
    StatedUsage,
    kind_of,
    read_reply,
    server_error,
)
from emodistill.llm.token_scores import ScoredPosition
from emodistill.llm.transport import proxy_of, read_body, retry_after_s
from emodistill.llm.usage import Completion, Usage
from emodistill.logs import fields
from emodistill.untrusted import parse_json, printable

log = logging.getLogger("emodistill.llm")

logging.getLogger("stamina").addHandler(logging.NullHandler())  # we say ourselves what is retried

NUM_DETAIL_CHARS = 200
"""Of a server's own words in an error: a line or two of a terminal."""
BYTES_PER_TOKEN = 4
"""About, in English; for the limits of a key, and for costs where a server states no usage."""
CONNECT_S = 10.0
"""For a connection: a server that is there accepts one at once, however busy it is."""
MAX_REST_S = 900.0
"""The longest rest that a key is kept for; one that is told to rest for longer is out."""
CHARS_PER_TOKEN = 24
"""More than any text has: what goes beyond it, a server that ignores `max_tokens` has sent."""
NUM_FIRST_CONTACTS = 3
"""Attempts at an address that has never answered: most likely it is wrong, so waiting is vain."""
FINAL_KINDS = ("refused", "filtered", "forbidden", "misplaced")

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


class AnswerCache(Protocol):
    """Answers that a dialogue (`sticky`) has got before, by the bytes of the request."""

    def get(self, dialogue: str, body: bytes) -> Completion | None: ...

    def add(self, dialogue: str, body: bytes, completion: Completion) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long an attempt at a request may take, and how often it is repeated."""

    timeout_s: float = 120.0
    """For one attempt, from connecting to the last byte; a server that thinks first may stay silent
    all that time."""
    max_attempts: int = 8
    """At one request, the first included."""
    backoff_s: float = 0.5
    """The first pause after trouble, doubled each time."""
    max_backoff_s: float = 30.0
    """Bound of a pause."""


class ScoredCompletion(NamedTuple):
    """An answer, and the log-probs of its tokens; none where the server states none."""

    completion: Completion
    scores: tuple[ScoredPosition, ...]


class Call(NamedTuple):
    """One call: its body, and what is known of it without reading that."""

    data: bytes
    model: str
    max_tokens: int
    sticky: str = ""
    price_share: float = 1.0
    """What is left of the price, as where it is asked by file batch."""

    @property
    def num_prompt_tokens(self) -> int:
        """About how many tokens the prompt has."""
        return len(self.data) // BYTES_PER_TOKEN


_ADVICE = {
    "unreachable": "Check that the server runs and that the base URL is right.",
    "foreign": (
        "A web page answers there, no API: check the base URL, which usually ends in /v1, and "
        "whether a proxy or a login page is in between."
    ),
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
        self._tape = tape
        self._session: aiohttp.ClientSession | None = None
        self._first_call_s: float | None = None
        self._was_reached = False
        self._has_answered = False
        self._proxy = proxy_of(self.url)

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
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=2 * self.gate.ceiling, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(
                total=self._retry.timeout_s,
                sock_connect=min(CONNECT_S, self._retry.timeout_s),
            ),
            headers={
                "Content-Type": "application/json",
                "Accept": "application/json",
                "Accept-Encoding": "gzip, deflate",  # what `read_body` unpacks
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # `_body` does it, within bounds
            proxy=self._proxy,  # not trust_env, which would send passwords out of ~/.netrc
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
        answer_schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        """One completion; `sticky` (a dialogue's id) picks the API key.

        Args:
          answer_schema: the JSON Schema of the answer, for servers that hold their models to one.

        Raises:
          RefusedError: the server refuses this request (400 and its like).
          ExhaustedError: trouble on every attempt.
          ApiError: nothing can work as things are set up: URL, model name, keys.
        """
        data = self.body(
            messages,
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            extra=self.provider.response_format(answer_schema),
        )
        completion = self.cache.get(sticky, data) if self.cache else None
        if completion is None:
            completion = await self._answer(Call(data, model, max_tokens, sticky))
            if self.cache:
                self.cache.add(sticky, data, completion)
        return completion

    def answered(self, call: Call, content: bytes) -> Completion:
        """The completion in the body of an HTTP 200 that has come otherwise than by `chat`, as in
        the results of a file batch; counted as one call.

        Raises:
          FaultError: there is none.
        """
        self._count(Usage(num_calls=1))
        try:
            return self._completion(self._read(content, {}), call, 0.0)
        except FaultError as fault:
            self._count_lost(call, fault)
            fault.detail = self._shown(fault.detail)
            raise

    async def scored_chat(
        self,
        messages: Sequence[Message],
        *,
        model: str,
        max_tokens: int,
        extra: Mapping[str, Any],
    ) -> ScoredCompletion:
        """The likeliest completion, with what the server says of its tokens; never recorded.

        Args:
          extra: fields of the request that ask for log-probs.

        Raises:
          RefusedError, ExhaustedError, ApiError: as `chat`.
        """
        data = self.body(
            messages, model=model, temperature=0.0, max_tokens=max_tokens, seed=0, extra=extra
        )
        return await self._call(Call(data, model, max_tokens, ""))

    def body(
        self,
        messages: Sequence[Message],
        *,
        model: str,
        temperature: float,
        max_tokens: int,
        seed: int | None,
        extra: Mapping[str, Any] | None = None,
    ) -> bytes:
        """The body of a request, as JSON."""
        body: dict[str, Any] = {
            "model": model,
            "messages": messages,
            "temperature": temperature,
            "stream": False,
            self.provider.max_tokens_field: max_tokens,
        }
        if seed is not None:
            body["seed"] = seed
        body.update(self.provider.extra_body)
        body.update(extra or {})
        return json.dumps(body).encode()

    async def _answer(self, request: Call) -> Completion:
        """From a recording, or from the server and into one."""
        if isinstance(self._tape, Replayer):
            call = await self._tape.play(request.sticky, request.data)
            self._count(Usage(num_calls=1))
            if not isinstance(call, Completion):
                message, status = call.message, call.status
                raise ExhaustedError(message) if status is None else RefusedError(message, status)
            self._count(call.usage)
            return call
        if self.usage.cost_usd >= self.ceiling_usd:
            raise CeilingError(f"${self.ceiling_usd:.2f} are spent.")
        try:
            completion = (await self._call(request)).completion
        except (RefusedError, ExhaustedError) as error:
            if self._tape is not None:
                status = error.status if isinstance(error, RefusedError) else None
                call = {"error": {"message": str(error), "status": status}}
                self._tape.add(request.sticky, request.data, call)
            raise
        if self._tape is not None:
            self._tape.add(request.sticky, request.data, {"answer": completion._asdict()})
        return completion

    def _count(self, used: Usage) -> None:
        self.usage = self.usage.plus(used)

    async def _call(self, request: Call) -> ScoredCompletion:
        try:
            return await self._with_some_key(request, 1)
        except FaultError as fault:
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
                    return await self._with_some_key(request, attempt.num)
        except FaultError as fault:
            last = fault
        raise self._error(last, request.model)  # out here, so that the error has no context to show

    async def _with_some_key(self, request: Call, number: int) -> ScoredCompletion:
        """The `number`-th attempt; it goes on to another key where one is dead or may not."""
        forbidden: dict[ApiKey, FaultError] = {}
        num_tokens = request.num_prompt_tokens + request.max_tokens
        sticky = request.sticky
        while (key := await self.keys.acquire(sticky, num_tokens, without=forbidden)) is not None:
            try:
                async with self.gate:
                    if not key.is_ready:  # limited while this call waited for its turn
                        continue
                    completion = await self._attempt(key, request)
            except FaultError as fault:
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

    def _log_fault(self, fault: FaultError, key: ApiKey, sticky: str) -> None:
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

    def _slow_down(self, key: ApiKey, fault: FaultError) -> None:
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
        if not isinstance(error, FaultError) or error.kind in FINAL_KINDS:
            return False
        is_new = error.kind == "unreachable" and not self._was_reached
        if is_new and error.attempt >= NUM_FIRST_CONTACTS:  # most likely a wrong address
            return False
        if error.attempt < self._retry.max_attempts:
            self._count(Usage(num_retries=1))
        is_key_resting = error.retry_after_s or error.kind == "limited"
        return 0.0 if is_key_resting else True

    async def _attempt(self, key: ApiKey, request: Call) -> ScoredCompletion:
        if self._session is None:
            raise RuntimeError("ChatClient is an async context manager: async with ChatClient(…).")
        self._count(Usage(num_calls=1))
        if self._first_call_s is None:
            self._first_call_s = time.monotonic()
        started_s = time.perf_counter()
        status = 0
        try:
            async with self._session.post(
                self.url, data=request.data, headers=key.headers, allow_redirects=False
            ) as response:
                status, headers = response.status, response.headers
                try:
                    content = await read_body(response)
                except (FaultError, aiohttp.ClientPayloadError):
                    if status == 200:
                        raise
                    content = b""  # the status says what is wrong
            latency_s = time.perf_counter() - started_s
            self._was_reached = True
            if status != 200:
                raise self._fault(status, _stated_error(content), content, headers)
            content_type = headers.get("Content-Type", "")
            if "json" not in content_type.lower():
                is_page = "html" in content_type.lower()
                wrong = f"content type {content_type[:60]!r} instead of JSON"
                raise FaultError("foreign" if is_page else "alien", wrong)
            reply = self._read(content, headers)
        except aiohttp.ConnectionTimeoutError:
            fault = FaultError("unreachable", "no connection in time")
        except TimeoutError:
            fault = FaultError("silent", f"no answer within {self._retry.timeout_s:g} s")
        except (aiohttp.ClientConnectorError, aiohttp.ClientOSError) as error:
            reason = str(error.strerror or type(error).__name__)
            fault = FaultError("unreachable", f"no connection ({reason})")
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
            fault = FaultError("cut", "the connection broke off before the answer was complete")
        except aiohttp.ClientError as error:
            fault = FaultError("cut", f"no valid HTTP answer ({type(error).__name__})")
        except FaultError as error:
            fault = error
        else:
            completion = self._completion(reply, request, latency_s)
            self.gate.went_well()
            return ScoredCompletion(completion, reply.scores)
        if status == 200:
            self._count_lost(request, fault)
        fault.detail = self._shown(fault.detail)
        raise fault

    def _count_lost(self, request: Call, fault: FaultError) -> None:
        """A model worked for an answer that came to nothing, so it will be billed, for as long an
        answer as was allowed."""
        if fault.kind in ("cut", "silent", "broken", "alien") and not fault.status:
            self._count(self._used(request, fault.usage, request.max_tokens))

    def _read(self, content: bytes, headers: Mapping[str, str]) -> Reply:
        """The reply in an answer; an error that it states is taken as if HTTP had said so."""
        try:
            return read_reply(content)
        except FaultError as fault:
            if (error := fault.stated) is not None:
                self._count(Usage(num_errors_in_200=1))
                told = self._fault(error.status or 500, error, content, headers)
                told.detail = f"HTTP 200 with an error in it: {self._words(error, content)}"
                raise told from None
            if fault.kind == "alien":
                fault.detail += f": {self._words(None, content)}"
            raise

    def _completion(self, reply: Reply, request: Call, latency_s: float) -> Completion:
        """What a reply means, and costs.

        Raises:
          FaultError: a filter has withheld it.
        """
        text = reply.text[: CHARS_PER_TOKEN * request.max_tokens]
        is_cut = reply.finish_reason == "length" or text != reply.text
        num_tokens = math.ceil(reply.num_written / BYTES_PER_TOKEN)
        used = self._used(
            request, reply.usage, max(num_tokens, request.max_tokens) if is_cut else num_tokens
        )
        if used.num_estimated and not self.usage.num_estimated:
            log.warning("%s states no tokens; they, and costs, are estimated.", self.url)
        self._count(
            used._replace(
                latency_s=latency_s,
                num_cut=int(is_cut),
                num_filtered=int(reply.is_filtered),
                num_thinking=int(reply.is_thinking),
                num_in_parts=int(reply.is_in_parts),
            )
        )
        self._has_answered = True
        if reply.is_filtered:
            raise FaultError("filtered", "a filter withheld the answer", 200)
        return Completion(
            text,
            used.prompt_tokens,
            used.completion_tokens,
            latency_s,
            used.cost_usd,
            "length" if is_cut else "stop",
        )

    def _used(self, request: Call, stated: StatedUsage, num_completion_tokens: int) -> Usage:
        """The tokens and the cost of an answer.

        Args:
          num_completion_tokens: the estimate, where the server states none.
        """
        prompt_tokens, completion_tokens, cached_tokens = stated
        is_estimated = prompt_tokens is None or completion_tokens is None
        if prompt_tokens is None:
            prompt_tokens = request.num_prompt_tokens
        if completion_tokens is None:
            completion_tokens = num_completion_tokens
        cost_usd = 0.0
        if price := self.provider.price(request.model):
            cached_tokens = min(prompt_tokens, cached_tokens)
            full_usd = price.cost_usd(prompt_tokens, completion_tokens, cached_tokens)
            cost_usd = request.price_share * full_usd
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost_usd=cost_usd,
            num_estimated=int(is_estimated),
        )

    def _fault(
        self, status: int, error: ServerError | None, content: bytes, headers: Mapping[str, str]
    ) -> FaultError:
        detail = f"HTTP {status}"
        if words := self._words(error, content):
            detail += f": {words}"
        is_dead = error is not None and error.code in self.provider.dead_codes
        kind = "dead" if is_dead else kind_of(status)
        pause_s = retry_after_s(headers) if kind in ("limited", "broken") else None
        if pause_s is not None and pause_s > MAX_REST_S:
            detail += f" (asks for a rest of {pause_s / 3600:,.1f} hours)"
            kind, pause_s = "dead", None
        return FaultError(kind, detail, status, pause_s)

    def _words(self, error: ServerError | None, content: bytes) -> str:
        """The server's own words, in a line, without any key that they may quote."""
        stated = content[:4_000].decode("utf-8", "replace") if error is None else error.message
        text = self._shown(stated[:4_000])
        return text if len(text) <= NUM_DETAIL_CHARS else text[:NUM_DETAIL_CHARS] + "…"

    def _shown(self, text: str) -> str:
        """A server's words as they may be shown: in a line, printable, without any key, one with
        its middle blotted out included, as OpenAI's own messages quote it."""
        words = self.keys.scrub(printable(text)).split()
        return " ".join("…" if "***" in word else word for word in words)

    def _error(self, fault: FaultError, model: str) -> ApiError:
        is_refused = fault.kind in ("refused", "filtered")
        if is_refused or (fault.kind == "forbidden" and self._has_answered):
            return RefusedError(
                f"{self.url} refused a request to {model}: {fault.detail}", fault.status
            )
        tried = f" after {fault.attempt} attempts" if fault.attempt > 1 else ""
        message = (
            f"{self.url} gave no usable answer for model {model}{tried}: {fault.detail}. "
            f"{_ADVICE[fault.kind]}"
        )
        is_alien = fault.kind in ("alien", "foreign") and not self._has_answered
        if is_alien or fault.kind in ("forbidden", "misplaced", "unreachable"):
            return ApiError(message)
        return ExhaustedError(message)


def _stated_error(content: bytes) -> ServerError | None:
    """The error that a body states, if it is JSON that states one."""
    try:
        return server_error(parse_json(content))
    except ValueError:
        return None
