"""From a chat request to the pieces of its reply: room, prompt, generation, text."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

from emodistill.configs import EMBEDDED, EMBEDDED_TEMPERATURE, TEMPERATURE, ServeConfig
from emodistill.errors import InputError
from emodistill.model import (
    Engine,
    EngineWorker,
    GenerationFailedError,
    GenerationRequest,
    Qwen2,
    adapted,
    encode_chat,
)
from emodistill.seeding import derive
from emodistill.serving.catalogue import Adapter, Catalogue, ServedModel
from emodistill.serving.chat_requests import ChatRequest
from emodistill.serving.metrics import Metric, Metrics
from emodistill.serving.negotiator import Negotiated
from emodistill.serving.refusals import ChatRefusedError
from emodistill.serving.reply_text import ReplyPiece, ReplyReader, TokenTexts
from emodistill.untrusted import brief

if TYPE_CHECKING:
    from emodistill.prompts import Message
    from emodistill.train.student import Student

MAX_RETRY_AFTER_S = 60
_USUAL_REPLY_S = 1.0
"""What a reply takes, until some have been timed."""


class Place:
    """A request's place in the queue or a slot, which is free again once its engine is done."""

    def __init__(self, occupied: Counter[Adapter], adapter: Adapter) -> None:
        self._occupied, self._adapter, self._is_free = occupied, adapter, False
        occupied[adapter] += 1

    def free(self) -> None:
        if not self._is_free:
            self._is_free = True
            self._occupied[self._adapter] -= 1
            if not self._occupied[self._adapter]:
                del self._occupied[self._adapter]


class PreparedChat(NamedTuple):
    """A request that can be generated."""

    adapter: Adapter
    generation: GenerationRequest
    stops: Sequence[str]
    place: Place
    negotiated: Negotiated | None


class OngoingReply:
    """A reply under way; what it has come to stands in it once its pieces are read."""

    def __init__(
        self, worker: EngineWorker[Adapter], texts: TokenTexts, chat: PreparedChat
    ) -> None:
        self._worker, self._texts, self._chat = worker, texts, chat
        self.num_tokens = 0
        self.finish_reason = "length"

    async def pieces(self) -> AsyncGenerator[ReplyPiece, None]:
        """The text as it comes; to close the iterator cancels what is left.

        Raises:
          ChatRefusedError: the adapter or the request can't be used, or the engine has failed.
        """
        chat = self._chat
        reader = ReplyReader(self._texts, chat.stops)
        progress = self._worker.generate(chat.adapter, chat.generation, chat.place.free)
        last = ReplyPiece("", [])
        try:
            async with aclosing(progress):
                async for step in progress:
                    piece = reader.read(step.ids, step.logprobs)
                    self.num_tokens = reader.num_tokens
                    if step.generated is not None:
                        self.finish_reason = step.generated.finish_reason
                    if reader.is_stopped:
                        last = piece
                        break
                    yield piece
        except InputError as error:
            code = "adapter_unusable"
            raise ChatRefusedError(brief(error), status=503, code=code) from None
        except GenerationFailedError:  # the log says why
            raise ChatRefusedError("generation failed; ask again.", status=500) from None
        rest = reader.finish()
        if reader.is_stopped:
            self.finish_reason = "stop"
        yield ReplyPiece(last.text + rest.text, [*last.tokens, *rest.tokens])


