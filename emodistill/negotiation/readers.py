"""A language model that reads offer and act of a dialogue's utterances, in place of patterns."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from emodistill.negotiation.clauses import plain
from emodistill.negotiation.model_answers import AskedModel, answered_objects
from emodistill.negotiation.quantities import scan
from emodistill.prompts import reading_messages
from emodistill.records import Act

if TYPE_CHECKING:
    from emodistill.llm.usage import Completion

ACTS: tuple[Act, ...] = get_args(Act)
ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"offer": {"type": ["string", "null"]}, "act": {"enum": ACTS, "type": "string"}},
    "required": ["offer", "act"],
    "additionalProperties": False,
}
"""What servers that hold answers to a JSON Schema are told."""

_AROUND = " \t*_`\"'“”‘’"  # of a figure: emphasis and quotation marks


class Read(NamedTuple):
    """What an utterance offers (None: nothing that can be read) and does, and the calls that it
    took to read it. `act` is None where no model was asked."""

    offer: float | None = None
    act: Act | None = None
    calls: Sequence[Completion] = ()


class LlmReader(AskedModel):
    """A language model that reads offers and acts.

    What can't be read offers nothing and does nothing.
    """

    __slots__ = ()

    async def read(
        self, text: str, domain: str, *, heard: str | None, dialogue_id: str, seed: int
    ) -> Read:
        """The model's reading.

        Args:
          heard: what the other side said last; None where the talks begin.

        Raises:
          ApiError: as `ChatClient.chat`.
        """
        read, calls = await self.ask(
            reading_messages(domain, text, heard),
            functools.partial(parse_answer, domain=domain),
            seed=seed,
            about=("offer", text),
            dialogue_id=dialogue_id,
            schema=ANSWER_SCHEMA,
        )
        return (read or Read(None, "none"))._replace(calls=calls)


def parse_answer(text: str, domain: str) -> Read:
    """The reading in an answer `{"offer": "40 days", "act": "propose"}`, whatever is around it.

    Raises:
      ValueError: the answer holds no such object or several that differ, an unknown act, no single
        figure of the domain's unit, or a figure in an utterance that is said to do nothing.
    """
    readings = {_reading(answer, domain) for answer in answered_objects(text)}
    if len(readings) != 1:
        raise ValueError(f"no single reading, but {len(readings)}")
    return readings.pop()


def _reading(answer: dict[str, Any], domain: str) -> Read:
    act, offer = answer.get("act"), answer.get("offer")
    if act not in ACTS or "offer" not in answer:
        raise ValueError("no known act, or no offer")
    if isinstance(offer, int | float) and not isinstance(offer, bool):
        offer = f"{offer:g}"
    if not isinstance(offer, str | None):
        raise ValueError("an offer that is neither text nor null")
    figure = None if offer is None else _figure(offer, domain)
    if act == "none" and figure is not None:
        raise ValueError("a figure that is not put forward")
    return Read(figure, act)


def _figure(text: str, domain: str) -> float | None:
    """The value of a figure in words; None for `none`."""
    figure = text.lstrip(_AROUND).rstrip(_AROUND + ".!")
    if not figure or figure.lower() in ("none", "null"):
        return None
    values = {mention.value for mention in scan(plain(figure), domain).mentions}
    if len(values) != 1 or None in values:
        raise ValueError("no single figure")
    return values.pop()
