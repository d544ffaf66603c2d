"""The client against a real server that limits, breaks, lies and stays silent."""

import asyncio
import logging
import math
import socket
import time
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web
from chat_server import CUT, ChatServer, fault, ok, scripted

from emodistill.errors import ApiError, InputError
from emodistill.llm import ChatClient, ExhaustedError, Price, Provider, RefusedError, get_provider
from emodistill.llm import keys as llm_keys
from emodistill.llm.client import CeilingError, retry_after_s
from emodistill.llm.gate import Gate
from emodistill.llm.keys import UNLIMITED, ApiKey, KeyPool, Limits
from emodistill.llm.providers import load_providers

KEYS = ("sk-secret-one-AAAA1111", "sk-secret-two-BBBB2222", "sk-secret-three-CCCC3333")
MESSAGES = [{"role": "user", "content": "Hello?"}]
FAST = {"backoff_s": 0.01, "max_backoff_s": 0.02}
QUICK = {**FAST, "timeout_s": 5.0}


def run(respond, job, *, keys=KEYS[:1], limits=UNLIMITED, dead_codes=(), **settings):
    """Run `job(client, server)` against a server that answers by `respond`."""

    async def main():
        async with ChatServer(respond) as server:
            provider = Provider(
                name="test",
                base_url=server.base_url,
                key_env="TEST_KEY",
                prices={"m": Price(1.0, 2.0)},
                limits=limits,
                dead_codes=dead_codes,
            )
            async with ChatClient(provider, keys, **(QUICK | settings)) as client:
                return await job(client, server)

    return asyncio.run(main())


async def ask(client, sticky="d", model="m", **changes):
    settings = {"temperature": 0.7, "max_tokens": 160, "seed": 5} | changes
    return await client.chat(MESSAGES, model=model, sticky=sticky, **settings)


def ask_and_count(respond, **settings):
    async def job(client, server):
        try:
            return await ask(client), server.calls
        except ApiError as error:
            return error, server.calls

    return run(respond, job, **settings)


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
        "max_tokens": 160,
        "seed": 5,
    }


def test_a_model_without_a_price_and_an_answer_without_usage_cost_nothing():
    body = {"choices": [{"message": {"content": "Hi."}}]}

    async def job(client, server):
        first = await ask(client, model="unknown")
        return first, client.spent_usd

    (completion, spent_usd) = run(scripted(lambda: web.json_response(body)), job)
    assert (completion.prompt_tokens, completion.cost_usd, spent_usd) == (0, 0.0, 0.0)


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
    assert completion.text == "Great ?"


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
        lambda: CUT,
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
    error, calls = ask_and_count(scripted(trouble), max_attempts=4)
    assert isinstance(error, ApiError)
    assert "after 4 attempts" in str(error) and "/v1/chat/completions" in str(error)
    assert len(calls) == 4


def test_a_silent_server_is_given_up_and_asked_again():
    async def respond(call):
        if call.number == 0:
            await asyncio.sleep(60)
        return ok("Hi.")

    started_s = time.monotonic()
    completion, calls = ask_and_count(respond, timeout_s=1)
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
    error, _ = ask_and_count(scripted(html), max_attempts=2)
    assert type(error) is ApiError
    assert "text/html" in str(error) and "/v1" in str(error)


def test_alien_answers_between_good_ones_are_only_this_requests_trouble():
    async def job(client, server):
        await ask(client)
        with pytest.raises(ExhaustedError):
            await ask(client)

    run(scripted(lambda: ok("Hi."), html), job, max_attempts=2)


def test_nobody_listening_is_said_soon():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    provider = get_provider(base_url=f"http://127.0.0.1:{port}/v1")

    async def main():
        async with ChatClient(provider, (), backoff_s=0.05) as client:
            await ask(client)

    with pytest.raises(ApiError, match=rf"127\.0\.0\.1:{port}.*3 attempts.*Check that the server"):
        asyncio.run(main())


def test_a_server_that_goes_away_gets_all_attempts():
    async def main():
        async with ChatServer(scripted(lambda: ok("Hi."))) as server:
            client = ChatClient(get_provider(base_url=server.base_url), (), max_attempts=5, **FAST)
            await client.__aenter__()
            await ask(client)
        with pytest.raises(ApiError, match="after 5 attempts"):
            await ask(client)
        await client.__aexit__()

    asyncio.run(main())


# Keys


