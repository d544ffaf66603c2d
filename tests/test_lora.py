"""LoRA: nothing at the start, PEFT's gradients afterwards, and nothing else is trained."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from model_outputs import logits

from emodistill import seeding
from emodistill.errors import InputError
from emodistill.model.adapters import _name
from emodistill.model.config import ATTENTION_TARGETS, TARGETS
from emodistill.model.lora import LoRAParam, add_lora, target_layers
from emodistill.model.weights import load_qwen2

TOKENS_BT = seeding.stream(0, "test-lora").integers(0, 100, (2, 12))


def mean_loss(graphdef, frozen, tokens_BT):
    def loss(lora):
        model = nnx.merge(graphdef, lora, frozen)
        logp_BTV = jax.nn.log_softmax(model(tokens_BT[:, :-1]))
        return -jnp.mean(jnp.take_along_axis(logp_BTV, tokens_BT[:, 1:, None], axis=-1))

    return loss


def set_random_b(model, scale=0.1):
    rng = seeding.stream(0, "random-b")
    for layer in target_layers(model).values():
        if layer.lora is not None:
            b = scale * rng.standard_normal(layer.lora.b.shape)
            layer.lora.b = LoRAParam(jnp.asarray(b, jnp.float32))


def test_starts_as_identity_and_as_peft_does(tiny_checkpoint):
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    before = logits(model, TOKENS_BT)
    add_lora(model, rank=8, alpha=16, targets=TARGETS, rng=seeding.jax_key(3, "test"))
    np.testing.assert_array_equal(logits(model, TOKENS_BT), before)
    for name, layer in target_layers(model).items():
        L, O, I = layer.weight.shape  # noqa: E741
        assert layer.lora.a.shape == (L, 8, I), name
        assert layer.lora.b.shape == (L, O, 8), name
        assert layer.lora.a.dtype == layer.lora.b.dtype == jnp.float32
        assert not layer.lora.b[...].any()
        # kaiming_uniform(a=sqrt(5)): uniform in +-1/sqrt(I), each layer its own.
        a_LRI = np.asarray(layer.lora.a[...])
        assert np.abs(a_LRI).max() <= I**-0.5
        np.testing.assert_allclose(a_LRI.std(), (3 * I) ** -0.5, rtol=0.1)
        assert not np.array_equal(a_LRI[0], a_LRI[1])
    values = [np.asarray(layer.lora.a[...]).ravel()[:5] for layer in target_layers(model).values()]
    assert len({v.tobytes() for v in values}) == len(TARGETS)


def test_the_key_decides(tiny_checkpoint):
    def first_factor(**arguments):
        model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
        add_lora(model, rank=2, **arguments)
        return np.asarray(model.layers.self_attn.q_proj.lora.a[...])

    default = first_factor()
    np.testing.assert_array_equal(default, first_factor(rng=seeding.jax_key(0, "lora")))
    assert not np.array_equal(default, first_factor(rng=seeding.jax_key(1, "lora")))


def test_split_separates_what_is_trained(tiny_checkpoint):
    model = load_qwen2(tiny_checkpoint)  # bfloat16 base
    add_lora(model)
    assert model.lora.targets == ATTENTION_TARGETS
    _, lora, frozen = nnx.split(model, LoRAParam, ...)
    assert len(jax.tree.leaves(lora)) == 8
    assert {leaf.dtype for leaf in jax.tree.leaves(lora)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype("bfloat16")}
    assert not jax.tree.leaves(nnx.state(load_qwen2(tiny_checkpoint), LoRAParam))


def test_one_step_moves_only_lora_and_lowers_the_loss(tiny_checkpoint):
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    add_lora(model, rank=4, alpha=8)
    graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
    before = jax.tree.map(np.array, frozen)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(lora, frozen, state):
        value, gradient = jax.value_and_grad(mean_loss(graphdef, frozen, jnp.asarray(TOKENS_BT)))(
            lora
        )
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(lora, updates), state, value

    # Where the LoRA lies, as it will after a step: one program.
    state = jax.device_put(optimizer.init(lora), jax.devices()[0])
    losses, start = [], jax.tree.map(np.array, lora)
    for _ in range(5):
        lora, state, value = step(lora, frozen, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), lora, start)
    assert all(jax.tree.leaves(moved))
    nnx.update(model, lora)
    for a, b in zip(
        jax.tree.leaves(nnx.split(model, LoRAParam, ...)[2]), jax.tree.leaves(before), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_outputs_and_gradients_equal_peft(make_hf_checkpoint):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    folder, hf = make_hf_checkpoint(tie_word_embeddings=True)
    model = load_qwen2(folder, dtype=jnp.float32)
    add_lora(model, rank=4, alpha=12, targets=TARGETS)
    set_random_b(model)
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=list(TARGETS), lora_dropout=0.0)
    theirs = peft.get_peft_model(hf, config)
    parameters = dict(theirs.named_parameters())

    def peft_name(layer, target, factor):
        # In a live model the adapter's name stands before ".weight".
        return _name(layer, target, factor).replace(".weight", ".default.weight")

    with torch.no_grad():
        for target, layer in target_layers(model).items():
            for i in range(3):
                for factor, values in (("A", layer.lora.a), ("B", layer.lora.b)):
                    parameters[peft_name(i, target, factor)].copy_(
                        torch.from_numpy(np.array(values[i]))
                    )
    tokens = torch.tensor(TOKENS_BT)
    said = theirs(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(said.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()

    graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
    value_and_grad = jax.jit(
        jax.value_and_grad(mean_loss(graphdef, frozen, jnp.asarray(TOKENS_BT)))
    )
    value, gradient = value_and_grad(lora)
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    nnx.update(model, gradient)  # gradients in the parameters' places, to read them by name
    for target, layer in target_layers(model).items():
        for factor, values in (("A", layer.lora.a), ("B", layer.lora.b)):
            expected = np.stack(
                [parameters[peft_name(i, target, factor)].grad.numpy() for i in range(3)]
            )
            error = np.abs(np.asarray(values[...]) - expected).max() / np.abs(expected).max()
            assert error < 1e-4, (target, factor)


def products(jaxpr):
    """All dot_generals, those within loops and calls too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def test_products_with_a_factor_are_float32_throughout(tiny_checkpoint):
    """By default a TPU would round their operands to bfloat16, a GPU to TF32."""
    model = load_qwen2(tiny_checkpoint)
    rank = 7  # no other dimension is
    add_lora(model, rank=rank, targets=TARGETS)
    graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
    loss = mean_loss(graphdef, frozen, jnp.asarray(TOKENS_BT))
    found = [
        equation.params["precision"]
        for equation in products(jax.make_jaxpr(jax.grad(loss))(lora).jaxpr)
        if any(rank in variable.aval.shape for variable in (*equation.invars, *equation.outvars))
    ]
    # Two forward and two for each of their operands backward.
    assert len(found) >= 6 * len(TARGETS)
    assert set(found) == {(jax.lax.Precision.HIGHEST,) * 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank=0 must be a positive integer"),
        ({"alpha": 0}, "alpha=0 must be positive"),
        ({"targets": ("q_proj", "w_proj")}, r"unknown: \['w_proj'\]"),
        ({"targets": ()}, "must be some of q_proj"),
    ],
    ids=str,
)
def test_impossible_adapters_are_refused(tiny_checkpoint, arguments, message):
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    with pytest.raises(InputError, match=message):
        add_lora(model, **arguments)
    assert model.lora is None


def test_adding_twice_is_refused(tiny_checkpoint):
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    add_lora(model, rank=4)
    with pytest.raises(InputError, match="already has a LoRA of rank 4"):
        add_lora(model)