class ChatService:
    """The models, the thread that runs them, and who waits. An async context manager.

    Args:
      student: the base and its tokenizer.
    """

    def __init__(self, config: ServeConfig, catalogue: Catalogue, student: Student) -> None:
        self.config = config
        self.catalogue = catalogue
        self.metrics = Metrics()
        self.is_ready = False
        self._base: Qwen2 = student.model
        self._tokenizer = student.tokenizer
        self._texts = TokenTexts(student.tokenizer)
        self._window = min(config.max_tokens, student.model.config.max_positions)
        self._worker = EngineWorker(self._make_engine, config.max_loaded)
        # One thread: prompts are encoded beside the event loop, but not beside each other.
        self._encoding = ThreadPoolExecutor(1, "prompts")
        self._occupied: Counter[Adapter] = Counter()
        self._reply_s = _USUAL_REPLY_S
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> ChatService:
        await self._exits.enter_async_context(self._worker)
        self._exits.callback(self._encoding.shutdown, wait=False, cancel_futures=True)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._exits.aclose()

    async def warm_up(self) -> None:
        """Load what the settings name, and compile the programs of generation.

        Raises:
          InputError: an adapter can't be used.
        """
        for adapter in self.catalogue.given:
            await self._worker.load(adapter)
        ids = encode_chat(self._tokenizer, [{"role": "user", "content": "Hello."}])
        first = GenerationRequest(ids, max_new_tokens=1, temperature=1.0)
        async with aclosing(self._worker.generate(self.catalogue.base, first)) as progress:
            async for _ in progress:
                pass
        self.is_ready = True

    async def prepare(self, request: ChatRequest) -> PreparedChat:
        """Find the model, take a place and make the prompt.

        Raises:
          ChatRefusedError: no such model, no place, or a prompt that doesn't fit.
        """
        model = self.catalogue.find(request.model)
        place = self._take_place(model.adapter)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._encoding, self._prepared, request, model, place
            )
        except BaseException:  # a time-out or a client that has gone, too
            place.free()
            raise

    def reply(self, chat: PreparedChat) -> OngoingReply:
        """The reply to a request; its place is free when it has been generated."""
        return OngoingReply(self._worker, self._texts, chat)

    def note_reply(self, duration_s: float) -> None:
        """Take a reply's duration into account where others are told when to ask again."""
        self._reply_s += 0.1 * (duration_s - self._reply_s)

    async def load_adapter(self, name: str, path: str) -> None:
        """Serve one more adapter.

        Raises:
          ChatRefusedError: it may not be loaded, or can't be used.
        """
        adapter = self.catalogue.locate(name, path)
        try:
            await self._worker.load(adapter)
            self.catalogue.add(adapter)
        except InputError as error:
            raise ChatRefusedError(brief(error), param="lora_path") from None
        except ChatRefusedError:
            self._worker.forget(adapter)
            raise

    def drop_adapter(self, name: str) -> None:
        """Serve an adapter no longer; what it has begun is finished.

        Raises:
          ChatRefusedError: it is not there, or belongs to the run.
        """
        self._worker.forget(self.catalogue.drop(name))

    def metrics_text(self) -> str:
        """All metrics in Prometheus' format."""
        totals, config = self._worker.totals(), self.config
        kept = max(0, totals.prompt_tokens - totals.prefilled_tokens)
        busy = sum(min(n, config.num_slots) for n in self._occupied.values())
        tokens = {
            'kind="prefilled"': totals.prefilled_tokens,
            'kind="kept"': kept,
            'kind="generated"': totals.generated_tokens,
        }
        return self.metrics.text(
            [
                Metric("queue_length", "gauge", "Requests that wait.", {"": self._num_waiting}),
                Metric("slots_in_use", "gauge", "Requests that are generated for.", {"": busy}),
                Metric(
                    "tokens_total",
                    "counter",
                    "Tokens of prompts, computed or kept from earlier ones, and of replies.",
                    tokens,
                ),
            ]
        )

    @property
    def _num_waiting(self) -> int:
        return sum(max(0, n - self.config.num_slots) for n in self._occupied.values())

    def _take_place(self, adapter: Adapter) -> Place:
        is_slot_free = self._occupied[adapter] < self.config.num_slots
        num_waiting = self._num_waiting
        if not is_slot_free and num_waiting >= self.config.max_queue:
            expected_s = self._reply_s * max(1, num_waiting) / self.config.num_slots
            raise ChatRefusedError(
                f"{num_waiting} requests wait already; ask again later.",
                status=429,
                code="queue_full",
                retry_after_s=max(1, min(MAX_RETRY_AFTER_S, math.ceil(expected_s))),
            )
        return Place(self._occupied, adapter)

    def _prepared(self, request: ChatRequest, model: ServedModel, place: Place) -> PreparedChat:
        """In the thread of prompts."""
        seed = secrets.randbits(31) if request.seed is None else _plain_seed(request.seed)
        room = request.max_tokens or self.config.max_reply_tokens
        limit = self._window - room
        negotiated = None
        if model.negotiator is None:
            messages: Sequence[Message] = [
                {"role": message.role, "content": message.content} for message in request.messages
            ]
            if not messages:
                raise ChatRefusedError("messages is empty.", param="messages")
        else:
            negotiated = model.negotiator.read(
                request, seed, lambda prompt: len(self._encoded(prompt)) <= limit
            )
            messages, seed = negotiated.messages, negotiated.seed
        ids = self._encoded(messages)
        if len(ids) > limit:
            raise ChatRefusedError(
                f"the prompt has {len(ids)} tokens and the reply may take {room}; there is room "
                f"for {self._window} together.",
                param="messages",
                code="context_length_exceeded",
            )
        usual = EMBEDDED_TEMPERATURE if self.config.student == EMBEDDED else TEMPERATURE
        default = usual if self.config.temperature is None else self.config.temperature
        temperature = default if request.temperature is None else request.temperature
        generation = GenerationRequest(
            ids,
            max_new_tokens=room,
            temperature=temperature,
            top_p=request.top_p,
            seed=seed,
            stop_ids=self._texts.stops,
            num_logprobs=request.num_logprobs,
        )
        return PreparedChat(model.adapter, generation, request.stops, place, negotiated)

    def _encoded(self, messages: Sequence[Message]) -> list[int]:
        try:
            return encode_chat(self._tokenizer, messages)
        except InputError as error:  # what the template refuses
            raise ChatRefusedError(brief(error), param="messages") from None

    def _make_engine(self, adapter: Adapter) -> Engine:
        """In the thread of the engines."""
        model: Any = self._base
        if adapter.folder is not None:
            model = adapted(model, adapter.folder)
        return Engine(
            model,
            num_slots=self.config.num_slots,
            max_tokens=self._window,
            max_kept_tokens=self.config.max_kept_tokens,
        )


def _plain_seed(seed: int) -> int:
    """As `model.generate` takes it; all bits of a longer one count."""
    return seed if 0 <= seed < 1 << 32 else derive(0, "served-seed", seed)