def test_a_limited_key_gets_no_call_until_it_may_and_nothing_is_lost():
    limited_until_s = {}

    async def respond(call):
        if call.key == KEYS[1] and call.key not in limited_until_s:
            limited_until_s[call.key] = time.monotonic() + 1.0
            return fault(429, **{"Retry-After": "1"})
        return ok("Hi.")

    async def job(client, server):
        answers = []

        def back():
            until_s = limited_until_s.get(KEYS[1], math.inf)
            return [call for call in server.calls if call.key == KEYS[1] and call.time_s >= until_s]

        while len(back()) < 6:
            answers.append(await ask(client, sticky=f"dialogue {len(answers)}"))
        return answers, server.calls

    answers, calls = run(respond, job, keys=KEYS)
    until_s = limited_until_s[KEYS[1]]
    to_limited = [call.time_s for call in calls if call.key == KEYS[1]]
    assert all(answer.text == "Hi." for answer in answers)
    assert sum(until_s - 1.0 < time_s < until_s for time_s in to_limited) == 0
    others = {call.key for call in calls if until_s - 1.0 < call.time_s < until_s}
    assert others == {KEYS[0], KEYS[2]}


def test_all_keys_cooling_means_waiting_not_failing():
    seen = set()

    async def respond(call):
        if call.key not in seen:
            seen.add(call.key)
            return fault(429, **{"Retry-After": "0.4"})
        return ok("Hi.")

    async def job(client, server):
        started_s = time.monotonic()
        await asyncio.gather(*(ask(client, sticky=f"d{i}") for i in range(6)))
        return time.monotonic() - started_s, len(server.calls)

    elapsed_s, _ = run(respond, job, keys=KEYS[:2])
    assert 0.4 <= elapsed_s < 20
    assert seen == set(KEYS[:2])


def test_a_pause_may_be_asked_for_with_a_503_too():
    started_s = time.monotonic()
    completion, calls = ask_and_count(
        scripted(lambda: fault(503, **{"Retry-After": "0.5"}), lambda: ok("Hi."))
    )
    assert completion.text == "Hi."
    assert calls[1].time_s - calls[0].time_s >= 0.5
    assert time.monotonic() - started_s < 3


def test_a_dialogue_keeps_its_key_and_dialogues_spread_over_all():
    async def job(client, server):
        for _ in range(2):
            for number in range(60):
                await ask(client, sticky=f"dialogue {number}")
        return [call.key for call in server.calls]

    used = run(scripted(lambda: ok("Hi.")), job, keys=KEYS)
    assert used[:60] == used[60:]
    assert all(8 <= used[:60].count(key) <= 35 for key in KEYS)


def test_a_dead_key_is_dropped_moves_only_its_own_dialogues_and_is_named_by_its_end(caplog):
    async def respond(call):
        return fault(401, f"bad key {call.key}") if call.key == KEYS[0] and alive[0] else ok("Hi.")

    alive = [False]

    async def job(client, server):
        for number in range(40):
            await ask(client, sticky=f"dialogue {number}")
        alive[0] = True
        for number in range(40):
            await ask(client, sticky=f"dialogue {number}")
        return [call.key for call in server.calls]

    with caplog.at_level(logging.WARNING):
        used = run(respond, job, keys=KEYS)
    before, after = used[:40], used[40:]
    dropped_at = after.index(KEYS[0])
    assert after.count(KEYS[0]) == 1
    del after[dropped_at]
    for old, new in zip(before, after, strict=True):
        assert new == old or old == KEYS[0]
    assert "key …1111 is dropped: HTTP 401" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("status", [401, 402])
def test_no_key_left_names_all_ends_and_the_variable(status):
    async def respond(call):
        return fault(status, f"Incorrect API key provided: {call.key}")

    error, calls = ask_and_count(respond, keys=KEYS)
    assert type(error) is ApiError
    assert {call.key for call in calls} == set(KEYS) and len(calls) == 3
    for end in ("1111", "2222", "3333", "TEST_KEY"):
        assert end in str(error)
    assert "secret" not in str(error)


def test_a_key_that_may_not_what_another_may_is_dropped():
    async def respond(call):
        return fault(403, "not your model") if call.key == KEYS[0] else ok("Hi.")

    async def job(client, server):
        for number in range(20):
            assert (await ask(client, sticky=f"dialogue {number}")).text == "Hi."
        return client.keys.num_live, [call.key for call in server.calls].count(KEYS[0])

    assert run(respond, job, keys=KEYS) == (2, 1)


