"""The endpoint as its clients see it: OpenAI's wire format, adapters, negotiators, many at once."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from served import make_adapter, make_served_run, served

from emodistill.configs import ServeConfig
from emodistill.domains import load_scenarios
from emodistill.emotions import EMOTION_INDEX
from emodistill.errors import InputError
from emodistill.model import (
    TokenLogprobs,
    embedded_path,
    encode_chat,
    generate,
    load_tokenizer,
)
from emodistill.model.tokenization import decode_reply, encode_reply, stop_ids
from emodistill.prompts import load_pack
from emodistill.seeding import stream
from emodistill.selectors import FixedSelector
from emodistill.serving.chat_requests import parse_chat
from emodistill.serving.negotiator import Negotiator
from emodistill.serving.reply_text import ReplyReader, TokenTexts
from emodistill.serving.server import run_server
from emodistill.train.student import load_student

KEY = "sk-secret-served-1234"
SCENARIO = load_scenarios("crad")[0].to_json()
USER = [{"role": "user", "content": "Can you pay within 30 days?"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "run"
    make_served_run(folder, embedded_path())
    make_adapter(embedded_path(), folder.parent / "more/tuned", seed=9)
    return folder


@pytest.fixture(scope="module")
def server(run):
    """The embedded student with the run's adapters and selector, and a key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVED_KEY", KEY)
        config = ServeConfig(
            port=0,
            run=run,
            num_slots=4,
            api_key_env="SERVED_KEY",
            adapters_below=run.parent / "more",
            adapter=(f"mine={run}/crad/sft/default/adapter",),
        )
        with served(config, KEY) as running:
            yield running


def talk(*texts, **more):
    """A request to a negotiator who opens; the texts alternate."""
    messages = [
        {"role": "user" if i % 2 else "assistant", "content": text} for i, text in enumerate(texts)
    ]
    setting = {"scenario": SCENARIO}
    request = {"model": "iql+sft+jpo", "messages": messages, "emodistill": setting, "seed": 3}
    return request | {"max_tokens": 8} | more


def emotion_of(server, request):
    """The emotion that a negotiator expresses, which takes no long reply to be seen."""
    return server.chat(**request | {"max_tokens": 1})["choices"][0]["message"]["emotion"]


def test_an_answer_is_the_students_own(server):
    """The server adds nothing to what the library generates for the same prompt and seed."""
    answer = server.chat(model="student", messages=USER, seed=5, temperature=1.0, max_tokens=24)
    model, tokenizer = load_student("embedded")
    ids = encode_chat(tokenizer, USER)
    (reply,) = generate(
        model,
        [ids],
        max_new_tokens=24,
        temperature=1.0,
        seeds=[5],
        eos_ids=stop_ids(tokenizer),
    )
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == decode_reply(tokenizer, reply)
    assert choice["message"]["role"] == "assistant" and choice["index"] == 0
    assert choice["finish_reason"] == ("stop" if len(reply) < 24 else "length")
    assert answer["object"] == "chat.completion" and answer["model"] == "student"
    assert abs(answer["created"] - time.time()) < 300 and answer["id"].startswith("chatcmpl-")
    assert answer["usage"] == {
        "prompt_tokens": len(ids),
        "completion_tokens": len(reply),
        "total_tokens": len(ids) + len(reply),
    }


def test_a_stream_adds_up_to_the_whole_answer(server):
    body = {"model": "sft", "messages": USER, "seed": 2, "temperature": 1.0, "max_tokens": 40}
    body |= {"logprobs": True, "top_logprobs": 2}
    whole = server.chat(**body)
    *chunks, last, usage = server.events(**body, stream_options={"include_usage": True})
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in (*chunks, last, usage)}) == 1
    (choice,) = whole["choices"]
    content = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert content == choice["message"]["content"]
    tokens = [token for c in chunks[1:] for token in c["choices"][0]["logprobs"]["content"]]
    assert tokens == choice["logprobs"]["content"] and len(tokens) > 5
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == content
    assert all(token["logprob"] <= 0 for token in tokens)
    found = []
    for token in tokens:
        first, second = token["top_logprobs"]
        assert first["logprob"] >= max(second["logprob"], token["logprob"])
        for one in (first, second):
            if one["bytes"] == token["bytes"]:
                found.append((one["logprob"], token["logprob"]))
    assert found
    np.testing.assert_allclose(*zip(*found, strict=True), atol=1e-5)
    assert last["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": choice["finish_reason"],
    }
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]


