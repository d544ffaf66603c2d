"""replay.py from end to end on the simulator: worths, effects, resumption, costs."""

import dataclasses
import json
from collections import Counter

import msgspec
import pytest
from tiny_run import copy_of, run_stage

from emodistill.configs import ReplayConfig
from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.offline.forks import Fork, TurnKey
from emodistill.offline.store import (
    read_judgements,
    read_records,
    read_trajectories,
    write_records,
)
from emodistill.records import TurnWorth
from emodistill.stages.replay import _missing

SMALL = {"num_turns": 6, "continuations": 4, "concurrency": 8}


@pytest.fixture(scope="module")
def replayed(tiny_run, tmp_path_factory):
    """A run with a small replay, and what it said."""
    run = copy_of(tiny_run, tmp_path_factory.mktemp("replay") / "run")
    return run, run_stage(ReplayConfig(run=run, **SMALL)).path


def test_forks_are_whole_dialogues_and_worths_stand_beside_them(replayed):
    run, path = replayed
    assert path == run / "crad/replay/recorded@sim-counterparty/default.jsonl"
    forks = read_trajectories(path)
    arms = Counter(Fork.parse(fork.trajectory_id).arm for fork in forks)
    assert arms == {"said": 24, "anew": 24}
    recorded = {
        t.trajectory_id: t for t in read_trajectories(run / "crad/sweep/trajectories.jsonl")
    }
    for fork in forks:
        turn, arm, _ = Fork.parse(fork.trajectory_id)
        dialogue = recorded[turn.trajectory_id]
        given = turn.turn_index + (arm == "said")
        assert fork.turns[:given] == dialogue.turns[:given]
        assert fork.usage.calls == len(fork.turns) - given
    worths = [worth for worth, _ in read_records(path.with_suffix(".worths.jsonl"), TurnWorth)]
    assert len(worths) == 6 and {worth.num_pairs for worth in worths} == {4}
    assert len({fork.turns[-1].text for fork in forks}) > 10


def test_a_replay_that_was_cut_goes_on_where_it_was(replayed, tmp_path, capsys):
    run, path = replayed
    copy = copy_of(run, tmp_path / "copy")
    cut = copy / path.relative_to(run)
    lines = cut.read_text().splitlines(keepends=True)
    cut.write_text("".join(lines[:30]) + lines[30][:40])
    manifest = cut.with_suffix(".manifest.json")
    manifest.write_text(manifest.read_text().replace('"finished"', '"running"'))
    run_stage(ReplayConfig(run=copy, **SMALL))
    assert "replay: 18 forks of " in capsys.readouterr().out  # what is left, not all 48

    def said(path):
        return {t.trajectory_id: [turn.text for turn in t.turns] for t in read_trajectories(path)}

    assert said(cut) == said(path)
    more = run_stage(ReplayConfig(run=copy, **SMALL | {"continuations": 5})).path
    assert len(read_trajectories(more)) == 60


def test_a_smaller_plan_counts_its_own_forks_alone(replayed, tmp_path):
    run, path = replayed
    output = copy_of(run, tmp_path / "copy") / path.relative_to(run)
    played = [Fork.parse(t.trajectory_id) for t in read_trajectories(output)]
    other = Fork(TurnKey("crad/other", 0), "said", 1)
    assert _missing([*played[:3], other], output) == [other]


def test_emotions_are_set_against_neutral_under_the_same_luck(replayed, tmp_path, capsys):
    run, path = replayed
    settings = {"num_turns": 5, "continuations": 2, "concurrency": 8}
    base = ReplayConfig(run=run, **settings)
    found = run_stage(dataclasses.replace(base, emotions="all"), base)
    assert "replay.py" in found.next_command and "--num-turns 5" in found.next_command
    assert "--emotions" not in found.next_command and "--method" not in found.next_command
    emotional = found.path
    text = capsys.readouterr().out
    assert "rank correlation of utility with what is planted" in text and "opening  " in text
    effects = json.loads(emotional.with_suffix(".effects.json").read_text())
    assert {effect["emotion"] for effect in effects} == set(EMOTIONS) - {"neutral"}
    by_name = {t.trajectory_id: t for t in read_trajectories(emotional)}
    same = 0
    for anew in read_trajectories(path):  # the player's own choice is one of the emotions
        turn, arm, number = Fork.parse(anew.trajectory_id)
        own = anew.turns[turn.turn_index].emotion if arm == "anew" else None
        twin = by_name.get(f"{turn}/{own}/{number:03d}")
        if twin is not None:
            assert [t.text for t in twin.turns] == [t.text for t in anew.turns]
            same += 1
    assert same >= 4


