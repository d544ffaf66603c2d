"""Canaries: what an export writes, and what a check says of servers that are and aren't in order.

The servers answer with real log-probs of our own model: with the adapter, without it, with another
scale, with another adapter; and in the ways in which servers write tokens.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import json
import math
import runpy
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aiohttp import web
from chat_server import ChatServer, endless, fault, ok
from flax import nnx
from model_outputs import logits
from served import served as served_by_us

from emodistill import seeding, stages
from emodistill.configs import ExportAdapterConfig, ServeConfig, VerifyConfig
from emodistill.errors import ApiError, InputError
from emodistill.evaluation import canary_making
from emodistill.evaluation.canaries import CANARIES_FILE, read_canaries
from emodistill.evaluation.canary_check import Measured, by_logprobs, verify_adapter
from emodistill.llm.token_scores import LOWEST, read_token_scores
from emodistill.model import (
    LoRAParam,
    adapted,
    add_lora,
    decode_reply,
    embedded_path,
    encode_chat,
    generate,
    load_qwen2,
    load_tokenizer,
    save_adapter,
    stop_ids,
    template_sha256,
)
from emodistill.model.lora import target_layers

ROOT = Path(__file__).resolve().parents[1]
B_STD = 0.025
NUM_CANDIDATES, NUM_CANARIES = 8, 3
CONTROL = "\x1b[31mred\x1b[0m"


def with_adapter(base, folder, *, factor=1, seed="a"):
    """`base` with an adapter whose B is random times `factor`, which `folder` then holds."""
    model = nnx.merge(*nnx.split(base))
    add_lora(model, rank=16, alpha=32)  # as in training: engines find their programs
    rng = seeding.stream(0, "canary-adapter", seed)
    for layer in target_layers(model).values():
        if layer.lora is not None:
            b = factor * B_STD * rng.standard_normal(layer.lora.b.shape)
            layer.lora.b = LoRAParam(jnp.asarray(b, jnp.float32))
    save_adapter(model, folder, "embedded")
    return adapted(base, folder)


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """The embedded student in each state in which a server may have it, and its tokenizer."""
    folder = tmp_path_factory.mktemp("adapters")
    base = load_qwen2(embedded_path(), dtype=jnp.float32)
    models = {
        "base": base,
        "adapter": with_adapter(base, folder / "adapter"),
        "twice": with_adapter(base, folder / "twice", factor=2),
        "half": with_adapter(base, folder / "half", factor=0.5),
        "other": with_adapter(base, folder / "other", seed="b"),
    }
    return folder, models, load_tokenizer(embedded_path())


@functools.lru_cache
def fingerprint(model):
    """What tells models of other weights apart."""
    leaves = jax.tree.leaves(nnx.state(model))
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


@pytest.fixture(scope="module")
def asked_once():
    """A model of the same weights that is asked the same thing again is not computed again."""
    known = {}

    def once(function):
        def call(model, *args, **settings):
            state = fingerprint(model), repr(nnx.graphdef(model))  # the scale is no weight
            key = json.dumps([function.__name__, *state, args, str(settings)])
            if key not in known:
                known[key] = function(model, *args, **settings)
            return known[key]

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canary_making, "NUM_CANDIDATES", NUM_CANDIDATES)
        for name in ("generate", "reply_logprobs"):
            patch.setattr(canary_making, name, once(getattr(canary_making, name)))
        yield


@pytest.fixture(scope="module")
def exported(students, asked_once, tmp_path_factory):
    folder, *_ = students
    out = tmp_path_factory.mktemp("exported") / "peft"
    stages.export_adapter(
        ExportAdapterConfig(adapter=folder / "adapter", out=out, num_canaries=NUM_CANARIES)
    )
    return out


class Answers:
    """What a server with `model` says to a chat: its greedy reply, and log-probs [U, V]."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.known = model, tokenizer, {}

    def __call__(self, body):
        key = json.dumps(body["messages"]), body["max_tokens"]
        if key not in self.known:
            ids = encode_chat(self.tokenizer, body["messages"])
            (reply,) = generate(
                self.model,
                [ids],
                max_new_tokens=body["max_tokens"],
                temperature=0.0,
                seeds=[0],
                eos_ids=stop_ids(self.tokenizer),
            )
            logp_UV = canary_making.reply_logprobs(self.model, ids, reply)
            self.known[key] = len(ids), reply, logp_UV
        return self.known[key]


