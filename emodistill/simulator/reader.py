"""`sim-reader`: offer and act of an utterance, by the simulator's own ear.

It shares no word with the patterns of `emodistill.negotiation`, so that where the two agree, they
agree about the utterance. It hears plain English in short sentences, as the simulated models speak.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from emodistill.emotions import NEUTRAL
from emodistill.simulator.reading import (
    Request,
    last_figure,
    read_brief,
    show_figure,
)
from emodistill.simulator.response_model import PHRASES, expressed

BAD_READING_ODDS = 0.01
BAD_READINGS = ("The speaker wants a better deal.", '{"offer": "soon", "act": "propose"}', "")

Deed = Literal["propose", "accept", "conditional", "leave", "none"]

_SENTENCE = re.compile(r"(?<=[.!?;])\s+")
_DOUBT = re.compile(
    r"\b(no|not|never|could|would|might|may|maybe|hardly|cannot|won't|can't|don't|didn't|isn't|"
    r"wouldn't|couldn't)\b",
    re.I,
)
_YES = re.compile(
    r"\b(agreed?|deal|accept(ed)?|fine|okay|ok|yes|yeah|sure|all right|alright|consider it done|"
    r"(?<!nothing )works? for|sounds (good|fair|right|okay|about right)|"
    r"\w+ it (is|shall be)(?=[.,!])|I('ll| will) take (it|that)|"
    r"I can live with|I'm in|good enough|taken|count me in|(book|confirm(ing)?) it)\b",
    re.I,
)
_CONDITION = re.compile(
    r"\b(if|unless|provided|providing|as long as|so long as|only when|on condition|in exchange|"
    r"in return|but with|but only)\b",
    re.I,
)
_LEAVE = re.compile(
    r"\b(ending (the|this|these|our)|end (the|this|these) (talks|call|conversation|negotiations?)|"
    r"walk(ing)? (away|out)|(am|are|I'm|we're) (done|finished|through)\b(?! with (my|the) )|"
    r"hanging up|good ?bye|bye|no point in|nothing (left|more) to (talk|discuss|say)|"
    r"leave me alone|cancel everything|not talking about (this|it)|refuse to go on)\b",
    re.I,
)
_THREAT = re.compile(r"\b(if|unless|or|may|might|could|would|will have to|before)\b", re.I)


def heard_emotion(utterance: str) -> str:
    """The emotion that a simulated ear hears in an utterance, one of the 28 labels.

    A simulated counterparty that is pleased is heard as joy, a cross one as anger; elsewhere it is
    the emotion with the most marked words.
    """
    for mood, emotion in (("pleased", "joy"), ("cross", "anger"), ("walk", "anger")):
        if any(utterance.startswith(opening) for opening in PHRASES["counterparty"][mood]):
            return emotion
    return expressed(utterance).emotion or NEUTRAL


def reader_reply(request: Request) -> str:
    """The reading of the utterance in a prompt, as JSON; sometimes a bad answer."""
    if request.rng.random() < BAD_READING_ODDS:
        return str(request.rng.choice(BAD_READINGS))
    _, _, rest = request.user.partition("<utterance>\n")
    utterance, closed, _ = rest.partition("\n</utterance>")
    if not closed:
        return "I can't find an utterance."
    if '"emotion"' in request.system:
        return json.dumps({"emotion": heard_emotion(utterance)})
    domain = read_brief(request.system).domain
    figure = last_figure(utterance, domain)
    shown = None if figure is None else show_figure(figure, domain)
    return json.dumps({"offer": shown, "act": _deed(utterance, figure)})


def _deed(utterance: str, figure: float | None) -> Deed:
    """What an utterance does that puts `figure` forward."""
    said = [s for s in _SENTENCE.split(utterance) if not s.rstrip().endswith("?")]
    if any(_LEAVE.search(s) and not _THREAT.search(s) for s in said):
        return "leave"
    is_yes = any(_YES.search(s) and not _DOUBT.search(s) for s in said)
    if (is_yes or figure is not None) and any(map(_CONDITION.search, said)):
        return "conditional"
    if is_yes:
        return "accept"
    return "none" if figure is None else "propose"
