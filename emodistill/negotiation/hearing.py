"""Who hears the other side's emotion in its utterances, for selectors that look at it."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from emodistill.emotions import EMOTION_INDEX, EMOTIONS
from emodistill.logs import fields
from emodistill.prompts import hearing_messages
from emodistill.seeding import derive
from emodistill.untrusted import parse_json

if TYPE_CHECKING:
    from emodistill.llm.client import ChatClient
    from emodistill.llm.usage import Completion

log = logging.getLogger("emodistill.negotiation")

NUM_ATTEMPTS = 2
ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"emotion": {"enum": list(EMOTIONS), "type": "string"}},
    "required": ["emotion"],
    "additionalProperties": False,
}
"""What servers that hold answers to a JSON Schema are told."""
_OBJECT = re.compile(r"\{[^{}]*\}")


class Heard(NamedTuple):
    """One of the 28 labels (None: nothing could be heard), and the calls that it took."""

    emotion: str | None = None
    calls: Sequence[Completion] = ()


class EmotionReader(Protocol):
    """Hears the emotion of an utterance."""

    async def hear(self, text: str, *, dialogue_id: str, seed: int) -> Heard:
        """The emotion of `text`.

        Raises:
          ApiError: as `ChatClient.chat`, where a model hears.
        """
        ...


@dataclass(frozen=True, slots=True)
class LlmEmotionReader:
    """A labelling model at temperature 0; an answer that can't be read is asked for once more."""

    client: ChatClient
    model: str
    max_tokens: int = 48
    """Of an answer; the second attempt gets twice as many."""

    async def hear(self, text: str, *, dialogue_id: str, seed: int) -> Heard:
        calls: list[Completion] = []
        for attempt in range(NUM_ATTEMPTS):
            completion = await self.client.chat(
                hearing_messages(text),
                model=self.model,
                temperature=0.0,
                max_tokens=self.max_tokens << attempt,
                seed=derive(seed, "emotion", text, attempt),
                sticky=dialogue_id,
                answer_schema=ANSWER_SCHEMA,
            )
            calls.append(completion)
            if (emotion := parse_emotion(completion.text)) is not None:
                return Heard(emotion, calls)
            told = fields(event="no emotion heard", dialogue=dialogue_id, attempt=len(calls))
            log.debug("%s: no label in %r.", self.model, completion.text[:80], extra=told)
        return Heard(None, calls)


def parse_emotion(text: str) -> str | None:
    """The label in an answer `{"emotion": "anger"}`, whatever is around it.

    None where the answer holds no such object, several that differ, or no known label.
    """
    found = set()
    for answer in _OBJECT.findall(text):
        with contextlib.suppress(ValueError):  # braces of something else
            found.add(str(parse_json(answer).get("emotion")).strip().lower())
    label = found.pop() if len(found) == 1 else None
    return label if label in EMOTION_INDEX else None
