"""From a run's records to `report/`: tables, figures, the page. Equal inputs give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from emodistill.domains import DOMAINS
from emodistill.errors import InputError
from emodistill.evaluation.metrics import EmotionScore, emotion_scores
from emodistill.files import replacing
from emodistill.offline.judging import scores_by_turn
from emodistill.reports import facts, figures, table
from emodistill.reports.cases import cases_markdown
from emodistill.reports.catalogue import HINTS, TABLES
from emodistill.reports.dialogues import typical_pair
from emodistill.reports.run_data import RunData
from emodistill.reports.table import Table
from emodistill.reports.tables import STUDENT, TAUGHT, order_of
from emodistill.reports.viewer import Page, render

FIGURES = ("utility", "figure-1", "training-curves", "support")
CASES = "cases"
PARTS = (*TABLES, *FIGURES, CASES, "page")
"""What `only` can name."""
FORMS = {"md": table.markdown, "csv": table.csv_text, "tex": table.latex}


def write_report(
    data: RunData,
    *,
    out_dir: Path | None = None,
    only: str | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write the report of a run, or one part of it.

    Args:
      data: what the run holds; its folder heads the page, its manifests end it.
      out_dir: `<run_dir>/report` without it.
      only: one of PARTS.
      provenance: further lines for the page's end.

    Returns:
      `index.html`, or with `only` the first file of that part. What a run lacks is left out.

    Raises:
      InputError: `only` is no part, or there is nothing to report.
    """
    if only is not None and only not in PARTS:
        raise InputError(f"only={only!r} is no part of a report; use one of {', '.join(PARTS)}.")
    out_dir = out_dir or data.run_dir / "report"
    rankings = _rankings(data) if only in (None, "figure-1", "page") else {}
    played = [ts for by_method in data.evaluations.values() for ts in by_method.values() if ts]
    draw = {
        "utility": (bool(played), lambda: figures.utility_by_method(data.rows)),
        "figure-1": (bool(rankings), lambda: figures.emotion_ranking(rankings)),
        "training-curves": (bool(data.curves), lambda: figures.training_curves(data.curves)),
        "support": (bool(data.support), lambda: figures.support_maps(data.support)),
    }
    tables: list[Table] = []
    for name, make in TABLES.items():
        if only in (None, name, "page") and (made := make(data)) is not None:
            tables.append(made)
    pictures = [n for n in FIGURES if only in (None, n, "page") and draw[n][0]]
    cases = cases_markdown(data) if only in (None, CASES) else None
    has_results = played or rankings or data.curves or data.arm_dialogues or data.tournament
    if not (tables or pictures or cases) or (only in (None, "page") and not has_results):
        raise InputError(_nothing(data.run_dir, only))
    out_dir.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for made in tables:
        written += [
            _write(out_dir / f"{made.name}.{suffix}", form(made)) for suffix, form in FORMS.items()
        ]
    if cases is not None:
        written.append(_write(out_dir / f"{CASES}.md", cases))
    drawings = {}
    for name in pictures:
        paths = figures.save_figure(draw[name][1](), out_dir / name)
        drawings[name] = paths[0].read_text(encoding="utf-8")
        written += paths
    if only not in (None, "page"):
        return written[0]
    drawn = data.resampling
    by_domain = sorted(data.evaluations.items(), key=lambda kv: order_of(DOMAINS)(kv[0]))
    pairs = [
        typical_pair(domain, by_method.get(STUDENT, ()), by_method.get(TAUGHT, ()))
        for domain, by_method in by_domain
    ]
    page = Page(
        run_name=data.run_dir.resolve().name,
        tables={made.name: made for made in tables},
        differences=data.differences,
        pairs=[pair for pair in pairs if pair],
        figures=drawings,
        num_domains=len(data.evaluations),
        num_rankings=len(rankings),
        num_supports=len(data.support),
        facts=[
            *facts.counted(data.evaluations, data.trajectories, data.judgements, data.num_failed),
            ("Bootstrap", f"{drawn.num_resamples:,} resamples, seed {drawn.seed}"),
            *(provenance or {}).items(),
        ],
        stages=facts.stages(data.run_dir),
        caveat=data.caveat,
    )
    return _write(out_dir / "index.html", render(page))


def _nothing(run_dir: Path, only: str | None) -> str:
    if only is not None and only in HINTS:
        return f"{run_dir} holds nothing for {only} yet; scripts/{HINTS[only]} makes what it needs."
    return (
        f"{run_dir} holds nothing for {only or 'a report'} yet: tables need dialogues of "
        "evaluate.py, figure-1 a sweep and its judge.py or emotion_study.py, training-curves a "
        "training run, support a train_iql.py."
    )


def _rankings(data: RunData) -> dict[str, Sequence[EmotionScore]]:
    """domain -> judge score by emotion: of the study of single emotions, or else of the sweep."""
    sources = {
        domain: (data.trajectories[domain], data.judgements.get(domain, ()))
        for domain in data.trajectories
    } | dict(data.emotions)
    found = {
        domain: emotion_scores(
            sources[domain][0],
            scores_by_turn(sources[domain][1]),
            n_resamples=data.resampling.num_resamples,
            seed=data.resampling.seed,
        )
        for domain in sorted(sources, key=order_of(DOMAINS))
    }
    return {domain: scores for domain, scores in found.items() if scores}


def _write(path: Path, text: str) -> Path:
    """Write so that a reader sees the old file or the new one."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path
