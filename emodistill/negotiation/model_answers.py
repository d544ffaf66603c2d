"""A language model's reading of an utterance: asked at temperature 0, and once more where its
answer can't be read."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from emodistill.logs import fields
from emodistill.seeding import derive
from emodistill.untrusted import parse_json

if TYPE_CHECKING:
    from emodistill.llm.client import ChatClient
    from emodistill.llm.usage import Completion
    from emodistill.prompts import Message

log = logging.getLogger("emodistill.negotiation")

T = TypeVar("T")
NUM_ATTEMPTS = 2
_OBJECT = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True, slots=True)
class AskedModel:
    """A model that is asked about utterances."""

    client: ChatClient
    model: str
    max_tokens: int = 48
    """Of an answer; one that thinks first needs more. The second attempt gets twice as many."""

    async def ask(
        self,
        messages: list[Message],
        parse: Callable[[str], T],
        *,
        seed: int,
        about: tuple[str, str],
        dialogue_id: str,
        schema: dict[str, Any],
    ) -> tuple[T | None, list[Completion]]:
        """What `parse` makes of the answer, None if of neither attempt, and the calls.

        Args:
          parse: raises ValueError where an answer can't be read.
          about: what is asked, and the utterance; name the attempts' seeds.
          schema: what servers that hold answers to a JSON Schema are told.

        Raises:
          ApiError: as `ChatClient.chat`.
        """
        calls: list[Completion] = []
        for attempt in range(NUM_ATTEMPTS):
            completion = await self.client.chat(
                messages,
                model=self.model,
                temperature=0.0,
                max_tokens=self.max_tokens << attempt,
                seed=derive(seed, *about, attempt),
                sticky=dialogue_id,
                answer_schema=schema,
            )
            calls.append(completion)
            try:
                return parse(completion.text), calls
            except ValueError as error:
                told = fields(event="no reading", dialogue=dialogue_id, attempt=len(calls))
                log.debug("%s: %s in %r.", self.model, error, completion.text[:80], extra=told)
        return None, calls


def answered_objects(text: str) -> list[dict[str, Any]]:
    """The flat JSON objects in an answer, whatever is around them."""
    answers = []
    for found in _OBJECT.findall(text):
        with contextlib.suppress(ValueError):  # braces of something else
            answers.append(parse_json(found))
    return answers
