"""How quietly training ended (Table 15)."""

from __future__ import annotations

from emodistill.domains import DOMAINS
from emodistill.errors import InputError
from emodistill.evaluation.stability import stability_row
from emodistill.reports import paper
from emodistill.reports.run_data import RunData, notes
from emodistill.reports.table import Cell, Column, PlusMinus, Table
from emodistill.reports.tables import (
    NOTE_PAPER,
    TITLES,
    blocks,
    order_of,
)


def table_15(data: RunData) -> Table | None:
    """How quietly training ended."""
    runs = [
        (curve.stage, curve.domain, curve.stage, curve)
        for curve in data.curves
        if curve.stage in ("iql", "sft", "jpo") and curve.cell == "default"
    ]
    for arm in data.arms.get("emotion-free", ()):
        if arm.path in data.arm_curves:
            curve = data.arm_curves[str(arm.path)]
            runs.append((curve.stage, arm.domain, arm.label, curve))
    runs.sort(key=lambda run: (("iql", "sft", "jpo").index(run[0]), order_of(DOMAINS)(run[1])))
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    missing = []
    for stage, domain, label, curve in runs:
        name = TITLES[domain] if label == stage else f"{TITLES[domain]}, {label}"
        try:
            found = stability_row(stage, curve.metrics)
        except InputError:
            missing.append(f"{stage} of {name}, which has logged nothing yet")
            continue
        theirs = paper.numbers("table-15", domain, label)
        cells: list[Cell] = [name, found.num_points, found.num_steps, found.first, found.last]
        quarters = [PlusMinus(quarter.median, quarter.mad) for quarter in found.controls]
        cells += [quarters[0], quarters[1] if len(quarters) > 1 else None]
        cells += [found.kl_spikes, found.ratio_clips]
        if theirs is None:
            cells += [None] * 7
        else:
            has_ratio = len(theirs) > 6
            cells += [*theirs[2:4], PlusMinus(*theirs[4:6])]
            cells += [PlusMinus(*theirs[6:8]), *theirs[8:10]] if has_ratio else [None] * 3
            cells.append(found.last - theirs[3])
        title = {"iql": "IQL", "sft": "LoRA-SFT", "jpo": "JPO"}[stage]
        rows.append((title, tuple(cells)))
    if not rows:
        return None
    return Table(
        name="table-15",
        title="Stability of training",
        columns=STABILITY_COLUMNS,
        blocks=blocks(rows),
        notes=(
            "Signal: critic loss, loss per token, clipped surrogate; medians of the first and the "
            "last quarter of the points. Control: median ± MAD of critic loss, loss per token, KL "
            "over the last quarter. Spikes: KL > 0.5; clips: mean ratio outside [0.8, 1.2]. The "
            "paper's JPO rows are emotion-free runs of five epochs.",
            *notes(data, (), missing),
            NOTE_PAPER,
        ),
    )


STABILITY_COLUMNS = (
    Column(key="run", title="run"),
    Column(key="num_points", title="points"),
    Column(key="num_steps", title="steps"),
    Column(key="first", title="signal, first", digits=2),
    Column(key="last", title="signal, last", digits=2),
    Column(key="control", title="control", digits=3),
    Column(key="ratio", title="ratio", digits=3),
    Column(key="kl_spikes", title="KL spikes"),
    Column(key="ratio_clips", title="ratio clips"),
    Column(key="paper_first", title="signal, first", digits=2, group="paper"),
    Column(key="paper_last", title="signal, last", digits=2, group="paper"),
    Column(key="paper_control", title="control", digits=3, group="paper"),
    Column(key="paper_ratio", title="ratio", digits=3, group="paper"),
    Column(key="paper_kl_spikes", title="KL spikes", group="paper"),
    Column(key="paper_ratio_clips", title="ratio clips", group="paper"),
    Column(key="less_last", title="last", group="ours − paper", digits=2, is_signed=True),
)
