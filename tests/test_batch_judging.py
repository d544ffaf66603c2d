"""Judging by file batches: joined by name, sent again, killed, resumed, and half the price."""

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from batch_judge import USD, judge
from batch_server import BatchServer, answered, refused
from items_to_judge import DIALOGUES, NUM_TURNS
from tiny_run import run_stage

from emodistill.configs import JudgeConfig, SweepConfig
from emodistill.errors import ApiError, InputError
from emodistill.llm.batches import read_line
from emodistill.llm.fault_reader import FaultReader
from emodistill.llm.keys import KeyPool
from emodistill.offline import batch_judging
from emodistill.offline.batch_judging import batch_path
from emodistill.offline.budget import read_usage
from emodistill.offline.judging import judge_path, scores_by_turn
from emodistill.offline.store import read_judgements

ERRORS = FaultReader((), str)


@pytest.fixture
def path(tmp_path):
    return judge_path(tmp_path, "a-judge")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("emodistill.llm.batches.FIRST_POLL_S", 0.01)
    monkeypatch.setattr("emodistill.llm.batches.FIRST_PAUSE_S", 0.01)


def is_about(body, words):
    return words in json.dumps(body["messages"])


def test_answers_are_joined_by_name_whatever_their_order(path):
    def respond(body, number):
        assert (body["temperature"], body["max_tokens"]) == (0.0, 64)
        is_second = is_about(body, "utterance 1")  # which the prompt of the first has not
        return answered("SCORE: 9" if is_second else "SCORE: 3")

    with BatchServer(respond, num_open_looks=3) as server:
        result = judge(path, server.base_url)
    lines = read_judgements(path)
    assert result.is_complete and result.num_finished == len(lines) == NUM_TURNS
    scores = scores_by_turn(lines)
    assert scores == {(t.trajectory_id, i): s for t in DIALOGUES for i, s in ((0, 3), (2, 9))}
    assert len(server.batches) == 1 and set(server.billed.values()) == {1}


def test_half_the_price_is_in_the_books(path):
    with BatchServer() as server:
        result = judge(path, server.base_url)
    costs_usd = [line.cost_usd for line in read_judgements(path)]
    assert costs_usd == [pytest.approx(USD / 2)] * NUM_TURNS
    assert result.cost_usd == pytest.approx(NUM_TURNS * USD / 2)
    used = read_usage(path)
    assert used.cost_usd == pytest.approx(NUM_TURNS * USD / 2)
    assert (used.num_calls, used.completion_tokens) == (NUM_TURNS, 5 * NUM_TURNS)


def test_a_refused_line_fails_and_a_lost_one_is_sent_again(path):
    """Lines come reversed, one is a 400, and one is missing."""

    def respond(body, number):
        if is_about(body, "utterance 2 of debt_001 in sweep 1"):
            return refused(400, "data_inspection_failed")
        if is_about(body, "utterance 2 of debt_002 in sweep 0") and number == 0:
            return None
        return answered("SCORE: 6")

    with BatchServer(respond) as server:
        result = judge(path, server.base_url)
    lines = read_judgements(path)
    (failed,) = [line for line in lines if line.status == "failed"]
    assert (failed.raw, failed.score, failed.cost_usd) == ("[no answer: HTTP 400]", None, 0)
    assert (result.num_finished, result.num_failed) == (NUM_TURNS - 1, 1)
    assert sizes(server) == [NUM_TURNS, 1]
    assert sorted(server.billed.values()) == [0] + [1] * (NUM_TURNS - 1)
    assert result.cost_usd == pytest.approx((NUM_TURNS - 1) * USD / 2)
    assert not batch_path(path).exists()