def logprobs(model, ids):
    """Of every next token after `ids`, by the whole model at once."""
    tokens = np.zeros((1, 512), np.int32)
    tokens[0, : len(ids)] = ids
    return np.asarray(jax.nn.log_softmax(logits(model, tokens)))[0, : len(ids)]


def as_text(tokenizer, token):
    return {"token": tokenizer.decode([token])}


def as_piece(tokenizer, token):
    return {"token": tokenizer.convert_ids_to_tokens(token)}


def as_token_id(tokenizer, token):
    return {"token": f"token_id:{token}"}


def as_bytes(tokenizer, token):
    """As llama.cpp's and OpenAI's servers: text that need not be whole, and its bytes."""
    return {"token": "?", "bytes": list(tokenizer.decode([token]).encode())}


def serving(answers, *, name=as_text, num_scores=5, columns=False):
    """A server's `respond` that answers as a whole OpenAI-compatible server does."""

    async def respond(call):
        num_prompt, reply, logp_UV = answers(call.body)
        tokenizer = answers.tokenizer
        response = {
            "choices": [{"message": {"content": decode_reply(tokenizer, reply)}, "index": 0}],
            "usage": {"prompt_tokens": num_prompt, "completion_tokens": len(reply)},
        }
        if call.body.get("logprobs") and num_scores is not None:
            entries = []
            for token, logp_V in zip(reply, logp_UV, strict=True):
                top = np.argsort(-logp_V)[:num_scores].tolist()
                entry = {**name(tokenizer, token), "logprob": float(logp_V[token])}
                entry["top_logprobs"] = [
                    {**name(tokenizer, one), "logprob": float(logp_V[one])} for one in top
                ]
                entries.append(entry)
            stated = {"content": entries}
            if columns:
                stated = {
                    "tokens": [entry["token"] for entry in entries],
                    "token_logprobs": [entry["logprob"] for entry in entries],
                    "top_logprobs": [
                        {one["token"]: one["logprob"] for one in entry["top_logprobs"]}
                        for entry in entries
                    ],
                }
            response["choices"][0]["logprobs"] = stated
        return web.json_response(response)

    return respond


@pytest.fixture(scope="module")
def answers(students):
    _, models, tokenizer = students
    return {name: Answers(model, tokenizer) for name, model in models.items()}


def served(respond, job):
    """`job(url, calls)` in this thread while a server in another one answers by `respond`."""
    started, stop = threading.Event(), None
    found = {}

    async def main():
        nonlocal stop
        stop = asyncio.Event()
        async with ChatServer(respond) as server:
            found.update(url=server.base_url, calls=server.calls, loop=asyncio.get_running_loop())
            started.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert started.wait(10)
        return job(found["url"], found["calls"])
    finally:
        found["loop"].call_soon_threadsafe(stop.set)
        thread.join()


def verdict(respond, folder, **settings):
    def job(url, calls):
        return verify_adapter(VerifyConfig(url=url, model="m", adapter=folder, **settings))

    return served(respond, job)


# What an export writes