def test_a_seed_decides_and_without_one_answers_differ(server):
    body = {"model": "student", "messages": USER, "temperature": 1.5, "max_tokens": 6}
    assert server.text(**body, seed=7) == server.text(**body, seed=7)
    assert len({server.text(**body, seed=seed) for seed in (-1, 2**63, 3, 4)}) > 1
    assert len({server.text(**body) for _ in range(4)}) > 1
    assert server.text(**body | {"temperature": 0}) == server.text(**body | {"temperature": 0})


def test_a_stop_text_ends_the_reply_before_it(server):
    body = {"model": "student", "messages": USER, "temperature": 0, "logprobs": True}
    full = server.chat(**body)["choices"][0]
    text = full["message"]["content"]
    stop = text[6:9]
    for asked in (stop, ["\x00", stop]):
        cut = server.chat(**body, stop=asked)
        choice = cut["choices"][0]
        assert choice["message"]["content"] == text[: text.index(stop)]
        assert choice["finish_reason"] == "stop"
        tokens = choice["logprobs"]["content"]
        assert tokens == full["logprobs"]["content"][: len(tokens)]
    streamed = server.events(**body, stop=stop)[1:-1]
    content = "".join(chunk["choices"][0]["delta"]["content"] for chunk in streamed)
    assert content == text[: text.index(stop)]


def test_models_are_told_apart_by_name(server):
    status, _, listed = server.ask(f"{server.url}/models")
    names = [model["id"] for model in json.loads(listed)["data"]]
    assert status == 200
    adapters = ["student", "jpo", "jpo:kappa=0.5-e21b", "sft", "mine"]
    methods = ["vanilla-slm", "iql+sft", "iql+sft+jpo", "iql+sft+jpo-stripped", "vanilla-slm-free"]
    assert names == [*adapters, *methods]  # iql+jpo's and the emotion-free cells are not trained
    answers = {name: first_logprob(server, name) for name in adapters}
    assert answers["mine"] == answers["sft"]
    assert len(set(answers.values())) == 4


def first_logprob(server, model):
    """Of an answer's first token, in which models differ even where their texts agree."""
    answer = server.chat(model=model, messages=USER, temperature=0, max_tokens=4, logprobs=True)
    return answer["choices"][0]["logprobs"]["content"][0]["logprob"]


def test_the_key_is_asked_for(server, caplog):
    for headers in ({}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": KEY}):
        status, _, content = server.ask(f"{server.url}/models", headers=headers)
        error = json.loads(content)["error"]
        assert status == 401 and error["code"] == "invalid_api_key" and error["message"]
    for path in ("/health", "/metrics"):
        assert server.ask(server.root + path, headers={})[0] == 200
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"model": "gpt-4"}, 404, "model"),
        ({"model": 3}, 400, "model"),
        ({"model": None}, 400, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hello"}, 400, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, 400, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, None),
        ({"messages": [{"role": "user", "content": "a"}] * 1025}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "a b " * 5000}]}, 400, "messages"),
        ({"temperature": 2.1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 1.5}, 400, "max_tokens"),
        ({"max_tokens": 4096}, 400, "messages"),
        ({"seed": "7"}, 400, "seed"),
        ({"n": 2}, 400, "n"),
        ({"n": 0}, 400, "n"),
        ({"stop": ""}, 400, "stop"),
        ({"stop": ["a"] * 17}, 400, "stop"),
        ({"top_logprobs": 2}, 400, "top_logprobs"),
        ({"logprobs": 3}, 400, "logprobs"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ],
)
def test_what_can_not_be_done_is_refused_by_field(server, changes, status, param):
    body = {"model": "student", "messages": USER, "max_tokens": 4} | changes
    got, answer = server.post("/chat/completions", body)
    assert got == status
    error = answer["error"]
    assert error["message"] and error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"].replace("[...]", "[0]") == param  # as older msgspecs write it


