"""Every stage as one call: a configuration in, files and a line for the terminal out.

This is where manifests, cells and the simulator meet the stages. A stage that lacks its inputs
makes them first: on the simulator at the size of configs/quickstart.yaml, never where a provider
is named. What is wrong in a configuration is said before anything is made for it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from emodistill.configs import (
    EvaluateConfig,
    IQLConfig,
    JudgeConfig,
    PlanConfig,
    RefinementConfig,
    ReportConfig,
    SFTConfig,
    SweepConfig,
    TournamentConfig,
)
from emodistill.prompts import load_pack
from emodistill.stages import assess, collect, learn, pairings
from emodistill.stages.apis import model_name, offer_model
from emodistill.stages.files import Made, model_hashes, say
from emodistill.stages.learn import student_base
from emodistill.stages.memory import plan_memory
from emodistill.stages.missing import Cell, chain, plan_cell, prepare, prepare_method

__all__ = [
    "Cell",
    "Made",
    "chain",
    "compare_judges",
    "evaluate",
    "iql",
    "judge",
    "judge_matches",
    "plan",
    "plan_cell",
    "plan_memory",
    "prepare",
    "refine",
    "report",
    "report_study",
    "say",
    "say_next",
    "sft",
    "student_base",
    "sweep",
    "tournament",
]


def say_next(made: Made) -> None:
    """End a script with the command that goes on from what it made."""
    say(f"next: {made.next_command}")


def sweep(config: SweepConfig) -> Made:
    """Stage 1: play the sweep's dialogues, or those that are still missing."""
    return collect.sweep(config)


def judge(config: JudgeConfig) -> Made:
    """Stage 2: score what the sweep has and the judge has not seen."""
    model_name(config, "judge", config.judge)
    load_pack(config.prompt_pack)
    prepare(config, "sweep")
    return collect.judge(config)


def judge_matches(config: JudgeConfig, dialogues: Path, directory: Path) -> Path:
    """Score dialogues of a match instead of the sweep's."""
    return collect.judge_matches(config, dialogues, directory)


def plan(config: PlanConfig) -> Path:
    """Forecast a sweep and its judging from a pilot, which is the sweep's beginning."""
    return collect.plan(config)


def compare_judges(config: JudgeConfig) -> Path:
    """How far two judges of the sweep agree; no call is made."""
    return collect.compare_judges(config)


def iql(config: IQLConfig, base: IQLConfig | None = None) -> Made:
    """Stage 3: train the emotion selector. `base` names the cell (see `cli`)."""
    prepare(config, "sweep", *(["judge"] if config.signal != "outcome" else []))
    return learn.iql(config, base)


def sft(config: SFTConfig, base: SFTConfig | None = None) -> Made:
    """Stage 4a: train the SFT adapter."""
    learn.check_student(config)
    prepare(config, "sweep", "judge")
    return learn.sft(config, base)


def refine(config: RefinementConfig, base: RefinementConfig | None = None) -> Made:
    """Stage 4b: train the JPO, A-LoL or DPO adapter."""
    learn.check_student(config)
    prepare(config, "sweep", "judge")
    if not config.starts_from_base and config.sft_cell == "default":
        prepare(config, "sft")
    return learn.refine(config, base)


def evaluate(config: EvaluateConfig, base: EvaluateConfig | None = None) -> Made:
    """Stage 5: play a method on the held-out scenarios."""
    from emodistill.agents import get_method

    method = get_method(config.method)
    model_name(config, "focal", config.model)
    model_name(config, "counterparty", config.counterparty)
    offer_model(config)
    load_pack(config.prompt_pack)
    if method.writer == "student":
        model_hashes(config.student)
    prepare(config, "sweep")
    cells = prepare_method(config)
    base = dataclasses.replace(base or config, **cells)
    return assess.evaluate(dataclasses.replace(config, **cells), base)


def tournament(config: TournamentConfig) -> Made:
    """Methods play each other, each in both seats, on the held-out scenarios."""
    pairings.check(config)
    prepare(config, "sweep")
    evaluations = [config.evaluation(name) for name in config.methods]
    evaluations = [dataclasses.replace(one, **prepare_method(one)) for one in evaluations]
    return pairings.tournament(config, evaluations)


def report(config: ReportConfig) -> Path:
    """Tables, figures and the page from whatever the run holds so far."""
    from emodistill import reports  # pandas and matplotlib, not for --help

    return reports.report(config)


def report_study(config: ReportConfig, study: str) -> list[Path]:
    """The tables of one study."""
    from emodistill import reports  # pandas and matplotlib, not for --help

    return reports.report_study(config, study)
