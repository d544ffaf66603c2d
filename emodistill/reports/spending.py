"""Utility over what it has cost: on-policy training round by round, beside what learnt offline.

What every student has learnt from counts for it: the sweep, from which selector and SFT come, and
on top of it the rounds that an on-policy student has played, or the SFT student's own dialogues and
the looks at checkpoints for JPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from emodistill.configs import DEFAULT_CELL, GRPOConfig, PPOConfig
from emodistill.domains import DOMAINS
from emodistill.evaluation.bootstrap import formula_ci
from emodistill.evaluation.checkpoint_looks import LOOKS, read_looks
from emodistill.offline.rounds import ROUNDS, Spent, read_rounds, recorded_spent, total_spent
from emodistill.records import Trajectory
from emodistill.reports.run_data import RunData

OFFLINE = ("iql+sft", "iql+sft+jpo")
"""What on-policy training is compared with: where it starts, and the paper's own refinement."""


class SpentPoint(NamedTuple):
    """What a student reaches after so much was spent: shares of 1, with a 95 % interval."""

    spent: Spent
    utility: float
    low: float
    high: float


class SpentCurve(NamedTuple):
    """A method in a domain."""

    domain: str
    name: str
    rounds: Sequence[SpentPoint]
    """On the training scenarios that each round has played; intervals are over scenarios."""
    held_out: SpentPoint | None
    """On the held-out scenarios, once `evaluate.py` has played them."""


def spent_curves(data: RunData) -> list[SpentCurve]:
    """The on-policy trainings of a run and what they are compared with; empty without any.

    Raises:
      InputError: a line of a `rounds.jsonl` is no record of a round.
    """
    evaluated = {(row["block"], row["method"]): row for row in data.method_rows}
    curves: list[SpentCurve] = []
    for domain in DOMAINS:
        paths = {
            config.stage: sorted((data.run_dir / domain / config.stage).glob(f"*/{ROUNDS}"))
            for config in (GRPOConfig, PPOConfig)
        }
        trained = [(stage, path) for stage, found in paths.items() for path in found]
        if not trained:
            continue
        sweep = recorded_spent(
            data.records("sweep", domain=domain), data.judgements.get(domain, ())
        )

        def held_out(label: str | None, spent: Spent, domain: str = domain) -> SpentPoint | None:
            if label is None or (row := evaluated.get((domain, label))) is None:
                return None
            names = ("utility", "utility_clustered_low", "utility_clustered_high")
            return SpentPoint(spent, *(row[name] / 100 for name in names))

        for name in OFFLINE:
            spent = sweep.plus(_refinement_spent(data, domain, name))
            if (point := held_out(name, spent)) is not None:
                curves.append(SpentCurve(domain, name, (), point))
        for stage, path in trained:
            points, spent = _points(path, sweep)
            name = label = f"iql+sft+{stage}"
            if (cell := path.parent.name) != DEFAULT_CELL:
                labels = [label for block, label in evaluated if block == domain]
                label = _label_of_cell(data, domain, labels, name, cell)
                name = f"{name} ({cell})"
            curves.append(SpentCurve(domain, name, points, held_out(label, spent)))
    return curves


def _label_of_cell(
    data: RunData, domain: str, labels: Sequence[str], method: str, cell: str
) -> str | None:
    """Under which label a cell of the method's last stage was evaluated; the shortest one, which
    has the fewest other settings. None if nobody has played it."""
    stage = method.rpartition("+")[2]
    for label in sorted(labels, key=len):
        if label.startswith(f"{method} ({stage}_cell="):
            played = data.records("evaluation", domain=domain, label=label)
            if _cells_of(stage, played) == {cell}:
                return label
    return None


def _cells_of(stage: str, played: Sequence[Trajectory]) -> set[str]:
    return {dialogue.focal.cells.get(stage, DEFAULT_CELL) for dialogue in played}


def _refinement_spent(data: RunData, domain: str, method: str) -> Spent:
    """What a method's adapter has cost beyond the sweep: the student's own dialogues, and the looks
    at its checkpoints; nothing without either."""
    stage = method.rpartition("+")[2]
    played = data.records("evaluation", domain=domain, label=method)
    cells = sorted(_cells_of(stage, played))
    paths = [data.run_dir / domain / stage / cell / LOOKS for cell in cells]
    spent = total_spent(look for path in paths for look in read_looks(path))
    for cell in cells:
        if (own := data.own_dialogues(domain, stage, cell)) is not None:
            spent = spent.plus(recorded_spent(own.dialogues, own.judgements))
    return spent


def _points(path: Path, sweep: Spent) -> tuple[list[SpentPoint], Spent]:
    """A point for each round, and what was spent after the last one.

    A round plays what the rounds before it have taught, and has cost no more than they.
    """
    points, spent = [], sweep
    for one in read_rounds(path):
        points.append(SpentPoint(spent, *formula_ci([*one.utility.values()])))
        spent = spent.plus(one.spent)
    return points, spent
