"""Methods against each other: Table 13, and their strengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from emodistill.configs import EMBEDDED, TournamentConfig
from emodistill.evaluation.ratings import Bout, bradley_terry
from emodistill.evaluation.tournament import EMBEDDED_OPPOSITE
from emodistill.reports import paper
from emodistill.reports.labels import DOMAIN_TITLES, PAPER_DOMAIN, in_order
from emodistill.reports.recipe import TableContent
from emodistill.reports.report_table import TableColumn, TableRow
from emodistill.reports.results import interval, mean_std
from emodistill.reports.run_data import RunData


def pairings(data: RunData) -> TableContent:
    """Table 13: a row for each focal method, four values for each counterparty."""
    frame = data.played_in("tournament")
    names = in_order({*frame.label, *frame.opponent}, TournamentConfig().methods)
    groups = dict(iter(frame.groupby(["domain", "label", "opponent"])))
    rows, missing = [], []
    for domain in in_order(frame.domain.unique()):
        published = paper.tables()["13"] if domain == PAPER_DOMAIN else {}
        for focal in names:
            row: dict[str, Any] = {"block": domain, "focal": focal}
            for other in names:
                group = groups.get((domain, focal, other))
                if group is None:
                    missing.append(f"{focal} against {other} in {DOMAIN_TITLES[domain]}")
                    continue
                row[f"success_{other}"] = 100 * float(group.success.mean())
                row |= mean_std(f"utility_{other}", group.utility.to_numpy(np.float64), 100)
                if (theirs := published.get(f"{focal} @ {other}")) is not None:
                    row[f"paper_{other}"], row[f"paper_{other}_std"] = theirs[1:]
                    row[f"less_{other}"] = row[f"utility_{other}"] - theirs[1]
            rows.append(row)
    return TableContent(rows, players_of=frame, missing=missing, notes=_caveats(frame))


def pairing_columns(rows: Sequence[TableRow]) -> list[TableColumn]:
    """The focal method, and four columns for each counterparty."""
    columns = [TableColumn("focal", "focal \\ counterparty")]
    for other in dict.fromkeys(row["focal"] for row in rows):
        columns += [
            TableColumn(f"success_{other}", "success %", group=other),
            TableColumn(f"utility_{other}", "utility %", spread="std", best="max", group=other),
            TableColumn(f"paper_{other}", "paper", spread="std", group=other),
            TableColumn(f"less_{other}", "ours − paper", is_signed=True, group=other),
        ]
    return columns


def strengths(data: RunData) -> TableContent:
    """Bradley-Terry strengths from a tournament in which both roles were played.

    A bout's score is the focal role's share of an agreement, a draw where talks failed.
    """
    frame = data.played_in("tournament")
    rows = []
    for domain in in_order(frame.domain.unique()):
        of_domain = frame.query("domain == @domain")
        scores = of_domain.utility.where(of_domain.success, 0.5)
        bouts = map(Bout, of_domain.label, of_domain.opponent, scores, of_domain.scenario_id)
        rows += [
            {
                "block": domain,
                **rating._asdict(),
                **interval("interval", (rating.low, rating.high)),
            }
            for rating in bradley_terry(list(bouts), *data.resampling)
        ]
    return TableContent(rows, notes=_caveats(frame))


def _caveats(frame: pd.DataFrame) -> list[str]:
    return [EMBEDDED_OPPOSITE] if (frame.counterparty_model == EMBEDDED).any() else []
