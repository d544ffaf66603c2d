"""The training loop, SFT and JPO: right gradients, only LoRA moves, a killed run goes on."""

import dataclasses
import functools
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_batches import dialogue, lengths_to_examples, sharing_examples

from emodistill import prompts
from emodistill.batches import PackedBatches
from emodistill.configs import ALoLConfig, DPOConfig, JPOConfig, SFTConfig
from emodistill.domains import load_scenarios
from emodistill.emotions import EMOTIONS
from emodistill.errors import DivergenceError, InputError, StaleInputError, StoppedError
from emodistill.model import LoRAParam, Qwen2, Qwen2Config, add_lora, load_adapter, load_qwen2
from emodistill.prompts import load_pack
from emodistill.seeding import jax_key, stream
from emodistill.train.checkpoints import Checkpoints
from emodistill.train.loop import train
from emodistill.train.losses import sft_loss
from emodistill.train.objectives import loss_of
from emodistill.train.refine import refine
from emodistill.train.sft import train_sft
from emodistill.train.trainer import (
    Trainer,
    add_metrics,
    learning_rate_schedule,
    response_logprobs,
)

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


@functools.cache
def _tiny_parts():
    model = Qwen2(CONFIG, key=jax_key(0, "model"))
    weight = model.embed_tokens.weight
    weight[...] = 20 * weight[...]  # room for large logits, since the tied head is frozen
    add_lora(model, rank=4, alpha=8, rng=jax_key(0, "lora"))
    return nnx.split(model)


def tiny_model(*, is_trained=False):
    """A random model with LoRA; `is_trained` gives B random values."""
    graphdef, state = _tiny_parts()
    model = nnx.merge(graphdef, jax.tree.map(jnp.copy, state))
    if is_trained:
        rng = stream(0, "trained")
        lora = nnx.state(model, LoRAParam)
        noise = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), lora)
        nnx.update(model, noise)
    return model


def sft(logp_SU, batch):
    return sft_loss(logp_SU, batch.mask_SU, num_tokens=batch.num_tokens)


def packed(examples=SHORT, **settings):
    defaults = {"batch_size": 8, "seed": 0, "num_epochs": 1, "max_micro_tokens": 512}
    if isinstance(examples[0], tuple):
        examples = lengths_to_examples(examples)
    return PackedBatches(examples, **(defaults | settings))


def with_reference(batches, model):
    """JPO needs reference log-probs: those of `model`, in one pass over the rows."""
    logp_NU = np.zeros((len(batches.examples), batches.num_reply_tokens), np.float32)
    graphdef, state = nnx.split(model)
    logprobs = jax.jit(lambda state, batch: response_logprobs(nnx.merge(graphdef, state), batch))
    for numbers, batch in batches.each_batch():
        logp_NU[numbers] = (np.asarray(logprobs(state, batch)) * batch.mask_SU)[: len(numbers)]
    batches.set_reference(logp_NU)
    return batches


