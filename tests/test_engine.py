"""Generation: Hugging Face's greedy tokens, a request's own tokens whatever happens around it."""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from mesh_processes import finish, start
from model_outputs import logits

from emodistill import seeding
from emodistill.errors import InputError
from emodistill.model import (
    Engine,
    GenerationRequest,
    decoding,
    embedded_path,
    generate,
    kv_cache,
    load_qwen2,
)
from emodistill.model.kv_cache import BLOCK
from emodistill.model.lora import LoRAParam, add_lora, target_layers
from emodistill.model.programs import num_programs


def prompts_of(lengths, vocab_size=100, shared=()):
    rng = seeding.stream(0, "test-prompts")
    return [[*shared, *rng.integers(0, vocab_size, length).tolist()] for length in lengths]


SHARED = prompts_of([3 * BLOCK + 5])[0]
# None of them alike: shorter than a block, a whole number of blocks, more than a chunk, one token.
PROMPTS = [
    *prompts_of([3, BLOCK, BLOCK + 1, 1, 150], shared=()),
    *prompts_of([1, 7, 40, 85, BLOCK - 5, BLOCK - 4], shared=SHARED),
]


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_qwen2(tiny_checkpoint, dtype=jnp.float32)


def requests_of(prompts=PROMPTS, **changes):
    """Of each prompt one that samples, with settings of its own."""
    found = []
    for n, ids in enumerate(prompts):
        own = {"temperature": [1.0, 0.7, 0.0][n % 3], "top_p": [1.0, 0.8][n % 2], "seed": n}
        stops = frozenset({n, 7, 9})
        fields = {"max_new_tokens": 5 + 3 * n, "stop_ids": stops, **own, **changes}
        found.append(GenerationRequest(ids, **fields))
    return found


def small(model, **settings):
    """Its slots have a fixed length, so that most tests share programs; others let them grow.

    It is the length that `generate` takes for these prompts.
    """
    fixed = {"num_slots": 4, "max_kept_tokens": 40 * BLOCK, "max_tokens": 224}
    return Engine(model, **fixed | settings)


@pytest.fixture(scope="module")
def crowd(model):
    """What `requests_of()` get of an engine that they are given to all at once."""
    return small(model).generate(requests_of())


def hf_greedy(hf, prompt, num_tokens):
    import torch

    ids = torch.tensor([prompt])
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    # Without a mask HF would hide the prompt's own tokens 0 as padding.
    settings |= {"attention_mask": torch.ones_like(ids), "max_new_tokens": num_tokens}
    with torch.no_grad():
        found = hf.generate(ids, **settings)
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "architecture",
    ["qwen2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "llama"))],
)
def test_greedy_equals_hf(architecture, make_hf_checkpoint):
    folder, hf = make_hf_checkpoint(architecture)
    served = small(load_qwen2(folder, dtype=jnp.float32), max_tokens=512)
    prompts = [PROMPTS[n] for n in (0, 2, 8)]
    found = served.generate([GenerationRequest(ids, 64, 0.0) for ids in prompts])
    for prompt, generated in zip(prompts, found, strict=True):
        assert generated.ids == hf_greedy(hf, prompt, 64)
        assert generated.finish_reason == "length"
    # A token that a greedy continuation does meet ends it.
    stop = found[1].ids[10]
    (cut,) = served.generate([GenerationRequest(prompts[1], 64, 0.0, stop_ids=frozenset({stop}))])
    assert cut == (found[1].ids[: found[1].ids.index(stop) + 1], None, "stop")


def test_the_embedded_student_s_greedy_tokens_equal_hf():
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(embedded_path(), dtype=torch.float32).eval()
    served = small(load_qwen2(embedded_path(), dtype=jnp.float32), max_tokens=512)
    prompts = prompts_of([20, 300], vocab_size=2048)
    found = served.generate([GenerationRequest(ids, 64, 0.0) for ids in prompts])
    assert [one.ids for one in found] == [hf_greedy(hf, ids, 64) for ids in prompts]


@pytest.mark.slow
def test_the_embedded_student_s_greedy_tokens_equal_hf_as_it_ships(monkeypatch):
    """Two groups, whose chunks have no loop over the layers."""
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(decoding, "UNROLLED_LAYERS", 4)
    hf = AutoModelForCausalLM.from_pretrained(embedded_path(), dtype="float32").eval()
    served = Engine(load_qwen2(embedded_path(), dtype=jnp.float32), num_slots=16)
    prompts = prompts_of([20, 300, 45, 170, 31, 90, 250, 64, 128, 17], vocab_size=2048)
    found = served.generate([GenerationRequest(ids, 64, 0.0) for ids in prompts])
    assert [one.ids for one in found] == [hf_greedy(hf, ids, 64) for ids in prompts]