def test_what_no_key_may_is_refused_and_costs_no_key():
    async def respond(call):
        return fault(403, "moderated") if call.body["seed"] == 13 else ok("Hi.")

    async def job(client, server):
        await ask(client)
        with pytest.raises(RefusedError, match="moderated"):
            await ask(client, seed=13)
        return client.keys.num_live, len(server.calls)

    assert run(respond, job, keys=KEYS) == (3, 4)


def test_a_forbidden_first_call_is_an_error_of_the_settings():
    error, calls = ask_and_count(scripted(lambda: fault(403, "no access")), keys=KEYS)
    assert type(error) is ApiError and "may use this model" in str(error)
    assert len(calls) == 3


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


def test_a_key_that_a_server_quotes_is_told_by_its_last_four_characters_at_most(caplog):
    """OpenAI blots out the middle; others quote it whole, or a part of it."""
    caplog.set_level("DEBUG", logger="emodistill")
    key = "sk-qv8sHJq2mVxT4HW9Z"
    for quoted in (key, "sk-qv8sH************HW9Z", key[:11], key[6:]):
        respond = scripted(lambda: fault(401, f"Incorrect API key provided: {quoted}."))  # noqa: B023
        error, _ = ask_and_count(respond, keys=(key,))
        told = f"{error} {caplog.text} {[record.__dict__ for record in caplog.records]}"
        assert "Incorrect API key provided" in told and "HW9Z" in told
        assert not [key[i : i + 5] for i in range(len(key) - 4) if key[i : i + 5] in told], quoted


def test_calls_that_wait_for_their_turn_leave_a_dead_key_alone():
    async def respond(call):
        await asyncio.sleep(0.01)
        return fault(401, "dead") if call.key == KEYS[0] else ok("Hi.")

    async def job(client, server):
        await asyncio.gather(*(ask(client, sticky=f"d{i}") for i in range(20)))
        return [call.key for call in server.calls].count(KEYS[0])

    assert run(respond, job, keys=KEYS[:2], max_in_flight=1) == 1


def test_a_call_that_waits_while_its_key_is_limited_takes_another():
    async def respond(call):
        await asyncio.sleep(0.01)
        return fault(429, **{"Retry-After": "30"}) if call.key == KEYS[0] else ok("Hi.")

    async def job(client, server):
        await asyncio.gather(*(ask(client, sticky=f"d{i}") for i in range(20)))
        return [call.key for call in server.calls].count(KEYS[0])

    assert run(respond, job, keys=KEYS[:2], max_in_flight=1) == 1


def test_a_request_larger_than_a_periods_share_of_tokens_waits_for_several(monkeypatch):
    monkeypatch.setattr(llm_keys, "PERIOD_S", 0.1)

    async def main():
        key = ApiKey("sk-secret-AAAA1111", 0, Limits(tokens_per_minute=60_000))
        started_s = time.monotonic()
        await key.admit(350)  # 100 at once, then 1,000 a second
        return time.monotonic() - started_s

    assert 0.2 <= asyncio.run(main()) < 5


def test_cached_prompt_tokens_have_their_own_price():
    price = Price(1.0, 2.0, 0.1)
    assert price.cost_usd(1_000_000, 0, 600_000) == pytest.approx(0.46)
    assert Price(1.0, 2.0).cost_usd(1_000_000, 0, 600_000) == pytest.approx(1.0)
    for cached in (
        {"prompt_tokens_details": {"cached_tokens": 600}},
        {"prompt_cache_hit_tokens": 600},
    ):
        usage = {"prompt_tokens": 1_000, "completion_tokens": 500} | cached
        body = LLAMA_ANSWER | {"usage": usage}
        completion, _ = ask_and_count(scripted(lambda: web.json_response(body)))  # noqa: B023
        assert completion.cost_usd == pytest.approx(0.002)  # this price knows no cache


def test_nothing_is_asked_beyond_the_ceiling():
    async def job(client, server):
        client.ceiling_usd = 0.0029
        for _ in range(2):
            await ask(client)  # 0.002 each
        with pytest.raises(CeilingError, match="are spent"):
            await ask(client)
        return len(server.calls)

    assert run(scripted(lambda: ok("Hi.", 1_000, 500)), job) == 2


# Limits


