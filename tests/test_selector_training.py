"""Training a selector by dialogues: its stage, its resuming, who hears, and playing it."""

import asyncio
import dataclasses
import json
import shutil

import pytest
from builders import dialogue
from tiny_run import copy_of, run_stage

from emodistill.configs import EvaluateConfig, SelectorConfig, ServeConfig
from emodistill.domains import load_scenarios, split_scenarios
from emodistill.errors import InputError
from emodistill.evaluation.methods import METHODS, RELATIVES, get_method, system_in
from emodistill.llm.client import CeilingError
from emodistill.negotiation.hearing import parse_emotion
from emodistill.offline.budget import read_usage
from emodistill.offline.run_files import SCENARIOS, TRAJECTORIES
from emodistill.offline.store import read_trajectories, write_records
from emodistill.offline.turnstile import Turnstile
from emodistill.prompts import hearing_messages
from emodistill.runs import read_manifest
from emodistill.selectors.learning import Setup
from emodistill.selectors.systems import SYSTEMS
from emodistill.serving.catalogue import Catalogue
from emodistill.simulator.reader import heard_emotion
from emodistill.simulator.server import complete
from emodistill.stages.selector_training import plan_training, setup_of

ALL = split_scenarios(load_scenarios("crad")[:12], n_test=4).all()
SHORT = {"max_turns": 8}


def make_sweep(run):
    """What a training needs of a run: scenarios in their split, and a dialogue."""
    home = run / "crad"
    (home / "sweep").mkdir(parents=True)
    write_records(home / SCENARIOS, ALL)
    write_records(home / TRAJECTORIES, [dialogue("a", 60.0)])
    return run


def train(run, method="emomas", dialogues=6, **settings):
    config = SelectorConfig(run=run, method=method, dialogues=dialogues, **SHORT, **settings)
    base = SelectorConfig(run=run, **SHORT)
    return run_stage(config, base).path


def made(folder):
    """What a training has left, without latencies, which the simulator hasn't in this process."""
    names = ("selector.json", "selector.safetensors")
    lines = sorted((folder / "dialogues.jsonl").read_text().splitlines())
    return [(folder / name).read_bytes() for name in names], lines


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """A run with an EmoMAS selector of six dialogues."""
    run = make_sweep(tmp_path_factory.mktemp("trained"))
    return run, train(run)


def test_a_training_keeps_what_it_played_and_what_it_spent(trained_run):
    _, folder = trained_run
    dialogues = list(read_trajectories(folder / "dialogues.jsonl"))
    assert len(dialogues) == 6
    assert {one.split for one in dialogues} == {"train"}
    assert len({one.scenario_id for one in dialogues}) == 6
    replies = [t for one in dialogues for t in one.turns[:-1] if t.speaker == "counterparty"]
    assert replies and all(turn.heard_emotion for turn in replies)
    assert all(turn.heard_emotion is None for one in dialogues for turn in one.focal_turns)
    spent = read_manifest(folder).summary["spent"]
    assert spent["num_dialogues"] == 6
    assert spent["num_calls"] == sum(len(one.turns) for one in dialogues)
    assert json.loads((folder / "selector.json").read_text())["system"] == "emomas"


