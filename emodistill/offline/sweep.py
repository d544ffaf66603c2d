"""Stage 1: thousands of dialogues under seeded random emotions (paper §3.1, Appendix E.2).

    sweep/scenarios.jsonl      all scenarios with their split
    sweep/trajectories.jsonl   finished dialogues, each appended whole
    sweep/failures.jsonl       dialogues that failed for good, with the reason

and, while there are dialogues that have begun and not ended, their answers (`unfinished`).

The emotions are a plan that depends on the seed and the dialogue's id alone, so that an
interrupted sweep, resumed at any other concurrency, ends with the same data.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from emodistill.configs import MatchConfig, SweepConfig
from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS
from emodistill.errors import ApiError, InputError, StaleInputError
from emodistill.jsonl import JsonlAppender
from emodistill.llm.client import CeilingError, RefusedError
from emodistill.llm.client_group import ClientGroup
from emodistill.llm.usage import Usage
from emodistill.logs import fields
from emodistill.negotiation.episode import (
    ChooseEmotion,
    Match,
    PlannedDialogue,
    Player,
    play,
    turn_cap,
)
from emodistill.negotiation.model_answers import AskedModel
from emodistill.negotiation.readers import LlmReader
from emodistill.negotiation.writers import ApiWriter, EmptyReplyError
from emodistill.offline.budget import Budget
from emodistill.offline.readability import ReadabilityCheck
from emodistill.offline.store import (
    read_records,
    read_scenarios,
    read_trajectories,
    write_records,
)
from emodistill.offline.turnstile import Turnstile
from emodistill.offline.unfinished import UnfinishedAnswers
from emodistill.offline.workers import JobsResult, StopReason, run_jobs
from emodistill.progress import Progress
from emodistill.prompts import PromptPack
from emodistill.records import FailedDialogue, Trajectory
from emodistill.seeding import stream

log = logging.getLogger("emodistill.offline")

METHOD = "sweep"


def plan_dialogues(
    scenarios: Sequence[Scenario], *, num_seeds: int, first: int = 0
) -> list[PlannedDialogue]:
    """`num_seeds` dialogues of each scenario in order: every scenario once, then all again, ….

    What stops early has therefore seen all scenarios about equally often. An id looks like
    `crad/debt_001/seed_0007`.

    Args:
      first: number of the first dialogue of each scenario.
    """
    return [
        PlannedDialogue(
            scenario, number, f"{scenario.domain}/{scenario.scenario_id}/seed_{number:04d}"
        )
        for number in range(first, first + num_seeds)
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


class Numbered(Protocol):
    """A dialogue of a sweep, as far as its place in the sweep's plan is concerned."""

    @property
    def trajectory_id(self) -> str: ...

    @property
    def scenario_id(self) -> str: ...

    @property
    def seed(self) -> int: ...


D = TypeVar("D", bound=Numbered)


def first_dialogues(trajectories: Sequence[D], num_dialogues: int, seed: int) -> list[D]:
    """What a sweep of so many dialogues would have been: of those given, the first dialogue of
    each scenario, then the second of each, ….

    In which order the scenarios come is drawn by the seed. The choice doesn't change when the sweep
    grows.

    Raises:
      InputError: there are fewer dialogues.
    """
    if len(trajectories) < num_dialogues:
        raise InputError(
            f"num_dialogues={num_dialogues:,}, but the sweep has {len(trajectories):,} dialogues "
            "of training scenarios. Play more (sweep.py --num-seeds), or learn from fewer."
        )
    ids = sorted({trajectory.scenario_id for trajectory in trajectories})
    order = stream(seed, "first-dialogues").permutation(len(ids))
    rank = {ids[index]: place for place, index in enumerate(order)}
    ranked = sorted(trajectories, key=lambda t: (t.seed, rank[t.scenario_id], t.trajectory_id))
    return ranked[:num_dialogues]


def planned_emotions(seed: int, trajectory_id: str, num_turns: int) -> list[str]:
    """The emotions of a dialogue's focal turns, uniform over all 28."""
    draws = stream(seed, "sweep-emotions", trajectory_id).integers(len(EMOTIONS), size=num_turns)
    return [EMOTIONS[i] for i in draws]


