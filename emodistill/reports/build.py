"""From a run to `report/`: tables, figures, the page. Equal inputs give equal bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emodistill.configs import ReportConfig
from emodistill.errors import InputError
from emodistill.evaluation.arms import TABLES_OF
from emodistill.files import replacing
from emodistill.reports.case_studies import cases_markdown
from emodistill.reports.catalogue import RECIPES
from emodistill.reports.dose_content import dose_response, dose_rows
from emodistill.reports.figures import FIGURES, save_figure
from emodistill.reports.page import render_page
from emodistill.reports.recipe import Recipe, make_table
from emodistill.reports.report_table import csv_text, latex, markdown
from emodistill.reports.run_data import RunData, read_run
from emodistill.untrusted import refuse_links

CASES, PAGE = "cases", "page"
FORMS = {"md": markdown, "csv": csv_text, "tex": latex}
ALL_FIGURES = {**FIGURES, "dose-response": (dose_rows, dose_response)}


def report(config: ReportConfig, recipes: Sequence[Recipe] = RECIPES) -> Path:
    """Tables, figures and the page from whatever the run holds so far.

    Args:
      recipes: the tables; `(*RECIPES, own)` adds one.
    """
    data = read_run(config)
    path = write_report(data, only=config.only, recipes=recipes)
    if data.num_failed:
        _say(f"report: {data.num_failed:,} dialogues of the evaluation failed and are in no table.")
    _say(f"report: {path}")
    return path


def report_study(config: ReportConfig, study: str) -> list[Path]:
    """The tables and figures of one study; what can't be made is named."""
    data = read_run(config)
    paths = []
    for name in TABLES_OF[study]:
        try:
            paths.append(write_report(data, only=name))
            _say(f"{study}: {paths[-1]}")
        except InputError as error:
            _say(f"{study}: {error}")
    return paths


def part_names(recipes: Sequence[Recipe] = RECIPES) -> list[str]:
    """What `only` can name."""
    return [*(recipe.name for recipe in recipes), *ALL_FIGURES, CASES, PAGE]


def write_report(
    data: RunData,
    *,
    only: str | None = None,
    recipes: Sequence[Recipe] = RECIPES,
) -> Path:
    """Write the report of a run, or one part of it, into `report/` of its folder.

    Args:
      data: what the run holds; its folder heads the page, its manifests end it.
      only: one of `part_names`.
      recipes: the tables.

    Returns:
      `index.html`, or with `only` the first file of that part. What a run lacks is left out.

    Raises:
      InputError: `only` is no part, or there is nothing to report.
    """
    parts = part_names(recipes)
    if only is not None and only not in parts:
        raise InputError(f"only={only!r} is no part of a report; use one of {', '.join(parts)}.")
    has_page = only in (None, PAGE)
    tables = [
        table
        for recipe in recipes
        if (has_page or only == recipe.name) and (table := make_table(recipe, data))
    ]
    figures = {
        name: draw(content)
        for name, (find, draw) in ALL_FIGURES.items()
        if (has_page or only == name) and (content := find(data))
    }
    cases = cases_markdown(data) if only in (None, CASES) else None
    has_results = ({*figures} - {"support"}) | ({*data.dialogues.source} - {"sweep"})
    if not (tables or figures or cases) or (has_page and not has_results):
        scripts = {recipe.name: recipe.made_by for recipe in recipes if recipe.made_by}
        scripts["figure-1"] = "emotion_study.py"
        what = f"{data.run_dir} holds nothing for {only or 'a report'} yet"
        if only in scripts:
            raise InputError(f"{what}; scripts/{scripts[only]} makes what it needs.")
        raise InputError(
            f"{what}: tables need dialogues of evaluate.py, figure-1 a sweep and its judge.py or "
            "emotion_study.py, training-curves a training run, spending a train_grpo.py or "
            "train_ppo.py, support a train_iql.py."
        )
    out_dir = data.run_dir / "report"
    refuse_links(out_dir, data.run_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    written = [
        _write(out_dir / f"{table.name}.{suffix}", form(table))
        for table in tables
        for suffix, form in FORMS.items()
    ]
    if cases is not None:
        written.append(_write(out_dir / f"{CASES}.md", cases))
    for name, figure in figures.items():
        written += save_figure(figure, out_dir / name)
    if not has_page:
        return written[0]
    page = render_page(
        data,
        tables,
        {name: (out_dir / f"{name}.svg").read_text(encoding="utf-8") for name in figures},
        narrow=[name for name, figure in figures.items() if len(figure.axes) == 1],
    )
    return _write(out_dir / "index.html", page)


def _write(path: Path, text: str) -> Path:
    """Write so that a reader sees the old file or the new one."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _say(text: str) -> None:
    """A line of result; progress goes to stderr, this to stdout."""
    print(text, flush=True)
