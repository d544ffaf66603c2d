"""The arithmetic of a step, against the products that a trace holds, and devices' peaks."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params
from tiny_training import CONFIG, packed

from emodistill.batches import Work
from emodistill.model import Qwen2
from emodistill.seeding import jax_key
from emodistill.train.flops import forward_flops, listed_peak, peak_flops, training_flops
from emodistill.train.trainer import response_logprobs


def counted_flops(jaxpr, times=1):
    """Of all matrix products but those within `while`: attention's, as often as blocks are seen."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(left[i] for i in contracted) * equation.outvars[0].aval.size
        if equation.primitive.name == "while":
            continue
        more = equation.params.get("length", 1)
        for inner in jaxprs_in_params(equation.params):
            total += counted_flops(inner, more)
    return times * total


def test_a_forward_pass_is_the_products_of_its_trace_and_attention_s_pairs():
    model = Qwen2(CONFIG, key=jax_key(0, "model"))
    step = packed([(33, 32)], batch_size=1).step(0)  # a row of 64 positions, all filled
    (batch,) = step.batches
    assert step.work == Work(64, 64, num_attention_pairs=64 * 65 // 2, num_reply_tokens=32)
    assert batch.targets_BM.size == 32
    traced = jax.make_jaxpr(lambda batch: response_logprobs(model, batch))(batch)
    pairs = (
        2
        * 2
        * step.work.num_attention_pairs
        * CONFIG.num_layers
        * CONFIG.num_heads
        * CONFIG.head_dim
    )
    assert forward_flops(CONFIG, step.work) == counted_flops(traced.jaxpr) + pairs


def test_a_backward_pass_by_hand():
    """As much as forward with frozen weights, four products for attention's two, and no gradient
    of what enters the first layer."""
    work = Work(9, num_tokens=7, num_attention_pairs=28, num_reply_tokens=3)
    forward = forward_flops(CONFIG, work)
    attention = 2 * 2 * 28 * 2 * 4 * 8
    first_layer = 2 * 7 * 32 * (4 + 2 + 2) * 8
    assert training_flops(CONFIG, work) == 2 * forward + attention - first_layer


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("TPU v5 lite", 197e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA L400", None),
        ("cpu", None),
    ],
)
def test_listed_devices_are_found_by_whole_words(kind, peak):
    assert listed_peak(kind) == peak


def test_devices_add_up_and_virtual_ones_do_not():
    gpus = [SimpleNamespace(device_kind="NVIDIA L4", platform="gpu", id=i) for i in range(8)]
    assert peak_flops(gpus, jnp.bfloat16) == 8 * 121e12
    cpu = jax.devices()[0]
    assert peak_flops([cpu], jnp.float32) == peak_flops([cpu] * 8, jnp.float32) > 0
