"""Chat completions over HTTP: the one socket outwards.

What goes wrong is of one of four kinds:

- a refusal (400 and most other 4xx, an answer that a filter withholds) concerns this request alone
  and is never repeated;
- trouble (429, 498, 5xx, a time-out, a cut or alien body) is met by trying again, with jittered
  backoff up to a ceiling; a 429, and a 402 that names a pause, first rest the key, or all keys of
  its account where the provider counts by account;
- a key may be bad (401, 402, a rest of more than MAX_REST_S) and is dropped, or may not do what is
  asked (403), so that the other keys are tried;
- a wrong setting (404, redirects, no live key, nobody listening) would meet every other request
  too, so it ends the job.

An error inside an HTTP 200 is what it says it is.

Nothing that a server sends is believed: answers are bounded in bytes, depth and digits (`replies`,
`untrusted`), and an answer without usable token counts costs what its length suggests.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import aiohttp
import stamina

from emodistill.llm.billing import Call, used_by, used_by_reply
from emodistill.llm.call_errors import (
    FINAL_KINDS,
    CeilingError,
    ExhaustedError,
    RefusedError,
    final_error,
    recorded_error,
)
from emodistill.llm.cassette import Recorder, Replayer
from emodistill.llm.fault_reader import FaultReader
from emodistill.llm.gate import Gate
from emodistill.llm.keys import ApiKey, KeyPool
from emodistill.llm.providers import Provider
from emodistill.llm.replies import FaultError, Reply
from emodistill.llm.token_scores import ScoredPosition
from emodistill.llm.transport import HttpAnswer, post, proxy_of
from emodistill.llm.usage import Completion, Purse, Usage
from emodistill.logs import fields

log = logging.getLogger("emodistill.llm")

logging.getLogger("stamina").addHandler(logging.NullHandler())  # we say ourselves what is retried

CONNECT_S = 10.0
"""For a connection: a server that is there accepts one at once, however busy it is."""
CHARS_PER_TOKEN = 24
"""More than any text has: what goes beyond it, a server that ignores `max_tokens` has sent."""
NUM_FIRST_CONTACTS = 3
"""Attempts at an address that has never answered: most likely it is wrong, so waiting is vain."""
BILLED_KINDS = ("cut", "silent", "broken", "alien")
"""Faults of an answer that a model has worked for."""

Message = Mapping[str, object]


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


class ChatClient:
    """An async context manager around one session; any number of `chat` calls may run at once.

    Args:
      accounts: API keys, account by account; those of the provider's environment variable unless
        given.
      model: whose limits count; those of any model of the provider unless given.
      max_in_flight: calls at the same time; fewer at first, and while the server is in trouble.
      retry: time-outs, attempts and the pauses between them.
      tape: a recorder keeps every call that is finished; a replayer answers every call, and
        nothing is ever connected to.

    `usage` counts all attempts so far and what the answers used. `cache`, where it is set, is
    asked before the server and told what that answers. Once the purse is empty, which may be that
    of several clients, every call raises CeilingError. `began_s` is when the first call was made.
    """

    def __init__(
        self,
        provider: Provider,
        accounts: Sequence[tuple[str, ...]] | None = None,
        *,
        model: str = "*",
        max_in_flight: int = 1_000,
        retry: RetryPolicy = RetryPolicy(),
        tape: Recorder | Replayer | None = None,
    ) -> None:
        self.provider = provider
        self.keys = KeyPool(
            provider.read_keys() if accounts is None else accounts,
            key_env=provider.key_env,
            limits=provider.profile(model).limits,
            first_rest_s=retry.backoff_s,
            max_rest_s=retry.max_backoff_s,
        )
        self.gate = Gate(max_in_flight)
        self.usage = Usage()
        self.cache: AnswerCache | None = None
        self.purse = Purse()
        self.url = f"{provider.base_url}/chat/completions"
        self._retry = retry
        self._tape = tape
        self._session: aiohttp.ClientSession | None = None
        self.began_s: float | None = None
        self._was_reached = False
        self._has_answered = False
        self._proxy = proxy_of(self.url)
        self._profile = functools.cache(provider.profile)  # asked for at every call
        self._errors = FaultReader(provider.dead_codes, self.keys.scrub)

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
            auto_decompress=False,  # `read_body` does it, within bounds
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
        call = self.call(
            messages,
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            sticky=sticky,
            answer_schema=answer_schema,
        )
        completion = self.cache.get(sticky, call.data) if self.cache else None
        if completion is None:
            completion = await self._answer(call)
            if self.cache:
                self.cache.add(sticky, call.data, completion)
        return completion

    def call(
        self,
        messages: Sequence[Message],
        *,
        model: str,
        temperature: float,
        max_tokens: int,
        seed: int | None = None,
        sticky: str = "",
        answer_schema: Mapping[str, Any] | None = None,
    ) -> Call:
        """What `chat` asks the server."""
        body = {"model": model, "messages": messages, "temperature": temperature}
        if seed is not None:
            body["seed"] = seed
        if answer_schema is not None:
            body |= self._profile(model).response_format(answer_schema)
        return self._made(body, max_tokens, sticky)

    def answered(self, call: Call, content: bytes) -> Completion:
        """The completion in the body of an HTTP 200 that has come otherwise than by `chat`, as in
        the results of a file batch; counted as one call.

        Raises:
          FaultError: there is none.
        """
        self._count(Usage(num_calls=1))
        try:
            answer = HttpAnswer(200, {"Content-Type": "application/json"}, content)
            return self._completion(self._errors.reply(answer), call, 0.0)
        except FaultError as fault:
            self._count_lost(call, fault)
            fault.detail = self._errors.shown(fault.detail)
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
        body = {"model": model, "messages": messages, "temperature": 0.0, "seed": 0, **extra}
        scored = await self._call(self._made(body, max_tokens, ""))
        self._has_answered = True
        return scored

    async def first_answer(
        self, messages: Sequence[Message], *, model: str, max_tokens: int
    ) -> Completion:
        """An answer that shows whether the model is there; never recorded.

        Later errors mean what they would mean without it, since the work's own calls are longer.

        Raises:
          RefusedError, ExhaustedError, ApiError: as `chat`.
        """
        body = {"model": model, "messages": messages, "temperature": 0.0, "seed": 0}
        return (await self._call(self._made(body, max_tokens, ""))).completion

    def _made(self, body: Mapping[str, Any], max_tokens: int, sticky: str) -> Call:
        profile = self._profile(body["model"])
        data = json.dumps(profile.body({**body, "stream": False}, max_tokens)).encode()
        return Call(data, body["model"], max_tokens + profile.thinking_tokens, sticky, profile)

    async def _answer(self, request: Call) -> Completion:
        """From a recording, or from the server and into one."""
        if isinstance(self._tape, Replayer):
            played = await self._tape.play(request.sticky, request.data)
            self._count(Usage(num_calls=1))
            if not isinstance(played, Completion):
                raise recorded_error(played.message, played.status)
            self._count(played.usage)
            return played
        if self.purse.is_empty:
            raise CeilingError(f"${self.purse.ceiling_usd:.2f} are spent.")
        try:
            completion = (await self._call(request)).completion
        except (RefusedError, ExhaustedError) as error:
            if self._tape is not None:
                status = error.status if isinstance(error, RefusedError) else None
                call = {"error": {"message": str(error), "status": status}}
                self._tape.add(request.sticky, request.data, call)
            raise
        self._has_answered = True
        if self._tape is not None:
            self._tape.add(request.sticky, request.data, {"answer": completion._asdict()})
        return completion

    def _count(self, used: Usage) -> None:
        self.usage = self.usage.plus(used)
        self.purse.spent_usd += used.cost_usd

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
        raise final_error(  # out here, so that the error has no context to show
            last, url=self.url, model=request.model, has_answered=self._has_answered
        )

    async def _with_some_key(self, request: Call, number: int) -> ScoredCompletion:
        """The `number`-th attempt; it goes on to another key where one is dead or may not."""
        async with self.gate:  # first, since a key that is got may rest or die while this waits
            return await self._inside_gate(request, number)

    async def _inside_gate(self, request: Call, number: int) -> ScoredCompletion:
        forbidden: dict[ApiKey, FaultError] = {}
        num_tokens = request.num_prompt_tokens + request.max_tokens
        sticky = request.sticky
        while (key := await self.keys.acquire(sticky, num_tokens, without=forbidden)) is not None:
            asked_at_s = time.monotonic()
            try:
                completion = await self._attempt(key, request)
            except FaultError as fault:
                fault.attempt = number
                self._log_fault(fault, key, sticky)
                if fault.is_of_limits:
                    self.keys.rest(key, asked_at_s, fault.retry_after_s or None)
                else:
                    self.keys.let_in(key, asked_at_s)
                if fault.kind == "dead":
                    self.keys.drop(key, fault.detail)
                elif fault.kind == "forbidden":
                    forbidden[key] = fault
                else:
                    if fault.kind in ("limited", "broken", "silent"):
                        self.gate.overloaded()
                    raise
            else:
                self.keys.let_in(key, asked_at_s)
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

    def _pause_after(self, error: Exception) -> bool | float:
        """For stamina: whether to try again, or after how many seconds where that is known."""
        if not isinstance(error, FaultError) or error.kind in FINAL_KINDS:
            return False
        is_new = error.kind == "unreachable" and not self._was_reached
        if is_new and error.attempt >= NUM_FIRST_CONTACTS:  # most likely a wrong address
            return False
        if error.attempt < self._retry.max_attempts:
            self._count(Usage(num_retries=1))
        return 0.0 if error.is_of_limits else True

    async def _attempt(self, key: ApiKey, request: Call) -> ScoredCompletion:
        if self._session is None:
            raise RuntimeError("ChatClient is an async context manager: async with ChatClient(…).")
        self._count(Usage(num_calls=1))
        if self.began_s is None:
            self.began_s = time.monotonic()
        started_s = time.perf_counter()
        headers = {**request.profile.headers, **key.headers}
        try:
            answer = await post(self._session, self.url, request.data, headers)
            latency_s = time.perf_counter() - started_s
            self._was_reached = True
            reply = self._errors.reply(answer)
        except FaultError as error:
            fault = error
        else:
            completion = self._completion(reply, request, latency_s)
            self.gate.went_well()
            return ScoredCompletion(completion, reply.scores)
        if fault.is_within_200:
            self._count_lost(request, fault)
        fault.detail = self._errors.shown(fault.detail)
        raise fault

    def _count_lost(self, request: Call, fault: FaultError) -> None:
        """What an HTTP 200 without a usable answer has used."""
        if not fault.status and fault.kind in BILLED_KINDS:
            # A model worked for it, so it will be billed, for as long an answer as was allowed.
            states_cost = self.provider.states_cost
            self._count(used_by(request, fault.usage, request.max_tokens, states_cost=states_cost))
        if fault.stated is not None:
            self._count(Usage(num_errors_in_200=1))

    def _completion(self, reply: Reply, request: Call, latency_s: float) -> Completion:
        """What a reply means, and costs.

        Raises:
          FaultError: a filter has withheld it, or it holds thoughts alone.
        """
        text = reply.text[: CHARS_PER_TOKEN * request.max_tokens]
        is_cut = reply.finish_reason == "length" or text != reply.text
        used = used_by_reply(request, reply, is_cut, states_cost=self.provider.states_cost)
        if used.num_estimated and not self.usage.num_estimated:
            log.warning("%s states no tokens; they, and costs, are estimated.", self.url)
        self._count(used._replace(latency_s=latency_s))
        if reply.is_filtered:
            raise FaultError("filtered", "a filter withheld the answer", 200)
        if is_cut and reply.is_only_thought:
            raise FaultError("thinking", self._thinking(request, used), 200)
        return Completion(
            text,
            used.prompt_tokens,
            used.completion_tokens,
            latency_s,
            used.cost_usd,
            "length" if is_cut else "stop",
        )

    def _thinking(self, request: Call, used: Usage) -> str:
        """What to say of a model that has thought until its room was full."""
        text = f"it only thought: {used.completion_tokens} tokens, and no text"
        if switch := request.profile.thinking_off:
            text += f", although the request said {json.dumps(dict(switch))}"
        return text
