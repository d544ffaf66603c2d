"""Rows made ahead of time, and the arithmetic that they stand for."""

import threading

import jax
import numpy as np
import pytest
from flax import nnx

from emodistill.batches import Work
from emodistill.model import Qwen2, Qwen2Config
from emodistill.seeding import jax_key
from emodistill.train.flops import forward_flops, measured_peak, peak_flops, training_flops
from emodistill.train.prefetch import prefetched


def test_results_come_in_order_and_ahead_of_time():
    begun, may_go = [], threading.Event()

    def make(number):
        begun.append(number)
        if number == 2:
            may_go.set()
        return number * number

    found = prefetched(make, range(6), ahead=2)
    assert next(found) == 0
    assert may_go.wait(10)  # 1 and 2 are made although nobody has asked
    assert list(found) == [1, 4, 9, 16, 25]
    assert begun == list(range(6))


def test_an_error_comes_where_its_result_would_have():
    def make(number):
        if number == 2:
            raise ValueError("row 2")
        return number

    found = prefetched(make, range(4), ahead=3)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="row 2"):
        next(found)


def test_leaving_early_leaves_no_thread():
    before = threading.active_count()
    found = prefetched(lambda number: number, range(100), ahead=2)
    next(found)
    found.close()
    assert threading.active_count() == before


CONFIG = Qwen2Config(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    norm_eps=1e-6,
    max_positions=64,
    is_tied=False,
)


def test_flops_are_those_of_the_model_s_matrices():
    model = Qwen2(CONFIG, key=jax_key(0, "flops"))
    layers = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model.layers)) if leaf.ndim == 3)
    work = Work(num_places=128, num_tokens=100, num_visible=2_000, num_replies=30)
    products = 2 * 100 * layers + 2 * 30 * 40 * 16
    attention = 2_000 * 3 * 4 * 8 * 2 * 2  # scores and what they gather
    assert forward_flops(CONFIG, work) == products + attention
    assert training_flops(CONFIG, work) == 2 * products + 3 * attention


class Device:
    def __init__(self, kind, number):
        self.device_kind, self.id, self.platform, self.process_index = kind, number, "gpu", 0


def test_peaks_of_known_devices_add_up_and_others_are_measured():
    assert peak_flops([Device("NVIDIA H100 80GB HBM3", n) for n in range(4)]) == 4 * 989e12
    assert peak_flops([Device("TPU v5 lite", 0)]) == 197e12
    assert 1e8 < measured_peak(128) < 1e15
    here = peak_flops(jax.devices("cpu"))
    assert np.isfinite(here) and here == peak_flops(jax.devices("cpu")[:1])
