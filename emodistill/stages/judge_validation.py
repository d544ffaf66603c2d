"""`judge.py --validate`: what is known of a judge, as tables and as a file beside its scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from emodistill.configs import JudgeConfig
from emodistill.errors import InputError
from emodistill.evaluation.bootstrap import Interval
from emodistill.evaluation.human_labels import human_agreement, read_labels, too_few_scored
from emodistill.evaluation.judge_validity import (
    ALL,
    CalibrationRow,
    OutcomeRow,
    ValidityRow,
    calibration,
    known_line,
    outcome_rows,
    repeat_lines,
    validity_rows,
)
from emodistill.files import write_json
from emodistill.offline.agreement import repeat_spread
from emodistill.offline.judging import scores_by_turn
from emodistill.offline.rewards import Scores, scenario_advantages
from emodistill.offline.run_files import (
    TRAJECTORIES,
    judge_file,
    recorded_run,
    scores_sha256,
    validity_file,
)
from emodistill.offline.store import read_judgements, read_records, read_trajectories
from emodistill.records import Judgement, Trajectory, TurnWorth

HEAD = (
    f"{'played on by':16} {'group':24} {'n':>5} {'measure':8} {'Spearman':>20} {'corrected':>9} "
    f"{'sign errors':>20}"
)


def validate_judge(config: JudgeConfig) -> Path:
    """Say how a judge's turn scores go with worths, labels and outcomes; a JSON file of it.

    Raises:
      InputError: the judge has scored no turn here, or a label can't be used.
    """
    home = recorded_run(config) / config.domain
    path = judge_file(home / "judge", config.judge)
    if not path.is_file():
        raise InputError(f"{path} is missing; have that judge score the sweep first.")
    judgements = [line for line in read_judgements(path) if line.turn_index is not None]
    scores = scores_by_turn(judgements)
    if not scores:
        raise InputError(f"{path} holds no score of a turn.")
    dialogues = {t.trajectory_id: t for t in read_trajectories(home / TRAJECTORIES)}
    labels = [] if config.labels is None else read_labels(config.labels, dialogues)
    replays = [run / config.domain / "replay" for run in (config.data_from, config.run) if run]
    rows, levels = _against_worths(replays, scores, dialogues)
    outcomes = _outcomes(scores, dialogues)
    humans = human_agreement(labels, scores, dialogues)
    for message in too_few_scored(labels, scores):
        print(f"judge: {message}")
    for row in humans:
        print(
            f"{row.against} and rater {row.rater}: {row.num_turns:,} turns, quadratic-weighted "
            f"kappa {row.kappa.text}, Kendall's tau {row.kendall_tau.text}"
        )
    print("\n".join(_repeats(judgements, rows)))
    line = known_line(path.stem, rows, outcomes)
    tables = {"worths": rows, "calibration": levels, "outcomes": outcomes, "labels": humans}
    out = validity_file(path)
    write_json(out, {"line": line, "scores_sha256": scores_sha256(scores)} | plain_rows(tables))
    print(f"judge: {line}\njudge: validity in {out}")
    return out


def plain_rows(value: Any) -> Any:
    """Tables as JSON, the columns of each row by name."""
    if isinstance(value, Mapping):
        return {key: plain_rows(one) for key, one in value.items()}
    if hasattr(value, "_asdict"):
        return plain_rows(value._asdict())
    return [plain_rows(one) for one in value] if isinstance(value, list) else value


def _against_worths(
    replays: Sequence[Path], scores: Scores, dialogues: Mapping[str, Trajectory]
) -> tuple[list[ValidityRow], list[CalibrationRow]]:
    """Tables against every player's forks in the folders `replays`."""
    keys = sorted(scores.keys() & {(n, t.index) for n, d in dialogues.items() for t in d.turns})
    scenarios = [dialogues[name].scenario_id for name, _ in keys]
    values = scenario_advantages([scores[key] for key in keys], scenarios)
    advantages = dict(zip(keys, values.tolist(), strict=True))
    rows: list[ValidityRow] = []
    levels: list[CalibrationRow] = []
    for player, worths in _worths(replays).items():
        known = [
            msgspec.structs.replace(worth, continued_by=player)
            for worth in worths
            if worth.trajectory_id in dialogues
        ]
        of_player = validity_rows(known, scores, advantages, dialogues)
        if not of_player:
            continue
        print("\n".join([HEAD, *map(_validity_line, of_player)]))
        by_score = calibration(known, scores)
        print("score: turns, their worth in points of utility and of success")
        for row in by_score:
            print(f"{row.score:5}: {row.num_turns:5,} {row.utility:+6.1f} {row.success:+6.1f}")
        rows += of_player
        levels += by_score
    if not rows:
        print("judge: too few turns that it has scored have been forked (replay.py); how dialogues")
        print("ended says something of whole dialogues alone:")
    return rows, levels


def _worths(replays: Sequence[Path]) -> dict[str, list[TurnWorth]]:
    """By who played on; where one method has several replays, by folder and cell too.

    Cells of one method are other players, since they have other adapters or selectors.
    """
    by_replay: dict[tuple[str, str], list[TurnWorth]] = {}
    found = [sorted(folder.glob("*/*.worths.jsonl")) for folder in dict.fromkeys(replays)]
    for number, path in ((n, path) for n, paths in enumerate(found) for path in paths):
        replay = f"{path.parent.name}/{path.name.removesuffix('.worths.jsonl')}"
        replay += ", this run" if number else ""
        for worth, _ in read_records(path, TurnWorth):
            by_replay.setdefault((worth.continued_by, replay), []).append(worth)
    num_replays = Counter(player for player, _ in by_replay)
    return {
        player if num_replays[player] == 1 else f"{player} ({replay})": worths
        for (player, replay), worths in by_replay.items()
    }


def _outcomes(scores: Scores, dialogues: Mapping[str, Trajectory]) -> list[OutcomeRow]:
    rows = outcome_rows(list(dialogues.values()), scores)
    for row in rows:
        print(
            f"mean turn score and {row.measure} of {row.num_dialogues:,} dialogues: Spearman "
            f"{row.spearman.text}"
        )
    return rows


def _repeats(judgements: Sequence[Judgement], rows: Sequence[ValidityRow]) -> list[str]:
    """What further scores of the same turns would bring, for what they cost."""
    spread = repeat_spread(judgements)
    if not spread.num_items or math.isnan(spread.reliability):
        return ["judge: scored once; --repeats 2 would show how much of its scores is chance."]
    # Calls that failed have cost money too.
    num_scored = sum(line.score is not None for line in judgements)
    usd = sum(line.cost_usd for line in judgements) / num_scored
    overall = [row for row in rows if (row.group, row.measure) == (ALL, "utility")]
    validity = overall[0].spearman.mean if overall else math.nan
    return [
        f"judge: {spread.num_items:,} turns scored more than once. If every turn were scored so "
        "often (as long as turns are without a score, new ones teach more than repeats):",
        *repeat_lines(max(0.0, spread.reliability), validity, usd),
    ]


def _validity_line(row: ValidityRow) -> str:
    return (
        f"{row.continued_by:16} {row.group:24} {row.num_turns:5,} {row.measure:8} "
        f"{_interval(row.spearman):>20} {_number(row.corrected):>9} "
        f"{_interval(row.sign_errors):>20}"
    )


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _interval(interval: Interval) -> str:
    return "-" if math.isnan(interval.mean) else interval.text
