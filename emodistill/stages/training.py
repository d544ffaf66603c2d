"""Stages 3 and 4: the emotion selector, and the student's adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emodistill.configs import (
    DEFAULT_CELL,
    EMBEDDED,
    AdapterConfig,
    ALoLConfig,
    DPOConfig,
    EvaluateConfig,
    IQLConfig,
    JPOConfig,
    RefinementConfig,
    SFTConfig,
)
from emodistill.errors import InputError, StaleInputError
from emodistill.evaluation.methods import METHODS, SELECTOR_FILES, get_method
from emodistill.offline.run_files import (
    OWN,
    PLAYED_FROM,
    SCENARIOS,
    SUPPORT,
    TRAJECTORIES,
    data_run,
    judge_file,
    level_sha256,
    read_sweep,
    recorded_run,
)
from emodistill.prompts import PromptPack, load_pack
from emodistill.runs import Job, Result, input_hashes, name_in_run, read_manifest
from emodistill.settings import Cell
from emodistill.stages.checkpoint_watch import CheckpointWatch, method_of, watched_match
from emodistill.stages.evaluation import held_out
from emodistill.stages.inputs import dialogues_hash, model_hashes
from emodistill.stages.judge import scores_needed
from emodistill.stages.language_models import default_model, endpoint_of, reader_of
from emodistill.stages.runner import cells_elsewhere, finished_cells
from emodistill.stages.stage import (
    Requirement,
    Stage,
    command,
    follow_up,
    named_file,
    next_command,
)
from emodistill.train.metrics_log import METRICS
from emodistill.untrusted import read_typed, setting_of


class _TrainingDetails(NamedTuple):
    learned: IQLConfig | AdapterConfig
    """The settings, with the judge whose scores are learned from, be it named in them or not."""
    data_home: Path
    """The domain's folder of the run whose sweep and scores are read."""
    scores: Path | None
    pack: PromptPack | None
    sft_adapter: Path | None
    selector_dir: Path | None
    """Of the selector with which checkpoints play."""


def _iql_needs(config: IQLConfig) -> Sequence[Requirement]:
    return [Requirement("sweep"), *scores_needed(config)]


def _adapter_needs(config: AdapterConfig) -> Sequence[Requirement]:
    config.check_devices()
    model_hashes(config.model)
    load_pack(config.prompt_pack)
    needs = []
    if isinstance(config, RefinementConfig) and config.reference == "sft":
        # Other cells than the default one are the user's own, and nothing makes them unasked.
        needs += [Requirement("sft")] if config.sft_cell == DEFAULT_CELL else []
    is_own = data_run(config).parent == config.run / OWN
    needs += [_own_dialogues(config) if is_own else Requirement("sweep"), *scores_needed(config)]
    if config.is_watched:
        if config.coordinator is not None:
            raise InputError(
                "--watch, --select best and --stop-when-hacked need a training in one process; "
                f"leave out --coordinator {config.coordinator}, or those."
            )
        if get_method(method_of(config)).selector == "iql":
            needs.append(Requirement("iql"))
    return needs


def _own_dialogues(config: Any) -> Requirement:
    """The SFT student's dialogues on training scenarios, as the sweep of a run inside the run."""
    playing = {
        "method": "iql+sft",
        "num_seeds": config.own_seeds,
        "num_scenarios": None,
        "prompt_pack": config.prompt_pack,
        "quantize": config.quantize,
        "as_sweep": data_run(config),
    }
    changes = {"split": "train", "cells": {"sft": config.sft_cell}}
    return Requirement("evaluate", playing, changes)


