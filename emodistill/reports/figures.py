"""Figures of a run: training curves, utility by method, emotions ranked by judge score, the support
of the selector's choices.

Plain matplotlib without its global state. SVG and PNG carry neither dates nor random ids, so that
the same numbers give the same bytes. Colours are Okabe and Ito's, which survive colour blindness;
each line is named where it ends.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from emodistill.domains import DOMAINS
from emodistill.errors import InputError
from emodistill.reports.tables import TITLES, TRAINED, Row, order_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from emodistill.evaluation.metrics import EmotionScore

INK, MUTED, GRID, PAPER = "#1f2328", "#6a737d", "#d9dee3", "#ffffff"
BLUE, VERMILLION, GREEN, PURPLE, ORANGE = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#b87a00"
Dashes = str | tuple[int, tuple[int, ...]]
DASHES: tuple[Dashes, ...] = ("-", (0, (4, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, MUTED)

CROSS_SHARE = 0.01
"""Of a cluster's choices, what a cross in the support map is worth."""

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "emodistill",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
}


class Curve(NamedTuple):
    """The metrics of one training run: name -> (steps, values)."""

    domain: str
    stage: str
    cell: str
    metrics: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @property
    def name(self) -> str:
        """The domain, and what is special about the cell."""
        title = TITLES.get(self.domain, self.domain)
        special = re.sub(r"-[0-9a-f]{4}$", "", self.cell)
        return title if self.cell == "default" else f"{title} {special}"


class Panel(NamedTuple):
    stage: str
    metric: str
    title: str
    is_log: bool = False
    reference: float | None = None


PANELS = (
    Panel("iql", "value/loss", "IQL: value loss"),
    Panel("iql", "critic/loss", "IQL: critic loss"),
    Panel("iql", "actor/loss", "IQL: actor loss"),
    Panel("iql", "policy/entropy", "IQL: policy entropy, nats", reference=math.log(28)),
    Panel("sft", "sft/loss", "SFT: loss per token, nats"),
    Panel("jpo", "policy/surrogate", "JPO: clipped surrogate"),
    Panel("jpo", "policy/kl_k3", "JPO: KL to the reference, nats", reference=0.0),
    Panel("jpo", "policy/ratio_mean", "JPO: mean ratio", reference=1.0),
    Panel("alol", "alol/loss", "A-LoL: A times the loss per token"),
    Panel("dpo", "dpo/loss", "DPO: loss of a pair, nats", reference=math.log(2)),
    Panel("dpo", "dpo/accuracy", "DPO: share of pairs told apart", reference=0.5),
)


