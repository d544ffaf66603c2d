"""Generation: equal to Hugging Face's greedy search, independent of neighbours, few programs."""

from __future__ import annotations

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from emodistill import seeding
from emodistill.errors import InputError
from emodistill.model import sampling
from emodistill.model.lora import LoRAParam, add_lora, target_layers
from emodistill.model.sampling import Generator, _keep_top, generate
from emodistill.model.weights import load_qwen2

EOS = 100
GENERATE = sampling._generate


def prompts_of(lengths, vocab_size=100):
    rng = seeding.stream(0, "test-prompts")
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def generator(tiny_checkpoint):
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    return Generator(model, width=4, buckets=(8, 16))


@pytest.fixture
def at_most(monkeypatch):
    """`at_most(n)`: from now on no more than n programs may be made."""

    def limit(num_programs):
        sampling._program.clear_cache()
        chex.clear_trace_counter()
        counted = chex.assert_max_traces(GENERATE, n=num_programs)
        monkeypatch.setattr(sampling, "_generate", counted)

    return limit


def sample(generator, prompts, seeds=None, **changes):
    arguments = {"max_new_tokens": 12, "temperature": 1.0, "eos_ids": (7, 9, 11), **changes}
    return generator.generate(prompts, seeds=seeds or list(range(len(prompts))), **arguments)


def test_greedy_equals_hf(make_hf_checkpoint):
    torch = pytest.importorskip("torch")
    folder, hf = make_hf_checkpoint()
    model = load_qwen2(folder, dtype=jnp.float32)
    prompts = prompts_of([3, 5, 7, 8, 4])
    expected = []
    for prompt in prompts:
        with torch.no_grad():
            ids = hf.generate(
                torch.tensor([prompt]),
                max_new_tokens=30,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=EOS,
            )
        expected.append(ids[0, len(prompt) :].tolist())
    # A stop token that a greedy continuation does meet, so that stopping is compared as well.
    stop = expected[1][10]
    cut = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in expected]
    assert len(cut[1]) <= 11 and max(map(len, cut)) == 30
    found = Generator(model, width=2, buckets=(8,)).generate(
        prompts, max_new_tokens=30, temperature=0, seeds=[0] * 5, eos_ids=(stop,)
    )
    assert found == cut


