"""Generation: equal to Hugging Face's greedy search, independent of neighbours, few programs."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emodistill import seeding
from emodistill.errors import InputError
from emodistill.model import sampling
from emodistill.model.lora import LoRAParam, add_lora, target_layers
from emodistill.model.sampling import generate
from emodistill.model.weights import load_qwen2

EOS = 100
PREFILL = sampling._prefill


def prompts_of(lengths, vocab_size=100):
    rng = seeding.stream(0, "test-prompts")
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_qwen2(tiny_checkpoint, dtype=jnp.float32)


@pytest.fixture
def at_most(monkeypatch):
    """`at_most(n)`: from now on no more than n programs may be made."""

    def limit(num_programs):
        sampling._program.clear_cache()
        chex.clear_trace_counter()
        counted = chex.assert_max_traces(PREFILL, n=num_programs)
        monkeypatch.setattr(sampling, "_prefill", counted)

    return limit


def sample(model, prompts, seeds=None, **changes):
    arguments = {
        "max_new_tokens": 12,
        "temperature": 1.0,
        "eos_ids": (7, 9, 11),
        "seeds": seeds or list(range(len(prompts))),
        "width": 4,
        "buckets": (8, 16),
    }
    return generate(model, prompts, **(arguments | changes))


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
    changes = {"max_new_tokens": 30, "temperature": 0, "width": 2, "buckets": (8,)}
    assert sample(model, prompts, eos_ids=(stop,), **changes) == cut


def test_tokens_depend_on_the_request_alone(model, at_most):
    at_most(2)  # one of each bucket
    prompts = prompts_of([3, 8, 12, 5, 16, 7, 2, 8, 6])
    seeds = [11, 12, 13, 14, 15, 16, 17, 18, 19]
    crowd = sample(model, prompts, seeds)
    alone = [sample(model, [p], [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert crowd == alone
    order = [4, 2, 8, 0, 6, 1, 3, 7, 5]
    permuted = sample(model, [prompts[i] for i in order], [seeds[i] for i in order])
    assert permuted == [crowd[i] for i in order]


def test_seeds_decide(model):
    prompt = prompts_of([6])[0]
    same = sample(model, [prompt] * 3, [5, 5, 5])
    assert same[0] == same[1] == same[2]
    assert len({tuple(ids) for ids in sample(model, [prompt] * 4, [1, 2, 3, 4])}) == 4


def test_stops_at_eos_and_at_the_limit(model):
    prompts = prompts_of([6] * 30)
    many = sample(model, prompts, eos_ids=range(0, 512, 16))
    assert len({len(ids) for ids in many}) > 2
    for ids in many:
        stops = [token % 16 == 0 for token in ids]
        assert not any(stops[:-1])
        assert stops[-1] or len(ids) == 12
    free = sample(model, prompts[:2], eos_ids=())
    assert [len(ids) for ids in free] == [12, 12]
    # What comes before the stop is what would have come without it.
    assert many[0] == sample(model, prompts[:1], eos_ids=())[0][: len(many[0])]
    one = sample(model, prompts[:2], eos_ids=range(512))
    assert [len(ids) for ids in one] == [1, 1]


def test_one_program_per_bucket(tiny_checkpoint, at_most):
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    at_most(1)
    buckets = (4, 8)
    for changes in ({}, {"temperature": 0.3}, {"eos_ids": (1,)}, {"seeds": [5] * 5}):
        sample(model, prompts_of([1, 2, 4, 3, 4]), buckets=buckets, **changes)
    # New weights of the same shape need no new program, and are used.
    before = sample(model, prompts_of([4]), temperature=0.0, buckets=buckets)
    norm = model.norm
    norm.weight.set_value(-norm.weight[...])
    assert sample(model, prompts_of([4]), temperature=0.0, buckets=buckets) != before
    with pytest.raises(AssertionError, match="traced > 1 times"):
        sample(model, prompts_of([5, 4]), buckets=buckets)


def test_adapter_takes_part_and_programs_are_kept(tiny_checkpoint, at_most):
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)

    def greedy():
        changes = {"max_new_tokens": 3, "temperature": 0, "width": 2, "buckets": (4,)}
        return sample(model, prompts_of([3]), eos_ids=(), **changes)

    at_most(2)  # without an adapter and with one
    base = greedy()
    assert greedy() == base
    add_lora(model, rank=2, alpha=64, targets=("o_proj",))
    assert greedy() == base
    lora = target_layers(model)["o_proj"].lora
    lora.b = LoRAParam(jnp.ones_like(lora.b[...]))
    assert greedy() != base


def test_samples_follow_the_softmax(model):
    """First tokens of many seeds against the model's own probabilities."""
    prompt = prompts_of([5])[0]
    probabilities_V = np.asarray(jax.nn.softmax(model(jnp.array([prompt]))[0, -1] / 0.1))
    num_draws = 400
    drawn = sample(model, [prompt] * num_draws, temperature=0.1, eos_ids=range(512))
    counts_V = np.bincount([token for (token,) in drawn], minlength=512)
    likeliest = int(probabilities_V.argmax())
    expected = probabilities_V[likeliest]
    assert 0.05 < expected < 0.95
    spread = 4 * np.sqrt(expected * (1 - expected) / num_draws)
    assert abs(counts_V[likeliest] / num_draws - expected) < spread


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
        ({"width": 0}, "width=0"),
        ({"buckets": ()}, "buckets="),
        ({"eos_ids": (512,)}, "eos_ids holds 512, outside 0 … 511"),
        ({"seeds": [1, 2]}, "2 seeds for 1 prompts"),
    ],
    ids=str,
)
def test_bad_requests_are_named(model, changes, message):
    arguments = {"prompts": [[1, 2, 3]], **changes}
    with pytest.raises(InputError, match=message):
        sample(model, **arguments)


def test_no_prompts_give_no_replies(model):
    assert sample(model, []) == []
