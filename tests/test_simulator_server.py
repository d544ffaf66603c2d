"""The simulated models over HTTP, and the process that serves them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from simulated_talks import PACK, SCENARIOS, turns_of

from emodistill.errors import ApiError, InputError
from emodistill.prompts import (
    counterparty_messages,
    focal_messages,
    turn_judge_messages,
)
from emodistill.simulator.process import running_simulator
from emodistill.simulator.server import MAX_BODY_BYTES, MODELS, complete, make_app, run_server


def request_body(model: str = "sim-teacher", **changes) -> dict:
    messages = focal_messages(PACK, SCENARIOS["crad"][0], [], "joy")
    return {"model": model, "messages": messages, "seed": 7, "temperature": 0.7, **changes}


async def post(url, body, session):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    async with session.post(f"{url}/chat/completions", data=data, headers=headers) as response:
        return response.status, await response.json()


def over_http(*bodies):
    """(status, JSON) of each body, all sent at once to a real server."""

    async def main():
        async with TestServer(make_app()) as server, aiohttp.ClientSession() as session:
            url = str(server.make_url("/v1"))
            return await asyncio.gather(*(post(url, body, session) for body in bodies))

    return asyncio.run(main())


def test_answers_have_the_openai_format():
    body = request_body()
    ((status, answer),) = over_http(body)
    text, reason = complete("sim-teacher", body["messages"], seed=7, temperature=0.7)
    assert status == 200 and reason == "stop"
    assert answer["object"] == "chat.completion" and answer["model"] == "sim-teacher"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
    ]
    usage = answer["usage"]
    assert usage["completion_tokens"] == -(-len(text) // 4)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert abs(answer["created"] - time.time()) < 60 and isinstance(answer["id"], str)


def test_many_requests_at_once_get_their_own_answers():
    bodies = [request_body(seed=seed) for seed in range(40)]
    answers = [answer["choices"][0]["message"]["content"] for _, answer in over_http(*bodies)]
    expected = [
        complete("sim-teacher", body["messages"], seed=body["seed"], temperature=0.7)[0]
        for body in bodies
    ]
    assert answers == expected and len(set(answers)) > 20


def test_absent_and_null_sampling_fields_have_defaults():
    messages = request_body()["messages"]
    nulls = dict.fromkeys(("seed", "temperature", "max_tokens", "stream"))
    (_, absent), (_, null) = over_http(
        {"model": "sim-teacher", "messages": messages},
        {"model": "sim-teacher", "messages": messages, **nulls},
    )
    assert absent["choices"] == null["choices"]


def test_max_tokens_cuts_the_answer():
    ((status, answer),) = over_http(request_body(max_tokens=3))
    choice = answer["choices"][0]
    assert status == 200 and choice["finish_reason"] == "length"
    assert len(choice["message"]["content"].split()) == 3


USER = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        (b"", 400, "not JSON"),
        (b"\xff\xfe\x00", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", 400, "not JSON"),
        ([], 400, "a JSON object"),
        ({}, 404, "model None is not served here; there is sim-teacher"),
        ({"model": "gpt-4", "messages": USER}, 404, "model 'gpt-4' is not served"),
        ({"model": ["sim-judge"], "messages": USER}, 404, "is not served"),
        ({"model": "sim-judge"}, 400, "messages must be a list"),
        ({"model": "sim-judge", "messages": []}, 400, "at least one message"),
        ({"model": "sim-judge", "messages": "hello"}, 400, "messages must be a list"),
        ({"model": "sim-judge", "messages": ["hello"]}, 400, "a role and a content"),
        ({"model": "sim-judge", "messages": [{"content": "a"}]}, 400, "a role and a content"),
        (request_body(messages=[{"role": "user", "content": ["a"]}]), 400, "a role and a content"),
        (request_body(messages=[{"role": "user", "content": "\ud800"}]), 400, "surrogate"),
        (request_body(seed="7"), 400, "seed and max_tokens must be integers"),
        (request_body(seed=1.5), 400, "seed and max_tokens must be integers"),
        (request_body(max_tokens=0), 400, "max_tokens at least 1"),
        (request_body(temperature=3), 400, "temperature must be a number"),
        (request_body(temperature="hot"), 400, "temperature must be a number"),
        (request_body(temperature=float("nan")), 400, "temperature must be a number"),
        (request_body(stream=True), 400, "not streamed"),
        (b'{"model": "' + b"x" * MAX_BODY_BYTES + b'"}', 413, "exceeded"),
    ],
)
def test_bad_requests_are_refused_in_json(body, status, message):
    (answer,) = over_http(body)
    assert answer[0] == status
    assert message in answer[1]["error"]["message"] and answer[1]["error"]["type"]


def test_odd_messages_get_an_answer():
    """Whatever text comes, a model says something; it does not fall over."""
    odd = ["", "debt", "Your target: 9 days", f"bedtime\nYour target: {'9' * 400} days", "😀 {v} %"]
    odd += ["You are the creditor, debt.\nYour target: 0 days", "rescue\nYour preference: soon"]
    bodies = [
        {
            "model": model,
            "messages": [{"role": "system", "content": a}, {"role": role, "content": b}],
        }
        for model in MODELS
        for a in odd
        for b in (*odd, "Creditor: 5 days\nDebtor: Agreed, 5 days it is.")
        for role in ("user", "assistant")
    ]
    assert {status for status, _ in over_http(*bodies)} == {200}


def test_models_are_listed_and_unknown_paths_refused_in_json():
    async def main():
        async with TestServer(make_app()) as server, aiohttp.ClientSession() as session:
            async with session.get(server.make_url("/v1/models")) as response:
                listed = await response.json()
            async with session.get(server.make_url("/v2")) as response:
                unknown = response.status, await response.json()
            async with session.get(server.make_url("/v1/chat/completions")) as response:
                return listed, unknown, (response.status, await response.json())

    listed, unknown, wrong_method = asyncio.run(main())
    assert [model["id"] for model in listed["data"]] == list(MODELS)
    assert unknown[0] == 404 and unknown[1]["error"]["message"]
    assert wrong_method[0] == 405 and wrong_method[1]["error"]["message"]


def test_a_port_in_use_is_a_clear_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {port}: .*0 finds a free one"):
            run_server("127.0.0.1", port)


def test_a_running_simulator_answers_as_in_this_process_and_ends_with_the_block():
    scenario = SCENARIOS["student"][3]
    turns = turns_of(
        "Lights out at 9:30 PM.", "I want to stay up until 1:00 AM.", "I say 10:00 PM."
    )
    requests = {
        "sim-teacher": focal_messages(PACK, scenario, turns[:2], "fear"),
        "sim-counterparty": counterparty_messages(PACK, scenario, turns),
        "sim-judge": turn_judge_messages(PACK, scenario, turns, 2),
    }

    async def ask(url):
        async with aiohttp.ClientSession() as session:
            return [
                await post(url, {"model": model, "messages": messages, "seed": 5}, session)
                for model, messages in requests.items()
            ]

    with running_simulator() as url:
        assert url.startswith("http://127.0.0.1:") and url.endswith("/v1")
        answers = asyncio.run(ask(url))
    for (model, messages), (status, answer) in zip(requests.items(), answers, strict=True):
        assert status == 200
        text = answer["choices"][0]["message"]["content"]
        assert text == complete(model, messages, seed=5)[0]
    assert not is_open(port_of(url))


def test_a_simulator_that_does_not_start_says_so(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with (
        pytest.raises(ApiError, match=r"did not start; try `python -m emodistill\.simulator`"),
        running_simulator(),
    ):
        raise AssertionError("never entered")


def port_of(url: str) -> int:
    return int(url.split(":")[2].split("/")[0])


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


OWNER = """
import signal
from emodistill.simulator.process import running_simulator
with running_simulator() as url:
    # Held back until asked for, so that none is missed; the simulator runs by now, unmasked.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    print(url, flush=True)
    while True:
        signal.sigwait({signal.SIGINT})
        print("interrupted", flush=True)
"""


@contextlib.contextmanager
def simulator_of_another_process() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process in a group of its own that runs a simulator; and the simulator's port."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert owner.stdout is not None
        yield owner, port_of(owner.stdout.readline())
    finally:
        owner.kill()
        owner.communicate(timeout=10)


def test_ctrl_c_leaves_the_simulator_to_its_owner_and_sigkill_ends_both():
    with simulator_of_another_process() as (owner, port):
        os.killpg(owner.pid, signal.SIGINT)  # as a terminal does
        assert owner.stdout.readline() == "interrupted\n"
        time.sleep(0.3)
        assert is_open(port)

        idle = socket.create_connection(("127.0.0.1", port))  # must not keep it alive
        owner.kill()
        # The simulator holds the owner's stderr too: its end is the end of that pipe.
        _, complaints = owner.communicate(timeout=60)
        assert not is_open(port)
        assert complaints == ""
        idle.close()
