"""Where the arms of a study run: one after the other here, or side by side on a Ray cluster.

Both run the same functions. On Ray the data of all arms are made in this process before any arm is
launched, what several arms train in common is trained once, and of the refinements of one snapshot
the first runs ahead, so that the others find its reference log-probs.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emodistill.configs import JudgeConfig, RefinementConfig
from emodistill.errors import EmodistillError, InputError, StoppedError
from emodistill.evaluation.checkpoint_looks import LOOKS, read_looks
from emodistill.logs import log_to_terminal
from emodistill.offline.budget import read_usage
from emodistill.offline.run_files import SCENARIOS, recorded_run
from emodistill.runs import read_manifest
from emodistill.settings import Cell
from emodistill.stages import judge_matches, run_together
from emodistill.stages import run as run_stage
from emodistill.stages.selector_training import DIALOGUES
from emodistill.train.metrics_log import METRICS
from emodistill.untrusted import setting_of

log = logging.getLogger("emodistill.studies")

Outcome = Path | EmodistillError
"""The arm's dialogues (or metrics, where it is only trained), or why there are none."""


class Task(NamedTuple):
    """An arm that can run wherever the run's folder is seen."""

    trainings: tuple[tuple[Cell, ...], ...]
    """What it trains, in this order: the cells of a group can share a program."""
    match: Cell | None
    """What it plays; None for an arm that is only trained."""
    judging: tuple[JudgeConfig, Path] | None = None
    """Who judges the dialogues, and where the scores go."""
    candidates: tuple[Cell, ...] = ()
    """Of the trainings, those of which the best on validation scenarios is played; what training
    started from only where all have kept that."""

    def play(self) -> Path:
        """Play and judge, once everything is trained."""
        if self.match is None:
            return _directory(self.trainings[-1][0]) / METRICS
        match = self.match
        if self.candidates:
            best = max(self.candidates, key=_worth)
            cells = {**match.config.cells, best.config.stage: best.name}
            match = match._replace(config=dataclasses.replace(match.config, cells=cells))
        if (ceiling_usd := match.config.max_cost_usd) is not None:
            left_usd = ceiling_usd - sum(training_costs_usd(self.trainings).values())
            if left_usd <= 0:
                raise StoppedError(
                    f"{match.config.method}: its training has spent what --max-cost-usd allows; "
                    "raise it and start again to go on."
                )
            match = match._replace(config=dataclasses.replace(match.config, max_cost_usd=left_usd))
        path = run_stage(match).path
        if self.judging is not None:
            config, directory = self.judging
            played = self.match.config
            scenarios = recorded_run(played) / config.domain / SCENARIOS
            judge_matches(config, path, directory, scenarios)
        return path


def _worth(cell: Cell) -> tuple[bool, float]:
    """Whether a watched training has kept more than its start, and the utility of what it kept.

    A start that was kept comes after all else, since another training has gone on from the same
    start without harm.
    """
    folder = _directory(cell)
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} is trained before anything of it is played"
    step = setting_of(manifest.stage, manifest.summary, "kept_step", int)
    return step > 0, {look.step: look for look in read_looks(folder / LOOKS)}[step].utility


def _directory(cell: Cell) -> Path:
    return cell.config.run / cell.config.domain / cell.config.stage / cell.name


def training_costs_usd(trainings: Sequence[Sequence[Cell]]) -> dict[Path, float]:
    """The folders of trainings, and what the dialogues that each has played have cost."""
    folders = [_directory(cell) for group in trainings for cell in group]
    return {folder: read_usage(folder / DIALOGUES).cost_usd for folder in folders}


Start = Callable[[], Task]
"""Makes the data that an arm needs, and its task."""


def run_here(starts: Sequence[Start]) -> Iterator[tuple[int, Outcome]]:
    """(index, outcome) of one arm after the other; the next starts when it is asked for."""

    trained: set[Path] = set()

    def run(start: Start) -> Path:
        task = start()
        for group in task.trainings:
            if _directory(group[0]) not in trained:
                _train(group)
                trained.add(_directory(group[0]))
        return task.play()

    for number, start in enumerate(starts):
        yield number, _attempt(run, start)