async def run_sweep(
    config: SweepConfig,
    scenarios: Sequence[Scenario],
    *,
    out_dir: Path,
    focal: ApiWriter,
    counterparty: ApiWriter,
    pack: PromptPack,
    reader: LlmReader | None = None,
    num_dialogues: int | None = None,
) -> JobsResult:
    """Play all dialogues of the sweep's plan that `out_dir` lacks.

    Args:
      scenarios: all of the domain, with their split; those of `train` are played.
      num_dialogues: of the plan, from its beginning; all without it.

    Raises:
      StaleInputError: `out_dir` was begun with other scenarios.
      ApiError, InputError: see `play_all`.
    """
    cap = turn_cap(config.max_turns, config.count_turns)
    planned = plan_sweep(scenarios, num_seeds=config.num_seeds, num_scenarios=config.num_scenarios)

    def choose_for(dialogue: PlannedDialogue) -> ChooseEmotion:
        num_turns = (cap + 1) // 2  # the focal agent opens
        emotions = planned_emotions(config.seed, dialogue.trajectory_id, num_turns)
        return lambda state: emotions[len(state.emotions)]

    match = Match(
        focal=Player(writer=focal, choose_for=choose_for, method=METHOD),
        counterparty=Player(writer=counterparty),
        pack=pack,
        seed=config.seed,
        max_turns=cap,
        agreement=config.agreement,
        reader=reader,
    )
    return await play_all(
        planned[:num_dialogues],
        match,
        config,
        path=out_dir / "trajectories.jsonl",
        label="sweep",
        on_open=lambda: _keep_scenarios(out_dir / "scenarios.jsonl", scenarios),
    )


async def play_all(
    planned: Sequence[PlannedDialogue],
    match: Match,
    config: SweepConfig | MatchConfig,
    *,
    path: Path,
    label: str,
    on_open: Callable[[], None] = lambda: None,
    turnstile: Turnstile | None = None,
) -> JobsResult:
    """Play the planned dialogues that `path` lacks, and append each when it is finished.

    The clients of the players and of all readers are open (inside their `async with`).

    Args:
      config: says how many are played at once, and what all may cost: no dialogue is begun that
        would probably exceed it, what `path` has already cost included; those in flight are
        finished.
      path: a `.jsonl` file; dialogues that fail for good go to `failures_path(path)`.
      label: names the job on the progress line.
      on_open: called once this process alone writes to `path`.
      turnstile: holds back the dialogues of a training until what they build on has ended.

    Raises:
      ApiError: the API can't work as it is set up, or failure follows failure.
      InputError: another process writes to `path`, a cost cap without known prices, or dialogues
        most of which can't be read (`readability`).
    """
    turnstile = turnstile or Turnstile()
    players = match.focal, match.counterparty
    parts = [match.reader, *(p.writer for p in players), *(p.emotion_reader for p in players)]
    callers = [one for one in parts if isinstance(one, ApiWriter | AskedModel)]
    clients = ClientGroup(one.client for one in callers)
    unpriced = [o.model for o in callers if not o.client.provider.is_priced(o.model)]
    with ExitStack() as stack:
        finished = stack.enter_context(JsonlAppender(path))
        failed = stack.enter_context(JsonlAppender(failures_path(path)))
        on_open()
        readability = ReadabilityCheck(is_lenient=config.keep_unread)
        ended = _EndedDialogues(finished, failed, readability, turnstile)
        used = ended.read()
        earlier = ended.costs_usd.keys() | ended.failed_ids
        pending = [dialogue for dialogue in planned if dialogue.trajectory_id not in earlier]
        ended.readability.check(is_end=not pending)
        unfinished = stack.enter_context(
            UnfinishedAnswers(path.with_suffix(".unfinished"), earlier)
        )
        stack.enter_context(clients.answered_by(unfinished))
        budget = Budget(
            path,
            clients,
            config.max_cost_usd,
            unpriced=unpriced,
            finished_usd=ended.costs_usd.values(),
            finished=used,
            unfinished=unfinished.usage,
        )

        async def play_one(dialogue: PlannedDialogue) -> None:
            await turnstile.admit(dialogue.trajectory_id)
            unfinished.begin(dialogue.trajectory_id)
            try:
                trajectory = await play(dialogue, match)
            except CeilingError:
                turnstile.close()
                raise
            ended.keep(trajectory)
            unfinished.forget(dialogue.trajectory_id)
            budget.add(trajectory.cost_usd)
            ended.readability.check()

        def give_up(dialogue: PlannedDialogue, error: ApiError) -> None:
            ended.give_up(dialogue, error)
            unfinished.forget(dialogue.trajectory_id)

        stopped = await run_jobs(
            pending,
            play_one,
            on_failure=give_up,
            clients=clients,
            budget=budget,
            bar=Progress(
                label, total=len(planned), unit="dialogues", done=len(planned) - len(pending)
            ),
            concurrency=config.concurrency,
            status=ended.status,
            is_ordered=turnstile.is_ordered,
        )
    ended.readability.check(is_end=stopped is None)
    return ended.result(planned, budget, stopped)


