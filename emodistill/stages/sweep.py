"""Stage 1: the sweep's dialogues."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from emodistill.configs import GENERATED, JudgeConfig, SweepConfig
from emodistill.domains import load_split
from emodistill.domains.loading import LoadedSplit
from emodistill.errors import InputError
from emodistill.jsonl import num_lines
from emodistill.llm.endpoints import ModelEndpoint
from emodistill.offline.data_checks import check_prompts
from emodistill.offline.reader_agreement import compare_readers
from emodistill.offline.run_files import DISAGREEMENTS, SCENARIOS, TRAJECTORIES
from emodistill.offline.store import read_trajectories, write_records
from emodistill.offline.sweep import failures_path, plan_sweep, run_sweep
from emodistill.prompts import PromptPack, load_pack
from emodistill.runs import Job, Result, input_hashes, read_manifest
from emodistill.settings import Cell
from emodistill.stages.inputs import grown
from emodistill.stages.language_models import (
    api_writer,
    default_model,
    endpoint_of,
    named_models,
    offer_reader,
    open_clients,
    reader_inputs,
    reader_of,
)
from emodistill.stages.model_check import check_models
from emodistill.stages.stage import Stage, command, follow_up, named_file
from emodistill.untrusted import setting_of


class _SweepDetails(NamedTuple):
    focal: ModelEndpoint
    counterparty: ModelEndpoint
    reader: ModelEndpoint | None
    pack: PromptPack
    loaded: LoadedSplit


def _job(cell: Cell) -> Job:
    config: SweepConfig = cell.config
    details = _SweepDetails(
        reader=reader_of(config),
        pack=load_pack(config.prompt_pack),
        loaded=split_of(config),
        focal=endpoint_of(config, "focal"),
        counterparty=endpoint_of(config, "counterparty"),
    )
    located = [(s, details.loaded.where[s.scenario_id]) for s in details.loaded.split.all()]
    check_prompts(details.pack, located, ("focal", "counterparty"))
    inputs = {"prompt pack": details.pack.sha256}
    inputs |= reader_inputs(config, details.reader)
    files = [path for path in (scenario_file(config), config.test_ids) if path is not None]
    inputs |= input_hashes(files, config.run)
    home = config.run / config.domain
    output = home / TRAJECTORIES
    config = grown(config, home / "sweep")
    models = {
        "focal": details.focal.name,
        "counterparty": details.counterparty.name,
        "reader": details.reader and details.reader.name,
    }
    return Job(
        cell=cell._replace(config=config),
        name="sweep",
        directory=home / "sweep",
        output=output,
        path=output,
        inputs=inputs,
        identity=config.identity() | models,
        growing=("num_seeds", "num_scenarios"),
        leftovers=(home / SCENARIOS, failures_path(output)),
        details=details,
    )


def scenario_file(config: SweepConfig) -> Path | None:
    """The file that the scenarios of the domain come from; None for the built-in ones.

    Raises:
      InputError: the files that are named by domain lack this one.
    """
    if isinstance(config.scenarios, Mapping):
        raise InputError(
            f"`scenarios` names files for {', '.join(config.scenarios) or 'no domain'} and none "
            f"for --domain {config.domain}. Add `{config.domain}: FILE` there, give --scenarios "
            f"FILE, or have built-in ones played by --scenarios {GENERATED} (in the file, "
            f"scenarios: {GENERATED})."
        )
    return config.scenarios


def split_of(config: SweepConfig) -> LoadedSplit:
    """The scenarios that `config` names, in their split."""
    return load_split(
        config.domain,
        scenario_file(config),
        num_test=config.num_test,
        num_validation=config.num_validation,
        seed=config.seed,
        strict=config.strict,
        held_out=config.held_out,
        test_ids=config.test_ids,
    )


def play_sweep(job: Job, num_dialogues: int | None = None) -> Result:
    """Play the dialogues that are still missing, or those of the first `num_dialogues`."""
    config, details = job.cell.config, job.details
    split = details.loaded.split
    print(f"sweep: {details.loaded.text}.", flush=True)

    async def work() -> Result:
        focal, opposite, reader = details.focal, details.counterparty, details.reader
        roles = {"focal": focal, "counterparty": opposite, "reader": reader}
        async with open_clients(config, job.name, roles.values()) as client_of:
            planned = plan_sweep(
                split.all(), num_seeds=config.num_seeds, num_scenarios=config.num_scenarios
            )[:num_dialogues]
            num_left = max(0, len(planned) - num_lines(job.output))
            await check_models(
                config, job.name, client_of, roles, num_jobs=num_left, unit="dialogues"
            )
            swept = await run_sweep(
                config,
                split.all(),
                out_dir=job.directory,
                focal=api_writer(client_of, focal, config.focal_temperature, config),
                counterparty=api_writer(
                    client_of, opposite, config.counterparty_temperature, config
                ),
                pack=details.pack,
                reader=offer_reader(client_of, reader, config),
                num_dialogues=num_dialogues,
            )
        swept.check("see why, and start again")
        readers = {} if details.reader is None else _compare_readers(config)
        return Result(
            swept.summary,
            swept.cost_usd,
            {
                "split": {name: len(part) for name, part in split._asdict().items()},
                "is_split_given": details.loaded.is_given,
                "language_models": named_models(roles),
                "unusual_answers": swept.usage.unusual,
                **swept.shares,
                **readers,
            },
            is_complete=swept.is_complete,
            is_part=num_dialogues is not None,
        )

    return asyncio.run(work())


def _compare_readers(config: SweepConfig) -> dict[str, float]:
    """How often the patterns would have read the dialogues alike, for the manifest; says so, and
    lists the differences in a file."""
    home = config.run / config.domain
    agreement = compare_readers(read_trajectories(home / TRAJECTORIES))
    write_records(home / DISAGREEMENTS, agreement.disagreements)
    listed = f"; see {home / DISAGREEMENTS}" if agreement.disagreements else ""
    print(f"sweep: {agreement.text}{listed}.", flush=True)
    return agreement.shares


def _resumed(config: SweepConfig) -> SweepConfig:
    manifest = read_manifest(config.run / config.domain / "sweep")
    if manifest is None:
        return config
    return dataclasses.replace(
        config,
        num_seeds=setting_of(manifest.stage, manifest.config, "num_seeds", int),
        num_scenarios=setting_of(manifest.stage, manifest.config, "num_scenarios", int | None),
    )


def _judging(cell: Cell) -> str:
    """The command that scores what has just been played."""
    judge = follow_up(JudgeConfig, cell)
    if judge.judge is None and default_model(judge, "judge") is None:
        judge = dataclasses.replace(judge, judge=cell.config.focal)  # served there for certain
    return command("judge", judge, named_file(cell))


SWEEP = Stage(
    script="sweep",
    config=SweepConfig,
    is_data=True,
    needs=lambda config: (),
    job=_job,
    run=play_sweep,
    followed_by=_judging,
    own_files=(TRAJECTORIES, SCENARIOS),
    resumed=_resumed,
)
