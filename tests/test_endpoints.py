"""A model and its server for each role: names, keys, money, and what records say of them."""

import dataclasses
import itertools
import json

import pytest
from aiohttp import web
from chat_server import fault
from tiny_run import run_stage
from two_servers import KEYS, is_check, playing, two_servers

from emodistill import stages
from emodistill.configs import EvaluateConfig, JudgeConfig, SweepConfig
from emodistill.configs.studies import CounterpartyStudy
from emodistill.errors import InputError, StoppedError
from emodistill.evaluation.served_student import ServedStudents
from emodistill.llm import Price
from emodistill.llm.endpoints import read_endpoint
from emodistill.llm.providers import get_provider
from emodistill.offline.budget import read_usage
from emodistill.offline.run_files import judge_file
from emodistill.offline.store import read_judgements, read_trajectories
from emodistill.runs import read_manifest
from emodistill.settings import Cell, Settings
from emodistill.stages.language_models import endpoint_of
from emodistill.studies.arm_runner import run_study

SMALL = {"num_seeds": 1, "num_scenarios": 3, "concurrency": 4}


@pytest.fixture
def two(tmp_path, monkeypatch):
    with two_servers(tmp_path, monkeypatch) as servers:
        yield servers


@pytest.mark.parametrize(
    ("text", "server", "model", "name"),
    [
        ("qwen2.5:7b", "ollama", "qwen2.5:7b", "qwen2.5:7b"),
        ("deepseek:deepseek-flash", "deepseek", "deepseek-flash", "deepseek:deepseek-flash"),
        ("ollama:qwen2.5:7b", "ollama", "qwen2.5:7b", "qwen2.5:7b"),
        ("openrouter:qwen/qwen3:free", "openrouter", "qwen/qwen3:free", None),
        ("http://h:1/v1/#a:b", "http://h:1/v1", "a:b", "http://h:1/v1#a:b"),
        ("simulator:sim-teacher", "simulator", "sim-teacher", "sim-teacher"),
    ],
)
def test_a_model_may_name_its_server(text, server, model, name):
    found = read_endpoint(text, get_provider("ollama"), flag="--focal")
    assert (found.provider.label, found.model, found.name) == (server, model, name or text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"focal": "http://h:1/v1"}, "--focal http://h:1/v1 names no model"),
        ({"focal": "gpt-9"}, "--focal gpt-9 needs a --provider .*PROVIDER:gpt-9"),
        ({"focal": "nobody:gpt-9"}, "--focal nobody:gpt-9 needs a --provider"),
        ({"focal": "simulator:gpt-9"}, "the simulator serves sim-teacher"),
        ({"focal": "custom:gpt-9"}, "--focal custom:gpt-9: provider 'custom' .* write URL#gpt-9"),
        ({"focal": "ollama:a"}, r"--counterparty needs a --provider.*sim-counterparty"),
        ({"provider": "deepseek"}, "set DEEPSEEK_API_KEY"),
    ],
)
def test_what_no_server_serves_is_refused(settings, words, monkeypatch):
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    with pytest.raises(InputError, match=words):
        for role in ("focal", "counterparty"):
            endpoint_of(SweepConfig(**settings), role)


@pytest.mark.parametrize("address", ["https://me:pw-0000@host/v1", "http://me:pw-0000@[host/v1"])
@pytest.mark.parametrize("model", ["", "#gpt-9"])
def test_no_message_shows_the_password_of_an_address(address, model):
    with pytest.raises(InputError) as caught:
        endpoint_of(SweepConfig(focal=address + model), "focal")
    assert "pw-0000" not in str(caught.value)


def test_a_sweep_whose_simulated_models_were_named_in_full_stays_a_simulated_one(tmp_path):
    names = {"focal": "simulator:sim-teacher", "counterparty": "simulator:sim-counterparty"}
    run_stage(SweepConfig(run=tmp_path, **names, num_seeds=1, num_scenarios=1, max_turns=2))
    told = read_manifest(tmp_path / "crad/sweep").config
    assert (told["focal"], told["counterparty"]) == ("sim-teacher", "sim-counterparty")
    scores = run_stage(JudgeConfig(run=tmp_path, judge="simulator:sim-judge")).path
    assert judge_file(scores.parent, "simulator:sim-judge") == scores


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("deepseek:deepseek-chat", "not been served since 2026-07-24; use deepseek-flash. If it"),
        ("groq:llama-3.3-70b-versatile", "since 2026-08-16; use openai/gpt-oss-20b"),
        ("openrouter:qwen/qwen-2.5-3b-instruct", "since 2026-07-02; name another model"),
    ],
)
def test_a_name_that_is_gone_says_which_serves_now(endpoint, words, monkeypatch):
    for name in ("DEEPSEEK", "GROQ", "OPENROUTER"):
        monkeypatch.setenv(f"{name}_API_KEY", "sk-secret-0000")
    with pytest.raises(InputError, match=words):
        endpoint_of(SweepConfig(focal=endpoint), "focal")