def test_tokens_depend_on_the_request_alone(model, crowd):
    requests = requests_of()
    assert len({len(one.ids) for one in crowd}) > 5
    served = small(model)
    assert [served.generate([request])[0] for request in requests] == crowd
    assert [small(model).generate([request])[0] for request in requests[-3:]] == crowd[-3:]
    order = [*range(5, 11), *range(5)]
    permuted = served.generate([requests[n] for n in order])  # everything is kept by now
    assert permuted == [crowd[n] for n in order]
    before = served.counters.prefilled_tokens
    assert served.generate(requests) == crowd
    kept = sum((len(ids) - 1) // BLOCK * BLOCK for ids in PROMPTS)
    again = served.counters.prefilled_tokens - before
    assert again == sum(len(ids) - 1 for ids in PROMPTS) - kept


@pytest.mark.parametrize("num_blocks", [0, 1, 3, pytest.param(8, marks=pytest.mark.slow)])
def test_what_is_evicted_changes_no_token(model, crowd, num_blocks):
    served = small(model, max_kept_tokens=num_blocks * BLOCK)
    for _ in range(2):
        assert served.generate(requests_of()) == crowd


def test_asking_for_logprobs_changes_no_token_and_gives_the_model_s(model, crowd):
    asked = small(model).generate(requests_of(num_logprobs=3))
    assert [one.ids for one in asked] == [one.ids for one in crowd]
    for prompt, generated in zip(PROMPTS, asked, strict=True):
        ids = prompt + generated.ids
        tokens_1T = np.zeros((1, 256), np.int32)  # one shape for all
        tokens_1T[0, : len(ids)] = ids
        logits_TV = np.asarray(logits(model, tokens_1T)[0], np.float64)
        logps_TV = logits_TV - np.logaddexp.reduce(logits_TV, axis=-1, keepdims=True)
        for n, token in enumerate(generated.ids):
            logps_V, found = logps_TV[len(prompt) - 1 + n], generated.logprobs[n]
            np.testing.assert_allclose(found.chosen, logps_V[token], atol=2e-5)
            tokens, likeliest = zip(*found.likeliest, strict=True)
            np.testing.assert_allclose(likeliest, logps_V[[*tokens]], atol=2e-5)
            np.testing.assert_allclose(likeliest, np.sort(logps_V)[: -1 - 3 : -1], atol=2e-5)


def test_log_probs_of_the_chosen_token_alone_and_of_too_many(model):
    (one,) = small(model).generate(requests_of(num_logprobs=0)[:1])
    assert one.logprobs is not None and all(token.likeliest == () for token in one.logprobs)
    with pytest.raises(InputError, match="num_logprobs=21 must lie between 0 and 20"):
        small(model).generate(requests_of(num_logprobs=21))


def test_requests_join_and_leave_between_steps(model, crowd):
    requests = requests_of()
    served, waiting, found, handles = small(model), list(requests), {}, {}
    said = {}
    while waiting or served.num_unfinished:
        for request in waiting[:2]:
            handles[served.add(request)] = requests.index(request)
        del waiting[:2]
        for handle, ids, logprobs, generated in served.step():
            said.setdefault(handle, []).extend(ids)
            assert logprobs is None
            if generated is not None:
                found[handles[handle]] = generated
                assert said[handle] == generated.ids
    assert [found[n] for n in range(len(requests))] == crowd
    assert served.step() == []


def test_a_cancelled_request_leaves_no_trace(model):
    requests = requests_of(max_new_tokens=20)
    expected = small(model).generate(requests[4:6])
    served = small(model)
    handles = [served.add(request) for request in requests]
    served.step()
    for n in (*range(4), *range(6, len(handles))):
        served.cancel(handles[n])
    found = {}
    while served.num_unfinished:
        found |= {one.handle: one.generated for one in served.step() if one.generated}
    assert [found.get(handle) for handle in handles[4:6]] == expected


@pytest.fixture(scope="module")
def alone(model):
    """What `requests_of()` get of an engine of one group of eight slots."""
    return small(model, num_slots=8).generate(requests_of())


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an accelerator has one group")
class TestGroups:
    """A small model's 16 slots are two groups of 8, which run side by side."""

    def test_tokens_are_those_of_one_group(self, model, alone):
        served = small(model, num_slots=16)
        assert len(served._groups) == 2
        for _ in range(2):
            assert served.generate(requests_of()) == alone
        assert served.counters.programs == 0  # they have the programs of a group of their width
        assert served.counters.generated_tokens == 2 * sum(len(one.ids) for one in alone)
        assert served.num_unfinished == 0 and served.step() == []

    def test_they_share_what_is_kept(self, model, alone):
        served = small(model, num_slots=16)
        requests = requests_of()
        assert served.generate(requests[-1:]) == alone[-1:]
        # Of two requests each group gets one, so that the same prompt comes to the other group.
        assert served.generate([requests[0], requests[-1]]) == [alone[0], alone[-1]]
        whole = (len(PROMPTS[-1]) - 1) // BLOCK * BLOCK
        rest = len(PROMPTS[-1]) - 1 - whole
        assert served.counters.prefilled_tokens == whole + 2 * rest + len(PROMPTS[0]) - 1

    def test_requests_are_cancelled_while_both_run(self, model, alone):
        served = small(model, num_slots=16)
        handles = [served.add(request) for request in requests_of()]
        progress = served.step()
        for handle in handles[::2]:
            served.cancel(handle)
        while served.num_unfinished:
            progress += served.step()
        found = {one.handle: one.generated for one in progress if one.generated}
        assert [found[handle] for handle in handles[1::2]] == alone[1::2]

    def test_a_failure_in_one_reaches_the_caller(self, model, monkeypatch):
        def fail(*args):
            raise RuntimeError("out of memory")

        served = small(model, num_slots=16)
        monkeypatch.setattr(decoding, "decode", fail)
        served.add(requests_of()[0])
        with pytest.raises(RuntimeError, match="out of memory"):
            served.step()


def test_a_dialogue_s_next_turn_prefills_what_is_new(model):
    served = small(model, max_kept_tokens=200 * BLOCK)
    rng = seeding.stream(0, "turns")

    def words(number):
        return rng.integers(0, 100, number).tolist()

    rules = words(100)
    dialogues = [rules + words(12) for _ in range(6)]
    for _ in range(5):
        found = served.generate([GenerationRequest(ids, 8, 1.0) for ids in dialogues])
        dialogues = [
            ids + generated.ids + words(12) for ids, generated in zip(dialogues, found, strict=True)
        ]
    counters = served.counters
    assert counters.prompt_tokens > 4_000
    assert counters.prefilled_tokens < 0.3 * counters.prompt_tokens
    assert counters.generated_tokens == 6 * 5 * 8


def test_prompts_that_arrive_together_share_their_beginning(model):
    served = small(model)
    served.generate(requests_of([SHARED + [n] * 3 for n in range(4)]))
    own = (len(SHARED) - len(SHARED) % BLOCK) + 4 * (len(SHARED) % BLOCK + 2)
    assert served.counters.prefilled_tokens == own


def test_few_programs(tiny_checkpoint):
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    served = small(model, num_slots=5, max_tokens=450)  # no other test has programs of this width
    served.generate(requests_of())
    served.generate(requests_of())
    assert served.counters.programs == 4
    # Models of one architecture share programs; new weights are used.
    other = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    other.norm.weight.set_value(-other.norm.weight[...])
    before = num_programs()
    changed = small(other, num_slots=5, max_tokens=450).generate(requests_of())
    assert num_programs() == before
    assert changed != served.generate(requests_of())
    # A longer request needs longer slots, and programs for them, where their length is not fixed;
    # here those of the engine above.
    grows = small(model, num_slots=5, max_tokens=None)
    grows.generate(requests_of(PROMPTS[:1]))
    longer = grows.generate(requests_of([PROMPTS[0] * 100], max_new_tokens=3))
    assert longer == served.generate(requests_of([PROMPTS[0] * 100], max_new_tokens=3))
    assert 0 < num_programs() - before <= 2 * 5


def test_caches_begin_where_weights_lie(model):
    """As they go on, so that the programs for them are compiled once."""
    engine = small(model)
    (group,) = engine._groups
    weights = jax.tree.leaves([nnx.state(model), group._weights[1]])
    caches = (*group._slots, *group._kept.blocks)
    (place,) = {(x.sharding, x.committed) for x in weights}
    assert {(x.sharding, x.committed) for x in caches} == {place}


def test_adapter_takes_part(tiny_checkpoint):
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)

    def greedy():
        return small(model).generate(requests_of(PROMPTS[:2], temperature=0.0))

    base = greedy()
    add_lora(model, rank=2, alpha=64, targets=("o_proj",))
    assert greedy() == base
    lora = target_layers(model)["o_proj"].lora
    lora.b = LoRAParam(jnp.ones_like(lora.b[...]))
    assert greedy() != base


