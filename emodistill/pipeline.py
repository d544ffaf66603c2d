"""All stages in order, over one or several domains: the quickstart."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emodistill import cli, stages
from emodistill.configs import (
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
from emodistill.studies.configs import STUDIES

DESCRIPTION = """The whole pipeline on this machine, from sweep to report.

    emodistill-quickstart --fast"""


def main(description: str | None = None) -> None:
    """The command line of the quickstart."""

    def body() -> None:
        args = sys.argv[1:]
        preset = "fast" if "--fast" in args else "quickstart"
        config_file, _ = cli.take_config(args)
        settings_file = config_file or cli.preset_path(preset)
        config = cli.parse(
            QuickstartConfig,
            "quickstart",
            description=description or DESCRIPTION,
            base=lambda _: settings_file,
        )
        quickstart(config, settings_file)

    cli.run(body)


def quickstart(config: QuickstartConfig, settings_file: Path) -> Path:
    """Run all stages for all domains and methods asked for; the report's page."""
    settings = cli.read_settings(settings_file)
    for name in config.studies:
        if name not in (*STUDIES, "tournament"):
            known = ", ".join([*STUDIES, "tournament"])
            raise InputError(f"{settings_file}: studies: {name!r} is none of {known}.")
    started_s = time.monotonic()
    stages.say(
        "No key and no GPU needed: a simulator on this machine plays all language models, and the "
        "embedded student learns. Figures show the machinery at work and say nothing about real "
        "models."
    )
    for domain in config.domains:
        stages.say(f"\n=== {domain}")
        shared: dict[str, Any] = {"run": config.run, "domain": domain, "seed": config.seed}

        def made(cls: type, stage: str, shared: dict[str, Any] = shared) -> Any:
            return cli.make_config(cls, stage, settings, where=str(settings_file), **shared)

        stages.sweep(made(SweepConfig, "sweep"))
        stages.judge(made(JudgeConfig, "judge"))
        stages.iql(made(IQLConfig, "iql"))
        stages.sft(made(SFTConfig, "sft"))
        jpo = made(JPOConfig, "jpo")
        stages.refine(jpo)
        if "iql+jpo" in config.methods:
            stages.refine(dataclasses.replace(jpo, reference="base"), jpo)
        for method in config.methods:
            one = dataclasses.replace(made(EvaluateConfig, "evaluate"), method=method)
            stages.evaluate(one)
    for name in config.studies:
        stages.say(f"\n=== study: {name}")
        _study(name, config, settings, str(settings_file))
    page = stages.report(
        cli.make_config(
            ReportConfig,
            "report",
            settings,
            where=str(settings_file),
            run=config.run,
            seed=config.seed,
        )
    )
    table = page.parent / "table-1.md"
    minutes, seconds = divmod(round(time.monotonic() - started_s), 60)
    stages.say(f"\n{table.read_text()}")
    stages.say(f"Done in {minutes} min {seconds} s. Open {page} in a browser.")
    return page


def _study(name: str, config: QuickstartConfig, settings: Mapping[str, Any], where: str) -> None:
    """One study, its settings from its section of the file."""
    shared = {"run": config.run, "seed": config.seed, "domain": config.domains[0]}
    if name == "tournament":
        stages.tournament(cli.make_config(TournamentConfig, name, settings, where=where, **shared))
        return
    from emodistill.studies import run_study

    study = cli.make_config(STUDIES[name], f"study-{name}", settings, where=where, **shared)
    run_study(study, settings)
