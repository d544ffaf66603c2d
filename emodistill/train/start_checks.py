"""Does training start as it should: what it may change, from which adapter, at ratio 1 and KL 0?"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors import safe_open

from emodistill.batches import Batch, Example, PackedBatches
from emodistill.batches.row_packing import LENGTH_MULTIPLE, round_up
from emodistill.configs import AdapterConfig
from emodistill.model import Qwen2, Qwen2Config, base_fingerprint, num_row_shards, sharding, to_host
from emodistill.model.adapters import WEIGHTS_FILE
from emodistill.train.findings import Finding, some_of
from emodistill.train.loop import TrainerParts
from emodistill.train.trainer import TrainState

MAX_RATIO_ERROR, MAX_KL = 1e-5, 1e-6
"""How far ratio and KL may be from 1 and 0 before the first step; they are exact where the
reference was computed in the same rows on the same kind of device."""
MAX_ALONE_ERROR = {"float32": 1e-3, "bfloat16": 0.25}
"""Nats by which a token's log-prob may differ between a row of several samples and the sample
alone; a token that sees a wrong one is off by more."""
NUM_ALONE = 3
"""Samples that are computed alone as well."""
FACTOR = re.compile(r"^layers\.\w+\.(\w+)\.lora\.([ab])\.value$")


def check_trainable(state: TrainState, config: AdapterConfig, form: Qwen2Config) -> Finding:
    """Are LoRA's factors, on the projections asked for, all that the optimiser changes?

    Counted in the optimiser's own state, and beside it from the architecture.
    """
    moments = optax.tree.get(state.opt_state, "mu")
    found: dict[str, int] = {}
    strangers = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(moments):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        match = FACTOR.match(name)
        if match is None:
            strangers.append(f"{name} {list(leaf.shape)}")
        else:
            found[match[1]] = found.get(match[1], 0) + leaf.size
    problems = [f"{some_of(strangers)} would be trained, and is no LoRA"] if strangers else []
    wanted = {
        target: _factor_size(target, config.lora_rank, form) for target in config.lora_targets
    }
    for target in sorted({*found, *wanted}):
        ours, theirs = found.get(target, 0), wanted.get(target, 0)
        if ours != theirs:
            problems.append(f"{target} has {ours:,} trainable numbers instead of {theirs:,}")
    if problems:
        return Finding("trainable", f"{'; '.join(problems)}.", is_problem=True)
    text = (
        f"{sum(found.values()):,} numbers of LoRA on {', '.join(config.lora_targets)}, rank "
        f"{config.lora_rank}; the optimiser knows no others."
    )
    return Finding("trainable", text)


def _factor_size(target: str, rank: int, form: Qwen2Config) -> int:
    hidden, queries = form.hidden_size, form.num_heads * form.head_dim
    keys, mlp = form.num_kv_heads * form.head_dim, form.intermediate_size
    ends = {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, mlp),
        "up_proj": (hidden, mlp),
        "down_proj": (mlp, hidden),
    }
    return form.num_layers * rank * sum(ends[target])


def check_base(model: Qwen2, sft_adapter: Path | None) -> Finding | None:
    """Was the adapter that training starts from trained on this base? None without an adapter."""
    if sft_adapter is None:
        return None
    with safe_open(sft_adapter / WEIGHTS_FILE, framework="numpy") as file:
        theirs = (file.metadata() or {}).get("base_fingerprint")
    ours = base_fingerprint(model)
    if theirs is None:
        text = f"{sft_adapter} doesn't say which base it was trained on; not checked."
        return Finding("adapter fits", text, is_checked=False)
    if theirs != ours:
        text = f"{sft_adapter} was trained on base {theirs[:12]}…, and this one is {ours[:12]}…."
        return Finding("adapter fits", text, is_problem=True)
    return Finding("adapter fits", f"it was trained on base {ours[:12]}…, the one that is loaded.")


class FirstStep(NamedTuple):
    """What the compiled step computes before the first update."""

    numbers: tuple[tuple[int, ...], ...]
    """The samples along S of each micro-batch."""
    batches: tuple[Batch, ...]
    logp_SU: tuple[np.ndarray, ...]
    metrics: Mapping[str, float]
    grad_norm: float


def first_rows(batches: PackedBatches) -> list[tuple[list[int], Batch]]:
    """The micro-batches of one step, each with its samples along S."""
    rows = []
    num_samples = 0
    for numbers, batch in batches.each_batch():
        rows.append((numbers, batch))
        num_samples += len(numbers)
        if num_samples >= int(batch.num_samples):
            break
    return rows


def take_first_step(
    parts: TrainerParts, state: TrainState, rows: Sequence[tuple[list[int], Batch]]
) -> FirstStep:
    """Loss and gradient of these rows, by the program that training runs; nothing is updated.

    Args:
      parts: of an objective whose metrics hold the log-probs as `logp` (see `with_logprobs`).
    """
    numbers, batches = zip(*rows, strict=True)
    grads, shares = parts.trainer.gradients(state.lora, parts.frozen, parts.trainer.put(batches))
    logp_SU = tuple(to_host(share["logp"]) for share in shares)
    metrics: dict[str, float] = {}
    for share in shares:
        for name in share.keys() - {"logp"}:
            metrics[name] = metrics.get(name, 0.0) + float(share[name])
    grad_norm = float(optax.tree.norm(grads))
    return FirstStep(tuple(map(tuple, numbers)), batches, logp_SU, metrics, grad_norm)


@functools.cache  # a function of its own for each loss, by which programs are found again
def with_logprobs(loss: Any) -> Any:
    """The loss of an objective, with the log-probs that it is given among its metrics."""

    def both(config: Any, logp_SU: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        value, metrics = loss(config, logp_SU, batch)
        return value, {**metrics, "logp": jnp.where(batch.mask_SU, logp_SU, 0.0)}

    return both


def check_first_step(
    step: FirstStep, shown_metric: str, ref_logp_NU: np.ndarray | None, where: str
) -> Finding:
    """Are ratio and KL those of a policy that is its reference, and is there a gradient?

    Args:
      ref_logp_NU: the reference's log-probs of all samples; None for a loss without a reference.
      where: where they are from, as the end of a clause.
    """
    gradient = f"gradient norm {step.grad_norm:.3g}"
    values = ", ".join(
        f"{name} {value:.4g}" for name, value in step.metrics.items() if name == shown_metric
    )
    text = f"{values}, {gradient}; {where}."
    problems = []
    if ref_logp_NU is not None:
        ratios, divergences = [], []
        for numbers, batch, logp_SU in zip(step.numbers, step.batches, step.logp_SU, strict=True):
            for along, number in enumerate(numbers):
                mask_U = np.asarray(batch.mask_SU)[along]
                ref_U = ref_logp_NU[number, : len(mask_U)][mask_U].astype(np.float64)
                gap_U = logp_SU[along][mask_U] - ref_U
                ratios.append(float(np.exp(gap_U.mean())))
                divergences += (np.exp(-gap_U) + gap_U - 1).tolist()
        ratio = max(ratios, key=lambda value: abs(value - 1))
        divergence = float(np.mean(divergences))
        if not (abs(ratio - 1) <= MAX_RATIO_ERROR and divergence <= MAX_KL):
            problems.append(
                f"a ratio of {ratio:.6g} instead of 1 and a KL of {divergence:.3g} instead of 0, "
                f"{where}, which is not the policy that training starts from"
            )
        text = (
            f"over {len(ratios)} samples of a step, ratio 1 (off by {abs(ratio - 1):.1g} at most) "
            f"and KL {divergence:.1g}, {where}; {gradient}."
        )
    if not math.isfinite(step.grad_norm) or not step.grad_norm:
        problems.append(f"a {gradient}, so that nothing would be learned")
    if problems:
        return Finding("step 0", f"{'; '.join(problems)}.", is_problem=True)
    return Finding("step 0", text)


class AloneReport(NamedTuple):
    """A few samples computed one at a time, in the plainest way."""

    rows: Finding
    adapter: Finding


def check_alone(
    parts: TrainerParts,
    model: Qwen2,
    batches: PackedBatches,
    step: FirstStep,
    *,
    is_new: bool,
) -> AloneReport:
    """Do rows of several samples give each its own log-probs, and does the adapter change them?

    Args:
      is_new: the adapter is a new one, whose output is zero at the start.
    """
    plain = functools.partial(_alone, parts.trainer.graphdef)
    without = jax.tree.map(jnp.zeros_like, parts.lora)
    row_error = effect = 0.0
    places = [
        (number, i, along)
        for i, numbers in enumerate(step.numbers)
        for along, number in enumerate(numbers)
    ]
    places = sorted(places, key=lambda place: batches.examples[place[0]].num_tokens)
    chosen = places[:: max(1, len(places) // NUM_ALONE)][:NUM_ALONE]
    for number, i, along in chosen:
        example = batches.examples[number]
        inputs = _inputs(example, num_row_shards(model.mesh))
        arrays = sharding.put_batch(inputs[0], model.mesh), *inputs[1:]
        size = len(example.response_ids)
        alone_U = to_host(plain(parts.lora, parts.frozen, *arrays))[:size]
        base_U = to_host(plain(without, parts.frozen, *arrays))[:size]
        # A mask that leaves tokens out has a check of its own.
        mask_U = np.asarray(step.batches[i].mask_SU)[along][:size]
        errors = np.abs(step.logp_SU[i][along][:size] - alone_U)[mask_U]
        row_error = max(row_error, float(errors.max(initial=0)))
        effect = max(effect, float(np.abs(alone_U - base_U).max()))
    return AloneReport(
        _rows_finding(row_error, len(chosen), str(jnp.dtype(model.dtype))),
        _adapter_finding(effect, is_new=is_new),
    )


def _inputs(example: Example, num_rows: int) -> tuple[np.ndarray, np.int32, np.ndarray]:
    """Rows that all hold the sample, where its reply begins to be predicted, and the reply."""
    ids = np.concatenate([example.prompt_ids, example.response_ids[:-1]])
    tokens = np.zeros(round_up(len(ids), LENGTH_MULTIPLE), np.int32)
    tokens[: len(ids)] = ids
    reply = np.zeros(round_up(len(example.response_ids), LENGTH_MULTIPLE), np.int32)
    reply[: len(example.response_ids)] = example.response_ids
    first = np.int32(len(example.prompt_ids) - 1)
    return np.tile(tokens, (num_rows, 1)), first, reply


@functools.partial(jax.jit, static_argnums=0)
def _alone(
    graphdef: nnx.GraphDef, lora: Any, frozen: Any, tokens_BT: Any, first: Any, reply_U: Any
) -> jax.Array:
    """log π of the reply of the first row, one softmax over whole logits."""
    model = nnx.merge(graphdef, lora, frozen)
    hidden_BTD = model.hidden(tokens_BT)
    places_U = jnp.clip(first + jnp.arange(len(reply_U)), 0, tokens_BT.shape[1] - 1)
    hidden_BUD = jnp.take(hidden_BTD, places_U, axis=1)
    logp_BUV = jax.nn.log_softmax(model.logits(hidden_BUD))
    logp_U = jnp.take_along_axis(logp_BUV[0], reply_U[:, None], axis=1)[:, 0]
    return sharding.everywhere(logp_U, model.mesh)


def _rows_finding(error: float, num_samples: int, dtype: str) -> Finding:
    text = f"{num_samples} samples alone have the log-probs that they have in rows"
    if not error <= MAX_ALONE_ERROR.get(dtype, MAX_ALONE_ERROR["bfloat16"]):
        text = (
            f"a token's log-prob differs by {error:.3g} nats between its row and its sample alone"
        )
        return Finding("rows", f"{text}; samples in a row see each other.", is_problem=True)
    return Finding("rows", f"{text} (off by {error:.1g} nats at most).")


def _adapter_finding(effect: float, *, is_new: bool) -> Finding:
    if is_new:
        if effect:
            text = f"a new adapter changes log-probs by {effect:.3g} nats; B should be 0."
            return Finding("adapter", text, is_problem=True)
        return Finding("adapter", "new, B = 0: training starts as the base model.")
    if not effect > 0:
        text = (
            "the adapter that training starts from changes nothing: its B is zero, or it is not "
            "used. Train SFT again, or start from the base (jpo: --reference base)."
        )
        return Finding("adapter", text, is_problem=True)
    return Finding("adapter", f"it changes the log-prob of a token by up to {effect:.3g} nats.")
