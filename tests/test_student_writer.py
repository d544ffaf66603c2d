"""The student as a writer: what it does with replies that are cut, thought aloud or empty."""

import asyncio

import jax.numpy as jnp
import pytest

from emodistill.errors import InputError
from emodistill.evaluation.student_writer import StudentWriter
from emodistill.model import (
    Engine,
    EngineWorker,
    Generated,
    GenerationRequest,
    NewTokens,
    embedded_path,
    encode_chat,
    load_qwen2,
    load_tokenizer,
    stop_ids,
)
from emodistill.model.engine import Counters
from emodistill.model.tokenization import encode_reply
from emodistill.negotiation.writers import EmptyReplyError

MESSAGES = [{"role": "user", "content": "Well?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(embedded_path())


class Script:
    """An engine that says `texts` in turn; `rooms` are the limits it was given."""

    counters = Counters()

    def __init__(self, tokenizer, *texts):
        self.replies = [encode_reply(tokenizer, text) for text in texts]
        self.waiting, self.rooms = [], []

    def add(self, request):
        self.rooms.append(request.max_new_tokens)
        self.waiting.append(self.replies.pop(0)[: request.max_new_tokens])
        return len(self.rooms)

    @property
    def num_unfinished(self):
        return len(self.waiting)

    def cancel(self, handle):
        raise AssertionError("nobody cancels")

    def step(self):
        ids = self.waiting.pop()
        reason = "length" if len(ids) == self.rooms[-1] else "stop"
        return [NewTokens(len(self.rooms), ids, None, Generated(ids, None, reason))]


def writer_of(worker, tokenizer, room, max_prompt_tokens, temperature=0.0):
    return StudentWriter(
        worker,
        None,
        tokenizer,
        model="test",
        temperature=temperature,
        max_reply_tokens=room,
        max_prompt_tokens=max_prompt_tokens,
    )


def reply_of(tokenizer, *texts, room=8, max_prompt_tokens=100):
    """The writer's reply where its model says `texts` in turn, and the room that each had."""
    script = Script(tokenizer, *texts)

    async def main():
        async with EngineWorker(lambda _: script) as worker:
            writer = writer_of(worker, tokenizer, room, max_prompt_tokens)
            return await writer.reply(MESSAGES, dialogue_id="d", seed=0)

    return asyncio.run(main()), script.rooms


def test_a_whole_reply_is_asked_for_once_with_double_room(tokenizer):
    text = "I can pay within 45 days."
    room = len(encode_reply(tokenizer, text)) - 2
    reply, rooms = reply_of(tokenizer, text, room=room)
    assert (reply.text, reply.finish_reason, rooms) == (text, "stop", [2 * room])
    assert reply.completion_tokens == room + 2


def test_what_is_cut_says_so(tokenizer):
    text = "I can pay within 45 days, and " * 10
    reply, rooms = reply_of(tokenizer, text)
    assert (reply.finish_reason, rooms) == ("length", [16])
    assert text.startswith(reply.text.strip())


def test_a_window_without_double_room_cuts_earlier(tokenizer):
    text = "I can pay within 45 days, and " * 10
    reply, rooms = reply_of(tokenizer, text, room=80, max_prompt_tokens=20)
    assert (reply.finish_reason, rooms) == ("length", [80])


def test_thoughts_are_no_speech(tokenizer):
    reply, _ = reply_of(tokenizer, "<think>45 days?</think>60 days.", room=80)
    assert reply.text == "60 days."


def test_only_thoughts_are_an_empty_reply(tokenizer):
    with pytest.raises(EmptyReplyError):
        reply_of(tokenizer, *["<think>45 days?"] * 2, room=80)


@pytest.fixture(scope="module")
def model():
    return load_qwen2(embedded_path(), dtype=jnp.float32)


def playing(model, tokenizer, main, **settings):
    """What `main(writer)` gives, with a writer of the embedded student."""

    async def run():
        engine = Engine(model, num_slots=4, max_kept_tokens=1024, **settings)
        async with EngineWorker(lambda _: engine) as worker:
            found = await main(writer_of(worker, tokenizer, 10, 500, temperature=1.0))
        assert engine.num_unfinished == 0
        return found

    return asyncio.run(run())


def test_replies_join_while_others_are_written_and_stay_the_same(model, tokenizer):
    messages = [[{"role": "user", "content": f"I need {n} days. " * (n % 9)}] for n in range(12)]

    def said(order, pause_s):
        async def main(writer):
            async def one(n):
                await asyncio.sleep(pause_s * n)
                return (await writer.reply(messages[n], dialogue_id="d", seed=n)).text

            return dict(zip(order, await asyncio.gather(*map(one, order)), strict=True))

        return playing(model, tokenizer, main)

    assert said(range(12), 0.0) == said([*range(11, -1, -1)], 0.01)


def test_whoever_goes_away_leaves_the_others_alone(model, tokenizer):
    async def main(writer):
        first = asyncio.create_task(writer.reply(MESSAGES, dialogue_id="a", seed=0))
        others = [writer.reply(MESSAGES, dialogue_id="b", seed=n) for n in range(1, 6)]
        await asyncio.sleep(0.01)
        first.cancel()
        found = await asyncio.gather(*others)
        return [one.text for one in found]

    expected = [
        playing(model, tokenizer, lambda w, n=n: w.reply(MESSAGES, dialogue_id="b", seed=n)).text
        for n in range(1, 6)
    ]
    assert playing(model, tokenizer, main) == expected


def test_an_impossible_request_is_refused_and_the_next_one_answered(model, tokenizer):
    async def main(writer):
        with pytest.raises(InputError, match="there is room for 0"):
            await writer.reply(MESSAGES * 20, dialogue_id="d", seed=0)
        return await writer._generated(GenerationRequest(encode_chat(tokenizer, MESSAGES), 2, 0.0))

    assert len(playing(model, tokenizer, main, max_tokens=20).ids) == 2
    assert stop_ids(tokenizer)
