"""What the study of doses shows: gains by the validity of the judge, as a table and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from emodistill.configs import JUDGE_VALIDITIES, TRUTH
from emodistill.evaluation.bootstrap import interval_ends, paired_difference_ci
from emodistill.evaluation.checkpoint_looks import LOOKS, read_looks
from emodistill.reports.figures import CARD, DASHES, REFERENCE, SERIES, legend, panels
from emodistill.reports.recipe import TableContent
from emodistill.reports.results import Resampling
from emodistill.reports.run_data import RunData
from emodistill.runs import read_manifest
from emodistill.untrusted import setting_of

STUDY = "dose"
BASELINES = ("iql+sft", "random")
"""Arms that the others are compared with: the first one for JPO, the second one for IQL."""
MEASURES = {"utility": "utility", "success": "success", "outcomes": "outcomes of the successes"}


def doses(data: RunData) -> TableContent:
    """The rows of the study, each with its gain over the arm without the judge."""
    frame = data.played_in("study", study=STUDY)
    return TableContent(dose_rows(data), players_of=frame, missing=data.unplayed(STUDY))


def dose_rows(data: RunData) -> list[dict[str, Any]]:
    """In the order of the arms; values in per cent, gains in points."""
    frame = data.played_in("study", study=STUDY)
    rows = []
    for arm in data.arms.get(STUDY, ()):
        played = frame.loc[frame.arm == arm.path, :]
        if arm.path is None or played.empty:
            continue
        base = BASELINES[arm.method in ("iql", "random")]
        others = frame.loc[frame.label == base, :]
        is_base = arm.label == base
        judge = arm.label.partition(",")[0]
        validity = 1.0 if judge == TRUTH else JUDGE_VALIDITIES.get(judge, math.nan)
        rows.append(
            {
                "block": arm.block,
                "judge": arm.label,
                "validity": math.nan if is_base else validity,
                "chosen": _chosen(data.run_dir, arm.path, list(played.dialogue)),
                "num_dialogues": len(played),
                **{name: 100 * _mean(played, name) for name in MEASURES},
                **({} if is_base or others.empty else _gains(played, others, data.resampling)),
            }
        )
    return rows


def _mean(frame: pd.DataFrame, measure: str) -> float:
    values = _values(frame, measure)
    return float(values.mean()) if len(values) else math.nan


def _values(frame: pd.DataFrame, measure: str) -> pd.Series:
    """[dialogues] of a measure; outcomes are utilities of the successes alone."""
    if measure == "outcomes":
        return frame.utility[frame.success]
    return frame[measure].astype(float)


def _gains(
    played: pd.DataFrame, others: pd.DataFrame, resampling: Resampling
) -> dict[str, float | None]:
    gains: dict[str, Any] = {}
    for name in MEASURES:
        sides = []
        for frame in (played, others):
            values = 100 * _values(frame, name)
            sides += [values, frame.scenario_id.loc[values.index]]
        interval = paired_difference_ci(*sides, *resampling)
        gains |= {f"gain_{name}": interval.mean, **interval_ends(f"gain_{name}_ci", interval)}
    return gains


def _chosen(run: Path, path: str, dialogues: Sequence[Any]) -> str:
    """Rate and step of the adapter that was played, where they were chosen."""
    cell = dialogues[0].focal.cells.get("jpo")
    if cell is None:
        return ""
    folder = run / path.partition("/eval/")[0] / "jpo" / cell
    manifest = read_manifest(folder)
    if manifest is None or not read_looks(folder / LOOKS):
        return ""
    rate = setting_of(manifest.stage, manifest.config, "learning_rate", float)
    step = setting_of(manifest.stage, manifest.summary, "kept_step", int)
    return f"{rate:g}, step {step}"


def dose_response(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Gains by validity with their 95 % intervals: a panel a measure, a line for each learner.

    The dashed line is no gain; the truth stands at 1.

    Args:
      rows: of `dose_rows`.
    """
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if "gain_utility" in row and not math.isnan(row["validity"]):
            lines.setdefault(row["block"], []).append(row)
    looks = {
        name: (SERIES[number % len(SERIES)], DASHES[number // len(SERIES) % len(DASHES)])
        for number, name in enumerate(lines)
    }
    with panels(MEASURES.items(), (3.4, 2.7), max_columns=3) as (figure, shown):
        for (name, title), ax in shown:
            for number, (block, points) in enumerate(lines.items()):
                colour, dashes = looks[block]
                points = sorted(points, key=lambda row: row["validity"])
                shift = 0.012 * (number - (len(lines) - 1) / 2)  # so that intervals stay apart
                x = [row["validity"] + shift for row in points]
                ax.plot(x, [row[f"gain_{name}"] for row in points], color=colour, ls=dashes, lw=1.4)
                for at, row in zip(x, points, strict=True):
                    ends = [row[f"gain_{name}_ci_low"], row[f"gain_{name}_ci_high"]]
                    ax.plot([at, at], ends, color=colour, lw=2.0, alpha=0.45)
                    ax.plot([at], [row[f"gain_{name}"]], "o", color=colour, ms=5, mec=CARD, mew=0.8)
            ax.axhline(0.0, **REFERENCE)
            ax.grid(axis="y")
            ax.set(title=f"gain in {title}, points", xlabel="validity of the judge; the truth at 1")
            ax.set_xlim(-0.06, 1.06)
        if len(looks) > 1:
            legend(figure, looks)
    return figure