def read_curve(path: Path) -> Curve:
    """Read `<run>/<domain>/<stage>/<cell>/metrics.jsonl`; lines hold `step` and numbers.

    A last line torn by a kill is left out; any other unreadable line raises InputError.
    """
    domain, stage, cell = path.parts[-4:-1] if len(path.parts) >= 4 else ("", "", "")
    if not path.is_file():
        raise InputError(f"{path} is missing; train that stage first.")
    columns: dict[str, tuple[list[float], list[float]]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step = float(row["step"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path}:{number}: not a line of metrics ({error!r}).") from None
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                steps, values = columns.setdefault(key, ([], []))
                steps.append(step)
                values.append(float(value))
    metrics = {key: (np.array(steps), np.array(values)) for key, (steps, values) in columns.items()}
    return Curve(domain, stage, cell, metrics)


def training_curves(curves: Sequence[Curve]) -> Figure:
    """One panel a metric (losses of each stage; surrogate, KL and ratio of JPO), a line a run.

    Lines are named where they end, or below the panels where names are long; of several domains
    each has its colour and each further cell its dashes. Where those don't suffice, the default
    cells alone are drawn.
    """
    curves = _told_apart(curves)
    present = [
        panel
        for panel in PANELS
        if any(c.stage == panel.stage and panel.metric in c.metrics for c in curves)
    ]
    looks = _looks(curves)
    has_long_names = max(map(len, looks), default=0) > 10
    num_columns = min(4, max(1, len(present)))
    num_rows = max(1, math.ceil(len(present) / num_columns))
    with _style():
        figure, axes = _grid(num_rows, num_columns, (2.55 * num_columns, 2.05 * num_rows))
        for panel, ax in zip(present, axes, strict=False):
            ends = []
            for curve in curves:
                if curve.stage != panel.stage or panel.metric not in curve.metrics:
                    continue
                steps, values = curve.metrics[panel.metric]
                colour, dashes = looks[curve.name]
                smooth = _smoothed(values)
                if smooth is not values:
                    ax.plot(steps, values, color=colour, lw=0.7, alpha=0.3)
                ax.plot(steps, smooth, color=colour, ls=dashes, lw=1.6)
                finite = np.flatnonzero(np.isfinite(smooth))
                if len(looks) > 1 and not has_long_names and len(finite):
                    ends.append((curve.name, colour, steps[finite[-1]], smooth[finite[-1]]))
            if panel.reference is not None:
                ax.axhline(panel.reference, color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=0)
            ax.set_title(panel.title)
            ax.grid(axis="y")
            ax.margins(x=0.02, y=0.12)
            ax.xaxis.set_major_locator(_integers())
            ax.xaxis.set_major_formatter(lambda step, _: _thousands(step))
            ax.set_xlabel("step")
            _name_ends(ax, ends)
        for ax in axes[len(present) :]:
            ax.set_axis_off()
        if has_long_names and len(looks) > 1:
            _legend(figure, looks)
    return figure


def utility_by_method(rows: Sequence[Row]) -> Figure:
    """Mean utility and its scenario-clustered 95 % interval, a panel a domain.

    The dashed line is the untrained student; rows that are trained are blue.
    """
    domains = list(dict.fromkeys(row.block for row in rows))
    methods = list(dict.fromkeys(row.label for row in rows))
    num_columns = min(2, max(1, len(domains)))
    num_rows = max(1, math.ceil(len(domains) / num_columns))
    size = (5.1 * num_columns, (0.27 * len(methods) + 0.85) * num_rows)
    with _style():
        figure, axes = _grid(num_rows, num_columns, size)
        for domain, ax in zip(domains, axes, strict=False):
            found = [row for row in rows if row.block == domain]
            for row in found:
                y = methods.index(row.label)
                low, high = row.utility_clustered.low, row.utility_clustered.high
                colour = BLUE if row.label in TRAINED else MUTED
                ax.plot([low, high], [y, y], color=colour, lw=2.2, alpha=0.45)
                ax.plot([row.utility], [y], "o", color=colour, ms=6, mec=PAPER, mew=0.8)
                ax.annotate(
                    f"{row.utility:.1f}",
                    (1.0, y),
                    xycoords=("axes fraction", "data"),
                    xytext=(6, 0),
                    textcoords="offset points",
                    va="center",
                    color=colour,
                )
                if row.label == "vanilla-slm":
                    ax.axvline(row.utility, color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=0)
            ax.set_yticks(range(len(methods)), methods)
            ax.tick_params(axis="y", labelcolor=INK)
            ax.set_ylim(len(methods) - 0.4, -0.6)
            ax.set_xlim(0, 100)
            ax.set_xlabel("utility, %")
            ax.set_title(TITLES.get(domain, domain))
            ax.grid(axis="x")
            ax.spines["left"].set_visible(False)
        for ax in axes[len(domains) :]:
            ax.set_axis_off()
    return figure


def emotion_ranking(scores: Mapping[str, Sequence[EmotionScore]]) -> Figure:
    """Emotions ranked by mean judge score with 95 % intervals, a panel a domain (paper, Figure 1).

    The dashed line is the neutral emotion's mean; blue dots lie clear above it, orange ones clear
    below, grey ones can't be told from it.
    """
    num_columns = min(2, max(1, len(scores)))
    num_rows = max(1, math.ceil(len(scores) / num_columns))
    most = max((len(found) for found in scores.values()), default=1)
    size = (5.1 * num_columns, (0.185 * most + 0.9) * num_rows)
    with _style():
        figure, axes = _grid(num_rows, num_columns, size)
        for (domain, found), ax in zip(scores.items(), axes, strict=False):
            ranked = sorted(found, key=lambda score: (-score.mean, score.emotion))
            neutral = next((score.mean for score in ranked if score.emotion == "neutral"), None)
            for y, score in enumerate(ranked):
                mean, low, high = score.mean, score.low, score.high
                colour = MUTED
                if neutral is not None and score.emotion != "neutral":
                    colour = BLUE if low > neutral else colour
                    colour = VERMILLION if high < neutral else colour
                ax.plot([low, high], [y, y], color=colour, lw=1.8, alpha=0.5)
                ax.plot([mean], [y], "o", color=colour, ms=4.6, mec=PAPER, mew=0.6)
            if neutral is not None:
                ax.axvline(neutral, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=0)
                ax.annotate(
                    f"neutral {neutral:.2f}",
                    (neutral, 1.0),
                    xycoords=("data", "axes fraction"),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    color=MUTED,
                )
            ax.set_yticks(range(len(ranked)), [score.emotion for score in ranked])
            ax.tick_params(axis="y", labelcolor=INK)
            ax.set_ylim(len(ranked) - 0.4, -0.8)
            ax.margins(x=0.06)
            ax.set_title(TITLES.get(domain, domain), pad=16)
            ax.set_xlabel("mean judge score of a turn (1 to 10)")
            ax.grid(axis="x")
            ax.spines["left"].set_visible(False)
        for ax in axes[len(scores) :]:
            ax.set_axis_off()
    return figure


def support_maps(maps: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Where the selector's choices lie in the data, a panel a domain.

    Rows are clusters of states, columns emotions; the shade is the policy's share of the cluster's
    turns, and a cross marks a choice that at least `CROSS_SHARE` of them make although fewer turns
    of the data than `min_support` show how it ends.

    Args:
      maps: domain -> what `train_iql.py` leaves as `support.json`.
    """
    num_columns = min(2, max(1, len(maps)))
    num_rows = max(1, math.ceil(len(maps) / num_columns))
    most = max((len(found["data"]) for found in maps.values()), default=1)
    with _style():
        size = (5.1 * num_columns, (0.2 * most + 1.45) * num_rows)
        figure, axes = _grid(num_rows, num_columns, size)
        for (domain, found), ax in zip(maps.items(), axes, strict=False):
            data_CA, policy_CA = np.array(found["data"]), np.array(found["policy"])
            turns_C = data_CA.sum(axis=1)
            order = np.argsort(-turns_C, kind="stable")
            share_CA = (policy_CA / np.maximum(policy_CA.sum(axis=1, keepdims=True), 1e-9))[order]
            is_unknown_CA = data_CA[order] < found["min_support"]
            ax.pcolormesh(
                share_CA,
                cmap=_shades(),
                vmin=0.0,
                vmax=max(float(share_CA.max()), 2 / share_CA.shape[1]),
                edgecolors=PAPER,
                linewidth=0.8,
            )
            rows, columns = np.nonzero(is_unknown_CA & (share_CA >= CROSS_SHARE))
            ax.plot(columns + 0.5, rows + 0.5, "x", color=VERMILLION, ms=4, mew=1.2)
            ax.set_xticks(np.arange(share_CA.shape[1]) + 0.5, found["emotions"], rotation=90)
            ax.set_yticks(np.arange(len(order)) + 0.5, [f"{n:,}" for n in turns_C[order]])
            ax.tick_params(axis="both", length=0, labelcolor=INK)
            ax.invert_yaxis()
            ax.set_ylabel("turns of the data")
            title = f"{TITLES.get(domain, domain)}: {found['unsupported']:.1%} outside the data"
            ax.set_title(title)
            for spine in ax.spines.values():
                spine.set_visible(False)
        for ax in axes[len(maps) :]:
            ax.set_axis_off()
    return figure


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write `<stem>.svg` and `<stem>.png` (200 dots an inch) without dates."""
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("svg", "png")]
    with _style():
        figure.savefig(paths[0], metadata={"Date": None, "Creator": None})
        figure.savefig(paths[1], dpi=200, metadata={"Software": None})
    return paths


def _style():
    import matplotlib

    return matplotlib.rc_context(STYLE)


def _grid(num_rows: int, num_columns: int, size: tuple[float, float]):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.06, hspace=0.07))
    FigureCanvasAgg(figure)
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    return figure, list(axes.flat)