def test_what_is_unreadable_is_asked_for_once_more_with_double_room(path):
    rooms = []

    def respond(body, number):
        rooms.append((body["max_tokens"], number))
        is_one = is_about(body, "utterance 2 of debt_001 in sweep 1")
        return answered("well" if is_one else "SCORE: 6")

    with BatchServer(respond) as server:
        result = judge(path, server.base_url)
    assert rooms.count((64, 0)) == NUM_TURNS and rooms[NUM_TURNS:] == [(128, 1)]
    assert result.failure_rates == {"sweep": 1 / NUM_TURNS}
    failed = [line for line in read_judgements(path) if line.status == "failed"]
    assert [line.attempt for line in failed] == [0, 1]


@pytest.mark.parametrize(
    "trouble", [None, refused(500, "server_error"), refused(429, "rate_limit_exceeded")]
)
def test_a_line_that_never_gets_an_answer_is_given_up_and_no_score(path, trouble):
    def respond(body, number):
        is_one = is_about(body, "utterance 2 of debt_001 in sweep 1")
        return trouble if is_one else answered("SCORE: 6")

    with BatchServer(respond) as server:
        result = judge(path, server.base_url)
    (failed,) = [line for line in read_judgements(path) if line.status == "failed"]
    assert failed.raw == "[no answer: no HTTP 200]" and result.num_failed == 1
    assert len(server.batches) == batch_judging.NUM_SENDS


CHILD = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import batch_judge
batch_judge.judge(Path({path!r}), {url!r})
"""


def killed(path, url, moment, by=signal.SIGKILL):
    """Start the judge in a process of its own and kill it as soon as `moment()`; its exit code."""
    code = CHILD.format(tests=str(Path(__file__).parent), path=str(path), url=url)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, env=os.environ, text=True
    )
    deadline = time.monotonic() + 30
    while not moment():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(by)
    process.communicate()
    return process.returncode


@pytest.mark.parametrize("moment", ["while the batch is made", "after it was made"])
def test_a_judge_that_is_killed_after_submit_pays_nothing_twice(path, moment):
    is_first = moment == "while the batch is made"
    hold = threading.Event() if is_first else None
    with BatchServer(hold=hold, num_open_looks=0 if is_first else 10**6) as server:

        def is_made():
            looked = any(batch["looks"] for batch in server.batches.values())
            return bool(server.batches) if is_first else looked

        killed(path, server.base_url, is_made)
        kept = json.loads(batch_path(path).read_text())
        assert kept["batch_id"] == (None if is_first else "batch-0")
        assert not read_judgements(path)
        if is_first:
            hold.set()
        server.num_open_looks = 0
        result = judge(path, server.base_url)
    assert result.is_complete and len(server.batches) == 1
    assert len(read_judgements(path)) == NUM_TURNS and set(server.billed.values()) == {1}
    assert result.cost_usd == pytest.approx(NUM_TURNS * USD / 2)


def test_a_judge_that_is_killed_halfway_through_the_results_reads_the_rest(path):
    with BatchServer(stall_after=NUM_TURNS // 2) as server:
        killed(path, server.base_url, lambda: len(whole_lines(path)) == NUM_TURNS // 2)
        assert json.loads(batch_path(path).read_text())["batch_id"] == "batch-0"
        result = judge(path, server.base_url)
    lines = read_judgements(path)
    items = {(line.trajectory_id, line.turn_index) for line in lines}
    assert len(lines) == len(items) == NUM_TURNS
    assert len(server.batches) == 1 and set(server.billed.values()) == {1}
    assert result.is_complete and result.cost_usd == pytest.approx(NUM_TURNS * USD / 2)
    assert not batch_path(path).exists()


def test_an_unreadable_answer_that_was_read_before_a_kill_is_not_read_again(path):
    def respond(body, number):
        return answered("SCORE: 6" if number else "well")

    with BatchServer(respond, stall_after=NUM_TURNS // 2) as server:
        killed(path, server.base_url, lambda: len(whole_lines(path)) == NUM_TURNS // 2)
        result = judge(path, server.base_url)
    assert result.num_finished == NUM_TURNS and sizes(server) == [NUM_TURNS, NUM_TURNS]
    assert len(read_judgements(path)) == sum(server.billed.values()) == 2 * NUM_TURNS


def whole_lines(path):
    return path.read_bytes().splitlines() if path.exists() else []


def test_one_by_one_is_refused_while_a_batch_is_under_way(path):
    with BatchServer(num_open_looks=10**6) as server:

        def is_made():
            return any(batch["looks"] for batch in server.batches.values())

        assert killed(path, server.base_url, is_made, signal.SIGINT) == 0  # stopped as asked
        with pytest.raises(InputError, match=r"a batch of 12 items is under way .*Add --batch"):
            judge(path, server.base_url, batch=False)
        with pytest.raises(InputError, match="a batch with --level turn is under way"):
            judge(path, server.base_url, level="dialogue")
        with pytest.raises(InputError, match=r"a batch is under way at http.*, not at"):
            judge(path, "http://127.0.0.1:9/v1")
    batch_path(path).write_text("[]")
    with pytest.raises(InputError, match=r"a-judge.batch.json can't be read .*Delete it"):
        judge(path, server.base_url)


def test_a_batch_that_was_made_although_the_answer_said_otherwise_is_found(path):
    with BatchServer(faults={"POST /batches": [(500, True)]}) as server:
        judge(path, server.base_url)
    assert len(server.batches) == 1 and set(server.billed.values()) == {1}


def test_a_batch_and_its_files_stay_with_the_account_that_made_them(path, monkeypatch):
    """Calls would go to another account where one's own has a queue, or rests."""
    monkeypatch.setattr("emodistill.llm.batches.PATIENCE_S", 0.0)
    accounts = (("sk-account-one-11111111",), ("sk-account-two-22222222",))
    limits = {"scope": "account", "requests_per_second": 8.0}
    away = [(503, False)] * 12
    with BatchServer(faults={"GET /batches/": away}) as server:
        with pytest.raises(ApiError, match="HTTP 503"):
            judge(path, server.base_url, accounts=accounts, limits=limits)
        assert judge(path, server.base_url, accounts=accounts, limits=limits).is_complete
    assert len(set(server.used)) == 1 and len(server.used) > 10
    assert len(server.batches) == 1


