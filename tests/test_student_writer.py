"""The student as a writer: what it does with replies that are cut, thought aloud or empty."""

import asyncio

import pytest

from emodistill.evaluation.student_writer import StudentWriter
from emodistill.model import embedded_path, load_tokenizer
from emodistill.model.tokenization import encode_reply
from emodistill.negotiation.writers import EmptyReplyError

MESSAGES = [{"role": "user", "content": "Well?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(embedded_path())


def reply_of(tokenizer, *texts, room=8, max_prompt_tokens=100):
    """The writer's reply where its model says `texts` in turn, and the room that each had."""
    rooms, left = [], list(texts)

    def generate(prompts, *, max_new_tokens, **settings):
        rooms.append(max_new_tokens)
        return [encode_reply(tokenizer, left.pop(0))[:max_new_tokens] for _ in prompts]

    async def main():
        async with StudentWriter(
            generate,
            tokenizer,
            model="test",
            temperature=0.0,
            max_reply_tokens=room,
            max_prompt_tokens=max_prompt_tokens,
        ) as writer:
            return await writer.reply(MESSAGES, dialogue_id="d", seed=0)

    return asyncio.run(main()), rooms


def test_a_whole_reply_is_asked_for_once(tokenizer):
    reply, rooms = reply_of(tokenizer, "60 days.")
    assert (reply.text, reply.finish_reason, rooms) == ("60 days.", "stop", [8])


def test_a_cut_reply_is_generated_again_with_double_room(tokenizer):
    text = "I can pay within 45 days."
    room = len(encode_reply(tokenizer, text)) - 2
    reply, rooms = reply_of(tokenizer, text, text, room=room)
    assert (reply.text, reply.finish_reason, rooms) == (text, "stop", [room, 2 * room])
    assert reply.completion_tokens == 2 * room + 2


def test_what_is_cut_again_says_so(tokenizer):
    text = "I can pay within 45 days, and " * 10
    reply, rooms = reply_of(tokenizer, text, text)
    assert (reply.finish_reason, rooms) == ("length", [8, 16])
    assert text.startswith(reply.text.strip())


def test_a_reply_that_just_fits_is_whole(tokenizer):
    text = "I can pay within 45 days."
    room = len(encode_reply(tokenizer, text))
    reply, rooms = reply_of(tokenizer, text, room=room)
    assert (reply.finish_reason, rooms) == ("stop", [room])


def test_a_window_without_double_room_leaves_it_cut(tokenizer):
    text = "I can pay within 45 days, and " * 10
    prompt = 20
    reply, rooms = reply_of(tokenizer, text, room=80, max_prompt_tokens=prompt)
    assert (reply.finish_reason, rooms) == ("length", [80])


def test_thoughts_are_no_speech(tokenizer):
    reply, _ = reply_of(tokenizer, "<think>45 days?</think>60 days.", room=80)
    assert reply.text == "60 days."


def test_only_thoughts_are_an_empty_reply(tokenizer):
    with pytest.raises(EmptyReplyError):
        reply_of(tokenizer, *["<think>45 days?"] * 4, room=80)
