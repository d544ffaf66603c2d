"""What a training will take: steps beside the paper's, tokens, hours; and what it leaves out."""

from __future__ import annotations

import time
from collections.abc import Iterator

import jax
import numpy as np

from emodistill.batches import PackedBatches, Work
from emodistill.configs import AdapterConfig
from emodistill.model import Qwen2
from emodistill.offline.rewards import SweepData, left_out_scenarios
from emodistill.progress import duration
from emodistill.train.adapter_training import PAPER_STEPS, num_without_signal, planned_steps
from emodistill.train.flops import peak_flops, training_flops
from emodistill.train.loop import TrainerParts
from emodistill.train.preparation import PackedSamples, SelectedTurns
from emodistill.train.trainer import TrainState

PAPER_BATCH = 16
"""Samples of a step in the paper (Appendix G)."""
NUM_MEASURED = 3
"""Steps that are timed, each run once before so that its programs are compiled."""
USUAL_MFU = 0.4
"""The share of the device's peak that hours without a measurement assume: what well-kept LoRA
training reaches on one card (NeMo Automodel: 42.8 % on an H100)."""


def steps_text(config: AdapterConfig, selected: SelectedTurns, batches: PackedBatches) -> str:
    """Steps beside the paper's, and what makes them differ."""
    text = planned_steps(config, len(batches.examples), batches.steps_per_epoch)
    reasons = [*_differences(config, selected, batches)]
    if not reasons:
        return text
    return f"{text}\n  Why they differ: {'; '.join(reasons)}."


def _differences(
    config: AdapterConfig, selected: SelectedTurns, batches: PackedBatches
) -> Iterator[str]:
    published = PAPER_STEPS.get((config.stage, config.domain))
    if published is None:
        return
    total, epochs = published
    theirs, ours = round(total / epochs * PAPER_BATCH), len(batches.examples)
    if config.batch_size != PAPER_BATCH:
        yield f"a step has {config.batch_size} samples, the paper's {PAPER_BATCH}"
    if config.num_epochs != epochs:
        yield f"epochs: {config.num_epochs}, not {epochs}"
    if abs(ours - theirs) > 0.02 * theirs:
        text = f"{ours:,} samples, where the paper's steps make about {theirs:,}: "
        if selected.num_qualified > len(selected.groups):
            text += f"--max-samples keeps {config.max_samples} of {selected.num_qualified:,}, and "
        yield f"{text}the sweep has {len(selected.turns):,} focal turns to choose from"


def left_out_text(
    config: AdapterConfig, data: SweepData, selected: SelectedTurns, packed: PackedSamples
) -> str:
    """How many turns are learned from, and what became of the others."""
    turns, unit = selected.turns, selected.groups.shape[1]
    unscored = num_without_signal(config, turns)
    few = ()
    if selected.advantages is not None:
        few = left_out_scenarios(turns, selected.advantages)
    in_few = int(np.isin(turns.scenario_ids, few).sum()) if few else 0
    num_qualified = len(np.unique(selected.groups)) + unit * (
        selected.num_qualified - len(selected.groups)
    )
    reasons = [
        (unscored, "without a score"),
        (in_few, f"in {len(few):,} scenarios with too few scores"),
        (selected.num_cut, "cut at their limit of tokens"),
        (len(turns) - unscored - num_qualified, f"that {config.stage} doesn't choose"),
        (unit * (selected.num_qualified - len(selected.groups)), "beyond --max-samples"),
        (packed.num_dropped, "that don't fit into --max-tokens"),
    ]
    left_out = ", ".join(f"{count:,} {why}" for count, why in reasons if count > 0)
    text = (
        f"{len(packed.batches.examples):,} of {len(turns) + selected.num_cut:,} focal turns of "
        f"{len(selected.trajectories):,} training dialogues"
    )
    if left_out:
        text += f"; left out: {left_out}"
    held_out = len(data.trajectories) - len(selected.trajectories)
    if held_out:
        text += f"; {held_out:,} dialogues of held-out scenarios are not touched"
    if packed.num_trimmed:
        text += f"; {packed.num_trimmed:,} samples lose their oldest turns"
    return f"{text}."


def epoch_work(batches: PackedBatches, num_attention_pairs: int) -> Work:
    """What an epoch computes."""
    return Work(
        num_positions=batches.num_positions,
        num_tokens=batches.num_tokens,
        num_attention_pairs=num_attention_pairs,
        num_reply_tokens=sum(len(example.response_ids) for example in batches.examples),
    )


def tokens_text(batches: PackedBatches, epoch: Work) -> str:
    """Tokens of an epoch, what merging saves, and how full the rows are."""
    whole = sum(example.num_tokens for example in batches.examples)
    return (
        f"an epoch: {epoch.num_tokens:,} tokens in rows, {epoch.num_reply_tokens:,} of them "
        f"trained; sample by sample they would be {whole:,} ({whole / epoch.num_tokens:.1f} x). "
        f"{epoch.num_tokens / epoch.num_positions:.0%} of the rows is useful, the rest padding."
    )


def hours_text(
    config: AdapterConfig,
    batches: PackedBatches,
    epoch: Work,
    model: Qwen2,
    *,
    measured_s: float | None,
) -> str:
    """How long the run will take.

    Args:
      measured_s: seconds for each position of a row; None without a measurement.
    """
    num_steps = min(batches.num_steps, config.max_steps or batches.num_steps)
    share = num_steps / batches.steps_per_epoch
    devices = jax.devices()[:1] if model.mesh is None else list(model.mesh.devices.flat)
    kind = f"{len(devices)} x {devices[0].device_kind}"
    if measured_s is not None:
        seconds = share * epoch.num_positions * measured_s
        how = f"from {NUM_MEASURED} measured steps on {kind}, without compilation"
    else:
        peak = peak_flops(devices, model.dtype)
        seconds = share * training_flops(model.config, epoch) / peak / USUAL_MFU
        how = f"by arithmetic, if {kind} spends {USUAL_MFU:.0%} of its peak on it; not measured"
    each = seconds / num_steps
    return f"{num_steps:,} steps: {duration(seconds)} ({each:.3g} s a step), {how}."


def seconds_per_position(parts: TrainerParts, state: TrainState, batches: PackedBatches) -> float:
    """Seconds of a step for each position of its rows; `state` is donated."""
    steps = [batches.step(number) for number in range(min(NUM_MEASURED, batches.num_steps))]
    seconds = 0.0
    for is_timed in (False, True):
        for step in steps:
            on_device = parts.trainer.put(step.batches)
            jax.block_until_ready(on_device)
            started = time.perf_counter()
            state, metrics = parts.trainer.step(state, parts.frozen, on_device)
            jax.block_until_ready((state, metrics))
            seconds += is_timed * (time.perf_counter() - started)
    return seconds / sum(step.work.num_positions for step in steps)