def test_a_batch_waits_for_its_own_account_while_that_rests():
    async def main():
        pool = KeyPool([("sk-account-one-11111111",), ("sk-account-two-22222222",)])
        own = pool.own("batch")
        pool.rest(own, time.monotonic(), 0.1)
        assert pool.own("batch") is own
        started_s = time.monotonic()
        await pool.admit(own)
        assert time.monotonic() - started_s > 0.09
        pool.let_in(own, time.monotonic())
        await pool.admit(own)
        assert time.monotonic() - started_s < 2.0

    asyncio.run(main())


def test_trouble_with_any_call_is_met_by_asking_again(path):
    trouble = [(503, False), (429, False)]
    names = ("POST /files", "POST /batches", "GET /batches")
    with BatchServer(faults={name: list(trouble) for name in names}) as server:
        assert judge(path, server.base_url).is_complete
    assert len(server.batches) == 1


def test_a_network_that_is_away_for_a_while_ends_no_waiting(path, monkeypatch):
    away = [(503, False)] * 14
    with BatchServer(faults={"GET /batches/": list(away)}) as server:
        assert judge(path, server.base_url).is_complete
    monkeypatch.setattr("emodistill.llm.batches.PATIENCE_S", 0.0)
    path.unlink()
    with (
        BatchServer(faults={"GET /batches/": 2 * away}) as server,
        pytest.raises(ApiError, match=r"/batches/batch-0 answered HTTP 503: .*asked twice"),
    ):
        judge(path, server.base_url)
    assert batch_path(path).exists()


