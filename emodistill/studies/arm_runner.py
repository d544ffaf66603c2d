"""Runs a study: a list of overrides, each handed to the runner of stages.

An arm that fails is noted with its reason and the next one runs. The outcomes of the arms are
written after each of them, so that a report can be made at any time.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emodistill.configs import (
    TRUTH,
    DialogueConfig,
    EvaluateConfig,
    JudgeConfig,
    ReplayConfig,
    ReportConfig,
    StudyConfig,
)
from emodistill.configs.studies import DoseStudy, EmotionStudy
from emodistill.errors import InputError, StoppedError
from emodistill.evaluation.arms import Arm, emotion_dir, read_arms, study_path, write_arms
from emodistill.evaluation.methods import Method, get_method
from emodistill.jsonl import num_lines
from emodistill.offline.budget import read_usage
from emodistill.offline.run_files import TRAJECTORIES
from emodistill.offline.sweep import plan_sweep
from emodistill.reports import report_study
from emodistill.runs import read_manifest
from emodistill.settings import Cell, Settings
from emodistill.stages import STAGES, Requirement, prepare, required_cell, run
from emodistill.stages.evaluation import trainings_of
from emodistill.stages.sweep import split_of
from emodistill.studies.launchers import Outcome, Task, run_here, run_on_ray, training_costs_usd
from emodistill.studies.planned_arms import PlannedArm, plan_arms

TRAINED_ONLY = Method(writer="student", selector="none")
"""The method of an arm that nobody plays."""
UNTRAINED = "vanilla-slm"
SHARED = (
    *("run", "data_from", "seed", "provider", "base_url"),
    *("concurrency", "timeout_s", "max_cost_usd", "record", "replay"),
)
"""Settings that a study hands on to its stages."""
ROLES = ("focal", "counterparty")
PAID = (*ROLES, "concurrency", "timeout_s", "max_cost_usd", "record", "replay")
"""What a training that plays dialogues takes over."""
REPORTING = ("run", "data_from", "seed", "counterparty", "judge")
PLAYING = (
    *ROLES,
    *("student", "student_url", "student_model", "allow_unverified"),
    *("num_scenarios", "num_seeds"),
)


def run_study(config: StudyConfig, settings: Settings) -> list[Path]:
    """Train and play what a study lacks, then write its tables.

    Args:
      settings: of the stages.

    Returns: the tables' files.

    Raises:
      InputError: sweep or scores are missing and have to be paid for, every arm failed, or nothing
        is to be run.
      StoppedError: Ctrl-C, or the ceiling on costs, which is the whole study's; starting again goes
        on.
    """
    planned = plan_arms(config)
    if config.launcher == "ray":  # machines need not share a working directory
        config = dataclasses.replace(config, run=config.run.absolute())
    known = {_key(arm): arm for arm in read_arms(config.run, config.study)}
    new = [
        Arm(
            block=arm.block,
            label=arm.label,
            domain=arm.domain,
            method=arm.method,
            split=config.split,
            row=arm.row,
            budget=arm.budget,
        )
        for arm in planned
    ]
    arms = [known.pop(_key(arm), arm) for arm in new]
    print(f"{config.study}: {len(arms)} arms, the table grows with each.", flush=True)
    domains = [
        d for arm in planned for d in (arm.domain, arm.playing.get("trained_on", arm.domain))
    ]
    playing = planned[0].playing  # a study of counterparties names them by its arms
    roles = _given(config, ROLES) | {role: playing[role] for role in ROLES if role in playing}
    for domain in dict.fromkeys(domains):
        # A method that nothing is trained for: the sweep alone is looked at, whoever has judged it.
        settled = {"domain": domain, "method": UNTRAINED, **_given(config, SHARED), **roles}
        home = settings.config(EvaluateConfig, **settled)
        _make_sweep(Cell(home, None, settings), config.num_sweep_dialogues)
    spent_usd: dict[Path, float] = {}  # file or folder -> what it has cost
    trained: dict[int, tuple[tuple[Cell, ...], ...]] = {}

    def start(number: int) -> Task:
        arm = planned[number]
        print(f"\n--- {config.study} {number + 1}/{len(arms)}: {arm.block}, {arm.label}")
        task = _task(arm, _within_budget(config, sum(spent_usd.values())), settings)
        cells = list(itertools.chain.from_iterable(task.trainings))
        if isinstance(config, DoseStudy) and any(cell.config.judge == TRUTH for cell in cells):
            _find_worths(config, settings)
        for cell in cells:
            prepare(cell, only=("sweep", "judge"))
        trained[number] = task.trainings
        return task

    starts = [functools.partial(start, number) for number in range(len(arms))]
    if config.launcher == "ray":
        outcomes = run_on_ray(starts, cpus=config.ray_cpus, gpus=config.ray_gpus)
    else:
        outcomes = run_here(starts)
    for number, outcome in outcomes:
        arms[number] = _ended(arms[number], outcome, config)
        if isinstance(outcome, Path):
            spent_usd[outcome] = _cost_usd(planned[number], outcome, config)
        spent_usd |= training_costs_usd(trained.get(number, ()))
        write_arms(config.run, config.study, [*arms, *known.values()])
    failed = [arm for arm in arms if arm.reason]
    if len(failed) == len(arms):
        raise InputError(f"{config.study}: all {len(arms)} arms failed; {failed[0].reason}")
    if failed:
        print(
            f"\n{config.study}: {len(failed)} of {len(arms)} arms failed; the reasons are in "
            f"{study_path(config.run, config.study)}. Start again to try them again."
        )
    wanted = {name: getattr(config, name) for name in REPORTING}
    return report_study(settings.config(ReportConfig, **wanted), config.study)


def _make_sweep(home: Cell, num_dialogues: int) -> None:
    """Make the sweep that arms need; on the simulator, one that was made here grows to the size."""
    config = home.config
    played = config.run / config.domain / TRAJECTORIES
    is_own = config.data_from is None and config.is_simulated
    is_ours = read_manifest(config.run / config.domain / "sweep") or not played.is_file()
    if is_own and is_ours and num_lines(played) < num_dialogues:
        sweep = required_cell(home, Requirement("sweep")).config
        planned = plan_sweep(
            split_of(sweep).split.train, num_seeds=1, num_scenarios=sweep.num_scenarios
        )
        num_seeds = math.ceil(num_dialogues / len(planned))
        run(required_cell(home, Requirement("sweep", changes={"num_seeds": num_seeds})))
    prepare(home, only=("sweep",))


def _find_worths(config: DoseStudy, settings: Settings) -> None:
    """Fork the turns whose worths are learned from as the scores of the judge `truth`."""
    names = ("run", "data_from", "domain", "seed", "provider", "base_url", "counterparty")
    forks = {"num_turns": config.num_turns, "continuations": config.continuations}
    run(Cell(settings.config(ReplayConfig, **_given(config, names), **forks, scores=TRUTH)))


def _key(arm: Arm) -> tuple[str, ...]:
    return arm.domain, arm.split, arm.block, arm.label


def _ended(arm: Arm, outcome: Outcome, config: StudyConfig) -> Arm:
    """The arm with its outcome.

    Raises:
      StoppedError: it was stopped, and with it the study.
    """
    if isinstance(outcome, StoppedError):
        raise outcome
    if isinstance(outcome, Path):
        path = outcome.relative_to(config.run).as_posix()
        return dataclasses.replace(arm, status="finished", path=path, reason="")
    print(f"{config.study}: {arm.label} failed: {outcome}", flush=True)
    reason = " ".join(f"{outcome}".split())
    is_there = arm.path is not None and (config.run / arm.path).is_file()
    if arm.status == "finished" and is_there:
        print(f"{config.study}: {arm.label} keeps its row, from {arm.path}.", flush=True)
        return dataclasses.replace(arm, reason=reason)
    return dataclasses.replace(arm, status="failed", reason=reason)


def _within_budget(config: StudyConfig, spent_usd: float) -> StudyConfig:
    """The study with what the arms before have left of its ceiling."""
    if config.max_cost_usd is None:
        return config
    if config.max_cost_usd <= spent_usd:
        raise StoppedError(
            f"{config.study}: ${spent_usd:.2f} spent. Stopped by --max-cost-usd; raise it and "
            "start again to go on."
        )
    return dataclasses.replace(config, max_cost_usd=config.max_cost_usd - spent_usd)


def _cost_usd(arm: PlannedArm, path: Path, config: StudyConfig) -> float:
    """What an arm's calls have cost, those of earlier runs included."""
    if arm.method is None:
        return 0.0
    judged = emotion_dir(config.run, arm.domain, arm.label).glob("*.jsonl")
    files = [path, *(judged if isinstance(config, EmotionStudy) else ())]
    return sum(read_usage(file).cost_usd for file in files)


