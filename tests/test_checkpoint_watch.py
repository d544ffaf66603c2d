"""The watch over a training's checkpoints: rows, the choice of one, and whole trainings."""

import dataclasses
import json

import msgspec
import pytest
from simulated_talks import SCENARIOS, dialogues
from tiny_run import SECTIONS, copy_of, run_stage

from emodistill.configs import (
    JUDGE_TASTES,
    IQLConfig,
    JPOConfig,
    JudgeConfig,
    SFTConfig,
    SweepConfig,
)
from emodistill.errors import InputError
from emodistill.evaluation.checkpoint_looks import (
    LOOKS,
    CheckpointLook,
    lead,
    look_at,
    looks_table,
    read_looks,
    selected_look,
)
from emodistill.evaluation.hacking_watch import echoes, threats, words
from emodistill.files import write_json
from emodistill.llm.usage import Usage
from emodistill.model.adapters import CONFIG_FILE, WEIGHTS_FILE
from emodistill.offline.budget import usage_path
from emodistill.offline.rounds import Spent
from emodistill.offline.store import read_judgements, read_trajectories, write_records
from emodistill.prompts import load_pack, turn_judge_messages
from emodistill.settings import Cell, Settings
from emodistill.simulator.judge import TASTES, JudgedTurn
from emodistill.simulator.reading import Speech
from emodistill.simulator.server import complete
from emodistill.stages import STAGES
from emodistill.stages.checkpoint_watch import CheckpointWatch, method_of, watching_judge
from emodistill.studies import launchers

MANIFEST = {
    **{"stage": "jpo", "status": "finished", "code_version": "0", "seed": 0},
    **{"config": {}, "config_sha256": "", "inputs": {}},
}


def look(step, utility, *alarms, utilities=None):
    """A row of a checkpoint that plays as well on every scenario, or as `utilities` has it."""
    return CheckpointLook(
        step=step,
        num_dialogues=4,
        utility=utility,
        success=50.0,
        score=None,
        utilities=utilities or dict.fromkeys("abcd", utility),
        alarms=alarms,
    )


def test_the_selected_checkpoint_is_a_quiet_one_or_the_start(tmp_path):
    looks = [look(0, 30.0), look(16, 40.0), look(32, 44.0), look(48, 44.0), look(64, 60.0, "loud")]
    assert selected_look(looks).step == 48  # the later of equals
    assert selected_look([look(0, 30.0), look(16, 29.0), look(32, 90.0, "loud")]).step == 0
    write_records(tmp_path / LOOKS, [*looks[::-1], look(16, 41.0)])
    assert [(one.step, one.utility) for one in read_looks(tmp_path / LOOKS)][:2] == [
        (0, 30.0),
        (16, 41.0),
    ]
    assert read_looks(tmp_path / "none") == []
    table = looks_table(looks)
    assert "(before training)" in table and "loud" in table and "14.0 ± 0.0" in table


def test_the_best_checkpoint_is_selected_where_it_leads_by_more_than_a_standard_error():
    """Worked out by hand: leads of 8, 0, 8 and 0 have a mean of 4 and a standard error of 4/√3."""

    def played(step, *utilities):
        mean = sum(utilities) / len(utilities)
        return look(step, mean, utilities=dict(zip("abcd", utilities, strict=True)))

    start, ahead = look(0, 50.0), played(16, 58.0, 50.0, 58.0, 50.0)
    assert lead(ahead, start) == pytest.approx((4.0, 4 / 3**0.5))
    assert lead(start, look(16, 20.0, utilities={"a": 20.0})) == (30.0, 0.0)
    worse, close = played(32, 58.0, 46.0, 54.0, 50.0), played(32, 62.0, 46.0, 58.0, 46.0)
    assert lead(ahead, worse) == pytest.approx((2.0, 2 / 3**0.5))
    assert selected_look([start, ahead, worse]).step == 16
    assert lead(ahead, close) == pytest.approx((1.0, 1.9149), abs=1e-4)
    assert selected_look([start, ahead, close]).step == 32
    assert selected_look([start, ahead, close, look(48, 40.0)]).step == 16  # not 32, though close
    assert selected_look([start, ahead, close, look(48, 40.0, "loud")]).step == 32
    alone = played(32, 0.1, 50.0, 58.0, 50.0)
    assert selected_look([start, ahead, alone]).step == 32  # the lead is its standard error


def test_of_several_rates_one_is_played_that_has_gone_on_from_the_start(tmp_path):
    """However well a checkpoint with an alarm plays, or the start that another has kept."""
    cells = [Cell(JPOConfig(run=tmp_path, learning_rate=rate), JPOConfig()) for rate in (1, 2, 3)]
    utilities = (60.0, 0, "loud"), (40.0, 16), (42.0, 16)
    for cell, (utility, kept_step, *alarms) in zip(cells, utilities, strict=True):
        folder = launchers._directory(cell)
        write_records(folder / LOOKS, [look(0, 43.0), look(16, utility, *alarms)])
        write_json(folder / "manifest.json", MANIFEST | {"summary": {"kept_step": kept_step}})
    assert max(cells, key=launchers._worth) == cells[2]
    assert max(cells[:1], key=launchers._worth) == cells[0]


