"""Methods against each other: Table 13, and their strengths."""

from __future__ import annotations

from typing import Any

from emodistill.configs import TournamentConfig
from emodistill.evaluation.ratings import Bout, bradley_terry
from emodistill.reports import paper
from emodistill.reports.labels import DOMAIN_TITLES, PAPER_DOMAIN, in_order
from emodistill.reports.recipe import TableContent
from emodistill.reports.report_table import TableColumn
from emodistill.reports.results import by_domain, mean_std
from emodistill.reports.run_data import RunData


def pairings(data: RunData) -> TableContent:
    """Table 13: a row for each focal method, four values for each counterparty."""
    frame = data.played_in("tournament")
    names = in_order({*frame.label, *frame.opponent}, TournamentConfig().methods)
    rows, missing = [], []
    for domain, played in by_domain(frame):
        groups = dict(iter(played.groupby(["label", "opponent"])))
        published = paper.tables()["13"] if domain == PAPER_DOMAIN else {}
        for focal in names:
            row: dict[str, Any] = {"block": domain, "focal": focal}
            for other in names:
                group = groups.get((focal, other))
                if group is None:
                    missing.append(f"{focal} against {other} in {DOMAIN_TITLES[domain]}")
                    continue
                row[f"success_{other}"] = 100 * group.success.mean()
                row |= mean_std(f"utility_{other}", 100 * group.utility, data.readings)
                if (theirs := published.get(f"{focal} @ {other}")) is not None:
                    row[f"paper_{other}"], row[f"paper_{other}_std"] = theirs[1:]
                    row[f"less_{other}"] = row[f"utility_{other}"] - theirs[1]
            rows.append(row)
    columns = [TableColumn("focal", "focal \\ counterparty")]
    for other in names:
        columns += [
            TableColumn(f"success_{other}", "success %", group=other),
            TableColumn(f"utility_{other}", "utility %", spread="std", best="max", group=other),
            TableColumn(f"paper_{other}", "paper", spread="std", group=other),
            TableColumn(f"less_{other}", "ours − paper", is_signed=True, group=other),
        ]
    return TableContent(rows, columns=columns, players_of=frame, missing=missing)


def strengths(data: RunData) -> TableContent:
    """Bradley-Terry strengths from a tournament in which both roles were played.

    A bout's score is the focal role's share of an agreement, a draw where talks failed.
    """
    frame = data.played_in("tournament")
    rows = []
    for domain, played in by_domain(frame):
        scores = played.utility.where(played.success, 0.5)
        bouts = map(Bout, played.label, played.opponent, scores, played.scenario_id)
        ratings = bradley_terry(list(bouts), *data.resampling)
        rows += ratings.assign(block=domain).to_dict("records")
    return TableContent(rows)
