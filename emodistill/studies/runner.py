"""Runs a study: shared stages once, arm after arm, whatever was finished before not again.

An arm that fails is noted with its reason and the next one runs. What has come of the arms is
written after each of them, so that a report can be made at any time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emodistill import cli, stages
from emodistill.configs import EvaluateConfig, JudgeConfig, ReportConfig
from emodistill.errors import InputError, StoppedError
from emodistill.evaluation.arms import Arm, emotion_dir, read_arms, study_path, write_arms
from emodistill.evaluation.methods import Method, get_method
from emodistill.offline.budget import read_usage
from emodistill.studies.configs import EmotionStudy, StudyConfig
from emodistill.studies.launchers import Outcome, Task, run_here, run_on_ray
from emodistill.studies.plans import Plan, plan_arms

NOBODY = Method(writer="student", selector="none")
"""Whoever plays for an arm that is only trained."""
SHARED = (
    *("run", "seed", "provider", "base_url"),
    *("concurrency", "timeout_s", "max_cost_usd", "record", "replay"),
)
"""What a study hands on to the stages."""
PLAYING = ("model", "student", "counterparty", "num_scenarios", "num_seeds")


def run_study(config: StudyConfig, settings: Mapping[str, Any]) -> list[Path]:
    """Train and play what a study lacks, then write its tables.

    Args:
      settings: of the stages, a section each, as in a configuration file.

    Returns: the tables' files.

    Raises:
      InputError: sweep or scores are missing and have to be paid for, every arm failed, or nothing
        is to be run.
      StoppedError: Ctrl-C, or the ceiling on costs, which is the whole study's; starting again goes
        on.
    """
    plans = plan_arms(config)
    if config.launcher == "ray":  # machines need not share a working directory
        config = dataclasses.replace(config, run=config.run.absolute())
    known = read_arms(config.run, config.study)
    arms = [_known(plan, config, known) for plan in plans]
    asked = {_key(arm) for arm in arms}
    others = [arm for arm in known if _key(arm) not in asked]
    stages.say(f"{config.study}: {len(plans)} arms, the table grows with each.")
    for domain in dict.fromkeys(domain for plan in plans for domain in _domains(plan)):
        home = _made(EvaluateConfig, "evaluate", config, settings, domain)
        stages.prepare(home, "sweep", settings=settings)
    spent_usd = 0.0

    def start(number: int) -> Task:
        plan = plans[number]
        stages.say(f"\n--- {config.study} {number + 1}/{len(plans)}: {plan.block}, {plan.label}")
        task = _task(plan, _within_budget(config, spent_usd), settings)
        for cell in task.cells:
            cell.prepare(settings)
        return task

    starts = [functools.partial(start, number) for number in range(len(plans))]
    if config.launcher == "ray":
        outcomes = run_on_ray(starts, cpus=config.ray_cpus, gpus=config.ray_gpus)
    else:
        outcomes = run_here(starts)
    for number, outcome in outcomes:
        arms[number] = _ended(arms[number], outcome, config)
        if isinstance(outcome, Path):
            spent_usd += _cost_usd(plans[number], outcome, config)
        write_arms(config.run, config.study, [*arms, *others])
    failed = [arm for arm in arms if arm.status == "failed"]
    if len(failed) == len(arms):
        raise InputError(f"{config.study}: all {len(arms)} arms failed; {failed[0].reason}")
    if failed:
        stages.say(
            f"\n{config.study}: {len(failed)} of {len(arms)} arms failed; the reasons are in "
            f"{study_path(config.run, config.study)}. Start again to try them again."
        )
    shared = ("run", "seed", "counterparty", "judge")
    wanted = {name: getattr(config, name) for name in shared}
    report = cli.make_config(ReportConfig, "report", settings, where="report settings", **wanted)
    return stages.report_study(report, config.study)


def _key(arm: Arm) -> tuple[str, ...]:
    return arm.domain, arm.split, arm.block, arm.label


def _known(plan: Plan, config: StudyConfig, known: Sequence[Arm]) -> Arm:
    """The plan's arm as an earlier call left it, or a new one."""
    new = Arm(
        block=plan.block,
        label=plan.label,
        domain=plan.domain,
        method=plan.method,
        split=config.split,
    )
    return next((arm for arm in known if _key(arm) == _key(new)), new)


