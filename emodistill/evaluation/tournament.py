"""What a tournament amounts to: one cell for each pair of seats (paper, Table 13), and its scores.

The row of a cell sits in the focal seat, the column in the counterparty's. An agreement divides the
gap: the focal share is its savings (Eq. 30), the counterparty's the rest; a failure gives neither
side anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from emodistill.evaluation.metrics import dialogue_utility, summarize
from emodistill.records import Trajectory

Pair = tuple[str, str]
"""The methods in the focal seat and in the counterparty's."""

EMBEDDED_OPPOSITE = (
    "The embedded student has learned the focal seat alone and misreads its figure in the other; "
    "what is won against it there says little about strategy."
)
"""What is to be said wherever such results are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TournamentCell:
    """A pair's dialogues: shares in [0, 1], NaN where there are none; ± as everywhere."""

    num_dialogues: int
    num_scenarios: int
    success: float
    """Share of dialogues that end `accepted`."""
    utility: float
    """Mean share of the focal side, with failures counted as 0."""
    utility_std: float
    counterparty_utility: float
    """The same for the other side."""
    counterparty_utility_std: float


class Shares(NamedTuple):
    """What each side has won; they sum to 1 in an agreement and to 0 elsewhere."""

    focal: float
    counterparty: float


class PairScore(NamedTuple):
    """One dialogue of two methods, for ratings."""

    focal: str
    counterparty: str
    share: float
    """Of the focal side."""
    scenario_id: str
    counterparty_share: float
    """1 − share in an agreement; both are 0 in a failure."""


def dialogue_shares(trajectory: Trajectory) -> Shares:
    """The two sides' parts of the gap."""
    share = dialogue_utility(trajectory)
    return Shares(share, 1 - share if trajectory.outcome == "accepted" else 0.0)


def tournament_matrix(
    dialogues_by_pair: Mapping[Pair, Sequence[Trajectory]],
) -> dict[Pair, TournamentCell]:
    """(focal, counterparty) -> cell, in the order of the pairs."""
    return {pair: _cell(dialogues) for pair, dialogues in dialogues_by_pair.items()}


def _cell(dialogues: Sequence[Trajectory]) -> TournamentCell:
    summary = summarize(dialogues)
    theirs = np.array([dialogue_shares(t).counterparty for t in dialogues], dtype=np.float64)
    return TournamentCell(
        num_dialogues=summary.num_dialogues,
        num_scenarios=summary.num_scenarios,
        success=summary.success,
        utility=summary.utility,
        utility_std=summary.utility_std,
        counterparty_utility=float(theirs.mean()) if len(theirs) else float("nan"),
        counterparty_utility_std=float(theirs.std()) if len(theirs) else float("nan"),
    )


def pair_scores(dialogues_by_pair: Mapping[Pair, Sequence[Trajectory]]) -> list[PairScore]:
    """Every dialogue of a method that meets another one or itself, in the order of the pairs."""
    return [
        PairScore(focal, counterparty, shares.focal, dialogue.scenario_id, shares.counterparty)
        for (focal, counterparty), dialogues in dialogues_by_pair.items()
        for dialogue in dialogues
        for shares in [dialogue_shares(dialogue)]
    ]


def cell_text(cell: TournamentCell) -> str:
    """Success % / utility ± deviation, as Table 13 has it; a dash without dialogues."""
    if not cell.num_dialogues:
        return "-"
    spread = f"{100 * cell.utility:.1f} ± {100 * cell.utility_std:.1f}"
    return f"{100 * cell.success:.1f} / {spread}"


def matrix_text(matrix: Mapping[Pair, TournamentCell], methods: Iterable[str]) -> str:
    """The matrix as plain text, each cell by `cell_text`; pairs that are missing get a dash."""
    methods = list(methods)

    def shown(pair: Pair) -> str:
        return cell_text(matrix[pair]) if pair in matrix else "-"

    rows = [["focal \\ counterparty", *methods]]
    rows += [[focal, *(shown((focal, other)) for other in methods)] for focal in methods]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
