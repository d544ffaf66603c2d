"""The report: from the files of a run to its tables, figures and page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emodistill.configs import ReportConfig
from emodistill.domains import DOMAINS
from emodistill.errors import InputError
from emodistill.evaluation.arms import STUDIES, Arm, emotion_dir, read_arms
from emodistill.jsonl import read_lines
from emodistill.offline.store import read_judgements, read_scenarios, read_trajectories
from emodistill.offline.sweep import failures_path
from emodistill.records import Judgement, Trajectory
from emodistill.reports import RunData, write_report
from emodistill.reports.facts import is_simulated
from emodistill.reports.figures import read_curve
from emodistill.reports.viewer import CAVEAT
from emodistill.runs import read_manifest, stage_dir
from emodistill.stages.files import (
    SCENARIOS,
    SUPPORT,
    TRAJECTORIES,
    by_id,
    judge_file,
    say,
)
from emodistill.stages.pairings import played_pairs
from emodistill.train.metrics_log import METRICS


def report(config: ReportConfig) -> Path:
    """Tables, figures and the page from whatever the run holds so far."""
    data = read_run(config)
    page = write_report(
        data, seed=config.seed, num_resamples=config.num_resamples, only=config.only
    )
    if data.num_failed:
        say(f"report: {data.num_failed:,} dialogues of the evaluation failed and are in no table.")
    say(f"report: {page}")
    return page


def report_study(config: ReportConfig, study: str) -> list[Path]:
    """The tables of one study."""
    data = read_run(config)
    paths = [
        write_report(data, seed=config.seed, num_resamples=config.num_resamples, only=name)
        for name in STUDIES[study]
    ]
    for path in paths:
        say(f"{study}: {path}")
    return paths


def read_run(config: ReportConfig) -> RunData:
    """Everything that a run holds.

    Raises:
      InputError: methods have met several counterparties, none of which the sweep was played with.
    """
    run = config.run
    arms = {study: found for study in STUDIES if (found := read_arms(run, study))}
    finished = [arm for found in arms.values() for arm in found if arm.status == "finished"]
    of_arms = {run / arm.path for arm in finished if arm.path is not None}
    data = RunData(
        run_dir=run,
        arms=arms,
        arm_dialogues={
            str(arm.path): by_id(read_trajectories(run / str(arm.path)))
            for arm in finished
            if arm.method is not None and (run / str(arm.path)).is_file()
        },
        arm_curves={
            str(arm.path): read_curve(run / str(arm.path))
            for arm in finished
            if arm.method is None and (run / str(arm.path)).is_file()
        },
        emotions=_emotions(run, [arm for arm in finished if arm in arms.get("emotions", ())]),
        **_by_domain(config, of_arms),
    )
    played = [t for by_name in data.evaluations.values() for ts in by_name.values() for t in ts]
    swept = [t for ts in data.trajectories.values() for t in ts]
    of_studies = [t for ts in data.arm_dialogues.values() for t in ts]
    caveat = CAVEAT if is_simulated([*played, *swept, *of_studies]) else ""
    return dataclasses.replace(data, caveat=caveat)


def _emotions(
    run: Path, arms: Sequence[Arm]
) -> dict[str, tuple[list[Trajectory], list[Judgement]]]:
    """domain -> dialogues under single emotions with their scores.

    An emotion's dialogues are named as any other's, whose counterparties they share; here the
    emotion goes before the name.
    """
    found: dict[str, tuple[list[Trajectory], list[Judgement]]] = {}
    for arm in arms:
        trajectories, judgements = found.setdefault(arm.domain, ([], []))
        for dialogue in by_id(read_trajectories(run / str(arm.path))):
            name = f"{arm.label}:{dialogue.trajectory_id}"
            trajectories.append(dataclasses.replace(dialogue, trajectory_id=name))
        for path in sorted(emotion_dir(run, arm.domain, arm.label).glob("*.jsonl"))[:1]:
            for line in read_judgements(path):
                name = f"{arm.label}:{line.trajectory_id}"
                judgements.append(dataclasses.replace(line, trajectory_id=name))
    return found


def _by_domain(config: ReportConfig, of_arms: set[Path]) -> dict[str, Any]:
    names = ("evaluations", "judgements", "trajectories", "support", "scenarios")
    found: dict[str, Any] = {name: {} for name in (*names, "tournament")}
    curves: list[Any] = []
    num_failed = 0
    for domain in DOMAINS:
        sweep = stage_dir(config.run, domain, "sweep")
        if (sweep / TRAJECTORIES).is_file():
            found["trajectories"][domain] = by_id(read_trajectories(sweep / TRAJECTORIES))
        if (sweep / SCENARIOS).is_file():
            found["scenarios"][domain] = read_scenarios(sweep / SCENARIOS)
        scores = judge_file(config.run, domain, config.judge)
        if scores.is_file():
            found["judgements"][domain] = read_judgements(scores)
        for label, path in _evaluations(config, domain, of_arms).items():
            played: list[Trajectory] = by_id(read_trajectories(path))
            found["evaluations"].setdefault(domain, {})[label] = played
            if (failures := failures_path(path)).is_file():
                num_failed += sum(1 for _ in read_lines(failures))
        metrics = sorted((config.run / domain).glob(f"*/*/{METRICS}"))
        curves += [read_curve(path) for path in metrics if path not in of_arms]
        support = stage_dir(config.run, domain, "iql", "default") / SUPPORT
        if support.is_file():
            found["support"][domain] = json.loads(support.read_text())
        for pair, path in played_pairs(config.run, domain).items():
            found["tournament"].setdefault(domain, {})[pair] = by_id(read_trajectories(path))
    return found | {"curves": curves, "num_failed": num_failed}


def _evaluations(config: ReportConfig, domain: str, of_arms: set[Path]) -> dict[str, Path]:
    """Method -> its dialogues; `method (cell)` for cells that are neither default nor a study's."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(stage_dir(config.run, domain, "eval").glob("*/*.jsonl")):
        method, _, counterparty = path.parent.name.partition("@")
        is_default = path.stem == "default"
        if (
            method == "fixed"
            or path.name.endswith(".failures.jsonl")
            or (path in of_arms and not is_default)
        ):
            continue
        label = method if is_default else f"{method} ({path.stem})"
        found.setdefault(counterparty, {})[label] = path
    if config.counterparty is not None:
        return found.get(config.counterparty, {})
    if len(found) > 1:
        usual = read_manifest(stage_dir(config.run, domain, "sweep"))
        name = None if usual is None else usual.config.get("counterparty")
        if name not in found:
            raise InputError(
                f"{config.run}: methods have met {', '.join(sorted(found))} in domain {domain}; "
                "say which to report on with --counterparty."
            )
        return found[str(name)]
    return next(iter(found.values()), {})
