"""What servers put into an HTTP 200: thoughts, cut and withheld answers, errors, nonsense."""

import asyncio
import gzip
import json
import logging
import time
import tracemalloc
import zlib

import pytest
from aiohttp import web
from chat_client import FAST, KEYS, ask, ask_and_count, priced, run
from chat_server import endless, fault, ok, scripted

from emodistill.errors import ApiError
from emodistill.llm import ExhaustedError, RefusedError
from emodistill.llm.client import CeilingError
from emodistill.llm.fault_reader import MAX_REST_S
from emodistill.llm.replies import FaultError, read_reply, spoken
from emodistill.llm.transport import MAX_ANSWER_BYTES, proxy_of

USAGE = {"prompt_tokens": 10, "completion_tokens": 5}


def answer(content="Hi.", reason="stop", usage=USAGE, **message):
    choice = {"message": {"content": content, **message}, "finish_reason": reason}
    return {"choices": [choice], "usage": usage}


def sent(value, **settings):
    """A response of this JSON value, or of these bytes."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda: web.Response(body=data, content_type="application/json", **settings)


# Thoughts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>45 would do.</think>I can pay in 60 days.", "I can pay in 60 days."),
        ("45 would do.</think>\n\nI can pay in 60 days.", "\n\nI can pay in 60 days."),
        ("<think>They asked for 30, I could say 45", ""),
        ("Well. <think>45?</think>60 days.", "Well. 60 days."),
        ("<THINK>a</THINK>b<think>c</think>d", "bd"),
        ("<think>a<think>b</think>c</think>d", "d"),
        ("<thinking>45</thinking>60 days.", "60 days."),
        ("<seed:think>45</seed:think>60 days.", "60 days."),
        ("[THINK]45[/THINK]60 days.", "60 days."),
        ("◁think▷45◁/think▷60 days.", "60 days."),
        ("<|begin_of_thought|>45<|end_of_thought|>60 days.", "60 days."),
        ("<|channel|>analysis<|message|>45<|end|><|start|>assistant<|channel|>final<|message|>60.",
         "60."),
        ("<|START_THINKING|>45<|END_THINKING|>60 days.", "60 days."),
        ("<think time=3>45</think >60 days.", "60 days."),
        ("<inner_thoughts>45</inner_thoughts>60 days.", "60 days."),
        ("<longcat_think>45</longcat_think>60 days.", "60 days."),
        ("I think 60 days is fair, and < 90.", "I think 60 days is fair, and < 90."),
    ],
)  # fmt: skip
def test_thoughts_are_no_speech(text, said):
    assert spoken(text) == said
    assert read_reply(json.dumps(answer(text)).encode()).is_thinking == (said != text)


def test_what_is_put_around_an_answer_is_left_out():
    body = answer("<think>45</think><answer>60 days.</answer>")
    assert read_reply(json.dumps(body).encode()).text == "60 days."


def test_many_marks_take_no_time():
    started_s = time.monotonic()
    spoken("<think>" * 50_000)
    spoken("<" * 200_000)
    spoken("<|channel|>analysis" * 20_000)
    assert time.monotonic() - started_s < 2


def test_thoughts_are_paid_for_all_the_same():
    body = answer("<think>" + 400 * "a " + "</think>Yes.", usage=None)
    completion, _ = ask_and_count(scripted(sent(body)))
    assert completion.text == "Yes."
    assert completion.completion_tokens > 200


# Cut and withheld answers ------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_a_cut_answer_says_so(reason):
    completion, calls = ask_and_count(scripted(sent(answer("I could pay within 4", reason))))
    assert completion.finish_reason == "length"
    assert len(calls) == 1


@pytest.mark.parametrize("reason", ["stop", None, "eos", "tool_calls", "", 7])
def test_any_other_reason_is_the_answers_own_end(reason):
    assert read_reply(json.dumps(answer(reason=reason)).encode()).finish_reason == "stop"


def test_a_server_that_ignores_the_limit_is_cut_here():
    completion, _ = ask_and_count(scripted(sent(answer("30 days " * 6_000))))
    assert completion.finish_reason == "length"
    assert len(completion.text) == 24 * 160


@pytest.mark.parametrize(
    "body",
    [
        answer("", "content_filter"),
        answer("Half of it", "content_filter"),
        answer(None, "sensitive"),
        answer(None, "SAFETY"),
        answer(None, "stop", refusal="I can't help with that."),
    ],
)
def test_a_withheld_answer_is_a_refusal_that_is_paid_for(body):
    async def job(client, server):
        with pytest.raises(RefusedError, match="withheld"):
            await ask(client)
        return client.usage, len(server.calls)

    usage, num_calls = run(scripted(sent(body)), job)
    assert (usage.num_filtered, num_calls) == (1, 1)
    assert usage.cost_usd == pytest.approx(10e-6 + 2 * 5e-6)


# Content -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "I can "}, {"type": "text", "text": "pay."}], "I can pay."),
        ([{"type": "thinking", "thinking": "45?"}, {"type": "text", "text": "60."}], "60."),
        ([{"type": "reasoning", "text": "45?"}, {"type": "output_text", "text": "60."}], "60."),
        (["I can ", {"text": "pay."}, 7, None, {"type": "text", "text": ["x"]}], "I can pay."),
        ([], ""),
    ],
)
def test_content_in_parts_is_read(content, text):
    completion, calls = ask_and_count(scripted(sent(answer(content))))
    assert completion.text == text
    assert len(calls) == 1


@pytest.mark.parametrize("content", [7, {"text": "Hi."}, True])
def test_content_that_is_no_text_is_no_answer(content):
    with pytest.raises(FaultError, match="content is no text"):
        read_reply(json.dumps(answer(content)).encode())


def test_control_characters_never_leave_the_client():
    completion, _ = ask_and_count(scripted(sent(answer("60\x1b]0;pwned\x07 days\u2028\ud83d"))))
    assert completion.text == "60\ufffd]0;pwned\ufffd days\ufffd\ufffd"


# Errors inside an HTTP 200 -----------------------------------------------------------------------


def one_empty_key(body):
    async def respond(call):
        return sent(body)() if call.key == KEYS[0] else ok("Hi.")

    return respond


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": 402, "message": "Insufficient credits."}},
        {"error": {"code": "402", "message": "Insufficient credits."}},
        {"error": {"code": "insufficient_quota", "message": "Pay."}},
        {"error": {"type": "invalid_api_key", "message": "No such key."}},
        {"error": {"type": "authentication_error", "message": "No such key."}},
        {"error": {"code": "x-17", "type": "insufficient_quota", "message": "Pay."}},
        {"choices": [{"error": {"code": 402, "message": "Insufficient credits."}}]},
    ],
)
def test_an_empty_key_is_dropped_and_the_other_answers(body):
    async def job(client, server):
        for number in range(20):
            assert (await ask(client, sticky=f"d{number}")).text == "Hi."
        return [call.key for call in server.calls], client.usage

    keys, usage = run(one_empty_key(body), job, keys=KEYS[:2])
    assert keys.count(KEYS[0]) == 1
    assert usage.num_errors_in_200 == 1


@pytest.mark.parametrize(
    "code",
    [429, "429", "rate_limit_exceeded", "rate_limit_error", "overloaded_error", 503, "x", None],
)
def test_trouble_in_a_200_is_tried_again(code):
    body = {"error": {"code": code, "message": "Slow down."}}
    completion, calls = ask_and_count(scripted(sent(body), lambda: ok("Hi.")))
    assert completion.text == "Hi."
    assert len(calls) == 2


@pytest.mark.parametrize("code", [400, "context_length_exceeded", "invalid_request_error"])
def test_a_refusal_in_a_200_is_never_repeated(code):
    error, calls = ask_and_count(scripted(sent({"error": {"code": code, "message": "Too long."}})))
    assert isinstance(error, RefusedError)
    assert "Too long." in str(error)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"choices": None, "error": {"message": "overloaded"}},
        {"choices": None},
        {"choices": []},
        answer("Half", "error"),
        answer("Half", "insufficient_system_resource"),
        {"error": "overloaded"},
    ],
)
def test_a_200_without_an_answer_is_the_servers_trouble_and_no_wrong_address(body):
    error, calls = ask_and_count(scripted(sent(body)), retry={"max_attempts": 3})
    assert isinstance(error, ExhaustedError)
    assert "base URL" not in str(error)
    assert len(calls) == 3


# Money -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        "many",
        {"prompt_tokens": -5, "completion_tokens": -7},
        {"prompt_tokens": "ten", "completion_tokens": None},
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": 10**15, "completion_tokens": 10**15},
        {"prompt_tokens": 10**8, "completion_tokens": 10**9},
        {"prompt_tokens": True, "completion_tokens": [3]},
    ],
)
def test_no_usable_figure_counts_as_an_estimate(usage, caplog):
    async def job(client, server):
        with caplog.at_level(logging.WARNING, "emodistill"):
            await ask(client), await ask(client)
        return client.usage, len(server.calls[0].body["messages"][0]["content"])

    used, _ = run(scripted(sent(answer("I can pay in 60 days.", usage=usage))), job)
    assert 20 < used.prompt_tokens < 200
    assert used.completion_tokens == 2 * 6
    assert used.cost_usd == pytest.approx((used.prompt_tokens + 2 * 12) * 1e-6)
    assert used.num_estimated == 2
    assert caplog.text.count("estimated") == 1


@pytest.mark.parametrize(
    "trouble",
    [
        sent(b'{"choices": [{"message": {"content": "I can'),
        sent(b"[" * 100_000),
        sent(b'{"choices": ' + b"9" * 5_000 + b"}"),
        sent(b"\xff\xfe\x00"),
        sent(b" " * (MAX_ANSWER_BYTES + 1)),
        sent({"choices": [{}]} | {"usage": {"prompt_tokens": 1e999}}),
    ],
    ids=["cut", "deep", "digits", "utf-16", "long", "infinite"],
)
def test_a_paid_answer_that_cannot_be_read_is_trouble_and_costs_its_limit(trouble):
    async def job(client, server):
        first = await ask(client)
        return first, client.usage

    completion, usage = run(scripted(trouble, lambda: ok("Hi.", 10, 5)), job)
    assert completion.text == "Hi."
    assert usage.completion_tokens == 160 + 5
    assert usage.num_estimated == 1


FOREIGN = [
    {"choices": [{"text": "hello"}]},
    {"choices": ["hello"]},
    {"choices": [{"message": {"content": {"text": "hello"}}}]},
    {"detail": "done"},
    {"choices": None},
]


@pytest.mark.parametrize("body", FOREIGN, ids=str)
@pytest.mark.parametrize("usage", [USAGE, None], ids=["stated", "unstated"])
def test_an_answer_of_another_form_is_paid_for_as_it_states_or_else_estimated(body, usage):
    async def job(client, server):
        await ask(client)
        return client.usage

    used = run(scripted(sent(body | {"usage": usage}), lambda: ok("Hi.", 10, 5)), job)
    assert used.completion_tokens == (5 if usage else 160) + 5
    assert used.num_estimated == (usage is None)


def test_a_stream_that_nobody_asked_for_is_paid_for_and_a_web_page_is_not():
    async def job(client, server):
        await ask(client)
        return client.usage.completion_tokens

    def typed(kind):
        return lambda: web.Response(text="data: {}", content_type=kind)

    assert run(scripted(typed("text/event-stream"), lambda: ok("Hi.", 10, 5)), job) == 165
    assert run(scripted(typed("text/html"), lambda: ok("Hi.", 10, 5)), job) == 5


@pytest.mark.parametrize(
    ("message", "reason", "num_tokens"),
    [
        ({"content": None, "reasoning_content": "x" * 4_000}, "stop", 1_000),
        ({"content": [{"type": "thinking", "thinking": "x" * 400}]}, "stop", 100 + 2),
        ({"content": ""}, "length", 160),
        ({"content": ""}, "stop", 0),
    ],
)
def test_thoughts_that_are_not_told_apart_by_usage_are_paid_for(message, reason, num_tokens):
    body = {"choices": [{"message": message, "finish_reason": reason}]}
    completion, _ = ask_and_count(scripted(sent(body)))
    assert completion.completion_tokens == num_tokens


def test_the_ceiling_binds_without_any_stated_usage():
    async def job(client, server):
        client.purse.ceiling_usd = 0.5
        with pytest.raises(CeilingError):
            for _ in range(100):
                await ask(client, max_tokens=100_000)
        return len(server.calls), client.usage.cost_usd

    num_calls, spent_usd = run(
        scripted(sent(answer("a " * 20_000, usage=None))), job, profiles=priced(1.0, 10.0)
    )
    assert spent_usd == pytest.approx(num_calls * 0.1, rel=0.01)
    assert num_calls == 5


@pytest.mark.parametrize("details", [{"cached_tokens": -900}, {"cached_tokens": 1e30}, [1], "x"])
def test_absurd_cached_tokens_never_lower_the_bill(details):
    usage = USAGE | {"prompt_tokens_details": details}
    completion, _ = ask_and_count(
        scripted(sent(answer(usage=usage))), profiles=priced(1.0, 2.0, 0.1)
    )
    assert completion.cost_usd == pytest.approx(10e-6 + 2 * 5e-6)


# Waiting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("seconds", ["1209600", "1e300", str(MAX_REST_S + 1)])
def test_a_key_told_to_rest_for_ages_is_out(status, seconds):
    async def respond(call):
        is_tired = call.key == KEYS[0]
        return fault(status, "later", **{"Retry-After": seconds}) if is_tired else ok("Hi")

    async def job(client, server):
        return [(await ask(client, sticky=f"d{n}")).text for n in range(10)], client.keys.num_live

    started_s = time.monotonic()
    assert run(respond, job, keys=KEYS[:2]) == (["Hi"] * 10, 1)
    error, _ = ask_and_count(respond)
    assert "rest of" in str(error) and "hours" in str(error)
    assert time.monotonic() - started_s < 10


def test_a_server_may_be_silent_for_as_long_as_it_was_given():
    """One that thinks for long sends its first byte at the end."""

    async def respond(call):
        await asyncio.sleep(1.2)
        return ok("Hi.")

    completion, calls = ask_and_count(respond, retry={"timeout_s": 5.0})
    assert (completion.text, len(calls)) == ("Hi.", 1)


# Hostile servers ---------------------------------------------------------------------------------


def packed(data, how):
    encoding = {"gzip": gzip.compress, "deflate": zlib.compress}[how](data)
    return sent(encoding, headers={"Content-Encoding": how})


@pytest.mark.parametrize("status", [401, 429])
def test_a_body_that_cannot_be_read_leaves_the_status_as_it_is(status):
    async def respond(call):
        bad = sent(b"no gzip", status=status, headers={"Content-Encoding": "gzip"})
        return bad() if call.key == KEYS[0] else ok("Hi.")

    async def job(client, server):
        assert (await ask(client)).text == "Hi."
        return client.keys.num_live, client.keys.num_cooling

    live, cooling = run(respond, job, keys=KEYS[:2])
    assert live + cooling <= 3 if status == 429 else live == 1


@pytest.mark.parametrize("how", ["gzip", "deflate"])
def test_packed_answers_are_read(how):
    completion, _ = ask_and_count(scripted(packed(json.dumps(answer()).encode(), how)))
    assert completion.text == "Hi."


BOMB = gzip.compress(b" " * (100 << 20), compresslevel=1)


@pytest.mark.parametrize("status", [200, 500])
def test_a_packed_bomb_is_not_unpacked(status):
    response = sent(BOMB, status=status, headers={"Content-Encoding": "gzip"})
    tracemalloc.start()
    error, _ = ask_and_count(scripted(response), retry={"max_attempts": 1})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ("more than 4,194,304 bytes" if status == 200 else "HTTP 500") in str(error)
    assert peak < 40 << 20


def test_nonsense_that_claims_to_be_packed_is_trouble():
    error, calls = ask_and_count(
        scripted(sent(b"not gzip", headers={"Content-Encoding": "gzip"})),
        retry={"max_attempts": 2},
    )
    assert isinstance(error, ApiError)
    assert len(calls) == 2


def test_an_endless_answer_is_given_up():
    started_s = time.monotonic()
    error, _ = ask_and_count(scripted(lambda: endless), retry={"max_attempts": 2, **FAST})
    assert isinstance(error, ExhaustedError)
    assert "more than 4,194,304 bytes" in str(error)
    assert time.monotonic() - started_s < 20


@pytest.mark.parametrize("data", [b"[" * 200_000, b'{"error": ' + b"9" * 5_000 + b"}", b"\xff"])
def test_error_bodies_are_bounded_as_well(data):
    error, _ = ask_and_count(scripted(sent(data, status=400)))
    assert isinstance(error, RefusedError)
    assert len(str(error)) < 600


def test_a_servers_words_cannot_steer_the_terminal_or_silence_the_log():
    words = {"error": {"message": "bad \x1b[2J\ud83d model\u202e"}}
    error, _ = ask_and_count(scripted(sent(words, status=400)))
    assert "bad \ufffd[2J\ufffd model\ufffd" in str(error)
    str(error).encode()


def test_a_key_echoed_in_a_header_is_not_shown():
    async def respond(call):
        return web.Response(text="x", headers={"Content-Type": f"text/{call.key}"})

    error, _ = ask_and_count(respond, retry={"max_attempts": 1})
    assert KEYS[0] not in str(error) and "…1111" in str(error)


def test_a_password_in_netrc_stays_where_it_is(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret-of-netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    seen = []

    async def respond(call):
        seen.append(call.key)
        return ok("Hi.")

    completion, _ = ask_and_count(respond)
    assert completion.text == "Hi."
    assert seen == [KEYS[0]]


def test_a_proxy_of_the_environment_is_used_for_other_machines_only(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "internal.example")
    assert proxy_of("https://api.openai.com/v1") == "http://proxy.example:3128"
    assert proxy_of("https://internal.example/v1") is None
    assert proxy_of("http://127.0.0.1:8000/v1") is None
    assert proxy_of("http://localhost:8000/v1") is None