def test_a_stopped_training_ends_with_the_same_files(trained_run, tmp_path):
    run, folder = trained_run
    again = copy_of(run, tmp_path / "again") / folder.relative_to(run)
    lines = (again / "dialogues.jsonl").read_text().splitlines(keepends=True)
    (again / "dialogues.jsonl").write_text("".join(lines[:3]) + lines[3][:100])
    for name in ("selector.json", "selector.safetensors"):
        (again / name).unlink()
    manifest = json.loads((again / "manifest.json").read_text())
    (again / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    assert train(tmp_path / "again", concurrency=3) == again
    assert made(again) == made(folder)


def test_a_training_is_the_same_at_any_concurrency(tmp_path):
    run = make_sweep(tmp_path)
    alone = made(train(run, "evoemo", 7, concurrency=1))
    shutil.rmtree(run / "crad/selector")
    assert made(train(run, "evoemo", 7, concurrency=7)) == alone


def test_a_trained_selector_is_played_by_its_method(trained_run, tmp_path):
    run, folder = copy_of(trained_run[0], tmp_path / "run"), trained_run[1]
    config = EvaluateConfig(
        run=run, method="emomas", cells={"selector": folder.name}, num_scenarios=2, **SHORT
    )
    played = list(read_trajectories(run_stage(config).path))
    assert len(played) == 2
    assert all(dict(one.focal.cells) == {"selector": folder.name} for one in played)
    assert any(turn.heard_emotion for one in played for turn in one.turns)
    other = dataclasses.replace(config, method="emodebt")
    with pytest.raises(InputError, match=r"not of emodebt\. Name a cell"):
        run_stage(other)


def test_the_methods_name_their_cells():
    assert [name for name in RELATIVES if name not in METHODS] == []
    assert get_method("evoemo").settings == {}
    assert get_method("emodebt-shipped").settings == {"selector": {"method": "emodebt-shipped"}}
    assert get_method("emomas+sft+jpo").stages == ("selector", "sft", "jpo")
    assert get_method("evoemo-shipped+sft").stages == ("selector", "sft")
    assert [system_in(name) for name in ("emomas+sft", "iql+sft")] == ["emomas", None]
    with pytest.raises(InputError, match="is not known"):
        get_method("evoemo+jpo+sft+x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "evoemo", "faults": ("dummies",)}, "the faults of evoemo are saves_start"),
        ({"method": "evoemo", "emotion_reader": "none"}, "looks at its own emotions alone"),
        ({"method": "emomas", "reader": "sim-reader"}, "or --emotion-reader model"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(settings, message, tmp_path):
    run = make_sweep(tmp_path)
    with pytest.raises(InputError, match=message):
        run_stage(SelectorConfig(run=run, dialogues=2, **settings))
    assert not (run / "crad/selector").exists()


def test_what_learns_otherwise_is_sent_to_its_own_command():
    with pytest.raises(InputError, match=r"--method iql is no system .* by train_iql\.py"):
        SelectorConfig(method="iql")


def test_a_training_here_plays_the_dialogues_of_a_server(tmp_path):
    """Replies are cut at the same length; and what the model that hears has used is counted."""
    run = make_sweep(tmp_path / "here")
    settings = {"max_reply_tokens": 12, "keep_unread": True}
    here = train(run, "emomas", 2, **settings)
    asked = {"emotion_reader": "model", "record": tmp_path / "tape"}
    served = train(make_sweep(tmp_path / "served"), "emomas", 2, **asked, **settings)
    said = [
        [
            (t.text, t.offer, t.emotion, t.heard_emotion)
            for one in read_trajectories(path)
            for t in one.turns
        ]
        for path in (here / "dialogues.jsonl", served / "dialogues.jsonl")
    ]
    assert said[0] == said[1] and len(said[0]) > 4
    assert made(here)[0][1] == made(served)[0][1]  # what was learned
    # The ceiling counts what the model that hears has used, beside what the players have.
    path = served / "dialogues.jsonl"
    recorded = sum(one.usage.prompt_tokens for one in read_trajectories(path))
    assert read_usage(path).prompt_tokens == recorded


def test_a_shipped_form_takes_no_faults_of_its_own():
    with pytest.raises(InputError, match="has all faults and its own reward"):
        SelectorConfig(method="evoemo-shipped", faults=("saves_start",))
    setup = setup_of(SelectorConfig(method="emomas-shipped"), 80)
    assert (setup.reward, set(setup.faults)) == ("own", set(SYSTEMS["emomas"].faults.__slots__))


def test_budgets_are_those_of_the_publications():
    found = {system: setup_of(SelectorConfig(method=system), 80).dialogues for system in SYSTEMS}
    assert found == {"evoemo": 240, "emodebt": 60, "eq-negotiator": 240, "emomas": 500}


def test_every_pass_has_all_scenarios_and_repeated_rows_have_the_first():
    scenarios = [one for one in ALL if one.split == "train"]
    planned = plan_training(scenarios, Setup("evoemo", 0, 20))
    assert len({one.trajectory_id for one in planned}) == 20
    passes = [[one.scenario.scenario_id for one in planned[i : i + 8]] for i in (0, 8)]
    assert set(passes[0]) == set(passes[1]) and passes[0] != passes[1]
    repeated = plan_training(scenarios, Setup("evoemo", 0, 6), 3)
    assert [one.scenario for one in repeated] == [*scenarios[:3]] * 2


def test_a_block_is_learned_in_order_once_it_has_ended():
    learned = []
    turnstile = Turnstile(list("abcde"), 2, lambda block: learned.append(block) or 2)
    one, two = dialogue("a", 60.0), dialogue("b", None)

    async def main():
        waiting = asyncio.create_task(turnstile.admit("c"))
        await turnstile.admit("b")
        turnstile.end("b", two)
        await asyncio.sleep(0.01)
        assert not waiting.done() and learned == []
        turnstile.end("a", one)
        await asyncio.wait_for(waiting, 1)
        assert learned == [[one, two]]
        assert turnstile.position("d") == 1
        last = asyncio.create_task(turnstile.admit("e"))
        await asyncio.sleep(0.01)
        turnstile.close()
        with pytest.raises(CeilingError):
            await asyncio.wait_for(last, 1)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Mind your tone. I can pay in 114 days.", "anger"),
        ("That helps. I could manage 93 days.", "joy"),
        ("I am furious at the delay. I am angry about this.", "anger"),
        ("Well. I can do 80 days.", "neutral"),
    ],
)
def test_the_simulators_ear(text, label):
    assert heard_emotion(text) == label
    answer, _ = complete("sim-reader", hearing_messages(text), seed=0, temperature=0.0)
    assert parse_emotion(answer) == label


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ('```json\n{"emotion": "Anger"}\n```', "anger"),
        ('{"emotion": "rage"}', None),
        ('{"emotion": "joy"} or {"emotion": "anger"}', None),
        ('{"emotion": ["joy"]}', None),
        ("joy", None),
    ],
)
def test_labels_in_answers(answer, label):
    if label is None:
        with pytest.raises(ValueError, match="no single label"):
            parse_emotion(answer)
    else:
        assert parse_emotion(answer) == label


def test_a_server_offers_students_with_the_selectors_of_its_run(tiny_run, tmp_path):
    run = copy_of(tiny_run, tmp_path / "run")
    folder = run / "crad" / "selector"
    for method in ("evoemo", "emomas"):
        config = SelectorConfig(run=run, method=method, dialogues=2, **SHORT)
        run_stage(config, dataclasses.replace(config, method="evoemo"))
    assert len(list(folder.iterdir())) == 2
    catalogue = Catalogue(ServeConfig(run=run))
    offered = {name for name in catalogue.names if system_in(name)}
    assert offered == {"evoemo+sft", "evoemo+sft+jpo", "emomas+sft", "emomas+sft+jpo"}
    assert catalogue.find("emomas+sft").negotiator.hears
    assert not catalogue.find("evoemo+sft").negotiator.hears
