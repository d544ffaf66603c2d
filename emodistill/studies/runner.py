"""Runs a study: shared stages once, arm after arm, whatever was finished before not again.

An arm that fails is noted with its reason and the next one runs. What has come of the arms is
written after each of them, so that a report can be made at any time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emodistill import cli, stages
from emodistill.agents import Method, get_method
from emodistill.configs import ApiConfig, EvaluateConfig, JudgeConfig, ReportConfig, SweepConfig
from emodistill.errors import EmodistillError, InputError, StoppedError
from emodistill.evaluation.arms import Arm, emotion_dir, read_arms, study_path, write_arms
from emodistill.runs import stage_dir
from emodistill.studies.configs import EmotionStudy, StudyConfig
from emodistill.studies.plans import Plan, plan_arms
from emodistill.train.metrics_log import METRICS

NOBODY = Method(writer="student", emotion="none")
"""Whoever plays for an arm that is only trained."""
PLAYING = ("model", "student", "counterparty", "num_scenarios", "num_seeds")


def run_study(config: StudyConfig, settings: Mapping[str, Any]) -> list[Path]:
    """Train and play what a study lacks, then write its tables.

    Args:
      settings: of the stages, a section each, as in a configuration file.

    Returns: the tables' files.

    Raises:
      InputError: every arm failed, or nothing is to be run.
      StoppedError: Ctrl-C, or a cost cap; starting again goes on.
    """
    plans = plan_arms(config)
    arms = [
        Arm(block=plan.block, label=plan.label, domain=plan.domain, method=plan.method)
        for plan in plans
    ]
    domains = {plan.domain for plan in plans}
    others = [arm for arm in read_arms(config.run, config.study) if arm.domain not in domains]
    stages.say(f"{config.study}: {len(plans)} arms, the table grows with each.")
    for number, plan in enumerate(plans):
        stages.say(f"\n--- {config.study} {number + 1}/{len(plans)}: {plan.block}, {plan.label}")
        try:
            path = _run(plan, config, settings)
        except StoppedError:
            raise
        except EmodistillError as error:
            stages.say(f"{config.study}: {plan.label} failed: {error}")
            arms[number] = dataclasses.replace(arms[number], status="failed", reason=str(error))
        else:
            inside = path.relative_to(config.run).as_posix()
            arms[number] = dataclasses.replace(arms[number], status="finished", path=inside)
        write_arms(config.run, config.study, [*others, *arms])
    failed = [arm for arm in arms if arm.status == "failed"]
    if len(failed) == len(arms):
        raise InputError(f"{config.study}: all {len(arms)} arms failed; {failed[0].reason}")
    if failed:
        stages.say(
            f"\n{config.study}: {len(failed)} of {len(arms)} arms failed; the reasons are in "
            f"{study_path(config.run, config.study)}. Start again to try them again."
        )
    return stages.report_study(
        cli.make_config(ReportConfig, "report", settings, where="report settings", run=config.run),
        config.study,
    )


def _run(plan: Plan, config: StudyConfig, settings: Mapping[str, Any]) -> Path:
    """The arm's dialogues, or the metrics of one that is only trained."""
    source = plan.playing.get("trained_on", plan.domain)
    for domain in dict.fromkeys((plan.domain, source)):
        _collect(config, settings, domain, is_judged=not isinstance(config, EmotionStudy))
    sizes = {n: getattr(config, n) for n in PLAYING if getattr(config, n) is not None}
    base = _made(EvaluateConfig, "evaluate", config, settings, plan.domain, **sizes)
    parts = NOBODY if plan.method is None else get_method(plan.method)
    training = {
        stage: {**parts.settings.get(stage, {}), **plan.training.get(stage, {})}
        for stage in (*parts.stages, *plan.training)
    }

    def make(stage: str, changes: Mapping[str, Any]) -> str:
        is_here = stage == "iql" and plan.playing.get("selector") == "target"
        home = dataclasses.replace(base, domain=plan.domain if is_here else source)
        return stages.train_cell(home, stage, changes, settings)

    cells = stages.chain(list(training), training, make)
    if plan.method is None:
        stage, cell = list(cells.items())[-1]
        return stage_dir(config.run, plan.domain, stage, cell) / METRICS
    own: dict[str, Any] = {
        f"{stage}_cell": cells[stage] for stage in ("iql", parts.adapter) if stage in cells
    }
    if not plan.training:  # the method as it always is
        base = dataclasses.replace(base, **own)
    playing = dataclasses.replace(base, method=plan.method, **own, **plan.playing)
    path = stages.evaluate(playing, base).path
    if isinstance(config, EmotionStudy):
        judging = _made(JudgeConfig, "judge", config, settings, plan.domain, judge=config.judge)
        stages.judge_matches(judging, path, emotion_dir(config.run, plan.domain, plan.label))
    return path


def _collect(
    config: StudyConfig, settings: Mapping[str, Any], domain: str, *, is_judged: bool
) -> None:
    """Sweep and judge on the simulator; with a provider they have to be there."""
    if not config.is_simulated:
        return
    stages.sweep(_made(SweepConfig, "sweep", config, settings, domain))
    if is_judged:
        stages.judge(_made(JudgeConfig, "judge", config, settings, domain))


def _made(
    cls: type,
    stage: str,
    config: StudyConfig,
    settings: Mapping[str, Any],
    domain: str,
    **more: Any,
) -> Any:
    """A stage's settings; what the study's command line leaves at its default is theirs."""
    given = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(ApiConfig)
        if f.name in ("run", "seed") or getattr(config, f.name) != f.default
    }
    return cli.make_config(
        cls, stage, settings, where=f"{stage} settings", **given | {"domain": domain} | more
    )
