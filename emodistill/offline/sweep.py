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
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from emodistill.configs import SweepConfig
from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS
from emodistill.errors import ApiError, InputError, StaleInputError
from emodistill.jsonl import JsonlAppender, read_lines
from emodistill.llm.client import ChatClient, RefusedError, Usage
from emodistill.logs import fields
from emodistill.negotiation.episode import ChooseEmotion, Match, PlannedDialogue, Player, play
from emodistill.negotiation.readers import LlmReader
from emodistill.negotiation.writers import ApiWriter, EmptyReplyError
from emodistill.offline.budget import Budget
from emodistill.offline.store import read_scenarios, write_records
from emodistill.offline.unfinished import UnfinishedAnswers, unfinished_path
from emodistill.offline.workers import JobsResult, run_jobs
from emodistill.progress import progress
from emodistill.prompts import PromptPack
from emodistill.records import SCHEMA, Trajectory
from emodistill.seeding import stream

log = logging.getLogger("emodistill.offline")

METHOD = "sweep"


class SweepResult(JobsResult):
    """What dialogues have come to; `path` has the finished ones."""

    @property
    def failures_path(self) -> Path:
        return failures_path(self.path)

    @property
    def summary(self) -> str:
        """A line for the terminal."""
        return self.describe(
            finished="dialogues finished",
            failed=(
                f"failed for good (reasons in {self.failures_path}; delete that file to try them "
                "again)"
            ),
            on_interrupt=(
                "what is finished is kept, and what was under way will go on where it was; start "
                "again to go on"
            ),
        )


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
    config: SweepConfig,
    scenarios: Sequence[Scenario],
    *,
    out_dir: Path,
    client: ChatClient,
    pack: PromptPack,
    reader: LlmReader | None = None,
    num_dialogues: int | None = None,
) -> SweepResult:
    """Play all dialogues of the sweep's plan that `out_dir` lacks.

    Args:
      config: a model that it does not name is the default of the client's provider.
      scenarios: all of the domain, with their split; those of `train` are played.
      num_dialogues: of the plan, from its beginning; all without it.

    Raises:
      StaleInputError: `out_dir` was begun with other scenarios.
      ApiError, InputError: see `play_all`.
    """
    planned = plan_sweep(scenarios, num_seeds=config.num_seeds, num_scenarios=config.num_scenarios)

    def choose_for(dialogue: PlannedDialogue) -> ChooseEmotion:
        num_turns = (config.max_turns + 1) // 2  # the focal agent opens
        emotions = planned_emotions(config.seed, dialogue.trajectory_id, num_turns)
        return lambda state: emotions[len(state.emotions)]

    def writer(role: str, model: str | None, temperature: float) -> ApiWriter:
        model = model or client.provider.default_model(role)
        return ApiWriter(client, model, temperature, config.max_reply_tokens)

    focal = writer("focal", config.model, config.focal_temperature)
    opposite = writer("counterparty", config.counterparty, config.counterparty_temperature)
    match = Match(
        focal=Player(writer=focal, choose_for=choose_for, method=METHOD),
        counterparty=Player(writer=opposite),
        pack=pack,
        seed=config.seed,
        max_turns=config.max_turns,
        agreement=config.agreement,
        reader=reader,
    )
    return await play_all(
        planned[:num_dialogues],
        match,
        path=out_dir / "trajectories.jsonl",
        label="sweep",
        on_open=lambda: _keep_scenarios(out_dir / "scenarios.jsonl", scenarios),
        client=client,
        concurrency=config.concurrency,
        max_cost_usd=config.max_cost_usd,
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
    on_open: Callable[[], None] = lambda: None,
) -> SweepResult:
    """Play the planned dialogues that `path` lacks, and append each when it is finished.

    Args:
      path: a `.jsonl` file; dialogues that fail for good go to `failures_path(path)`.
      label: names the job on the progress line.
      client: open (inside its `async with`); counts what is spent.
      max_cost_usd: no dialogue is begun that would probably exceed it, what `path` has already
        cost included; those in flight are finished.
      on_open: called once this process alone writes to `path`.

    Raises:
      ApiError: the API can't work as it is set up, or failure follows failure.
      InputError: another process writes to `path`, or a cost cap without known prices.
    """
    writers_and_reader = match.focal.writer, match.counterparty.writer, match.reader
    paid_models = [
        one.model for one in writers_and_reader if isinstance(one, ApiWriter | LlmReader)
    ]
    outcomes: Counter[str] = Counter()
    with _DialogueFiles(path, client, on_open) as files:
        pending = [dialogue for dialogue in planned if not files.has(dialogue.trajectory_id)]
        budget = Budget(
            path,
            client,
            max_cost_usd,
            models=paid_models,
            finished_usd=files.costs_usd.values(),
            finished=files.used,
            unfinished=files.unfinished.usage,
        )

        async def play_one(dialogue: PlannedDialogue) -> None:
            files.unfinished.begin(dialogue.trajectory_id)
            trajectory = await play(dialogue, match)
            files.add(trajectory)
            outcomes[trajectory.outcome] += 1
            budget.add(trajectory.cost_usd)

        def status() -> str:
            num_new = outcomes.total()
            num_unread = match.reader.num_unread if match.reader else 0
            accepted = f"{outcomes['accepted'] / num_new:.0%} accepted" if num_new else ""
            unread = f"{num_unread:,} utterances unread" if num_unread else ""
            return ", ".join(filter(None, (accepted, unread)))

        num_before = len(planned) - len(pending)
        bar = progress(label, total=len(planned), unit="dialogues", done=num_before)
        with budget:
            stopped = await run_jobs(
                pending,
                play_one,
                on_failure=files.add_failure,
                client=client,
                budget=budget,
                bar=bar,
                concurrency=concurrency,
                status=status,
            )
    ids = {dialogue.trajectory_id for dialogue in planned}
    return SweepResult(
        num_planned=len(planned),
        num_finished=len(ids & files.costs_usd.keys()),
        num_failed=len(ids & files.failed_ids),
        num_new=outcomes.total(),
        cost_usd=budget.spent_usd,
        stopped=stopped,
        path=path,
    )


