"""Stage 5, and the pairs of a tournament: methods play the held-out scenarios."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emodistill.configs import DEFAULT_CELL, EvaluateConfig, PairConfig
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.evaluation.methods import METHODS, Method, get_method
from emodistill.evaluation.players import PlayerPool, PlayerSpec, writing_temperature
from emodistill.offline.run_files import SCENARIOS
from emodistill.offline.store import read_scenarios
from emodistill.offline.sweep import failures_path
from emodistill.prompts import PromptPack, load_pack, offer_prompt_sha256
from emodistill.runs import Job, Result, input_hashes
from emodistill.settings import Cell, cell_name
from emodistill.stages.inputs import grown, model_hashes
from emodistill.stages.language_models import model_name, offer_model, offer_reader, open_client
from emodistill.stages.runner import STAGES
from emodistill.stages.stage import Requirement, Stage


class _MatchDetails(NamedTuple):
    focal: PlayerSpec
    counterparty: PlayerSpec
    reader: str | None
    pack: PromptPack


def _methods(config: EvaluateConfig) -> list[Method]:
    names = [config.method, *([config.opponent] if isinstance(config, PairConfig) else [])]
    return [get_method(name) for name in names]


def _language_models(config: EvaluateConfig) -> tuple[str | None, str | None]:
    """Who writes in the focal and in the counterparty's role; None where a student does."""
    writers = [method.writer for method in _methods(config)]
    focal = None
    if "llm" in writers or config.model is not None:
        focal = model_name(config, "focal", config.model)
    if writers[1:] == ["student"]:
        return focal, None
    if writers[1:] and config.counterparty is None and not config.is_simulated:
        return focal, focal  # a real language model plays both roles of a tournament
    return focal, model_name(config, "counterparty", config.counterparty)


def adapter_requirements(
    method: Method, training: Mapping[str, Mapping[str, Any]] = {}
) -> dict[str, Requirement]:
    """Stage -> the cell that `method` needs of it, each after the one that it goes on from.

    Args:
      training: stage -> what a study changes in its training.
    """
    needed: dict[str, Requirement] = {}
    for stage in dict.fromkeys((*method.stages, *training)):
        changes = {**method.settings.get(stage, {}), **training.get(stage, {})}
        sft = needed.get("sft")
        if sft is not None and sft.changes:
            changes["sft_cell"] = sft.cell
        needed[stage] = Requirement(
            stage, changes=changes, cell=cell_name(changes) if changes else DEFAULT_CELL
        )
    return needed


def _needs(config: EvaluateConfig) -> Sequence[Requirement]:
    """What is called `default` or belongs to the method; other cells are the user's own."""
    load_pack(config.prompt_pack)
    offer_model(config)
    _language_models(config)
    needs = [Requirement("sweep")]
    for method in _methods(config):
        if method.writer == "student":
            model_hashes(config.student)
        source = config.trained_on or config.domain
        needed = adapter_requirements(method)
        if "iql" in needed and "iql" not in config.cells:
            home = source if config.selector == "source" else config.domain
            needs.append(Requirement("iql", domain=home))
        if method.adapter is not None and method.adapter not in STAGES:
            # Another adapter stage than ours: whoever trained it says by a name that it is there.
            adapter = config.run / source / method.adapter / config.cell(method.adapter)
            if not adapter.is_dir():
                raise InputError(
                    f"--method {config.method} is not known; use one of {', '.join(METHODS)}, or "
                    f"train {adapter} first."
                )
        elif method.adapter is not None and method.adapter not in config.cells:
            adapters = (need for stage, need in needed.items() if stage != "iql")
            needs += [need._replace(domain=source) for need in adapters]
    return needs


def _player(
    config: EvaluateConfig, name: str, language_model: str | None
) -> tuple[Any, list[Path]]:
    """Who plays a method, and the files that it is made of."""
    method = get_method(name)
    source = config.trained_on or config.domain
    cells: dict[str, str] = {}
    files: list[Path] = []
    selector_dir = adapter_dir = None
    if method.selector == "iql":
        cells["iql"] = config.cell("iql")
        home = source if config.selector == "source" else config.domain
        selector_dir = config.run / home / "iql" / cells["iql"]
        files += [selector_dir / "selector.json", selector_dir / "selector.safetensors"]
    if (stage := method.adapter) is not None:
        own = adapter_requirements(method)[stage]
        cells[stage] = config.cells.get(stage, own.cell)
        adapter_dir = config.run / source / stage / cells[stage] / "adapter"
        files += [adapter_dir / "adapter_config.json", adapter_dir / "adapter_model.safetensors"]
    player = PlayerSpec(
        method=name,
        emotion=config.emotion,
        language_model=None if method.writer == "student" else language_model,
        temperature=writing_temperature(config, name),
        cells=cells,
        selector_dir=selector_dir,
        adapter_dir=adapter_dir,
    )
    return player, files