@pytest.mark.parametrize("name", ["prefill", "decode", "load_blocks", "keep_blocks"])
def test_caches_are_updated_in_place(model, name, monkeypatch):
    """The compiled programs give the memory of the caches back, and copy none of it."""
    lowered = {}

    def record(module, name):
        function = getattr(module, name)

        def call(*args):
            lowered[name] = function.lower(*args)
            return function(*args)

        monkeypatch.setattr(module, name, call)

    record({"prefill": decoding, "decode": decoding}.get(name, kv_cache), name)
    small(model, num_slots=3, max_tokens=4000).generate(requests_of([SHARED, SHARED]))
    program = lowered[name].compile()
    text = program.as_text()
    caches = ["f32[2,3,2,8,4096]", "f32[2,3,2,4096,8]"]
    if name == "keep_blocks":
        caches = [f"f32[40,2,2,8,{BLOCK}]", f"f32[40,2,2,{BLOCK},8]"]
    for shape in caches:
        assert shape in text
        made = re.findall(rf"= {re.escape(shape)}\S* (\S+)\(", text)
        assert "copy" not in made, name
    aliases = re.search(r"input_output_alias=\{(.*?)\}, entry", text)
    assert aliases and aliases[1].count("may-alias") + aliases[1].count("must-alias") == 2
    size = sum(4 * int(np.prod(json.loads(shape[3:]))) for shape in caches)
    assert program.memory_analysis().temp_size_in_bytes < size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": []}, r"the prompt is empty"),
        ({"ids": [1, 512]}, r"the prompt holds a token id outside 0 … 511"),
        ({"ids": [1] * 90, "max_new_tokens": 11}, "has 90 tokens, but .* there is room for 89"),
        ({"max_new_tokens": 4096}, "there is room for 0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"stop_ids": frozenset({512})}, "stop_ids holds 512, outside 0 … 511"),
    ],
    ids=str,
)
def test_bad_requests_are_named(model, changes, message):
    request = GenerationRequest([1, 2, 3], 12, 1.0)._replace(**changes)
    with pytest.raises(InputError, match=message):
        small(model, max_tokens=100).add(request)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_slots": 0}, "num_slots=0"),
        ({"max_tokens": 5000}, "max_tokens=5000 must lie between 2 and the model's 4096"),
        ({"max_kept_tokens": -1}, "max_kept_tokens=-1"),
    ],
    ids=str,
)
def test_bad_engines_are_named(model, settings, message):
    with pytest.raises(InputError, match=message):
        small(model, **settings)


