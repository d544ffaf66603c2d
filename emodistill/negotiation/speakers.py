"""Who takes the turns of a dialogue: the protocol, and language models behind an API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from emodistill.errors import ApiError
from emodistill.seeding import derive

if TYPE_CHECKING:
    from emodistill.llm.client import ChatClient


NUM_ATTEMPTS = 3


class EmptyReplyError(ApiError):
    """A speaker had nothing to say, and nothing either when asked again."""


class Reply(NamedTuple):
    """An utterance and what it took; `cost_usd` is 0 for local models."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    cost_usd: float = 0.0

    def then(self, other: Reply) -> Reply:
        """`other` in place of this one, and what both took."""
        return Reply(
            other.text,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.latency_s + other.latency_s,
            self.cost_usd + other.cost_usd,
        )


class Speaker(Protocol):
    """Turns chat messages into an utterance.

    `seed` is the same for all turns of a side in a dialogue, so that a server may derive a
    speaker's lasting traits from it; `dialogue_id` keeps a dialogue's calls together.
    """

    @property
    def model(self) -> str: ...

    @property
    def temperature(self) -> float: ...

    def fits(self, messages: Sequence[Mapping[str, str]]) -> bool:
        """Whether the prompt leaves room for a reply; if not, its oldest turns are dropped."""
        ...

    async def reply(
        self, messages: Sequence[Mapping[str, str]], *, dialogue_id: str, seed: int
    ) -> Reply: ...


@dataclass(frozen=True, slots=True)
class ApiSpeaker:
    """A model behind a chat-completions API."""

    client: ChatClient
    model: str
    temperature: float = 0.7
    max_tokens: int = 160

    def fits(self, messages: Sequence[Mapping[str, str]]) -> bool:
        """Always; a server refuses what is too long for it, and says so."""
        return True

    async def reply(
        self, messages: Sequence[Mapping[str, str]], *, dialogue_id: str, seed: int
    ) -> Reply:
        """The model's next utterance.

        Raises:
          EmptyReplyError: NUM_ATTEMPTS empty answers in a row.
          ApiError: as `ChatClient.chat`.
        """
        asked = Reply("")
        for attempt in range(NUM_ATTEMPTS):
            again = derive(seed, "after an empty reply", attempt) if attempt else seed
            reply = await self._ask(messages, dialogue_id, again)
            asked = asked.then(reply)
            if reply.text.strip():
                return asked
        raise EmptyReplyError(
            f"{self.model} answered {NUM_ATTEMPTS} times with an empty text in {dialogue_id}. If "
            "it thinks first, raise --max-reply-tokens, or switch its thinking off."
        )

    async def _ask(
        self, messages: Sequence[Mapping[str, str]], dialogue_id: str, seed: int
    ) -> Reply:
        completion = await self.client.chat(
            messages,
            model=self.model,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            seed=seed,
            sticky=dialogue_id,
        )
        return Reply(*completion)
