"""On-policy training round by round: what each has cost, and how well the student played in it.

    <stage>/<cell>/rounds.jsonl    a finished round a line
    <stage>/<cell>/rounds/0001/    its dialogues, their scores, and the adapter learnt from them

A round's dialogues are played with the adapter of the round before, so that its utility is what
that adapter reaches, on the training scenarios.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from emodistill.files import write_json
from emodistill.offline.judge_items import NO_ANSWER
from emodistill.offline.judging import scores_by_turn
from emodistill.offline.rewards import Scores, dialogue_utility
from emodistill.offline.store import read_records
from emodistill.records import Judgement, Record, Trajectory
from emodistill.untrusted import read_typed

ROUNDS, SECONDS = "rounds.jsonl", "seconds.json"


class Spent(NamedTuple):
    """What dialogues have cost, or may."""

    num_dialogues: float = 0
    num_calls: float = 0
    """Answered by counterparty, judge and reader; the student's own replies are none."""
    num_tokens: float = 0
    """Of these calls, read and written."""
    seconds: float = 0.0
    """Of playing, judging and learning, by the wall clock."""
    cost_usd: float = 0.0

    def plus(self, other: Spent) -> Spent:
        return Spent(*map(operator.add, self, other))

    def times(self, factor: float) -> Spent:
        return Spent(*(factor * value for value in self))


NOTHING = Spent()


class Round(Record, frozen=True, kw_only=True):
    """A finished round, as a line of `rounds.jsonl`."""

    number: int
    """From 1."""
    num_dialogues: int
    num_failed: int
    """Dialogues that never came about; nothing is learnt from them."""
    num_calls: int
    """To counterparty, judge and reader."""
    call_tokens: int
    student_tokens: int
    """Written by the student, which costs time alone."""
    num_turns: int
    """Focal turns."""
    num_unscored: int
    """Those that the judge was asked about in vain, which nothing is learnt from."""
    num_samples: int
    """Turns that the adapter has learnt from."""
    num_steps: int
    play_s: float
    judge_s: float
    train_s: float
    cost_usd: float
    utility: dict[str, float]
    """scenario -> mean utility of its dialogues."""
    success: float
    """Share of the dialogues that end in an agreement."""
    mean_score: float | None
    """Of the judge, where there is one."""
    metrics: dict[str, float]
    """Of the round's last optimiser step."""

    @property
    def spent(self) -> Spent:
        seconds = self.play_s + self.judge_s + self.train_s
        calls = self.num_calls, self.call_tokens
        return Spent(self.num_dialogues + self.num_failed, *calls, seconds, self.cost_usd)

    @property
    def mean_utility(self) -> float:
        """Every scenario has as many dialogues planned, so each counts as much."""
        return float(np.mean([*self.utility.values()]))


def read_rounds(path: Path) -> list[Round]:
    """The finished rounds, in order; none where there is no file.

    Raises:
      InputError: a line is no record of a round.
    """
    return [line for line, _ in read_records(path, Round)] if path.is_file() else []


class Costly(Protocol):
    """A round, or a look at a checkpoint."""

    @property
    def spent(self) -> Spent: ...


def total_spent(rounds: Iterable[Costly]) -> Spent:
    """What rounds, or looks at checkpoints, have cost together."""
    return functools.reduce(Spent.plus, (one.spent for one in rounds), NOTHING)