class _DialogueFiles:
    """The files of a set of dialogues, for this process alone; a context manager.

    While it is open, `client` asks the unfinished dialogues' answers before it asks a server.

    Attributes:
      unfinished: the answers of dialogues that have begun and not ended.
      costs_usd: `{trajectory_id: cost_usd}` of the finished ones.
      used: what those that were finished before have used.
      failed_ids: of those that have failed for good.
    """

    def __init__(self, path: Path, client: ChatClient, on_open: Callable[[], None]) -> None:
        with ExitStack() as stack:
            self._finished = stack.enter_context(JsonlAppender(path))
            self._failed = stack.enter_context(JsonlAppender(failures_path(path)))
            on_open()
            self.costs_usd, self.used = _finished(path)
            self.failed_ids = _failed_ids(self._failed.path) - self.costs_usd.keys()
            ended = self.costs_usd.keys() | self.failed_ids
            self.unfinished = UnfinishedAnswers(unfinished_path(path), ended)
            stack.enter_context(self.unfinished)
            client.cache = self.unfinished
            stack.callback(setattr, client, "cache", None)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def has(self, trajectory_id: str) -> bool:
        """Whether the dialogue is finished, or has failed for good."""
        return trajectory_id in self.costs_usd or trajectory_id in self.failed_ids

    def add(self, trajectory: Trajectory) -> None:
        name = trajectory.trajectory_id
        self._finished.append(trajectory)
        self.unfinished.forget(name)
        self.costs_usd[name] = trajectory.cost_usd
        log.debug(
            "%s: %s after %d turns.",
            name,
            trajectory.outcome,
            len(trajectory.turns),
            extra=fields(event="dialogue", dialogue=name),
        )

    def add_failure(self, dialogue: PlannedDialogue, error: ApiError) -> None:
        name = dialogue.trajectory_id
        log.debug("%s", error, extra=fields(event="dialogue failed", dialogue=name))
        line = {"schema": SCHEMA, "trajectory_id": name, "kind": failure_kind(error)}
        self._failed.append(line | {"reason": str(error)})
        self.unfinished.forget(name)
        self.failed_ids.add(name)


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
        write_records(path, scenarios)
    elif read_scenarios(path) != list(scenarios):
        raise StaleInputError(
            f"{path} holds other scenarios, or another split, than those now asked for. Delete "
            f"{path.parent} to sweep anew, or use another --run."
        )


def _finished(path: Path) -> tuple[dict[str, float], Usage]:
    """`{trajectory_id: cost_usd}` of the finished dialogues, and what they have used."""
    costs_usd: dict[str, float] = {}
    total = Usage()
    for value, where in read_lines(path):
        name = _id_of(value, where)
        if name in costs_usd:
            raise InputError(f"{where}: trajectory_id {name!r} is there twice; delete one line.")
        costs_usd[name] = float(value.get("cost_usd") or 0.0)
        used = value.get("usage") or {}
        calls, prompt, completion = (
            int(used.get(key) or 0) for key in ("calls", "prompt_tokens", "completion_tokens")
        )
        total = total.plus(Usage(calls, 0, prompt, completion, costs_usd[name]))
    return costs_usd, total


def _failed_ids(path: Path) -> set[str]:
    return {_id_of(value, where) for value, where in read_lines(path)}


def _id_of(value: object, where: str) -> str:
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise InputError(f"{where}: no line of schema={SCHEMA}, the only one known here.")
    name = value.get("trajectory_id")
    if not isinstance(name, str):
        raise InputError(f"{where}: field 'trajectory_id' is missing.")
    return name
