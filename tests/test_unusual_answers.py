"""Sweeps and judges over servers whose answers are cut, withheld, thought aloud, or errors."""

import json
import random
from collections import Counter

import msgspec
import pytest
from aiohttp import web
from chat_client import run
from chat_server import negotiate
from samples import dialogue
from sweeps import PACK, sweep

from emodistill.configs import JudgeConfig
from emodistill.domains import load_scenarios
from emodistill.errors import ApiError
from emodistill.negotiation.mediator import BREAKDOWN, ONGOING, mediate
from emodistill.negotiation.readers import LlmReader
from emodistill.negotiation.writers import NUM_ATTEMPTS, ApiWriter, EmptyReplyError
from emodistill.offline.judging import run_judging
from emodistill.offline.rewards import FocalTurns
from emodistill.offline.store import read_judgements, read_records, read_trajectories
from emodistill.records import FailedDialogue

PRICE_USD = 3.0  # a million tokens
THOUGHT = "They asked for 30 days, and my own secret limit is 42 days."


class MixedServer:
    """Answers as `negotiate` does, in many forms; keeps the bill, by what each answer states."""

    def __init__(self):
        self.counts = Counter()
        self.spent_usd = 0.0
        self.num_asked = Counter()

    async def __call__(self, call):
        body = json.dumps(call.body)  # the form of an answer depends on the request alone
        self.num_asked[body] += 1
        forms = random.Random(f"{body} {self.num_asked[body]}")
        kinds = ("whole", "cut", "filtered", "thinking", "parts", "error")
        weights = (60, 12, 2, 10, 10, 6)
        if call.body["max_tokens"] > 160:  # a cut one that is asked for again
            kinds, weights = ("whole", "cut"), (1, 1)
        (kind,) = forms.choices(kinds, weights)
        text = "Name your own figure."
        if call.body["model"] == "echo-focal" or "days" in call.body["messages"][-1]["content"]:
            text = negotiate(call.body)
        self.counts[kind] += 1
        if kind == "error":
            code = forms.choice((429, 500, "rate_limit_exceeded"))
            error = {"code": code, "message": "overloaded, so pay within 43 days"}
            return web.json_response({"choices": None, "error": error})
        content, reason = text, "stop"
        if kind == "cut":
            content, reason = text[: text.find(" days") - 1] or "I", "length"
        elif kind == "filtered":
            content, reason = "It is 44", "content_filter"
        elif kind == "thinking":
            content = f"<think>{THOUGHT}</think>\n{text}"
        elif kind == "parts":
            content = [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": text}]
        usage = {
            "prompt_tokens": len(body) // 4,
            "completion_tokens": len(json.dumps(content)) // 4 + 1,
        }
        self.spent_usd += sum(usage.values()) * PRICE_USD / 1e6
        choice = {"message": {"content": content}, "finish_reason": reason}
        return web.json_response({"choices": [choice], "usage": usage})


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    out_dir, server = tmp_path_factory.mktemp("mixed"), MixedServer()
    result, _ = sweep(out_dir, server, price=PRICE_USD, num_seeds=20, concurrency=12)
    return out_dir, server, result


def test_every_dialogue_ends_and_each_kind_has_happened(mixed):
    out_dir, server, result = mixed
    assert result.is_complete and result.num_planned == 100
    failures = [line for line, _ in read_records(out_dir / "failures.jsonl", FailedDialogue)]
    assert len(failures) == server.counts["filtered"] == result.num_failed
    assert {line.kind for line in failures} == {"refused"}
    assert all("withheld" in line.reason for line in failures)
    assert min(server.counts.values()) >= 3


def test_no_thought_no_cut_figure_and_no_error_is_in_any_record(mixed):
    out_dir, _, _ = mixed
    text = (out_dir / "trajectories.jsonl").read_text()
    for word in ("think", "secret limit", "overloaded", "It is 44"):
        assert word not in text
    turns = [turn for t in read_trajectories(out_dir / "trajectories.jsonl") for turn in t.turns]
    cut = [turn for turn in turns if not turn.text.endswith((".", "talks"))]
    assert cut
    assert all(turn.finish_reason == "length" and turn.offer is None for turn in cut)
    whole = [turn for turn in turns if turn.finish_reason == "stop"]
    assert all(turn.text.endswith(".") for turn in whole)
    assert len(cut) + len(whole) == len(turns)


def test_nothing_is_agreed_on_by_a_cut_utterance(mixed):
    out_dir, _, _ = mixed
    for trajectory in read_trajectories(out_dir / "trajectories.jsonl"):
        assert trajectory.turns[-1].finish_reason == "stop" or trajectory.outcome == "ongoing"


def test_the_counts_are_in_the_summary_and_the_bill_is_the_servers(mixed):
    _, server, result = mixed
    assert result.usage.unusual == {
        "cut at their limit": server.counts["cut"],
        "withheld by a filter": server.counts["filtered"],
        "with thoughts cut off": server.counts["thinking"],
        "in parts": server.counts["parts"],
        "an error inside HTTP 200": server.counts["error"],
    }
    for kind, count in result.usage.unusual.items():
        assert f"{count:,} {kind}" in result.summary
    assert result.cost_usd == pytest.approx(server.spent_usd, rel=1e-9)


def test_no_student_learns_from_what_was_cut(mixed):
    out_dir, _, _ = mixed
    trajectories = list(read_trajectories(out_dir / "trajectories.jsonl"))
    played = FocalTurns.from_trajectories(trajectories, {})
    num_cut = sum(turn.finish_reason == "length" for t in trajectories for turn in t.focal_turns)
    assert num_cut > 0
    assert len(played) - len(played.whole()) == num_cut
    assert not played.whole().is_cut.any()


# Writers -----------------------------------------------------------------------------------------


def one_after_another(*replies):
    """A server that gives (text, finish reason) in turn, the last one again and again."""

    async def respond(call):
        text, reason = replies[min(call.number, len(replies) - 1)]
        choice = {"message": {"content": text}, "finish_reason": reason}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return web.json_response({"choices": [choice], "usage": usage})

    return respond


def write(*replies):
    """What an `ApiWriter` makes of the replies, and the room and seed that each was asked with."""

    async def job(client, server):
        writer = ApiWriter(client, "m", max_tokens=40)
        messages = [{"role": "user", "content": "Well?"}]
        try:
            reply = await writer.reply(messages, dialogue_id="d", seed=3)
        except ApiError as error:
            reply = error
        return reply, [(call.body["max_tokens"], call.body["seed"]) for call in server.calls]

    return run(one_after_another(*replies), job)


def test_a_cut_reply_is_asked_for_again_with_double_room():
    reply, asked = write(("I could pay within 4", "length"), ("I could pay within 45.", "stop"))
    assert (reply.text, reply.finish_reason) == ("I could pay within 45.", "stop")
    assert asked == [(40, 3), (80, 3)]
    assert (reply.prompt_tokens, reply.completion_tokens) == (200, 20)


def test_a_reply_cut_again_stays_and_says_so():
    reply, asked = write(("I could", "length"), ("I could pay within 4", "length"))
    assert (reply.text, reply.finish_reason) == ("I could pay within 4", "length")
    assert [room for room, _ in asked] == [40, 80]


def test_a_model_that_only_thinks_is_paid_once():
    error, asked = write(("<think>45 days, then", "length"))
    assert "it only thought" in str(error) and "thinking_off" in str(error)
    assert "--max-reply-tokens" in str(error)
    assert [room for room, _ in asked] == [40]


def test_a_model_that_says_nothing_is_not_asked_for_ever():
    error, asked = write(("", "stop"))
    assert isinstance(error, EmptyReplyError)
    assert [room for room, _ in asked] == [40] * NUM_ATTEMPTS
    assert len({seed for _, seed in asked}) == NUM_ATTEMPTS


def test_the_room_stays_doubled_after_an_empty_reply():
    reply, asked = write(("", "stop"), ("I could", "length"), ("", "stop"), ("30 days.", "stop"))
    assert (reply.text, [room for room, _ in asked]) == ("30 days.", [40, 40, 80, 80])


# The mediator ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "verdict"), [("I accept 40 days.", "accepted"), ("I'm walking away.", BREAKDOWN)]
)
def test_a_cut_utterance_neither_agrees_nor_ends(text, verdict):
    game = dialogue(num_turns=2)
    first, second = (
        msgspec.structs.replace(game.turns[0], text="40 days.", offer=40.0),
        msgspec.structs.replace(game.turns[1], text=text, offer=None),
    )
    ended = mediate([first, second], game)
    assert ended == verdict or ended.outcome == verdict
    cut = msgspec.structs.replace(second, finish_reason="length")
    assert mediate([first, cut], game) == ONGOING


