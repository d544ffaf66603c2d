"""Who hears the other side's emotion in its utterances, for selectors that look at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from emodistill.emotions import EMOTION_INDEX, EMOTIONS
from emodistill.negotiation.model_answers import AskedModel, answered_objects
from emodistill.prompts import hearing_messages

if TYPE_CHECKING:
    from emodistill.llm.usage import Completion

ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"emotion": {"enum": list(EMOTIONS), "type": "string"}},
    "required": ["emotion"],
    "additionalProperties": False,
}
"""What servers that hold answers to a JSON Schema are told."""


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


class LlmEmotionReader(AskedModel):
    """A labelling model."""

    __slots__ = ()

    async def hear(self, text: str, *, dialogue_id: str, seed: int) -> Heard:
        emotion, calls = await self.ask(
            hearing_messages(text),
            parse_emotion,
            seed=seed,
            about=("emotion", text),
            dialogue_id=dialogue_id,
            schema=ANSWER_SCHEMA,
        )
        return Heard(emotion, calls)


def parse_emotion(text: str) -> str:
    """The label in an answer `{"emotion": "anger"}`, whatever is around it.

    Raises:
      ValueError: the answer holds no such object, several that differ, or no known label.
    """
    found = {str(answer.get("emotion")).strip().lower() for answer in answered_objects(text)}
    label = found.pop() if len(found) == 1 else None
    if label not in EMOTION_INDEX:
        raise ValueError("no single label")
    return label