def run_on_ray(
    starts: Sequence[Start], *, cpus: float, gpus: float
) -> Iterator[tuple[int, Outcome]]:
    """(index, outcome) of arms as they end, on the cluster of RAY_ADDRESS or on this machine.

    Machines have to see the run's folder under the same path, and have the keys of providers in
    their own environment; none travels through Ray.

    Args:
      cpus, gpus: what each training and each arm's playing holds.

    Raises:
      InputError: Ray is not installed or not reached, or no machine has so many cores and GPUs.
    """
    ray = _connected(cpus, gpus)
    on_worker = ray.remote(num_cpus=cpus, num_gpus=gpus)(_attempt_after)
    tasks: dict[int, Task] = {}
    for number, start in enumerate(starts):
        task = _attempt(start)
        if isinstance(task, Task):
            tasks[number] = task
        else:
            yield number, task
    trained: dict[Path, Any] = {}
    running: dict[Any, int] = {}
    first_of: dict[object, Any] = {}
    for number, task in tasks.items():
        for group in task.trainings:
            cell = group[0]
            if _directory(cell) not in trained:
                ahead = first_of.get(_reference_group(cell))
                needs = [trained[path] for path in _needs(cell, task)]
                trained[_directory(cell)] = on_worker.remote(_train, group, ahead, *needs)
                first_of.setdefault(_reference_group(cell), trained[_directory(cell)])
        needs = [trained[_directory(group[0])] for group in task.trainings]
        running[on_worker.remote(Task.play, task, None, *needs)] = number
    while running:
        (ended,), _ = ray.wait(list(running))
        yield running.pop(ended), _attempt(ray.get, ended)


def _connected(cpus: float, gpus: float) -> Any:
    """The module, once it can run such tasks."""
    try:
        import ray  # an extra  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(
            "--launcher ray needs Ray: pip install 'emodistill[ray]', or leave the flag out."
        ) from None
    try:
        if not ray.is_initialized():
            ray.init(include_dashboard=False, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise InputError(
            f"Ray is not reached ({error}). Start it, or unset RAY_ADDRESS for this machine alone."
        ) from None
    machines: Sequence[Mapping[str, Any]] = [
        one["Resources"] for one in ray.nodes() if one["Alive"]
    ]
    if not any(one.get("CPU", 0) >= cpus and one.get("GPU", 0) >= gpus for one in machines):
        raise InputError(
            f"--ray-cpus {cpus:g} --ray-gpus {gpus:g}: no machine of the Ray cluster has as many; "
            "ask for less."
        )
    return ray


def _reference_group(cell: Cell) -> object:
    """What a refinement starts from, which those of its kind share; otherwise the cell itself."""
    config = cell.config
    if not isinstance(config, RefinementConfig):
        return _directory(cell)
    return (
        config.domain,
        config.sft_cell if config.reference == "sft" else None,
        config.emotion_free,
    )


def _needs(cell: Cell, task: Task) -> list[Path]:
    """The adapters that a refinement starts from, among the task's cells."""
    if not isinstance(cell.config, RefinementConfig):
        return []
    firsts = [group[0] for group in task.trainings]
    return [_directory(first) for first in firsts if first.config.stage == "sft"]


def _train(group: tuple[Cell, ...]) -> Path:
    """The first one's output."""
    if len(group) > 1:
        run_together(group)
        return _directory(group[0])
    return run_stage(group[0]).path


def _attempt_after(
    do: Callable[[Any], Path], item: Any, ahead: Outcome | None, *needs: Outcome
) -> Outcome:
    """On a worker: `do(item)` once `needs` have succeeded and `ahead` has ended, however it did."""
    log_to_terminal()
    failed = next((one for one in needs if isinstance(one, EmodistillError)), None)
    return failed or _attempt(do, item)


def _attempt(do: Callable[..., Any], *args: Any) -> Any:
    """What `do` returns, or its failure: one arm's, whatever it is, is no other's."""
    try:
        return do(*args)
    except EmodistillError as error:
        return error
    except Exception as error:
        log.exception("An arm failed.")
        return EmodistillError(f"{error}" or type(error).__name__)
