"""Stages 3 and 4: the selector, and the student's adapters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emodistill import cli
from emodistill.configs import EMBEDDED, AdapterConfig, IQLConfig, RefinementConfig, SFTConfig
from emodistill.errors import InputError
from emodistill.model import agree, is_first, joined
from emodistill.offline.run_files import CONFIG, SUPPORT, judge_file, max_turns
from emodistill.runs import begin_stage, finish_stage, input_hashes, read_manifest, stage_dir
from emodistill.stages.files import (
    Made,
    cell,
    command,
    data_files,
    judge_level,
    model_hashes,
    read_scores,
    read_sweep,
    say,
    scores_hash,
    write_config,
)
from emodistill.train.metrics_log import METRICS

if TYPE_CHECKING:
    from emodistill.offline.rewards import Scores


def iql(config: IQLConfig, base: IQLConfig | None = None) -> Made:
    """Stage 3: train the emotion selector."""
    directory = stage_dir(config.run, config.domain, "iql", cell(config, base))
    inputs = data_files(config.run, config.domain)
    scores: Scores = {}
    of_scores: dict[str, str] = {}
    if config.signal != "outcome":
        scores_file = judge_file(config.run, config.domain, config.judge)
        of_scores = scores_hash(scores_file, judge_level(config), config.run)
        scores = read_scores(scores_file)
    manifest = begin_stage(
        directory,
        stage="iql",
        config=config.identity(),
        seed=config.seed,
        inputs=input_hashes(inputs, config.run) | of_scores,
        output=directory / METRICS,
    )
    made = Made(directory, _evaluation(config, "iql", directory))
    if manifest.is_finished:
        say(f"iql: finished before, selector in {directory}")
        return made
    write_config(directory / CONFIG, "iql", config, base)
    _train_iql(config, directory, scores)
    say(f"iql: selector in {directory}")
    return made


def _train_iql(config: IQLConfig, directory: Path, scores: Scores) -> None:
    from emodistill.model import keep_programs
    from emodistill.progress import progress
    from emodistill.train.iql import IQLProgress, train_iql
    from emodistill.train.metrics_log import MetricsLog
    from emodistill.train.selector_checks import (
        MAX_UNSUPPORTED,
        MIN_SUPPORT,
        estimated_values,
        support_map,
    )
    from emodistill.train.selector_files import save_selector
    from emodistill.train.transitions import make_transitions

    keep_programs()
    trajectories, _ = read_sweep(config.run, config.domain)
    transitions = make_transitions(
        [trajectory for trajectory in trajectories if trajectory.split == "train"],
        scores,
        signal=config.signal,
        state=config.state,
        max_turns=max_turns(config.run, config.domain),
    )
    with (
        MetricsLog(directory, num_steps=0) as log,
        progress("iql", total=config.num_steps, unit="steps") as bar,
    ):

        def report(update: IQLProgress) -> None:
            for row in update.rows[0]:
                log.write(int(row["step"]), {k: v for k, v in row.items() if k != "step"})
            note = (
                f"critic loss {update.rows[0][-1]['critic/loss']:.3f}" if update.rows[0] else None
            )
            bar.advance(update.step - bar.done, note)

        (run,) = train_iql(transitions, config, report=report)
    save_selector(directory, run.networks)
    support = support_map(run.networks, transitions, seed=config.seed)
    (directory / SUPPORT).write_text(json.dumps(support.as_json()) + "\n")
    values = estimated_values(run.networks, transitions, config)
    say("iql: value by fitted Q: " + ", ".join(f"{name} {v:.3f}" for name, v in values.items()))
    if support.unsupported > MAX_UNSUPPORTED:
        say(
            f"iql: {support.unsupported:.0%} of the policy's choices have fewer than {MIN_SUPPORT} "
            f"turns of the data behind them ({directory / SUPPORT}); play more seeds, or lower "
            "--advantage-scale."
        )
    summary = {
        "fitted_q": values,
        "unsupported": support.unsupported,
        "num_transitions": len(transitions),
        "num_dialogues": transitions.num_dialogues,
        "num_truncated": transitions.num_truncated,
        "num_without_reward": transitions.num_without_reward,
    }
    finish_stage(directory, summary=summary)


def sft(config: SFTConfig, base: SFTConfig | None = None) -> Made:
    """Stage 4a: train the SFT adapter."""
    with joined(config):
        _announce_student(config, "sft")
        return _train_adapter(config, base, "sft", sft_dir=None)


def refine(config: RefinementConfig, base: RefinementConfig | None = None) -> Made:
    """Stage 4b: train the JPO, A-LoL or DPO adapter."""
    with joined(config):
        _announce_student(config, config.stage)
        return _train_adapter(config, base, config.stage, sft_dir=_snapshot(config))


def _snapshot(config: RefinementConfig) -> Path | None:
    """The SFT cell that a refinement starts from, None where it starts from the base model."""
    sft_dir = None
    if not config.starts_from_base:
        sft_dir = stage_dir(config.run, config.domain, "sft", config.sft_cell)
        found = read_manifest(sft_dir)
        if found is None or not found.is_finished:
            raise InputError(
                f"{sft_dir} holds no finished SFT adapter. Train it with "
                f"{command('train_sft', config)}, or name another with --sft-cell."
            )
        if found.config["emotion_free"] != config.emotion_free:
            raise InputError(
                f"emotion_free={config.emotion_free}, but the SFT adapter in {sft_dir} was trained "
                f"with emotion_free={found.config['emotion_free']}; name a fitting one with "
                "--sft-cell."
            )
    return sft_dir


def _train_adapter(
    config: SFTConfig | RefinementConfig,
    base: AdapterConfig | None,
    stage: str,
    *,
    sft_dir: Path | None,
) -> Made:
    from emodistill.prompts import load_pack

    scores_file = judge_file(config.run, config.domain, config.judge)
    pack = load_pack(config.prompt_pack)
    directory = stage_dir(config.run, config.domain, stage, cell(config, base))
    inputs = [*data_files(config.run, config.domain)]
    if sft_dir is not None:
        inputs += sorted((sft_dir / "adapter").iterdir())
    hashes = input_hashes(inputs, config.run) | {"prompt pack": pack.sha256}
    hashes |= scores_hash(scores_file, judge_level(config), config.run)
    hashes |= model_hashes(config.model)

    def is_finished() -> bool:
        manifest = begin_stage(
            directory,
            stage=stage,
            config=config.identity(),
            seed=config.seed,
            inputs=hashes,
            output=directory / METRICS,
        )
        if not manifest.is_finished:
            write_config(directory / CONFIG, stage, config, base)
        return manifest.is_finished

    made = Made(directory / "adapter", _evaluation(config, stage, directory))
    if agree(is_finished):
        say(f"{stage}: finished before, adapter in {directory / 'adapter'}")
        return made
    trajectories, scenarios = read_sweep(config.run, config.domain)
    common: dict[str, Any] = {
        "cell_dir": directory,
        "trajectories": trajectories,
        "scenarios": scenarios,
        "scores": read_scores(scores_file),
        "pack": pack,
        "max_turns": max_turns(config.run, config.domain),
    }
    if isinstance(config, RefinementConfig):
        from emodistill.train.refine import refine

        adapter = None if sft_dir is None else sft_dir / "adapter"
        result = refine(config, sft_adapter=adapter, **common)
    else:
        from emodistill.train.sft import train_sft

        result = train_sft(config, **common)
    summary = {
        "num_steps": result.num_steps,
        "num_samples": result.num_samples,
        "num_trimmed": result.num_trimmed,
        "num_dropped": result.num_dropped,
        "metrics": dict(result.metrics),
    }
    if is_first():
        finish_stage(directory, summary=summary)
    say(
        f"{stage}: {result.num_steps} steps on {result.num_samples:,} turns; adapter in "
        f"{result.adapter_dir}"
    )
    return made


def _evaluation(config: IQLConfig | AdapterConfig, stage: str, directory: Path) -> str:
    """The command that plays what has just been trained."""
    method = {"iql": "iql", "sft": "iql+sft"}.get(stage, f"iql+sft+{stage}")
    if isinstance(config, RefinementConfig) and config.starts_from_base:
        method = f"iql+{stage}"
    flag = "" if directory.name == "default" else f" --{stage}-cell {directory.name}"
    return f"{command('evaluate', config)} --method {method}{flag}"


def check_student(config: AdapterConfig) -> None:
    """Refuse a student or a prompt pack that can't be used before anything is made for it."""
    from emodistill.prompts import load_pack

    model_hashes(config.model)
    load_pack(config.prompt_pack)


def _announce_student(config: AdapterConfig, stage: str) -> None:
    if config.model == EMBEDDED:
        say(
            f"{stage}: no --model named, so the embedded student learns, at the settings of "
            "configs/quickstart.yaml unless told otherwise."
        )


def student_base(args: Sequence[str]) -> Path | None:
    """The file to start from for SFT and JPO: the paper's rates suit a 7B model, not this one."""
    names_model = any(arg == "--model" or arg.startswith("--model=") for arg in args)
    return None if names_model else cli.preset_path("quickstart")
