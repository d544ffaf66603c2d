"""Stage 5 and the report: what the methods are worth on held-out scenarios."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emodistill.configs import EvaluateConfig, ReportConfig
from emodistill.errors import InputError, StoppedError
from emodistill.logs import kept_log
from emodistill.runs import begin_stage, finish_stage, input_hashes, read_manifest, stage_dir
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
    covers,
    judge_file,
    model_hashes,
    say,
    write_config,
)

if TYPE_CHECKING:
    from emodistill.records import Trajectory


def evaluate(config: EvaluateConfig, base: EvaluateConfig | None = None) -> Made:
    """Stage 5: play a method on the held-out scenarios."""
    from emodistill.agents import get_method
    from emodistill.evaluation.matches import run_matches
    from emodistill.offline.sweep import failures_path
    from emodistill.prompts import load_pack, offer_prompt_sha256

    announce(config, f"evaluate {config.method}")
    method = get_method(config.method)
    counterparty = model_name(config, "counterparty", config.counterparty)
    reader = offer_model(config)
    focal = None if method.writer == "student" else model_name(config, "focal", config.model)
    if method.emotion == "oracle" and not config.is_simulated:
        raise InputError("--method oracle knows the simulator's hidden truth; it has no provider.")
    pack = load_pack(config.prompt_pack)
    cells: dict[str, str] = {}
    inputs: list[Path] = [stage_dir(config.run, config.domain, "sweep") / SCENARIOS]
    selector_dir = adapter_dir = None
    if method.emotion == "iql":
        cells["iql"] = config.iql_cell
        selector_dir = stage_dir(config.run, config.domain, "iql", config.iql_cell)
        inputs += [selector_dir / "selector.json", selector_dir / "selector.safetensors"]
    if method.adapter is not None:
        stage = method.adapter.removesuffix("-base")
        cells[stage] = getattr(config, f"{stage}_cell")
        adapter_dir = stage_dir(config.run, config.domain, stage, cells[stage]) / "adapter"
        inputs += [adapter_dir / "adapter_config.json", adapter_dir / "adapter_model.safetensors"]
    directory = stage_dir(
        config.run, config.domain, "eval", f"{config.method}@{counterparty}".replace("/", "-")
    )
    name = cell(config, base, without=("method", "counterparty", "num_seeds", "num_scenarios"))
    reader_prompt = {} if reader is None else {"offer reader's prompt": offer_prompt_sha256()}
    student_hashes = model_hashes(config.student) if method.writer == "student" else {}
    manifest_name = f"{name}.manifest.json"
    path = directory / f"{name}.jsonl"
    found = read_manifest(directory, manifest_name)
    if found is not None and covers(found, config):
        sizes = {key: found.config[key] for key in ("num_seeds", "num_scenarios")}
        config = dataclasses.replace(config, **sizes)
    manifest = begin_stage(
        directory,
        stage="evaluate",
        config=config.identity() | {"model": focal, "counterparty": counterparty, "reader": reader},
        seed=config.seed,
        inputs=input_hashes(inputs, config.run)
        | student_hashes
        | reader_prompt
        | {"prompt pack": pack.sha256},
        growing=("num_seeds", "num_scenarios"),
        name=manifest_name,
        output=path,
        leftovers=[failures_path(path)],
    )
    made = Made(path, f"python scripts/report.py --run {config.run}")
    if manifest.is_finished:
        say(f"evaluate {config.method}: finished before, dialogues in {path}")
        return made
    write_config(directory / f"{name}.{CONFIG}", "evaluate", config, base)
    from emodistill.offline.store import read_scenarios

    scenarios = read_scenarios(inputs[0])

    async def work() -> Any:
        async with open_client(config) as client:
            return await run_matches(
                config,
                scenarios=[scenario for scenario in scenarios if scenario.split == "test"],
                path=path,
                client=client,
                pack=pack,
                focal_model=focal,
                counterparty_model=counterparty,
                selector_dir=selector_dir,
                adapter_dir=adapter_dir,
                cells=cells,
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
        name=manifest_name,
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
