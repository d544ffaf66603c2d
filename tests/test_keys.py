"""API keys against a real server: limits, rests, deaths, and nothing of a key in any text."""

import asyncio
import logging
import math
import time
import traceback

import pytest
from chat_client import KEYS, ask, ask_and_count, run
from chat_server import fault, ok, scripted

from emodistill.errors import ApiError
from emodistill.llm import RefusedError
from emodistill.llm import keys as llm_keys
from emodistill.llm.keys import Allowance, KeyPool, Limits

REST_S = 0.5


def test_a_limited_key_gets_no_call_until_it_may_and_nothing_is_lost():
    limited_until_s = {}

    async def respond(call):
        if call.key == KEYS[1] and call.key not in limited_until_s:
            limited_until_s[call.key] = time.monotonic() + REST_S
            return fault(429, **{"Retry-After": str(REST_S)})
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
    assert sum(until_s - REST_S < time_s < until_s for time_s in to_limited) == 0
    others = {call.key for call in calls if until_s - REST_S < call.time_s < until_s}
    assert others == {KEYS[0], KEYS[2]}


def test_all_keys_cooling_means_waiting_not_failing():
    seen = set()

    async def respond(call):
        if call.key not in seen:
            seen.add(call.key)
            return fault(429, **{"Retry-After": "0.2"})
        return ok("Hi.")

    async def job(client, server):
        started_s = time.monotonic()
        await asyncio.gather(*(ask(client, sticky=f"d{i}") for i in range(6)))
        return time.monotonic() - started_s, len(server.calls)

    elapsed_s, _ = run(respond, job, keys=KEYS[:2])
    assert 0.2 <= elapsed_s < 20
    assert seen == set(KEYS[:2])


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
        limits = Limits(tokens_per_minute=60_000)
        key = Allowance(limits, first_rest_s=0.5, max_rest_s=30.0)
        started_s = time.monotonic()
        await key.admit(350)  # 100 at once, then 1,000 a second
        return time.monotonic() - started_s

    assert 0.2 <= asyncio.run(main()) < 5


def test_a_key_keeps_its_limit_of_requests(monkeypatch):
    monkeypatch.setattr(llm_keys, "PERIOD_S", 1.0)

    async def job(client, server):
        started_s = time.monotonic()
        await asyncio.gather(*(ask(client, sticky=f"d{i}") for i in range(25)))
        return time.monotonic() - started_s

    profile = {"limits": {"requests_per_minute": 1_200}}  # 20 at once, then 20 a second
    assert 0.2 <= run(scripted(lambda: ok("Hi.")), job, profile=profile) < 15


def test_a_key_keeps_its_limit_of_tokens(monkeypatch):
    monkeypatch.setattr(llm_keys, "PERIOD_S", 1.0)

    async def job(client, server):
        started_s = time.monotonic()
        await asyncio.gather(*(ask(client, max_tokens=500) for _ in range(5)))
        return time.monotonic() - started_s

    profile = {"limits": {"tokens_per_minute": 120_000}}  # 2,000 at once; a call has some 530
    assert 0.25 <= run(scripted(lambda: ok("Hi.")), job, profile=profile) < 15


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
    assert repr(KeyPool([("abcd",)])._live[0]) == "ApiKey(key number 1)"


def test_a_pool_keeps_a_longer_rest_and_counts_keys_once():
    async def main():
        pool = KeyPool([(KEYS[0], KEYS[0])])
        assert repr(pool) == "KeyPool(1 of 1 keys live)"
        key = await pool.acquire("d")
        asked_at_s = time.monotonic()
        pool.rest(key, asked_at_s, 0.15)
        pool.rest(key, asked_at_s, 0.0)
        started_s = time.monotonic()
        await pool.acquire("d")
        return time.monotonic() - started_s

    assert 0.15 <= asyncio.run(main()) < 1.0


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