def sample(model, prompts, **changes):
    """`generate` with few slots."""
    arguments = {"max_new_tokens": 12, "temperature": 1.0, "eos_ids": (7, 9, 11), "num_slots": 4}
    return generate(model, prompts, **({"seeds": list(range(len(prompts)))} | arguments | changes))


def test_generate_is_the_engine(model):
    prompts = PROMPTS[:6]
    expected = small(model).generate(
        GenerationRequest(ids, 12, 1.0, seed=seed, stop_ids=frozenset({7, 9, 11}))
        for seed, ids in enumerate(prompts)
    )
    assert sample(model, prompts) == [one.ids for one in expected]
    assert sample(model, []) == []
    same = sample(model, [PROMPTS[4]] * 4, seeds=[1, 2, 3, 1])  # as long as the longest above
    assert same[0] == same[3] and len({tuple(ids) for ids in same}) == 3
    with pytest.raises(InputError, match="2 seeds for 1 prompts"):
        sample(model, PROMPTS[:1], seeds=[1, 2])
    with pytest.raises(InputError, match=r"prompts\[1\] is empty"):
        sample(model, [[1], []])


@pytest.mark.slow  # test_sharding has a case that is not
def test_sharded_weights_give_one_device_s_tokens(tiny_checkpoint, model, tmp_path):
    expected = small(model).generate(requests_of(temperature=0.0))
    out = tmp_path / "out.json"
    prompts = json.dumps(PROMPTS)
    finish(start(out, "generate", tiny_checkpoint, "1x2x4", prompts, num_devices=8))
    assert json.loads(out.read_text()) == [one.ids for one in expected]