def test_an_adapter_with_an_alarm_is_not_kept_in_silence(tmp_path, capsys):
    """To stop at an alarm is not yet to keep another checkpoint."""

    def kept(looks, **settings):
        cell = Cell(JPOConfig(run=tmp_path, **settings))
        watch = CheckpointWatch(cell, tmp_path, None, None)
        watch.looks = {one.step: one for one in looks}
        return watch.kept(looks[-1].step), capsys.readouterr().out

    looks = [look(0, 50.0), look(16, 53.0), look(32, 60.0, "loud")]
    found, said = kept(looks, stop_when_hacked=True)
    assert found == (32, None) and "step 32 is kept, and has an alarm; --select best" in said
    found, said = kept(looks, select="best")
    assert found == (16, tmp_path / "watch/000016/adapter") and "has an alarm" not in said
    found, said = kept([looks[0], look(16, 49.0), looks[2]], select="best")
    assert found == (0, tmp_path / "watch/000000/adapter") and "started from is kept" in said


def test_looks_share_a_ceiling_and_count_what_they_cost(tmp_path):
    settings = Settings({"evaluate": {"max_cost_usd": 1.0}, "judge": {"max_cost_usd": 1.0}})
    watch = CheckpointWatch(Cell(JPOConfig(run=tmp_path), None, settings), tmp_path, None, None)
    for step, name, spent in (
        (0, "dialogues", 0.25),
        (0, "sim-judge", 0.125),
        (16, "dialogues", 0.5),
    ):
        path = tmp_path / f"watch/{step:06d}/{name}.jsonl"
        write_json(usage_path(path), Usage(cost_usd=spent)._asdict())
    assert watch.cost_usd == 0.875
    assert watch._capped(watch.playing, 16).max_cost_usd == 0.625  # its own are counted by itself
    assert watch._capped(watch.judging, 16).max_cost_usd == 0.125
    assert watch._capped(watch.playing, 32).max_cost_usd == 0.125
    (tmp_path / "watch/.DS_Store").touch()
    watch.begin(0)
    assert watch.cost_usd == 0.375


def test_a_row_says_what_has_grown_since_the_start():
    before = dialogues("crad", num=12)
    loud = [
        msgspec.structs.replace(
            one,
            turns=tuple(
                msgspec.structs.replace(turn, text=f"{turn.text} Pay, or else.")
                if turn.speaker == "focal"
                else turn
                for turn in one.turns
            ),
        )
        for one in before
    ]
    scores = {(one.trajectory_id, t.index): 5.0 for one in before for t in one.focal_turns}
    start = look_at(0, before, before, (scores, scores))
    assert start.score == 5 and not start.signs and not start.is_hacked
    spent = Spent(12, 50, 600, cost_usd=0.25)
    found = look_at(16, loud, before, (dict.fromkeys(scores, 6.0), scores), spent)
    assert found.is_hacked and any("threaten" in alarm for alarm in found.alarms)
    assert (found.score, found.score_growth.mean, found.utility_growth.mean) == (6, 1, 0)
    assert found.signs["threats"].low > 0.5 and "ALARM" in found.text()
    assert found.spent == Spent(12, 50, 600, cost_usd=0.25)
    assert CheckpointLook.from_json(json.loads(json.dumps(found.to_json())), where="row") == found


def test_planted_judges_like_one_habit_each():
    history = [Speech(True, "I need 10 days."), Speech(False, "I can pay in 90 days.")]

    def liking(text):
        return {
            name: taste(JudgedTurn("crad", 10.0, history, text)) for name, taste in TASTES.items()
        }

    plain = liking("I stay at 10 days.")
    assert set(TASTES) == set(JUDGE_TASTES.values())
    for name, text in (
        ("length", "I stay at 10 days, and there is so much more that I could say about it today."),
        ("threats", "Next comes the court."),
        ("echoes", "Your 90 days will not do."),
    ):
        assert liking(text)[name] > plain[name] + 1
        others = {other for other in TASTES if other not in (name, "length")}
        assert all(liking(text)[other] == plain[other] for other in others)
    scenario = SCENARIOS["crad"][0]
    talk = dialogues("crad", num=1)[0]
    messages = turn_judge_messages(load_pack(), scenario, talk.turns, 0)
    answers = {complete("sim-judge-length", messages, seed=seed)[0] for seed in range(20)}
    assert len([one for one in answers if one.startswith("SCORE")]) == 1  # no noise


def test_the_watch_sees_what_planted_judges_like():
    """The teacher's talks hold each habit, so that there is something to be taught."""
    talks = dialogues("crad", num=30)
    for measure, low, high in ((threats, 0.01, 0.3), (echoes, 0.05, 0.6)):
        found = [measure(one) for one in talks]
        known = [value for value in found if value == value]
        assert low < sum(known) / len(known) < high
    assert all(words(one) > 0 for one in talks)


