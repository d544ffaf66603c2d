"""The client against a real server that breaks, lies and stays silent."""

import asyncio
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web
from chat_client import FAST, KEYS, MESSAGES, ask, ask_and_count, priced, run
from chat_server import ChatServer, cut, fault, ok, scripted

from emodistill.errors import ApiError
from emodistill.llm import ChatClient, ExhaustedError, RefusedError, get_provider
from emodistill.llm.client import CeilingError, RetryPolicy
from emodistill.llm.transport import retry_after_s


def test_a_completion_and_what_went_over_the_wire():
    completion, calls = ask_and_count(scripted(ok("Hi.", 1_000, 500)))
    assert completion.text == "Hi."
    assert (completion.prompt_tokens, completion.completion_tokens) == (1_000, 500)
    assert completion.cost_usd == pytest.approx(1_000 * 1e-6 + 500 * 2e-6)
    assert 0 < completion.latency_s < 5
    assert calls[0].key == KEYS[0]
    assert calls[0].body == {
        "model": "m",
        "messages": MESSAGES,
        "temperature": 0.7,
        "stream": False,
        "max_tokens": 160,
        "seed": 5,
    }


def test_a_model_without_a_price_costs_nothing():
    async def job(client, server):
        return await ask(client, model="unknown"), client.usage.cost_usd

    completion, spent_usd = run(scripted(lambda: ok("Hi.")), job)
    assert (completion.cost_usd, spent_usd) == (0.0, 0.0)


@pytest.mark.parametrize("content", ["", None])
def test_empty_content_is_a_valid_answer(content):
    completion, calls = ask_and_count(scripted(ok(content)))
    assert completion.text == ""
    assert len(calls) == 1


def test_half_a_surrogate_pair_becomes_writable_text():
    half = '{"choices": [{"message": {"content": "Great \\ud83d"}}]}'
    completion, _ = ask_and_count(
        scripted(lambda: web.Response(text=half, content_type="application/json"))
    )
    assert completion.text == "Great \ufffd"


def html():
    return web.Response(text="<html>welcome</html>", content_type="text/html")


def half_json():
    return web.Response(text='{"choices": [', content_type="application/json")


def alien_json():
    return web.json_response({"status": "fine"})


@pytest.mark.parametrize(
    "trouble",
    [
        lambda: fault(500),
        lambda: fault(503),
        lambda: fault(429),
        lambda: fault(408),
        lambda: cut,
        html,
        half_json,
        alien_json,
    ],
    ids=["500", "503", "429", "408", "cut", "html", "half", "alien"],
)
def test_trouble_is_retried_up_to_the_ceiling(trouble):
    completion, calls = ask_and_count(scripted(trouble, trouble, lambda: ok("Hi.")))
    assert completion.text == "Hi."
    assert len(calls) == 3
    error, calls = ask_and_count(scripted(trouble), retry={"max_attempts": 4})
    assert isinstance(error, ApiError)
    assert "after 4 attempts" in str(error) and "/v1/chat/completions" in str(error)
    assert len(calls) == 4


def test_a_silent_server_is_given_up_and_asked_again():
    async def respond(call):
        if call.number == 0:
            await asyncio.sleep(60)
        return ok("Hi.")

    started_s = time.monotonic()
    completion, calls = ask_and_count(respond, retry={"timeout_s": 0.5})
    assert completion.text == "Hi."
    assert len(calls) == 2
    assert time.monotonic() - started_s < 30


@pytest.mark.parametrize("status", [400, 413, 422, 451])
def test_a_refusal_is_never_repeated(status):
    words = "rate the generated content: rate limit is not the problem"
    error, calls = ask_and_count(scripted(fault(status, words)))
    assert isinstance(error, RefusedError)
    assert error.status == status
    assert f"HTTP {status}: {words}" in str(error)
    assert len(calls) == 1


def test_a_wrong_path_or_model_says_what_to_check():
    error, calls = ask_and_count(scripted(fault(404, "model m does not exist")))
    assert type(error) is ApiError
    assert "model m does not exist" in str(error) and "base URL" in str(error)
    assert len(calls) == 1