class PlayedRound(NamedTuple):
    """What a round has played, and how it was scored."""

    trajectories: Sequence[Trajectory]
    judgements: Sequence[Judgement]
    num_failed: int
    cost_usd: float
    """Of all calls, those of dialogues that came to nothing included."""

    @property
    def scores(self) -> Scores:
        return scores_by_turn(self.judgements)

    def facts(self, *, is_judged: bool) -> dict[str, Any]:
        """The fields of `Round` that follow from it."""
        spent, scores = recorded_spent(self.trajectories, self.judgements), self.scores
        turns = [turn for trajectory in self.trajectories for turn in trajectory.focal_turns]
        by_scenario: dict[str, list[float]] = {}
        for trajectory in self.trajectories:
            utility = dialogue_utility(trajectory)
            by_scenario.setdefault(trajectory.scenario_id, []).append(utility)
        agreed = [trajectory.outcome == "accepted" for trajectory in self.trajectories]
        return {
            "num_dialogues": len(self.trajectories),
            "num_failed": self.num_failed,
            "num_calls": int(spent.num_calls),
            "call_tokens": int(spent.num_tokens),
            "student_tokens": sum(turn.completion_tokens for turn in turns),
            "num_turns": len(turns),
            "num_unscored": len(turns) - len(scores) if is_judged else 0,
            "cost_usd": self.cost_usd,
            "utility": {name: float(np.mean(of)) for name, of in sorted(by_scenario.items())},
            "success": float(np.mean(agreed)),
            "mean_score": float(np.mean([*scores.values()])) if scores else None,
        }


def reached_limit(rounds: Sequence[Round], num_dialogues: int, config: Any) -> str | None:
    """The flag that forbids another round, None where none does.

    A round is expected to cost what those before it have cost on average; of the first one only
    the number of dialogues is known. The ceiling on money holds within a round (`offline.budget`).

    Args:
      num_dialogues: of the next round.
      config: an `OnPolicyConfig`.
    """
    spent = total_spent(rounds)
    mean = spent.times(1 / len(rounds)) if rounds else Spent()
    expected = spent.plus(mean._replace(num_dialogues=num_dialogues))
    minutes = config.max_minutes
    limits = (
        config.max_dialogues,
        config.max_calls,
        config.max_call_tokens,
        None if minutes is None else 60 * minutes,
    )
    flags = ("dialogues", "calls", "call-tokens", "minutes")
    for flag, value, limit in zip(flags, expected, limits, strict=False):
        if limit is not None and value > limit:
            return f"--max-{flag}"
    return None


def recorded_spent(trajectories: Sequence[Trajectory], judgements: Sequence[Judgement]) -> Spent:
    """What judged dialogues have cost, by their records: calls that were answered, without seconds.

    The replies of a focal player that ran here are no calls.
    """
    own = [turn for t in trajectories if not t.focal.provider for turn in t.focal_turns]
    called = (*(trajectory.usage for trajectory in trajectories), *judgements)
    return Spent(
        num_dialogues=len(trajectories),
        num_calls=sum(t.usage.calls for t in trajectories)
        - len(own)
        + sum(not line.raw.startswith(NO_ANSWER) for line in judgements),
        num_tokens=sum(one.prompt_tokens + one.completion_tokens for one in called)
        - sum(turn.prompt_tokens + turn.completion_tokens for turn in own),
        cost_usd=sum(line.cost_usd for line in (*trajectories, *judgements)),
    )


@contextlib.contextmanager
def timed(directory: Path, phase: str) -> Iterator[None]:
    """Add the seconds that a phase of a round takes to those of earlier attempts at it.

    A process that is killed outright forgets its own.
    """
    started_s = time.monotonic()
    try:
        yield
    finally:
        seconds = phase_seconds(directory)
        seconds[phase] = seconds.get(phase, 0.0) + time.monotonic() - started_s
        write_json(directory / SECONDS, seconds)


def phase_seconds(directory: Path) -> dict[str, float]:
    """Phase -> its seconds so far."""
    path = directory / SECONDS
    try:
        return read_typed(path, dict[str, float], f"Delete {path}; its seconds are then lost.")
    except FileNotFoundError:
        return {}


def round_dir(cell_dir: Path, number: int) -> Path:
    """The folder of a round, counted from 1."""
    return cell_dir / f"rounds/{number:04d}"


def counts(spent: Spent) -> Mapping[str, float]:
    """For a manifest; without seconds where none were taken."""
    found = {name: round(value, 2) for name, value in spent._asdict().items()}
    return found if spent.seconds else {n: value for n, value in found.items() if n != "seconds"}
