"""What a tournament amounts to: one cell for each pair of methods (paper, Table 13), and its bouts.

The row of a cell plays the focal role, the column the counterparty's. An agreement divides the gap:
the focal player wins its savings (Eq. 30), the counterparty the rest; a failure gives neither
anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from emodistill.evaluation.metrics import MethodSummary, dialogue_utility
from emodistill.evaluation.ratings import Bout
from emodistill.records import Trajectory

Pair = tuple[str, str]
"""The methods in the focal and in the counterparty's role."""

EMBEDDED_OPPOSITE = (
    "The embedded student has learned the focal seat alone and misreads its figure in the other; "
    "what is won against it there says little about strategy."
)
"""What is to be said wherever such results are shown."""


def bouts(dialogues_by_pair: Mapping[Pair, Sequence[Trajectory]]) -> list[Bout]:
    """Every dialogue as a bout: what the focal player wins of an agreement, a draw in a failure."""
    return [
        Bout(*pair, dialogue_utility(t) if t.outcome == "accepted" else 0.5, t.scenario_id)
        for pair, dialogues in dialogues_by_pair.items()
        for t in dialogues
    ]


def cell_text(cell: MethodSummary | None) -> str:
    """Success % / utility ± deviation, as Table 13 has it; a dash without dialogues."""
    if cell is None or not cell.num_dialogues:
        return "-"
    spread = f"{100 * cell.utility:.1f} ± {100 * cell.utility_std:.1f}"
    return f"{100 * cell.success:.1f} / {spread}"


def matrix_text(matrix: Mapping[Pair, MethodSummary], methods: Iterable[str]) -> str:
    """The matrix as plain text, each cell by `cell_text`; pairs that are missing get a dash."""
    methods = list(methods)
    rows = [["focal \\ counterparty", *methods]]
    for focal in methods:
        rows.append([focal, *(cell_text(matrix.get((focal, other))) for other in methods)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
