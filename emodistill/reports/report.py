"""From a run's records to `report/`: tables, figures, the page. Equal inputs give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emodistill.domains import DOMAINS
from emodistill.errors import InputError
from emodistill.evaluation.metrics import EmotionScore, emotion_scores
from emodistill.offline.judging import scores_by_turn
from emodistill.records import Judgement, Trajectory
from emodistill.reports import costs, facts, figures, writers
from emodistill.reports.dialogues import typical_pair
from emodistill.reports.tables import (
    STUDENT,
    TAUGHT,
    Difference,
    Evaluations,
    Row,
    order_of,
    paired_differences,
    table_1,
)
from emodistill.reports.viewer import CAVEAT, Page, render

PARTS = (
    "table-1",
    "differences",
    "utility",
    "figure-1",
    "training-curves",
    "support",
    "cost",
    "page",
)
"""What `only` can name."""


def write_report(
    run_dir: Path,
    *,
    evaluations: Evaluations,
    judgements: Mapping[str, Sequence[Judgement]],
    trajectories: Mapping[str, Sequence[Trajectory]],
    metrics_files: Sequence[Path],
    support: Mapping[str, Mapping[str, Any]] | None = None,
    out_dir: Path | None = None,
    seed: int = 0,
    num_resamples: int = 10_000,
    only: str | None = None,
    provenance: Mapping[str, str] | None = None,
    num_failed: int = 0,
) -> Path:
    """Write the report of a run, or one part of it.

    Args:
      run_dir: the run; its name heads the page, its manifests end it.
      evaluations: domain -> method -> dialogues of stage 5.
      judgements: domain -> judge calls on the sweep.
      trajectories: domain -> dialogues of the sweep.
      metrics_files: `<run>/<domain>/<stage>/<cell>/metrics.jsonl` of the training runs.
      support: domain -> the support map of its selector.
      out_dir: `<run_dir>/report` without it.
      seed: names the bootstrap's streams.
      only: one of PARTS.
      provenance: further lines for the page's end.
      num_failed: dialogues of stage 5 that never came about.

    Returns:
      `index.html`, or with `only` the first file of that part. What a run lacks is left out.

    Raises:
      InputError: `only` is no part, or there is nothing to report.
    """
    if only is not None and only not in PARTS:
        raise InputError(f"only={only!r} is no part of a report; use one of {', '.join(PARTS)}.")
    out_dir = out_dir or run_dir / "report"
    evaluations = {d: {m: ts for m, ts in by.items() if ts} for d, by in evaluations.items()}
    evaluations = {domain: by_method for domain, by_method in evaluations.items() if by_method}
    rankings = _rankings(trajectories, judgements, seed, num_resamples)
    curves = [figures.read_curve(path) for path in sorted(metrics_files)]
    used = costs.read_costs(run_dir)
    available = {
        "table-1": bool(evaluations),
        "differences": bool(evaluations),
        "utility": bool(evaluations),
        "figure-1": bool(rankings),
        "training-curves": bool(curves),
        "support": bool(support),
        "cost": bool(used),
        "page": bool(evaluations or rankings or curves),
    }
    if not available[only or "page"]:
        raise InputError(
            f"{run_dir} holds nothing for {only or 'a report'} yet: tables need dialogues of "
            "evaluate.py, figure-1 a sweep and its judge.py, training-curves a training run, "
            "support a train_iql.py."
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    played = [t for by_method in evaluations.values() for ts in by_method.values() for t in ts]
    is_simulated = facts.is_simulated([*played, *(t for ts in trajectories.values() for t in ts)])
    caveat = CAVEAT if is_simulated else ""
    wanted = [part for part in PARTS if available[part] and only in (None, part)]
    needs_statistics = evaluations and {"table-1", "differences", "utility", "page"} & set(wanted)
    rows: list[Row] = []
    differences: list[Difference] = []
    if needs_statistics:
        rows = table_1(evaluations, seed=seed, num_resamples=num_resamples)
        differences = paired_differences(evaluations, seed=seed, num_resamples=num_resamples)

    written: list[Path] = []
    if "table-1" in wanted:
        written += [
            _write(out_dir / "table-1.md", writers.table_1_markdown(rows, caveat)),
            _write(out_dir / "table-1.csv", writers.table_1_csv(rows)),
            _write(out_dir / "table-1.tex", writers.table_1_latex(rows, caveat)),
        ]
    if "differences" in wanted:
        written += [
            _write(out_dir / "differences.md", writers.differences_markdown(differences, caveat)),
            _write(out_dir / "differences.csv", writers.differences_csv(differences)),
            _write(out_dir / "differences.tex", writers.differences_latex(differences, caveat)),
        ]
    if "cost" in wanted:
        written += [
            _write(out_dir / "cost.md", writers.cost_markdown(costs.lines(used), caveat)),
            _write(out_dir / "cost.csv", writers.cost_csv(used)),
        ]
    draw = {
        "utility": lambda: figures.utility_by_method(rows),
        "figure-1": lambda: figures.emotion_ranking(rankings),
        "training-curves": lambda: figures.training_curves(curves),
        "support": lambda: figures.support_maps(support or {}),
    }
    drawings = {}
    for name, drawing in draw.items():
        if available[name] and (name in wanted or "page" in wanted):
            paths = figures.save_figure(drawing(), out_dir / name)
            drawings[name] = paths[0].read_text(encoding="utf-8")
            written += paths
    if "page" not in wanted:
        return written[0]
    pairs = [
        typical_pair(domain, by_method.get(STUDENT, ()), by_method.get(TAUGHT, ()))
        for domain, by_method in sorted(
            evaluations.items(), key=lambda kv: order_of(DOMAINS)(kv[0])
        )
    ]
    page = Page(
        run_name=run_dir.resolve().name,
        rows=rows,
        differences=differences,
        pairs=[pair for pair in pairs if pair],
        figures=drawings,
        num_rankings=len(rankings),
        num_supports=len(support or {}),
        facts=[
            *facts.counted(evaluations, trajectories, judgements, num_failed),
            ("Bootstrap", f"{num_resamples:,} resamples, seed {seed}"),
            *(provenance or {}).items(),
        ],
        stages=facts.stages(run_dir),
        is_simulated=is_simulated,
    )
    return _write(out_dir / "index.html", render(page))


def _rankings(
    trajectories: Mapping[str, Sequence[Trajectory]],
    judgements: Mapping[str, Sequence[Judgement]],
    seed: int,
    num_resamples: int,
) -> dict[str, Sequence[EmotionScore]]:
    """domain -> judge score by emotion, where a sweep was judged."""
    found = {
        domain: emotion_scores(
            trajectories[domain],
            scores_by_turn(judgements.get(domain, ())),
            n_resamples=num_resamples,
            seed=seed,
        )
        for domain in sorted(trajectories, key=order_of(DOMAINS))
    }
    return {domain: scores for domain, scores in found.items() if scores}


def _write(path: Path, text: str) -> Path:
    """Write so that a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    return partial.replace(path)
