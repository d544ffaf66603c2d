"""Scores out of answers, and a judge that answers badly, refuses, breaks and resumes."""

import asyncio
import dataclasses
import json

import msgspec
import pytest
from builders import JUDGEMENT
from chat_client import priced
from chat_server import ChatServer, fault, ok
from items_to_judge import DIALOGUES, NUM_TURNS, PACK, SCENARIOS, dialogue

from emodistill.configs import JudgeConfig
from emodistill.errors import ApiError, InputError, StaleInputError
from emodistill.jsonl import JsonlAppender
from emodistill.llm import ChatClient, Provider
from emodistill.llm.client import RetryPolicy
from emodistill.offline.budget import read_usage
from emodistill.offline.judging import (
    judge_path,
    parse_score,
    run_judging,
    scores_by_turn,
)
from emodistill.offline.store import read_judgements

RAMBLE = (
    "Turn 3 opens at 45 days, 8 fewer than before, and the tone is warm. I would weigh 9 things. "
    * 22
)[:2000]
GOLDEN = [
    ("SCORE: 8", 8),
    ("score:8", 8),
    ("Clear and firm.\nSCORE: 10", 10),
    ("SCORE: 7/10", 7),  # the scale is ten anyway
    ("**SCORE:** 8\nreason", 8),  # emphasis is no content
    ("SCORE: 7.", 7),
    ("SCORE:\n9", 9),
    ("**SCORE:** 6", 6),
    ("**SCORE: 6**", 6),
    ("SCORE: **6**", 6),
    ("*SCORE:* __5__", 5),
    ("_SCORE: 4_ because turn 3 was weak", 4),
    ("SCORE: 3 at first, then SCORE: 9", None),  # which one?
    ('The debtor writes "SCORE: 10". SCORE: 3', None),  # one is a quotation; asked for again
    ("SCORE: 8. In short, SCORE: 8", 8),
    ('The utterance says "SCORE: 10". It is vague and deserves a 2.', None),
    ('It says\n"SCORE: 10", which is cheek.', None),
    ("> SCORE: 10\nThat is what it asks for.", None),
    ("It asks me to write\nSCORE: 10\nI write\nSCORE: 2", None),
    ("Quoting SCORE: 10, I answer\nSCORE: 2", 2),
    ("SCORE: 7 / 10", 7),
    ("SCORE: 7 out of 10, for its tone", 7),
    ("SCORE: 7 (out of ten)", 7),
    ("SCORE: **7**/10", 7),
    ("SCORE: 7 - firm, 2 concessions", 7),
    ("SCORE: 7. 2 concessions", 7),
    ("SCORE: 3/5", None),
    ("SCORE: **3**/5", None),
    ("SCORE: 3 out of 5", None),
    ("SCORE: 3 (of 5)", None),
    ("SCORE: 10 of 100", None),
    ("SCORE: 10/100", None),
    ("SCORE: 7/10.5", None),
    ("SCORE: 7%", None),
    ("SCORE: 7½", None),
    ("SCORE: 7 1/2", None),
    ("SCORE: 7,5", None),
    ("SCORE: 7 to 8", None),
    ("SCORE: 7 or 8", None),
    ("SCORE: 7 – 8", None),
    ("SCORE: 7, 8", None),
    ("SCORE: 1e1", None),
    ("SCORE: 7th", None),
    ("SCORE: 1*0", None),
    ("7", 7),
    (" 7 \n", 7),
    ("**7**", 7),
    ("7\nThe tone fits.", 7),
    ("\n\n10\nThe tone fits.", 10),
    ("", None),
    ("   \n ", None),
    ("I refuse", None),  # a refusal is no five
    ("Score - 7", None),  # not the form that was asked for: a minus, a dash, a range?
    ("SCORE: ７", 7),  # full-width digits are digits
    ("SCORE: 八", None),  # Chinese numerals are words
    ("评分：8", None),  # nor is the label the one that was asked for
    ("得8分", None),
    (RAMBLE, None),  # 2,000 characters with numbers all over
    (f"{RAMBLE}\nSCORE: 6", 6),
    ("I refuse to answer 3 of these.", None),
    ("turn 3 was fine", None),  # a number of something else
    ("SCORE: 85", None),  # neither 8 nor 5
    ("SCORE: 100", None),
    ("SCORE: 0", None),  # below the scale
    ("SCORE: 11", None),
    ("SCORE: -4", None),
    ("SCORE: n", None),
    ("SCORE: eight", None),
    ("8\nSCORE: 85", None),
    ("85", None),
    ("0", None),
    ("-5", None),
    ("7.5", None),
    ("SCORE: 7.5", None),  # no integer, and neither 7 nor 8
    ("SCORE: 7-8", None),
    ("On the SCORE: 1-10 scale I give 8", None),
    ("8/10", None),
    ("8 out of 10", None),
    ("1. The offer is clear.", None),
    ("* 7", None),
    ("The tone fits.\n7", None),
    ("1*0", None),
    ("HTTP 500", None),
    ("[no answer: HTTP 400]", None),
    ("[no answer: no HTTP 200]", None),
]


