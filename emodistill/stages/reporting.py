"""The report: from the files of a run to its tables, figures and page."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emodistill.configs import ReportConfig
from emodistill.domains import DOMAINS
from emodistill.errors import InputError
from emodistill.evaluation.arms import TABLES_OF, Arm, emotion_dir, read_arms
from emodistill.jsonl import read_lines
from emodistill.offline.store import read_judgements, read_scenarios, read_trajectories
from emodistill.offline.sweep import failures_path
from emodistill.prompts import load_pack
from emodistill.records import Judgement, Trajectory
from emodistill.reports import RunData, write_report
from emodistill.reports.facts import is_simulated
from emodistill.reports.figures import read_curve
from emodistill.reports.tables import Resampling
from emodistill.reports.viewer import CAVEAT
from emodistill.runs import read_manifest
from emodistill.stages.run_files import (
    SCENARIOS,
    SUPPORT,
    TRAJECTORIES,
    judge_file,
    read_sweep,
    sweep_concurrency,
)
from emodistill.stages.tournament import played_pairs
from emodistill.train.metrics_log import METRICS

Read = Callable[[Path], list[Trajectory]]


def report(config: ReportConfig) -> Path:
    """Tables, figures and the page from whatever the run holds so far."""
    data = read_run(config)
    page = write_report(data, only=config.only)
    if data.num_failed:
        print(
            f"report: {data.num_failed:,} dialogues of the evaluation failed and are in no table."
        )
    print(f"report: {page}")
    return page


def report_study(config: ReportConfig, study: str) -> list[Path]:
    """The tables of one study."""
    data = read_run(config)
    paths = []
    for name in TABLES_OF[study]:
        try:
            path = write_report(data, only=name)
        except InputError as error:
            print(f"{study}: {error}")
            continue
        paths.append(path)
        print(f"{study}: {path}")
    return paths


def read_run(config: ReportConfig) -> RunData:
    """Everything that a run holds.

    Raises:
      InputError: methods have met several counterparties, none of which the sweep was played with.
    """
    run = config.run

    @functools.cache  # dialogues of an arm may be those of a method as well
    def read(path: Path) -> list[Trajectory]:
        return sorted(read_trajectories(path), key=lambda t: t.trajectory_id)

    arms = {study: found for study in TABLES_OF if (found := read_arms(run, study))}
    there = [
        (arm, run / arm.path)
        for found in arms.values()
        for arm in found
        if arm.status == "finished" and arm.path is not None and (run / arm.path).is_file()
    ]
    single = [(arm, path) for arm, path in there if arm in arms.get("emotions", ())]
    data = RunData(
        run_dir=run,
        resampling=Resampling(config.seed, config.num_resamples),
        arms=arms,
        arm_dialogues={str(arm.path): read(path) for arm, path in there if arm.method is not None},
        arm_curves={str(arm.path): read_curve(path) for arm, path in there if arm.method is None},
        emotions=_emotions(config, single, read),
        **_by_domain(config, {path for _, path in there}, read),
    )
    played = [t for by_name in data.evaluations.values() for ts in by_name.values() for t in ts]
    swept = [t for ts in data.trajectories.values() for t in ts]
    of_studies = [t for ts in data.arm_dialogues.values() for t in ts]
    caveat = CAVEAT if is_simulated([*played, *swept, *of_studies]) else ""
    return dataclasses.replace(data, caveat=caveat)


def _emotions(
    config: ReportConfig, arms: Sequence[tuple[Arm, Path]], read: Read
) -> dict[str, tuple[list[Trajectory], list[Judgement]]]:
    """domain -> dialogues under single emotions with their scores.

    An emotion's dialogues are named as any other's, whose counterparties they share; here the
    emotion goes before the name.
    """
    found: dict[str, tuple[list[Trajectory], list[Judgement]]] = {}
    for arm, path in arms:
        trajectories, judgements = found.setdefault(arm.domain, ([], []))
        for dialogue in read(path):
            name = f"{arm.label}:{dialogue.trajectory_id}"
            trajectories.append(dataclasses.replace(dialogue, trajectory_id=name))
        scores = judge_file(emotion_dir(config.run, arm.domain, arm.label), config.judge)
        for line in read_judgements(scores) if scores.is_file() else ():
            name = f"{arm.label}:{line.trajectory_id}"
            judgements.append(dataclasses.replace(line, trajectory_id=name))
    return found


def _by_domain(config: ReportConfig, of_arms: set[Path], read: Read) -> dict[str, Any]:
    names = ("evaluations", "judgements", "trajectories", "support", "scenarios")
    names += ("tournament", "unfinished", "selectors", "max_turns", "concurrency")
    found: dict[str, Any] = {name: {} for name in names}
    curves: list[Any] = []
    num_failed = 0
    for domain in DOMAINS:
        if (config.run / domain / TRAJECTORIES).is_file():
            found["trajectories"][domain] = read(config.run / domain / TRAJECTORIES)
        if (at_once := sweep_concurrency(config.run, domain)) is not None:
            found["concurrency"][domain] = at_once
        if (config.run / domain / SCENARIOS).is_file():
            found["scenarios"][domain] = read_scenarios(config.run / domain / SCENARIOS)
        scores = judge_file(config.run / domain / "judge", config.judge)
        if scores.is_file():
            found["judgements"][domain] = read_judgements(scores)
        for label, path in _evaluations(config, domain, of_arms).items():
            found["evaluations"].setdefault(domain, {})[label] = read(path)
            manifest = read_manifest(path.parent, f"{path.stem}.manifest.json")
            if manifest is not None and manifest.status != "finished":
                settings = path.with_name(f"{path.stem}.config.yaml")
                found["unfinished"][domain, label] = f"evaluate.py --config {settings}"
            if (failures := failures_path(path)).is_file():
                num_failed += sum(1 for _ in read_lines(failures))
        metrics = sorted((config.run / domain).glob(f"*/*/{METRICS}"))
        curves += [read_curve(path) for path in metrics if path not in of_arms]
        selector = config.run / domain / "iql" / "default"
        if (selector / "selector.safetensors").is_file():
            found["selectors"][domain] = selector
            found["max_turns"][domain] = read_sweep(config.run / domain, load_pack()).max_turns
        support = selector / SUPPORT
        if support.is_file():
            found["support"][domain] = json.loads(support.read_text())
        for pair, path in played_pairs(config.run, domain).items():
            found["tournament"].setdefault(domain, {})[pair] = read(path)
    return found | {"curves": curves, "num_failed": num_failed}


def _evaluations(config: ReportConfig, domain: str, of_arms: set[Path]) -> dict[str, Path]:
    """Method -> its dialogues; `method (cell)` for cells that are neither default nor a study's."""
    found: dict[str, dict[str, Path]] = {}
    manifest = read_manifest(config.run / domain / "sweep")
    usual = None if manifest is None else manifest.config.get("counterparty")
    usual = None if usual is None else str(usual).replace("/", "-")
    for path in sorted((config.run / domain / "eval").glob("*/*.jsonl")):
        method, _, counterparty = path.parent.name.partition("@")
        is_default = path.stem == "default"
        is_unusual = path in of_arms and usual is not None and counterparty != usual
        if (
            method == "fixed"
            or (is_unusual and config.counterparty is None)
            or path.name.endswith(".failures.jsonl")
            or (path in of_arms and not is_default)
        ):
            continue
        label = method if is_default else f"{method} ({path.stem})"
        found.setdefault(counterparty, {})[label] = path
    if config.counterparty is not None:
        return found.get(config.counterparty.replace("/", "-"), {})
    if len(found) > 1:
        if usual not in found:
            raise InputError(
                f"{config.run}: methods have met {', '.join(sorted(found))} in domain {domain}; "
                "say which to report on with --counterparty."
            )
        others = ", ".join(sorted({*found} - {usual}))
        print(f"report: {domain} also has dialogues against {others}; --counterparty shows them.")
        return found[str(usual)]
    return next(iter(found.values()), {})
