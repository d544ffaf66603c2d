"""What a model shows before money is spent on it, and who is asked."""

import asyncio
import signal
import sys

import pytest
from aiohttp import web
from chat_server import fault, ok
from tiny_run import run_stage
from two_servers import is_check, two_servers

from emodistill import stages
from emodistill.configs import EvaluateConfig, JudgeConfig, SweepConfig, TournamentConfig
from emodistill.errors import ApiError, StoppedError
from emodistill.jsonl import num_lines
from emodistill.offline.store import read_trajectories

ROLES = {"focal": "one:echo-focal", "counterparty": "two:echo-counterparty"}


@pytest.fixture
def two(tmp_path, monkeypatch):
    with two_servers(tmp_path, monkeypatch) as servers:
        yield servers


def settings(tmp_path, **changes):
    small = {"num_seeds": 1, "num_scenarios": 2, "num_test": 2}
    return SweepConfig(run=tmp_path / "run", **(ROLES | small | changes))


def num_of(server):
    """Calls that show a model, and those of the work."""
    checks = [is_check(call) for call in server.calls]
    return sum(checks), len(checks) - sum(checks)


@pytest.fixture
def terminal(monkeypatch):
    """A terminal with somebody who answers; what was asked."""
    asked = []

    def answering(answer):
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or answer)
        return asked

    return answering


def test_each_role_that_costs_money_is_asked_once_and_its_cost_is_said(two, tmp_path, capsys):
    run_stage(settings(tmp_path))
    said = capsys.readouterr().out
    assert num_of(two["one"])[0] == num_of(two["two"])[0] == 1
    assert "sweep: focal echo-focal at one: answers; about $4,096.40 for 1,000 dialogues." in said
    assert "sweep: about $29.76 for 2 dialogues." in said
    run_stage(JudgeConfig(run=tmp_path / "run", judge="two:the/judge"))
    assert "judge: judge the/judge at two: answers;" in capsys.readouterr().out
    run_stage(EvaluateConfig(run=tmp_path / "run", method="random", **ROLES))
    assert "evaluate random: about $29.76 for 2 dialogues." in capsys.readouterr().out
    before = num_of(two["one"])
    run_stage(settings(tmp_path))
    assert num_of(two["one"]) == before, "a finished stage asks nobody"


def test_a_judge_is_asked_whenever_items_are_left_at_its_level(two, tmp_path, capsys):
    path = run_stage(settings(tmp_path)).path
    num_turns = sum(len(dialogue.focal_turns) for dialogue in read_trajectories(path))
    judge = {"run": tmp_path / "run", "judge": "two:the/judge"}
    usual = two["two"].respond

    unclear = []

    async def first_is_unclear(call):  # and has two lines
        if not is_check(call) and not unclear:
            unclear.append(call.body["messages"])
        return ok("no score", 10, 5) if call.body["messages"] in unclear else await usual(call)

    two["two"].respond = first_is_unclear
    scores = run_stage(JudgeConfig(**judge)).path
    assert num_lines(scores) == num_turns + 1
    assert f"for {num_turns} scores." in capsys.readouterr().out
    with scores.open("a") as file:
        file.write('{"trajectory_id"')  # killed while it wrote
    run_stage(JudgeConfig(**judge, level="dialogue"))
    assert "for 2 scores." in capsys.readouterr().out
    run_stage(JudgeConfig(**judge, level="dialogue", repeats=2))
    assert "for 2 scores." in capsys.readouterr().out


def test_a_model_in_both_roles_is_asked_once_and_a_peak_is_told(two, tmp_path, capsys):
    path = tmp_path / "providers.toml"
    peak = 'output = 1000, peak = 2, peak_hours = ["Mon-Sun 00-24"] }'
    path.write_text(path.read_text().replace("output = 1000 }", peak))
    run_stage(settings(tmp_path, focal="one:a/focal", counterparty="one:a/focal", max_turns=2))
    assert num_of(two["one"])[0] == 1
    said = capsys.readouterr().out
    assert "$8,192.80 for 1,000 dialogues, at 2 times the usual price until the peak" in said


def test_what_would_go_wrong_for_every_dialogue_is_found_by_one_call(two, tmp_path):
    async def gone(call):
        return fault(404, "The model `echo-counterparty` does not exist")

    two["two"].respond = gone
    with pytest.raises(ApiError, match=r"does not exist.*Check the model's name"):
        run_stage(settings(tmp_path))
    assert num_of(two["two"]) == (1, 0) and num_of(two["one"])[1] == 0