def _job(cell: Cell) -> Job:
    config: EvaluateConfig = cell.config
    is_pair = isinstance(config, PairConfig)
    if config.method == "oracle" and not config.is_simulated:
        raise InputError("--method oracle knows the simulator's hidden truth; it has no provider.")
    pack, reader = load_pack(config.prompt_pack), offer_model(config)
    model, opposite = _language_models(config)
    focal, files = _player(config, config.method, model)
    if is_pair:
        counterparty, more = _player(config, config.opponent, opposite)
        files += more
        # The tournament names cells for all its methods; those of others make no difference here.
        played = {*focal.cells, *counterparty.cells}
        cells = {stage: name for stage, name in config.cells.items() if stage in played}
        config = dataclasses.replace(config, cells=cells)
        if counterparty.language_model is not None:
            counterparty = dataclasses.replace(
                counterparty, temperature=config.counterparty_temperature
            )
        directory, name = config.run / config.domain / "tournament", config.method
        name = f"{config.method}@{config.opponent}"
        label = f"tournament {name}"
    else:
        counterparty = PlayerSpec(
            language_model=opposite, temperature=config.counterparty_temperature
        )
        folder = f"{config.method}@{opposite}".replace("/", "-")
        directory, name = config.run / config.domain / "eval" / folder, cell.name
        label = f"evaluate {config.method}"
    inputs = input_hashes([config.run / config.domain / SCENARIOS, *files], config.run)
    if any(method.writer == "student" for method in _methods(config)):
        inputs |= model_hashes(config.student)
    if reader is not None:
        inputs["offer reader's prompt"] = offer_prompt_sha256()
    output, manifest = directory / f"{name}.jsonl", f"{name}.manifest.json"
    config = grown(config, directory, manifest)
    models = {"model": focal.language_model, "counterparty": counterparty.language_model}
    return Job(
        cell=cell._replace(config=config),
        name=label,
        directory=directory,
        output=output,
        path=output,
        inputs=inputs | {"prompt pack": pack.sha256},
        identity=config.identity() | models | {"reader": reader},
        manifest=manifest,
        config_file=f"{name}.config.yaml",
        growing=("num_seeds", "num_scenarios"),
        leftovers=(failures_path(output),),
        details=_MatchDetails(focal, counterparty, reader, pack),
    )


def play(job: Job, loaded: dict[str, Any] | None = None) -> Result:
    """Play the dialogues that are still missing.

    Args:
      loaded: students that several matches share (see `PlayerPool`).
    """
    config, details = job.cell.config, job.details

    async def work() -> Result:
        async with (
            open_client(config, job.name) as client,
            PlayerPool(config, client, details.pack, loaded) as pool,
        ):
            played = await pool.play(
                details.focal,
                details.counterparty,
                _held_out(config.run / config.domain / SCENARIOS, config.split),
                path=job.output,
                label=job.name,
                reader=offer_reader(client, details.reader),
            )
        return Result(played.summary, played.cost_usd, is_complete=played.is_complete)

    return asyncio.run(work())


def _held_out(path: Path, split: str) -> list[Scenario]:
    """The scenarios of a run that nothing was trained on, in order.

    Raises:
      InputError: there is none.
    """
    scenarios = [scenario for scenario in read_scenarios(path) if scenario.split == split]
    if not scenarios:
        flag = {"test": "--num-test 20", "validation": "--num-validation 10"}[split]
        raise InputError(
            f"{path}: no scenario has split={split!r}; sweep with {flag} into a new --run."
        )
    return scenarios


EVALUATE = Stage(
    config=EvaluateConfig,
    script="evaluate",
    needs=_needs,
    job=_job,
    run=play,
    followed_by=lambda cell: f"python scripts/report.py --run {cell.config.run}",
)
PAIR = dataclasses.replace(EVALUATE, config=PairConfig, script="tournament")
