"""Who turns a prompt into an utterance: the protocol, and language models behind an API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from emodistill.errors import ApiError
from emodistill.seeding import derive

if TYPE_CHECKING:
    from emodistill.llm.client import ChatClient
    from emodistill.llm.usage import Completion
    from emodistill.prompts import Message

NUM_ATTEMPTS = 3
"""Empty answers in a row after which a dialogue fails; API models give one now and then."""


class EmptyReplyError(ApiError):
    """A writer had nothing to say, and nothing either when asked again."""


class Writer(Protocol):
    """Turns chat messages into an utterance.

    `seed` is the same for all turns of a player in a dialogue, so that a server may derive a
    player's lasting traits from it; `dialogue_id` keeps a dialogue's calls together.
    """

    @property
    def model(self) -> str: ...

    @property
    def provider(self) -> str:
        """Who serves the model, as records say it; empty for one that runs here."""
        ...

    @property
    def temperature(self) -> float: ...

    def fits(self, messages: Sequence[Message]) -> bool:
        """Whether the prompt leaves room for a reply; if not, its oldest turns are dropped."""
        ...

    async def reply(
        self, messages: Sequence[Message], *, dialogue_id: str, seed: int
    ) -> Completion:
        """The next utterance and what it took; it costs nothing where the model is local.

        It has the finish reason `length` where twice the room that it may take was too little.
        """
        ...


@dataclass(frozen=True, slots=True)
class ApiWriter:
    """A model behind a chat-completions API."""

    client: ChatClient
    model: str
    temperature: float = 0.7
    max_tokens: int = 160

    @property
    def provider(self) -> str:
        return self.client.provider.label

    def fits(self, messages: Sequence[Message]) -> bool:
        """Always; a server refuses what is too long for it, and says so."""
        return True

    async def reply(
        self, messages: Sequence[Message], *, dialogue_id: str, seed: int
    ) -> Completion:
        """The model's next utterance, at the cost of all attempts that it took.

        One that is cut at its limit of tokens is asked for once more with double room; what is cut
        again stays, and says so by its finish reason.

        Raises:
          EmptyReplyError: NUM_ATTEMPTS empty answers in a row.
          ApiError: as `ChatClient.chat`.
        """
        earlier: Completion | None = None
        max_tokens, num_empty = self.max_tokens, 0
        while num_empty < NUM_ATTEMPTS:
            completion = await self.client.chat(
                messages,
                model=self.model,
                temperature=self.temperature,
                max_tokens=max_tokens,
                seed=derive(seed, "after an empty reply", num_empty) if num_empty else seed,
                sticky=dialogue_id,
            )
            if earlier is not None:
                completion = completion.after(earlier)
            earlier = completion
            if completion.finish_reason == "length" and max_tokens == self.max_tokens:
                max_tokens *= 2
            elif completion.text.strip():
                return completion
            else:
                num_empty += 1
        raise EmptyReplyError(
            f"{self.model} answered {NUM_ATTEMPTS} times with an empty text in {dialogue_id}."
        )
