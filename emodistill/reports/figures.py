"""Figures of a run: training curves, utility by method, emotions ranked by judge score, the support
of the selector's choices.

Plain matplotlib without its global state. SVG and PNG carry neither dates nor random ids, so that
the same numbers give the same bytes. Colours are Okabe and Ito's, which survive colour blindness;
each line is named where it ends.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from emodistill.configs import SHIPPED
from emodistill.errors import InputError
from emodistill.evaluation.metrics import EmotionScore, emotion_scores
from emodistill.files import replacing
from emodistill.offline.judging import scores_by_turn
from emodistill.offline.run_files import SUPPORT
from emodistill.reports.curves import Curve
from emodistill.reports.labels import DOMAIN_TITLES, TRAINED, UNTRAINED, in_order
from emodistill.reports.leaderboard_content import leaderboard_rows
from emodistill.reports.results import by_domain
from emodistill.reports.run_data import RunData
from emodistill.reports.spending import SpentCurve, spent_curves
from emodistill.untrusted import printable, read_typed

COLOURS = {
    "ink": "#1f2328",
    "muted": "#6a737d",
    "line": "#d9dee3",
    "card": "#ffffff",
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "green": "#009e73",
    "purple": "#aa4499",
    "orange": "#b87a00",
}
"""By the names of the page's colours, which take their places there so that drawings follow its
light and dark."""
INK, MUTED, _, CARD, BLUE, VERMILLION, GREEN, PURPLE, ORANGE = COLOURS.values()
Dashes = str | tuple[int, tuple[int, ...]]
DASHES: tuple[Dashes, ...] = ("-", (0, (4, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))
REFERENCE: dict[str, Any] = {"color": MUTED, "lw": 0.8, "ls": (0, (4, 3)), "zorder": 0}
"""How a level is drawn to which the others are to be compared."""
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, MUTED)

CROSS_SHARE = 0.01
"""Share of a cluster's choices from which on a cross is worth drawing; below, crosses would hide
the map."""

STYLE = Path(__file__).with_name("figures.mplstyle")
"""What it leaves out is matplotlib's default, whatever the user's own settings are."""


DOTS_PER_INCH = 200
"""Of the PNG."""
MAX_LABEL = 40
"""Characters of a name in a figure; longer ones would leave no room for what is drawn."""


class CurvePanel(NamedTuple):
    """A metric of a stage with a panel of its own, and the level that it is compared to."""

    stage: str
    metric: str
    title: str
    reference: float | None = None


PANELS = (
    CurvePanel("iql", "value/loss", "IQL: value loss"),
    CurvePanel("iql", "critic/loss", "IQL: critic loss"),
    CurvePanel("iql", "actor/loss", "IQL: actor loss"),
    CurvePanel("iql", "policy/entropy", "IQL: policy entropy, nats", math.log(28)),
    CurvePanel("sft", "sft/loss", "SFT: loss per token, nats"),
    CurvePanel("jpo", "policy/surrogate", "JPO: clipped surrogate"),
    CurvePanel("jpo", "policy/kl_k3", "JPO: KL to the reference, nats", 0.0),
    CurvePanel("jpo", "policy/ratio_mean", "JPO: mean ratio", 1.0),
    CurvePanel("alol", "alol/loss", "A-LoL: A times the loss per token"),
    CurvePanel("dpo", "dpo/loss", "DPO: loss of a pair, nats", math.log(2)),
    CurvePanel("dpo", "dpo/accuracy", "DPO: share of pairs told apart", 0.5),
)


def training_curves(curves: Sequence[Curve]) -> Figure:
    """One panel a metric (losses of each stage; surrogate, KL and ratio of JPO), a line a run.

    Lines are named where they end, or below the panels where names are long; of several domains
    each has its colour and each further cell its dashes. Where those don't suffice, the default
    cells alone are drawn.
    """
    curves = _distinguishable(curves)
    by_panel = {
        panel: [c for c in curves if c.stage == panel.stage and panel.metric in c.metrics]
        for panel in PANELS
    }
    present = [(panel, shown) for panel, shown in by_panel.items() if shown]
    looks = _looks(curves)
    has_legend = len(looks) > 1 and max(len(_label(name)) for name in looks) > 10
    with panels(present, (2.55, 2.05), max_columns=4) as (figure, shown_panels):
        for (panel, shown), ax in shown_panels:
            ends = []
            for curve in shown:
                steps, values = curve.metrics[panel.metric]
                colour, dashes = looks[curve.name]
                smooth = _smoothed(values)
                if smooth is not values:
                    ax.plot(steps, values, color=colour, lw=0.7, alpha=0.3)
                ax.plot(steps, smooth, color=colour, ls=dashes, lw=1.6)
                finite = np.flatnonzero(np.isfinite(smooth))
                if len(looks) > 1 and not has_legend and len(finite):
                    ends.append((curve.name, colour, steps[finite[-1]], smooth[finite[-1]]))
            if panel.reference is not None:
                ax.axhline(panel.reference, **REFERENCE)
            ax.set(title=panel.title, xlabel="step")
            ax.grid(axis="y")
            ax.margins(x=0.02, y=0.12)
            ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
            ax.xaxis.set_major_formatter(
                lambda step, _: f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"
            )
            _name_ends(ax, ends)
        if has_legend:
            legend(figure, looks)
    return figure


def utility_by_method(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean utility and its scenario-clustered 95 % interval, a panel a domain.

    The dashed line is the untrained student; methods that are trained are blue.

    Args:
      rows: of Table 1 (`results.method_rows`).
    """
    domains = list(dict.fromkeys(str(row["block"]) for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with panels(domains, (5.1, 0.27 * len(methods) + 0.85)) as (figure, shown_panels):
        for domain, ax in shown_panels:
            for row in (row for row in rows if row["block"] == domain):
                y, utility = methods.index(row["method"]), row["utility"]
                colour = BLUE if row["method"] in TRAINED else MUTED
                ends = [row["utility_clustered_low"], row["utility_clustered_high"]]
                ax.plot(ends, [y, y], color=colour, lw=2.2, alpha=0.45)
                ax.plot([utility], [y], "o", color=colour, ms=6, mec=CARD, mew=0.8)
                ax.annotate(
                    f"{utility:.1f}",
                    (1.0, y),
                    xycoords=("axes fraction", "data"),
                    xytext=(6, 0),
                    textcoords="offset points",
                    va="center",
                    color=colour,
                )
                if row["method"] == UNTRAINED:
                    ax.axvline(utility, **REFERENCE)
            _ranked(ax, methods, -0.6)
            ax.set(xlim=(0, 100), xlabel="utility, %", title=DOMAIN_TITLES[domain])
    return figure


def emotion_ranking(scores: Mapping[str, Sequence[EmotionScore]]) -> Figure:
    """Emotions ranked by mean judge score with 95 % intervals, a panel a domain (paper, Figure 1).

    The dashed line is the neutral emotion's mean; blue dots lie clear above it, orange ones clear
    below, grey ones can't be told from it.

    Args:
      scores: domain -> its emotions, best first.
    """
    most = max(map(len, scores.values()))
    with panels(scores.items(), (5.1, 0.185 * most + 0.9)) as (figure, shown_panels):
        for (domain, ranked), ax in shown_panels:
            neutral = {score.emotion: score.mean for score in ranked}.get("neutral", math.nan)
            for y, score in enumerate(ranked):
                colour = MUTED
                if score.emotion != "neutral":
                    colour = BLUE if score.low > neutral else colour
                    colour = VERMILLION if score.high < neutral else colour
                ax.plot([score.low, score.high], [y, y], color=colour, lw=1.8, alpha=0.5)
                ax.plot([score.mean], [y], "o", color=colour, ms=4.6, mec=CARD, mew=0.6)
            if not math.isnan(neutral):
                ax.axvline(neutral, **REFERENCE | {"lw": 0.9})
                ax.annotate(
                    f"neutral {neutral:.2f}",
                    (neutral, 1.0),
                    xycoords=("data", "axes fraction"),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    color=MUTED,
                )
            _ranked(ax, [score.emotion for score in ranked], -0.8)
            ax.margins(x=0.06)
            ax.set_title(DOMAIN_TITLES[domain], pad=16)
            ax.set_xlabel("mean judge score of a turn (1 to 10)")
    return figure


def support_maps(maps: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Where the selector's choices lie in the data, a panel a domain.

    Rows are clusters of states, columns emotions; the shade is the policy's share of the cluster's
    turns, and a cross marks a choice that at least `CROSS_SHARE` of them make although fewer turns
    of the data than `min_support` show how it ends.

    Args:
      maps: domain -> what `train_iql.py` leaves as `support.json`.
    """
    most = max(len(support["data"]) for support in maps.values())
    shades = LinearSegmentedColormap.from_list("shades", ["#eef3f7", BLUE])
    with panels(maps.items(), (5.1, 0.2 * most + 1.45)) as (figure, shown_panels):
        for (domain, support), ax in shown_panels:
            data_CA, policy_CA = np.array(support["data"]), np.array(support["policy"])
            turns_C = data_CA.sum(axis=1)
            order = np.argsort(-turns_C, kind="stable")
            share_CA = (policy_CA / np.maximum(policy_CA.sum(axis=1, keepdims=True), 1e-9))[order]
            is_unknown_CA = data_CA[order] < support["min_support"]
            ax.pcolormesh(
                share_CA,
                cmap=shades,
                vmin=0.0,
                vmax=max(float(share_CA.max()), 2 / share_CA.shape[1]),
                edgecolors=CARD,
                linewidth=0.8,
            )
            rows, columns = np.nonzero(is_unknown_CA & (share_CA >= CROSS_SHARE))
            ax.plot(columns + 0.5, rows + 0.5, "x", color=VERMILLION, ms=4, mew=1.2)
            ax.set_xticks(np.arange(share_CA.shape[1]) + 0.5, support["emotions"], rotation=90)
            ax.set_yticks(np.arange(len(order)) + 0.5, [f"{n:,}" for n in turns_C[order]])
            ax.tick_params(axis="both", length=0, labelcolor=INK)
            ax.invert_yaxis()
            ax.set_ylabel("turns of the data")
            outside = f"{support['unsupported']:.1%} outside the data"
            ax.set_title(f"{DOMAIN_TITLES[domain]}: {outside}")
            ax.spines[:].set_visible(False)
    return figure


def leaderboard_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean utility against the training dialogues spent, a panel a domain, a line a method.

    A system as published has the colour of its repaired form, dotted. Bars are the deviation of
    the training seeds' means. Dashed levels are methods that learn nothing, named where they end.

    Args:
      rows: of the leaderboard (`leaderboard_content.leaderboard_rows`).
    """
    domains = list(dict.fromkeys(str(row["block"]) for row in rows))
    names = list(dict.fromkeys(str(row["method"]) for row in rows if row["budget"]))
    forms = list(dict.fromkeys(name.removesuffix(SHIPPED) for name in names))
    solid, dashed, dotted, dash_dotted = DASHES
    looks: dict[str, tuple[str, Dashes]] = {}
    for name in names:
        lap, number = divmod(forms.index(name.removesuffix(SHIPPED)), len(SERIES))
        dashes = dotted if name.endswith(SHIPPED) else (solid, dashed, dash_dotted)[min(lap, 2)]
        looks[name] = SERIES[number], dashes
    with panels(domains, (4.6, 3.1)) as (figure, axes):
        for domain, ax in axes:
            of_domain = [row for row in rows if row["block"] == domain]
            budgets = sorted({row["budget"] for row in of_domain if row["budget"]})
            for i, (name, (colour, dashes)) in enumerate(looks.items()):
                line = [row for row in of_domain if row["budget"] and row["method"] == name]
                # Beside each other, so that the bars of one budget can be told apart.
                x = [row["budget"] * 1.018 ** (i - len(looks) / 2) for row in line]
                y, bars = [row["utility"] for row in line], [row["trainings_std"] for row in line]
                ax.errorbar(x, y, bars, color=colour, ls=dashes, lw=1.4, marker="o", ms=3.5)
            for row in (row for row in of_domain if not row["budget"]):
                ax.axhline(row["utility"], **REFERENCE)
            levels = [row for row in of_domain if not row["budget"]]
            ax.set(title=DOMAIN_TITLES[domain], xlabel="training dialogues", ylabel="utility, %")
            ax.grid(axis="y")
            if budgets:
                ax.set_xscale("log")
                ax.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
                ax.minorticks_off()
                end = ax.get_xlim()[1]
                _name_ends(ax, [(row["method"], MUTED, end, row["utility"]) for row in levels])
        if looks:
            legend(figure, looks)
    return figure


def utility_over_spending(curves: Sequence[SpentCurve]) -> Figure:
    """Utility over dialogues and over calls spent, two panels a domain.

    Lines are what on-policy training reaches round by round on training scenarios; dots with 95 %
    intervals are held-out scenarios.
    """
    domains = in_order({curve.domain for curve in curves})
    axes = {"num_dialogues": "dialogues", "num_calls": "calls"}
    names = list(dict.fromkeys(curve.name for curve in curves))
    looks = {name: (SERIES[i % len(SERIES)], DASHES[0]) for i, name in enumerate(names)}
    shown = [(domain, field) for domain in domains for field in axes]
    with panels(shown, (3.6, 2.5)) as (figure, drawn):
        for (domain, field), ax in drawn:
            for curve in (curve for curve in curves if curve.domain == domain):
                colour, _ = looks[curve.name]
                x = [getattr(point.spent, field) for point in curve.rounds]
                ax.plot(x, [100 * point.utility for point in curve.rounds], color=colour, lw=1.6)
                low, high = (
                    [100 * getattr(p, end) for p in curve.rounds] for end in ("low", "high")
                )
                ax.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
                if (point := curve.held_out) is not None:
                    at = getattr(point.spent, field)
                    ax.plot([at, at], [100 * point.low, 100 * point.high], color=colour, alpha=0.5)
                    ax.plot([at], [100 * point.utility], "o", color=colour, ms=6, mec=CARD)
            ax.set(title=DOMAIN_TITLES[domain], xlabel=f"{axes[field]}, the sweep's included")
            ax.set_ylabel("utility, %")
            ax.grid(axis="y")
            ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        legend(figure, looks)
    return figure


def _rankings(data: RunData) -> dict[str, Sequence[EmotionScore]]:
    """domain -> judge score by emotion: of the study of single emotions, or else of the sweep."""
    rankings: dict[str, Sequence[EmotionScore]] = {}
    for frame, judgements in (
        (data.played_in("sweep"), data.judgements),
        (data.played_in("study", study="emotions"), data.emotion_judgements),
    ):
        for domain, played in by_domain(frame):
            scores = scores_by_turn(judgements.get(domain, ()))
            rankings[domain] = emotion_scores(list(played.dialogue), scores)
    return {domain: rankings[domain] for domain in in_order(rankings) if rankings[domain]}


def _supports(data: RunData) -> dict[str, Any]:
    """domain -> the support map of its selector."""
    files = data.files(f"iql/default/{SUPPORT}")
    return {domain: _support(path) for domain, path in files.items()}


class _Support(msgspec.Struct):
    """What `support_maps` reads of a support.json."""

    data: list[list[int]]
    policy: list[list[float]]
    emotions: list[str]
    min_support: int
    unsupported: float


def _support(path: Path) -> dict[str, Any]:
    advice = f"Delete {path.parent} and train the selector again."
    support = read_typed(path, _Support, advice)
    widths = {len(row) for row in (*support.data, *support.policy)}
    if widths != {len(support.emotions)} or len(support.data) != len(support.policy):
        raise InputError(f"{path}: its rows are not one number an emotion. {advice}")
    return msgspec.structs.asdict(support)


FIGURES: Mapping[str, tuple[Callable[[RunData], Any], Callable[[Any], Figure]]] = {
    "utility": (lambda data: data.method_rows, utility_by_method),
    "figure-1": (_rankings, emotion_ranking),
    "training-curves": (lambda data: data.curves, training_curves),
    "spending": (spent_curves, utility_over_spending),
    "support": (_supports, support_maps),
    "leaderboard": (leaderboard_rows, leaderboard_curves),
}
"""Name -> what it shows of a run, and what draws that; there is no figure of nothing."""


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write `<stem>.svg` and `<stem>.png` without dates."""
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("svg", "png")]
    with matplotlib.rc_context(fname=STYLE):
        with replacing(paths[0]) as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None, "Creator": None})
        figure.set_layout_engine("none")  # the second form keeps the places of the first
        with replacing(paths[1]) as partial:
            figure.savefig(partial, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return paths


@contextlib.contextmanager
def panels(
    shown: Collection[Any], size: tuple[float, float], *, max_columns: int = 2
) -> Iterator[tuple[Figure, Iterable[tuple[Any, Axes]]]]:
    """A figure in the report's style, and what is shown with the axes of its panel, row by row.

    A panel has `size` inches.
    """
    num_columns = min(max_columns, max(1, len(shown)))
    num_rows = max(1, math.ceil(len(shown) / num_columns))
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(
            figsize=(size[0] * num_columns, size[1] * num_rows),
            layout=ConstrainedLayoutEngine(wspace=0.06, hspace=0.07),
        )
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
        yield figure, zip(shown, axes, strict=False)
        for ax in axes[len(shown) :]:
            ax.set_axis_off()


def _label(name: str) -> str:
    """A name that a user or a folder has given, as a figure shows it: short, and no mathematics.

    Matplotlib reads what stands between two dollar signs as a formula.
    """
    line = " ".join(printable(name).split())
    short = line if len(line) <= MAX_LABEL else f"{line[: MAX_LABEL - 1]}…"
    return short.replace("$", r"\$")


def _ranked(ax: Axes, names: Sequence[str], top: float) -> None:
    """One name a line, the first one on top, without an axis on the left."""
    ax.set_yticks(range(len(names)), list(map(_label, names)))
    ax.tick_params(axis="y", labelcolor=INK)
    ax.set_ylim(len(names) - 0.4, top)
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """A centred moving mean where there are enough points to hide the trend in the noise."""
    width = len(values) // 20
    if width < 3 or not np.isfinite(values).all():
        return values
    ones = np.ones(2 * (width // 2) + 1)
    inside = np.convolve(np.ones_like(values), ones, mode="same")
    return np.convolve(values, ones, mode="same") / inside


def _distinguishable(curves: Sequence[Curve]) -> Sequence[Curve]:
    """All curves while each name can have a look of its own, else those of the default cells."""
    num_names = Counter(domain for domain, _ in {(c.domain, c.name) for c in curves})
    num_looks = len(SERIES) if len(num_names) == 1 else len(DASHES)
    if max(num_names.values()) <= num_looks:
        return curves
    return [curve for curve in curves if curve.cell == "default"] or curves


def _looks(curves: Sequence[Curve]) -> dict[str, tuple[str, Dashes]]:
    """Colour and dashes by name: colours tell domains apart, or the cells of a single domain."""
    domains = in_order({curve.domain for curve in curves})
    looks: dict[str, tuple[str, Dashes]] = {}
    for number, domain in enumerate(domains):
        names = {(c.cell != "default", c.name) for c in curves if c.domain == domain}
        for i, (_, name) in enumerate(sorted(names)):
            by_domain = SERIES[number % len(SERIES)], DASHES[i % len(DASHES)]
            looks[name] = by_domain if len(domains) > 1 else (SERIES[i % len(SERIES)], "-")
    return looks


def _name_ends(ax: Axes, ends: list[tuple[str, str, float, float]]) -> None:
    """Write each line's name at its end, moved apart where names would overlap."""
    if not ends:
        return
    low, high = ax.get_ylim()
    gap = (high - low) * 0.085
    ends = sorted(ends, key=lambda end: end[3])
    near: list[list[float]] = []  # values whose names would overlap, as they have been moved apart
    for *_, value in ends:
        near.append([value])
        while len(near) > 1 and _spread(near[-2], gap)[-1] + gap > _spread(near[-1], gap)[0]:
            near[-2:] = [near[-2] + near[-1]]
    heights = [height for values in near for height in _spread(values, gap)]
    for (name, colour, step, _), height in zip(ends, heights, strict=True):
        ax.annotate(
            _label(name),
            (step, height),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Heights `gap` apart, in the middle of the values."""
    first = float(np.mean(values)) - gap * (len(values) - 1) / 2
    return [first + gap * i for i in range(len(values))]


def legend(figure: Figure, looks: Mapping[str, tuple[str, Dashes]]) -> None:
    """Names below the panels."""
    width = 0.6 + 0.07 * max(
        len(_label(name)) for name in looks
    )  # inches of an entry, at the style's font size
    figure.legend(
        [Line2D([], [], color=colour, ls=dashes, lw=1.6) for colour, dashes in looks.values()],
        list(map(_label, looks)),
        loc="outside lower left",
        ncols=max(1, min(len(looks), int(figure.get_figwidth() / width))),
        frameon=False,
        labelcolor=INK,
    )