def test_fields_that_change_nothing_are_ignored(server):
    body = {"model": "student", "messages": USER, "temperature": 0, "max_tokens": 8}
    idle = {"user": "me", "n": 1, "presence_penalty": 0, "tools": [], "store": False, "top_p": 1}
    idle |= {"response_format": {"type": "text"}, "logit_bias": None, "metadata": {"a": "b"}}
    assert server.text(**body, **idle) == server.text(**body)
    parts = [{"role": "user", "content": [{"type": "text", "text": USER[0]["content"]}]}]
    assert server.text(**body | {"messages": parts}) == server.text(**body)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "no JSON"),
        (b"", 400, "no JSON"),
        (b"\xff\xfe\x00", 400, "no JSON"),
        (b"[" * 100_000, 400, "nested"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", 400, "5000 digits"),
        (b'{"temperature": NaN}', 400, "NaN"),
        (b"[]", 400, "a JSON object"),
        (b'{"model": "' + b"x" * (1 << 20) + b'"}', 413, "Too Large"),
    ],
)
def test_bodies_that_are_no_requests_are_refused(server, body, status, message):
    got, answer = server.post("/chat/completions", body)
    assert got == status and message in answer["error"]["message"]


def test_unknown_paths_and_methods_are_refused_in_json(server):
    assert server.post("/completions", {})[0] == 404
    status, answer = server.post("/models", {})
    assert status == 405 and answer["error"]["message"]


def test_adapters_are_loaded_and_dropped_while_others_are_served(server, run):
    loaded = {"lora_name": "tuned", "lora_path": "tuned"}
    body = {"model": "tuned", "messages": USER, "temperature": 0, "max_tokens": 24}
    assert server.post("/chat/completions", body)[0] == 404
    assert server.post("/load_lora_adapter", loaded) == (
        200,
        "Success: LoRA adapter 'tuned' added successfully.",
    )
    tuned = first_logprob(server, "tuned")
    assert tuned != first_logprob(server, "student")
    assert server.post("/load_lora_adapter", loaded)[0] == 400  # served already
    for path in ("..", "../run/crad/sft/default/adapter", "/etc", "no", "a\0b", "x" * 9999):
        status, answer = server.post("/load_lora_adapter", {"lora_name": "a", "lora_path": path})
        assert status == 400 and answer["error"]["param"] == "lora_path"
    whole = {"lora_name": "whole", "lora_path": str(run.parent / "more/tuned")}
    assert server.post("/load_lora_adapter", whole)[0] == 200
    assert first_logprob(server, "whole") == tuned
    for name in ("tuned", "whole"):
        assert server.post("/unload_lora_adapter", {"lora_name": name})[0] == 200
        assert server.post("/unload_lora_adapter", {"lora_name": name})[0] == 404
    assert server.post("/chat/completions", body)[0] == 404
    for name in ("student", "sft"):
        assert server.post("/unload_lora_adapter", {"lora_name": name})[0] == 400


def test_an_adapter_that_can_not_be_used_is_refused_and_not_served(server, run):
    broken = run.parent / "more/broken"
    make_adapter(embedded_path(), broken, seed=1)
    (broken / "adapter_model.safetensors").write_bytes(b"torn")
    status, answer = server.post(
        "/load_lora_adapter", {"lora_name": "broken", "lora_path": "broken"}
    )
    assert status == 400 and "adapter_model.safetensors" in answer["error"]["message"]
    assert server.post("/unload_lora_adapter", {"lora_name": "broken"})[0] == 404


def test_a_negotiator_picks_the_emotion_and_says_it(server):
    opening = server.chat(**talk())
    message = opening["choices"][0]["message"]
    assert message["emotion"] in EMOTION_INDEX and message["content"]
    assert opening["emodistill"] == {
        "emotion": message["emotion"],
        "offers": [],
        "dropped_turns": 0,
    }
    said = (message["content"], "I can't. I could pay within 90 days.")
    second = server.chat(**talk(*said))
    assert second["emodistill"]["offers"][1] == 90.0
    assert second == server.chat(**talk(*said)) | {name: second[name] for name in ("id", "created")}
    assert len({emotion_of(server, talk(*said, seed=seed)) for seed in range(8)}) > 1


def test_a_negotiator_remembers_what_it_expressed(server):
    """By the field that its answer has or, without it, by the seed of the dialogue."""
    said = ("Pay within 30 days.", "No. 90 days.")

    def second(seed, emotion):
        request = talk(*said, seed=seed)
        if emotion is not None:
            request["messages"][0]["emotion"] = emotion
        return emotion_of(server, request)

    first = {seed: emotion_of(server, talk(seed=seed)) for seed in range(5)}
    unnamed = [second(seed, None) for seed in first]
    assert unnamed == [second(seed, emotion) for seed, emotion in first.items()]
    assert unnamed != [second(seed, "grief") for seed in first]


