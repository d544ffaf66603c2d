"""One dialogue: the focal agent opens, the sides alternate, the mediator says when it is over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from emodistill.domains.scenario import Scenario
from emodistill.negotiation.mediator import mediate
from emodistill.negotiation.readers import PATTERNS, OfferReader, Read
from emodistill.negotiation.speakers import EmptyReplyError, Reply, Speaker
from emodistill.negotiation.states import DialogueState, mirrored
from emodistill.prompts import Message, counterparty_messages, focal_messages
from emodistill.records import CounterParty, FocalParty, Trajectory, Turn, Usage
from emodistill.seeding import derive

if TYPE_CHECKING:
    from emodistill.prompts import PromptPack

log = logging.getLogger("emodistill.negotiation")

ChooseEmotion = Callable[[DialogueState], str | None]


async def play(
    scenario: Scenario,
    *,
    trajectory_id: str,
    seed: int,
    focal: Speaker,
    counterparty: Speaker,
    choose_emotion: ChooseEmotion,
    pack: PromptPack,
    method: str,
    cells: Mapping[str, str] | None = None,
    choose_counterparty_emotion: ChooseEmotion | None = None,
    counterparty_method: str | None = None,
    counterparty_cells: Mapping[str, str] | None = None,
    agreement: str = "stand",
    max_turns: int = 30,
    seed_number: int | None = None,
    silence_ends: bool = False,
    reader: OfferReader = PATTERNS,
) -> Trajectory:
    """Play a dialogue to its end: an agreement, a breakdown, or `max_turns` turns of both sides.

    Args:
      seed: root of the dialogue's random streams; each side's API seed derives from it and the
        `trajectory_id` and is constant within the dialogue.
      choose_emotion: asked before each focal turn; None leaves the emotion block out.
      choose_counterparty_emotion: the same for the counterparty, on the state as its own seat
        sees it (`mirrored`). Without it the counterparty is neutral and records no emotion.
      counterparty_method, counterparty_cells: what the record says of a counterparty that plays
        by a method.
      seed_number: what the record's `seed` says, where dialogues of a scenario are numbered under
        one root; `seed` itself unless given.
      silence_ends: a speaker that plays by a method and has nothing to say has broken off the
        talks, instead of making the dialogue fail.
      reader: reads the offers out of the utterances.

    Raises:
      ApiError: a speaker failed for good; there is no half trajectory.
    """
    focal_seed = derive(seed, "focal", trajectory_id)
    counterparty_seed = derive(seed, "counterparty", trajectory_id)
    turns: list[Turn] = []
    outcome, final_value, cost_usd = "ongoing", None, 0.0
    reads: list[Read] = []
    while outcome == "ongoing" and len(turns) < max_turns:
        emotion = None
        is_focal = len(turns) % 2 == 0
        speaker, side_seed = (focal, focal_seed) if is_focal else (counterparty, counterparty_seed)
        if is_focal:
            emotion = choose_emotion(DialogueState.from_turns(scenario, turns, max_turns))
            render = partial(_focal_prompt, pack, scenario, emotion)
        elif choose_counterparty_emotion is None:
            render = partial(counterparty_messages, pack, scenario)
        else:
            seen = mirrored(scenario, turns)
            emotion = choose_counterparty_emotion(DialogueState.from_turns(*seen, max_turns))
            render = partial(counterparty_messages, pack, scenario, emotion=emotion)
        messages = _fitting(speaker, turns, render)
        try:
            reply = await speaker.reply(messages, dialogue_id=trajectory_id, seed=side_seed)
        except EmptyReplyError:
            if not silence_ends or not (is_focal or counterparty_method):
                raise
            outcome = "breakdown"
            break
        text = _said(reply, len(turns), trajectory_id)
        reads.append(await reader.read(text, scenario.domain, dialogue_id=trajectory_id, seed=seed))
        turns.append(_turn(len(turns), is_focal, emotion, reply, text, reads[-1].offer))
        cost_usd += reply.cost_usd
        outcome, final_value = mediate(
            turns,
            domain=scenario.domain,
            focal_target=scenario.focal_target,
            counterparty_anchor=scenario.counterparty_anchor,
            rule=agreement,
        )
    return Trajectory(
        trajectory_id=trajectory_id,
        domain=scenario.domain,
        scenario_id=scenario.scenario_id,
        seed=seed if seed_number is None else seed_number,
        split=scenario.split,
        focal_target=scenario.focal_target,
        counterparty_anchor=scenario.counterparty_anchor,
        unit=scenario.unit,
        focal=FocalParty(
            method=method,
            model=focal.model,
            temperature=focal.temperature,
            cells=dict(cells or {}),
        ),
        counterparty=CounterParty(
            model=counterparty.model,
            temperature=counterparty.temperature,
            method=counterparty_method,
            cells=dict(counterparty_cells or {}),
        ),
        prompt_pack_sha256=pack.sha256,
        agreement_rule=agreement,
        turns=tuple(turns),
        outcome=outcome,
        final_value=final_value,
        usage=Usage(
            calls=len(turns) + sum(read.num_calls for read in reads),
            prompt_tokens=sum(one.prompt_tokens for one in (*turns, *reads)),
            completion_tokens=sum(one.completion_tokens for one in (*turns, *reads)),
        ),
        cost_usd=cost_usd + sum(read.cost_usd for read in reads),
    )


def _focal_prompt(
    pack: PromptPack, scenario: Scenario, emotion: str | None, turns: Sequence[Turn]
) -> list[Message]:
    return focal_messages(pack, scenario, turns, emotion)


def _fitting(
    speaker: Speaker, turns: Sequence[Turn], render: Callable[[Sequence[Turn]], list[Message]]
) -> list[Message]:
    """The prompt, without the fewest oldest turns that make it fit the speaker's window."""
    messages = render(turns)
    dropped = 0
    while not speaker.fits(messages) and dropped < len(turns):
        dropped += 1
        messages = render(turns[dropped:])
    if dropped:
        log.info("%s: the %d oldest turns don't fit the prompt.", speaker.model, dropped)
    return messages


def clean(text: str) -> str:
    """An utterance as records keep it: one line, single spaces."""
    return " ".join(text.split())


def _said(reply: Reply, index: int, trajectory_id: str) -> str:
    text = clean(reply.text)
    if not text:
        raise EmptyReplyError(f"turn {index} of {trajectory_id} is empty.")
    return text


def _turn(
    index: int,
    is_focal: bool,
    emotion: str | None,
    reply: Reply,
    text: str,
    offer: float | None,
) -> Turn:
    return Turn(
        index=index,
        speaker="focal" if is_focal else "counterparty",
        emotion=emotion,
        text=text,
        offer=offer,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        latency_s=round(reply.latency_s, 4),
    )