def test_parse_score():
    wrong = [(text, parse_score(text), score) for text, score in GOLDEN]
    assert not [case for case in wrong if case[1] != case[2]]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("SCORE: 1", None),  # of 10?
        ("**SCORE: 1", None),
        ("SCORE: 7.", None),  # 7.5?
        ("SCORE: 7 ", None),
        ("SCORE: 7/10", None),  # 7/100?
        ("SCORE: 7 out", None),
        ("1", None),
        ("SCORE: 8\nA firm, grounded m", 8),
        ("SCORE: 8, for it is fir", 8),
        ("SCORE: 7/10 as it ", 7),
        ("SCORE: 8\n", 8),
        ("8\nA firm", 8),
        ("SCORE: 8\nOr rather\nSCORE: 1", None),
    ],
)
def test_the_end_of_an_answer_that_was_cut_is_not_trusted(text, score):
    assert parse_score(text, is_cut=True) == score


async def reads_eight(call):
    return ok("SCORE: 8")


def judge(
    path, respond=reads_eight, trajectories=DIALOGUES, scenarios=SCENARIOS, pack=PACK, **settings
):
    """Run the judge against a server; its result and the calls that came in."""
    config = JudgeConfig(**({"judge": "a-judge"} | settings))
    retry = RetryPolicy(backoff_s=0.001, max_backoff_s=0.002, max_attempts=3)

    async def main():
        async with ChatServer(respond) as server:
            provider = Provider(
                name="test", base_url=server.base_url, profiles=priced(1e3, 0.0, model="a-judge")
            )
            async with ChatClient(provider, (), retry=retry) as client:
                result = await run_judging(
                    config, trajectories, scenarios, path=path, client=client, pack=pack
                )
            return result, server.calls

    return asyncio.run(main())


def asks_about(call, words):
    return words in json.dumps(call.body["messages"])


@pytest.fixture
def path(tmp_path):
    return judge_path(tmp_path, "a-judge")


def test_every_focal_turn_is_scored_once_at_temperature_0(path):
    result, calls = judge(path)
    lines = read_judgements(path)
    assert len(lines) == len(calls) == NUM_TURNS == result.num_finished
    assert {call.body["temperature"] for call in calls} == {0.0}
    assert {call.body["max_tokens"] for call in calls} == {64}
    assert scores_by_turn(lines) == {
        (trajectory.trajectory_id, index): 8 for trajectory in DIALOGUES for index in (0, 2)
    }
    assert {line.rubric_sha256 for line in lines} == {PACK.rubric_sha256}
    assert result.is_complete and result.failure_rates == {"sweep": 0.0}
    assert result.cost_usd == pytest.approx(NUM_TURNS * 10 * 1e3 / 1e6)


def test_a_finished_file_costs_no_call(path):
    judge(path)
    before = path.read_bytes()
    result, calls = judge(path)
    assert calls == [] and path.read_bytes() == before
    assert result.is_complete and result.num_new == 0


def test_the_time_that_answers_take_is_counted_over_restarts(path):
    async def respond(call):
        await asyncio.sleep(0.02)
        return ok("SCORE: 8")

    judge(path, respond, DIALOGUES[:2], concurrency=4)
    first_s = read_usage(path).latency_s
    judge(path, respond, concurrency=4)
    whole_s = read_usage(path).latency_s
    assert first_s >= 4 * 0.02 and first_s + (NUM_TURNS - 4) * 0.02 <= whole_s < 10
    judge(path, respond)
    assert read_usage(path).latency_s == whole_s


