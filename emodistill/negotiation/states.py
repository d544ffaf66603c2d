"""The dialogue state s_t that a selector sees just before its player's turn.

Everything is named for a player in the focal role. In the counterparty's role a selector sees its
own side as the focal one: its target is the scenario's anchor, and its anchor the focal target.

With g = x* − x0, s = sgn(g), d = max(1, |g|), offers are positions on one line on which 1 is the
focal target and 0 the counterparty's anchor. A turn without an offer keeps the side's last one;
before the first, the focal side is taken to stand at x*, the counterparty at x0 (as in the shaped
return).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeGuard

import numpy as np

from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTION_INDEX, EMOTIONS
from emodistill.errors import InputError
from emodistill.records import Role, Trajectory, Turn

BOUND = 3.0
"""Positions lie between 0 and 1; a figure far outside, a misread one, must not swamp a network."""
SPEED_WINDOW = 3
STALEMATE_CAP = 10
"""Both as in the reference implementation, whose features `upstream` has."""
REPETITION_CAP = 5
"""A third of the focal turns that a dialogue can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogueState:
    """Offers (None: none in that turn) and focal emotions so far, each in order of the turns."""

    focal_target: float
    counterparty_anchor: float
    max_turns: int
    focal_offers: tuple[float | None, ...] = ()
    counterparty_offers: tuple[float | None, ...] = ()
    emotions: tuple[str | None, ...] = ()
    heard_emotions: tuple[str | None, ...] = ()
    """What was heard in each turn of the other side; None where nobody listened."""

    def __post_init__(self) -> None:
        if self.max_turns < 1:
            raise InputError(f"max_turns={self.max_turns} must be at least 1.")
        for emotion in self.emotions:
            if emotion is not None and emotion not in EMOTION_INDEX:
                raise InputError(f"emotion {emotion!r} is none of the 28 GoEmotions labels.")

    @classmethod
    def from_turns(
        cls,
        game: Scenario | Trajectory,
        turns: Sequence[Turn],
        max_turns: int,
        *,
        role: Role = "focal",
    ) -> Self:
        """The state after `turns` as a player in `role` sees it.

        For focal turn i of a trajectory, pass the turns before it.
        """
        ends = game.focal_target, game.counterparty_anchor
        target, anchor = ends if role == "focal" else ends[::-1]
        own = [turn for turn in turns if turn.speaker == role]
        return cls(
            focal_target=target,
            counterparty_anchor=anchor,
            max_turns=max_turns,
            focal_offers=tuple(turn.offer for turn in own),
            counterparty_offers=tuple(turn.offer for turn in turns if turn.speaker != role),
            emotions=tuple(turn.emotion for turn in own),
            heard_emotions=tuple(turn.heard_emotion for turn in turns if turn.speaker != role),
        )


def feature_names(kind: str = "geometry") -> tuple[str, ...]:
    """The names of the features of `kind`, in order: 38 for `geometry`, 10 for `upstream`."""
    start = DialogueState(focal_target=1.0, counterparty_anchor=0.0, max_turns=1)
    return tuple(_named_features(start, kind))


def features(state: DialogueState, kind: str = "geometry") -> np.ndarray:
    """The state as numbers: float32 [S], finite, within [-3, 3].

    `geometry`: last concession of each side (toward the other is positive), gap (1 at the start, 0
    where they meet), both positions, mean concession over each side's last 3 turns, turns since
    anyone moved (of 10), turns taken (of max_turns), focal turns that used the last emotion (of 5),
    and that emotion one-hot over the 28 (all zero before the first focal turn).

    `upstream`: the reference implementation's 10 numbers, made direction-free by s: counterparty's
    last concession, gap, focal turn number ÷ max_turns, counterparty's offer ÷ its anchor, focal
    retreat from the target, mean of the counterparty's last 3 concessions, its trailing moves of
    less than one unit (of 10), deal probability and breakdown risk (its defaults 0.5 and 0.3: no
    observer), index of the last emotion ÷ 27 (neutral before the first).

    Raises:
      InputError: unknown kind.
    """
    vector = np.array(list(_named_features(state, kind).values()), dtype=np.float64)
    return np.nan_to_num(np.clip(vector, -BOUND, BOUND)).astype(np.float32)