def _ended(arm: Arm, outcome: Outcome, config: StudyConfig) -> Arm:
    """The arm with what has come of it.

    Raises:
      StoppedError: it was stopped, and with it the study.
    """
    if isinstance(outcome, StoppedError):
        raise outcome
    if isinstance(outcome, Path):
        path = outcome.relative_to(config.run).as_posix()
        return dataclasses.replace(arm, status="finished", path=path, reason="")
    stages.say(f"{config.study}: {arm.label} failed: {outcome}")
    reason = " ".join(f"{outcome}".split())
    return dataclasses.replace(arm, status="failed", reason=reason)


def _domains(plan: Plan) -> tuple[str, ...]:
    return plan.domain, plan.playing.get("trained_on", plan.domain)


def _within_budget(config: StudyConfig, spent_usd: float) -> StudyConfig:
    """With what the arms before have left of the ceiling."""
    if config.max_cost_usd is None:
        return config
    if config.max_cost_usd <= spent_usd:
        raise StoppedError(
            f"{config.study}: ${spent_usd:.2f} spent. Stopped by --max-cost-usd; raise it and "
            "start again to go on."
        )
    return dataclasses.replace(config, max_cost_usd=config.max_cost_usd - spent_usd)


def _cost_usd(plan: Plan, path: Path, config: StudyConfig) -> float:
    """What an arm's calls have cost, those of earlier runs included."""
    if plan.method is None:
        return 0.0
    judged = emotion_dir(config.run, plan.domain, plan.label).glob("*.jsonl")
    files = [path, *(judged if isinstance(config, EmotionStudy) else ())]
    return sum(read_usage(file).cost_usd for file in files)


def _task(plan: Plan, config: StudyConfig, settings: Mapping[str, Any]) -> Task:
    """What an arm trains and plays."""
    source = plan.playing.get("trained_on", plan.domain)
    sizes = {n: getattr(config, n) for n in PLAYING if getattr(config, n) is not None}
    base = _made(EvaluateConfig, "evaluate", config, settings, plan.domain, **sizes)
    parts = NOBODY if plan.method is None else get_method(plan.method)
    training = {
        stage: {**parts.settings.get(stage, {}), **plan.training.get(stage, {})}
        for stage in (*parts.stages, *plan.training)
    }
    cells: dict[str, stages.Cell] = {}

    def add(stage: str, changes: Mapping[str, Any]) -> str:
        is_here = stage == "iql" and plan.playing.get("selector") == "target"
        home = dataclasses.replace(base, domain=plan.domain if is_here else source)
        cells[stage] = stages.plan_cell(home, stage, changes, settings, judge=config.judge)
        return cells[stage].name

    stages.chain(list(training), training, add)
    needed = tuple(cells.values())
    if plan.method is None:
        return Task(needed, None, None)
    own: dict[str, Any] = {
        f"{stage}_cell": cells[stage].name for stage in ("iql", parts.adapter) if stage in cells
    }
    if not plan.training:  # the method as it always is
        base = dataclasses.replace(base, **own)
    playing = dataclasses.replace(
        base, method=plan.method, split=config.split, **own, **plan.playing
    )
    judging = None
    if isinstance(config, EmotionStudy):
        judge = {} if config.judge is None else {"judge": config.judge}
        judged_by = _made(JudgeConfig, "judge", config, settings, plan.domain, **judge)
        judging = judged_by, emotion_dir(config.run, plan.domain, plan.label)
    return Task(needed, playing, base, judging)


def _made(
    cls: type,
    stage: str,
    config: StudyConfig,
    settings: Mapping[str, Any],
    domain: str,
    **more: Any,
) -> Any:
    """A stage's settings; what the study's command line leaves out is theirs."""
    given = {n: getattr(config, n) for n in SHARED if getattr(config, n) is not None}
    return cli.make_config(
        cls, stage, settings, where=f"{stage} settings", **given | {"domain": domain} | more
    )