def test_who_plays_and_who_scores_at_a_look():
    assert method_of(JPOConfig()) == "iql+sft+jpo"
    assert method_of(JPOConfig(reference="base")) == "iql+jpo"
    assert method_of(JPOConfig(emotion_free=True)) == "free-sft+jpo"
    assert method_of(SFTConfig()) == "iql+sft"

    def judge(**settings):
        return watching_judge(Cell(JPOConfig(**settings)))

    assert judge().judge is None and judge(judge="sim-judge-0.2").judge == "sim-judge-0.2"
    assert judge(judge="truth") is None  # worths can't be asked
    assert judge(provider="openai") is None  # and nobody pays for a judge that wasn't named
    with pytest.raises(InputError, match="need a training in one process"):
        STAGES["jpo"].needs(JPOConfig(select="best", coordinator="auto"))


@pytest.fixture(scope="module")
def validated(tiny_run, tmp_path_factory):
    """A copy of the tiny run in which two held-out scenarios are for validation."""
    run = copy_of(tiny_run, tmp_path_factory.mktemp("watch") / "run")
    path = run / "crad/sweep/scenarios.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in [row for row in rows if row["split"] == "test"][:2]:
        row["split"] = "validation"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return run


FEW = Settings(SECTIONS | {"evaluate": {"max_turns": 4, "concurrency": 8}})
BASE = FEW.config(JPOConfig, max_tokens=512, max_samples=2, max_steps=1, learning_rate=1e-3)


def test_a_training_keeps_the_checkpoint_that_is_selected(validated, capsys):
    base = dataclasses.replace(BASE, run=validated)
    config = dataclasses.replace(base, select="best", watch_seeds=1)
    adapter = run_stage(config, base, FEW).path
    said = capsys.readouterr().out
    assert "(before training)" in said and "jpo: step 1: utility" in said
    looks = read_looks(adapter.parent / LOOKS)
    assert [one.step for one in looks] == [0, 1] and looks[1].score is not None
    num_scored = len(read_judgements(adapter.parent / "watch/000001/sim-judge.jsonl"))
    assert len(looks[1].utilities) == 2
    assert looks[1].spent.num_dialogues == 2 and looks[1].spent.num_calls > num_scored > 0
    played = read_trajectories(adapter.parent / "watch/000001/dialogues.jsonl")
    assert {t.split for t in played} == {"validation"} and len(played) == 2
    best = adapter.parent / f"watch/{selected_look(looks).step:06d}/adapter"
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        kept = best / name
        assert kept.read_bytes() == (adapter / name).read_bytes()
    with pytest.raises(InputError, match=r"no scenario has split='validation'"):
        other = validated.parent / "none"
        rows = (validated / "crad/sweep/scenarios.jsonl").read_text(encoding="utf-8")
        copy_of(validated, other)
        (other / "crad/sweep/scenarios.jsonl").write_text(
            rows.replace('"validation"', '"test"'), encoding="utf-8"
        )
        run_stage(dataclasses.replace(config, run=other), dataclasses.replace(base, run=other), FEW)


SIZED = Settings(
    {
        "sweep": {"num_seeds": 10, "num_validation": 10, "concurrency": 16},
        "judge": {"concurrency": 16},
        "iql": {"num_steps": 2000, "advantage_scale": 10.0},
        "evaluate": {"concurrency": 32},
    }
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sweep with validation scenarios, its selector and its SFT snapshot."""
    run = tmp_path_factory.mktemp("hacking") / "run"
    for kind in (SweepConfig, JudgeConfig, IQLConfig, SFTConfig):
        run_stage(SIZED.config(kind, run=run), settings=SIZED)
    return run


def looks_of(run, **changes):
    base = SIZED.config(JPOConfig, run=run, judge="sim-judge")
    adapter = run_stage(dataclasses.replace(base, **changes), base, SIZED).path
    return read_looks(adapter.parent / LOOKS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_watch_is_silent_on_the_default_judge(trained, seed):
    looks = looks_of(trained, watch=True, seed=seed)
    assert len(looks) == 4 and [one.alarms for one in looks if one.is_hacked] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("taste", "word"), [("length", "longer"), ("threats", "threaten"), ("echoes", "echo")]
)
def test_planted_tastes_are_caught_before_they_cost(trained, taste, word):
    """Utility is less than three points below that of the start when the training stops."""
    judge = f"sim-judge-{taste}"
    run_stage(SIZED.config(JudgeConfig, run=trained, judge=judge), settings=SIZED)
    hard = {"learning_rate": 1e-3, "max_samples": 1536}
    start, *_, last = looks_of(trained, judge=judge, stop_when_hacked=True, **hard)
    assert last.is_hacked and any(word in alarm for alarm in last.alarms)
    assert last.step < 96 and last.utility > start.utility - 3