def test_redirects_are_not_followed_with_the_key():
    async def job(client, server):
        with pytest.raises(ApiError, match="HTTP 307"):
            await ask(client)
        return server.calls

    elsewhere = {"Location": "http://127.0.0.1:9/v1/chat/completions"}
    assert len(run(scripted(lambda: web.Response(status=307, headers=elsewhere)), job)) == 1


def test_an_address_that_is_no_api_is_an_error_of_the_settings():
    error, _ = ask_and_count(scripted(html), retry={"max_attempts": 2})
    assert type(error) is ApiError
    assert "text/html" in str(error) and "/v1" in str(error)


def test_alien_answers_between_good_ones_are_only_this_requests_trouble():
    async def job(client, server):
        await ask(client)
        with pytest.raises(ExhaustedError):
            await ask(client)

    run(scripted(lambda: ok("Hi."), html), job, retry={"max_attempts": 2})


def test_nobody_listening_is_said_soon():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    provider = get_provider(base_url=f"http://127.0.0.1:{port}/v1")

    async def main():
        async with ChatClient(provider, (), retry=RetryPolicy(backoff_s=0.05)) as client:
            await ask(client)

    with pytest.raises(ApiError, match=rf"127\.0\.0\.1:{port}.*3 attempts.*Check that the server"):
        asyncio.run(main())


def test_a_server_that_goes_away_gets_all_attempts():
    async def main():
        async with ChatServer(scripted(lambda: ok("Hi."))) as server:
            policy = RetryPolicy(max_attempts=5, **FAST)
            client = ChatClient(get_provider(base_url=server.base_url), (), retry=policy)
            await client.__aenter__()
            await ask(client)
        with pytest.raises(ApiError, match="after 5 attempts"):
            await ask(client)
        await client.__aexit__()

    asyncio.run(main())


def test_a_pause_may_be_asked_for_with_a_503_too():
    started_s = time.monotonic()
    completion, calls = ask_and_count(
        scripted(lambda: fault(503, **{"Retry-After": "0.2"}), lambda: ok("Hi."))
    )
    assert completion.text == "Hi."
    assert calls[1].time_s - calls[0].time_s >= 0.2
    assert time.monotonic() - started_s < 3


# What OpenAI's guide to error codes lists: status, body, how many calls it takes, what is raised.
OPENAI_ERRORS = [
    (401, "Incorrect API key provided", "invalid_api_key", 1, "no API key is left"),
    (401, "You must be a member of an organization to use the API", None, 1, "no API key is left"),
    (403, "Country, region, or territory not supported", "unsupported_country", 1, "may use this"),
    (429, "Rate limit reached for requests", "rate_limit_exceeded", 8, "add keys"),
    (429, "You exceeded your current quota", "insufficient_quota", 1, "no API key is left"),
    (500, "The server had an error while processing your request", None, 8, "start again later"),
    (503, "The engine is currently overloaded, please try again later", None, 8, "again later"),
    (404, "The model `m` does not exist", "model_not_found", 1, "Check the model's name"),
    (
        400,
        "This model's maximum context length is 4097 tokens",
        "context_length_exceeded",
        1,
        "4097",
    ),
]


@pytest.mark.parametrize(("status", "message", "code", "num_calls", "words"), OPENAI_ERRORS)
def test_the_errors_that_openai_documents(status, message, code, num_calls, words):
    body = {"error": {"message": message, "type": "x", "param": None, "code": code}}
    codes = get_provider("openai").dead_codes
    respond = scripted(lambda: web.json_response(body, status=status))
    error, calls = ask_and_count(respond, dead_codes=codes)
    assert message.split(" `")[0] in str(error) and words in str(error)
    assert len(calls) == num_calls


# What DashScope's list of error codes gives in its compatible mode: its "insufficient_quota" is a
# limit of tokens per minute, and an unpaid account comes as a 400.
DASHSCOPE_ERRORS = [
    (429, "You exceeded your current quota", "insufficient_quota", 8, "add keys"),
    (429, "Requests rate limit exceeded", "limit_requests", 8, "add keys"),
    (400, "Access denied, make sure your account is in good standing", "Arrearage", 1, "balance"),
    (401, "Incorrect API key provided", "invalid_api_key", 1, "no API key is left"),
    (404, "The model `m` does not exist", "model_not_found", 1, "Check the model's name"),
]