def test_canaries_say_what_either_model_answers(exported, students):
    _, models, tokenizer = students
    canaries = read_canaries(exported)
    assert len(canaries.canaries) == NUM_CANARIES and canaries.effect > 0.2
    assert canaries.chat_template_sha256 == template_sha256(tokenizer)
    assert canaries.dtype == "float32"
    differing = [c.adapter.text != c.base.text for c in canaries.canaries]
    assert sum(differing) >= 2 and differing == sorted(differing, reverse=True)
    for canary in canaries.canaries[::2]:
        assert list(canary.prompt_ids) == encode_chat(tokenizer, canary.messages)
        for name, reply in (("adapter", canary.adapter), ("base", canary.base)):
            ids = [*canary.prompt_ids, *reply.ids]
            logps = {}
            for column, state in ((1, "adapter"), (2, "base")):
                logps[column] = logprobs(models[state], ids)[len(canary.prompt_ids) - 1 : -1]
            for i, row in enumerate(reply.scores):
                for token, *logp in row:
                    assert logp == pytest.approx([logps[c][i, token] for c in (1, 2)], abs=1e-3)
                assert len(row) >= canary_making.NUM_ALTERNATIVES
            own = logps[{"adapter": 1, "base": 2}[name]]
            assert list(reply.ids) == own.argmax(axis=1).tolist()


