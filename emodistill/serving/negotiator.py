"""The whole negotiator behind a model's name: it reads the talks so far out of a request's
messages, picks the emotion, and makes the prompt that the student continues.

A request brings the scenario in its field `emodistill`, or as the JSON of a system message, since
some clients send no fields of their own:

    {"scenario": {…a line of scenarios.jsonl…}, "role": "focal"}

Messages of the role `assistant` are the negotiator's own turns, those of `user` the other side's.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from emodistill.domains.registry import get_domain
from emodistill.domains.scenario import Scenario, scenario_problems
from emodistill.emotions import EMOTION_INDEX
from emodistill.errors import InputError
from emodistill.negotiation import DialogueState, read_offer
from emodistill.prompts import Message, PromptPack, counterparty_messages, focal_messages
from emodistill.records import Role, Turn
from emodistill.seeding import derive, stream
from emodistill.selectors import Selector
from emodistill.serving.chat_requests import ChatRequest, GivenMessage, Setting, converted
from emodistill.serving.refusals import ChatRefusedError
from emodistill.simulator.reader import heard_emotion
from emodistill.untrusted import brief, parse_json, shown

MAX_TURNS = 200
"""Of talks that are read; dialogues end after thirty or sixty."""
MAX_UTTERANCE, MAX_TALKS = 4096, 1 << 16
"""Characters of an utterance and of all together; students write a few hundred a turn."""


class Negotiated(NamedTuple):
    """What a negotiator makes of a request.

    Attributes:
      emotion: None where the method leaves the emotion block out.
      offers: what was read out of each turn so far.
      num_dropped: the oldest turns, which didn't fit the prompt.
      seed: for the student's sampling.
    """

    messages: list[Message]
    emotion: str | None
    offers: list[float | None]
    num_dropped: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """What the answer says of it."""
        return {
            "emotion": self.emotion,
            "offers": self.offers,
            "dropped_turns": self.num_dropped,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Negotiator:
    """A method: who picks the emotion, and the prompts of its student.

    Attributes:
      adapter: the name under which the student that writes for it is served.
      max_turns: of a dialogue, both sides together, as the selector was trained.
      hears: whether the selector looks at the other side's emotions, as the simulator's ear has
        them.
    """

    selector: Selector
    adapter: str
    pack: PromptPack
    max_turns: int
    hears: bool = False

    def read(
        self, request: ChatRequest, seed: int, fits: Callable[[Sequence[Message]], bool]
    ) -> Negotiated:
        """The prompt for the negotiator's next turn.

        An earlier emotion of its own that a message doesn't name is drawn again: with one seed for
        a whole dialogue, it is the one that was expressed.

        Args:
          fits: whether a prompt leaves room for the reply; if not, its oldest turns are dropped.

        Raises:
          ChatRefusedError: the messages are no talks, or the scenario can't be played.
        """
        setting, said = _setting_of(request)
        scenario = _scenario(setting.scenario)
        turns = self._turns(scenario, setting.role, said, seed)
        emotion = self._choose(scenario, setting.role, turns, seed)
        render = focal_messages if setting.role == "focal" else counterparty_messages
        try:
            prompt = functools.partial(render, self.pack, scenario, emotion=emotion)
            # Without more of its turns, a prompt is no longer.
            dropped, messages = 0, prompt(turns=turns)
            if not fits(messages):
                dropped = bisect.bisect_left(
                    range(len(turns)), True, key=lambda n: fits(prompt(turns=turns[n:]))
                )
                messages = prompt(turns=turns[dropped:])
        except InputError as error:
            raise ChatRefusedError(brief(error), param="emodistill.scenario") from None
        return Negotiated(
            messages=messages,
            emotion=emotion,
            offers=[turn.offer for turn in turns],
            num_dropped=dropped,
            seed=derive(seed, "turn", messages[-1]["content"]),
        )

    def _turns(
        self, scenario: Scenario, role: Role, said: Sequence[GivenMessage], seed: int
    ) -> list[Turn]:
        turns: list[Turn] = []
        opposite: Role = "counterparty" if role == "focal" else "focal"
        for message in said:
            is_own = message.role == "assistant"
            emotion = message.emotion if is_own else None
            if is_own and emotion is None:
                emotion = self._choose(scenario, role, turns, seed)
            text = " ".join(message.content.split())
            turns.append(
                Turn(
                    index=len(turns),
                    speaker=role if is_own else opposite,
                    emotion=emotion,
                    heard_emotion=heard_emotion(text) if self.hears and not is_own else None,
                    text=text,
                    offer=read_offer(text, scenario.domain),
                )
            )
        return turns

    def _choose(
        self, scenario: Scenario, role: Role, turns: Sequence[Turn], seed: int
    ) -> str | None:
        state = DialogueState.from_turns(scenario, turns, self.max_turns, role=role)
        return self.selector.choose(state, stream(seed, "served-emotions", len(turns)))


def _setting_of(request: ChatRequest) -> tuple[Setting, list[GivenMessage]]:
    """Scenario and role, and the utterances of both sides."""
    said = [message for message in request.messages if message.role != "system"]
    systems = [message for message in request.messages if message.role == "system"]
    setting = request.setting
    if len(systems) > (setting is None) or (systems and request.messages[0].role != "system"):
        raise ChatRefusedError(
            "a negotiator writes its own system message; the request brings the scenario, in "
            "the field emodistill or as the JSON of one system message at the beginning.",
            param="messages",
        )
    if setting is None:
        setting = _setting_in(systems[0].content if systems else "")
    _check_talks(said)
    return setting, said


def _setting_in(text: str) -> Setting:
    try:
        given: object = parse_json(text)
    except ValueError as error:
        raise ChatRefusedError(
            'a negotiator needs the scenario: emodistill={"scenario": {…}} with a line of '
            "scenarios.jsonl (docs/serving.md), or the same as the JSON of a system message "
            f"({brief(error)}).",
            param="emodistill",
        ) from None
    return converted(given, Setting, within="messages[0].content")


def _check_talks(said: Sequence[GivenMessage]) -> None:
    """Refuse messages that are no turns of two sides of which the other one spoke last."""
    if len(said) > MAX_TURNS:
        raise ChatRefusedError(
            f"the talks have {len(said)} turns; {MAX_TURNS} are read at most.", param="messages"
        )
    if sum(len(message.content) for message in said) > MAX_TALKS:
        raise ChatRefusedError(
            f"the talks have more than {MAX_TALKS:,} characters.", param="messages"
        )
    for i, message in enumerate(said):
        where = f"turn {i} of the talks"
        if i and message.role == said[i - 1].role:
            raise ChatRefusedError(
                f"{where} is of the same side as the one before; join the two.", param="messages"
            )
        if not message.content.strip() or len(message.content) > MAX_UTTERANCE:
            raise ChatRefusedError(
                f"{where} must have 1 to {MAX_UTTERANCE:,} characters.", param="messages"
            )
        if message.emotion is not None and message.emotion not in EMOTION_INDEX:
            raise ChatRefusedError(
                f"{where}: emotion={shown(message.emotion)} is none of the 28 labels.",
                param="messages",
            )
    if said and said[-1].role == "assistant":
        raise ChatRefusedError(
            "the last message is the negotiator's own; it waits for the other side's.",
            param="messages",
        )


def _scenario(given: Mapping[str, Any]) -> Scenario:
    param = "emodistill.scenario"
    try:
        scenario = Scenario.from_json(dict(given), where=param)
        problems = scenario_problems(scenario, get_domain(scenario.domain))
    except InputError as error:
        raise ChatRefusedError(brief(error), param=param) from None
    if problems:
        raise ChatRefusedError(brief(problems[0]), param=param)
    return scenario
