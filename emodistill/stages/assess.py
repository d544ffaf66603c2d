"""Stage 5 and the report: what the methods are worth on held-out scenarios."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emodistill.configs import EvaluateConfig, ReportConfig
from emodistill.errors import InputError, StoppedError
from emodistill.logs import kept_log
from emodistill.runs import finish_stage, stage_dir
from emodistill.stages.apis import model_name, offer_model, offer_reader, open_client
from emodistill.stages.files import (
    CONFIG,
    LOG,
    SCENARIOS,
    SUPPORT,
    TRAJECTORIES,
    Made,
    announce,
    by_id,
    cell,
    judge_file,
    model_hashes,
    say,
    write_config,
)
from emodistill.stages.matches import begin_matches, entrant, held_out

if TYPE_CHECKING:
    from emodistill.records import Trajectory


def evaluate(config: EvaluateConfig, base: EvaluateConfig | None = None) -> Made:
    """Stage 5: play a method on the held-out scenarios."""
    from emodistill.agents import get_method
    from emodistill.evaluation.matches import run_matches
    from emodistill.evaluation.players import Player, Speakers
    from emodistill.prompts import load_pack

    announce(config, f"evaluate {config.method}")
    method = get_method(config.method)
    counterparty = model_name(config, "counterparty", config.counterparty)
    reader = offer_model(config)
    focal = None if method.writer == "student" else model_name(config, "focal", config.model)
    if method.emotion == "oracle" and not config.is_simulated:
        raise InputError("--method oracle knows the simulator's hidden truth; it has no provider.")
    pack = load_pack(config.prompt_pack)
    player, files = entrant(config, focal)
    scenarios = stage_dir(config.run, config.domain, "sweep") / SCENARIOS
    directory = stage_dir(
        config.run, config.domain, "eval", f"{config.method}@{counterparty}".replace("/", "-")
    )
    name = cell(config, base, without=("method", "counterparty", "num_seeds", "num_scenarios"))
    begun = begin_matches(
        config,
        stage="evaluate",
        directory=directory,
        name=name,
        identity={"model": focal, "counterparty": counterparty},
        inputs=[scenarios, *files],
        student_hashes=model_hashes(config.student) if focal is None else {},
        reader=reader,
        pack=pack,
    )
    config, path = begun.config, begun.path
    made = Made(path, f"python scripts/report.py --run {config.run}")
    if begun.manifest.is_finished:
        say(f"evaluate {config.method}: finished before, dialogues in {path}")
        return made
    write_config(directory / f"{name}.{CONFIG}", "evaluate", config, base)

    async def work() -> Any:
        async with open_client(config) as client, Speakers(config, client) as speakers:
            return await run_matches(
                config,
                label=f"evaluate {config.method}",
                scenarios=held_out(scenarios),
                path=path,
                client=client,
                pack=pack,
                focal=player,
                counterparty=Player(
                    language_model=counterparty, temperature=config.counterparty_temperature
                ),
                speakers=speakers,
                reader=offer_reader(client, reader),
            )

    with kept_log(directory / LOG):
        result = asyncio.run(work())
    if not result.is_complete:
        raise StoppedError(f"evaluate {config.method}: {result.summary}")
    finish_stage(
        directory,
        cost_usd=result.cost_usd,
        summary={"text": result.summary},
        name=begun.manifest_name,
    )
    say(f"evaluate {config.method}: {result.summary}")
    return made


def _evaluations(config: ReportConfig, domain: str) -> dict[str, Path]:
    """Method -> its dialogues; `method (cell)` for cells that are not the default.

    Raises:
      InputError: methods have met several counterparties, which one table can't compare.
    """
    found: dict[str, Path] = {}
    opponents = set()
    for path in sorted(stage_dir(config.run, domain, "eval").glob("*/*.jsonl")):
        method, _, counterparty = path.parent.name.partition("@")
        if path.name.endswith(".failures.jsonl") or config.counterparty not in (None, counterparty):
            continue
        opponents.add(counterparty)
        label = method if path.stem == "default" else f"{method} ({path.stem})"
        found[label] = path
    if len(opponents) > 1:
        raise InputError(
            f"{config.run}: methods have met {', '.join(sorted(opponents))} in domain {domain}; "
            "say which to report on with --counterparty."
        )
    return found


def report(config: ReportConfig) -> Path:
    """Tables, figures and the page from whatever the run holds so far."""
    from emodistill.domains import DOMAINS
    from emodistill.jsonl import read_lines
    from emodistill.offline.store import read_judgements, read_trajectories
    from emodistill.offline.sweep import failures_path
    from emodistill.reports import write_report

    evaluations: dict[str, dict[str, list[Trajectory]]] = {}
    sweeps: dict[str, list[Trajectory]] = {}
    judgements: dict[str, list[Any]] = {}
    metrics: list[Path] = []
    support: dict[str, Any] = {}
    num_failed = 0
    for domain in DOMAINS:
        if (path := stage_dir(config.run, domain, "sweep") / TRAJECTORIES).is_file():
            sweeps[domain] = by_id(read_trajectories(path))
        scores = judge_file(config.run, domain, config.judge)
        if scores.is_file():
            judgements[domain] = read_judgements(scores)
        for label, path in _evaluations(config, domain).items():
            evaluations.setdefault(domain, {})[label] = by_id(read_trajectories(path))
            if (failures := failures_path(path)).is_file():
                num_failed += sum(1 for _ in read_lines(failures))
        metrics += sorted((config.run / domain).glob("*/*/metrics.jsonl"))
        if (path := stage_dir(config.run, domain, "iql", "default") / SUPPORT).is_file():
            support[domain] = json.loads(path.read_text())
    page = write_report(
        config.run,
        evaluations=evaluations,
        judgements=judgements,
        trajectories=sweeps,
        metrics_files=metrics,
        support=support,
        seed=config.seed,
        num_resamples=config.num_resamples,
        only=config.only,
        num_failed=num_failed,
    )
    if num_failed:
        say(f"report: {num_failed:,} dialogues of the evaluation failed and are in no table.")
    say(f"report: {page}")
    return page
