"""Deciding after each turn whether the two sides agree, have broken off, or go on.

Rule `stand` accepts where
- both sides stand at the same value, within the domain's tolerance, or have crossed: with
  s = sgn(x* − x0), the focal ask f and the counterparty's offer c meet when s(f − c) <= tolerance;
  the later value counts;
- the last speaker says yes to the other side's standing offer; that value counts. A yes with a
  condition, a question, a figure of speech or another value is no yes.

It reports a breakdown where the last speaker ends the talks; threatening to is not ending them. An
utterance that was cut at its limit of tokens neither agrees nor ends: what it would have said next
is not known.

Whether an utterance says yes, sets a condition or ends the talks is said by its `act`, where a
language model has read one, and else by patterns (`closing`).

Rule `upstream` accepts where the last offers differ by 5 units or less, whatever the unit (in the
student domain that is five hours), at the midpoint rounded half to even, as the reference
implementation settles; else it is `stand`, which its language-model reader comes closest to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from emodistill.domains import Scenario, get_domain
from emodistill.errors import InputError
from emodistill.negotiation.closing import Answer, read_answer
from emodistill.records import Outcome, Trajectory, Turn

RULES = ("stand", "upstream")
UPSTREAM_TOLERANCE = 5.0
_ROUNDING = 1e-9  # two readings of the same value may differ by float rounding


class Verdict(NamedTuple):
    """How the dialogue stands; `final_value` is None unless `accepted`."""

    outcome: Outcome
    final_value: float | None


ONGOING = Verdict("ongoing", None)
BREAKDOWN = Verdict("breakdown", None)


def mediate(turns: Sequence[Turn], game: Scenario | Trajectory, rule: str = "stand") -> Verdict:
    """The verdict after the last of a game's `turns`, whose offers have been read.

    Only offers made in the dialogue stand; the counterparty's anchor does not.

    Raises:
      InputError: unknown rule or domain, or a target equal to the anchor.
    """
    if rule not in RULES:
        raise InputError(f"rule={rule!r} is not known; use one of {', '.join(RULES)}.")
    if game.focal_target == game.counterparty_anchor:
        raise InputError(
            f"focal_target and counterparty_anchor are both {game.focal_target:g}; "
            "there is nothing to negotiate. Give them different values."
        )
    tolerance = get_domain(game.domain).tolerance + _ROUNDING
    if not turns:
        return ONGOING
    *before, last = turns
    if last.finish_reason == "length":
        return ONGOING
    standing = {turn.speaker: turn for turn in before if turn.offer is not None}
    own = standing.pop(last.speaker, None)
    their = next(iter(standing.values()), None)
    theirs = None if their is None else their.offer
    answer = _answer(last, game.domain)

    if (
        answer.accepts
        and theirs is not None
        and (last.offer is None or abs(last.offer - theirs) <= tolerance)
    ):
        return Verdict("accepted", theirs)
    if answer.ends:
        return BREAKDOWN
    if last.offer is None or their is None or theirs is None or answer.has_condition:
        return ONGOING
    if rule == "upstream" and abs(last.offer - theirs) <= UPSTREAM_TOLERANCE + _ROUNDING:
        return Verdict("accepted", float(round((last.offer + theirs) / 2)))
    ahead = last.offer - theirs if last.speaker == "focal" else theirs - last.offer
    sign = 1.0 if game.focal_target > game.counterparty_anchor else -1.0
    if sign * ahead > tolerance:
        return ONGOING
    # The other side came here on a condition that this turn, at an unmoved offer, does not take up.
    own_offer = None if own is None else own.offer
    is_unmoved = own_offer is not None and abs(own_offer - last.offer) <= tolerance
    if is_unmoved and _answer(their, game.domain).has_condition:
        return ONGOING
    return Verdict("accepted", last.offer)


def _answer(turn: Turn, domain: str) -> Answer:
    """What a turn does besides making an offer."""
    if turn.act is None:
        return read_answer(turn.text, domain)
    return Answer(
        accepts=turn.act == "accept",
        has_condition=turn.act == "conditional",
        ends=turn.act == "leave",
    )


def replay(trajectory: Trajectory, rule: str) -> Verdict:
    """How a recorded dialogue ends under `rule`: the first verdict that is no `ongoing`."""
    turns = trajectory.turns
    verdicts = (mediate(turns[:end], trajectory, rule) for end in range(1, len(turns) + 1))
    return next((verdict for verdict in verdicts if verdict != ONGOING), ONGOING)