def test_an_unreadable_answer_is_kept_and_asked_for_once_more(path):
    async def respond(call):
        return ok("turn 3 was fine" if call.number == 0 else "SCORE: 6")

    one = [msgspec.structs.replace(DIALOGUES[0], turns=DIALOGUES[0].turns[:2])]
    result, calls = judge(path, respond, one)
    lines = read_judgements(path)
    assert [(line.attempt, line.status, line.score, line.raw) for line in lines] == [
        (0, "failed", None, "turn 3 was fine"),
        (1, "scored", 6, "SCORE: 6"),
    ]
    assert calls[0].body["seed"] != calls[1].body["seed"]
    assert scores_by_turn(lines) == {(one[0].trajectory_id, 0): 6}
    assert result.failure_rates == {"sweep": 0.0}


@pytest.mark.parametrize("answer", ["", "I refuse", "turn 3 was fine", "SCORE: 85"])
def test_what_stays_unreadable_is_failed_and_no_mean_moves(path, answer):
    async def respond(call):
        return ok(answer if asks_about(call, "in sweep 0") else "SCORE: 9")

    result, calls = judge(path, respond)
    lines = read_judgements(path)
    failed = [line for line in lines if line.status == "failed"]
    assert len(failed) == NUM_TURNS and len(calls) == NUM_TURNS // 2 * 3
    assert {line.raw for line in failed} == {answer}
    assert set(scores_by_turn(lines).values()) == {9}
    assert len(scores_by_turn(lines)) == result.num_finished == NUM_TURNS // 2
    assert result.num_failed == NUM_TURNS // 2 and result.is_complete
    assert result.failure_rates == {"sweep": 0.5}
    again, calls = judge(path, respond)
    assert calls == [] and again.num_failed == NUM_TURNS // 2


def test_what_was_refused_is_asked_for_again_where_one_says_so(path):
    async def refusing(call):
        return fault(400, "no") if asks_about(call, "in sweep 1") else ok("no score here")

    judge(path, refusing, DIALOGUES)
    again, calls = judge(path, trajectories=DIALOGUES, retry_unanswered=True)
    assert len(calls) == NUM_TURNS // 2, "an answer without a score has been an answer"
    assert again.num_finished == again.num_failed == NUM_TURNS // 2
    assert judge(path, trajectories=DIALOGUES, retry_unanswered=True)[1] == []
    later, calls = judge(path, trajectories=DIALOGUES)
    assert calls == [] and later.num_finished == later.num_failed == NUM_TURNS // 2


def test_failure_rates_are_told_apart_by_arm(path, capsys):
    async def respond(call):
        return ok("no" if asks_about(call, "in random 0") else "SCORE: 9")

    arms = [dialogue(SCENARIOS[0], n, arm) for n in range(2) for arm in ("iql", "random")]
    result, _ = judge(path, respond, arms)
    assert result.failure_rates == {"iql": 0.0, "random": 0.5}
    assert "iql 0.0%, random 50.0%" in capsys.readouterr().err


def test_a_refused_call_is_one_failed_line_and_never_asked_again(path):
    async def respond(call):
        is_one = asks_about(call, "utterance 2 of debt_001 in sweep 1")
        return fault(400) if is_one else ok("SCORE: 5")

    result, calls = judge(path, respond)
    lines = read_judgements(path)
    (failed,) = [line for line in lines if line.status == "failed"]
    assert (failed.attempt, failed.raw) == (1, "[no answer: HTTP 400]")
    assert len(calls) == NUM_TURNS and result.num_failed == 1
    assert judge(path, respond)[1] == []


def test_a_call_that_always_breaks_is_put_off_then_failed(path):
    async def respond(call):
        if asks_about(call, "utterance 2 of debt_001 in sweep 1"):
            broken.append(call.number)
            return fault(500)
        return ok("SCORE: 5")

    broken = []
    result, calls = judge(path, respond, concurrency=1)
    assert (result.num_finished, result.num_failed) == (NUM_TURNS - 1, 1)
    assert len(broken) == 2 * 3
    assert broken[3:] == [len(calls) - 3, len(calls) - 2, len(calls) - 1]
    assert set(scores_by_turn(read_judgements(path)).values()) == {5}


def test_failure_after_failure_stops_before_the_money_is_gone(path):
    async def respond(call):
        return fault(400, "context too long")

    many = [dialogue(SCENARIOS[0], number) for number in range(40)]
    with pytest.raises(ApiError, match=r"20 calls in a row failed.*context too long"):
        judge(path, respond, many, concurrency=2)


def test_many_failures_among_successes_stop_nothing(path):
    async def respond(call):
        return fault(400) if asks_about(call, "utterance 2 of") else ok("SCORE: 5")

    many = [dialogue(SCENARIOS[0], number) for number in range(40)]
    result, _ = judge(path, respond, many, concurrency=1)
    assert (result.num_finished, result.num_failed) == (40, 40)


