"""A model of a training step on a GPU that nobody has measured yet: `modelled-step`.

    seconds = arithmetic / (60 % of peak) + bytes / (80 % of bandwidth) + 3 us x kernels

Arithmetic is all that is executed, what is computed again included. Bytes are those of the passes
between matrix products (norms, rotary angles, residuals, SwiGLU) and of the frozen weights. A pass
backwards counts as two, since it moves twice as much: a step is three passes, or four where layers
are computed again. The frozen weights are read once forwards, once backwards and once where layers
are computed again; ours also copies them out of the stack of all layers, once in each of its two
loops. What products themselves move is within their 60 %. The numbers of kernels are the compiler's
(`plan.py memory --topology h100:1`); none is taken to be in a CUDA graph.

The same model is applied to a plain step as NVIDIA's NeMo runs it: rows of whole samples side by
side, nothing computed again, no copies of weights, as many kernels. No parameter was fitted; how
far it is from NeMo's published rate says how far to trust it.
"""

from __future__ import annotations

from benchmarks.configs import ModelledStepBenchmark
from benchmarks.filled_rows import filled_step
from benchmarks.gpu import NEMO
from benchmarks.rounds import OURS, report
from emodistill.batches import Work
from emodistill.model import Qwen2Config
from emodistill.model.config import read_architecture
from emodistill.train.compile_targets import gpu_targets
from emodistill.train.flops import forward_flops, listed_peak, training_flops

SHARE_OF_PEAK, SHARE_OF_BANDWIDTH, LAUNCH_S = 0.6, 0.8, 3e-6
COPY_MOVES = 2
"""A copy reads a weight and writes it."""
REFERENCE_SHARE = 0.5
"""Of JPO's reference pass, which two epochs share, in a step."""
NUM_SCENARIOS = 20


def run(config: ModelledStepBenchmark) -> None:
    """Print the modelled rates of both steps, then the result."""
    sizes = read_architecture(config.model)
    tree = filled_step(config.row, "tree", NUM_SCENARIOS, {}).work
    plain = filled_step(config.row, "sequence", NUM_SCENARIOS, {}).work
    seconds = {
        objective: step_seconds(sizes, tree, config, is_jpo=objective == "jpo")
        for objective in ("sft", "jpo")
    }
    again = step_seconds(sizes, tree, config, is_remat=True)
    nemo = step_seconds(sizes, plain, config, is_copied=False)
    rounds = {
        OURS: [{"rate": tree.num_reply_tokens / seconds["sft"]}],
        "plain rows, the same model": [{"rate": plain.num_reply_tokens / nemo}],
    }
    extra = {
        "is_model": True,
        "seconds": seconds | {"sft, all layers again": again, "plain": nemo},
        "reply_tokens_per_s": {
            **{name: tree.num_reply_tokens / one for name, one in seconds.items()},
            "sft, all layers again": tree.num_reply_tokens / again,
        },
        "tokens_per_s": {
            "tree": tree.num_tokens / seconds["sft"],
            "plain": plain.num_tokens / nemo,
            "NeMo's published": NEMO["tokens_per_s"],
        },
        "reply_tokens_per_row": {"tree": tree.num_reply_tokens, "plain": plain.num_reply_tokens},
        "kernels": config.kernels,
        "remat_kernels": config.remat_kernels,
        # Were the model as far off for trees as it is for NeMo's published rate.
        "reply_tokens_per_s_held_to_published": {
            name: tree.num_reply_tokens / one * NEMO["tokens_per_s"] / (plain.num_tokens / nemo)
            for name, one in seconds.items()
        },
    }
    report(config, "modelled reply tokens/s, SFT of a 7B model on one GPU", rounds, "rate", extra)


def step_seconds(
    sizes: Qwen2Config,
    work: Work,
    config: ModelledStepBenchmark,
    *,
    is_jpo: bool = False,
    is_remat: bool = False,
    is_copied: bool = True,
) -> float:
    """What a step of one row takes, JPO's half reference pass included.

    Args:
      is_remat: all layers are computed again in the backward pass.
      is_copied: each loop over the layers copies their weights out of the stack.
    """
    target = gpu_targets()[config.gpu]
    peak = listed_peak(target["description"])
    if peak is None:
        raise ValueError(f"no peak is listed for {target['description']}")
    forward = forward_flops(sizes, work)
    head = 2 * sizes.vocab_size * sizes.hidden_size * work.num_reply_tokens
    # The head's logits are computed again in any case.
    flops = training_flops(sizes, work) + (forward if is_remat else head)
    num_passes = 4.0 if is_remat else 3.0
    num_kernels = float(config.remat_kernels if is_remat else config.kernels)
    # Backwards, layers that are computed again read their weights twice in the same loop.
    num_reads, num_loops = (3.0 if is_remat else 2.0), 2.0
    if is_jpo:
        flops += REFERENCE_SHARE * forward
        num_kernels *= 1 + REFERENCE_SHARE / num_passes
        num_passes, num_reads = num_passes + REFERENCE_SHARE, num_reads + REFERENCE_SHARE
        num_loops += REFERENCE_SHARE
    num_moves = num_reads + (COPY_MOVES * num_loops if is_copied else 0)
    num_bytes = num_passes * pass_bytes(sizes, work) + 2 * num_moves * frozen_weights(sizes)
    return (
        flops / (SHARE_OF_PEAK * peak)
        + num_bytes / (SHARE_OF_BANDWIDTH * target["memory_bandwidth"])
        + num_kernels * LAUNCH_S
    )


def frozen_weights(sizes: Qwen2Config) -> int:
    """Numbers in the projections of all layers."""
    heads = sizes.head_dim * (2 * sizes.num_heads + 2 * sizes.num_kv_heads)
    return sizes.num_layers * sizes.hidden_size * (heads + 3 * sizes.intermediate_size)


def pass_bytes(sizes: Qwen2Config, work: Work) -> float:
    """What the steps between the products of a forward pass read and write, in bfloat16."""
    rotated = sizes.head_dim * (sizes.num_heads + sizes.num_kv_heads)
    # Two norms read and write; two sums read twice and write; SwiGLU reads two and writes one.
    numbers = 2 * 2 * sizes.hidden_size + 2 * 3 * sizes.hidden_size
    numbers += 2 * rotated + 3 * sizes.intermediate_size
    return 2.0 * sizes.num_layers * work.num_positions * numbers