def test_a_key_keeps_its_limit_of_requests():
    async def job(client, server):
        started_s = time.monotonic()
        await asyncio.gather(*(ask(client, sticky=f"d{i}") for i in range(25)))
        return time.monotonic() - started_s

    limits = Limits(requests_per_minute=200)  # 20 at once, then 10 every 3 s
    assert 1.4 <= run(scripted(lambda: ok("Hi.")), job, limits=limits) < 15


def test_a_key_keeps_its_limit_of_tokens():
    async def job(client, server):
        started_s = time.monotonic()
        await asyncio.gather(*(ask(client, max_tokens=500) for _ in range(5)))
        return time.monotonic() - started_s

    limits = Limits(tokens_per_minute=20_000)  # 2,000 at once; a call here has some 530
    assert 1.5 <= run(scripted(lambda: ok("Hi.")), job, limits=limits) < 15


def test_trouble_lowers_the_calls_in_flight_and_success_raises_them_again():
    in_flight, peaks = [0], []

    async def respond(call):
        in_flight[0] += 1
        peaks.append(in_flight[0])
        await asyncio.sleep(0.02)
        in_flight[0] -= 1
        return fault(500) if 40 <= call.number < 44 else ok("Hi.")

    async def job(client, server):
        limits = []
        for _ in range(12):
            await asyncio.gather(*(ask(client, sticky=f"d{i}") for i in range(40)))
            limits.append(client.gate.limit)
        return limits

    limits = run(respond, job, max_in_flight=20)
    assert max(peaks) == 20
    assert limits[0] == 20 and limits[1] < 20
    assert limits[1] < limits[4] <= limits[-1] == 20


def test_a_server_that_breaks_now_and_then_is_not_slowed_down_for_it():
    async def respond(call):
        return fault(500) if call.number % 30 == 7 else ok("Hi.")

    async def job(client, server):
        limits = []
        for _ in range(8):
            await asyncio.gather(*(ask(client, sticky=f"d{i}") for i in range(40)))
            limits.append(client.gate.limit)
        return limits, client.num_retries

    limits, num_retries = run(respond, job, max_in_flight=20)
    assert limits == [20] * 8 and num_retries >= 10


