"""What tests of training share: a random model with LoRA, samples, their batches, and metrics."""

import functools
import json

import jax
import numpy as np
from flax import nnx
from model_outputs import reply_logprobs
from random_models import random_parts
from samples import lengths_to_examples

from emodistill.batches import PackedBatches
from emodistill.configs import SFTConfig
from emodistill.model import LoRAParam, Qwen2, Qwen2Config, add_lora
from emodistill.seeding import jax_key, stream
from emodistill.train.objectives import OBJECTIVES

CONFIG = Qwen2Config(
    vocab_size=200,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    norm_eps=1e-6,
    max_positions=512,
    is_tied=True,
)
LONG = [(9, 3), (40, 12), (17, 1), (70, 30), (5, 9), (33, 2), (90, 20), (12, 6)]
SHORT = [(9, 3), (20, 12), (17, 1), (30, 20), (5, 9), (33, 2), (40, 20), (12, 6)]
SFT = SFTConfig(learning_rate=1e-2, lora_rank=4, batch_size=4, save_every=2)


def loss_of(config):
    """The loss of the stage that `config` configures, as the trainer wants it."""
    return OBJECTIVES[config.stage].loss_under(config)


sft = loss_of(SFT)


@functools.cache
def _tiny_parts(config, rank):
    def make():
        model = Qwen2(config, key=jax_key(0, "model"))
        add_lora(model, rank=rank, alpha=8)
        return model

    graphdef, state = random_parts(make)
    weight = state["embed_tokens"]["weight"]
    weight.set_value(20 * weight[...])  # room for large logits, since the tied head is frozen
    return graphdef, state


def placed(tree):
    """On the device, as what is read from files: programs are compiled for that alone."""
    return jax.device_put(tree, jax.devices()[0])


def tiny_model(*, is_trained=False, config=CONFIG, rank=4):
    """A random model with LoRA; `is_trained` gives B random values."""
    graphdef, state = _tiny_parts(config, rank)
    model = nnx.merge(graphdef, placed(jax.tree.map(np.array, state)))
    if is_trained:
        rng = stream(0, "trained")
        lora = nnx.state(model, LoRAParam)
        noise = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), lora)
        nnx.update(model, placed(noise))
    return model


def packed(examples=SHORT, **settings):
    defaults = {"batch_size": 8, "seed": 0, "num_epochs": 1, "max_micro_tokens": 512}
    if isinstance(examples[0], tuple):
        examples = lengths_to_examples(examples)
    return PackedBatches(examples, **(defaults | settings))


def with_reference(batches, model):
    """JPO needs reference log-probs: those of `model`, in one pass over the rows."""
    logp_NU = np.zeros((len(batches.examples), batches.num_reply_tokens), np.float32)
    for numbers, batch in batches.each_batch():
        logp_SU = np.asarray(reply_logprobs(model, batch)) * batch.mask_SU
        logp_NU[numbers] = logp_SU[: len(numbers)]
    batches.set_reference(logp_NU)
    return batches


def leaves(tree):
    """Copies: a view of an array keeps it from being donated."""
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def assert_trees_close(got, want, rtol):
    for a, b in zip(leaves(got), leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def lines(cell_dir):
    text = (cell_dir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