def _named_features(state: DialogueState, kind: str) -> dict[str, float]:
    if kind not in _KINDS:
        raise InputError(f"state kind {kind!r} is not known; use one of {', '.join(_KINDS)}.")
    return _KINDS[kind](state)


def _geometry(state: DialogueState) -> dict[str, float]:
    focal = _positions(state, state.focal_offers, start=state.focal_target)
    counterparty = _positions(state, state.counterparty_offers, start=state.counterparty_anchor)
    retreats = [before - after for before, after in itertools.pairwise(focal)]
    advances = [after - before for before, after in itertools.pairwise(counterparty)]
    num_turns = len(state.focal_offers) + len(state.counterparty_offers)
    last = state.emotions[-1] if state.emotions else None
    num_last = 0 if last is None else state.emotions.count(last)
    return {
        "focal_concession": retreats[-1] if retreats else 0.0,
        "counterparty_concession": advances[-1] if advances else 0.0,
        "gap": focal[-1] - counterparty[-1],
        "focal_position": focal[-1],
        "counterparty_position": counterparty[-1],
        "focal_speed": _mean(retreats[-SPEED_WINDOW:]),
        "counterparty_speed": _mean(advances[-SPEED_WINDOW:]),
        "stalemate": min(1.0, (_still(retreats) + _still(advances)) / STALEMATE_CAP),
        "progress": min(1.0, num_turns / state.max_turns),
        "repetition": min(1.0, num_last / REPETITION_CAP),
        **{f"last_emotion={label}": float(label == last) for label in EMOTIONS},
    }


def _upstream(state: DialogueState) -> dict[str, float]:
    focal = _positions(state, state.focal_offers, start=state.focal_target)
    counterparty = _positions(state, state.counterparty_offers, start=state.counterparty_anchor)
    stated = list(filter(_is_offer, state.counterparty_offers))
    _, *stood = _positions(state, stated, start=state.counterparty_anchor)
    advances = [after - before for before, after in itertools.pairwise(stood)]
    offer = state.counterparty_anchor + counterparty[-1] * _unit(state)
    still = _still(advances, below=1.0 / abs(_unit(state)))  # less than one unit
    last = state.emotions[-1] if state.emotions else None
    return {
        "counterparty_concession": _clip(advances[-1] if advances else 0.0, -2.0),
        "gap": _clip(focal[-1] - counterparty[-1], -2.0),
        "progress": min(1.0, (len(state.focal_offers) + 1) / state.max_turns),
        "counterparty_offer_to_anchor": _clip(
            offer / max(1.0, abs(state.counterparty_anchor)), 0.0
        ),
        "focal_retreat": _clip(focal[0] - focal[-1], 0.0),
        "counterparty_speed": _clip(_mean(advances[-SPEED_WINDOW:]), -2.0),
        "counterparty_stalemate": min(1.0, still / STALEMATE_CAP),
        # The reference implementation's defaults: there is no observer to estimate them.
        "deal_probability": 0.5,
        "breakdown_risk": 0.3,
        "last_emotion_index": EMOTION_INDEX[last or "neutral"] / (len(EMOTIONS) - 1),
    }


_KINDS: Mapping[str, Callable[[DialogueState], dict[str, float]]] = {
    "geometry": _geometry,
    "upstream": _upstream,
}


def _unit(state: DialogueState) -> float:
    """The length of the line from the anchor (0) to the target (1), with its direction: s d."""
    gap = state.focal_target - state.counterparty_anchor
    return math.copysign(max(1.0, abs(gap)), gap)


def _is_offer(offer: float | None) -> TypeGuard[float]:
    return offer is not None and math.isfinite(offer)


def _positions(
    state: DialogueState, offers: Sequence[float | None], *, start: float
) -> list[float]:
    """Where one side stands on the line before its first turn and after each."""
    values = [start]
    for offer in offers:
        values.append(offer if _is_offer(offer) else values[-1])
    return [(value - state.counterparty_anchor) / _unit(state) for value in values]


def _still(moves: Sequence[float], below: float = 1e-9) -> int:
    """How many of the last moves, counted from the end, were smaller than `below`."""
    for count, move in enumerate(reversed(moves)):
        if abs(move) >= below:
            return count
    return len(moves)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _clip(value: float, low: float) -> float:
    return min(2.0, max(low, value))