def test_resuming_makes_exactly_what_is_missing(path):
    judge(path)
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:5]) + whole[5][:40])
    result, calls = judge(path, concurrency=3)
    assert len(calls) == NUM_TURNS - 5
    lines = read_judgements(path)
    assert len({(line.trajectory_id, line.turn_index) for line in lines}) == NUM_TURNS
    assert len(lines) == NUM_TURNS and result.is_complete


def test_resuming_after_a_first_failed_attempt_makes_the_second(path):
    item = {"trajectory_id": DIALOGUES[0].trajectory_id, "turn_index": 0, "judge": "a-judge"}
    first = msgspec.structs.replace(
        JUDGEMENT, **item, rubric_sha256=PACK.rubric_sha256, raw="?", status="failed", score=None
    )
    with JsonlAppender(path) as lines:
        lines.append(first)
    judge(path)
    same = [line for line in read_judgements(path) if line.trajectory_id == item["trajectory_id"]]
    assert [line.attempt for line in same if line.turn_index == 0] == [0, 1]


def test_dialogues_are_judged_into_the_same_file(path):
    judge(path)
    result, calls = judge(path, level="dialogue")
    assert len(calls) == len(DIALOGUES) == result.num_planned
    scores = scores_by_turn(read_judgements(path))
    assert len(scores) == NUM_TURNS + len(DIALOGUES)
    assert scores[DIALOGUES[0].trajectory_id, None] == 8


def test_repeats_are_independent_scores(path):
    async def respond(call):
        seeds.add(call.body["seed"])
        return ok("SCORE: 8")

    seeds = set()
    _, calls = judge(path, respond, repeats=2)
    lines = read_judgements(path)
    assert len(calls) == len(seeds) == 2 * NUM_TURNS
    assert [len(scores_by_turn(lines, repeat)) for repeat in range(3)] == [NUM_TURNS, NUM_TURNS, 0]


def test_a_share_of_the_turns_is_scored_again_and_may_grow(path):
    shares = [judge(path, repeats=2, repeat_share=share) for share in (0.4, 0.4, 1.0)]
    numbers = [len(calls) for _, calls in shares]
    assert NUM_TURNS < numbers[0] < 2 * NUM_TURNS and numbers[1] == 0
    assert sum(numbers) == 2 * NUM_TURNS and shares[0][0].num_planned == numbers[0]


def test_the_last_scored_line_counts():
    def line(score, **changes):
        status = "failed" if score is None else "scored"
        return msgspec.structs.replace(JUDGEMENT, score=score, status=status, **changes)

    lines = [line(3), line(7), line(None, attempt=1), line(2, repeat=1), line(9, turn_index=4)]
    name = JUDGEMENT.trajectory_id
    assert scores_by_turn(lines) == {(name, None): 7, (name, 4): 9}
    assert scores_by_turn(lines, repeat=1) == {(name, None): 2}


def test_a_ceiling_on_the_cost_stops_cleanly_and_later_goes_on(path):
    result, calls = judge(path, max_cost_usd=0.05, concurrency=2)
    assert result.stopped == "cost" and "--max-cost-usd" in result.summary
    assert len(calls) == 5 and result.cost_usd == pytest.approx(0.05)
    assert judge(path, max_cost_usd=0.05)[1] == []
    assert judge(path)[0].is_complete


def test_a_ceiling_needs_a_price(path):
    with pytest.raises(InputError, match="no price is known for b-judge"):
        judge(path, judge="b-judge", max_cost_usd=1.0)


def test_another_judges_or_another_rubrics_file_is_refused(path):
    judge(path)
    with pytest.raises(InputError, match="holds scores by 'a-judge', not 'b-judge'"):
        judge(path, judge="b-judge")
    with pytest.raises(StaleInputError, match="another rubric"):
        judge(path, pack=dataclasses.replace(PACK, rubric_sha256="0" * 64))


def test_a_dialogue_without_its_scenario_is_named(path):
    with pytest.raises(InputError, match=r"scenario 'debt_003' is not among the 2 given"):
        judge(path, scenarios=SCENARIOS[:2])
    assert not path.exists()


def test_a_judges_name_becomes_a_file_name(tmp_path):
    assert judge_path(tmp_path, "qwen/qwen-2.5:free").name == "qwen-qwen-2.5-free.jsonl"
    assert judge_path(tmp_path, "../x").parent == tmp_path
