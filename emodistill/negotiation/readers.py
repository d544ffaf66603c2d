"""A language model that reads offer and act of a dialogue's utterances, in place of patterns."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from emodistill.logs import fields
from emodistill.negotiation.clauses import plain
from emodistill.negotiation.quantities import scan
from emodistill.prompts import reading_messages
from emodistill.records import Act
from emodistill.seeding import derive
from emodistill.untrusted import parse_json

if TYPE_CHECKING:
    from emodistill.llm.client import ChatClient
    from emodistill.llm.usage import Completion

log = logging.getLogger("emodistill.negotiation")

NUM_ATTEMPTS = 2
ACTS: tuple[Act, ...] = get_args(Act)
ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"offer": {"type": ["string", "null"]}, "act": {"enum": ACTS, "type": "string"}},
    "required": ["offer", "act"],
    "additionalProperties": False,
}
"""What servers that hold answers to a JSON Schema are told."""

_OBJECT = re.compile(r"\{[^{}]*\}")
_AROUND = " \t*_`\"'“”‘’"  # of a figure: emphasis and quotation marks


class Read(NamedTuple):
    """What an utterance offers (None: nothing that can be read) and does, and the calls that it
    took to read it. `act` is None where no model was asked."""

    offer: float | None = None
    act: Act | None = None
    calls: Sequence[Completion] = ()


@dataclass(frozen=True, slots=True)
class LlmReader:
    """A language model at temperature 0; an answer that can't be read is asked for once more.

    What still can't be read then offers nothing and does nothing.
    """

    client: ChatClient
    model: str
    max_tokens: int = 48
    """Of an answer; one that thinks first needs more. The second attempt gets twice as many."""

    async def read(
        self, text: str, domain: str, *, heard: str | None, dialogue_id: str, seed: int
    ) -> Read:
        """The model's reading.

        Args:
          heard: what the other side said last; None where the talks begin.

        Raises:
          ApiError: as `ChatClient.chat`.
        """
        calls: list[Completion] = []
        for attempt in range(NUM_ATTEMPTS):
            completion = await self.client.chat(
                reading_messages(domain, text, heard),
                model=self.model,
                temperature=0.0,
                max_tokens=self.max_tokens << attempt,
                seed=derive(seed, "offer", text, attempt),
                sticky=dialogue_id,
                answer_schema=ANSWER_SCHEMA,
            )
            calls.append(completion)
            try:
                return parse_answer(completion.text, domain)._replace(calls=calls)
            except ValueError as error:
                told = fields(event="no reading", dialogue=dialogue_id, attempt=len(calls))
                log.debug("%s: %s in %r.", self.model, error, completion.text[:80], extra=told)
        return Read(None, "none", calls)


def parse_answer(text: str, domain: str) -> Read:
    """The reading in an answer `{"offer": "40 days", "act": "propose"}`, whatever is around it.

    Raises:
      ValueError: the answer holds no such object or several that differ, an unknown act, no single
        figure of the domain's unit, or a figure in an utterance that is said to do nothing.
    """
    answers = []
    for found in _OBJECT.findall(text):
        with contextlib.suppress(ValueError):  # braces of something else
            answers.append(parse_json(found))
    readings = {_reading(answer, domain) for answer in answers}
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