def leaves(tree):
    """Copies: a view of an array keeps it from being donated."""
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def assert_trees_close(got, want, rtol):
    for a, b in zip(leaves(got), leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


class TestGradients:
    @pytest.mark.parametrize("packing", ["tree", "sequence", "none"])
    @pytest.mark.parametrize("stage", ["sft", "jpo", "alol", "dpo"])
    def test_rows_give_the_gradient_of_one_sample_at_a_time(self, stage, packing):
        """Against every sample alone, without rows, gathering or accumulation."""
        model = tiny_model(is_trained=True)
        examples = sharing_examples(12)
        advantages = stream(0, "advantages").normal(size=12).astype(np.float32)
        batches = packed(
            examples,
            advantages=advantages,
            max_micro_tokens=64,
            batch_size=6 if stage == "dpo" else 12,
            unit_size=2 if stage == "dpo" else 1,
            packing=packing,
        )
        shape = (12, batches.num_reply_tokens)
        reference = stream(0, "reference").normal(-5.3, 0.05, shape).astype(np.float32)
        batches.set_reference(reference)
        graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
        loss_fn = {
            "sft": sft,
            "jpo": loss_of(JPOConfig(kl_coef=0.3)),
            "alol": loss_of(ALoLConfig()),
            "dpo": loss_of(DPOConfig(beta=0.2)),
        }[stage]
        trainer = Trainer(graphdef, loss_fn, SFT, num_steps=1)
        made = batches.step(0).batches
        assert len(made) >= 2
        grads, metrics = trainer.gradients(lora, frozen, made)

        @jax.jit
        def all_logp(lora, ids_T):
            logits_TV = nnx.merge(graphdef, lora, frozen)(ids_T[None])[0]
            logp_TV = jax.nn.log_softmax(logits_TV[:-1])
            return jnp.take_along_axis(logp_TV, ids_T[1:, None], axis=1)[:, 0]

        longest = max(len(e.prompt_ids) + len(e.response_ids) for e in examples)

        def alone(lora):
            logps = []
            for example in examples:
                ids_T = np.concatenate([example.prompt_ids, example.response_ids])
                first, last = len(example.prompt_ids) - 1, len(ids_T) - 1
                ids_T = np.pad(ids_T, (0, longest - len(ids_T)))  # no token sees a later one
                logps.append(all_logp(lora, ids_T)[first:last])
            if stage == "sft":
                return -jnp.concatenate(logps).mean()
            if stage == "alol":
                weighted = [max(a, 0) * logp_U for a, logp_U in zip(advantages, logps, strict=True)]
                return -jnp.concatenate(weighted).mean()
            if stage == "dpo":
                gains = [
                    (logp_U - reference[i, : len(logp_U)]).sum() for i, logp_U in enumerate(logps)
                ]
                margins = [0.2 * (a - b) for a, b in zip(gains[::2], gains[1::2], strict=True)]
                return jnp.log1p(jnp.exp(-jnp.stack(margins))).mean()
            surrogate, kl = [], []
            for i, logp_U in enumerate(logps):
                ref_U = reference[i, : len(logp_U)]
                rho = jnp.exp(jnp.mean(logp_U - ref_U))
                a = advantages[i]
                surrogate.append(jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.2) * a))
                kl.append(jnp.exp(ref_U - logp_U) - (ref_U - logp_U) - 1)
            return 0.3 * jnp.concatenate(kl).mean() - jnp.stack(surrogate).mean()

        value, expected = jax.value_and_grad(alone)(lora)
        assert_trees_close(grads, expected, rtol=1e-5)
        name = "policy/loss" if stage == "jpo" else f"{stage}/loss"
        np.testing.assert_allclose(add_metrics(metrics)[name], value, rtol=1e-5)

    def test_log_probs_of_a_sample_are_its_own_in_every_row(self):
        model = tiny_model(is_trained=True)
        examples = sharing_examples(20, seed=1)
        found = []
        for packing in ("tree", "sequence", "none"):
            batches = with_reference(packed(examples, packing=packing, batch_size=10), model)
            found.append(batches._ref_logp_NU)
        np.testing.assert_allclose(found[0], found[2], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[1], found[2], rtol=1e-5, atol=1e-5)

    def test_micro_batches_add_up_to_one_big_batch(self):
        model = tiny_model(is_trained=True)
        graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
        found, counts = [], []
        for max_micro_tokens in (64, 1024):
            made = packed(max_micro_tokens=max_micro_tokens).step(0).batches
            trainer = Trainer(graphdef, sft, SFT, num_steps=1)
            found.append(trainer.gradients(lora, frozen, made)[0])
            counts.append(len(made))
        assert counts[0] > 2 * counts[1]
        assert_trees_close(*found, rtol=1e-5)

    def test_the_head_in_chunks_is_the_head_at_once(self):
        model = tiny_model(is_trained=True)
        graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
        batch = packed(batch_size=4).step(0).batches[-1]

        def mean_logp(lora, logits_per_chunk):
            model = nnx.merge(graphdef, lora, frozen)
            logp_SU = response_logprobs(model, batch, logits_per_chunk=logits_per_chunk)
            return jnp.where(batch.mask_SU, logp_SU, 0).sum() / 100

        value_and_grad = jax.jit(jax.value_and_grad(mean_logp), static_argnums=1)
        at_once = value_and_grad(lora, 10**9)
        in_chunks = value_and_grad(lora, 7 * CONFIG.vocab_size)
        np.testing.assert_allclose(in_chunks[0], at_once[0], rtol=1e-6)
        assert_trees_close(in_chunks[1], at_once[1], rtol=1e-5)


