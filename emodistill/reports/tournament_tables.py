"""Methods against each other: Table 13, and their strengths."""

from __future__ import annotations

from collections.abc import Iterable

from emodistill.configs import EMBEDDED, TournamentConfig
from emodistill.domains import DOMAINS
from emodistill.evaluation.metrics import summarize
from emodistill.evaluation.ratings import bradley_terry
from emodistill.evaluation.tournament import EMBEDDED_OPPOSITE, bouts
from emodistill.records import Trajectory
from emodistill.reports import paper
from emodistill.reports.run_data import PAPER_DOMAIN, RunData, notes
from emodistill.reports.table import Block, Cell, Column, PlusMinus, Range, Table
from emodistill.reports.tables import (
    NOTE_PAPER,
    TITLES,
    blocks,
    order_of,
)

TOURNAMENT = TournamentConfig().methods
"""Those of Table 13, in its order."""


def table_13(data: RunData) -> Table | None:
    """Methods against each other: rows in the focal seat, columns in the counterparty's."""
    if not data.tournament:
        return None
    pairs = [pair for played in data.tournament.values() for pair in played]
    names = sorted({name for pair in pairs for name in pair}, key=order_of(TOURNAMENT))
    found_blocks, missing = [], []
    for domain in sorted(data.tournament, key=order_of(DOMAINS)):
        matrix = {pair: summarize(ts) for pair, ts in data.tournament[domain].items()}
        rows = []
        for focal in names:
            cells: list[Cell] = [focal]
            for other in names:
                cell = matrix.get((focal, other))
                if cell is None or not cell.num_dialogues:
                    missing.append(f"{focal} against {other} in {TITLES[domain]}")
                    cells += [None] * 4
                    continue
                published = paper.tables()["13"] if domain == PAPER_DOMAIN else {}
                theirs = published.get(f"{focal} @ {other}")
                cells += [
                    100 * cell.success,
                    PlusMinus(100 * cell.utility, 100 * cell.utility_std),
                    None if theirs is None else PlusMinus(*theirs[1:]),
                    None if theirs is None else 100 * cell.utility - theirs[1],
                ]
            rows.append(tuple(cells))
        found_blocks.append(Block(title=TITLES[domain], rows=tuple(rows)))
    columns = [Column(key="focal", title="focal \\ counterparty")]
    for other in names:
        columns += [
            Column(key=f"success_{other}", title="success %", group=other),
            Column(key=f"utility_{other}", title="utility %", group=other, best="max"),
            Column(key=f"paper_{other}", title="paper", group=other),
            Column(key=f"less_{other}", title="ours − paper", group=other, is_signed=True),
        ]
    dialogues = [t for pairs in data.tournament.values() for ts in pairs.values() for t in ts]
    return Table(
        name="table-13",
        title="Trained against trained",
        columns=tuple(columns),
        blocks=tuple(found_blocks),
        notes=(
            "Success and utility of the focal seat, failures counted as 0; ± is the population "
            "standard deviation. Bold: the best utility against a counterparty.",
            *_caveats(dialogues),
            *notes(data, dialogues, missing),
            NOTE_PAPER,
        ),
    )


def ratings(data: RunData) -> Table | None:
    """Bradley-Terry strengths from a tournament in which the seats were swapped."""
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for domain in sorted(data.tournament, key=order_of(DOMAINS)):
        played = bouts(data.tournament[domain])
        for rating in bradley_terry(played, data.resampling.num_resamples, data.resampling.seed):
            interval = Range(rating.low, rating.high)
            rows.append((domain, (rating.method, rating.strength, interval, rating.num_bouts)))
    if not rows:
        return None
    return Table(
        name="ratings",
        title="Strength by method",
        columns=(
            Column(key="method", title="method"),
            Column(key="strength", title="log strength", digits=2, is_signed=True, best="max"),
            Column(key="interval", title="95 % interval", digits=2, is_signed=True),
            Column(key="num_bouts", title="bouts"),
        ),
        blocks=blocks(rows),
        notes=(
            "Bradley-Terry over both seats: a bout is a dialogue, its score the focal side's share "
            "of the gap, a draw where talks failed. Strengths are centred at 0.",
            *_caveats(t for pairs in data.tournament.values() for ts in pairs.values() for t in ts),
            *notes(data, (), ()),
        ),
    )


def _caveats(dialogues: Iterable[Trajectory]) -> list[str]:
    is_embedded = any(t.counterparty.model == EMBEDDED for t in dialogues)
    return [EMBEDDED_OPPOSITE] if is_embedded else []