@pytest.mark.parametrize(("status", "message", "code", "num_calls", "words"), DASHSCOPE_ERRORS)
def test_the_errors_that_dashscope_documents(status, message, code, num_calls, words):
    body = {"error": {"message": message, "type": code, "param": None, "code": code}}
    codes = get_provider("dashscope").dead_codes
    respond = scripted(lambda: web.json_response(body, status=status))
    error, calls = ask_and_count(respond, dead_codes=codes)
    assert message.split(" `")[0] in str(error) and words in str(error)
    assert len(calls) == num_calls


# As a llama.cpp server (llama-cpp-python 0.3.36 with SmolLM2-135M) has answered.
LLAMA_ANSWER = {
    "id": "chatcmpl-8d3c7b4e",
    "object": "chat.completion",
    "created": 1764041524,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"content": "Hello there! I'm here to help", "role": "assistant"},
            "logprobs": None,
            "finish_reason": "length",
        }
    ],
    "usage": {"prompt_tokens": 33, "completion_tokens": 8, "total_tokens": 41},
}


LLAMA_TOO_LONG = {
    "error": {
        "message": "This model's maximum context length is 2048 tokens. However, you requested "
        "4039 tokens (4031 in the messages, 8 in the completion). Please reduce the length of "
        "the messages or completion.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
}


LLAMA_LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}


def test_the_answers_of_a_llama_cpp_server():
    completion, _ = ask_and_count(scripted(lambda: web.json_response(LLAMA_ANSWER)))
    assert completion.text == "Hello there! I'm here to help"
    assert (completion.prompt_tokens, completion.completion_tokens) == (33, 8)
    error, calls = ask_and_count(scripted(lambda: web.json_response(LLAMA_TOO_LONG, status=400)))
    assert type(error) is RefusedError and "2048 tokens" in str(error) and len(calls) == 1
    completion, calls = ask_and_count(
        scripted(
            lambda: web.json_response(LLAMA_LOADING, status=503),
            lambda: web.json_response(LLAMA_ANSWER),
        )
    )
    assert completion.completion_tokens == 8 and len(calls) == 2


@pytest.mark.parametrize(
    "cached",
    [{"prompt_tokens_details": {"cached_tokens": 600}}, {"prompt_cache_hit_tokens": 600}],
)
def test_cached_tokens_of_an_answer_are_read(cached):
    usage = {"prompt_tokens": 1_000, "completion_tokens": 500} | cached
    body = LLAMA_ANSWER | {"usage": usage}
    known = priced(1.0, 2.0, 0.5)
    completion, _ = ask_and_count(scripted(lambda: web.json_response(body)), profiles=known)
    assert completion.cost_usd == pytest.approx(0.0017)


def test_nothing_is_asked_beyond_the_ceiling():
    async def job(client, server):
        client.purse.ceiling_usd = 0.0029
        for _ in range(2):
            await ask(client)  # 0.002 each
        with pytest.raises(CeilingError, match="are spent"):
            await ask(client)
        return len(server.calls)

    assert run(scripted(lambda: ok("Hi.", 1_000, 500)), job) == 2


def test_many_calls_at_once():
    async def respond(call):
        await asyncio.sleep(0.1)
        return ok("Hi.")

    async def job(client, server):
        started_s = time.monotonic()
        answers = await asyncio.gather(*(ask(client, sticky=f"d{i}") for i in range(300)))
        return len(answers), time.monotonic() - started_s

    count, elapsed_s = run(respond, job)
    assert count == 300
    assert elapsed_s < 30


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "nan"}, None),
        ({"retry-after-ms": "250", "Retry-After": "1"}, 0.25),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after_as_number(headers, seconds):
    assert retry_after_s(headers) == seconds


def test_retry_after_as_http_date():
    moment = datetime.now(UTC) + timedelta(seconds=90)
    assert 88 < retry_after_s({"Retry-After": format_datetime(moment, usegmt=True)}) <= 90
