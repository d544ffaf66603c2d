"""Runs a stage: makes what it lacks, compares its manifest, resumes or refuses, and finishes it.

What a stage lacks is made on the simulator alone. Where a real provider is named, or the recorded
dialogues came from one, the commands that make it are printed instead.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from emodistill.configs import EMBEDDED, SIMULATED, AdapterConfig, ApiConfig, RefinementConfig
from emodistill.errors import InputError, StoppedError
from emodistill.logs import STAGE_LOG, log_to_file
from emodistill.model.processes import agree, is_first, joined
from emodistill.offline.run_files import TRAJECTORIES, data_run, recorded_run
from emodistill.runs import Job, Result, begin_stage, finish_stage, read_manifest
from emodistill.settings import Cell, Settings
from emodistill.stages.language_models import default_model, usual_provider
from emodistill.stages.stage import (
    Output,
    Requirement,
    StageTable,
    command,
    named_file,
    pasted,
)

ROLES = ("focal", "counterparty")
PLACEHOLDER = "MODEL"
"""Stands in a printed command for the name of a model that only the user knows."""
STAGES = StageTable(
    {
        "sweep": "sweep.SWEEP",
        "judge": "judge.JUDGE",
        "iql": "training.IQL",
        "selector": "selector_training.SELECTOR",
        "sft": "training.SFT",
        "jpo": "training.JPO",
        "alol": "training.ALOL",
        "dpo": "training.DPO",
        "grpo": "on_policy.GRPO",
        "ppo": "on_policy.PPO",
        "evaluate": "evaluation.EVALUATE",
        "tournament": "evaluation.PAIR",
        "replay": "replay.REPLAY",
    }
)
"""Name -> stage; open to further ones."""


def run(cell: Cell, work: Callable[[Job], Result] | None = None) -> Output:
    """Run a stage: make what it lacks, then its output, unless that is finished.

    Args:
      work: takes the place of the stage's own `run`, to make a part of its output from what is
        there already.

    Raises:
      InputError: something can't be used, or is missing and has to be paid for.
      StaleInputError: the output was made from other inputs or settings.
      StoppedError: stopped by the user or the ceiling on costs; the same call goes on.
    """
    if work is None:
        prepare(cell)
    stage = STAGES[cell.config.stage]
    job = stage.job(cell)
    is_adapter = isinstance(cell.config, AdapterConfig)
    decide = agree if is_adapter else lambda decision: decision()
    with joined(cell.config) if is_adapter else log_to_file(job.directory / STAGE_LOG):
        if decide(lambda: begin_stage(job)) and not job.is_repeated:
            print(f"{job.name}: finished before, in {job.path}", flush=True)
        else:
            result = (work or stage.run)(job)
            if not result.is_complete:
                raise StoppedError(f"{job.name}: {result.text}")
            if not result.is_part:
                if not is_adapter or is_first():
                    finish_stage(job, result)
                print(f"{job.name}: {result.text}", flush=True)
    return Output(job.path, stage.followed_by(cell))


def run_together(cells: Sequence[Cell]) -> None:
    """Run the cells of a stage that aren't finished; as one, where the stage can.

    Raises: as `run`.
    """
    stage = STAGES[cells[0].config.stage]
    if len(cells) == 1 or stage.run_together is None:
        for cell in cells:
            run(cell)
        return
    for cell in cells:
        prepare(cell)
    jobs = [stage.job(cell) for cell in cells]
    with ExitStack() as stack:
        for job in jobs:
            stack.enter_context(log_to_file(job.directory / STAGE_LOG))
        pending = [job for job in jobs if not begin_stage(job)]
        if not pending:
            print(f"{jobs[0].name}: {len(jobs)} finished before, in {jobs[0].directory.parent}")
            return
        for job, result in zip(pending, stage.run_together(pending), strict=True):
            finish_stage(job, result)
            print(f"{job.name}: {result.text}", flush=True)


def prepare(cell: Cell, only: Container[str] | None = None, *, is_read_only: bool = False) -> None:
    """Make what the stage of `cell` needs and what isn't there.

    Args:
      only: leave all but these stages of the run that was recorded to the caller.
      is_read_only: make nothing, and say how it is made.

    Raises:
      InputError: it has to be paid for, several processes train together, or nothing is to be
        made; the message has the commands that make it.
    """
    lacking = _lacking(cell)
    if only is not None:
        recorded = recorded_run(cell.config)
        lacking = [c for c in lacking if c.config.stage in only and c.config.run == recorded]
    if not lacking:
        return
    home = lacking[0].config.run / cell.config.domain
    if only is None and (found := cells_elsewhere(cell)) and (naming := _naming(cell, found)):
        raise InputError(
            f"{home}: {', '.join(found)} finished in other cells than the default one. Start this "
            f"again with {naming}."
        )
    is_alone = getattr(cell.config, "coordinator", None) is None
    names = ", ".join(dict.fromkeys(one.config.stage for one in lacking))
    is_elsewhere = any(not one.config.run.is_relative_to(cell.config.run) for one in lacking)
    recorded = recorded_run(cell.config)
    is_free = all(_is_all_simulated(one.config, recorded) for one in [cell, *lacking])
    if is_read_only or not is_alone or is_elsewhere or not is_free:
        commands, made = _commands(cell, lacking)
        naming = _naming(cell, made) if made else ""
        last = f"\nThen start this again with {naming}" if naming else ""
        if any(PLACEHOLDER in command for command in commands):
            last = f"\nPut the names of your models in place of {PLACEHOLDER}.{last}"
        raise InputError("\n  ".join([f"{home} lacks {names}. Run first:", *commands]) + last)
    settings = cell.settings or Settings.preset("quickstart")
    print(f"{home} lacks {names}: made now on the simulator, at the size of {settings.name}.")
    for one in lacking:
        run(one)


def _naming(cell: Cell, cells: Mapping[str, str]) -> str:
    """The flags by which the stage of `cell` finds its cells (stage -> name)."""
    if isinstance(cell.config, RefinementConfig):
        return f"--sft-cell {shlex.quote(cells['sft'])}" if "sft" in cells else ""
    every = {**getattr(cell.config, "cells", {}), **cells}
    return f"--cells {shlex.join(itertools.chain.from_iterable(every.items()))}"


def _commands(cell: Cell, lacking: Sequence[Cell]) -> tuple[list[str], dict[str, str]]:
    """The commands that make what is lacking, and the cells (stage -> name) that these are in
    where it isn't the one that is looked for.

    A flag makes a cell of its own, whereas what is made unasked takes the name that is looked for.
    """
    commands: list[str] = []
    made: dict[str, str] = {}
    moved: dict[Path, Path] = {}  # runs of own dialogues, which the cell of the SFT names
    file = named_file(cell)
    for one in lacking:
        config = one.config
        if isinstance(config, ApiConfig) and config.is_simulated:
            provider = _provider_of_sweep(recorded_run(cell.config) / config.domain)
            config = dataclasses.replace(config, **provider)
        if isinstance(config, ApiConfig):
            is_real = not _is_all_simulated(cell.config, recorded_run(cell.config))
            config = dataclasses.replace(config, **_unnamed_models(config, is_real))
        if isinstance(config, RefinementConfig) and "sft" in made:
            config = dataclasses.replace(config, sft_cell=made["sft"])
        if _sweep_made_by(one) is not None and config.stage != "sweep":  # played by these cells
            swept = config.as_sweep.with_name(made.get("sft", config.as_sweep.name))
            moved[config.as_sweep] = swept
            config = dataclasses.replace(config, as_sweep=swept, cells={**config.cells, **made})
        config = dataclasses.replace(config, run=moved.get(config.run, config.run))
        name = pasted(config, file).name
        if _is_cell(config.stage) and name != one.name:
            made[config.stage] = name
        commands.append(command(STAGES[config.stage].script, config, file))
    return commands, made


def _unnamed_models(config: ApiConfig, is_real: bool) -> dict[str, str]:
    """Settings of models that nobody has named where the provider has none of its own.

    Args:
      is_real: whether real models play, so that the simulator is nobody's default.
    """
    is_nobody = is_real and usual_provider(config) is None
    return {
        role: PLACEHOLDER
        for role in ("focal", "counterparty", "judge")
        if getattr(config, role, PLACEHOLDER) is None
        and (is_nobody or default_model(config, role) is None)
    }


def _is_cell(stage: str) -> bool:
    """Whether the stage's output is one of several in its folder (see `Cell.name`)."""
    return STAGES[stage].is_there is None and not STAGES[stage].own_files


