"""Stage 1: thousands of dialogues under seeded random emotions (paper §3.1, Appendix E.2).

    sweep/scenarios.jsonl      all scenarios with their split
    sweep/trajectories.jsonl   finished dialogues, each appended whole
    sweep/failures.jsonl       dialogues that failed for good, with the reason

and, while there are dialogues that have begun and not ended, their answers (`unfinished`).

The emotions are a plan that depends on the seed and the dialogue's id alone, so that an
interrupted sweep, resumed at any other concurrency, ends with the same data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS
from emodistill.errors import ApiError, InputError, StaleInputError
from emodistill.jsonl import JsonlAppender, read_lines
from emodistill.llm.client import ChatClient, RefusedError, Usage
from emodistill.logs import fields
from emodistill.negotiation.episode import ChooseEmotion, Match, PlannedDialogue, Player, play
from emodistill.negotiation.readers import PATTERNS, OfferReader
from emodistill.negotiation.writers import ApiWriter, EmptyReplyError
from emodistill.offline.budget import Budget, Ledger, Stopped
from emodistill.offline.store import read_scenarios, write_scenarios
from emodistill.offline.unfinished import Unfinished, unfinished_path
from emodistill.offline.workers import run_bounded
from emodistill.progress import Progress, progress
from emodistill.prompts import PromptPack
from emodistill.records import SCHEMA, Trajectory
from emodistill.seeding import stream

log = logging.getLogger("emodistill.offline")

METHOD = "sweep"


class SweepResult(NamedTuple):
    """What a sweep has come to; counts are over the whole plan, `num_new` over this call."""

    num_planned: int
    num_finished: int
    num_failed: int
    num_new: int
    cost_usd: float
    stopped: Stopped | None
    trajectories_path: Path
    failures_path: Path

    @property
    def is_complete(self) -> bool:
        return self.num_finished + self.num_failed == self.num_planned

    @property
    def summary(self) -> str:
        """A line for the terminal."""
        text = f"{self.num_finished:,} of {self.num_planned:,} dialogues finished"
        if self.num_failed:
            text += (
                f", {self.num_failed:,} failed for good (reasons in {self.failures_path}; delete "
                "that file to try them again)"
            )
        if self.cost_usd:
            text += f", ${self.cost_usd:.2f} spent"
        if self.stopped == "interrupted":
            text += (
                ". Stopped as asked: what is finished is kept, and what was under way will go on "
                "where it was; start again to go on"
            )
        elif self.stopped == "cost":
            text += ". Stopped by --max-cost-usd; raise it and start again to go on"
        return f"{text}. They are in {self.trajectories_path}."


def trajectory_id(scenario: Scenario, number: int) -> str:
    """`crad/debt_001/seed_0007`."""
    return f"{scenario.domain}/{scenario.scenario_id}/seed_{number:04d}"


def plan_dialogues(scenarios: Sequence[Scenario], *, num_seeds: int) -> list[PlannedDialogue]:
    """`num_seeds` dialogues of each scenario in order: every scenario once, then all again, ….

    What stops early has therefore seen all scenarios about equally often.
    """
    return [
        PlannedDialogue(scenario, number, trajectory_id(scenario, number))
        for number in range(num_seeds)
        for scenario in scenarios
    ]


def plan_sweep(
    scenarios: Sequence[Scenario], *, num_seeds: int, num_scenarios: int | None = None
) -> list[PlannedDialogue]:
    """The sweep's dialogues, over the (first `num_scenarios`) training scenarios."""
    train = [scenario for scenario in scenarios if scenario.split == "train"]
    if not train:
        raise InputError("no scenario has split='train'; a sweep needs some.")
    return plan_dialogues(train[:num_scenarios], num_seeds=num_seeds)


def planned_emotions(seed: int, trajectory_id: str, num_turns: int) -> list[str]:
    """The emotions of a dialogue's focal turns, uniform over all 28."""
    draws = stream(seed, "sweep-emotions", trajectory_id).integers(len(EMOTIONS), size=num_turns)
    return [EMOTIONS[i] for i in draws]