def _job(cell: Cell) -> Job:
    config: IQLConfig | AdapterConfig = cell.config
    home = config.run / config.domain
    directory = home / config.stage / cell.name
    data_home = data_run(config) / config.domain
    files, hashes = [data_home / SCENARIOS], dict[str, str]()
    if isinstance(config, IQLConfig) and config.num_dialogues is not None:
        first = data_home / TRAJECTORIES, config.num_dialogues, config.seed
        hashes |= dialogues_hash(*first, config.run)
    else:
        files.append(data_home / TRAJECTORIES)
    scores = pack = sft_adapter = selector_dir = None
    for need in scores_needed(config):
        scores, level = judge_file(data_home / "judge", config.judge), need.shared["level"]
        name = f"{name_in_run(scores, config.run)} ({level} scores)"
        hashes[name] = level_sha256(scores, level)
    learned = dataclasses.replace(config, judge=None if scores is None else scores.stem)
    identity = learned.identity()
    if isinstance(config, AdapterConfig):
        pack = load_pack(config.prompt_pack)
        hashes |= {"prompt pack": pack.sha256} | model_hashes(config.model)
        if isinstance(config, RefinementConfig) and config.reference == "sft":
            sft_adapter = home / "sft" / config.sft_cell / "adapter"
            check_snapshot(cell, sft_adapter.parent)
            files += sorted(sft_adapter.iterdir())
        if config.is_watched:
            playing = watched_match(cell)
            # Before anything is trained: there has to be a scenario, and somebody to play against.
            held_out(data_home / SCENARIOS, playing.split)
            endpoint_of(playing, "counterparty")
            reader_of(playing)
            identity |= {"watched": playing.identity()}
            if get_method(playing.method).selector == "iql":
                selector_dir = home / "iql" / DEFAULT_CELL
                files += [selector_dir / name for name in SELECTOR_FILES]
    inputs = hashes | input_hashes(files, config.run)
    if data_run(config).parent == config.run / OWN:
        _check_played_by(inputs, data_home)
    return Job(
        cell=cell,
        name=config.stage,
        directory=directory,
        output=directory / METRICS,
        path=directory / "adapter" if isinstance(config, AdapterConfig) else directory,
        inputs=inputs,
        identity=identity,
        details=_TrainingDetails(learned, data_home, scores, pack, sft_adapter, selector_dir),
    )


def _check_played_by(inputs: Mapping[str, str], data_home: Path) -> None:
    """Refuse own dialogues of another snapshot than the one that training starts from."""
    path = data_home / PLAYED_FROM
    if not path.is_file():  # put there by the user
        return
    played = read_typed(path, dict[str, str], f"Delete {data_home} to have them played anew.")
    changed = [name for name in inputs if name in played and inputs[name] != played[name]]
    if changed:
        raise StaleInputError(
            f"{data_home / TRAJECTORIES}: {changed[0]} has changed since these dialogues were "
            f"played. Delete {data_home} to have them played anew."
        )


def check_snapshot(cell: Cell, sft_dir: Path) -> None:
    """Refuse an SFT cell that a refinement can't start from."""
    config: RefinementConfig = cell.config
    manifest = read_manifest(sft_dir)
    if manifest is None or manifest.status != "finished":
        raise InputError(
            f"{sft_dir} holds no finished SFT adapter. Train it with "
            f"{next_command('train_sft', SFTConfig, cell)}, or name another with --sft-cell: "
            f"{', '.join(finished_cells(sft_dir.parent)) or 'there is none yet'}."
        )
    is_emotion_free = setting_of(manifest.stage, manifest.config, "emotion_free", bool)
    if is_emotion_free != config.emotion_free:
        raise InputError(
            f"emotion_free={config.emotion_free}, but the SFT adapter in {sft_dir} was trained "
            f"with emotion_free={is_emotion_free}; name a fitting one with "
            "--sft-cell."
        )


def _evaluation(cell: Cell) -> str:
    """The command that plays what has just been trained."""
    stage, config = cell.config.stage, cell.config
    own = _selector_method(config) if isinstance(config, IQLConfig) else method_of(config)
    changes = {"method": own, "cells": {stage: cell.name}}
    playing, file = follow_up(EvaluateConfig, cell, **changes), named_file(cell)
    if not playing.is_simulated:  # a provider without models of its own has those of the sweep
        swept = read_manifest(recorded_run(config) / config.domain / "sweep")
        for role in ("counterparty", "focal"):
            if getattr(playing, role) is None and default_model(playing, role) is None and swept:
                playing = dataclasses.replace(playing, **{role: swept.config.get(role)})
    others = cells_elsewhere(Cell(playing, None, cell.settings))
    return command(
        "evaluate", dataclasses.replace(playing, cells={**playing.cells, **others}), file
    )


def _selector_method(config: IQLConfig) -> str:
    """The method that plays a selector; one of the same learner where none chooses from as few."""
    own = {"learner": config.learner, "emotions": config.emotions}
    usual = {"learner": "iql", "emotions": "all"}
    names = {
        tuple((usual | method.settings.get("iql", {})).items()): name
        for name, method in reversed(METHODS.items())
        if method.writer == "llm" and method.selector == "iql"
    }
    return names.get(tuple(own.items())) or names[tuple((own | {"emotions": "all"}).items())]


def _train_selector(job: Job) -> Result:
    (result,) = _train_selectors([job])
    return result