def _task(arm: PlannedArm, config: StudyConfig, settings: Settings) -> Task:
    """What an arm trains and plays."""
    shared = _given(config, SHARED) | {"domain": arm.domain, "yes": True}
    judge = _given(config, ("judge",))
    base = settings.config(EvaluateConfig, **shared, **_given(config, PLAYING))
    method = TRAINED_ONLY if arm.method is None else get_method(arm.method)
    playing = dataclasses.replace(
        base, method=arm.method or base.method, split=config.split, **arm.playing
    )
    trainings: dict[str, Cell] = {}
    groups: list[tuple[Cell, ...]] = []
    home = Cell(base, None, settings)
    for stage, need in trainings_of(playing, method, arm.training).items():
        changes = dict(need.changes)
        if "sft_cell" in changes:
            changes["sft_cell"] = trainings["sft"].name
        plays = issubclass(STAGES[stage].config, DialogueConfig)
        paid = {"yes": True, **_given(config, PAID)} if plays else {}
        need = need._replace(shared={**paid, **judge, **arm.shared.get(stage, {})}, changes=changes)
        trainings[stage] = required_cell(home, need)
        seeds = arm.seeds if STAGES[stage].run_together is not None else ()
        beside = [need._replace(changes={**changes, "seed": seed}) for seed in seeds]
        groups.append(tuple(required_cell(home, one) for one in beside) or (trainings[stage],))
    candidates: tuple[Cell, ...] = ()
    if arm.rate_factors:
        *before, (last,) = groups
        candidates = tuple(_at_rate(last, factor) for factor in arm.rate_factors)
        groups = [*before, *((one,) for one in candidates)]
    cells = tuple(groups)
    if arm.method is None:
        return Task(cells, None)
    played = {
        s: trainings[s].name for s in (method.selector_stage, method.adapter) if s in trainings
    }
    playing = dataclasses.replace(playing, cells=played)
    if not arm.training:  # the method as it always is, so that its cell is the default one
        base = dataclasses.replace(base, cells=played)
    judging = None
    if isinstance(config, EmotionStudy):
        here = {name: value for name, value in shared.items() if name != "data_from"}
        judged_by = settings.config(JudgeConfig, **here | judge)
        judging = judged_by, emotion_dir(config.run, arm.domain, arm.label)
    return Task(cells, Cell(playing, base, settings), judging, candidates)


def _at_rate(cell: Cell, factor: float) -> Cell:
    """A training at `factor` times its learning rate."""
    rate = cell.config.learning_rate * factor
    return cell._replace(config=dataclasses.replace(cell.config, learning_rate=rate))


def _given(config: StudyConfig, names: Sequence[str]) -> dict[str, Any]:
    """Those of the settings that the study's command line gives."""
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}
