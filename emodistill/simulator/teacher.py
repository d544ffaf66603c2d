"""`sim-teacher`: focal utterances of varied quality and wording under the asked emotion.

Skill varies from utterance to utterance and has nothing to do with the emotion: how clearly the
emotion is put into words, whether facts back the figure, and how much ground is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emodistill.emotions import NEUTRAL
from emodistill.simulator.reading import (
    Brief,
    Request,
    Speech,
    accepts,
    last_figure,
    read_brief,
    read_figures,
    read_history,
    read_sections,
    read_tone,
    round_figure,
    show_figure,
    step,
)
from emodistill.simulator.response_model import AFFECTS, PHRASES

# How clearly the emotion is said: two markers, one, none; and where the argument comes from.
CLARITY_ODDS = (0.35, 0.40, 0.25)
ARGUMENT_ODDS = (0.40, 0.30, 0.30)  # grounded, vague, none
REJECTION_ODDS = 0.25

# How much of the distance to the other side is given up in one utterance: odds, and from to.
CONCESSION_ODDS = (0.20, 0.34, 0.28, 0.18)
CONCESSIONS = ((0.0, 0.0), (0.04, 0.20), (0.20, 0.40), (0.40, 0.75))
SILENCE_ODDS = 0.05
SURRENDER_ODDS = 0.07
CLOSE_WITHIN = 0.12  # share of the first distance at which the teacher usually closes
CLOSE_ODDS = 0.7


def teacher_reply(request: Request) -> str:
    """The next focal utterance for a chat request."""
    sections = read_sections(request.system, request.user)
    rng, brief = request.rng, read_brief(sections.scenario)
    figure = _figure_sentence(brief, read_history(sections.talks, brief.role), rng)
    sentences = [*_affect(read_tone(sections), rng), *_argument(brief, rng), figure]
    if rng.random() < 0.3 and len(sentences) > 1:
        sentences[-1], sentences[-2] = sentences[-2], sentences[-1]
    return " ".join(sentences)


def _affect(emotion: str | None, rng: np.random.Generator) -> list[str]:
    affect = AFFECTS[emotion or NEUTRAL]
    if not affect.markers:
        return []
    kind = rng.choice(3, p=CLARITY_ODDS)
    if kind == 2:
        return []
    if kind == 1:
        return [str(rng.choice(affect.first if rng.random() < 0.7 else affect.second))]
    return [str(rng.choice(affect.first)), str(rng.choice(affect.second))]


def _argument(brief: Brief, rng: np.random.Generator) -> list[str]:
    texts = PHRASES[brief.domain]
    kind = rng.choice(3, p=ARGUMENT_ODDS)
    if kind == 2:
        return []
    if kind == 1:
        return [str(rng.choice(texts["vague"]))]
    usable = []
    for template in texts["leverage"]:
        try:
            argument = template.format_map(brief.facts)
        except KeyError:  # a fact that the prompt does not state
            continue
        # A fact with a figure of its own ("a paper due at 8 AM") would be taken for an offer.
        if last_figure(argument, brief.domain) is None:
            usable.append(argument)
    return [str(rng.choice(usable))] if usable else []


def _figure_sentence(brief: Brief, history: Sequence[Speech], rng: np.random.Generator) -> str:
    domain, texts = brief.domain, PHRASES[brief.domain]
    own, theirs = read_figures(history, domain)

    def say(move: str, value: float) -> str:
        return str(rng.choice(texts[move])).format(v=show_figure(value, domain))

    if not own:
        if brief.own_figure is None:
            return str(rng.choice(texts["silent"]))
        return say("open", brief.own_figure)
    if not theirs:
        return say("hold", own[-1])
    distance = abs(theirs[-1] - own[-1])
    reach = max(abs(theirs[0] - own[0]), step(domain))
    heard_yes = not history[-1].is_own and accepts(history[-1].text)
    close = distance <= max(CLOSE_WITHIN * reach, step(domain)) and rng.random() < CLOSE_ODDS
    if heard_yes or close or rng.random() < SURRENDER_ODDS:
        return say("accept", theirs[-1])
    if rng.random() < SILENCE_ODDS:
        return str(rng.choice(texts["silent"]))
    low, high = CONCESSIONS[rng.choice(len(CONCESSIONS), p=CONCESSION_ODDS)]
    value = round_figure(own[-1] + rng.uniform(low, high) * (theirs[-1] - own[-1]), domain)
    is_held = abs(value - own[-1]) < step(domain)
    sentence = say("hold", own[-1]) if is_held else say("concede", value)
    if rng.random() < REJECTION_ODDS:
        rejection = str(rng.choice(texts["reject"]))
        sentence = f"{rejection.format(theirs=show_figure(theirs[-1], domain))} {sentence}"
    return sentence
