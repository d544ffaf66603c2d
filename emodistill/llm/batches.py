"""File batches: many requests in one file, answered within a day for less money.

The calls are those of OpenAI, which DashScope has taken over: a file of requests goes up, a batch
is made of it, and when that has ended, one file has the answers and another one the errors, each in
any order, line by line under the name that the request was given (`custom_id`).

What is stored on disk before a batch is made (`SubmittedBatch`) is enough to find it again, so that
no request is paid for twice however often this process dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import quote

import aiohttp
import msgspec

from emodistill.errors import ApiError, InputError
from emodistill.llm.call_errors import ExhaustedError
from emodistill.llm.client import CONNECT_S, ChatClient
from emodistill.llm.fault_reader import FaultReader
from emodistill.llm.keys import ApiKey
from emodistill.llm.replies import FaultError, kind_of, server_error
from emodistill.llm.transport import MAX_ANSWER_BYTES, HttpAnswer, proxy_of, read_body
from emodistill.untrusted import count, parse_json

log = logging.getLogger("emodistill.llm")

UPLOAD = "/files"
"""Where a file of requests is sent."""
ENDPOINT = "/v1/chat/completions"
"""As a line of the file names it, whatever the base URL."""
WINDOW = "24h"
MAX_LINES = 50_000
"""Of a file, at OpenAI and DashScope alike."""
MAX_FILE_BYTES = 100 << 20
"""Of a file that goes up; OpenAI takes 200 MB, DashScope 500."""
NUM_ATTEMPTS = 6
FIRST_PAUSE_S = 0.5
"""After trouble with a call about a batch: doubled each time, which makes 15.5 s in all."""
FIRST_POLL_S, MAX_POLL_S = 1.0, 60.0
"""Between two looks whether a batch has ended; some end in seconds, most take hours."""
PATIENCE_S = 3_600.0
"""How long nobody may answer while a batch is waited for: networks are away, laptops sleep."""
UPLOAD_S = 3_600.0
"""For a file to go up: a quarter of a megabit a second is enough."""
NUM_LISTED = 100
"""Batches in which one is looked for that was made just before."""

State = Literal["open", "ended", "failed", "cancelled"]
_STATES: Mapping[str, State] = {
    "completed": "ended",
    "expired": "ended",  # what was answered in time is there, and billed
    "failed": "failed",
    "cancelled": "cancelled",
}
"""By what servers say; any other word is of a batch that goes on."""


class LostBatchError(ApiError):
    """The server doesn't know a batch, or a file of it, that was made there."""


class SubmittedBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a batch until its answers are. Without `batch_id` the file has gone up, and
    it isn't known whether a batch was made of it."""

    url: str
    level: str
    num_lines: int
    input_file_id: str
    batch_id: str | None = None


class BatchState(NamedTuple):
    """How far a batch is; with the files of its answers and errors once it has ended."""

    state: State
    word: str
    """The server's own."""
    num_done: int
    files: tuple[str, ...]
    problems: str


class BatchLine(NamedTuple):
    """A result."""

    custom_id: str
    content: bytes
    """The body of an HTTP 200, or of an error."""
    is_billed: bool
    """Whether it is an HTTP 200."""
    has_text: bool
    """Whether it is an answer that says something, and that no filter withholds."""
    fault: FaultError | None = None
    """Why it holds no reply; in words that may be shown."""


