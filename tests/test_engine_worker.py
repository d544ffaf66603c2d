"""Engines in a thread: who reads slowly, engines that go, and engines that fail."""

import asyncio

import jax
import pytest

from emodistill.model import (
    Engine,
    EngineWorker,
    GenerationFailedError,
    GenerationRequest,
    load_qwen2,
)


def test_an_engine_waits_for_no_reader(tiny_checkpoint):
    """Its tokens are all there, and its slot is free, before anybody has read one."""
    model = load_qwen2(tiny_checkpoint)
    request = GenerationRequest([1, 2, 3], max_new_tokens=40, temperature=0.0)
    base = "base"

    async def main():
        has_ended = asyncio.Event()
        async with EngineWorker(lambda _: Engine(model, num_slots=1), max_loaded=1) as worker:
            slow = worker.generate(base, request, has_ended.set)
            first = await anext(slow)
            await asyncio.wait_for(has_ended.wait(), 60)
            quick = [one async for one in worker.generate(base, request)]
            rest = [one async for one in slow]
            return [first, *rest], quick

    slow, quick = asyncio.run(main())
    assert slow[-1].generated == quick[-1].generated
    assert len(slow[-1].generated.ids) == 40


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an accelerator has one group")
def test_groups_of_slots_serve_who_stays_when_others_leave(tiny_checkpoint):
    """Sixteen slots of a small model on a processor are two groups."""
    model = load_qwen2(tiny_checkpoint)
    requests = [
        GenerationRequest([1, 2, 3 + n], max_new_tokens=30, temperature=1.0, seed=n)
        for n in range(20)
    ]

    def make(_):
        return Engine(model, num_slots=16, max_tokens=64)

    async def one(worker, n):
        updates = worker.generate("base", requests[n])
        if n % 3 == 0:  # leaves after its first tokens
            await anext(updates)
            await updates.aclose()
            return None
        return [update async for update in updates][-1].generated

    async def main():
        async with EngineWorker(make) as worker:
            return await asyncio.gather(*(one(worker, n) for n in range(len(requests))))

    engine = make("base")
    assert len(engine._groups) == 2
    alone = engine.generate(requests)
    expected = [None if n % 3 == 0 else generated for n, generated in enumerate(alone)]
    assert asyncio.run(main()) == expected


def recording(checkpoint):
    """The names for which engines were made, and what makes them."""
    model, made = load_qwen2(checkpoint), []

    def make(name):
        made.append(name)
        return Engine(model, num_slots=1)

    return made, make


def test_engines_beyond_the_limit_go_and_what_they_counted_stays(tiny_checkpoint):
    made, make = recording(tiny_checkpoint)
    request = GenerationRequest([1, 2, 3], max_new_tokens=4, temperature=0.0)

    async def main():
        first, second = "first", "second"
        async with EngineWorker(make, max_loaded=1) as worker:
            for adapter in (first, first, second, first):
                async for _ in worker.generate(adapter, request):
                    pass
            return worker.totals()

    totals = asyncio.run(main())
    assert made == ["first", "second", "first"]
    assert (totals.generated_tokens, totals.prompt_tokens) == (16, 12)


def test_a_dropped_adapter_finishes_what_it_has_begun(tiny_checkpoint):
    made, make = recording(tiny_checkpoint)
    request = GenerationRequest([1, 2, 3], max_new_tokens=40, temperature=0.0)

    async def main():
        adapter = "tuned"
        async with EngineWorker(make, max_loaded=4) as worker:
            under_way = worker.generate(adapter, request)
            await anext(under_way)
            worker.forget(adapter)
            last = [one async for one in under_way][-1]
            await worker.load("other")  # by then, the dropped one is gone
            await worker.load(adapter)
            return last

    last = asyncio.run(main())
    assert len(last.generated.ids) == 40
    assert made == ["tuned", "other", "tuned"]


def test_what_an_engine_fails_at_is_an_error_of_its_own_requests(tiny_checkpoint):
    model, num_made = load_qwen2(tiny_checkpoint), 0
    request = GenerationRequest([1, 2, 3], max_new_tokens=4, temperature=0.0)

    class FailingEngine(Engine):
        def step(self):
            raise RuntimeError("out of memory")

    def make(name):
        nonlocal num_made
        num_made += 1
        return (FailingEngine if num_made == 1 else Engine)(model, num_slots=1)

    async def main():
        base = "base"
        async with EngineWorker(make, max_loaded=1) as worker:
            with pytest.raises(GenerationFailedError, match="out of memory"):
                await anext(worker.generate(base, request))
            return [one async for one in worker.generate(base, request)]

    assert len(asyncio.run(main())[-1].generated.ids) == 4
