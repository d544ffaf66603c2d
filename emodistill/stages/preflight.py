"""A look at what a training will learn from, before a long run; nothing is written into the run.

Imported by its script alone, since it loads JAX.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console

from emodistill.configs import CONFIGS, AdapterConfig, require
from emodistill.errors import InputError
from emodistill.offline.run_files import SCENARIOS, TRAJECTORIES, read_sweep
from emodistill.offline.store import read_scenarios, read_trajectories
from emodistill.settings import Cell
from emodistill.stages.inputs import model_hashes
from emodistill.stages.runner import STAGES, prepare
from emodistill.stages.stage import command, named_file
from emodistill.train.findings import Finding
from emodistill.train.leak_checks import check_leaks
from emodistill.train.preflight import Look, check_training
from emodistill.train.template_checks import server_finding


def preflight(cell: Cell) -> bool:
    """Check what a training would learn from, and print what was found.

    Args:
      cell: settings of one of `configs.PREFLIGHTS`.

    Returns: whether all is well.

    Raises:
      InputError: a setting or file can't be used, or an earlier stage has not been run.
    """
    asked: Any = cell.config
    cell = Cell(_training(cell.config), cell.base and _training(cell.base), cell.settings)
    config: AdapterConfig = cell.config
    stage = STAGES[config.stage]
    require(config.coordinator is None, "a preflight is one process; leave out --coordinator.")
    prepare(cell, is_read_only=True)
    job = stage.job(cell)
    print(f"preflight: {config.stage}/{cell.name} of {config.run}, {config.domain}", flush=True)
    found = [server_finding(asked.url)] if asked.url else []
    home = job.details.data_home
    sweep = read_trajectories(home / TRAJECTORIES), read_scenarios(home / SCENARIOS)
    found.append(check_leaks(*sweep))
    look = Look(asked.num_shown, asked.whole_prompts, asked.measure)
    try:
        data = read_sweep(home, job.details.pack, job.details.scores, prompted=("focal",))
        found += check_training(
            config,
            data,
            look,
            cell_dir=job.directory,
            sft_adapter=job.details.sft_adapter,
            weights=[job.inputs[name] for name in model_hashes(config.model) if _is_shard(name)],
            console=Console(),
        )
    except InputError as error:
        # What has been found may be the reason, and says more.
        if not any(finding.is_problem for finding in found):
            raise
        text = f"not checked, since training refuses: {error}"
        found.append(Finding("the rest", text, is_checked=False))
    print(*found, sep="\n")
    problems = [finding.check for finding in found if finding.is_problem]
    num_checked = sum(finding.is_checked for finding in found)
    if problems:
        print(f"preflight: {len(problems)} of {num_checked} checks: {', '.join(problems)}")
    else:
        print(f"preflight: {num_checked} checks, no problem")
        print(f"next: {command(stage.script, config, named_file(cell))}")
    return not problems


def _is_shard(name: str) -> bool:
    return name.endswith(".safetensors")


def _training(config: Any) -> Any:
    """The settings of the training itself."""
    kind = CONFIGS[config.stage]
    return kind(**{field.name: getattr(config, field.name) for field in dataclasses.fields(kind)})
