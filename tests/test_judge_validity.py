"""What is said of a judge: against planted worths, human labels, outcomes; where it is shown."""

import json
import math
import shutil

import msgspec
import numpy as np
import pytest
from scipy.stats import spearmanr
from simulated_talks import dialogues
from tiny_run import copy_of, run_stage

from emodistill import stages
from emodistill.configs import JPOConfig, JudgeConfig
from emodistill.errors import InputError
from emodistill.evaluation import judge_validity
from emodistill.evaluation.bootstrap import Interval
from emodistill.evaluation.human_labels import (
    COLUMNS,
    Label,
    human_agreement,
    quadratic_kappa,
    read_labels,
)
from emodistill.evaluation.judge_validity import (
    ALL,
    OutcomeRow,
    ValidityRow,
    calibration,
    clustered_statistic,
    kind_of_move,
    known_line,
    outcome_rows,
    repeat_lines,
    spearman,
    validity_rows,
)
from emodistill.offline.rewards import scenario_advantages
from emodistill.offline.store import read_trajectories, write_records
from emodistill.records import Judgement, TurnWorth
from emodistill.seeding import stream
from emodistill.stages import judge_validation

TALKS = dialogues("crad", num=30)
BY_ID = {t.trajectory_id: t for t in TALKS}
KEYS = [(t.trajectory_id, turn.index) for t in TALKS for turn in t.focal_turns]


def planted(share, error=0.05, seed=0):
    """Worths of all turns, measured with an error, and scores that share this much with them."""
    rng = stream(seed, "planted")
    worth, noise, luck = rng.normal(size=(3, len(KEYS)))
    reading = share * worth + np.sqrt(1 - share**2) * noise
    scores = dict(zip(KEYS, np.clip(np.round(5.5 + 2 * reading), 1, 10).tolist(), strict=True))
    worths = [
        TurnWorth(
            trajectory_id=name,
            turn_index=index,
            continued_by="recorded",
            num_pairs=16,
            utility=0.1 * w + error * e,
            utility_error=error,
            success=0.1 * w,
            success_error=0.0,
        )
        for (name, index), w, e in zip(KEYS, worth.tolist(), luck.tolist(), strict=True)
    ]
    names = [BY_ID[name].scenario_id for name, _ in KEYS]
    advantages = scenario_advantages([scores[key] for key in KEYS], names)
    return worths, scores, dict(zip(KEYS, advantages.tolist(), strict=True))


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(judge_validity, "NUM_RESAMPLES", 100)


def test_a_correlation_with_luck_is_not_corrected():
    """Divided by a reliability near zero it would be any number."""
    worths, scores, advantages = planted(0.5, error=0.2)
    row = validity_rows(worths, scores, advantages, BY_ID)[0]
    assert np.isnan(row.corrected)
    assert " - " in judge_validation._validity_line(row)


def test_the_warning_is_about_the_corrected_validity_in_utility():
    def line(spearman, corrected, measure="utility"):
        ends = Interval(spearman, spearman, spearman)
        row = ValidityRow("recorded", ALL, measure, 50, ends, corrected, ends)
        return known_line("mine", [row], [])

    assert not line(0.25, 0.4).startswith("warning") and "0.40 corrected" in line(0.25, 0.4)
    assert line(0.1, 0.2).startswith("warning: low validity")
    assert "not known: too few continuations" in line(0.1, np.nan)
    assert not line(0.1, np.nan).startswith("warning")
    assert line(np.nan, np.nan).startswith("warning: low validity")  # a constant judge
    outcome = OutcomeRow("utility", 30, Interval(-0.2, -0.4, 0.0))
    assert not known_line("mine", [], [outcome]).startswith("warning")


def test_turns_without_a_sign_are_no_sign_errors():
    """Worths of exactly zero are common in success: they say nothing of signs."""
    worths, scores, advantages = planted(1.0)
    few = [msgspec.structs.replace(w, success=0.0) for w in worths[:-10]] + worths[-10:]
    utility, success = validity_rows(few, scores, advantages, BY_ID)[:2]
    assert np.isnan(success.sign_errors.mean) and not np.isnan(utility.sign_errors.mean)
    assert judge_validation._validity_line(success).endswith(" -")
    alone = clustered_statistic(lambda i: float(i.mean()), ["one"] * 5)
    assert alone.mean == 2 and np.isnan(alone.low) and np.isnan(alone.high)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_planted_validities_are_found(share):
    worths, scores, advantages = planted(share)
    rows = validity_rows(worths, scores, advantages, BY_ID)
    row = rows[0]
    assert (row.group, row.measure, row.num_turns) == (ALL, "utility", len(KEYS))
    assert row.spearman.low < 0.9 * share + 0.05 and row.spearman.high > 0.9 * share - 0.1
    assert row.corrected == pytest.approx(share, abs=0.13)
    assert rows[1].spearman.mean == pytest.approx(share, abs=0.13)
    assert {0.0: 0.4, 0.5: 0.25, 1.0: 0.0}[share] < row.sign_errors.mean
    assert row.sign_errors.mean < {0.0: 0.6, 0.5: 0.45, 1.0: 0.3}[share]
    groups = {row.group for row in rows}
    assert {"phase: opening", "phase: closing", "move: opens", "move: stands"} <= groups
    levels = calibration(worths, scores)
    assert sum(level.num_turns for level in levels) == len(KEYS)
    rise = levels[-1].utility - levels[0].utility
    assert rise > 15 if share == 1.0 else rise > -10