# Readers and judges ------------------------------------------------------------------------------


def read(*replies, **settings):
    async def job(client, server):
        reader = LlmReader(client, "m", **settings)
        read = await reader.read(
            "I can pay in 145 days.", "crad", heard=None, dialogue_id="d", seed=0
        )
        return read.offer, [call.body["max_tokens"] for call in server.calls]

    return run(one_after_another(*replies), job)


def test_a_reader_that_is_cut_is_asked_again_with_double_room():
    whole, cut = '{"offer": "145 days", "act": "propose"}', '{"offer": "14'
    assert read((cut, "length"), (whole, "stop")) == (145.0, [48, 96])
    assert read((cut, "length")) == (None, [48, 96])
    assert read((f"{whole}\nThat is", "length")) == (145.0, [48])


def test_a_reader_that_thinks_first_can_be_used():
    answer = '{"offer": "%s", "act": "propose"}'
    thought = f"<think>Is it {answer % '14 days'}?</think>{answer % '145 days'}"
    assert read((thought, "stop"), max_tokens=500) == (145.0, [500])


def judge(tmp_path, *replies, **settings):
    """The judgements of one dialogue of one focal turn, and the room that each call got."""
    scenario = load_scenarios("crad")[0]
    trajectory = dialogue(num_turns=1, scenario=scenario)

    async def job(client, server):
        path = tmp_path / "m.jsonl"
        config = JudgeConfig(judge="m", **settings)
        await run_judging(config, [trajectory], [scenario], path=path, client=client, pack=PACK)
        return read_judgements(path), [call.body["max_tokens"] for call in server.calls]

    return run(one_after_another(*replies), job)


def test_a_judge_that_is_cut_in_its_thoughts_gives_no_score(tmp_path):
    thoughts = "<think>I might say\nSCORE: 10\nbut the debtor"
    with pytest.raises(ApiError, match=r"only thought.*--judge-max-tokens"):
        judge(tmp_path, (thoughts, "length"))
    assert read_judgements(tmp_path / "m.jsonl") == []


def test_a_judge_that_thinks_can_be_used(tmp_path):
    answer = "<think>I might say\nSCORE: 10\nbut no.</think>\nSCORE: 3\nIt concedes."
    judgements, rooms = judge(tmp_path, (answer, "stop"), judge_max_tokens=2_000)
    assert [line.score for line in judgements] == [3]
    assert rooms == [2_000]


def test_a_figure_at_the_end_of_a_cut_answer_is_no_score(tmp_path):
    judgements, _ = judge(tmp_path, ("SCORE: 1", "length"), ("SCORE: 10\nFirm.", "length"))
    assert [line.score for line in judgements] == [None, 10]


def test_a_withheld_judgement_is_no_score(tmp_path):
    judgements, _ = judge(tmp_path, ("SCORE: 9", "content_filter"))
    assert [(line.status, line.raw) for line in judgements] == [("failed", "[no answer: filtered]")]