def test_a_negotiator_without_a_selector_names_its_block(server):
    neutral = server.chat(**talk(model="vanilla-slm"))
    assert neutral["choices"][0]["message"]["emotion"] == "neutral"
    free = server.chat(**talk(model="vanilla-slm-free"))
    assert free["choices"][0]["message"]["emotion"] is None
    assert free["usage"]["prompt_tokens"] < neutral["usage"]["prompt_tokens"]


def test_a_negotiator_takes_its_scenario_from_a_system_message_and_plays_either_role(server):
    body = talk("Pay within 30 days.", "No. 90 days.")
    setting = body.pop("emodistill")
    system = {"role": "system", "content": json.dumps(setting)}
    body["max_tokens"] = 24
    said = server.text(**body | {"messages": [system, *body["messages"]]})
    assert said == server.text(**body, emodistill=setting)
    other = setting | {"role": "counterparty"}
    assert said != server.text(**body, emodistill=other)
    (first, *chunks) = server.events(**body, emodistill=setting)
    assert first["choices"][0]["delta"]["emotion"] == first["emodistill"]["emotion"]
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(texts) == said


def test_talks_that_are_too_long_lose_their_oldest_turns():
    negotiator = Negotiator(
        selector=FixedSelector("joy"), adapter="student", pack=load_pack(), max_turns=30
    )
    texts = [f"I need it within {30 + i} days, and that is that." for i in range(12)]
    request = parse_chat(json.dumps(talk(*texts)).encode())

    def length(prompt):
        return sum(len(message["content"]) for message in prompt)

    whole = negotiator.read(request, 0, lambda prompt: True)
    assert (whole.num_dropped, len(whole.offers), whole.emotion) == (0, 12, "joy")
    room = length(whole.messages) - 100
    cut = negotiator.read(request, 0, lambda prompt: length(prompt) <= room)
    assert 0 < cut.num_dropped < 4 and cut.offers == whole.offers
    assert room - 200 < length(cut.messages) <= room
    assert texts[cut.num_dropped - 1] not in cut.messages[-1]["content"]
    assert texts[cut.num_dropped] in cut.messages[-1]["content"]
    assert negotiator.read(request, 0, lambda prompt: False).num_dropped == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"emodistill": None}, "needs the scenario"),
        ({"emodistill": {}}, "scenario"),
        ({"emodistill": {"scenario": {"schema": 1}}}, "scenario_id"),
        ({"emodistill": {"scenario": SCENARIO, "tone": "nice"}}, "tone"),
        ({"emodistill": {"scenario": SCENARIO, "role": "judge"}}, "judge"),
        ({"emodistill": {"scenario": SCENARIO | {"domain": "chess"}}}, "chess"),
        ({"emodistill": {"scenario": SCENARIO | {"focal_target": 1e300}}}, "must lie between"),
        ({"emodistill": {"scenario": SCENARIO | {"fields": {}}}}, "nothing is known as"),
        ({"emodistill": {"scenario": SCENARIO | {"fields": {"a": [1]}}}}, "a fact is"),
        ({"messages": [{"role": "assistant", "content": "Hm."}]}, "waits for the other side"),
        ({"messages": USER * 2}, "join the two"),
        ({"messages": [{"role": "user", "content": " "}]}, "1 to"),
        ({"messages": [{"role": "system", "content": "Be nice."}, *USER]}, "its own system"),
        (
            {"messages": [{"role": "assistant", "content": "a", "emotion": "rage"}, *USER]},
            "none of the 28",
        ),
    ],
)
def test_talks_that_can_not_be_read_are_refused(server, changes, message):
    status, answer = server.post("/chat/completions", talk() | changes)
    assert status == 400 and message in answer["error"]["message"]


def test_metrics_count_what_happened(server):
    server.chat(model="student", messages=USER, max_tokens=1)
    names = ("prefilled", "kept", "generated")
    before = {n: server.metric(f'emodistill_tokens_total{{kind="{n}"}}') for n in names}
    answers = server.metric('emodistill_requests_total{status="200"}')
    long = [{"role": "user", "content": "We could pay in parts. " * 20}]
    for _ in range(2):
        usage = server.chat(model="student", messages=long, max_tokens=4)["usage"]
    after = {n: server.metric(f'emodistill_tokens_total{{kind="{n}"}}') for n in names}
    spent = {name: after[name] - before[name] for name in names}
    assert spent["generated"] == 2 * usage["completion_tokens"]
    assert spent["prefilled"] + spent["kept"] == 2 * usage["prompt_tokens"]
    assert spent["kept"] >= usage["prompt_tokens"] // 2
    assert server.metric('emodistill_requests_total{status="200"}') == answers + 2
    assert server.metric("emodistill_time_to_first_token_seconds_count") > 2
    assert server.metric("emodistill_slots_in_use") == 0
    assert server.metric("emodistill_queue_length") == 0


