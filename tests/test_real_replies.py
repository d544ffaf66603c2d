"""Replies of real providers, as their pages describe them, and what each must come to."""

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from aiohttp import web
from chat_client import ask, ask_and_count, priced, run
from chat_server import fault, ok, scripted

from emodistill.errors import ApiError
from emodistill.llm import Price, RefusedError
from emodistill.offline.judging import parse_score

SIX = tuple(f"sk-secret-number-{n}-AAA{n}" for n in range(6))
BY_ACCOUNT = {"limits": {"scope": "account"}}


def sent(content, reason="stop", usage=None, **message):
    """A response with a whole answer."""
    choice = {"message": {"content": content, **message}, "finish_reason": reason}
    usage = {"prompt_tokens": 10, "completion_tokens": 5} | (usage or {})
    return lambda: web.json_response({"choices": [choice], "usage": usage})


async def asks(client, count):
    """Ask `count` questions at once; how many were answered."""
    answers = await asyncio.gather(
        *(ask(client, sticky=f"d{i}") for i in range(count)), return_exceptions=True
    )
    return sum(not isinstance(answer, Exception) for answer in answers)


# Limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limited_s", [0.3, pytest.param(3.0, marks=pytest.mark.slow)])
def test_a_limit_of_an_account_rests_all_its_keys_and_costs_few_calls(limited_s):
    """Three seconds of refusals, or all in a tenth of the time: twelve calls at most, nothing is
    lost."""

    async def job(client, server):
        began_s = time.monotonic()

        async def respond(call):
            if call.time_s - began_s < limited_s:
                body = {"error": {"message": "slow", "code": "limit_requests"}}
                return web.json_response(body, status=429)
            return ok("Hi.")

        server.respond = respond
        num_answers = await asks(client, 6)
        in_vain = [call for call in server.calls if call.time_s - began_s < limited_s]
        return num_answers, len(in_vain), len(server.calls)

    pauses = {"backoff_s": limited_s / 6, "max_backoff_s": 10 * limited_s}  # as by default
    found = run(None, job, keys=SIX, profile=BY_ACCOUNT, retry=pauses)
    assert found[0] == 6 and found[1] <= 12 and found[2] == found[1] + 6
    assert run(None, job, keys=SIX, retry=pauses)[1] > 12, "what it costs by key"


def test_a_rest_of_an_account_costs_nobody_who_waits_an_attempt():
    async def respond(call):
        return ok("Hi.") if call.time_s > until_s[0] else fault(429)

    async def job(client, server):
        until_s[0] = time.monotonic() + 0.4
        return await asks(client, 30), len(server.calls), client.usage.num_retries

    until_s = [0.0]
    policy = {"backoff_s": 0.02, "max_backoff_s": 0.05, "max_attempts": 3}
    num_answers, num_calls, _ = run(
        respond, job, keys=SIX, profile=BY_ACCOUNT, retry=policy, max_in_flight=4
    )
    assert num_answers >= 26, "only those that went first may have used up their three attempts"
    assert num_calls < 30 + 20


def windowed(per_second, counts):
    """A server that takes so many calls of an account within any second."""
    times = {}

    async def respond(call):
        account = counts(call.key)
        recent = times.setdefault(account, [])
        recent[:] = [moment for moment in recent if call.time_s - moment < 1.0]
        if len(recent) >= per_second:
            return fault(429)
        recent.append(call.time_s)
        return ok("Hi.")

    return respond


def test_keys_reach_the_rate_of_their_accounts():
    """Six keys of one account, and of six; both at once, since most of it is waiting."""
    per_second, seconds = 20, 2  # few enough for a machine with other work

    def measured(accounts):
        num_accounts = len(accounts)
        of_account = {key: i for i, keys in enumerate(accounts) for key in keys}

        async def job(client, server):
            async def worker():
                while time.monotonic() < until_s:
                    number = next(numbers)
                    await ask(client, sticky=f"d{number}")

            numbers = iter(range(100_000))
            until_s = time.monotonic() + seconds
            await asyncio.gather(*(worker() for _ in range(16 * num_accounts)))
            last_s = server.calls[-1].time_s
            elapsed_s = last_s - server.calls[0].time_s
            return client.usage, len(server.calls) / elapsed_s / num_accounts

        limits = {"limits": {"scope": "account", "requests_per_second": per_second}}
        return run(windowed(per_second, of_account.get), job, keys=accounts, profile=limits)

    with ThreadPoolExecutor(2) as pool:
        of_both = list(pool.map(measured, ([SIX], [[key] for key in SIX])))
    for usage, found in of_both:
        assert found >= 0.88 * per_second  # of six accounts, one that stands idle leaves 0.83
        assert usage.num_retries < 0.05 * usage.num_calls