def test_a_cancelled_caller_leaves_its_place():
    async def main():
        gate = Gate(1)
        async with gate:
            waiting = [asyncio.create_task(gate.__aenter__()) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.sleep(0)
        waiting[1].cancel()  # it has been let in, and is cancelled before it knows
        await asyncio.gather(*waiting[:2], return_exceptions=True)
        await asyncio.wait_for(waiting[2], 5)
        return gate.num_in_flight

    assert asyncio.run(main()) == 1


def test_a_server_that_wants_a_key_from_a_keyless_client():
    error, _ = ask_and_count(scripted(fault(401, "no key")), keys=())
    assert "asks for an API key" in str(error) and "TEST_KEY" in str(error)


def test_keys_appear_nowhere(caplog):
    """Logs of everybody at DEBUG, messages, tracebacks and reprs, though the server quotes keys."""

    async def respond(call):
        return fault((500, 429, 400)[call.number % 3], f"your key is {call.key}")

    async def job(client, server):
        texts = [repr(client), repr(client.keys), str(vars(client.keys))]
        for settings in ({}, {"sticky": "other"}):
            try:
                await ask(client, **settings)
            except ApiError as error:
                texts += [str(error), repr(error), *traceback.format_exception(error)]
                assert error.__context__ is None
        assert len(texts) > 6
        return "\n".join(texts)

    with caplog.at_level(logging.DEBUG, logger="emodistill"):
        text = run(respond, job, keys=KEYS)
    assert "your key is <key …" in caplog.text
    assert "secret" not in text and "secret" not in caplog.text


def test_short_keys_are_not_shown_in_part():
    assert repr(KeyPool(["abcd"])._live[0]) == "ApiKey(key number 1)"


def test_a_pool_keeps_a_longer_rest_and_counts_keys_once():
    async def main():
        pool = KeyPool([KEYS[0], KEYS[0]])
        assert repr(pool) == "KeyPool(1 of 1 keys live)"
        key = await pool.acquire("d")
        pool.cool(key, 0.3)
        pool.cool(key, 0.0)
        started_s = time.monotonic()
        await pool.acquire("d")
        return time.monotonic() - started_s

    assert 0.3 <= asyncio.run(main()) < 1.0


def test_many_calls_at_once():
    async def respond(call):
        await asyncio.sleep(0.3)
        return ok("Hi.")

    async def job(client, server):
        started_s = time.monotonic()
        answers = await asyncio.gather(*(ask(client, sticky=f"d{i}") for i in range(300)))
        return len(answers), time.monotonic() - started_s

    count, elapsed_s = run(respond, job)
    assert count == 300
    assert elapsed_s < 30


def test_throughput_returns_after_a_storm_of_limits():
    async def respond(call):
        return fault(429) if call.number < 10 else ok("Hi.")

    async def job(client, server):
        await asyncio.gather(*(ask(client, sticky=f"d{i}") for i in range(5)))
        started_s = time.monotonic()
        await asyncio.gather(*(ask(client, sticky=f"d{i}") for i in range(50)))
        return time.monotonic() - started_s, len(server.calls)

    elapsed_s, num_calls = run(respond, job)
    assert num_calls == 10 + 5 + 50
    assert elapsed_s < 20


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


# Providers


def test_builtin_providers_are_usable():
    providers = load_providers()
    assert {"dashscope", "openai", "deepseek", "openrouter", "vllm", "llamacpp"} <= set(providers)
    simulator = get_provider("simulator", base_url="http://127.0.0.1:8000/v1/")
    assert simulator.base_url == "http://127.0.0.1:8000/v1"
    assert simulator.price("sim-teacher") == Price(0.0, 0.0)
    assert simulator.default_model("judge") == "sim-judge"
    assert providers["dashscope"].price("qwen3.5-plus").cost_usd(1_000_000, 1_000_000) == 1.04
    assert providers["dashscope"].price("another") is None


def test_the_whole_url_of_the_endpoint_is_understood():
    assert get_provider(base_url="https://h/v1/chat/completions").base_url == "https://h/v1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("opanai",), "--provider opanai is none of dashscope, openai"),
        (("simulator",), "give --base-url"),
        ((None,), "give --base-url"),
    ],
)
def test_unusable_providers(arguments, words):
    with pytest.raises(InputError, match=words):
        get_provider(*arguments)


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "ftp://host/v1", "http://", "localhost"])
def test_unusable_urls(url):
    with pytest.raises(InputError, match="must look like http"):
        get_provider(base_url=url)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter22@host/v1",
        "https://host/v1?key=hunter22",
        "ftp://user:hunter22@host/v1",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(InputError) as caught:
        get_provider(base_url=url)
    assert "hunter22" not in str(caught.value)


def test_keys_come_from_the_environment():
    provider = load_providers()["openai"]
    assert provider.read_keys({"OPENAI_API_KEY": " a1, b2,,c3 "}) == ("a1", "b2", "c3")
    with pytest.raises(InputError, match="set OPENAI_API_KEY"):
        provider.read_keys({})
    with pytest.raises(InputError, match="OPENAI_API_KEY: key number 2") as caught:
        provider.read_keys({"OPENAI_API_KEY": "good,bad\nkey"})
    assert "bad" not in str(caught.value).replace("OPENAI", "")
    assert load_providers()["vllm"].read_keys({}) == ()


def test_a_provider_without_a_default_model_says_which_flag():
    with pytest.raises(InputError, match=r"no default focal model.*--model"):
        load_providers()["vllm"].default_model("focal")


def test_an_own_file_adds_and_replaces(tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[openai]\nprices = { "gpt-9" = [1, 2.5] }\n[house]\nbase_url = "http://house:1/v1"\n'
    )
    monkeypatch.setenv("EMODISTILL_PROVIDERS", str(path))
    assert get_provider("openai").price("gpt-9") == Price(1.0, 2.5)
    assert get_provider("openai").base_url == "https://api.openai.com/v1"
    assert get_provider("house").base_url == "http://house:1/v1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[house]\n", "lacks base_url"),
        ('[house]\nbase_url = "http://h/v1"\nprice = 3\n', "unknown entry 'price'"),
        ('[house]\nbase_url = "http://h/v1"\nprices = { m = 3 }\n', "USD per million"),
        ("[house\n", "no readable TOML"),
        ('house = "x"\n', "must be a table"),
        ('[house]\nbase_url = "http://h/v1"\nkey = "maybe"\n', "required, optional or none"),
    ],
)
def test_a_broken_own_file_is_named(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        load_providers(path)
