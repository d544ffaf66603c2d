"""The dialogue state s_t that a selector sees just before its agent's turn.

All is said for an agent in the focal seat; in the counterparty's, it sees the mirrored dialogue.

With g = x* − x0, s = sgn(g), d = max(1, |g|), offers are placed on one line on which 1 is the focal
target and 0 the counterparty's anchor. A turn without an offer keeps the side's last one; before
the first, the focal side is taken to stand at x*, the counterparty at x0 (as in the shaped return).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

import numpy as np

from emodistill.emotions import EMOTION_INDEX, EMOTIONS
from emodistill.errors import InputError
from emodistill.records import Role, Turn

BOUND = 3.0
SPEED_WINDOW = 3
STALEMATE_CAP = 10
REPETITION_CAP = 5
UPSTREAM_STILL = 1.0
UPSTREAM_DEAL_PROBABILITY = 0.5
UPSTREAM_BREAKDOWN_RISK = 0.3


class Game(Protocol):
    """What a state needs to know of a scenario or a trajectory."""

    @property
    def focal_target(self) -> float: ...

    @property
    def counterparty_anchor(self) -> float: ...


class MirroredGame(NamedTuple):
    """A game as the other seat plays it."""

    focal_target: float
    counterparty_anchor: float


class Mirrored(NamedTuple):
    game: Game
    turns: list[Turn]


def mirrored(game: Game, turns: Sequence[Turn]) -> Mirrored:
    """The dialogue from the counterparty's seat: speakers swapped, and target and anchor with them.

    Twice is the identity. The turns keep emotions and numbers, so that the first one is then the
    counterparty's: whoever sits there answers an opening.
    """
    swapped = MirroredGame(game.counterparty_anchor, game.focal_target)
    return Mirrored(swapped, [replace(turn, speaker=_OTHER_SEAT[turn.speaker]) for turn in turns])


_OTHER_SEAT: Mapping[Role, Role] = {
    "focal": "counterparty",
    "counterparty": "focal",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogueState:
    """Offers (None: none in that turn) and focal emotions so far, each in order of the turns."""

    focal_target: float
    counterparty_anchor: float
    max_turns: int
    focal_offers: tuple[float | None, ...] = ()
    counterparty_offers: tuple[float | None, ...] = ()
    emotions: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        if self.max_turns < 1:
            raise InputError(f"max_turns={self.max_turns} must be at least 1.")
        for emotion in self.emotions:
            if emotion is not None and emotion not in EMOTION_INDEX:
                raise InputError(f"emotion {emotion!r} is none of the 28 GoEmotions labels.")

    @classmethod
    def from_turns(cls, game: Game, turns: Sequence[Turn], max_turns: int) -> Self:
        """The state after `turns`; for focal turn i of a trajectory, pass the turns before it."""
        return cls(
            focal_target=game.focal_target,
            counterparty_anchor=game.counterparty_anchor,
            max_turns=max_turns,
            focal_offers=tuple(t.offer for t in turns if t.speaker == "focal"),
            counterparty_offers=tuple(t.offer for t in turns if t.speaker == "counterparty"),
            emotions=tuple(t.emotion for t in turns if t.speaker == "focal"),
        )

    @property
    def num_turns(self) -> int:
        """Turns of both sides so far."""
        return len(self.focal_offers) + len(self.counterparty_offers)


GEOMETRY_NAMES: tuple[str, ...] = (
    "focal_concession",
    "counterparty_concession",
    "gap",
    "focal_position",
    "counterparty_position",
    "focal_speed",
    "counterparty_speed",
    "stalemate",
    "progress",
    "repetition",
    *(f"last_emotion={label}" for label in EMOTIONS),
)
UPSTREAM_NAMES: tuple[str, ...] = (
    "counterparty_concession",
    "gap",
    "progress",
    "counterparty_offer_to_anchor",
    "focal_retreat",
    "counterparty_speed",
    "counterparty_stalemate",
    "deal_probability",
    "breakdown_risk",
    "last_emotion_index",
)


def FEATURE_NAMES(kind: str = "geometry") -> tuple[str, ...]:  # noqa: N802
    """The names of the features of `kind`, in order."""
    return _kind(kind)[0]


def num_features(kind: str = "geometry") -> int:
    """S, the length of a feature vector of `kind`: 38 for `geometry`, 10 for `upstream`."""
    return len(_kind(kind)[0])


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
    values = _kind(kind)[1](state)
    vector = np.asarray(values, dtype=np.float64)
    vector = np.nan_to_num(vector, nan=0.0, posinf=BOUND, neginf=-BOUND)
    return np.clip(vector, -BOUND, BOUND).astype(np.float32)


def _geometry(state: DialogueState) -> list[float]:
    focal = _places(state, state.focal_offers, start=state.focal_target)
    counterparty = _places(state, state.counterparty_offers, start=state.counterparty_anchor)
    retreats = [before - after for before, after in itertools.pairwise(focal)]
    advances = [after - before for before, after in itertools.pairwise(counterparty)]
    last = state.emotions[-1] if state.emotions else None
    one_hot = [0.0] * len(EMOTIONS)
    repetition = 0.0
    if last is not None:
        one_hot[EMOTION_INDEX[last]] = 1.0
        repetition = min(1.0, state.emotions.count(last) / REPETITION_CAP)
    return [
        retreats[-1] if retreats else 0.0,
        advances[-1] if advances else 0.0,
        focal[-1] - counterparty[-1],
        focal[-1],
        counterparty[-1],
        _mean(retreats[-SPEED_WINDOW:]),
        _mean(advances[-SPEED_WINDOW:]),
        min(1.0, (_still(retreats) + _still(advances)) / STALEMATE_CAP),
        min(1.0, state.num_turns / state.max_turns),
        repetition,
        *one_hot,
    ]


def _upstream(state: DialogueState) -> list[float]:
    focal = _places(state, state.focal_offers, start=state.focal_target)
    counterparty = _places(state, state.counterparty_offers, start=state.counterparty_anchor)
    stated = [
        _place(state, offer)
        for offer in state.counterparty_offers
        if offer is not None and math.isfinite(offer)
    ]
    advances = [after - before for before, after in itertools.pairwise(stated)]
    anchor = max(1.0, abs(state.counterparty_anchor))
    offer = state.counterparty_anchor + counterparty[-1] * _sign(state) * _distance(state)
    last = state.emotions[-1] if state.emotions else "neutral"
    return [
        _clip(advances[-1] if advances else 0.0, -2.0),
        _clip(focal[-1] - counterparty[-1], -2.0),
        min(1.0, (len(state.focal_offers) + 1) / state.max_turns),
        _clip(offer / anchor, 0.0),
        _clip(focal[0] - focal[-1], 0.0),
        _clip(_mean(advances[-SPEED_WINDOW:]), -2.0),
        min(1.0, _still(advances, below=UPSTREAM_STILL / _distance(state)) / STALEMATE_CAP),
        UPSTREAM_DEAL_PROBABILITY,
        UPSTREAM_BREAKDOWN_RISK,
        EMOTION_INDEX[last or "neutral"] / (len(EMOTIONS) - 1),
    ]


_KINDS: Mapping[str, tuple[tuple[str, ...], Callable[[DialogueState], list[float]]]] = {
    "geometry": (GEOMETRY_NAMES, _geometry),
    "upstream": (UPSTREAM_NAMES, _upstream),
}


def _kind(kind: str) -> tuple[tuple[str, ...], Callable[[DialogueState], list[float]]]:
    if kind not in _KINDS:
        raise InputError(f"state kind {kind!r} is not known; use one of {', '.join(_KINDS)}.")
    return _KINDS[kind]


def _distance(state: DialogueState) -> float:
    return max(1.0, abs(state.focal_target - state.counterparty_anchor))


def _sign(state: DialogueState) -> float:
    return math.copysign(1.0, state.focal_target - state.counterparty_anchor)


def _place(state: DialogueState, offer: float) -> float:
    return _sign(state) * (offer - state.counterparty_anchor) / _distance(state)


def _places(state: DialogueState, offers: Sequence[float | None], *, start: float) -> list[float]:
    """Standing offer of one side before its first turn and after each, as places on the line."""
    places = [_place(state, start)]
    for offer in offers:
        is_offer = offer is not None and math.isfinite(offer)
        places.append(_place(state, offer) if is_offer else places[-1])  # type: ignore[arg-type]
    return places


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
