"""The lines that stages hand to each other: turns, trajectories, judgements.

A record is frozen, knows its JSON form and refuses a line that it does not understand, naming
the file, the line and the field. The JSON Schemas of the same records are package data
(`emodistill/schema/*.json`, explained in docs/data.md).
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from emodistill.emotions import EMOTION_INDEX
from emodistill.errors import InputError

SCHEMA = 1

Role = Literal["focal", "counterparty"]
Outcome = Literal["accepted", "breakdown", "ongoing"]
SplitName = Literal["train", "validation", "test"]
JudgementStatus = Literal["scored", "failed"]


Read = Callable[[Any], Any]
"""From a JSON value to a field's; raises _InvalidError."""


class _InvalidError(Exception):
    """What is wrong with a value, after where that is in its record: `: field 'x': expected …`."""


class Record:
    """JSON in and out for a frozen dataclass; unknown, missing and ill-typed fields are refused."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values, nested records included, in field order."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, obj: object, *, where: str) -> Self:
        """Read a record; `where` (e.g. `trajectories.jsonl:12`) goes into every error."""
        try:
            return _record_reader(cls)(obj)
        except _InvalidError as error:
            raise InputError(f"{where}{error}") from None


@functools.cache
def _record_reader(cls: type[Record]) -> Read:
    hints = typing.get_type_hints(cls)
    readers = {name: _reader(hint) for name, hint in hints.items()}
    required = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.default is field.default_factory is dataclasses.MISSING
    ]

    def read(obj: Any) -> Record:
        if not isinstance(obj, Mapping):
            raise _InvalidError(f": expected a JSON object, found {type(obj).__name__}.")
        if "schema" in readers and obj.get("schema") != SCHEMA:
            raise _InvalidError(
                f": schema={obj.get('schema')!r} is not known here; this version reads "
                f"schema={SCHEMA}. Convert the file or install the version that wrote it."
            )
        if unknown := sorted(obj.keys() - readers.keys()):
            raise _InvalidError(f": unknown field {unknown[0]!r} in a {cls.__name__} record.")
        values = {}
        for name, value in obj.items():
            try:
                values[name] = readers[name](value)
            except _InvalidError as error:
                raise _InvalidError(f": field {name!r}{error}") from None
        for name in required:
            if name not in values:
                raise _InvalidError(f": field {name!r} of a {cls.__name__} record is missing.")
        try:
            return cls(**values)
        except InputError as error:
            raise _InvalidError(f": {error}") from None

    return read


def _reader(hint: Any) -> Read:
    """How a field of this type is read: compiled once, since a sweep has millions of fields."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = _reader(next(arg for arg in args if arg is not type(None)))
        return lambda value: None if value is None else inner(value)
    if origin is Literal:
        return functools.partial(_read_choice, args)
    if origin is tuple:
        return functools.partial(_read_list, _reader(args[0]))
    if origin is Mapping:
        return _read_object
    if issubclass(hint, Record):
        return _record_reader(hint)
    return functools.partial(_read_scalar, hint)


def _read_choice(choices: tuple[Any, ...], value: Any) -> Any:
    if value not in choices:
        raise _InvalidError(f": {value!r} is none of {', '.join(map(repr, choices))}.")
    return value


def _read_list(read: Read, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _InvalidError(f": expected a list, found {type(value).__name__}.")
    items = []
    for i, item in enumerate(value):
        try:
            items.append(read(item))
        except _InvalidError as error:
            raise _InvalidError(f"[{i}]{error}") from None
    return tuple(items)


def _read_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _InvalidError(f": expected an object, found {type(value).__name__}.")
    return dict(value)


def _read_scalar(kind: type, value: Any) -> Any:
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    raise _InvalidError(f": expected {kind.__name__}, found {value!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(Record):
    """One utterance and what was measured on it; `offer` is in the domain's unit."""

    index: int
    speaker: Role
    emotion: str | None
    text: str
    offer: float | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if self.emotion is not None and self.emotion not in EMOTION_INDEX:
            raise InputError(f"emotion {self.emotion!r} is none of the 28 GoEmotions labels.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FocalPlayer(Record):
    """Who played the focal role, and the cells (stage -> cell) that its policy came from."""

    method: str
    model: str
    temperature: float
    cells: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterpartyPlayer(Record):
    """Who played the counterparty; `method` and `cells` where it played by a method too."""

    model: str
    temperature: float
    method: str | None = None
    cells: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogueUsage(Record):
    """What a dialogue used, both roles together."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory(Record):
    """One finished dialogue. `final_value` is the agreed value, None unless `accepted`."""

    schema: int = SCHEMA
    trajectory_id: str
    domain: str
    scenario_id: str
    seed: int
    split: SplitName
    focal_target: float
    counterparty_anchor: float
    unit: str
    focal: FocalPlayer
    counterparty: CounterpartyPlayer
    prompt_pack_sha256: str
    agreement_rule: str
    turns: tuple[Turn, ...]
    outcome: Outcome
    final_value: float | None
    usage: DialogueUsage = DialogueUsage()
    cost_usd: float = 0.0

    def __post_init__(self) -> None:
        if [turn.index for turn in self.turns] != list(range(len(self.turns))):
            raise InputError(f"the turns of {self.trajectory_id!r} are not numbered 0, 1, 2, …")
        if (self.outcome == "accepted") != (self.final_value is not None):
            raise InputError(
                f"outcome={self.outcome!r} with final_value={self.final_value!r} in "
                f"{self.trajectory_id!r}: an accepted dialogue has a value, no other has one."
            )

    @property
    def focal_turns(self) -> tuple[Turn, ...]:
        return tuple(turn for turn in self.turns if turn.speaker == "focal")

    @property
    def counterparty_turns(self) -> tuple[Turn, ...]:
        return tuple(turn for turn in self.turns if turn.speaker == "counterparty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement(Record):
    """One judge call on a focal turn, or on a whole dialogue (`turn_index` is None)."""

    schema: int = SCHEMA
    trajectory_id: str
    turn_index: int | None
    judge: str
    repeat: int
    attempt: int
    rubric_sha256: str
    raw: str
    status: JudgementStatus
    score: int | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0

    def __post_init__(self) -> None:
        if self.status == "scored" and not (self.score is not None and 1 <= self.score <= 10):
            raise InputError(f"status='scored' needs a score from 1 to 10, found {self.score!r}.")
        if self.status == "failed" and self.score is not None:
            raise InputError(
                f"status='failed' with score={self.score}: a failed call has no score."
            )