def test_start_again_is_said_where_the_job_ends_alone(path, monkeypatch, caplog):
    away = [(503, False)] * 14
    with BatchServer(faults={"GET /batches/": away}, stall_after=3, is_cut=True) as server:
        assert judge(path, server.base_url).is_complete
    assert "answered HTTP 503" in caplog.text and "broke off" in caplog.text
    assert "Start again" not in caplog.text
    monkeypatch.setattr("emodistill.llm.batches.NUM_ATTEMPTS", 1)
    path.unlink()
    with pytest.raises(ApiError, match=r"can't be reached .*Start again later: ") as raised:
        judge(path, server.base_url)
    assert str(raised.value).count("Start again") == 1


@pytest.mark.parametrize(
    ("batch_id", "advice"),
    [
        ("gone", "It no longer knows batch gone. Delete {} to pay for its items again; or use the"),
        (None, "knows nothing of the file of requests that was sent up. Delete {} to ask for its"),
    ],
)
def test_a_batch_that_the_provider_has_lost_can_be_left_behind(path, batch_id, advice):
    with BatchServer() as server:
        batch = {"url": server.base_url, "level": "turn", "num_lines": 3, "input_file_id": "f"}
        path.parent.mkdir(exist_ok=True)
        batch_path(path).write_text(json.dumps({**batch, "batch_id": batch_id}))
        with pytest.raises(ApiError, match=re.escape(advice.format(batch_path(path)))) as raised:
            judge(path, server.base_url)
        assert "each item is asked for by itself" not in str(raised.value)
        batch_path(path).unlink()
        assert judge(path, server.base_url).is_complete


