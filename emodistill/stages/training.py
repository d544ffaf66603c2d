"""Stages 3 and 4: the emotion selector, and the student's adapters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emodistill.configs import (
    DEFAULT_CELL,
    EMBEDDED,
    AdapterConfig,
    ALoLConfig,
    DPOConfig,
    IQLConfig,
    JPOConfig,
    RefinementConfig,
    SFTConfig,
)
from emodistill.errors import InputError
from emodistill.offline.run_files import SCENARIOS, SUPPORT, TRAJECTORIES, judge_file, read_sweep
from emodistill.prompts import PromptPack, load_pack
from emodistill.runs import Job, Result, input_hashes, read_manifest
from emodistill.settings import Cell
from emodistill.stages.inputs import model_hashes, scores_hash
from emodistill.stages.judge import scores_needed
from emodistill.stages.stage import Requirement, Stage, command
from emodistill.train.metrics_log import METRICS


class _Details(NamedTuple):
    scores: Path | None
    pack: PromptPack | None
    sft_adapter: Path | None


def _iql_needs(config: IQLConfig) -> Sequence[Requirement]:
    return [Requirement("sweep"), *([scores_needed(config)] if config.signal != "outcome" else [])]


def _adapter_needs(config: AdapterConfig) -> Sequence[Requirement]:
    config.check_devices()
    model_hashes(config.model)
    load_pack(config.prompt_pack)
    needs = [Requirement("sweep"), scores_needed(config)]
    if not config.starts_from_base and config.sft_cell == DEFAULT_CELL:
        needs.append(Requirement("sft"))  # other cells are the user's own
    return needs


def _job(cell: Cell) -> Job:
    config: IQLConfig | AdapterConfig = cell.config
    home = config.run / config.domain
    directory = home / config.stage / cell.name
    files = [home / TRAJECTORIES, home / SCENARIOS]
    hashes: dict[str, str] = {}
    scores = pack = sft_adapter = None
    if config.signal != "outcome" or not isinstance(config, IQLConfig):
        scores = judge_file(home / "judge", config.judge)
        hashes |= scores_hash(scores, scores_needed(config).shared["level"], config.run)
    if isinstance(config, AdapterConfig):
        pack = load_pack(config.prompt_pack)
        hashes |= {"prompt pack": pack.sha256} | model_hashes(config.model)
        if not config.starts_from_base:
            sft_adapter = home / "sft" / config.sft_cell / "adapter"
            _check_snapshot(config, sft_adapter.parent)
            files += sorted(sft_adapter.iterdir())
    return Job(
        cell=cell,
        name=config.stage,
        directory=directory,
        output=directory / METRICS,
        path=directory / "adapter" if isinstance(config, AdapterConfig) else directory,
        inputs=hashes | input_hashes(files, config.run),
        identity=config.identity(),
        details=_Details(scores, pack, sft_adapter),
    )


def _check_snapshot(config: RefinementConfig, sft_dir: Path) -> None:
    """Refuse an SFT cell that `config` can't start from."""
    manifest = read_manifest(sft_dir)
    if manifest is None or manifest.status != "finished":
        raise InputError(
            f"{sft_dir} holds no finished SFT adapter. Train it with "
            f"{command('train_sft', config)}, or name another with --sft-cell."
        )
    if manifest.config["emotion_free"] != config.emotion_free:
        raise InputError(
            f"emotion_free={config.emotion_free}, but the SFT adapter in {sft_dir} was trained "
            f"with emotion_free={manifest.config['emotion_free']}; name a fitting one with "
            "--sft-cell."
        )


def _evaluation(cell: Cell) -> str:
    """The command that plays what has just been trained."""
    stage, config = cell.config.stage, cell.config
    method = {"iql": "iql", "sft": "iql+sft"}.get(stage, f"iql+sft+{stage}")
    if isinstance(config, RefinementConfig) and config.starts_from_base:
        method = f"iql+{stage}"
    flags = {} if cell.name == DEFAULT_CELL else {"cells": f"{stage} {cell.name}"}
    return command("evaluate", config, {"method": method, **flags})


def _train_selector(job: Job) -> Result:
    from emodistill.model import keep_programs  # JAX: the other stages do without it
    from emodistill.progress import progress
    from emodistill.train.metrics_log import MetricsLog
    from emodistill.train.q_learning import train_iql  # JAX
    from emodistill.train.selector_checks import (  # JAX
        MAX_UNSUPPORTED,
        MIN_SUPPORT,
        estimated_values,
        support_map,
    )
    from emodistill.train.selector_files import save_selector  # JAX
    from emodistill.train.transitions import make_transitions

    config: IQLConfig = job.cell.config
    keep_programs()
    sweep = read_sweep(config.run / config.domain, load_pack(), job.details.scores)
    transitions = make_transitions(
        [trajectory for trajectory in sweep.trajectories if trajectory.split == "train"],
        sweep.scores,
        signal=config.signal,
        state=config.state,
        max_turns=sweep.max_turns,
    )
    with (
        MetricsLog(job.directory, num_steps=0) as log,
        progress("iql", total=config.num_steps, unit="steps") as bar,
    ):

        def report(points: list[list[dict[str, float]]]) -> None:
            for point in points[0]:
                log.write(int(point["step"]), {k: v for k, v in point.items() if k != "step"})
            last = points[0][-1]
            bar.advance(int(last["step"]) - bar.done, f"critic loss {last['critic/loss']:.3f}")

        (trained,) = train_iql(transitions, [config], report=report)
    networks = trained.networks
    save_selector(job.directory, networks)
    support = support_map(networks, transitions, seed=config.seed)
    (job.directory / SUPPORT).write_text(json.dumps(support.as_json()) + "\n")
    values = estimated_values(networks, transitions, config)
    print("iql: value by fitted Q: " + ", ".join(f"{name} {v:.3f}" for name, v in values.items()))
    if support.unsupported > MAX_UNSUPPORTED:
        print(
            f"iql: {support.unsupported:.0%} of the policy's choices have fewer than {MIN_SUPPORT} "
            f"turns of the data behind them ({job.directory / SUPPORT}); play more seeds, or lower "
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
    return Result(f"selector in {job.directory}", summary=summary)


def train_adapter_stage(job: Job, objective: Any = None) -> Result:
    """Train an adapter; `objective` is that of its stage (`train.objectives`) if None."""
    from emodistill.train.adapter_training import train_adapter  # JAX

    config, details = job.cell.config, job.details
    if config.model == EMBEDDED:
        print(f"{job.name}: no --model named, so the embedded student learns.", flush=True)
    trained = train_adapter(
        config,
        read_sweep(config.run / config.domain, details.pack, details.scores),
        cell_dir=job.directory,
        sft_adapter=details.sft_adapter,
        objective=objective,
    )
    left_out = len(trained.left_out_scenarios)
    note = f", {left_out:,} scenarios left out for too few scores" if left_out else ""
    return Result(
        f"{trained.num_steps} steps on {trained.num_samples:,} turns{note}; adapter in {job.path}",
        summary={
            "num_steps": trained.num_steps,
            "num_samples": trained.num_samples,
            "num_trimmed": trained.num_trimmed,
            "num_dropped": trained.num_dropped,
            "left_out_scenarios": trained.left_out_scenarios,
            "metrics": dict(trained.metrics),
        },
    )


IQL = Stage(
    config=IQLConfig,
    script="train_iql",
    needs=_iql_needs,
    job=_job,
    run=_train_selector,
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