def test_calls_grow_no_faster_than_a_burst_limit_allows():
    counts = Counter()

    async def respond(call):
        second = int(call.time_s)
        if counts[second] >= max(10, 2 * counts[second - 1]):
            body = {"error": {"message": "burst", "code": "limit_burst_rate"}}
            return web.json_response(body, status=429)
        counts[second] += 1
        return ok("Hi.")

    async def job(client, server):
        return await asks(client, 30), client.usage, [call.headers for call in server.calls]

    profile = {
        "limits": {"scope": "account", "growth": 1.8},
        "headers": {"X-DashScope-Wait-Timeout": "30"},
    }
    num_answers, usage, headers = run(respond, job, keys=SIX, profile=profile)
    assert num_answers == 30
    assert usage.num_retries < 0.05 * usage.num_calls
    assert {one["X-DashScope-Wait-Timeout"] for one in headers} == {"30"}


# Requests ---------------------------------------------------------------------------------------


def test_a_strict_server_gets_what_it_takes():
    async def respond(call):
        body = call.body
        is_wrong = "temperature" in body and body.get("reasoning_effort") != "none"
        if is_wrong or "max_tokens" in body:
            error = {"param": "temperature", "code": "unsupported_value", "message": "no"}
            return web.json_response({"error": error}, status=400)
        return ok("Hi.")

    known = (
        ("*", {"max_tokens_field": "max_completion_tokens"}),
        ("gpt-6*", {"thinking_off": {"reasoning_effort": "none"}}),
        ("gpt-5-*", {"omit": ["temperature"]}),
    )

    async def job(client, server):
        for model in ("gpt-6-luna", "gpt-5-mini"):
            await ask(client, model=model)
        return [call.body for call in server.calls]

    luna, mini = run(respond, job, profiles=known)
    assert (luna["temperature"], luna["max_completion_tokens"]) == (0.7, 160)
    assert "temperature" not in mini and "reasoning_effort" not in mini


# Thoughts ---------------------------------------------------------------------------------------


def test_a_model_that_only_thinks_costs_one_call_and_is_told_the_switch():
    usage = {"completion_tokens": 64, "completion_tokens_details": {"reasoning_tokens": 64}}
    respond = scripted(sent(None, "length", usage, reasoning_content="45 would do, but"))
    error, calls = ask_and_count(respond)
    assert type(error) is ApiError and len(calls) == 1
    assert "only thought: 64 tokens" in str(error) and "enable_thinking = false" in str(error)
    switched = {"thinking_off": {"enable_thinking": False}}
    error, _ = ask_and_count(respond, profile=switched)
    assert 'although the request said {"enable_thinking": false}' in str(error)


def test_a_thought_too_long_between_good_answers_is_refused_alone_and_billed():
    usage = {"completion_tokens": 64, "completion_tokens_details": {"reasoning_tokens": 64}}

    async def job(client, server):
        await ask(client)
        with pytest.raises(RefusedError, match=r"only thought.*Switch its thinking off"):
            await ask(client)
        return client.usage

    found = run(scripted(lambda: ok("Hi."), sent("", "length", usage, reasoning="hm")), job)
    assert (found.reasoning_tokens, found.completion_tokens) == (64, 69)
    assert found.cost_usd == pytest.approx((20 + 2 * 69) * 1e-6)


def test_thoughts_counted_apart_are_billed_as_output():
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 150}
    usage |= {"completion_tokens_details": {"reasoning_tokens": 40}}
    completion, _ = ask_and_count(scripted(sent("Hi.", usage=usage)))
    assert completion.completion_tokens == 50
    assert completion.cost_usd == pytest.approx(100e-6 + 2 * 50e-6)


@pytest.mark.parametrize(
    ("usage", "num_tokens", "num_thoughts"),
    [
        ({"prompt_tokens": 785, "completion_tokens": 51, "total_tokens": 1400}, 615, 564),
        ({"prompt_tokens": 785, "completion_tokens": 0, "total_tokens": 1400}, 615, 615),
        ({"prompt_tokens": 785, "completion_tokens": 51, "total_tokens": 836}, 51, 0),
        ({"prompt_tokens": 785, "completion_tokens": 51, "total_tokens": 51}, 51, 0),
    ],
)
def test_a_total_beyond_prompt_and_answer_is_of_thoughts(usage, num_tokens, num_thoughts):
    async def job(client, server):
        await ask(client)
        return client.usage

    used = run(scripted(sent("Hi.", usage=usage)), job)
    assert (used.completion_tokens, used.reasoning_tokens) == (num_tokens, num_thoughts)
    assert used.cost_usd == pytest.approx(785e-6 + 2e-6 * num_tokens)


