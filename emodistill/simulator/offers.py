"""`sim-reader`: says which figure an utterance puts forward, and sometimes answers badly."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from emodistill.simulator.reading import last_figure, messages_text, read_brief, show_figure

BAD_ANSWER_ODDS = 0.01
BAD_ANSWERS = ("The speaker wants a better deal.", "OFFER: soon", "")
_UTTERANCE = re.compile(r"<utterance>\s*(.*?)\s*</utterance>", re.DOTALL)


def reader_reply(messages: Sequence[Mapping[str, str]], rng: np.random.Generator) -> str:
    """The reader's answer."""
    if rng.random() < BAD_ANSWER_ODDS:
        return str(rng.choice(BAD_ANSWERS))
    system, user = messages_text(messages)
    found = _UTTERANCE.search(user)
    if found is None:
        return "I can't find an utterance."
    domain = read_brief(system).domain
    figure = last_figure(found[1], domain)
    return f"OFFER: {'none' if figure is None else show_figure(figure, domain)}"