def test_results_that_break_off_are_fetched_again(path):
    with BatchServer(stall_after=NUM_TURNS // 2, is_cut=True) as server:
        assert judge(path, server.base_url).is_complete
    assert len(read_judgements(path)) == NUM_TURNS and len(server.batches) == 1


def test_a_batch_that_is_refused_as_a_whole_says_why_and_leaves_nothing_behind(path):
    with BatchServer(status="failed") as server:
        with pytest.raises(ApiError, match=r"was refused: .*token_limit_exceeded.*--batch-size"):
            judge(path, server.base_url)
        assert not batch_path(path).exists() and not read_judgements(path)
        server.status = "completed"
        assert judge(path, server.base_url, batch_size=5).is_complete
    assert sizes(server) == [12, 5, 5, 2]


def sizes(server):
    """How many lines each batch had."""
    return [len(server.files[b["input_file_id"]].splitlines()) for b in server.batches.values()]


def test_what_an_expired_batch_has_answered_is_kept_and_the_rest_sent_again(path):
    def respond(body, number):
        is_late = is_about(body, "in sweep 1") and number == 0
        late = {"error": {"code": "batch_expired", "message": "too late"}}
        return {"status_code": 0, "body": late} if is_late else answered("SCORE: 7")

    with BatchServer(respond, status="expired") as server:
        assert judge(path, server.base_url).is_complete
    assert set(server.billed.values()) == {1} and len(server.batches) == 2


def test_a_cancelled_batch_stops_the_judge_and_keeps_its_answers(path):
    with (
        BatchServer(status="cancelled") as server,
        pytest.raises(ApiError, match="batch-0 was cancelled there"),
    ):
        judge(path, server.base_url)
    assert len(read_judgements(path)) == NUM_TURNS


def test_a_wrong_model_name_stops_the_judge_instead_of_failing_every_item(path):
    with (
        BatchServer(lambda body, number: refused(404, "model_not_found")) as server,
        pytest.raises(ApiError, match=r"no: model_not_found. Check the judge's name"),
    ):
        judge(path, server.base_url)
    assert not read_judgements(path)


def test_where_all_requests_are_refused_no_item_is_given_up(path, monkeypatch):
    monkeypatch.setattr(batch_judging, "NUM_FAILURES_IN_A_ROW", NUM_TURNS)
    with (
        BatchServer(lambda body, number: refused(400, "unsupported_value")) as server,
        pytest.raises(ApiError, match=r"all 12 requests .* no: unsupported_value"),
    ):
        judge(path, server.base_url)
    assert not read_judgements(path)


def every(size, others, chosen):
    """Answers with `chosen` for each `size`-th request, by the order in which they first come."""
    numbers = {}

    def respond(body, number):
        position = numbers.setdefault(json.dumps([body["messages"], body["seed"]]), len(numbers))
        return others if position % size else chosen

    return respond


def test_a_batch_of_refusals_that_is_read_in_two_parts_is_read_to_its_end(path):
    """The connection breaks among the refusals, after all answers were read."""
    respond = every(8, refused(400, "data_inspection_failed"), answered("SCORE: 8"))
    with BatchServer(respond, stall_after=25, is_cut=True) as server:
        result = judge(path, server.base_url, repeats=3)
    assert server.stall_after is None and sizes(server) == [36]
    assert (result.num_finished, result.num_failed) == (5, 31)
    assert not batch_path(path).exists()


def test_refusals_of_a_later_batch_are_of_their_items_where_the_judge_has_answered(path):
    def respond(body, number):
        return answered("SCORE: 6") if number == 0 else refused(400, "data_inspection_failed")

    with BatchServer(respond) as server:
        judge(path, server.base_url)
        result = judge(path, server.base_url, repeats=3)
    assert sizes(server) == [NUM_TURNS, 2 * NUM_TURNS]
    assert (result.num_finished, result.num_failed) == (NUM_TURNS, 2 * NUM_TURNS)


def test_refusals_are_given_up_by_no_interruption_where_nothing_was_answered(path):
    with (
        BatchServer(
            lambda body, number: refused(400, "unsupported_value"), stall_after=25, is_cut=True
        ) as server,
        pytest.raises(ApiError, match=r"all 36 requests .* none is given up"),
    ):
        judge(path, server.base_url, repeats=3)
    assert server.stall_after is None and not read_judgements(path)


def only_thought():
    body = answered(None, completion_tokens=64)
    body["choices"][0]["message"]["reasoning_content"] = "hm"
    body["choices"][0]["finish_reason"] = "length"
    return body


def test_a_judge_that_only_thinks_is_paid_for_once_and_told_how_to_stop(path):
    with BatchServer(lambda body, number: only_thought()) as server:
        with pytest.raises(ApiError, match=r"model a-judge: it only thought.*thinking_off"):
            judge(path, server.base_url)
        assert sizes(server) == [NUM_TURNS] and not read_judgements(path)
        assert not batch_path(path).exists()
        used = read_usage(path)
        assert (used.num_calls, used.completion_tokens) == (NUM_TURNS, 64 * NUM_TURNS)
        server.respond = lambda body, number: answered("SCORE: 8")
        assert judge(path, server.base_url).is_complete


def test_a_thought_without_a_score_among_answers_is_not_asked_for_again(path):
    with BatchServer(every(3, answered("SCORE: 8"), only_thought())) as server:
        result = judge(path, server.base_url)
    assert sizes(server) == [NUM_TURNS] and set(server.billed.values()) == {1}
    assert (result.num_finished, result.num_failed) == (8, 4)


def withheld():
    body = answered("")
    body["choices"][0]["finish_reason"] = "content_filter"
    return body


@pytest.mark.parametrize(
    ("chosen", "is_alone", "num_batches"),
    [
        (withheld(), False, 1),
        (withheld(), True, 1),
        ({**answered(""), "choices": []}, False, batch_judging.NUM_SENDS),
    ],
    ids=["filtered", "all filtered", "unusable"],
)
def test_what_was_paid_for_is_in_the_books_once(path, chosen, is_alone, num_batches):
    """However often the results are read."""
    respond = every(2, chosen if is_alone else answered("SCORE: 8"), chosen)
    with BatchServer(respond, stall_after=10, is_cut=True) as server:
        result = judge(path, server.base_url)
    assert server.stall_after is None and len(server.batches) == num_batches
    num_billed = sum(server.billed.values())
    used = read_usage(path)
    assert used.num_calls == num_billed and used.cost_usd == pytest.approx(num_billed * USD / 2)
    assert result.num_failed == (NUM_TURNS if is_alone else NUM_TURNS // 2)


KEY = "sk-secret-abcdefgh-12345678"


@pytest.mark.parametrize("status", [400, 401, 500])
@pytest.mark.parametrize("shown", [KEY, "sk-secre***********5678"])
def test_no_line_of_a_batch_shows_a_key(path, caplog, status, shown):
    caplog.set_level(logging.DEBUG, "emodistill")
    words = f"Incorrect API key provided: {shown}"
    error = {"status_code": status, "body": {"error": {"message": words}}}
    for others in (error, answered("SCORE: 8")):
        with BatchServer(every(2, others, error)) as server:
            try:
                judge(path, server.base_url, accounts=((KEY,),))
            except ApiError as raised:
                logging.getLogger("emodistill").warning("%s", raised)
    assert "Incorrect API key provided" in caplog.text
    assert "sk-secre" not in caplog.text and "***" not in caplog.text


def test_a_ceiling_on_the_cost_sends_what_fits_under_it(path):
    with BatchServer(lambda body, number: answered("SCORE: 8", 400, 40)) as server:
        result = judge(path, server.base_url, max_cost_usd=2.0)
        assert result.stopped == "cost" and 0 < result.num_finished < NUM_TURNS
        assert result.cost_usd <= 2.0
        assert judge(path, server.base_url).is_complete
    assert set(server.billed.values()) == {1}


def test_the_stage_judges_a_sweep_by_batch(tmp_path, monkeypatch):
    """As `judge.py --provider batches --judge j --batch` does."""
    run_stage(SweepConfig(run=tmp_path / "run", num_scenarios=2, num_seeds=1))
    with BatchServer() as server:
        own = tmp_path / "providers.toml"
        own.write_text(
            f'[batches]\nbase_url = "{server.base_url}"\nkey = "none"\n'
            "profiles.j = { price = { input = 1.0, output = 2.0, batch = 0.5 } }\n"
        )
        monkeypatch.setenv("EMODISTILL_PROVIDERS", str(own))
        config = JudgeConfig(run=tmp_path / "run", provider="batches", judge="j", batch=True)
        made = run_stage(config)
    (manifest,) = (tmp_path / "run/crad/judge").glob("*.manifest.json")
    told = json.loads(manifest.read_text())
    lines = read_judgements(made.path)
    assert told["status"] == "finished" and len(lines) == sum(server.billed.values()) > 0
    assert told["cost_usd"] == pytest.approx(sum(line.cost_usd for line in lines))
    assert lines[0].cost_usd == pytest.approx((10 * 1.0 + 5 * 2.0) / 1e6 / 2)


def test_a_provider_without_batches_says_so(path):
    with pytest.raises(InputError, match=r"--batch: a-judge at test is not known to take"):
        judge(path, "http://127.0.0.1:9/v1", share=None)
    with pytest.raises(InputError, match="--batch: leave out --record and --replay"):
        JudgeConfig(batch=True, record=Path("tape"))


def test_an_address_without_batches_is_named(path):
    with (
        BatchServer(faults={"POST /files": [(404, False)]}) as server,
        pytest.raises(ApiError, match=r"/v1/files answered HTTP 404: .*without --batch"),
    ):
        judge(path, server.base_url)


@pytest.mark.parametrize(
    "raw", ["[]", "{", '{"custom_id": 3}', '{"response": {"status_code": 200}}', "[" * 100]
)
def test_what_is_no_result_is_no_line(raw):
    with pytest.raises(ValueError, match=r"."):
        read_line(raw.encode(), ERRORS)


def test_a_line_without_a_usable_status_is_one_without_an_answer():
    for response in (None, [], {"status_code": "200"}, {"status_code": 1e300, "body": {}}):
        line = read_line(json.dumps({"custom_id": "a", "response": response}).encode(), ERRORS)
        assert line.fault.kind == "broken" and not line.is_billed