def test_a_served_student_is_free_and_keeps_the_users_own_profiles(tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[custom.profiles."*"]\nthinking_tokens = 256\nprice = { input = 1, output = 1 }\n'
    )
    monkeypatch.setenv("EMODISTILL_PROVIDERS", str(path))
    student = {"student_url": "http://h:1/v1", "student_model": "m"}
    client = ServedStudents(EvaluateConfig(run=tmp_path, **student))._client
    profile = client.provider.profile("m")
    assert (profile.thinking_tokens, profile.price) == (256, Price(0.0, 0.0))
    calls = [client.call([], model="m", temperature=0.7, max_tokens=8) for _ in range(2)]
    assert calls[0].profile is calls[1].profile, "patterns are matched once"


def test_each_role_has_its_server_its_key_and_its_price(two, tmp_path):
    run = tmp_path / "run"
    roles = {"focal": "one:echo-focal", "counterparty": "two:echo-counterparty"}
    path = run_stage(SweepConfig(run=run, **roles, **SMALL)).path
    scores = run_stage(JudgeConfig(run=run, judge="two:the/judge")).path
    assert {call.body["model"] for call in two["one"].calls} == {"echo-focal"}
    assert {call.body["model"] for call in two["two"].calls} == {"echo-counterparty", "the/judge"}
    dialogues = read_trajectories(path)
    assert len(dialogues) == 3
    for dialogue in dialogues:
        assert (dialogue.focal.provider, dialogue.focal.model) == ("one", "echo-focal")
        assert (dialogue.counterparty.provider, dialogue.counterparty.model) == (
            "two",
            "echo-counterparty",
        )
        num_focal = len(dialogue.focal_turns)
        num_other = len(dialogue.turns) - num_focal
        assert dialogue.cost_usd == pytest.approx(0.015 * num_focal + 0.045 * num_other)
    assert read_usage(path).cost_usd == pytest.approx(sum(d.cost_usd for d in dialogues))
    judgements = read_judgements(scores)
    assert {(line.judge, line.provider) for line in judgements} == {("two:the/judge", "two")}
    assert scores.name == "two-the-judge.jsonl"
    told = read_manifest(run / "crad/sweep").summary["language_models"]
    assert told["focal"] == {"provider": "one", "model": "echo-focal"}
    everything = "".join(p.read_text() for p in run.rglob("*") if p.is_file())
    assert not [key for key in KEYS.values() if key in everything]


def test_the_ceiling_is_on_what_all_servers_bill(two, tmp_path):
    roles = {"focal": "one:echo-focal", "counterparty": "two:echo-counterparty"}
    config = SweepConfig(run=tmp_path / "run", **roles, max_cost_usd=0.05, concurrency=6)
    with pytest.raises(StoppedError, match="max-cost-usd"):
        run_stage(config)
    num_calls = {name: sum(not is_check(call) for call in two[name].calls) for name in two}
    spent_usd = 0.015 * num_calls["one"] + 0.045 * num_calls["two"]
    assert 0.05 <= spent_usd < 0.05 + 6 * 0.045, "beyond it are only calls that were in flight"


def stating(name, **more):
    """`playing`, whose answers state more of what was used."""
    play = playing(name)

    async def respond(call):
        response = await play(call)
        answer = json.loads(response.body)
        answer["usage"] |= more
        return web.json_response(answer)

    return respond


def test_thoughts_are_counted_shown_and_billed(two, tmp_path, capsys):
    two["one"].respond = stating("one", completion_tokens_details={"reasoning_tokens": 3})
    roles = {"focal": "one:echo-focal", "counterparty": "two:echo-counterparty"}
    path = run_stage(SweepConfig(run=tmp_path / "run", **roles, **SMALL)).path
    dialogues = read_trajectories(path)
    num_turns = sum(len(one.turns) for one in dialogues)
    num_thoughts = 3 * sum(len(one.focal_turns) for one in dialogues)
    assert read_usage(path).reasoning_tokens == num_thoughts
    told = f"{num_thoughts} of {5 * num_turns} written tokens were thoughts"
    said = capsys.readouterr().out
    assert told in said, said


def test_a_server_that_states_its_bill_needs_no_price(two, tmp_path):
    providers = tmp_path / "providers.toml"
    text = providers.read_text()
    price = 'profiles."*" = { price = { input = 1000, output = 1000 } }'
    assert price in text
    providers.write_text(text.replace(price, "states_cost = true"))
    two["one"].respond = stating("one", cost=0.25)
    roles = {"focal": "one:echo-focal", "counterparty": "two:echo-counterparty"}
    config = SweepConfig(run=tmp_path / "run", **roles, **SMALL, max_cost_usd=1_000.0)
    for one in read_trajectories(run_stage(config).path):
        num_focal = len(one.focal_turns)
        billed_usd = 0.25 * num_focal + 0.045 * (len(one.turns) - num_focal)
        assert one.cost_usd == pytest.approx(billed_usd)