def test_what_it_will_take_is_said_before(replayed, tmp_path, capsys):
    """Within 15 % of the simulator's counts, from a sweep of a dozen dialogues."""
    run = copy_of(replayed[0], tmp_path / "copy")
    path = run_stage(ReplayConfig(run=run, num_turns=40, continuations=2, concurrency=8)).path
    line = next(one for one in capsys.readouterr().out.splitlines() if "forks of" in one)
    words = line.replace(",", "").split()
    forecast = [int(words[words.index(after) - 1]) for after in ("calls", "prompt", "completion")]
    earlier = {t.trajectory_id for t in read_trajectories(replayed[1])}
    used = [t.usage for t in read_trajectories(path) if t.trajectory_id not in earlier]
    for expected, name in zip(
        forecast, ("calls", "prompt_tokens", "completion_tokens"), strict=True
    ):
        assert sum(getattr(one, name) for one in used) == pytest.approx(expected, rel=0.15)


def test_worths_become_scores_that_are_trained_on(replayed, tmp_path, capsys):
    run = copy_of(replayed[0], tmp_path / "copy")
    output = run_stage(ReplayConfig(run=run, scores="truth", **SMALL))
    assert "train_jpo.py" in output.next_command and "--judge truth" in output.next_command
    scores = read_judgements(run / "crad/judge/truth.jsonl")
    assert len(scores) == 6 and {line.judge for line in scores} == {"truth"}
    for line in scores:
        assert line.score == min(10, max(1, round(5.5 + float(line.raw) / 0.05)))
    taken = run / "crad/judge/sim-judge.jsonl"
    taken.rename(taken.with_name("mine.jsonl"))
    with pytest.raises(InputError, match="holds a judge's own scores"):
        run_stage(ReplayConfig(run=run, scores="mine", **SMALL))
    for changes, why in (
        ({"provider": "replay:iql+sft"}, r"after which iql\+sft played on"),
        ({"trajectory_id": "crad/other"}, "worths of other turns"),
    ):
        changed = [msgspec.structs.replace(line, **changes) for line in scores]
        write_records(run / "crad/judge/truth.jsonl", changed)
        capsys.readouterr()
        with pytest.raises(InputError, match=why):
            run_stage(ReplayConfig(run=run, scores="truth", **SMALL))
        assert "forks of" not in capsys.readouterr().out  # nothing was played


def test_what_is_not_as_recorded_is_refused(replayed):
    run, _ = replayed
    for changed, why in (
        ({"agreement": "upstream"}, "agreement stand, not upstream"),
        ({"counterparty": "sim-proud"}, "counterparty sim-counterparty, not sim-proud"),
        ({"max_turns": 20}, "say --max-turns"),
        ({"focal_temperature": 0.2}, "focal-temperature 0.7, not 0.2"),
        ({"turn": "crad/none#0"}, "no such dialogue"),
        ({"emotions": "rage"}, "unknown: 'rage'"),
        ({"continued_by": "student", "method": "oracle"}, "such as iql"),
    ):
        with pytest.raises(InputError, match=why):
            run_stage(ReplayConfig(run=run, **changed))
    with pytest.raises(InputError, match="name of a simulated judge"):
        ReplayConfig(scores="sim-judge")
    with pytest.raises(InputError, match="leave out --turn"):
        ReplayConfig(scores="truth", turn="crad/0#0")
    with pytest.raises(InputError, match=r"--method iql\+sft needs --continue student"):
        ReplayConfig(method="iql+sft")
    with pytest.raises(InputError, match=r"--method iql\+sft\+jpo needs --continue student"):
        ReplayConfig(method="iql+sft+jpo")
    assert ReplayConfig(continued_by="student").method == "iql+sft+jpo"
    assert ReplayConfig().method == "random"