class TestTrainer:
    def test_a_step_moves_lora_and_nothing_else(self):
        model = tiny_model()
        graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
        before, base = leaves(lora), leaves(frozen)
        trainer = Trainer(graphdef, sft, SFT, num_steps=10)
        state, _ = trainer.step(trainer.init(lora), frozen, packed(batch_size=4).step(0).batches)
        for name, old in zip(("a", "b") * 4, before, strict=True):
            assert old.shape[1] == 4 if name == "a" else old.shape[2] == 4
        moved = [not np.array_equal(a, b) for a, b in zip(leaves(state.lora), before, strict=True)]
        assert moved == [False, True] * 4  # with B = 0, A has no gradient yet
        for old, new in zip(base, leaves(frozen), strict=True):
            np.testing.assert_array_equal(old, new)
        for old, new in zip(before, leaves(lora), strict=True):  # donated was a copy
            np.testing.assert_array_equal(old, new)
        assert int(state.step) == 1

    def test_it_compiles_once_per_row_shape(self):
        batches = packed(LONG * 4, num_epochs=2, batch_size=6, max_micro_tokens=400)
        graphdef, lora, frozen = nnx.split(tiny_model(), LoRAParam, ...)
        assert len(batches.shapes) > 1
        chex.clear_trace_counter()
        loss_fn = chex.assert_max_traces(sft, n=len(batches.shapes))
        trainer = Trainer(graphdef, loss_fn, SFT, num_steps=batches.num_steps)
        state = trainer.init(lora)
        for number in range(batches.num_steps):
            state, _ = trainer.step(state, frozen, batches.step(number).batches)

    def test_a_step_hands_nothing_over_between_host_and_device(self):
        graphdef, lora, frozen = nnx.split(tiny_model(), LoRAParam, ...)
        trainer = Trainer(graphdef, sft, SFT, num_steps=2)
        made = packed(batch_size=4).step(0).batches
        state, placed = trainer.init(lora), trainer.put(made)
        with jax.transfer_guard("disallow"):
            state, metrics = trainer.step(state, frozen, placed)
            with pytest.raises(Exception, match=r"[Dd]isallowed host-to-device transfer"):
                trainer.step(state, frozen, made)
        assert np.isfinite(list(add_metrics(metrics).values())).all()

    def test_a_gradient_that_is_not_finite_changes_no_weight(self):
        graphdef, lora, frozen = nnx.split(tiny_model(is_trained=True), LoRAParam, ...)

        def spoilt(logp_SU, batch):
            loss, metrics = sft(logp_SU, batch)
            return loss * jnp.nan, metrics

        trainer = Trainer(graphdef, spoilt, SFT, num_steps=2)
        state, metrics = trainer.step(trainer.init(lora), frozen, packed().step(0).batches)
        assert np.isnan(add_metrics(metrics)["optimizer/grad_norm"])
        for old, new in zip(leaves(lora), leaves(state.lora), strict=True):
            np.testing.assert_array_equal(old, new)
        assert all(np.isfinite(leaf).all() for leaf in leaves(state.opt_state))
        assert int(state.step) == 1

    def test_at_step_0_the_ratio_is_1_and_the_kl_0(self):
        model = tiny_model(is_trained=True)
        batches = packed(advantages=stream(0, "advantages").normal(size=8), max_micro_tokens=300)
        with_reference(batches, model)
        graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
        trainer = Trainer(graphdef, loss_of(JPOConfig()), SFT, num_steps=1)
        metrics = add_metrics(trainer.gradients(lora, frozen, batches.step(0).batches)[1])
        np.testing.assert_allclose(metrics["policy/ratio_mean"], 1, rtol=1e-6)
        assert abs(metrics["policy/kl_k3"]) < 1e-10
        assert metrics["policy/clip_fraction"] == 0
        expected = stream(0, "advantages").normal(size=8).mean()
        np.testing.assert_allclose(metrics["policy/surrogate"], expected, rtol=1e-5)

    def test_the_learning_rate_warms_up_and_falls_towards_0(self):
        schedule = learning_rate_schedule(1e-4, num_steps=200, warmup_fraction=0.03)
        rates = [float(schedule(step)) for step in range(200)]
        np.testing.assert_allclose(rates[:6], [1e-4 * (i + 1) / 6 for i in range(6)], rtol=1e-5)
        assert all(a > b for a, b in itertools.pairwise(rates[5:]))
        cosine = 0.5e-4 * (1 + math.cos(math.pi * (100 - 5) / 195))
        np.testing.assert_allclose(rates[100], cosine, rtol=1e-4)
        assert 0 < rates[-1] < 1e-7
        assert float(learning_rate_schedule(1.0, num_steps=1, warmup_fraction=0.03)(0)) == 1.0