async def run_sweep(
    scenarios: Sequence[Scenario],
    *,
    out_dir: Path,
    client: ChatClient,
    pack: PromptPack,
    focal_model: str,
    counterparty_model: str,
    focal_temperature: float = 0.7,
    counterparty_temperature: float = 0.7,
    max_reply_tokens: int = 160,
    num_seeds: int = 100,
    num_scenarios: int | None = None,
    num_dialogues: int | None = None,
    seed: int = 0,
    max_turns: int = 30,
    agreement: str = "stand",
    concurrency: int = 6,
    max_cost_usd: float | None = None,
    reader: OfferReader = PATTERNS,
) -> SweepResult:
    """Play all dialogues of the sweep's plan that `out_dir` lacks.

    Args:
      scenarios: all of the domain, with their split; those of `train` are played.
      num_dialogues: of the plan, from its beginning; all without it.

    Raises:
      StaleInputError: `out_dir` was begun with other scenarios.
      ApiError, InputError: see `play_all`.
    """
    planned = plan_sweep(scenarios, num_seeds=num_seeds, num_scenarios=num_scenarios)
    planned = planned[:num_dialogues]

    def choose_for(dialogue: PlannedDialogue) -> ChooseEmotion:
        emotions = planned_emotions(seed, dialogue.trajectory_id, (max_turns + 1) // 2)
        return lambda state: emotions[len(state.emotions)]

    focal = ApiWriter(client, focal_model, focal_temperature, max_reply_tokens)
    opposite = ApiWriter(client, counterparty_model, counterparty_temperature, max_reply_tokens)
    match = Match(
        focal=Player(writer=focal, choose_for=choose_for, method=METHOD),
        counterparty=Player(writer=opposite),
        pack=pack,
        seed=seed,
        max_turns=max_turns,
        agreement=agreement,
        reader=reader,
    )
    return await play_all(
        planned,
        match,
        path=out_dir / "trajectories.jsonl",
        label="sweep",
        before=lambda: _keep_scenarios(out_dir / "scenarios.jsonl", scenarios),
        client=client,
        concurrency=concurrency,
        max_cost_usd=max_cost_usd,
    )


async def play_all(
    planned: Sequence[PlannedDialogue],
    match: Match,
    *,
    path: Path,
    label: str,
    client: ChatClient,
    concurrency: int = 6,
    max_cost_usd: float | None = None,
    before: Callable[[], None] = lambda: None,
) -> SweepResult:
    """Play the planned dialogues that `path` lacks, and append each when it is finished.

    Args:
      path: a `.jsonl` file; dialogues that fail for good go to `failures_path(path)`.
      label: names the job on the progress line.
      client: open (inside its `async with`); counts what is spent.
      max_cost_usd: no dialogue is begun that would probably exceed it, what `path` has already
        cost included; those in flight are finished.
      before: called once this process alone writes to `path`.

    Raises:
      ApiError: the API can't work as it is set up, or failure follows failure.
      InputError: another process writes to `path`, or a cost cap without known prices.
    """
    with _opened(path, client, before) as kept:
        todo = [dialogue for dialogue in planned if not kept.has(dialogue.trajectory_id)]
        writers = match.focal.writer, match.counterparty.writer
        paid_models = [w.model for w in writers if isinstance(w, ApiWriter)]
        budget = Budget(
            max_cost_usd,
            client=client,
            ledger=kept.ledger,
            models=[*paid_models, *match.reader.paid_models],
            before_usd=kept.costs_usd.values(),
            unfinished_usd=kept.unfinished.usage.cost_usd,
        )
        num_there = len(planned) - len(todo)
        bar = progress(label, total=len(planned), unit="dialogues", done=num_there)
        playing = _Playing(match, client, kept, budget, bar)
        with bar:
            ran_through = await run_bounded(
                todo,
                playing.play,
                concurrency=concurrency,
                on_failure=playing.fail,
                admits=budget.admits,
                on_tick=playing.tick,
            )
    return playing.result(planned, ran_through)


@dataclass(slots=True)
class _Playing:
    """Plays one dialogue after another, keeps each, and says how far they are."""

    match: Match
    client: ChatClient
    kept: _Kept
    budget: Budget
    bar: Progress
    num_new: int = 0
    num_accepted: int = 0

    async def play(self, dialogue: PlannedDialogue) -> None:
        self.kept.unfinished.begin(dialogue.trajectory_id)
        with self.budget.running():
            trajectory = await play(dialogue, self.match)
        self.kept.add(trajectory)
        log.debug(
            "%s: %s after %d turns.",
            trajectory.trajectory_id,
            trajectory.outcome,
            len(trajectory.turns),
            extra=fields(event="dialogue", dialogue=trajectory.trajectory_id),
        )
        self.budget.add(trajectory.cost_usd)
        self.num_new += 1
        self.num_accepted += trajectory.outcome == "accepted"
        self.bar.advance(1, self.note)

    def fail(self, dialogue: PlannedDialogue, error: ApiError) -> None:
        told = fields(event="dialogue failed", dialogue=dialogue.trajectory_id)
        log.debug("%s", error, extra=told)
        self.kept.add_failure(dialogue.trajectory_id, error)
        self.bar.advance(1)

    def tick(self) -> None:
        self.kept.ledger.tick()
        self.bar.tick(self.note)

    @property
    def note(self) -> str:
        accepted = f"{self.num_accepted / self.num_new:.0%} accepted" if self.num_new else ""
        num_unread = self.match.reader.num_unread
        unread = f"{num_unread:,} utterances unread" if num_unread else ""
        return ", ".join(filter(None, (accepted, unread, self.client.health, self.budget.note)))

    def result(self, planned: Sequence[PlannedDialogue], ran_through: bool) -> SweepResult:
        ids = {dialogue.trajectory_id for dialogue in planned}
        num_finished = len(ids & self.kept.costs_usd.keys())
        num_failed = len(ids & self.kept.failed_ids)
        return SweepResult(
            num_planned=len(planned),
            num_finished=num_finished,
            num_failed=num_failed,
            num_new=self.num_new,
            cost_usd=self.budget.spent_usd,
            stopped=self.budget.stopped(ran_through, num_finished + num_failed == len(ids)),
            trajectories_path=self.kept.finished.path,
            failures_path=self.kept.failed.path,
        )


class _Kept(NamedTuple):
    """What files hold of dialogues, and where more goes; `costs_usd` is of the finished ones."""

    finished: JsonlAppender
    failed: JsonlAppender
    unfinished: Unfinished
    ledger: Ledger
    costs_usd: dict[str, float]
    failed_ids: set[str]

    def has(self, trajectory_id: str) -> bool:
        return trajectory_id in self.costs_usd or trajectory_id in self.failed_ids

    def add(self, trajectory: Trajectory) -> None:
        self.finished.append(trajectory)
        self.unfinished.forget(trajectory.trajectory_id)
        self.costs_usd[trajectory.trajectory_id] = trajectory.cost_usd

    def add_failure(self, trajectory_id: str, error: ApiError) -> None:
        self.failed_ids.add(trajectory_id)
        self.unfinished.forget(trajectory_id)
        line = {"schema": SCHEMA, "trajectory_id": trajectory_id, "kind": failure_kind(error)}
        self.failed.append(line | {"reason": str(error)})


@contextmanager
def _opened(path: Path, client: ChatClient, before: Callable[[], None]) -> Iterator[_Kept]:
    """The files of `path`, for this process alone; `client` asks them before it asks a server."""
    with (
        JsonlAppender(path) as finished,
        JsonlAppender(failures_path(path)) as failed,
        Ledger(path, client) as ledger,
    ):
        before()
        costs_usd, usage = _finished(path)
        failed_ids = _failed_ids(failed.path) - costs_usd.keys()
        there = costs_usd.keys() | failed_ids
        with Unfinished(unfinished_path(path), there, on_keep=ledger.tick) as unfinished:
            ledger.at_least(Usage._make(map(sum, zip(usage, unfinished.usage, strict=True))))
            client.memory = unfinished
            try:
                yield _Kept(finished, failed, unfinished, ledger, costs_usd, failed_ids)
            finally:
                client.memory = None


def failures_path(path: Path) -> Path:
    """`failures.jsonl` beside `trajectories.jsonl`, `x.failures.jsonl` beside `x.jsonl`."""
    if path.name == "trajectories.jsonl":
        return path.with_name("failures.jsonl")
    return path.with_suffix(".failures.jsonl")


def failure_kind(error: ApiError) -> str:
    """`refused`, `empty` or `exhausted`: what a failure line says beside its reason."""
    if isinstance(error, RefusedError):
        return "refused"
    return "empty" if isinstance(error, EmptyReplyError) else "exhausted"


def _keep_scenarios(path: Path, scenarios: Sequence[Scenario]) -> None:
    if not path.exists():
        write_scenarios(path, scenarios)
    elif read_scenarios(path) != list(scenarios):
        raise StaleInputError(
            f"{path} holds other scenarios, or another split, than those now asked for. Delete "
            f"{path.parent} to sweep anew, or use another --run."
        )


def _finished(path: Path) -> tuple[dict[str, float], Usage]:
    """`{trajectory_id: cost_usd}` of what is there, and what all that used."""
    costs_usd: dict[str, float] = {}
    num_calls = prompt_tokens = completion_tokens = 0
    for value, where in read_lines(path):
        name = _id_of(value, where)
        if name in costs_usd:
            raise InputError(f"{where}: trajectory_id {name!r} is there twice; delete one line.")
        costs_usd[name] = float(value.get("cost_usd") or 0.0)
        used = value.get("usage") or {}
        num_calls += int(used.get("calls") or 0)
        prompt_tokens += int(used.get("prompt_tokens") or 0)
        completion_tokens += int(used.get("completion_tokens") or 0)
    spent_usd = sum(costs_usd.values())
    return costs_usd, Usage(num_calls, 0, prompt_tokens, completion_tokens, spent_usd)


def _failed_ids(path: Path) -> set[str]:
    return {_id_of(value, where) for value, where in read_lines(path)}


def _id_of(value: object, where: str) -> str:
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise InputError(f"{where}: no line of schema={SCHEMA}, the only one known here.")
    name = value.get("trajectory_id")
    if not isinstance(name, str):
        raise InputError(f"{where}: field 'trajectory_id' is missing.")
    return name