def test_tokens_depend_on_the_request_alone(generator, at_most):
    at_most(2)  # one of each bucket
    prompts = prompts_of([3, 8, 12, 5, 16, 7, 2, 8, 6])
    seeds = [11, 12, 13, 14, 15, 16, 17, 18, 19]
    crowd = sample(generator, prompts, seeds)
    alone = [sample(generator, [p], [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert crowd == alone
    order = [4, 2, 8, 0, 6, 1, 3, 7, 5]
    permuted = sample(generator, [prompts[i] for i in order], [seeds[i] for i in order])
    assert permuted == [crowd[i] for i in order]


def test_seeds_decide(generator):
    prompt = prompts_of([6])[0]
    same = sample(generator, [prompt] * 3, [5, 5, 5])
    assert same[0] == same[1] == same[2]
    assert len({tuple(ids) for ids in sample(generator, [prompt] * 4, [1, 2, 3, 4])}) == 4


def test_stops_at_eos_and_at_the_limit(generator):
    prompts = prompts_of([6] * 30)
    many = sample(generator, prompts, eos_ids=range(0, 512, 16))
    assert len({len(ids) for ids in many}) > 2
    for ids in many:
        stops = [token % 16 == 0 for token in ids]
        assert not any(stops[:-1])
        assert stops[-1] or len(ids) == 12
    free = sample(generator, prompts[:2], eos_ids=())
    assert [len(ids) for ids in free] == [12, 12]
    # What comes before the stop is what would have come without it.
    assert many[0] == sample(generator, prompts[:1], eos_ids=())[0][: len(many[0])]
    one = sample(generator, prompts[:2], eos_ids=range(512))
    assert [len(ids) for ids in one] == [1, 1]


def test_one_program_per_bucket(tiny_checkpoint, at_most):
    generator = Generator(load_qwen2(tiny_checkpoint, dtype=jnp.float32), width=4, buckets=(4, 8))
    at_most(1)
    for changes in ({}, {"temperature": 0.3}, {"eos_ids": (1,)}, {"seeds": [5] * 5}):
        sample(generator, prompts_of([1, 2, 4, 3, 4]), **changes)
    # New weights of the same shape need no new program, and are used.
    before = sample(generator, prompts_of([4]), temperature=0.0)
    norm = generator.model.norm
    norm.weight.set_value(-norm.weight[...])
    assert sample(generator, prompts_of([4]), temperature=0.0) != before
    with pytest.raises(AssertionError, match="traced > 1 times"):
        sample(generator, prompts_of([5, 4]))


def test_adapter_takes_part_and_programs_are_kept(tiny_checkpoint, at_most):
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)

    def greedy():
        return generate(
            model,
            prompts_of([3]),
            max_new_tokens=3,
            temperature=0,
            seeds=[1],
            eos_ids=(),
            width=2,
            buckets=(4,),
        )

    at_most(2)  # without an adapter and with one
    base = greedy()
    assert greedy() == base
    add_lora(model, rank=2, alpha=64, targets=("o_proj",))
    assert greedy() == base
    lora = target_layers(model)["o_proj"].lora
    lora.b = LoRAParam(jnp.ones_like(lora.b[...]))
    assert greedy() != base


def test_samples_follow_the_softmax(generator):
    """First tokens of many seeds against the model's own probabilities, and the nucleus."""
    prompt = prompts_of([5])[0]
    logits_V = np.asarray(generator.model(jnp.array([prompt]))[0, -1]) / 0.1
    probabilities_V = np.exp(logits_V - logits_V.max())
    probabilities_V /= probabilities_V.sum()
    num_draws = 400

    def draw(top_p):
        ids = sample(
            generator,
            [prompt] * num_draws,
            temperature=0.1,
            eos_ids=range(512),
            top_p=top_p,
        )
        return np.bincount([i for (i,) in ids], minlength=512)

    likeliest = int(probabilities_V.argmax())
    expected = probabilities_V[likeliest]
    assert 0.05 < expected < 0.95
    spread = 4 * np.sqrt(expected * (1 - expected) / num_draws)
    assert abs(draw(1.0)[likeliest] / num_draws - expected) < spread
    counts_V = draw(0.5)
    order = np.argsort(-probabilities_V)
    num_kept = int(np.searchsorted(np.cumsum(probabilities_V[order]), 0.5)) + 1
    assert num_kept > 1
    assert counts_V[order[num_kept:]].sum() == 0
    assert (counts_V[order[:2]] > 0).all()


def test_nucleus_keeps_the_smallest_sufficient_set():
    logits_BV = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25]]))
    for top_p, kept in ((0.4, [1]), (0.6, [1, 3]), (0.8, [1, 2, 3]), (0.99, [0, 1, 2, 3])):
        found = _keep_top(logits_BV, jnp.float32(top_p))[0]
        assert np.flatnonzero(np.isfinite(found)).tolist() == kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": [[]]}, r"prompts\[0\] is empty"),
        (
            {"prompts": [[1] * 17]},
            r"prompts\[0\] has 17 tokens, more than the largest bucket \(16\)",
        ),
        ({"prompts": [[1, 512]]}, r"prompts\[0\] holds a token id outside 0 … 511"),
        ({"max_new_tokens": 4096}, "the model has room for 0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"eos_ids": (512,)}, "eos_ids holds 512, outside 0 … 511"),
        ({"seeds": [1, 2]}, "2 seeds for 1 prompts"),
    ],
    ids=str,
)
def test_bad_requests_are_named(generator, changes, message):
    arguments = {"prompts": [[1, 2, 3]], **changes}
    with pytest.raises(InputError, match=message):
        sample(generator, **arguments)


def test_bad_forms_are_named(generator):
    with pytest.raises(InputError, match="width=0"):
        Generator(generator.model, width=0)
    with pytest.raises(InputError, match="buckets="):
        Generator(generator.model, buckets=())
    assert sample(generator, []) == []