def test_the_rank_correlation_is_scipys_and_intervals_keep_scenarios_together():
    a, b = stream(0, "ranks").integers(1, 6, size=(2, 60))
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert np.isnan(spearman(np.ones(5), b[:5]))
    values = np.repeat(stream(1, "values").normal(size=10), 30)
    clusters = np.repeat([f"s{i}" for i in range(10)], 30).tolist()
    together = clustered_statistic(lambda i: float(values[i].mean()), clusters)
    apart = clustered_statistic(lambda i: float(values[i].mean()), [str(i) for i in range(300)])
    assert together.high - together.low > 3 * (apart.high - apart.low)


def test_kinds_of_moves():
    kinds = {kind_of_move(t, turn.index) for t in TALKS for turn in t.focal_turns}
    known = {"opens", "accepts", "stands", "gives a little", "gives much", "names no figure"}
    assert {"opens", "accepts", "stands", "gives a little"} <= kinds <= known
    assert {kind_of_move(t, 0) for t in TALKS} == {"opens"}


def test_quadratic_kappa_is_the_weighted_table():
    a, b = stream(0, "kappa").integers(1, 11, size=(2, 200))
    table = np.zeros((10, 10))
    np.add.at(table, (a - 1, b - 1), 1 / 200)
    weights = np.subtract.outer(np.arange(10), np.arange(10)) ** 2
    chance = np.outer(table.sum(axis=1), table.sum(axis=0))
    assert quadratic_kappa(a, b) == pytest.approx(
        1 - (weights * table).sum() / (weights * chance).sum()
    )
    assert quadratic_kappa(a, a) == 1 and np.isnan(quadratic_kappa(np.ones(3), np.ones(3)))


def test_the_judge_and_the_raters_are_compared():
    scores = {key: 1 + (3 * i) % 10 for i, key in enumerate(KEYS)}
    labels = [Label(*key, "ann", score) for key, score in scores.items()]
    labels += [Label(*key, "bob", 11 - score) for key, score in scores.items()]
    same, reverse, raters = human_agreement(labels, scores, BY_ID)
    assert (same.against, same.rater, same.kappa.mean) == ("judge", "ann", 1)
    assert same.kendall_tau == pytest.approx(Interval(1, 1, 1))
    assert (reverse.rater, reverse.kendall_tau.mean) == ("bob", pytest.approx(-1))
    assert (raters.against, raters.rater) == ("ann", "bob")


