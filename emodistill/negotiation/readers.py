"""A language model that reads the offers out of a dialogue's utterances, in place of patterns."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from emodistill.logs import fields
from emodistill.negotiation.clauses import plain
from emodistill.negotiation.quantities import scan
from emodistill.prompts import offer_messages
from emodistill.seeding import derive

if TYPE_CHECKING:
    from emodistill.llm.client import ChatClient
    from emodistill.llm.usage import Completion

log = logging.getLogger("emodistill.negotiation")

NUM_ATTEMPTS = 2

_LABEL = re.compile(r"(?i)[\s*_#>]*OFFER[*_]*:[*_]*")
_AROUND = " \t*_`\"'“”‘’"  # of a figure: emphasis and quotation marks


class Read(NamedTuple):
    """What an utterance offers (None: nothing that can be read), and the calls that it took."""

    offer: float | None
    calls: Sequence[Completion]


@dataclass(frozen=True, slots=True)
class LlmReader:
    """A language model at temperature 0; an answer that can't be read is asked for once more.

    What still can't be read then is None, as with `offers.read_offer`.
    """

    client: ChatClient
    model: str
    max_tokens: int = 24
    """Of an answer; one that thinks first needs more. The second attempt gets twice as many."""

    async def read(self, text: str, domain: str, *, dialogue_id: str, seed: int) -> Read:
        """The model's reading.

        Raises:
          ApiError: as `ChatClient.chat`.
        """
        calls: list[Completion] = []
        for attempt in range(NUM_ATTEMPTS):
            completion = await self.client.chat(
                offer_messages(domain, text),
                model=self.model,
                temperature=0.0,
                max_tokens=self.max_tokens << attempt,
                seed=derive(seed, "offer", text, attempt),
                sticky=dialogue_id,
            )
            calls.append(completion)
            try:
                answer = completion.text
                if completion.finish_reason == "length":  # its last line may go on
                    answer = answer.rpartition("\n")[0]
                return Read(parse_answer(answer, domain), calls)
            except ValueError:
                told = fields(event="no reading", dialogue=dialogue_id, attempt=len(calls))
                log.debug("%s answered %r.", self.model, completion.text[:80], extra=told)
        return Read(None, calls)


def parse_answer(text: str, domain: str) -> float | None:
    """The figure in an answer `OFFER: 40 days`, None for `OFFER: none`.

    Raises:
      ValueError: the answer holds no such line, or no single figure of the domain's unit.
    """
    labels = list(filter(None, map(_LABEL.match, text.splitlines())))
    if not labels:
        raise ValueError("no line OFFER: …")
    offers = {_figure(label.string[label.end() :], domain) for label in labels}
    if len(offers) != 1:
        raise ValueError("no single figure")
    return offers.pop()


def _figure(text: str, domain: str) -> float | None:
    """The value of what stands after the label; None for `none`."""
    figure = text.lstrip(_AROUND).rstrip(_AROUND + ".!")
    if figure.lower().startswith("none"):
        return None
    values = {mention.value for mention in scan(plain(figure), domain).mentions}
    if len(values) != 1 or None in values:
        raise ValueError("no single figure")
    return values.pop()