def thinking(text, reason, num_thoughts):
    usage = {"prompt_tokens": 10, "completion_tokens": 64}
    usage |= {"completion_tokens_details": {"reasoning_tokens": num_thoughts}}
    choice = {"message": {"content": text, "reasoning": "hm"}, "finish_reason": reason}
    return web.json_response({"choices": [choice], "usage": usage})


def test_a_model_that_thinks_is_told_of_and_one_that_only_thinks_is_refused(
    two,
    tmp_path,
    capsys,
):
    usual = two["one"].respond

    async def first_thinks(call):
        return thinking("OK", "stop", 62) if is_check(call) else await usual(call)

    two["one"].respond = first_thinks
    run_stage(settings(tmp_path))
    assert "answers, thinks (62 of 64 tokens), which is billed" in capsys.readouterr().out

    async def only_thinks(call):
        await asyncio.sleep(0)
        return thinking(None, "length", 64)

    two["one"].respond = only_thinks
    with pytest.raises(ApiError, match=r"only thought: 64 tokens.*thinking_off"):
        run_stage(settings(tmp_path / "other"))


def test_one_that_only_thinks_once_it_has_been_shown_ends_the_work_with_what_to_do(two, tmp_path):
    async def thinks_at_work(call):
        return thinking("OK", "stop", 62) if is_check(call) else thinking(None, "length", 64)

    two["one"].respond = thinks_at_work
    with pytest.raises(ApiError, match=r"only thought: 64 tokens.*Switch its thinking off"):
        run_stage(settings(tmp_path, num_scenarios=12, concurrency=1))
    assert num_of(two["one"]) == (1, 1)


def test_the_user_is_asked_on_a_terminal_and_no_means_nothing_is_paid(two, tmp_path, terminal):
    asked = terminal("n")
    with pytest.raises(StoppedError, match="stopped as asked"):
        run_stage(settings(tmp_path))
    assert asked == ["Go on? [y/N] "]
    assert num_of(two["one"]) == num_of(two["two"]) == (1, 0)
    run_stage(settings(tmp_path, yes=True))
    assert len(asked) == 1 and num_of(two["one"])[1] > 0


def test_the_end_of_the_input_is_a_no(two, tmp_path, terminal, monkeypatch):
    def ended(text):
        raise EOFError

    terminal("")
    monkeypatch.setattr("builtins.input", ended)
    with pytest.raises(StoppedError, match="stopped as asked"):
        run_stage(settings(tmp_path))


def test_one_interrupt_ends_the_question(two, tmp_path, terminal, monkeypatch):
    went_on, before = [], signal.getsignal(signal.SIGINT)  # in the background it is ignored

    def interrupted(text):
        signal.raise_signal(signal.SIGINT)
        went_on.append(text)
        return "y"

    terminal("")
    monkeypatch.setattr("builtins.input", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_stage(settings(tmp_path))
    assert not went_on and signal.getsignal(signal.SIGINT) is before
    assert num_of(two["one"]) == (1, 0)


def test_a_yes_goes_on(two, tmp_path, terminal):
    assert terminal("Y") == []
    run_stage(settings(tmp_path))
    assert num_of(two["one"])[1] > 0


def test_a_tournament_asks_once_and_once_more_when_it_is_resumed(two, tmp_path, terminal):
    run_stage(settings(tmp_path, yes=True, max_turns=2))
    small = {"num_seeds": 1, "num_scenarios": 1, "max_turns": 2}
    match = TournamentConfig(run=tmp_path / "run", **ROLES, **small, methods=("random", "neutral"))
    asked = terminal("y")
    stages.tournament(match)
    assert len(asked) == 1
    for path in (tmp_path / "run/crad/tournament").glob("neutral@neutral.*"):
        path.unlink()
    asked = terminal("n")
    with pytest.raises(StoppedError, match="neutral@neutral: stopped as asked"):
        stages.tournament(match)
    assert len(asked) == 2


def test_nobody_is_asked_where_no_price_is_known(two, tmp_path, terminal, capsys):
    path = tmp_path / "providers.toml"
    path.write_text(
        path.read_text().replace(
            'profiles."*" = { price = { input = 3000, output = 3000 } }', 'key = "required"'
        )
    )
    asked = terminal("n")
    run_stage(settings(tmp_path))
    said = capsys.readouterr().out
    assert asked == [] and "at two: answers; no price of it is known." in said


def test_the_simulator_costs_nothing_and_shows_nothing(tmp_path, terminal, capsys):
    asked = terminal("n")
    run_stage(SweepConfig(run=tmp_path / "run", num_seeds=1, num_scenarios=1))
    assert asked == [] and "answers;" not in capsys.readouterr().out
