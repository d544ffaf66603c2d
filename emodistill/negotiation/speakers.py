"""Who takes the turns of a dialogue: the protocol, and language models behind an API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from emodistill.errors import ApiError
from emodistill.seeding import derive

if TYPE_CHECKING:
    from emodistill.llm.client import ChatClient


class EmptyReplyError(ApiError):
    """A speaker had nothing to say, and again nothing when asked once more."""


class Reply(NamedTuple):
    """An utterance and what it took; `cost_usd` is 0 for local models."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    cost_usd: float = 0.0


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
          EmptyReplyError: two empty answers in a row.
          ApiError: as `ChatClient.chat`.
        """
        first = await self._ask(messages, dialogue_id, seed)
        if first.text.strip():
            return first
        second = await self._ask(messages, dialogue_id, derive(seed, "after an empty reply"))
        if not second.text.strip():
            raise EmptyReplyError(
                f"{self.model} answered twice with an empty text in {dialogue_id}. A model that "
                "thinks first may need a larger --max-reply-tokens, or thinking switched off."
            )
        return Reply(
            second.text,
            first.prompt_tokens + second.prompt_tokens,
            first.completion_tokens + second.completion_tokens,
            first.latency_s + second.latency_s,
            first.cost_usd + second.cost_usd,
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