def run_loop(cell_dir, *, lengths=SHORT, config=SFT, num_epochs=40, model=None, on_step=None):
    model = model or tiny_model()
    batches = packed(lengths, batch_size=config.batch_size, num_epochs=num_epochs)
    run = train(
        model,
        batches,
        sft,
        config,
        stage="sft",
        cell_dir=cell_dir,
        identity={"config": config.identity(), "samples": "abc"},
        on_step=on_step,
    )
    return run, model


def lines(cell_dir):
    text = (cell_dir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


class KilledError(Exception):
    """Stands for whatever ends a process in the middle of a run."""


def die_once_saved(cell_dir, step):
    """SIGKILL, as soon as the checkpoint of `step` is whole."""
    while not (cell_dir / "checkpoints" / str(step)).is_dir():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def usual_signals():
    """What a program finds that is started at a terminal."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class TestLoop:
    def test_sft_learns_a_few_samples_by_heart(self, tmp_path):
        config = dataclasses.replace(SFT, learning_rate=3e-2, save_every=1000)
        run, model = run_loop(tmp_path, lengths=[(6, 4), (9, 3)] * 2, config=config, num_epochs=80)
        losses = [row["sft/loss"] for row in lines(tmp_path)]
        assert losses[0] > 4
        assert run.metrics["sft/loss"] < 0.1 * losses[0]
        batch = packed([(6, 4), (9, 3)] * 2).step(0).batches[0]
        logp_SU = response_logprobs(model, batch)  # the model itself was trained
        assert -np.asarray(logp_SU)[batch.mask_SU].mean() < 0.1 * losses[0]

    def test_dpo_learns_to_prefer_the_better_of_each_pair(self, tmp_path):
        model = tiny_model()
        examples = lengths_to_examples([(9, 5), (9, 7), (20, 6), (20, 4)])
        batches = packed(examples, batch_size=2, unit_size=2, num_epochs=40)
        with_reference(batches, model)
        config = dataclasses.replace(SFT, learning_rate=3e-2, save_every=1000)
        loss_fn = loss_of(DPOConfig(beta=0.5))
        run = train(model, batches, loss_fn, config, stage="dpo", cell_dir=tmp_path, identity={})
        assert lines(tmp_path)[0]["dpo/accuracy"] == 0  # no margin yet
        assert run.metrics["dpo/accuracy"] == 1
        assert run.metrics["dpo/loss"] < 0.1

    def test_an_interrupted_run_goes_on_to_the_same_end(self, tmp_path):
        config = dataclasses.replace(SFT, save_every=4)
        whole, model = run_loop(tmp_path / "whole", config=config, num_epochs=5)
        assert whole.num_steps == 10

        def stop(step):
            if step == 7:
                raise KilledError

        with pytest.raises(KilledError):
            run_loop(tmp_path / "cut", config=config, num_epochs=5, on_step=stop)
        assert lines(tmp_path / "cut")[-1]["step"] == 5  # past the checkpoint of step 4
        first = []
        run, other = run_loop(tmp_path / "cut", config=config, num_epochs=5, on_step=first.append)
        assert first == [5, 6, 7, 8, 9, 10]
        assert without_times(lines(tmp_path / "cut")) == without_times(lines(tmp_path / "whole"))
        for a, b in zip(
            leaves(nnx.state(model, LoRAParam)), leaves(nnx.state(other, LoRAParam)), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        kept = sorted(int(p.name) for p in (tmp_path / "cut/checkpoints").iterdir())
        assert kept == [8, 10]
        assert run.metrics["sft/loss"] == whole.metrics["sft/loss"]

        again, _ = run_loop(tmp_path / "cut", config=config, num_epochs=5, on_step=first.append)
        assert len(first) == 6  # nothing was left to do
        assert again.metrics["sft/loss"] == whole.metrics["sft/loss"]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_asked_to_stop_it_saves_the_step_and_goes_on_from_there(
        self, number, usual_signals, tmp_path
    ):
        before = signal.getsignal(number)
        config = dataclasses.replace(SFT, save_every=1000)
        whole, _ = run_loop(tmp_path / "whole", config=config, num_epochs=5)

        def ask(step):
            if step == 3:
                signal.raise_signal(number)

        with pytest.raises(StoppedError, match="stopped after step 4 of 10, which is saved"):
            run_loop(tmp_path / "cut", config=config, num_epochs=5, on_step=ask)
        assert signal.getsignal(number) is before
        steps = []
        run, _ = run_loop(tmp_path / "cut", config=config, num_epochs=5, on_step=steps.append)
        assert steps == [5, 6, 7, 8, 9, 10]
        assert without_times(lines(tmp_path / "cut")) == without_times(lines(tmp_path / "whole"))
        assert run.metrics["sft/loss"] == whole.metrics["sft/loss"]

    def test_asked_to_stop_twice_it_stops_at_once(self, usual_signals, tmp_path):
        def ask(step):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            run_loop(tmp_path, on_step=ask)

    def test_an_ignored_signal_stays_ignored(self, usual_signals, tmp_path):
        """As under nohup, or in the background of a shell."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        config = dataclasses.replace(SFT, max_steps=2)
        run, _ = run_loop(
            tmp_path, config=config, on_step=lambda _: signal.raise_signal(signal.SIGINT)
        )
        assert run.num_steps == 2

    def test_a_loss_that_is_not_finite_names_the_samples_and_keeps_the_checkpoint(self, tmp_path):
        model = tiny_model()
        config = dataclasses.replace(SFT, learning_rate=1e30, save_every=1)
        with pytest.raises(DivergenceError) as caught:
            run_loop(tmp_path, config=config, model=model)
        message = str(caught.value)
        step = int(message.split("sft step ")[1].split(":")[0])
        assert step > 1
        assert f"the checkpoint of step {step - 1} is kept" in message
        for sample_id in packed(SHORT, batch_size=4, num_epochs=40).sample_ids(step - 1):
            assert sample_id in message
        assert Checkpoints(tmp_path / "checkpoints", {}).newest == step - 1

    @pytest.mark.parametrize("spoilt", [2, 5])
    def test_a_nan_in_one_sample_names_that_sample_alone(self, spoilt, tmp_path):
        """A token that only one prompt has, with an embedding that is not a number."""
        untied = Qwen2(dataclasses.replace(CONFIG, is_tied=False), key=jax_key(0, "model"))
        add_lora(untied, rank=4, alpha=8, rng=jax_key(0, "lora"))
        weight = untied.embed_tokens.weight
        weight[...] = weight[...].at[199].set(jnp.nan)
        examples = sharing_examples(8)
        prompt_ids = np.append(examples[spoilt].prompt_ids, np.int32(199))
        examples[spoilt] = dataclasses.replace(examples[spoilt], prompt_ids=prompt_ids)
        config = dataclasses.replace(SFT, save_every=1)
        batches = packed(examples, batch_size=4, num_epochs=3)
        first_bad = next(
            step for step in range(6) if examples[spoilt].sample_id in batches.sample_ids(step)
        )
        with pytest.raises(DivergenceError) as caught:
            train(untied, batches, sft, config, stage="sft", cell_dir=tmp_path, identity={})
        message = str(caught.value)
        assert f"sft step {first_bad + 1}: " in message
        assert f"It comes from {examples[spoilt].sample_id};" in message
        assert (Checkpoints(tmp_path / "checkpoints", {}).newest or 0) == first_bad

    def test_a_checkpoint_of_something_else_is_refused_by_name(self, tmp_path):
        config = dataclasses.replace(SFT, max_steps=2)
        run_loop(tmp_path, config=config)
        with pytest.raises(StaleInputError, match=r"config\[learning_rate\]=0.01, now .*=0.02"):
            run_loop(tmp_path, config=dataclasses.replace(config, learning_rate=0.02))
        model = Qwen2(CONFIG, key=jax_key(0, "model"))
        add_lora(model, rank=8, alpha=8)
        with pytest.raises(StaleInputError, match=r"arrays\[.*\]='float32\[2, .*4.*8"):
            run_loop(tmp_path, config=config, model=model)
        run, _ = run_loop(tmp_path, config=dataclasses.replace(config, save_every=7))
        assert run.num_steps == 2  # how often to save is nobody's business

    def test_max_steps_ends_early(self, tmp_path):
        run, _ = run_loop(tmp_path, config=dataclasses.replace(SFT, max_steps=3))
        assert run.num_steps == 3
        assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3]


