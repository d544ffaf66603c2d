"""How many calls are let into a server in trouble."""

import asyncio

from chat_client import ask, run
from chat_server import fault, ok

from emodistill.llm.gate import Gate


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
        return limits, client.usage.num_retries

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