def bodies(count):
    """Requests of several models with their own prompts and seeds."""
    models = itertools.cycle(("student", "sft", "iql+sft+jpo", "jpo"))
    texts = ("I need 30 days.", "Let us say 60 days, and I am sorry.", "Why not 45 days? " * 5)
    for number, model in zip(range(count), models, strict=False):
        said = texts[number % len(texts)]
        shared = {"model": model, "seed": number, "temperature": 1.0, "max_tokens": 16}
        messages = [{"role": "user", "content": said}]
        yield (talk() if "+" in model else {}) | shared | {"messages": messages}


async def post(session, server, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with session.post(
        f"{server.url}/chat/completions", data=data, headers=server.headers
    ) as response:
        is_json = response.content_type == "application/json"
        return response.status, await response.json() if is_json else await response.text()


def ask_at_once(server, num_clients, seconds):
    """Many clients ask one thing after the other; as many answers as wrong ones."""
    alone = []
    for body in bodies(8):
        alone.append((body, server.text(**body)))
    wrong, num_answers = [], 0

    async def client(session, number, end_s):
        nonlocal num_answers
        for body, expected in itertools.cycle(alone[number % 8 :] + alone[: number % 8]):
            status, answer = await post(session, server, body)
            num_answers += 1
            if status != 200 or answer["choices"][0]["message"]["content"] != expected:
                wrong.append((body, status, answer, expected))
            if time.monotonic() > end_s:
                return

    async def main():
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            end_s = time.monotonic() + seconds
            await asyncio.gather(*(client(session, n, end_s) for n in range(num_clients)))

    asyncio.run(main())
    return num_answers, wrong


def test_many_clients_get_the_answers_of_one(server):
    """Four times as many as there are slots."""
    num_answers, wrong = ask_at_once(server, 16, 0.5)
    assert num_answers >= 16 and not wrong, wrong[0]


@pytest.mark.slow
def test_64_clients_get_the_answers_of_one_for_two_minutes(server):
    num_answers, wrong = ask_at_once(server, 64, 120.0)
    assert num_answers > 500 and not wrong, wrong[0]


ODD = (None, True, -1, 0, 10**18, 1e308, "", "\ud800", "a" * 300, [], [[]], {}, {"a": []})


def fuzzed(rng):
    """A body that is no request: a good one with something wrong in it, or with bytes broken."""
    body = talk("Pay within 30 days.", "90 days.") if rng.random() < 0.5 else {"messages": USER}
    body = json.loads(json.dumps({"model": "student", "max_tokens": 4} | body))
    kind = rng.integers(4)
    if kind == 0:  # torn or damaged bytes
        data = bytearray(json.dumps(body).encode())
        for _ in range(rng.integers(1, 9)):
            data[rng.integers(len(data))] = rng.integers(256)
        return bytes(data[: rng.integers(len(data) - 1)])
    if kind == 1:  # some value, however deep, is an odd one
        deep = [name for name in body if isinstance(body[name], dict | list)]
        place, name = body, str(rng.choice(deep if rng.random() < 0.8 else sorted(body)))
        while isinstance(place[name], dict | list) and place[name] and rng.random() < 0.9:
            place = place[name]
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            name = keys[rng.integers(len(keys))]
        place[name] = ODD[rng.integers(len(ODD))]
        return json.dumps(body).encode()  # which may be good by chance
    if kind == 2:  # a field of the API with an odd value
        fields = ("temperature", "top_p", "max_tokens", "stop", "stream", "logprobs", "n")
        fields += ("seed", "messages", "stream_options", "emodistill", "tools", "response_format")
        for name in rng.choice(fields, size=3):
            body[str(name)] = ODD[rng.integers(len(ODD))]
        return json.dumps(body | {"top_logprobs": "many"}).encode()
    return rng.bytes(int(rng.integers(1, 400)))


def check_fuzzed(server, count):
    rng, num_good = stream(0, "fuzzed-bodies"), 0
    data = [fuzzed(rng) for _ in range(count)]

    async def main():
        nonlocal num_good
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for i in range(0, count, 16):
                group = data[i : i + 16]
                found = await asyncio.gather(*(post(session, server, body) for body in group))
                for body, (status, answer) in zip(group, found, strict=True):
                    num_good += status == 200
                    assert status == 200 or 400 <= status < 500, (status, body)
                    assert status == 200 or answer["error"]["message"].isprintable(), body

    asyncio.run(main())
    assert num_good < count / 5
    assert server.text(model="student", messages=USER, max_tokens=4)
    assert server.metric("emodistill_slots_in_use") == 0  # no place is left taken


def test_fuzzed_bodies_are_refused(server):
    check_fuzzed(server, 100)


@pytest.mark.slow
def test_a_thousand_fuzzed_bodies_are_refused(server):
    check_fuzzed(server, 1000)


def test_openai_python_is_served(server):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=server.url, api_key=KEY) as client:
        assert "iql+sft+jpo" in {model.id for model in client.models.list()}
        asked = {"model": "student", "messages": USER, "seed": 1, "max_tokens": 16}
        answer = client.chat.completions.create(**asked, logprobs=True)
        text = answer.choices[0].message.content
        assert text and answer.usage.total_tokens > 16
        assert answer.choices[0].logprobs.content[0].bytes
        with client.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        ) as chunks:
            found = list(chunks)
        texts = [chunk.choices[0].delta.content for chunk in found if chunk.choices]
        assert "".join(filter(None, texts)) == text
        assert found[-1].usage == answer.usage
        own = talk("Pay within 30 days.", "No. 90 days.")
        setting = own.pop("emodistill")
        reply = client.chat.completions.create(**own, extra_body={"emodistill": setting})
        message = reply.choices[0].message
        assert message.emotion in EMOTION_INDEX
        history = [*own["messages"], message, {"role": "user", "content": "80 days."}]
        own["messages"] = history  # the answer as it came, emotion included
        client.chat.completions.create(**own, extra_body={"emodistill": setting})
        with pytest.raises(openai.NotFoundError, match="not served here"):
            client.chat.completions.create(model="gpt-4", messages=USER)
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(**asked, temperature=3)
    wrong = openai.OpenAI(base_url=server.url, api_key="sk-wrong", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key_env": "NO_SUCH_KEY"}, "--api-key-env NO_SUCH_KEY"),
        ({"adapters_below": "."}, "say with --api-key-env"),
        ({"adapter": ("a",)}, "no NAME=FOLDER pair"),
        ({"max_reply_tokens": 4096}, "leaves no room"),
        ({"run": "no-run"}, "there is no folder no-run/crad"),
        ({"adapter": ("a=no-folder",)}, "there is no no-folder/adapter_config.json"),
        ({"adapter": ("student=no-folder",)}, "student is served already"),
    ],
)
def test_settings_that_can_not_be_served_are_refused(settings, message, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    paths = {k: Path(v) for k, v in settings.items() if k in ("run", "adapters_below")}
    with pytest.raises(InputError, match=message):
        run_server(ServeConfig(**settings | paths))


def test_the_tokenizer_decodes_as_replies_are_read():
    tokenizer = load_tokenizer(embedded_path())
    texts, rng = TokenTexts(tokenizer), stream(0, "reply-text")
    for _ in range(200):
        ids = rng.integers(len(tokenizer), size=30).tolist()
        ids = ids[: next((i for i, one in enumerate(ids) if one in texts.stops), 30)]
        reader = ReplyReader(texts)
        pieces = [reader.read([one], None) for one in ids]
        assert "".join(p.text for p in (*pieces, reader.finish())) == decode_reply(tokenizer, ids)


def test_a_stop_text_is_found_across_tokens_and_nothing_of_it_is_shown():
    tokenizer = load_tokenizer(embedded_path())
    texts, said = TokenTexts(tokenizer), "I can pay within 45 days, says Söhne €."
    ids = encode_reply(tokenizer, said)
    for start, length in itertools.product(range(len(said) - 1), range(1, 9)):
        stop = said[start : start + length]
        reader = ReplyReader(texts, ["never", stop])
        shown = ""
        for one in ids:
            piece = reader.read([one], [TokenLogprobs(-0.5)])
            shown += piece.text
            assert said[: said.index(stop)].startswith(shown)
        assert shown + reader.finish().text == said[: said.index(stop)] and reader.is_stopped
