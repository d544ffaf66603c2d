"""The leaderboard: what methods win after equal numbers of training dialogues, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emodistill.evaluation.arms import Arm
from emodistill.evaluation.bootstrap import clustered_ci, interval_ends
from emodistill.offline.rounds import Spent
from emodistill.records import Trajectory
from emodistill.reports.recipe import TableContent
from emodistill.reports.results import holm_corrected, utility_difference
from emodistill.reports.run_data import RunData
from emodistill.runs import read_manifest

STUDY = "leaderboard"


def leaderboard(data: RunData) -> TableContent:
    """Its table: a row a method and budget, over all training seeds."""
    frame = data.played_in("study", study=STUDY)
    return TableContent(leaderboard_rows(data), players_of=frame, missing=data.unplayed(STUDY))


def leaderboard_rows(data: RunData) -> list[dict[str, Any]]:
    """The rows of the table, by domain: methods that learn nothing first, then by budget.

    Utilities are in per cent; a difference is to the first method that the study names, which
    learns nothing, on the same scenarios; there is none where that one has not been played. Of
    several trainings the dialogues count together, `trainings_std` is the deviation of the
    trainings' means, and what was spent is their mean.
    """
    frame = data.played_in("study", study=STUDY)
    dialogues_of = dict(iter(frame.groupby("arm")))
    rows: list[dict[str, Any]] = []
    for domain in dict.fromkeys(arm.domain for arm in data.arms.get(STUDY, ())):
        of_domain = [arm for arm in data.arms[STUDY] if arm.domain == domain]
        groups: dict[tuple[int, str], list[Arm]] = {}
        for arm in of_domain:
            if arm.path in dialogues_of:
                groups.setdefault((arm.budget or 0, arm.row), []).append(arm)
        ordered = sorted(groups.items(), key=lambda group: group[0][0])
        played = {key: pd.concat([dialogues_of[arm.path] for arm in arms]) for key, arms in ordered}
        made = {
            key: _row(data, key, arms, [dialogues_of[arm.path] for arm in arms])
            for key, arms in ordered
        }
        first = 0, of_domain[0].row
        if of_domain[0].budget is None and first in played:
            compared = {
                key: utility_difference(one, played[first], data.resampling)
                for key, one in played.items()
                if key != first
            }
            adjusted = zip(compared, holm_corrected([*compared.values()]), strict=True)
            made |= {key: made[key] | difference for key, difference in adjusted}
        rows += made.values()
    return rows


def _row(
    data: RunData, key: tuple[int, str], arms: list[Arm], played: list[pd.DataFrame]
) -> dict[str, Any]:
    """What the dialogues of a method at a budget say, whatever it is compared with."""
    budget, name = key
    every = pd.concat(played)
    utility, scenarios = 100 * every.utility, every.scenario_id
    means = pd.Series([100 * one.utility.mean() for one in played])
    spent = [
        _spent(data.run_dir / arm.domain, one.dialogue.iloc[0])
        for arm, one in zip(arms, played, strict=True)
    ]
    return {
        "block": arms[0].domain,
        "method": name,
        "budget": budget,
        "num_trainings": len(arms) if budget else None,
        "calls": float(np.mean([one.num_calls for one in spent])),
        "tokens": float(np.mean([one.num_tokens for one in spent])),
        "num_dialogues": len(every),
        "success": 100 * every.success.mean(),
        "utility": float(utility.mean()),
        "trainings_std": float(means.std(ddof=0)) if budget else None,
        **interval_ends("utility_clustered", clustered_ci(utility, scenarios, *data.resampling)),
    }


def _spent(home: Path, dialogue: Trajectory) -> Spent:
    """What training the cells took that played a dialogue, as their manifests say under `spent`;
    nothing where none was trained."""
    cells: Mapping[str, str] = dialogue.focal.cells
    for stage, cell in cells.items():
        manifest = read_manifest(home / stage / cell)
        if manifest is not None and "spent" in manifest.summary:
            known = manifest.summary["spent"]
            return Spent(**{name: known[name] for name in Spent._fields if name in known})
    return Spent()