def test_peft_reads_the_folder_with_canaries_in_it(exported, students):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    hf = transformers.AutoModelForCausalLM.from_pretrained(embedded_path(), dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(hf, exported).eval()
    canary = read_canaries(exported).canaries[0]
    ids = [*canary.prompt_ids, *canary.adapter.ids]
    with torch.no_grad():
        logp = torch.log_softmax(theirs(torch.tensor([ids])).logits[0], -1).numpy()
    rows = logp[len(canary.prompt_ids) - 1 : -1]
    pairs = [(rows[i, t], a) for i, row in enumerate(canary.adapter.scores) for t, a, _ in row]
    assert max(abs(one - other) for one, other in pairs) < 1e-3


@pytest.mark.parametrize("form", [pytest.param("merged", marks=pytest.mark.slow), "gguf"])
def test_other_forms_carry_the_same_canaries(students, exported, tmp_path, form, capsys):
    if form == "gguf":
        pytest.importorskip("gguf")
    folder, models, tokenizer = students
    config = ExportAdapterConfig(
        adapter=folder / "adapter", out=tmp_path / form, num_canaries=NUM_CANARIES, form=form
    )
    out = stages.export_adapter(config)
    ours, peft = read_canaries(out), read_canaries(exported)
    assert ours.canaries == peft.canaries and ours.weights_sha256 is None
    assert peft.weights_sha256 is not None
    assert f"{NUM_CANARIES} canaries" in capsys.readouterr().out
    if form == "merged":
        merged = load_qwen2(out, dtype=jnp.float32)
        tokens = np.asarray([peft.canaries[0].prompt_ids])
        difference = np.abs(
            np.asarray(logits(merged, tokens)) - np.asarray(logits(models["adapter"], tokens))
        )
        assert difference.mean() < 0.1  # the embedded student's file is in bfloat16
        assert load_tokenizer(out).get_vocab() == tokenizer.get_vocab()
    else:
        assert (out / "adapter.gguf").is_file()


def test_a_cell_of_a_run_is_exported(tiny_run, tmp_path):
    config = ExportAdapterConfig(run=tiny_run, out=tmp_path / "out", num_canaries=0)
    out = stages.export_adapter(config)
    ours, theirs = (
        p / "adapter_model.safetensors" for p in (out, tiny_run / "crad/jpo/default/adapter")
    )
    assert ours.read_bytes() == theirs.read_bytes()
    assert not (out / CANARIES_FILE).exists()
    with pytest.raises(InputError, match="exists already"):
        stages.export_adapter(config)
    with pytest.raises(
        InputError, match=r"no finished adapter; finished cells of jpo: default; --cell"
    ):
        stages.export_adapter(dataclasses.replace(config, cell="x", out=tmp_path / "no"))
    with pytest.raises(InputError, match=r"train_alol\.py trains one"):
        stages.export_adapter(dataclasses.replace(config, trained_by="alol", out=tmp_path / "no"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_that_fails_leaves_nothing(students, tmp_path):
    folder, *_ = students
    pack = tmp_path / "pack"
    pack.mkdir()
    config = ExportAdapterConfig(adapter=folder / "adapter", out=tmp_path / "out", prompt_pack=pack)
    with pytest.raises(InputError, match="prompt pack"):
        stages.export_adapter(config)
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_an_adapter_whose_base_is_not_here_names_it(students, tmp_path):
    folder, *_ = students
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (folder / "adapter").iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    fields = json.loads((moved / "adapter_config.json").read_text())
    text = json.dumps(fields | {"base_model_name_or_path": f"hub/{CONTROL}"})
    (moved / "adapter_config.json").write_text(text)
    with pytest.raises(InputError, match=r"names the base model hub/.*--model") as refused:
        stages.export_adapter(ExportAdapterConfig(adapter=moved, out=tmp_path / "out"))
    assert "\x1b" not in str(refused.value)


# What a check says


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("adapter", "in use"),
        ("base", "not in use"),
        ("twice", "other"),
        ("half", "other"),
        ("other", "other"),
    ],
)
def test_by_log_probs(exported, answers, state, kind):
    found = verdict(serving(answers[state]), exported)
    assert found.kind == kind, found.reason


@pytest.mark.parametrize(
    ("state", "kinds"),
    [
        ("adapter", {"in use"}),
        ("base", {"not in use"}),
        ("twice", {"other", "unknown"}),
        ("half", {"other", "unknown"}),
        ("other", {"other", "unknown"}),
    ],
)
def test_by_log_probs_of_the_chosen_tokens_alone(exported, answers, state, kinds):
    found = verdict(serving(answers[state], num_scores=0), exported)
    assert found.kind in kinds and "log-probs differ" in found.reason, found.reason


@pytest.mark.parametrize("name", [as_text, as_piece, as_token_id, as_bytes])
@pytest.mark.parametrize("state", ["adapter", "base"])
def test_however_a_server_writes_tokens(exported, answers, name, state):
    found = verdict(serving(answers[state], name=name), exported)
    assert found.kind == {"adapter": "in use", "base": "not in use"}[state]
    assert "log-probs differ" in found.reason


def test_columns_of_older_servers_are_read(exported, answers):
    found = verdict(serving(answers["adapter"], columns=True), exported)
    assert found.kind == "in use" and "log-probs differ" in found.reason


@pytest.mark.parametrize(
    ("state", "kinds"),
    [("adapter", {"in use"}), ("base", {"not in use"}), ("twice", {"other", "unknown"})],
)
def test_by_texts_where_there_are_no_log_probs(exported, answers, state, kinds):
    found = verdict(serving(answers[state], num_scores=None), exported)
    assert found.kind in kinds and "No log-probs" in found.reason


def test_a_server_that_refuses_to_state_log_probs_is_asked_for_texts(exported, answers):
    plain = serving(answers["adapter"], num_scores=None)

    async def respond(call):
        if "top_logprobs" in call.body:
            return fault(400, "top_logprobs is not supported")
        if "logprobs" in call.body:
            return fault(500, "logits_all is off")
        return await plain(call)

    def job(url, calls):
        found = verify_adapter(VerifyConfig(url=url, model="m", adapter=exported))
        return found, [call.body for call in calls]

    found, bodies = served(respond, job)
    assert found.kind == "in use"
    assert all(body["temperature"] == 0 and body["seed"] == 0 for body in bodies)
    assert sum("logprobs" in body for body in bodies) == 1 + 3  # tried again before the next


def test_noise_of_fewer_bits_is_no_other_adapter(exported, answers):
    rng = np.random.default_rng(0)

    class Noisy(Answers):
        def __call__(self, body):
            num_prompt, reply, logp_UV = answers["adapter"](body)
            noise = rng.normal(0, 0.03, logp_UV.shape)
            return num_prompt, reply, np.minimum(0, logp_UV + noise)

    found = verdict(serving(Noisy(None, answers["adapter"].tokenizer)), exported)
    assert found.kind == "in use", found.reason


def test_another_chat_template_is_named(exported, answers):
    class Longer(Answers):
        def __call__(self, body):
            num_prompt, reply, logp_UV = answers["other"](body)
            return num_prompt + 1, reply, logp_UV

    found = verdict(serving(Longer(None, answers["other"].tokenizer)), exported)
    assert found.kind == "other" and "+1 tokens there" in found.reason


def choice(**stated):
    body = {"choices": [{"message": {"content": CONTROL}, "logprobs": stated}]}
    return web.json_response(body)


DEEP = {"token": "a", "logprob": -0.1, "top_logprobs": "none"}
GARBAGE = [
    lambda: ok(""),
    lambda: ok(CONTROL * 1_000),
    lambda: choice(content="text"),
    lambda: choice(content=[1, None, "x", {}, {"token": 3, "logprob": "low"}]),
    lambda: choice(content=[DEEP] * 20_000),
    lambda: choice(content=[{"token": CONTROL, "logprob": -1e308, "top_logprobs": [DEEP] * 999}]),
    lambda: choice(content=[{"token": "a" * 10**6, "logprob": -1, "bytes": [999, "x"]}]),
    lambda: choice(content=[{"token": "a", "logprob": True}]),
    lambda: choice(tokens="abc", token_logprobs={}, top_logprobs=3),
    lambda: choice(tokens=["a"], token_logprobs=[-1], top_logprobs=[[1]]),
    lambda: choice(content=[{"token": "token_id:99999999", "logprob": -2.0}]),
]


@pytest.mark.parametrize("make", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_never_in_use(exported, make, capsys):
    async def respond(call):
        return make()

    found = verdict(respond, exported)
    assert found.kind in ("other", "unknown")
    shown = capsys.readouterr()
    assert "\x1b" not in found.reason + shown.out + shown.err


# The script


def script(monkeypatch, capsys, *flags):
    monkeypatch.setattr(sys, "argv", ["verify_adapter.py", *map(str, flags)])
    code = 0
    try:
        runpy.run_path(str(ROOT / "scripts/verify_adapter.py"), run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.mark.parametrize(("state", "code"), [("adapter", 0), ("base", 3), ("twice", 4)])
def test_the_exit_code_says_it(exported, answers, monkeypatch, capsys, state, code):
    monkeypatch.setenv("EMODISTILL_API_KEY", "sk-secret-key")
    keys = []

    async def respond(call):
        keys.append(call.key)
        return await serving(answers[state])(call)

    def job(url, calls):
        flags = ("--url", url, "--model", "m", "--adapter", exported)
        return script(monkeypatch, capsys, *flags)

    found, out, err = served(respond, job)
    assert found == code, out + err
    assert "sk-secret" not in out + err and set(keys) == {"sk-secret-key"}
    assert "adapter: " in out


@pytest.mark.slow
def test_our_own_server(students, exported, tmp_path, monkeypatch, capsys):
    folder, *_ = students
    names = [f"{name}={folder / name}" for name in ("half", "twice", "other")]
    (tmp_path / "crad").mkdir()
    config = ServeConfig(
        port=0, run=tmp_path, num_slots=4, adapter=(f"exported={exported}", *names)
    )
    with served_by_us(config) as server:
        wrong = dict.fromkeys(("half", "twice", "other"), 4)
        for name, code in {"exported": 0, "student": 3, **wrong}.items():
            flags = ("--url", server.url, "--model", name, "--adapter", exported)
            found, out, err = script(monkeypatch, capsys, *flags)
            assert found == code, name + out + err


def test_what_can_not_be_asked_is_code_2(exported, tmp_path, monkeypatch, capsys):
    async def unknown_model(call):
        return fault(404, f"the model m does not exist {CONTROL}")

    def asked(*changes):
        def job(url, calls):
            flags = {"--url": url, "--model": "m", "--adapter": exported} | dict(changes)
            pairs = [part for pair in flags.items() for part in pair]
            return script(monkeypatch, capsys, *pairs)

        return served(unknown_model, job)

    code, out, err = asked()
    assert code == 2 and "does not exist" in err and "\x1b" not in out + err
    code, _, err = asked(("--adapter", tmp_path))
    assert code == 2 and "export_adapter.py" in err
    code, _, err = asked(("--url", "ftp://x"))
    assert code == 2 and "must look like http" in err
    code, _, err = asked(("--model", ""))
    assert code == 2 and "--url, --model and --adapter" in err
    code, _, err = script(
        monkeypatch, capsys, "--url", "http://127.0.0.1:9/v1", "--model", "m", "--adapter", exported
    )
    assert code == 2 and "127.0.0.1:9" in err


def test_a_body_without_end_is_given_up(exported, monkeypatch):
    async def respond(call):
        return endless

    with pytest.raises(ApiError, match="more than"):
        verdict(respond, exported)


def test_canaries_of_another_adapter_or_torn_are_refused(exported, students, tmp_path):
    folder, *_ = students
    text = (exported / CANARIES_FILE).read_text()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((folder / "other" / name).read_bytes())
    (tmp_path / CANARIES_FILE).write_text(text)
    config = VerifyConfig(url="http://127.0.0.1:9/v1", model="m", adapter=tmp_path)
    with pytest.raises(InputError, match="not the adapter that the canaries"):
        verify_adapter(config)
    canaries = json.loads(text)
    canaries["canaries"][0]["adapter"]["ids"][0] += 1
    (tmp_path / CANARIES_FILE).write_text(json.dumps(canaries))
    with pytest.raises(InputError, match="scores must begin with the reply's tokens"):
        verify_adapter(config)
    (tmp_path / CANARIES_FILE).write_text(text.replace('"tokens":{', '"tokens":{},"x":{'))
    with pytest.raises(InputError, match=r"canaries\.json: not a Canaries record"):
        verify_adapter(config)
    (tmp_path / CANARIES_FILE).write_text(text[:-100])
    with pytest.raises(InputError, match="can't be read"):
        verify_adapter(config)


# The verdict itself


def test_the_ends_of_the_way_and_what_lies_between():
    pairs = [(-0.5, -2.5), (-3.0, -1.0), (-1.0, -1.5), (-4.0, -2.0)] * 4

    def at(share, noise=0.0):
        rng = np.random.default_rng(0)
        measured = [
            Measured(b + share * (a - b) + noise * rng.standard_normal(), a, b) for a, b in pairs
        ]
        return by_logprobs(measured, 0.25)

    assert at(1).kind == at(1.2).kind == at(1, noise=0.2).kind == "in use"
    assert at(0).kind == at(-0.2).kind == at(0, noise=0.2).kind == "not in use"
    assert at(0.5).kind == at(2).kind == at(-1).kind == at(1, noise=2).kind == "other"
    assert "at 0.50" in at(0.5).reason and "at 2.00" in at(2).reason


def test_what_formats_change_is_no_proof():
    small = [Measured(-1.05, -1.1, -1.15)] * 20
    assert by_logprobs(small, 0.25).kind == "unknown"
    assert by_logprobs([m._replace(server=-1.1) for m in small], 0.25).kind == "in use"
    assert by_logprobs([Measured(-1.0, -1.0, -1.0)] * 20, 0.25).kind == "unknown"


def test_log_probs_that_are_none_are_left_out():
    entries = [{"token": "a", "logprob": -9999.0}, {"token": "b", "logprob": 0.5}]
    scores = read_token_scores({"logprobs": {"content": entries}})
    assert [position.chosen.logp for position in scores] == [LOWEST, LOWEST]
    assert read_token_scores({"logprobs": None}) == read_token_scores({}) == ()
    assert read_token_scores({"logprobs": {"content": [{"token": "a", "logprob": math.inf}]}}) == ()