def faulty(name, share):
    """`playing`, but for a share of the calls, which fail in every way that isn't billed."""
    play, troubles = playing(name), itertools.cycle(("429", "402", "498", "500", "error"))
    every = round(1 / share)

    async def respond(call):
        if call.number % every:
            return await play(call)
        trouble = next(troubles)
        if trouble == "error":
            return web.json_response({"error": {"code": 503, "message": "busy"}})
        pause = {"Retry-After": "0.01"} if trouble in ("429", "402") else {}
        return fault(int(trouble), "no", **pause)

    return respond


def test_a_faulty_sweep_over_two_servers_loses_nothing_and_bills_to_the_cent(two, tmp_path):
    for name, server in two.items():
        server.respond = faulty(name, 1 / 40)
    roles = {"focal": "one:echo-focal", "counterparty": "two:echo-counterparty"}
    config = SweepConfig(run=tmp_path / "run", **roles, num_seeds=4, num_scenarios=50)
    path = run_stage(dataclasses.replace(config, concurrency=32)).path
    dialogues = read_trajectories(path)
    assert len({one.trajectory_id for one in dialogues}) == len(dialogues) == 200
    assert not path.with_name("failures.jsonl").read_text()
    answered = {
        name: sum(c.number % 40 != 0 and not is_check(c) for c in two[name].calls) for name in two
    }
    billed_usd = 0.015 * answered["one"] + 0.045 * answered["two"]
    assert read_usage(path).cost_usd == pytest.approx(billed_usd, abs=0.005)
    assert sum(one.cost_usd for one in dialogues) == pytest.approx(billed_usd, abs=0.005)


def test_tables_5_and_10_come_from_one_command_and_every_record_says_who_played(two, tmp_path):
    """Three counterparties by two methods: six pairings, over two servers."""
    run = tmp_path / "run"
    sweep = {"focal": "one:echo-focal", "counterparty": "two:qwen/usual"}
    run_stage(SweepConfig(run=run, **sweep, **SMALL))
    others = ("two:a/deepseek-v3", "one:b/gpt-4o-mini", "two:c/qwen2.5-3b-instruct")
    study = CounterpartyStudy(
        run=run,
        focal="one:echo-focal",
        counterparties=others,
        methods=("vanilla-llm", "random"),
        num_seeds=1,
        num_scenarios=2,
    )
    for server in two.values():
        server.calls.clear()
    run_study(study, Settings())
    folders = {
        (method, other): run / f"crad/eval/{method}@{other.replace(':', '-').replace('/', '-')}"
        for method in study.methods
        for other in others
    }
    assert len(folders) == 6
    for (method, other), folder in folders.items():
        dialogues = read_trajectories(folder / "default.jsonl")
        server, _, model = other.partition(":")
        assert len(dialogues) == 2
        for one in dialogues:
            assert (one.focal.method, one.focal.provider, one.focal.model) == (
                method,
                "one",
                "echo-focal",
            )
            assert (one.counterparty.provider, one.counterparty.model) == (server, model)
    for name in ("table-5", "table-10"):
        text = (run / f"report/{name}.md").read_text()
        assert all(other in text for other in others)
        assert "echo-focal (one)" in text


@pytest.mark.parametrize("roles", [{"focal": "one:echo-focal"}, {}])
def test_a_study_of_real_models_plays_no_sweep_on_the_simulator(two, tmp_path, roles):
    study = CounterpartyStudy(run=tmp_path / "run", counterparties=("two:c",), **roles)
    with pytest.raises(InputError, match=r"(?s)lacks sweep.*Run first:.*sweep\.py --run"):
        run_study(study, Settings())
    assert not (tmp_path / "run/crad/sweep").exists()


def test_what_is_to_be_run_first_is_named_once_and_at_full_size(two, tmp_path):
    config = EvaluateConfig(
        run=tmp_path / "run", method="iql", focal="one:echo-focal", counterparty="two:c"
    )
    with pytest.raises(InputError, match="in place of MODEL") as refused:
        stages.run(Cell(config))
    commands = [line.strip() for line in str(refused.value).splitlines() if "python" in line]
    run = f"--run {tmp_path / 'run'}"
    assert commands == [
        f"python scripts/sweep.py {run} --focal one:echo-focal --counterparty MODEL",
        f"python scripts/train_iql.py {run}",
    ]


def test_an_evaluation_against_a_real_model_asks_for_a_real_sweep(two, tmp_path):
    config = EvaluateConfig(
        run=tmp_path / "run", method="random", focal="one:echo-focal", counterparty="two:c"
    )
    with pytest.raises(InputError, match=r"sweep.py .*--focal one:echo-focal") as refused:
        stages.run(Cell(config))
    assert "--counterparty MODEL" in str(refused.value), "it need not be the one that is met now"