FOCAL = """
system = "{rules}{role}{context}"
user = "{history}{emotion}{cue}"
emotion = "{emotion}"
opening = "begin "
cue = "now:"
line = "{speaker}{text}"
[crad]
focal = "C "
counterparty = "D "
rules = "bargain over the days, name a figure, stay brief; "
role = "C "
context = "want {target} "
"""
EMOTIONS_FILE = "template = '{tone} '\n[fillings]\n" + "".join(
    f"{label} = {{tone = '{label[:4]}'}}\n" for label in EMOTIONS
)
SCENARIOS = load_scenarios("crad")[:2]
TRAJECTORIES = [
    dialogue(num_turns=4, scenario=scenario, number=number)
    for scenario in SCENARIOS
    for number in range(4)
]
SCORES = {
    (trajectory.trajectory_id, turn.index): 1 + (7 * i + 3 * turn.index) % 10
    for i, trajectory in enumerate(TRAJECTORIES)
    for turn in trajectory.focal_turns
}


def short_pack(folder):
    """The built-in pack with a focal prompt of a few words, so that rows are short."""
    for name in ("counterparty.toml", "judge.toml"):
        shutil.copy(Path(prompts.__file__).with_name(name), folder)
    (folder / "focal.toml").write_text(FOCAL)
    (folder / "emotions.toml").write_text(EMOTIONS_FILE)


