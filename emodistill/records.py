"""The lines that stages hand to each other: turns, trajectories, judgements.

A record is frozen, knows its JSON form and refuses a line that it does not understand, naming
the file, the line and the field. The JSON Schemas of the same records are package data
(`emodistill/schema/*.json`, explained in docs/data.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import msgspec

from emodistill.emotions import EMOTION_INDEX
from emodistill.errors import InputError
from emodistill.untrusted import brief, shown

SCHEMA = 1

Role = Literal["focal", "counterparty"]
Outcome = Literal["accepted", "breakdown", "ongoing"]
SplitName = Literal["train", "validation", "test"]
JudgementStatus = Literal["scored", "failed"]
Act = Literal["propose", "accept", "conditional", "leave", "none"]
"""What an utterance does: it puts a figure forward, says yes to the other side's, does either on a
condition that is not met yet, ends the talks, or does none of these."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """JSON in and out; unknown, missing and ill-typed fields are refused."""

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values, nested records included, in field order."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_json(cls, obj: object, *, where: str) -> Self:
        """Read a record; `where` (e.g. `trajectories.jsonl:12`) goes into every error."""
        # The schema is checked first: another one most likely has other fields too.
        schema = obj.get("schema") if isinstance(obj, Mapping) else SCHEMA
        if "schema" in cls.__struct_fields__ and schema != SCHEMA:
            raise InputError(
                f"{where}: schema={shown(schema)} is not known here; this version reads "
                f"schema={SCHEMA}. Convert the file or install the version that wrote it."
            )
        try:
            return msgspec.convert(obj, cls)
        except (msgspec.ValidationError, UnicodeError) as error:
            raise InputError(
                f"{where}: not a {cls.__name__} record: {brief(error).rstrip('.')}. docs/data.md "
                "has its fields."
            ) from None


class Turn(Record, frozen=True, kw_only=True):
    """One utterance and what was measured on it; `offer` is in the domain's unit."""

    index: int
    speaker: Role
    emotion: str | None
    heard_emotion: str | None = None
    """What the other side heard in it, where its selector looks at that."""
    text: str
    offer: float | None
    act: Act | None = None
    """As a language model has read it, and the mediator goes by it; None where patterns read."""
    finish_reason: Literal["stop", "length"] = "stop"
    """`length`: the utterance was cut at its limit of tokens, twice. It offers nothing, agrees to
    nothing and ends nothing, and nothing is trained on it."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        for emotion in (self.emotion, self.heard_emotion):
            if emotion is not None and emotion not in EMOTION_INDEX:
                raise InputError(f"emotion {emotion!r} is none of the 28 GoEmotions labels.")


class StudentServer(Record, frozen=True, kw_only=True):
    """The server that wrote as the student, and what its answers said of the adapter."""

    url: str
    adapter: Literal["in use", "unknown", "none"]
    """`none`: the student without an adapter was asked for, and nothing was checked."""


class FocalPlayer(Record, frozen=True, kw_only=True):
    """Who played the focal role, and the cells (stage -> cell) that its policy came from."""

    method: str
    model: str
    provider: str = ""
    """Who served the model: a provider's name, or an address; empty for one that ran here."""
    temperature: float
    cells: Mapping[str, str] = {}
    server: StudentServer | None = None


class CounterpartyPlayer(Record, frozen=True, kw_only=True):
    """Who played the counterparty; `method` and `cells` where it played by a method too."""

    model: str
    provider: str = ""
    temperature: float
    method: str | None = None
    cells: Mapping[str, str] = {}
    server: StudentServer | None = None


class DialogueUsage(Record, frozen=True, kw_only=True):
    """What a dialogue used, both roles together."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Trajectory(Record, frozen=True, kw_only=True):
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


class FailedDialogue(Record, frozen=True, kw_only=True):
    """A dialogue that failed for good; `kind` is `refused`, `empty` or `exhausted`."""

    schema: int = SCHEMA
    trajectory_id: str
    kind: str
    reason: str


class Judgement(Record, frozen=True, kw_only=True):
    """One judge call on a focal turn, or on a whole dialogue (`turn_index` is None)."""

    schema: int = SCHEMA
    trajectory_id: str
    turn_index: int | None
    judge: str
    provider: str = ""
    """Who served the judge."""
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


class TurnWorth(Record, frozen=True, kw_only=True):
    """What a recorded turn is worth: Q(s, u) − V(s) by forks, as shares of 1.

    `utility` and `success` are means over pairs of forks, with their standard errors (null for a
    single pair).
    """

    schema: int = SCHEMA
    trajectory_id: str
    turn_index: int
    continued_by: str
    """`recorded`, or the method of the student that played on."""
    num_pairs: int
    utility: float
    utility_error: float | None
    success: float
    success_error: float | None