def _train_selectors(jobs: Sequence[Job]) -> list[Result]:
    """Train selectors that learn from one sweep, and that differ in what one program allows."""
    from emodistill.train import selector_training  # JAX

    details = jobs[0].details
    sweep = read_sweep(details.data_home, load_pack(), details.scores)
    configs = [job.details.learned for job in jobs]
    trained = selector_training.train_selectors(configs, sweep, [job.directory for job in jobs])
    return [_selector_result(job, result) for job, result in zip(jobs, trained, strict=True)]


def _selector_result(job: Job, trained: Any) -> Result:
    """What is said of a `selector_training.SelectorResult`."""
    if trained.fitted_q:
        values = ", ".join(f"{name} {value:.3f}" for name, value in trained.fitted_q.items())
        print(f"iql: value by fitted Q: {values}")
    if trained.support_note:
        print(
            f"iql: {trained.support_note} ({job.directory / SUPPORT}); play more seeds, or lower "
            "--advantage-scale."
        )
    left_out = _listed(
        (trained.num_without_emotion, "turns without an emotion"),
        (trained.num_cut, "turns that were cut at their limit of tokens"),
        (trained.num_without_reward, "turns without a score"),
        (trained.num_truncated_turns, f"turns of {trained.num_truncated:,} dialogues cut short"),
        (trained.num_without_decision, "dialogues without any emotion"),
        (trained.num_held_out, "dialogues of held-out scenarios"),
        (len(trained.left_out_scenarios), "scenarios for too few scores"),
    )
    text = f"{trained.num_transitions:,} of {trained.num_turns:,} turns learned from{left_out}"
    if trained.num_early_ends:
        text += (
            f"; {trained.num_early_ends:,} dialogues end in a turn without an emotion, and their "
            "outcome counts for the last turn with one"
        )
    return Result(f"{text}; selector in {job.directory}", summary=trained._asdict())


def _listed(*counts: tuple[int, str]) -> str:
    """What was left out, as the end of a clause; nothing where all counts are 0."""
    parts = [f"{count:,} {what}" for count, what in counts if count]
    return f" (left out: {', '.join(parts)})" if parts else ""


def train_adapter_stage(job: Job, objective: Any = None) -> Result:
    """Train an adapter; `objective` is that of its stage (`train.objectives`) if None."""
    from emodistill.train.adapter_training import train_adapter  # JAX

    config, details = job.details.learned, job.details
    if config.model == EMBEDDED:
        print(f"{job.name}: no --model named, so the embedded student learns.", flush=True)
    prompted = ("emotion-free focal",) if config.emotion_free else ("focal",)
    watches: list[CheckpointWatch] = []

    def watcher_of(student: Any) -> CheckpointWatch:
        watches.append(CheckpointWatch(job.cell, job.directory, details.selector_dir, student))
        return watches[0]

    trained = train_adapter(
        config,
        read_sweep(details.data_home, details.pack, details.scores, prompted=prompted),
        cell_dir=job.directory,
        sft_adapter=details.sft_adapter,
        objective=objective,
        watcher_of=watcher_of if config.is_watched else None,
    )
    left_out = _listed(
        (trained.num_without_signal, "turns without a score"),
        (trained.num_dropped, "turns that don't fit"),
        (trained.num_cut, "turns that were cut at their limit of tokens"),
        (trained.num_held_out, "dialogues of held-out scenarios"),
        (len(trained.left_out_scenarios), "scenarios for too few scores"),
    )
    steps = f"{trained.num_steps} steps"
    if trained.kept_step != trained.num_steps:
        steps += f", of which {trained.kept_step or 'none'} are kept,"
    return Result(
        f"{steps} on {trained.num_samples:,} of {trained.num_turns:,} "
        f"turns{left_out}; adapter in {job.path}",
        sum(watch.cost_usd for watch in watches),
        summary=trained._asdict(),
    )


IQL = Stage(
    config=IQLConfig,
    script="train_iql",
    needs=_iql_needs,
    job=_job,
    run=_train_selector,
    run_together=_train_selectors,
    followed_by=_evaluation,
)
SFT = Stage(
    config=SFTConfig,
    script="train_sft",
    needs=_adapter_needs,
    job=_job,
    run=train_adapter_stage,
    followed_by=_evaluation,
    inherits=(  # so that a refinement and the SFT that it starts from fit together
        *("judge", "prompt_pack", "emotion_free", "quantize"),
        *("lora_rank", "lora_alpha", "lora_targets"),
    ),
)
JPO = dataclasses.replace(SFT, config=JPOConfig, script="train_jpo")
ALOL = dataclasses.replace(SFT, config=ALoLConfig, script="train_alol")
DPO = dataclasses.replace(SFT, config=DPOConfig, script="train_dpo")
