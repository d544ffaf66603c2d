"""The quickstart: all stages in order, over one or several domains, then studies and the report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from emodistill.configs import (
    STUDIES,
    EvaluateConfig,
    IQLConfig,
    JPOConfig,
    JudgeConfig,
    QuickstartConfig,
    ReportConfig,
    SFTConfig,
    SweepConfig,
    TournamentConfig,
)
from emodistill.errors import InputError
from emodistill.reports import report
from emodistill.reports.report_table import terminal_text
from emodistill.settings import Cell, Settings
from emodistill.stages import run, tournament
from emodistill.stages.sweep import scenario_file
from emodistill.studies.arm_runner import run_study


def quickstart(config: QuickstartConfig, settings: Settings) -> Path:
    """Run all stages for all domains and methods asked for; the report's page."""
    studies = {**STUDIES, "tournament": TournamentConfig}
    for name in config.studies:
        if name not in studies:
            known = ", ".join(studies)
            raise InputError(f"{settings.name}: studies: {name!r} is none of {known}.")
    for domain in config.domains:  # before the first of them is worked on
        scenario_file(settings.config(SweepConfig, domain=domain))
    started_s = time.monotonic()
    if settings.config(SweepConfig).is_simulated:
        print(
            "No key and no GPU needed: a simulator on this machine plays all language models, and "
            "the embedded student learns. Figures show the machinery at work and say nothing about "
            "real models.",
            flush=True,
        )
    shared: dict[str, Any] = {"run": config.run, "seed": config.seed}
    for domain in config.domains:
        print(f"\n=== {domain}", flush=True)
        for cls in (SweepConfig, JudgeConfig, IQLConfig, SFTConfig, JPOConfig):
            run(Cell(settings.config(cls, domain=domain, **shared), None, settings))
        for method in config.methods:
            playing = settings.config(EvaluateConfig, domain=domain, method=method, **shared)
            run(Cell(playing, None, settings))
    for name in config.studies:
        print(f"\n=== study: {name}", flush=True)
        study: Any = settings.config(studies[name], domain=config.domains[0], **shared)
        if isinstance(study, TournamentConfig):
            tournament(study, settings)
        else:
            run_study(study, settings)
    page = report(settings.config(ReportConfig, **shared))
    minutes, seconds = divmod(round(time.monotonic() - started_s), 60)
    print(f"\n{terminal_text((page.parent / 'table-1.csv').read_text(encoding='utf-8'))}\n")
    print(f"Done in {minutes} min {seconds} s. Open {page} in a browser.", flush=True)
    return page
