"""The compiled step: right gradients however samples are packed, and only LoRA moves."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from samples import sharing_examples
from tiny_training import (
    CONFIG,
    SFT,
    SHORT,
    assert_trees_close,
    leaves,
    loss_of,
    packed,
    sft,
    tiny_model,
    with_reference,
)

from emodistill.configs import ALoLConfig, DPOConfig, GRPOConfig, JPOConfig, PPOConfig
from emodistill.model import LoRAParam
from emodistill.seeding import stream
from emodistill.train import trainer as trainer_module
from emodistill.train.objectives import OBJECTIVES
from emodistill.train.trainer import (
    Trainer,
    add_metrics,
)

EXAMPLES = sharing_examples(12)
ADVANTAGES = stream(0, "advantages").normal(size=12).astype(np.float32)
JPO = JPOConfig(kl_coef=0.3)


def shared_batches(unit_size=1, packing="tree", max_micro_tokens=64):
    """`EXAMPLES` with all that a loss may ask for, so that each has one program in this file."""
    batches = packed(
        EXAMPLES,
        advantages=ADVANTAGES,
        max_micro_tokens=max_micro_tokens,
        batch_size=12 // unit_size,
        unit_size=unit_size,
        packing=packing,
    )
    shape = (12, batches.num_reply_tokens)
    batches.set_reference(stream(0, "reference").normal(-5.3, 0.05, shape).astype(np.float32))
    return batches


@functools.partial(jax.jit, static_argnums=0)
def lone_logprobs(graphdef, lora, frozen, temperature):
    """Log-probs [N, T] of every next token, each of `EXAMPLES` in a row of its own."""
    whole = [np.concatenate([e.prompt_ids, e.response_ids]) for e in EXAMPLES]
    longest = max(map(len, whole))
    ids_NT = np.stack([np.pad(ids, (0, longest - len(ids))) for ids in whole])
    logits_NTV = nnx.merge(graphdef, lora, frozen)(ids_NT)  # no token sees a later one
    logp_NTV = jax.nn.log_softmax(logits_NTV[:, :-1] / temperature)
    return jnp.take_along_axis(logp_NTV, ids_NT[:, 1:, None], axis=2)[..., 0]


class TestGradients:
    @pytest.mark.parametrize(
        ("stage", "packing"),
        [
            *(("jpo", "tree"), ("dpo", "tree")),
            pytest.param("grpo", "tree", marks=pytest.mark.slow),
            pytest.param("sft", "tree", marks=pytest.mark.slow),
            pytest.param("alol", "tree", marks=pytest.mark.slow),
            pytest.param("jpo", "sequence", marks=pytest.mark.slow),
            pytest.param("ppo", "none", marks=pytest.mark.slow),
            pytest.param("sft", "none", marks=pytest.mark.slow),
            pytest.param("dpo", "sequence", marks=pytest.mark.slow),
            pytest.param("sft", "sequence", marks=pytest.mark.slow),
            pytest.param("jpo", "none", marks=pytest.mark.slow),
            pytest.param("alol", "sequence", marks=pytest.mark.slow),
            pytest.param("alol", "none", marks=pytest.mark.slow),
            pytest.param("dpo", "none", marks=pytest.mark.slow),
        ],
    )
    def test_rows_give_the_gradient_of_one_sample_at_a_time(self, stage, packing):
        """Against every sample in a row of its own, without gathering or accumulation."""
        model = tiny_model(is_trained=True)
        batches = shared_batches(2 if stage == "dpo" else 1, packing)
        reference, shape = batches._ref_logp_NU, (12, batches.num_reply_tokens)
        is_on_policy = stage in ("grpo", "ppo")
        behavior, temperature = reference, 1.0
        if is_on_policy:
            behavior = stream(0, "behavior").normal(-7.0, 0.3, shape).astype(np.float32)
            batches.temperature = temperature = 0.7
            batches.set_behavior(behavior)
        graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
        loss_fn = {
            "sft": sft,
            "jpo": loss_of(JPO),
            "alol": loss_of(ALoLConfig()),
            "dpo": loss_of(DPOConfig(beta=0.2)),
            "grpo": loss_of(GRPOConfig(kl_coef=0.3)),
            "ppo": loss_of(PPOConfig(kl_coef=0.3)),
        }[stage]
        trainer = Trainer(graphdef, loss_fn, SFT, num_steps=1)
        made = batches.step(0).batches
        assert len(made) >= 2
        grads, metrics = trainer.gradients(lora, frozen, made)

        def loss(logp_NT):
            logps = [
                logp_NT[i, len(e.prompt_ids) - 1 : len(e.prompt_ids) + len(e.response_ids) - 1]
                for i, e in enumerate(EXAMPLES)
            ]
            if stage == "sft":
                return -jnp.concatenate(logps).mean()
            if stage == "alol":
                weighted = [max(a, 0) * logp_U for a, logp_U in zip(ADVANTAGES, logps, strict=True)]
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
                log_ratio_U = logp_U - behavior[i, : len(logp_U)]
                rho = jnp.exp(log_ratio_U if is_on_policy else log_ratio_U.mean(keepdims=True))
                a = ADVANTAGES[i]
                surrogate.append(jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.2) * a))
                kl.append(jnp.exp(ref_U - logp_U) - (ref_U - logp_U) - 1)
            return 0.3 * jnp.concatenate(kl).mean() - jnp.concatenate(surrogate).mean()

        logp_NT, pull = jax.vjp(
            lambda lora: lone_logprobs(graphdef, lora, frozen, jnp.float32(temperature)), lora
        )
        value, slope_NT = jax.jit(jax.value_and_grad(loss))(logp_NT)
        (expected,) = pull(slope_NT)
        assert_trees_close(grads, expected, rtol=1e-5)
        name = "policy/loss" if stage == "jpo" or is_on_policy else f"{stage}/loss"
        np.testing.assert_allclose(add_metrics(metrics)[name], value, rtol=1e-5)

    def test_log_probs_of_a_sample_are_its_own_in_every_row(self):
        model = tiny_model(is_trained=True)
        found = []
        for packing, max_micro_tokens in (("none", 512), ("tree", 64), ("sequence", 64)):
            made = shared_batches(packing=packing, max_micro_tokens=max_micro_tokens)
            found.append(with_reference(made, model)._ref_logp_NU)
        for others in found[1:]:
            np.testing.assert_allclose(others, found[0], rtol=1e-5, atol=1e-5)

    def test_micro_batches_add_up_to_one_big_batch(self):
        model = tiny_model(is_trained=True)
        graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
        found, counts = [], []
        for max_micro_tokens in (64, 1024):
            batches = shared_batches(packing="none", max_micro_tokens=max_micro_tokens)
            made = batches.step(0).batches
            trainer = Trainer(graphdef, sft, SFT, num_steps=1)
            found.append(trainer.gradients(lora, frozen, made)[0])
            counts.append(len(made))
        assert counts[0] > 2 * counts[1]
        assert_trees_close(*found, rtol=1e-5)

    def test_the_head_in_chunks_is_the_head_at_once(self, monkeypatch):
        model = tiny_model(is_trained=True)
        graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
        made = shared_batches(packing="none").step(0).batches
        found = []
        for rows in (10**6, 7):
            monkeypatch.setattr(trainer_module, "LOGITS_PER_CHUNK", rows * CONFIG.vocab_size)
            loss_fn = sft if rows > 7 else lambda *args: sft(*args)  # a program of its own
            trainer = Trainer(graphdef, loss_fn, SFT, num_steps=1)
            grads, metrics = trainer.gradients(lora, frozen, made)
            found.append((grads, add_metrics(metrics)["sft/loss"]))
        (at_once, loss), (in_chunks, loss_in_chunks) = found
        np.testing.assert_allclose(loss_in_chunks, loss, rtol=1e-6)
        assert_trees_close(in_chunks, at_once, rtol=1e-5)


class TestTrainer:
    def test_a_step_moves_lora_and_nothing_else(self):
        model = tiny_model()
        graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
        before, base = leaves(lora), leaves(frozen)
        trainer = Trainer(graphdef, sft, SFT, num_steps=2)
        state, _ = trainer.step(
            trainer.init(lora), frozen, shared_batches(packing="none").step(0).batches
        )
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
        batches = packed(SHORT * 2, batch_size=6, max_micro_tokens=256)
        graphdef, lora, frozen = nnx.split(tiny_model(), LoRAParam, ...)
        assert 1 < len(batches.shapes) < batches.num_steps
        chex.clear_trace_counter()

        @chex.assert_max_traces(n=len(batches.shapes))
        def counted(logp_SU, batch):
            return sft(logp_SU, batch)

        trainer = Trainer(graphdef, counted, SFT, num_steps=batches.num_steps)
        state = trainer.init(lora)
        num_before = trainer_module._accumulate._cache_size()
        for number in range(batches.num_steps):
            state, _ = trainer.step(state, frozen, batches.step(number).batches)
        # Nor is anything compiled again for arrays that only lie elsewhere.
        assert trainer_module._accumulate._cache_size() - num_before == len(batches.shapes)

    def test_a_step_hands_nothing_over_between_host_and_device(self):
        graphdef, lora, frozen = nnx.split(tiny_model(), LoRAParam, ...)
        trainer = Trainer(graphdef, sft, SFT, num_steps=2)
        made = shared_batches(packing="none").step(0).batches
        state, placed = trainer.init(lora), trainer.put(made)
        with jax.transfer_guard("disallow"):
            state, metrics = trainer.step(state, frozen, placed)
            with pytest.raises(Exception, match=r"[Dd]isallowed host-to-device transfer"):
                trainer.step(state, frozen, made)
        assert np.isfinite(list(add_metrics(metrics).values())).all()

    def test_a_gradient_that_is_not_finite_changes_no_weight(self):
        graphdef, lora, frozen = nnx.split(tiny_model(is_trained=True), LoRAParam, ...)
        first, *others = shared_batches().step(0).batches
        spoilt = first._replace(advantages_S=np.full_like(first.advantages_S, np.nan))
        trainer = Trainer(graphdef, loss_of(JPO), SFT, num_steps=2)
        state, metrics = trainer.step(trainer.init(lora), frozen, [spoilt, *others])
        assert np.isnan(add_metrics(metrics)["optimizer/grad_norm"])
        for old, new in zip(leaves(lora), leaves(state.lora), strict=True):
            np.testing.assert_array_equal(old, new)
        assert all(np.isfinite(leaf).all() for leaf in leaves(state.opt_state))
        assert int(state.step) == 1

    def test_at_step_0_the_ratio_is_1_and_the_kl_0(self):
        model = tiny_model(is_trained=True)
        batches = with_reference(shared_batches(), model)
        graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
        trainer = Trainer(graphdef, loss_of(JPO), SFT, num_steps=1)
        metrics = add_metrics(trainer.gradients(lora, frozen, batches.step(0).batches)[1])
        np.testing.assert_allclose(metrics["policy/ratio_mean"], 1, rtol=1e-6)
        assert abs(metrics["policy/kl_k3"]) < 1e-10
        assert metrics["policy/clip_fraction"] == 0
        np.testing.assert_allclose(metrics["policy/surrogate"], ADVANTAGES.mean(), rtol=1e-5)

    def test_the_learning_rate_warms_up_and_falls_towards_0(self):
        def rates(num_steps):
            trainer = Trainer(nnx.graphdef(tiny_model()), loss_of(SFT), SFT, num_steps)
            return np.asarray(jax.jit(trainer.optimizer.rate)(np.arange(num_steps or 3)))

        found = rates(200) / SFT.learning_rate
        warmup = round(200 * SFT.warmup_fraction)
        theirs = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, 201)
        expected = jax.jit(theirs)(np.arange(1, 201))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[:warmup], (np.arange(warmup) + 1) / warmup, rtol=1e-6)
        assert all(a > b for a, b in itertools.pairwise(found[warmup - 1 :])) and found[-1] > 0
        np.testing.assert_allclose(rates(1), SFT.learning_rate, rtol=1e-6)
        np.testing.assert_allclose(rates(None), SFT.learning_rate, rtol=1e-6)

    def test_trainings_of_other_rates_kappas_and_lengths_share_their_programs(self):
        model = tiny_model(is_trained=True)
        graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
        noise = stream(0, "noise")
        batches = [
            one._replace(ref_logp_SU=noise.normal(one.ref_logp_SU, 0.05).astype(np.float32))
            for one in with_reference(shared_batches(), model).step(0).batches
        ]

        def train(config, loss_fn, num_steps=9):
            trainer = Trainer(graphdef, loss_fn, config, num_steps)
            state, metrics = trainer.step(trainer.init(lora), frozen, trainer.put(batches))
            return add_metrics(metrics), leaves(state.lora)

        train(JPO, loss_of(JPO), num_steps=7)
        programs = trainer_module._accumulate, trainer_module._update
        sizes = [program._cache_size() for program in programs]
        other = dataclasses.replace(JPO, kappa=0.5, clip=0.02, kl_coef=0.1, learning_rate=3e-4)
        found, changed = train(other, loss_of(other))
        assert [program._cache_size() for program in programs] == sizes
        constants = functools.partial(OBJECTIVES["jpo"].loss, other)
        expected, weights = train(other, constants)
        assert [program._cache_size() for program in programs] == [sizes[0] + 1, sizes[1]]
        assert 0 < found["policy/clip_fraction"] < 1
        assert found == pytest.approx(expected, rel=1e-5)
        assert_trees_close(changed, weights, rtol=1e-4)
        moved = max(np.abs(a - b).max() for a, b in zip(changed, leaves(lora), strict=True))
        assert moved == pytest.approx(3e-4, rel=0.1)  # a first step of Adam