def sft_stage(cell_dir, checkpoint, pack, on_step=None, **settings):
    defaults = {"model": str(checkpoint), "lora_rank": 4, "top_fraction": 0.5, "save_every": 2}
    config = SFTConfig(**(defaults | {"batch_size": 4, "learning_rate": 1e-2} | settings))
    return train_sft(
        config,
        cell_dir=cell_dir,
        trajectories=TRAJECTORIES,
        scenarios=SCENARIOS,
        scores=SCORES,
        pack=pack,
        on_step=on_step,
    )


def jpo_stage(
    cell_dir,
    checkpoint,
    pack,
    adapter,
    on_step=None,
    trajectories=TRAJECTORIES,
    kind=JPOConfig,
    **settings,
):
    defaults = {"model": str(checkpoint), "lora_rank": 4, "batch_size": 4, "save_every": 2}
    config = kind(**(defaults | {"learning_rate": 1e-3} | settings))
    return refine(
        config,
        cell_dir=cell_dir,
        trajectories=trajectories,
        scenarios=SCENARIOS,
        scores=SCORES,
        pack=pack,
        sft_adapter=adapter,
        on_step=on_step,
    )


@pytest.fixture(scope="module")
def pack_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    short_pack(folder)
    return folder


@pytest.fixture(scope="module")
def pack(pack_dir):
    return load_pack(pack_dir)


