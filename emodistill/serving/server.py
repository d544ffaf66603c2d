"""The endpoint: HTTP in front of `chat_service`.

    POST /v1/chat/completions            GET /v1/models
    POST /v1/load_lora_adapter           POST /v1/unload_lora_adapter
    GET /health                          GET /metrics

It binds to 127.0.0.1 unless told otherwise. A key, where there is one, guards everything under /v1.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import msgspec
from aiohttp import web

from emodistill.configs import ServeConfig
from emodistill.errors import InputError
from emodistill.llm.providers import is_loopback
from emodistill.serving.catalogue import Catalogue
from emodistill.serving.chat_answers import DONE, AnswerForm, event, usage
from emodistill.serving.chat_requests import ChatRequest, converted, parse_chat, parse_object
from emodistill.serving.chat_service import ChatService, PreparedChat
from emodistill.serving.refusals import ChatRefusedError
from emodistill.train.student import load_student

log = logging.getLogger("emodistill.serving")
_WIRE = logging.getLogger("emodistill.serving.wire")
_WIRE.setLevel(logging.CRITICAL + 1)  # aiohttp quotes broken requests, keys included

AGAIN_S = 5
"""When to ask again while the server ends: another one may have taken its address."""
LAST_WORDS_S = 1.0
"""For a client to take the message that its time is up."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _LoadBody(msgspec.Struct):
    lora_name: str
    lora_path: str


class _UnloadBody(msgspec.Struct):
    lora_name: str