def test_every_bad_line_of_labels_is_named_with_its_field(tmp_path):
    path, name = tmp_path / "labels.csv", TALKS[0].trajectory_id
    lines = [",".join(COLUMNS), f"{name},0,ann,7", f'{name},0,"bo, b",10', ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read_labels(path, BY_ID) == [Label(name, 0, "ann", 7), Label(name, 0, "bo, b", 10)]
    lines += [f"{name},1,ann,7", f"{name},0,,7", f"{name},2,ann,11", "nobody,0,ann,5"]
    lines += [f"{name},0,ann,8", f"{name},0"]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_labels(path, BY_ID)
    text = str(caught.value)
    for number, problem in (
        (5, "turn_index=1 is no focal turn"),
        (6, "rater is empty"),
        (7, "score=11 must be"),
        (8, "trajectory_id=nobody is no dialogue"),
        (9, "rater ann has scored this turn in line 2"),
        (10, "2 cells, where the first line has 4"),
    ):
        assert f"labels.csv:{number}: {problem}" in text
    for content, why in ((b"a,b\n", "column trajectory_id"), (b"\xff\xfe", "not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=why):
            read_labels(path, BY_ID)
    with pytest.raises(InputError, match="No such file"):
        read_labels(tmp_path / "none.csv", BY_ID)


def test_outcomes_stand_in_where_nothing_was_forked():
    good = {key: 9 if BY_ID[key[0]].outcome == "accepted" else 2 for key in KEYS}
    rows = outcome_rows(TALKS, good)
    assert [row.measure for row in rows] == ["utility", "success"]
    assert rows[1].spearman.mean == pytest.approx(1) or np.isnan(rows[1].spearman.mean)
    assert "with the utility of dialogues" in known_line("mine", [], rows)
    assert known_line("mine", [], []).endswith("unknown.")


def test_repeats_bring_what_spearman_and_brown_say():
    once, twice, *_ = repeat_lines(0.5, 0.4, 0.001)
    assert once == "1 x 1,000 scores, 1.00 USD: reliability 0.50, validity 0.40"
    assert twice == "2 x 1,000 scores, 2.00 USD: reliability 0.67, validity 0.46"
    assert len({line.partition(":")[2] for line in repeat_lines(1.0, 0.4, None)}) == 1
    assert repeat_lines(0.5, math.nan, None)[0] == "1 x 1,000 scores: reliability 0.50"


def test_replays_of_one_method_stand_apart(tmp_path):
    worths, *_ = planted(0.5)
    for folder, cell, player in (
        ("recorded@sim", "default", "recorded"),
        ("iql+sft@sim", "default", "iql+sft"),
        ("iql+sft@sim", "jpo=a", "iql+sft"),
    ):
        home = tmp_path / "replay" / folder
        home.mkdir(parents=True, exist_ok=True)
        lines = [msgspec.structs.replace(w, continued_by=player) for w in worths[:3]]
        write_records(home / f"{cell}.worths.jsonl", lines)
    found = judge_validation._worths([tmp_path / "replay"])
    assert found.keys() == {
        "recorded",
        "iql+sft (iql+sft@sim/default)",
        "iql+sft (iql+sft@sim/jpo=a)",
    }
    assert {len(lines) for lines in found.values()} == {3}


def test_a_usable_score_costs_what_failed_calls_cost_too():
    lines = [
        Judgement(
            trajectory_id="crad/0",
            turn_index=turn,
            judge="mine",
            repeat=repeat,
            attempt=attempt,
            rubric_sha256="",
            raw="",
            status="scored" if attempt else "failed",
            score=3 + turn + repeat if attempt else None,
            cost_usd=0.001,
        )
        for turn in (0, 2, 4, 6)
        for repeat in (0, 1)
        for attempt in (0, 1)
    ]
    _, once, *_ = judge_validation._repeats(lines, [])
    assert once.startswith("1 x 1,000 scores, 2.00 USD") and "validity" not in once


def test_validation_writes_a_file_whose_line_jpo_shows(tiny_run, tmp_path, capsys):
    run = copy_of(tiny_run, tmp_path / "run")
    sweep = {t.trajectory_id: t for t in read_trajectories(run / "crad/sweep/trajectories.jsonl")}
    rng = stream(0, "worths")
    worths = [
        TurnWorth(
            trajectory_id=name,
            turn_index=turn.index,
            continued_by="recorded",
            num_pairs=4,
            utility=float(rng.normal()),
            utility_error=0.1,
            success=float(rng.normal()),
            success_error=0.1,
        )
        for name, dialogue in sweep.items()
        for turn in dialogue.focal_turns
    ]
    home = run / "crad/replay/recorded@sim-counterparty"
    home.mkdir(parents=True)
    write_records(home / "default.worths.jsonl", worths)
    labels = tmp_path / "labels.csv"
    some = next(iter(sweep))
    labels.write_text(f"{','.join(COLUMNS)}\n{some},0,ann,5\n{some},2,ann,8\n", encoding="utf-8")
    out = stages.validate_judge(JudgeConfig(run=run, labels=labels))
    said = capsys.readouterr().out
    assert "judge and rater ann: 2 turns" in said and "scored once" in said
    found = json.loads(out.read_text())
    assert found["line"].startswith("warning: low validity") and len(found["worths"]) >= 4
    assert found["worths"][0]["spearman"].keys() == {"mean", "low", "high"}
    run_stage(
        JPOConfig(run=run, kappa=0.5, max_tokens=512, max_samples=2, max_steps=1),
        JPOConfig(run=run, max_tokens=512, max_samples=2, max_steps=1),
    )
    assert f"jpo: {found['line']}" in capsys.readouterr().out
    out.write_text("[]")
    with pytest.raises(InputError, match=r"judge\.py --validate"):
        run_stage(
            JPOConfig(run=run, kappa=0.5, max_tokens=512, max_samples=2, max_steps=2),
            JPOConfig(run=run, max_tokens=512, max_samples=2, max_steps=1),
        )
    shutil.copytree(home, tmp_path / "other/crad/replay" / home.name)
    there = JudgeConfig(run=tmp_path / "other", data_from=run, validate=True)
    found = json.loads(stages.validate_judge(there).read_text())
    players = {row["continued_by"] for row in found["worths"]}
    assert len(players) == 2 and all(name.startswith("recorded (") for name in players)
    with pytest.raises(InputError, match=r"--data-from .* is for --validate"):
        run_stage(JudgeConfig(run=tmp_path / "other", data_from=run))
    with pytest.raises(InputError, match="have that judge score the sweep first"):
        stages.validate_judge(JudgeConfig(run=run, judge="nobody"))