def _provider_of_sweep(home: Path) -> dict[str, Any]:
    """Who has played the sweep of a domain's folder, as its config.yaml has it."""
    path = home / "sweep/config.yaml"
    played = Settings.read(path).sections.get("sweep") if path.is_file() else None
    known = played if isinstance(played, Mapping) else {}
    return {name: known[name] for name in ("provider", "base_url") if known.get(name) is not None}


def cells_elsewhere(cell: Cell) -> dict[str, str]:
    """Stage -> the finished cell that the command for it has made, where the one that the stage of
    `cell` looks for is lacking."""
    found: dict[str, str] = {}
    file = named_file(cell)  # a user's commands have not started from the quickstart's sizes
    try:
        lacking = _lacking(cell._replace(settings=file))
    except InputError:  # whoever runs the stage is told
        return found
    for one in lacking:
        config = one.config
        if isinstance(config, RefinementConfig) and "sft" in found:
            config = dataclasses.replace(config, sft_cell=found["sft"])
        name = pasted(config, file).name
        folder = config.run / config.domain / config.stage
        if _is_cell(config.stage) and name != one.name and name in finished_cells(folder):
            found[config.stage] = name
    return found


def finished_cells(folder: Path) -> list[str]:
    """The finished cells in the folder of a stage."""
    manifests = {
        path.parent.name: read_manifest(path.parent) for path in folder.glob("*/manifest.json")
    }
    return sorted(name for name, one in manifests.items() if one and one.status == "finished")


