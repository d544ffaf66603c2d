"""Human scores of turns, and how a judge agrees with them.

trajectory_id,turn_index,rater,score
crad/debt_001/seed_0000,2,ann,7
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau

from emodistill.errors import InputError, refuse
from emodistill.evaluation.bootstrap import Interval
from emodistill.evaluation.judge_validity import clustered_statistic
from emodistill.offline.rewards import Scores
from emodistill.records import Trajectory
from emodistill.untrusted import MAX_BYTES, brief, read_bytes

COLUMNS = ("trajectory_id", "turn_index", "rater", "score")
NUM_LEVELS = 10
MIN_SHARED = 2
"""Turns that two must both have scored before their agreement says anything."""


class Label(NamedTuple):
    """What one rater gave a turn."""

    trajectory_id: str
    turn_index: int
    rater: str
    score: int


class _Line(NamedTuple):
    number: int
    """Of its last line in the file, from 1."""
    cells: list[str]


class HumanAgreement(NamedTuple):
    """How a judge, or one rater, agrees with a rater on the turns that both have scored."""

    rater: str
    against: str
    num_turns: int
    kappa: Interval
    """Quadratic-weighted."""
    kendall_tau: Interval
    """τ-b."""


def read_labels(path: Path, dialogues: Mapping[str, Trajectory]) -> list[Label]:
    """The labels of a CSV file.

    Raises:
      InputError: it can't be read, or lines are wrong; all of them are named, with the field.
    """
    lines = _read_lines(path)
    head = [cell.strip() for cell in (lines[0].cells if lines else [])]
    if missing := [name for name in COLUMNS if name not in head]:
        raise InputError(
            f"{path}:1: the column {', '.join(missing)} is missing; the first line must name "
            f"{', '.join(COLUMNS)}."
        )
    labels: list[Label] = []
    problems: list[str] = []
    seen: dict[tuple[str, int, str], int] = {}
    for number, cells in lines[1:]:
        where = f"{path}:{number}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(head):
            problems.append(f"{where}: {len(cells)} cells, where the first line has {len(head)}.")
            continue
        values = dict(zip(head, (cell.strip() for cell in cells), strict=True))
        wrong = _problem(values, dialogues)
        if wrong is None:
            label = Label(
                values["trajectory_id"],
                int(values["turn_index"]),
                values["rater"],
                int(values["score"]),
            )
            first = seen.setdefault(label[:3], number)
            if first == number:
                labels.append(label)
                continue
            wrong = f"rater {brief(label.rater)} has scored this turn in line {first} already"
        problems.append(f"{where}: {wrong}.")
    refuse(problems)
    if not labels:
        raise InputError(f"--labels {path} holds no label.")
    return labels


def _read_lines(path: Path) -> list[_Line]:
    try:
        content = read_bytes(path, MAX_BYTES)
        if len(content) > MAX_BYTES:
            raise InputError(f"--labels {path} is larger than {MAX_BYTES >> 20} MiB; split it.")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"--labels {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"--labels {path} is not UTF-8 text; save it as such.") from None
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        return [_Line(rows.line_num, cells) for cells in rows]
    except csv.Error as error:
        raise InputError(
            f"{path}:{rows.line_num}: this line can't be read as CSV ({error}); look for a quote "
            "that is not closed, here or in an earlier line."
        ) from None


def _problem(values: Mapping[str, str], dialogues: Mapping[str, Trajectory]) -> str | None:
    """What is wrong with a line, by its field; None where nothing is."""
    name, index = values["trajectory_id"], values["turn_index"]
    if (dialogue := dialogues.get(name)) is None:
        return f"trajectory_id={brief(name)} is no dialogue of the sweep"
    if not index.isdecimal() or int(index) not in [turn.index for turn in dialogue.focal_turns]:
        return f"turn_index={brief(index)} is no focal turn of that dialogue"
    if not values["rater"]:
        return "rater is empty"
    score = values["score"]
    if not (score.isdecimal() and 1 <= int(score) <= NUM_LEVELS):
        return f"score={brief(score)} must be a whole number from 1 to {NUM_LEVELS}"
    return None


def human_agreement(
    labels: Sequence[Label], scores: Scores, dialogues: Mapping[str, Trajectory]
) -> list[HumanAgreement]:
    """The judge beside each rater, then each pair of raters, which is what one can hope for.

    Pairs with fewer than `MIN_SHARED` turns in common are left out; `too_few_scored` says which
    raters that leaves without a judge.
    """
    by_rater = _by_rater(labels)
    judged = {turn: score for turn, score in scores.items() if turn[1] is not None}
    pairs = [("judge", rater, judged, given) for rater, given in by_rater.items()]
    pairs += [
        (one, other, by_rater[one], by_rater[other])
        for one, other in itertools.combinations(by_rater, 2)
    ]
    found = []
    for one, other, first, second in pairs:
        shared = sorted(second.keys() & first.keys())
        if len(shared) < MIN_SHARED:
            continue
        a = np.array([first[turn] for turn in shared], int)
        b = np.array([second[turn] for turn in shared], int)
        clusters = [dialogues[name].scenario_id for name, _ in shared]
        found.append(HumanAgreement(other, one, len(shared), *_intervals(a, b, clusters)))
    return found


def too_few_scored(labels: Sequence[Label], scores: Scores) -> list[str]:
    """A message for each rater with whom the judge has too few turns in common to be compared."""
    messages = []
    for rater, given in _by_rater(labels).items():
        num_shared = len(given.keys() & scores.keys())
        if num_shared < MIN_SHARED:
            messages.append(
                f"the judge has scored {num_shared} of the {len(given)} labelled turns of rater "
                f"{brief(rater)}; their agreement takes {MIN_SHARED} at least."
            )
    return messages


def _by_rater(labels: Sequence[Label]) -> dict[str, dict[tuple[str, int], int]]:
    """Each rater's scores of turns."""
    by_rater: dict[str, dict[tuple[str, int], int]] = {}
    for label in labels:
        turn = label.trajectory_id, label.turn_index
        by_rater.setdefault(label.rater, {})[turn] = label.score
    return by_rater


def _intervals(a: np.ndarray, b: np.ndarray, clusters: Sequence[str]) -> tuple[Interval, Interval]:
    def tau(chosen: np.ndarray) -> float:
        return float(np.asarray(kendalltau(a[chosen], b[chosen]))[0])

    kappa = clustered_statistic(lambda i: quadratic_kappa(a[i], b[i]), clusters)
    return kappa, clustered_statistic(tau, clusters)


def quadratic_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's κ with quadratic weights: 1 − E[(a − b)²] / E[(a − b')²], b' drawn independently.

    NaN where both are constant and equal.
    """
    observed = float(np.mean((first - second) ** 2))
    by_chance = float(first.var() + second.var() + (first.mean() - second.mean()) ** 2)
    return 1.0 - observed / by_chance if by_chance > 0 else math.nan
