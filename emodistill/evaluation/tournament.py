"""What a tournament amounts to: one cell for each pair of methods (paper, Table 13) as text.

The row of a cell plays the focal role, the column the counterparty's. An agreement divides the gap:
the focal player wins its savings (Eq. 30), the counterparty the rest; a failure gives neither
anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from emodistill.offline.rewards import dialogue_utility
from emodistill.records import Trajectory


def cell_text(dialogues: Sequence[Trajectory]) -> str:
    """Success % / utility ± population deviation, as Table 13 has it; a dash without dialogues."""
    if not dialogues:
        return "-"
    success = np.mean([dialogue.outcome == "accepted" for dialogue in dialogues])
    utility = np.array([dialogue_utility(dialogue) for dialogue in dialogues])
    return f"{100 * success:.1f} / {100 * utility.mean():.1f} ± {100 * utility.std():.1f}"


def matrix_text(cells: Mapping[tuple[str, str], str], methods: Sequence[str]) -> str:
    """The matrix as plain text.

    Args:
      cells: (focal method, counterparty's) -> `cell_text`; pairs that are missing get a dash.
    """
    rows = [["focal \\ counterparty", *methods]]
    rows += [[focal, *(cells.get((focal, other), "-") for other in methods)] for focal in methods]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