class BatchClient:
    """Makes, watches and reads file batches with a key of a client's. A context manager.

    All calls go with the same key, since files and batches are known to the account alone that has
    made them; they wait while that key rests, whatever others are free.

    Args:
      timeout_s: of silence in a call.

    `price_share` is what is left of the model's price.
    """

    def __init__(self, client: ChatClient, model: str, *, timeout_s: float = 120.0) -> None:
        price_share = client.provider.batch_share(model)
        if price_share is None:
            raise InputError(
                f"--batch: {model} at {client.provider.label} is not known to take file batches. "
                "Leave it out, or name `batch`, the share of the price that is left, in the price "
                "of a providers file of your own (EMODISTILL_PROVIDERS)."
            )
        self.price_share = price_share
        self.client = client
        self.url = client.provider.base_url
        self._timeout_s = timeout_s
        self._errors = FaultReader(client.provider.dead_codes, client.keys.scrub)
        self._session: aiohttp.ClientSession | None = None
        self._key: ApiKey | None = None

    async def __aenter__(self) -> Self:
        self._key = self.client.keys.own("batch")
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_S, sock_read=self._timeout_s
            ),
            headers={"Accept-Encoding": "identity"},  # a file is read line by line, within bounds
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            proxy=proxy_of(self.url),
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def upload(self, path: Path) -> str:
        """Send a file of requests up; its id there.

        Raises:
          ApiError: it can't be sent.
        """

        def form() -> aiohttp.FormData:
            data = aiohttp.FormData()
            data.add_field("purpose", "batch")
            file = path.open("rb")  # aiohttp closes it
            data.add_field(
                "file", file, filename="requests.jsonl", content_type="application/jsonl"
            )
            return data

        sent = await self._patiently(lambda: self._once("POST", UPLOAD, form=form))
        return _name(sent, "id", UPLOAD)

    async def make(self, batch: SubmittedBatch) -> SubmittedBatch:
        """The batch of a file that has gone up: the one that was made before, else a new one.

        Raises:
          LostBatchError: the file isn't known there, or there are no batches.
          ApiError: none can be made.
        """
        wanted = {
            "input_file_id": batch.input_file_id,
            "endpoint": ENDPOINT,
            "completion_window": WINDOW,
        }

        async def find_or_make() -> dict[str, Any]:
            # Where no answer comes, the batch may have been made all the same: look each time.
            listed = (await self._once("GET", f"/batches?limit={NUM_LISTED}")).get("data")
            for known in listed if isinstance(listed, list) else ():
                if isinstance(known, dict) and known.get("input_file_id") == batch.input_file_id:
                    return known
            return await self._once("POST", "/batches", body=wanted)

        found = await self._patiently(find_or_make)
        return msgspec.structs.replace(batch, batch_id=_name(found, "id", "/batches"))

    async def look(self, batch: SubmittedBatch) -> BatchState:
        """How far a batch is.

        Raises:
          LostBatchError: it isn't known there.
          ApiError: nobody answers, or not as it should.
        """
        path = f"/batches/{quote(batch.batch_id or '', safe='')}"
        found = await self._patiently(lambda: self._once("GET", path))
        counts = found.get("request_counts")
        counts = counts if isinstance(counts, dict) else {}
        word, problems = str(found.get("status")), found.get("errors")
        files = (found.get(name) for name in ("output_file_id", "error_file_id"))
        return BatchState(
            state=_STATES.get(word, "open"),
            word=self._errors.quoted(word[:40]),
            num_done=sum(count(counts.get(name)) or 0 for name in ("completed", "failed")),
            files=tuple(file for file in files if isinstance(file, str) and file),
            problems=self._errors.quoted(json.dumps(problems)) if problems else "",
        )

    async def wait(
        self, batch: SubmittedBatch, on_look: Callable[[BatchState], None]
    ) -> BatchState:
        """How a batch has ended, as soon as it has.

        Args:
          on_look: called with what each look at it shows.

        Raises:
          LostBatchError: it isn't known there.
          ApiError: nobody has answered for PATIENCE_S, or not as it should.
        """
        pause_s = FIRST_POLL_S
        heard_s = time.monotonic()
        while True:
            try:
                state = await self.look(batch)
            except ExhaustedError as error:  # the batch goes on without us
                if time.monotonic() - heard_s > PATIENCE_S:
                    raise
                log.warning("%s", error)
            else:
                heard_s = time.monotonic()
                on_look(state)
                if state.state != "open":
                    return state
            await asyncio.sleep(pause_s)
            pause_s = min(MAX_POLL_S, 1.5 * pause_s)

    async def read(self, state: BatchState) -> AsyncIterator[BatchLine]:
        """The results of a batch that has ended, in the order of its files; lines that are no
        result are passed over.

        Raises:
          ApiError: a file can't be fetched, or breaks off.
        """
        for file in state.files:
            async for raw in self._lines(f"/files/{quote(file, safe='')}/content"):
                try:
                    yield read_line(raw, self._errors)
                except ValueError as error:
                    told = self._errors.quoted(file), self._errors.quoted(str(error))
                    log.warning("a line of %s is no result (%s).", *told)

    async def _lines(self, path: str) -> AsyncIterator[bytes]:
        async with await self._response("GET", path) as response:
            rest = b""
            try:
                async for chunk in response.content.iter_any():
                    *whole, rest = (rest + chunk).split(b"\n")
                    for line in filter(None, map(bytes.strip, whole)):
                        yield line
                    if len(rest) > MAX_ANSWER_BYTES:
                        raise ApiError(
                            f"{self.url}{path}: a line of more than {MAX_ANSWER_BYTES:,} bytes, "
                            "which is no result of a batch."
                        )
            except (aiohttp.ClientError, TimeoutError) as error:
                raise ExhaustedError(
                    f"{self.url}{path} broke off ({type(error).__name__})."
                ) from None
            if rest.strip():
                yield rest.strip()

    async def _patiently(self, ask: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """The answer to what may be asked again where it meets trouble."""
        for attempt in range(1, NUM_ATTEMPTS):
            try:
                return await ask()
            except ExhaustedError as error:
                log.debug("%s", error)
                await asyncio.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
        return await ask()

    async def _once(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        form: Callable[[], aiohttp.FormData] | None = None,
    ) -> dict[str, Any]:
        sent: dict[str, Any] = {} if body is None else {"json": body}
        if form is not None:  # while a file goes up, there is nothing to read
            sent = {"data": form(), "timeout": aiohttp.ClientTimeout(total=UPLOAD_S)}
        async with await self._response(method, path, **sent) as response:
            try:
                answer = parse_json(await read_body(response))
            except ValueError:
                answer = None
            except (aiohttp.ClientError, TimeoutError) as error:
                raise ExhaustedError(
                    f"{self.url}{path} broke off ({type(error).__name__})."
                ) from None
        if not isinstance(answer, dict):
            raise ExhaustedError(f"{self.url}{path} answered with no JSON object.")
        return answer

    async def _response(self, method: str, path: str, **sent: Any) -> aiohttp.ClientResponse:
        """The answer of an HTTP 2xx.

        Raises:
          ExhaustedError: trouble, which may pass.
          LostBatchError: what is asked about isn't known there.
          ApiError: whatever else won't pass.
        """
        if self._session is None or self._key is None:
            raise RuntimeError("BatchClient is a context manager: async with BatchClient(…).")
        await self.client.keys.admit(self._key)
        asked_at_s = time.monotonic()
        url = self.url + path
        try:
            response = await self._session.request(
                method, url, headers=self._key.headers, allow_redirects=False, **sent
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ExhaustedError(f"{url} can't be reached ({type(error).__name__}).") from None
        if kind_of(response.status) != "limited":
            self.client.keys.let_in(self._key, asked_at_s)
        if response.status // 100 == 2:
            return response
        async with response:
            content = b""
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                content = (await response.content.read(4_000))[:4_000]
        words = self._errors.quoted(content.decode("utf-8", "replace"))
        said = f"{url} answered HTTP {response.status}{f': {words}' if words else ''}."
        if kind_of(response.status) in ("limited", "broken"):
            raise ExhaustedError(said)
        if path == UPLOAD:
            raise ApiError(
                f"{said} Check that the provider takes file batches; without --batch each item is "
                "asked for by itself."
            )
        if response.status in (404, 410):
            raise LostBatchError(said)
        raise ApiError(f"{said} Check that the key is of the account whose batches these are.")


def request_line(custom_id: str, body: bytes) -> bytes:
    """A line of the file that goes up."""
    line = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": json.loads(body)}
    return json.dumps(line).encode() + b"\n"


def read_line(raw: bytes, errors: FaultReader) -> BatchLine:
    """A line of a file of answers or errors.

    Raises:
      ValueError: it is none.
    """
    value = parse_json(raw)
    if not isinstance(value, dict) or not isinstance(value.get("custom_id"), str):
        raise ValueError("no object with a custom_id")
    response = value.get("response")
    response = response if isinstance(response, dict) else {}
    body = response.get("body")
    inner, outer = server_error(body), server_error(value)
    error = inner or outer
    status = count(response.get("status_code")) or (error.status if error else 0)
    if outer and not inner and (status != 200 or body is None):
        body = {"error": value["error"]}
    content = b"" if body is None else json.dumps(body).encode()
    line = BatchLine(value["custom_id"], content, is_billed=status == 200, has_text=False)
    if not 100 <= status <= 599:
        words = errors.quoted(error.message) if error else "no answer"
        return line._replace(fault=FaultError("broken", words))
    try:
        reply = errors.reply(HttpAnswer(status, {"Content-Type": "application/json"}, content))
    except FaultError as fault:
        fault.detail = errors.shown(fault.detail)
        return line._replace(fault=fault.with_traceback(None))
    return line._replace(has_text=bool(reply.text.strip()) and not reply.is_filtered)


def _name(answer: Mapping[str, Any], field: str, path: str) -> str:
    name = answer.get(field)
    if not isinstance(name, str) or not name or not name.isascii() or not name.isprintable():
        raise ApiError(f"{path} answered without a usable {field}; are there no file batches?")
    return name