class Endpoint:
    """The handlers, and which requests are under way."""

    def __init__(self, service: ChatService, key: str | None) -> None:
        self._service = service
        self._key = None if key is None else key.encode()
        self._num_handled = 0
        self._is_ending = False
        self._idle = asyncio.Event()

    @property
    def names(self) -> list[str]:
        """The models that are served."""
        return self._service.catalogue.names

    def app(self) -> web.Application:
        app = web.Application(
            client_max_size=self._service.config.max_body_bytes, middlewares=[self._guarded]
        )
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def end(self) -> None:
        """Take no more requests, and wait for those that are under way."""
        self._is_ending = True
        if self._num_handled:
            self._idle.clear()
            await self._idle.wait()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Who may ask, how long it may take, and refusals as JSON: ours and aiohttp's own."""
        is_counted = request.path.startswith("/v1/")
        self._num_handled += is_counted
        status = 499  # what is logged by habit where the client has gone
        try:
            response = await self._answered(request, handler, is_counted)
            status = response.status
            return response
        finally:
            self._num_handled -= is_counted
            if is_counted:
                self._service.metrics.answers[status] += 1
            if not self._num_handled:
                self._idle.set()

    async def _answered(
        self, request: web.Request, handler: _Handler, is_counted: bool
    ) -> web.StreamResponse:
        try:
            if is_counted:
                self._check_key(request)
                if self._is_ending:
                    raise ChatRefusedError(
                        "the server is ending.", status=503, retry_after_s=AGAIN_S
                    )
            async with asyncio.timeout(self._service.config.timeout_s):
                return await handler(request)
        except ChatRefusedError as error:
            refusal = error
        except TimeoutError:
            limit_s = self._service.config.timeout_s
            refusal = ChatRefusedError(f"no answer within {limit_s:g} seconds.", status=504)
        except web.HTTPException as error:
            refusal = ChatRefusedError(f"{error.reason}.", status=error.status)
        except ConnectionError:
            refusal = ChatRefusedError("the client has gone.", status=499)
        except Exception:  # a bug; the others' requests go on
            log.exception("a request to %s failed.", request.path)
            refusal = ChatRefusedError("the server has failed at this request.", status=500)
        response = web.json_response(
            refusal.to_json(), status=refusal.status, headers=refusal.headers
        )
        if self._is_ending or refusal.status == 413:
            response.force_close()
        return response

    def _check_key(self, request: web.Request) -> None:
        if self._key is None:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), self._key)
        if not is_right or scheme.lower() != "bearer":
            raise ChatRefusedError(
                "the key is missing or wrong; send it as `Authorization: Bearer KEY`.",
                status=401,
                code="invalid_api_key",
            )

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        arrived_s = time.monotonic()
        asked = parse_chat(await request.read())
        chat = await self._service.prepare(asked)
        try:
            form = _form(asked, chat)
            if asked.is_streamed:
                return await self._streamed(request, asked, chat, form, arrived_s)
            return await self._whole(chat, form, arrived_s)
        finally:
            chat.place.free()

    async def _whole(
        self, chat: PreparedChat, form: AnswerForm, arrived_s: float
    ) -> web.StreamResponse:
        reply, found = self._service.reply(chat), []
        async with aclosing(reply.pieces()) as pieces:
            async for piece in pieces:
                self._note_first(found, arrived_s)
                found.append(piece)
        self._service.note_reply(time.monotonic() - arrived_s)
        text = "".join(piece.text for piece in found)
        tokens = [token for piece in found for token in piece.tokens]
        spent = usage(len(chat.generation.ids), reply.num_tokens)
        return web.json_response(form.whole(text, tokens, reply.finish_reason, spent))

    async def _streamed(
        self,
        request: web.Request,
        asked: ChatRequest,
        chat: PreparedChat,
        form: AnswerForm,
        arrived_s: float,
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        reply, found = self._service.reply(chat), []
        async with aclosing(reply.pieces()) as pieces:
            try:
                async for piece in pieces:
                    if not found:  # what can't be generated is refused by its status
                        await response.prepare(request)
                        await response.write(event(form.first()))
                    self._note_first(found, arrived_s)
                    found.append(None)
                    if piece.text or piece.tokens:
                        await response.write(event(form.next(piece)))
                await response.write(event(form.last(reply.finish_reason)))
                if asked.includes_usage:
                    spent = usage(len(chat.generation.ids), reply.num_tokens)
                    await response.write(event(form.usage(spent)))
                await response.write(DONE)
                await response.write_eof()
            except (ChatRefusedError, asyncio.CancelledError) as error:
                if response.prepared:
                    await self._broken_off(request, response, error)
                raise
        self._service.note_reply(time.monotonic() - arrived_s)
        return response

    async def _broken_off(
        self, request: web.Request, response: web.StreamResponse, error: BaseException
    ) -> None:
        """Say in a stream that it has no end: the time is up, or generation has failed."""
        if not isinstance(error, ChatRefusedError):
            error = ChatRefusedError("the time of this request is up.", status=504)
        transport = request.transport
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await response.write(event(error.to_json()))
        except (ConnectionError, TimeoutError):
            if transport is not None:  # nobody reads: what is buffered would be kept for ever
                transport.abort()
        else:
            if transport is not None:
                transport.close()

    def _note_first(self, found: list[Any], arrived_s: float) -> None:
        if not found:
            self._service.metrics.first_token_s.add(time.monotonic() - arrived_s)

    async def _models(self, request: web.Request) -> web.StreamResponse:
        listed = [
            {"id": name, "object": "model", "created": 0, "owned_by": "emodistill"}
            for name in self.names
        ]
        return web.json_response({"object": "list", "data": listed})

    async def _load(self, request: web.Request) -> web.StreamResponse:
        body: _LoadBody = converted(parse_object(await request.read()), _LoadBody)
        await self._service.load_adapter(body.lora_name, body.lora_path)
        return web.Response(text=f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.StreamResponse:
        body: _UnloadBody = converted(parse_object(await request.read()), _UnloadBody)
        self._service.drop_adapter(body.lora_name)
        return web.Response(text=f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    async def _health(self, request: web.Request) -> web.StreamResponse:
        if self._is_ending or not self._service.is_ready:
            state = "ending" if self._is_ending else "starting"
            return web.json_response({"status": state}, status=503)
        return web.json_response({"status": "ok"})

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=self._service.metrics_text().encode(), headers=headers)


def _form(asked: ChatRequest, chat: PreparedChat) -> AnswerForm:
    negotiated = chat.negotiated
    return AnswerForm(
        number=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=asked.model,
        wants_logprobs=asked.num_logprobs is not None,
        emotion=None if negotiated is None else negotiated.emotion,
        negotiated=None if negotiated is None else negotiated.to_json(),
    )


def find_key(config: ServeConfig) -> str | None:
    """The key that clients have to send; None where there is none.

    Raises:
      InputError: it is not where the settings say, or is needed.
    """
    name = config.api_key_env
    if name is None:
        if config.adapters_below is not None:
            raise InputError(
                f"--adapters-below {config.adapters_below} lets clients load files of this "
                "machine; say with --api-key-env which key they have to send."
            )
        return None
    if not (key := os.environ.get(name, "").strip()):
        raise InputError(
            f"--api-key-env {name}: there is no such environment variable, or it is empty; put "
            "the key into it."
        )
    return key


@contextlib.asynccontextmanager
async def serving(config: ServeConfig) -> AsyncIterator[tuple[str, Endpoint]]:
    """Serve for the length of the block, which gets the base URL once requests are answered.

    Raises:
      InputError: the key, a model, a selector, an adapter or the address can't be used.
    """
    key, catalogue = find_key(config), Catalogue(config)
    student = load_student(config.student, quantize=config.quantize)
    async with AsyncExitStack() as exits:
        service = await exits.enter_async_context(ChatService(config, catalogue, student))
        endpoint = Endpoint(service, key)
        runner = web.AppRunner(
            endpoint.app(),
            access_log=None,
            logger=_WIRE,
            handler_cancellation=True,  # who goes away is generated for no longer
            shutdown_timeout=1.0,
        )
        await runner.setup()
        exits.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, config.host, config.port).start()
        except OSError as error:
            raise InputError(
                f"--host {config.host} --port {config.port}: {error.strerror or error}. Take "
                "another port; 0 finds a free one."
            ) from None
        await service.warm_up()
        host = f"[{config.host}]" if ":" in config.host else config.host
        yield f"http://{host}:{runner.addresses[0][1]}/v1", endpoint


def run_server(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is under way; a second one ends at once.

    Raises:
      InputError: as `serving`.
    """

    async def serve() -> None:
        loop, is_asked, is_hurried = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def ask() -> None:
            (is_hurried if is_asked.is_set() else is_asked).set()

        async with serving(config) as (url, endpoint):
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, ask)
            print(f"serving {', '.join(endpoint.names)} at {url}; stop with Ctrl-C.", flush=True)
            if config.api_key_env is None and not is_loopback(url):
                log.warning("whoever reaches %s is served; --api-key-env asks for a key.", url)
            await is_asked.wait()
            print("finishing what is under way; Ctrl-C again ends at once.", flush=True)
            ends = [asyncio.create_task(one) for one in (endpoint.end(), is_hurried.wait())]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()

    asyncio.run(serve())