def _lacking(cell: Cell, planned: list[Cell] | None = None) -> list[Cell]:
    """The stages that have to run before `cell`, each after those that it needs itself.

    Args:
      planned: what will have run by then; grows by them.
    """
    config = cell.config
    planned = [] if planned is None else planned
    for need in STAGES[config.stage].needs(config):
        stage = STAGES[need.stage]
        source = data_run(config) if stage.is_data else config.run
        domain = need.domain or config.domain
        home = source / domain
        if stage.is_there is not None:
            is_there = stage.is_there(home, need)
        else:
            folder = home / need.stage
            manifest = read_manifest(folder if stage.own_files else folder / need.cell)
            files = [home / name for name in stage.own_files]
            is_there = bool(files) if manifest is None else manifest.status == "finished"
            is_there = is_there and all(path.is_file() for path in files)
        if stage.is_data and any(_sweep_made_by(one) == (source, domain) for one in planned):
            is_there = False  # by then there are dialogues that it hasn't seen
        if not is_there:
            required = required_cell(cell, need)
            if not any(_is_same_output(required, one) for one in planned):
                _lacking(required, planned)
                planned.append(required)
    return planned


def _sweep_made_by(cell: Cell) -> tuple[Path, str] | None:
    """The run and domain of the sweep that a cell makes, whoever plays it."""
    config = cell.config
    run = config.run if config.stage == "sweep" else getattr(config, "as_sweep", None)
    return None if run is None else (run, config.domain)


def _is_same_output(one: Cell, other: Cell) -> bool:
    """Whether two cells would make the same: one sweep, whoever plays it, or one trained cell,
    whoever asks for it."""
    if one == other:
        return True
    if one.config.stage == "sweep":
        return _sweep_made_by(one) == _sweep_made_by(other)
    keys = [(c.config.stage, c.config.run, c.config.domain, c.name) for c in (one, other)]
    return keys[0] == keys[1] and _is_cell(one.config.stage)


def required_cell(cell: Cell, need: Requirement) -> Cell:
    """The cell that meets what the stage of `cell` needs; nothing is made yet."""
    config, stage = cell.config, STAGES[need.stage]
    names = ("seed", "provider", "base_url", *stage.inherits)
    shared = {name: getattr(config, name) for name in names if hasattr(config, name)}
    if config.is_simulated:  # whom it meets there is no reason to train against
        shared = {name: value for name, value in shared.items() if name not in ROLES}
    shared["run"] = config.run
    if need.stage == "sweep" and usual_provider(config) is None and "focal" in config.called:
        shared["focal"] = config.focal  # a real model's sweep is no simulated one
    if stage.is_data:
        shared["run"] = data_run(config)
    elif hasattr(stage.config, "data_from"):
        shared["data_from"] = config.data_from
    shared["domain"] = need.domain or config.domain
    student = getattr(config, config.student_field) if config.student_field else EMBEDDED
    if stage.config.student_field is not None:
        shared[stage.config.student_field] = student
    passed = cell.settings  # what needs real models asks for no stage at the quickstart's size
    is_free = _is_all_simulated(config, recorded_run(config))
    if passed is None and not (student == EMBEDDED and is_free):
        passed = Settings()
    settings = passed or Settings.preset("quickstart")
    base = stage.resumed(settings.config(stage.config, **shared | dict(need.shared)))
    return Cell(dataclasses.replace(base, **need.changes), base, passed)


def _is_all_simulated(config: Any, recorded: Path) -> bool:
    """Whether the simulator is all that `config` calls, and has played the sweep of its domain in
    the run `recorded`."""
    if not config.is_simulated:
        return False
    home = recorded / config.domain
    manifest = read_manifest(home / "sweep")
    if manifest is None:
        return not (home / TRAJECTORIES).is_file()
    return all(manifest.config.get(role) in SIMULATED for role in ("focal", "counterparty"))