@pytest.fixture(scope="module")
def sft_result(tiny_checkpoint, pack, tmp_path_factory):
    return sft_stage(tmp_path_factory.mktemp("run") / "sft/default", tiny_checkpoint, pack)


class TestStages:
    def test_sft_keeps_the_best_turns_and_leaves_a_peft_adapter(self, sft_result, tiny_checkpoint):
        assert (sft_result.num_samples, sft_result.num_steps) == (8, 4)
        assert (sft_result.num_dropped, sft_result.num_trimmed) == (0, 0)
        fields = json.loads((sft_result.adapter_dir / "adapter_config.json").read_text())
        assert (fields["peft_type"], fields["r"]) == ("LORA", 4)
        model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
        load_adapter(model, sft_result.adapter_dir)
        assert any(np.any(leaf) for leaf in leaves(nnx.state(model, LoRAParam)))

    def test_jpo_starts_as_its_reference_and_shares_it_between_kappas(
        self, sft_result, tiny_checkpoint, pack, tmp_path
    ):
        adapter = sft_result.adapter_dir
        one = jpo_stage(tmp_path / "jpo/default", tiny_checkpoint, pack, adapter)
        assert (one.num_samples, one.num_steps, one.is_reference_reused) == (16, 8, False)
        first, *_, last = lines(tmp_path / "jpo/default")
        np.testing.assert_allclose(first["policy/ratio_mean"], 1, rtol=1e-5)
        assert first["policy/kl_k3"] < 1e-9 < last["policy/kl_k3"]
        kappa = jpo_stage(tmp_path / "jpo/kappa", tiny_checkpoint, pack, adapter, kappa=0.5)
        assert kappa.is_reference_reused
        assert kappa.reference_path == one.reference_path
        assert kappa.metrics["policy/surrogate"] != one.metrics["policy/surrogate"]

        logp = load_file(one.reference_path)["ref_logp"]
        one.reference_path.write_bytes(one.reference_path.read_bytes()[:-40])
        torn = jpo_stage(tmp_path / "jpo/torn", tiny_checkpoint, pack, adapter, kappa=0.5)
        assert not torn.is_reference_reused
        np.testing.assert_array_equal(load_file(torn.reference_path)["ref_logp"], logp)
        assert torn.metrics["policy/surrogate"] == kappa.metrics["policy/surrogate"]

        with safe_open(one.reference_path, framework="numpy") as file:
            metadata = file.metadata()
        for wrong, told in (
            (logp[:-1], metadata),
            (np.full_like(logp, np.nan), metadata),
            (logp, metadata | {"key": "0"}),
        ):
            save_file({"ref_logp": wrong}, one.reference_path, metadata=told)
            again = jpo_stage(tmp_path / "jpo/torn", tiny_checkpoint, pack, adapter, kappa=0.5)
            assert not again.is_reference_reused

    def test_alol_learns_the_good_turns_without_a_reference(
        self, sft_result, tiny_checkpoint, pack, tmp_path
    ):
        cell = tmp_path / "alol/default"
        adapter = sft_result.adapter_dir
        settings = {"learning_rate": 1e-2, "num_epochs": 6}
        run = jpo_stage(cell, tiny_checkpoint, pack, adapter, kind=ALoLConfig, **settings)
        assert run.reference_path is None
        assert 0 < run.num_samples < 16
        first, *_, last = lines(cell)
        assert last["alol/loss"] < first["alol/loss"]
        assert not (tmp_path / "alol/reference").exists()

    def test_dpo_starts_as_its_reference(self, sft_result, tiny_checkpoint, pack, tmp_path):
        cell = tmp_path / "dpo/default"
        run = jpo_stage(cell, tiny_checkpoint, pack, sft_result.adapter_dir, kind=DPOConfig)
        assert run.num_samples == 16
        first, *_ = lines(cell)
        np.testing.assert_allclose(first["dpo/loss"], math.log(2), rtol=1e-5)

    def test_every_dependency_of_the_reference_makes_another_file(
        self, sft_result, tiny_checkpoint, pack, tmp_path
    ):
        adapter = sft_result.adapter_dir
        settings = {"max_steps": 1}
        runs = [
            jpo_stage(tmp_path / "jpo/a", tiny_checkpoint, pack, adapter, **settings),
            jpo_stage(
                tmp_path / "jpo/b", tiny_checkpoint, pack, None, reference="base", **settings
            ),
            jpo_stage(
                tmp_path / "jpo/c", tiny_checkpoint, pack, adapter, emotion_free=True, **settings
            ),
            jpo_stage(
                tmp_path / "jpo/d",
                tiny_checkpoint,
                pack,
                adapter,
                trajectories=TRAJECTORIES[:4],
                **settings,
            ),
        ]
        assert not any(run.is_reference_reused for run in runs)
        assert len({run.reference_path for run in runs}) == 4

    def test_scenarios_with_too_few_scores_are_left_out_and_named(
        self, sft_result, tiny_checkpoint, pack, tmp_path
    ):
        run = jpo_stage(
            tmp_path / "jpo/few",
            tiny_checkpoint,
            pack,
            sft_result.adapter_dir,
            trajectories=TRAJECTORIES[:5],
            max_steps=1,
        )
        assert run.left_out_scenarios == (SCENARIOS[1].scenario_id,)
        assert run.num_samples == 8

    def test_what_cannot_be_started_is_refused(self, sft_result, tiny_checkpoint, pack, tmp_path):
        with pytest.raises(InputError, match="jpo starts from an SFT adapter, and there is none"):
            jpo_stage(tmp_path / "jpo/x", tiny_checkpoint, pack, None)
        with pytest.raises(InputError, match=r"lora_rank=8, but the SFT adapter in .* has 4"):
            jpo_stage(
                tmp_path / "jpo/x", tiny_checkpoint, pack, sft_result.adapter_dir, lora_rank=8
            )
        held_out = [dataclasses.replace(t, split="test") for t in TRAJECTORIES]
        with pytest.raises(InputError, match="no dialogue belongs to a training scenario"):
            jpo_stage(
                tmp_path / "jpo/x",
                tiny_checkpoint,
                pack,
                sft_result.adapter_dir,
                trajectories=held_out,
            )

    @pytest.mark.parametrize("stage", ["sft", "jpo"])
    def test_after_sigkill_the_result_is_that_of_the_uninterrupted_run(
        self, stage, sft_result, tiny_checkpoint, pack, pack_dir, tmp_path
    ):
        adapter = sft_result.adapter_dir
        start = {
            "sft": "sft_stage(cell, base, pack",
            "jpo": f"jpo_stage(cell, base, pack, Path({str(adapter)!r})",
        }
        code = (
            "import os, signal, sys; from pathlib import Path; from test_train import *\n"
            "cell, base, words = map(Path, sys.argv[1:]); pack = load_pack(words)\n"
            f"{start[stage]}, on_step=lambda n: n == 3 and die_once_saved(cell, 2))"
        )
        cut = tmp_path / "run" / stage / "cut"
        done = subprocess.run(
            [sys.executable, "-c", code, str(cut), str(tiny_checkpoint), str(pack_dir)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            },
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        steps = []
        if stage == "sft":
            run, whole = sft_stage(cut, tiny_checkpoint, pack, steps.append), sft_result
        else:
            run = jpo_stage(cut, tiny_checkpoint, pack, adapter, steps.append)
            whole = jpo_stage(tmp_path / "run/jpo/whole", tiny_checkpoint, pack, adapter)
        assert steps == list(range(3, whole.num_steps + 1))
        assert without_times(lines(cut)) == without_times(lines(whole.adapter_dir.parent))
        for name, tensor in load_file(whole.adapter_dir / "adapter_model.safetensors").items():
            resumed = load_file(run.adapter_dir / "adapter_model.safetensors")[name]
            np.testing.assert_array_equal(resumed, tensor)