@dataclasses.dataclass(slots=True)
class _EndedDialogues:
    """The dialogues of two files that have ended: those that were there, and those of this job."""

    finished: JsonlAppender
    failed: JsonlAppender
    readability: ReadabilityCheck
    turnstile: Turnstile
    costs_usd: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of each finished dialogue."""
    failed_ids: set[str] = dataclasses.field(default_factory=set)
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    """Of the dialogues of this job."""

    def read(self) -> Usage:
        """Take in what the files hold, and tell the turnstile; what it has cost."""
        used = Usage()
        for earlier in read_trajectories(self.finished.path):
            calls, *tokens = msgspec.structs.astuple(earlier.usage)
            used = used.plus(Usage(calls, 0, *tokens, cost_usd=earlier.cost_usd))
            self.costs_usd[earlier.trajectory_id] = earlier.cost_usd
            self.readability.add(earlier)
            self.turnstile.end(earlier.trajectory_id, earlier)
        failures = read_records(self.failed.path, FailedDialogue)
        self.failed_ids = {line.trajectory_id for line, _ in failures} - self.costs_usd.keys()
        for name in sorted(self.failed_ids):
            self.turnstile.end(name, None)
        return used

    def keep(self, trajectory: Trajectory) -> None:
        """Append a dialogue that is finished."""
        name, num_turns = trajectory.trajectory_id, len(trajectory.turns)
        self.finished.append(trajectory)
        self.costs_usd[name] = trajectory.cost_usd
        self.outcomes[trajectory.outcome] += 1
        self.readability.add(trajectory)
        extra = fields(event="dialogue", dialogue=name)
        log.debug("%s: %s after %d turns.", name, trajectory.outcome, num_turns, extra=extra)
        self.turnstile.end(name, trajectory)

    def give_up(self, dialogue: PlannedDialogue, error: ApiError) -> None:
        """Append the reason why a dialogue has failed for good."""
        name = dialogue.trajectory_id
        log.debug("%s", error, extra=fields(event="dialogue failed", dialogue=name))
        kinds = {RefusedError: "refused", EmptyReplyError: "empty"}
        kind = kinds.get(type(error), "exhausted")
        self.failed.append(FailedDialogue(trajectory_id=name, kind=kind, reason=str(error)))
        self.failed_ids.add(name)
        self.turnstile.end(name, None)

    def result(
        self, planned: Sequence[PlannedDialogue], budget: Budget, stopped: StopReason | None
    ) -> JobsResult:
        """What the job amounts to, `stopped` for that reason."""
        ids = {dialogue.trajectory_id for dialogue in planned}
        return JobsResult(
            num_planned=len(planned),
            num_finished=len(ids & self.costs_usd.keys()),
            num_failed=len(ids & self.failed_ids),
            num_new=self.outcomes.total(),
            cost_usd=budget.spent_usd,
            usage=budget.usage,
            offers=self.readability.shares,
            stopped=stopped,
            path=self.finished.path,
            finished="dialogues finished",
            failed=f"failed for good (reasons in {self.failed.path}; delete that file to try them "
            "again)",
            on_interrupt=(
                "what is finished is kept, and what was under way will go on where it was; start "
                "again to go on"
            ),
        )

    def status(self) -> str:
        """What the progress line says of the dialogues of this job, and of all offers."""
        num_new, shares = self.outcomes.total(), self.readability.shares
        accepted = f"{self.outcomes['accepted'] / num_new:.0%} accepted" if num_new else ""
        return ", ".join(filter(None, (accepted, shares.text if shares.num_turns else "")))


def failures_path(path: Path) -> Path:
    """`failures.jsonl` beside `trajectories.jsonl`, `x.failures.jsonl` beside `x.jsonl`."""
    if path.name == "trajectories.jsonl":
        return path.with_name("failures.jsonl")
    return path.with_suffix(".failures.jsonl")


def _keep_scenarios(path: Path, scenarios: Sequence[Scenario]) -> None:
    if not path.exists():
        write_records(path, scenarios)
    elif read_scenarios(path) != list(scenarios):
        raise StaleInputError(
            f"{path} holds other scenarios, or another split, than those now asked for. Delete "
            f"{path.parent} to sweep anew, or use another --run."
        )