@pytest.mark.parametrize(("stated", "num_tokens"), [(51, 615), (None, 564), (600, 600)])
def test_thoughts_without_a_total_are_billed_at_least_once(stated, num_tokens):
    usage = {"completion_tokens_details": {"reasoning_tokens": 564}, "completion_tokens": stated}
    completion, _ = ask_and_count(scripted(sent("Hi.", usage=usage)))
    assert completion.completion_tokens == num_tokens


def test_room_for_thoughts_comes_on_top_of_the_answers():
    _, calls = ask_and_count(scripted(lambda: ok("Hi.")), profile={"thinking_tokens": 512})
    assert calls[0].body["max_tokens"] == 160 + 512


def test_a_score_behind_thoughts_that_nobody_opened_is_the_judges_own():
    completion, _ = ask_and_count(scripted(sent("hm SCORE: 9</think>SCORE: 3")))
    assert parse_score(completion.text) == 3
    completion, _ = ask_and_count(scripted(sent("I can pay 40 d", "length")))
    assert completion.finish_reason == "length"


# Errors and bills -------------------------------------------------------------------------------


def test_errors_inside_a_200_are_tried_again_and_the_servers_bill_counts():
    broken = web.json_response
    respond = scripted(
        lambda: broken({"error": {"code": 429, "message": "slow"}}),
        sent("I could p", "error"),
        sent("40 days.", usage={"cost": 0.00031}),
    )

    async def job(client, server):
        return await ask(client), client.usage, len(server.calls)

    completion, usage, num_calls = run(respond, job, states_cost=True, profiles=())
    assert (completion.text, completion.cost_usd, num_calls) == ("40 days.", 0.00031, 3)
    assert usage.cost_usd == 0.00031
    priced_too, usage, _ = run(respond, job, profiles=priced(1.0, 2.0))
    assert priced_too.cost_usd == pytest.approx(20e-6), "a bill of who doesn't bill is no bill"


def test_a_402_with_a_pause_rests_and_a_bare_one_is_the_end():
    later = lambda: fault(402, "in flight", **{"Retry-After": "0.2"})  # noqa: E731
    completion, calls = ask_and_count(scripted(later, lambda: ok("Hi.")))
    assert completion.text == "Hi." and len(calls) == 2
    assert calls[1].time_s - calls[0].time_s >= 0.2
    error, calls = ask_and_count(scripted(lambda: fault(402, "no money")))
    assert "no API key is left" in str(error) and len(calls) == 1


def test_a_tier_without_room_is_tried_again():
    completion, calls = ask_and_count(scripted(lambda: fault(498), lambda: ok("Hi.")))
    assert completion.text == "Hi." and len(calls) == 2


# Money ------------------------------------------------------------------------------------------

FLASH = Price(0.15, 0.60, 0.003, peak=2.0, peak_hours=("Mon-Fri 01-04", "Mon-Fri 06-10"))
MONDAY, SUNDAY = datetime(2026, 11, 30, 2, tzinfo=UTC), datetime(2026, 11, 29, 2, tzinfo=UTC)


def test_a_peak_hour_costs_twice():
    counts = 1_200, 50, 960
    sunday = (240 * 0.15 + 960 * 0.003 + 50 * 0.60) / 1e6
    assert FLASH.cost_usd(*counts, at=SUNDAY) == pytest.approx(sunday)
    assert FLASH.cost_usd(*counts, at=MONDAY) == pytest.approx(2 * sunday)
    for hour, is_peak in ((0, False), (1, True), (3, True), (4, False), (6, True), (10, False)):
        assert FLASH.is_peak(MONDAY.replace(hour=hour)) == is_peak


def test_a_call_is_billed_by_its_hour_and_by_what_the_cache_gave_and_took():
    always = {"peak": 2.0, "peak_hours": ["Mon-Sun 00-24"], "cache_write": 1.25}
    known = priced(1.0, 2.0, 0.1, **always)
    usage = {"prompt_tokens": 1_200, "completion_tokens": 50, "prompt_cache_hit_tokens": 960}
    completion, _ = ask_and_count(scripted(sent("Hi.", usage=usage)), profiles=known)
    assert completion.cost_usd == pytest.approx(2 * (240 + 960 * 0.1 + 50 * 2) / 1e6)
    details = {"cached_tokens": 0, "cache_write_tokens": 1_024}
    usage = {"prompt_tokens": 1_200, "prompt_tokens_details": details}
    completion, _ = ask_and_count(scripted(sent("Hi.", usage=usage)), profiles=known)
    assert completion.cost_usd == pytest.approx(2 * (176 + 1_024 * 1.25 + 5 * 2) / 1e6)


def test_a_price_in_yuan_is_billed_in_dollars():
    yuan = Price(0.8, 4.8, currency="CNY", usd=0.14)
    assert yuan.cost_usd(1_000_000, 1_000_000) == pytest.approx(5.6 * 0.14)