def _shades():
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", ["#eef3f7", BLUE])


def _integers():
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4, integer=True)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """A centred moving mean where there are enough points to hide the trend in the noise."""
    width = len(values) // 20
    if width < 3 or not np.isfinite(values).all():
        return values
    ones = np.ones(2 * (width // 2) + 1)
    inside = np.convolve(np.ones_like(values), ones, mode="same")
    return np.convolve(values, ones, mode="same") / inside


def _thousands(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"


def _told_apart(curves: Sequence[Curve]) -> Sequence[Curve]:
    """All curves while each name can have a look of its own, else those of the default cells."""
    names: dict[str, set[str]] = {}
    for curve in curves:
        names.setdefault(curve.domain, set()).add(curve.name)
    num_looks = len(SERIES) if len(names) == 1 else len(DASHES)
    if all(len(of_domain) <= num_looks for of_domain in names.values()):
        return curves
    return [curve for curve in curves if curve.cell == "default"] or curves


def _looks(curves: Sequence[Curve]) -> dict[str, tuple[str, Dashes]]:
    """Colour and dashes by name: colours tell domains apart, or the cells of a single domain."""
    domains = sorted({curve.domain for curve in curves}, key=order_of(DOMAINS))
    looks: dict[str, tuple[str, Dashes]] = {}
    for number, domain in enumerate(domains):
        runs = {curve.name: curve.cell != "default" for curve in curves if curve.domain == domain}
        for i, name in enumerate(sorted(runs, key=lambda name: (runs[name], name))):
            place = number if len(domains) > 1 else i
            dashes = DASHES[i % len(DASHES)] if len(domains) > 1 else "-"
            looks[name] = SERIES[place % len(SERIES)], dashes
    return looks


def _name_ends(ax: Axes, ends: list[tuple[str, str, float, float]]) -> None:
    """Write each line's name at its end, moved apart where names would overlap."""
    if not ends:
        return
    low, high = ax.get_ylim()
    gap = (high - low) * 0.085
    ends = sorted(ends, key=lambda end: end[3])
    heights: list[float] = []
    for *_, value in ends:
        heights.append(max(value, heights[-1] + gap) if heights else value)
    shift = float(np.mean(heights) - np.mean([value for *_, value in ends]))
    for (name, colour, step, _), height in zip(ends, heights, strict=True):
        ax.annotate(
            name,
            (step, height - shift),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )


def _legend(figure: Figure, looks: Mapping[str, tuple[str, Dashes]]) -> None:
    from matplotlib.lines import Line2D

    width = 0.6 + 0.07 * max(map(len, looks))  # inches of an entry, at the style's font size
    figure.legend(
        [Line2D([], [], color=colour, ls=dashes, lw=1.6) for colour, dashes in looks.values()],
        list(looks),
        loc="outside lower left",
        ncols=max(1, min(len(looks), int(figure.get_figwidth() / width))),
        frameon=False,
        labelcolor=INK,
    )
