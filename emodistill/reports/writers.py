"""Tables as Markdown, CSV and LaTeX.

Markdown is for reading, CSV has every number at full precision, LaTeX needs `booktabs`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from emodistill.llm.client import Usage
from emodistill.reports import costs, paper
from emodistill.reports.tables import TITLES, Difference, Row, percent, signed

NOTE_TABLE_1 = (
    "Per cent but for the rounds; utility counts failures as 0; in bounds is the share of focal "
    "offers that open at the target or, later, step neither back nor past the other side's; ± is "
    "the population standard deviation over dialogues. Intervals are 95 % percentile bootstrap of "
    "the utility, over dialogues and, drawing whole scenarios, clustered."
)
NOTE_DIFFERENCES = (
    "Differences in utility on the same scenarios, in points of per cent, with paired "
    "scenario-clustered 95 % percentile bootstrap intervals."
)


def table_1_markdown(rows: Sequence[Row], caveat: str = "") -> str:
    """A block a domain, the paper's figures in the last columns."""
    head = (
        "method",
        "n",
        "success %",
        "outcomes %",
        "utility %",
        "95 % interval",
        "clustered",
        "rounds",
        "in bounds %",
        "paper: success",
        "paper: utility",
        "paper: rounds",
    )
    parts = ["# Methods by domain", *_notes(NOTE_TABLE_1, caveat)]
    for domain, found in _by_domain(rows):
        lines = [
            (
                row.method,
                str(row.num_dialogues),
                percent(row.success),
                _pm(row.outcomes, row.outcomes_std),
                _pm(row.utility, row.utility_std),
                f"{percent(row.utility_ci.low)} to {percent(row.utility_ci.high)}",
                f"{percent(row.utility_clustered.low)} to {percent(row.utility_clustered.high)}",
                _pm(row.rounds, row.rounds_std),
                percent(row.in_bounds),
                *(
                    (
                        percent(row.paper.success),
                        _pm(row.paper.utility, row.paper.utility_std),
                        _pm(row.paper.rounds, row.paper.rounds_std),
                    )
                    if row.paper
                    else ("–", "–", "–")
                ),
            )
            for row in found
        ]
        parts += [f"## {TITLES.get(domain, domain)}", _markdown(head, lines)]
    parts.append(f"Columns headed *paper* are {paper.LABEL}: {paper.SOURCE}.")
    return "\n\n".join(parts) + "\n"


def differences_markdown(differences: Sequence[Difference], caveat: str = "") -> str:
    head = ("comparison", "scenarios", "difference", "95 % interval", "reading")
    parts = ["# Paired differences in utility", *_notes(NOTE_DIFFERENCES, caveat)]
    for domain, found in _by_domain(differences):
        lines = [
            (
                f"{d.method} − {d.baseline}",
                str(d.num_scenarios),
                signed(d.mean),
                f"{signed(d.low)} to {signed(d.high)}",
                d.verdict,
            )
            for d in found
        ]
        parts += [f"## {TITLES.get(domain, domain)}", _markdown(head, lines)]
    return "\n\n".join(parts) + "\n"


def table_1_csv(rows: Sequence[Row]) -> str:
    """One line a row, every number in full; nothing where there is no number."""
    ours = (
        "domain",
        "method",
        "num_dialogues",
        "num_scenarios",
        "success",
        "outcomes",
        "outcomes_std",
        "utility",
        "utility_std",
        "rounds",
        "rounds_std",
        "in_bounds",
    )
    intervals = ("utility_ci", "utility_clustered")
    head = [
        *ours,
        *(f"{name}_{end}" for name in intervals for end in ("low", "high")),
        *(f"paper_{name}" for name in paper.PaperCell._fields),
    ]
    return _csv(
        head,
        [
            (
                *(getattr(row, name) for name in ours),
                *(end for name in intervals for end in getattr(row, name)[1:]),
                *(row.paper or [None] * len(paper.PaperCell._fields)),
            )
            for row in rows
        ],
    )


def differences_csv(differences: Sequence[Difference]) -> str:
    head = ["domain", "method", "baseline", "num_scenarios", "utility_difference", "low", "high"]
    return _csv(
        head,
        [
            (d.domain, d.method, d.baseline, d.num_scenarios, d.mean, d.low, d.high)
            for d in differences
        ],
    )


def cost_markdown(lines: Sequence[Sequence[str]], caveat: str = "") -> str:
    """The cost table, a row a stage, with its sums."""
    parts = ["# Cost of the calls", *_notes(costs.NOTE, caveat), _markdown(costs.HEAD, lines)]
    return "\n\n".join(parts) + "\n"


def cost_csv(found: Sequence[costs.Cost]) -> str:
    """One line a count, every number in full."""
    return _csv(
        ["domain", "stage", "name", *Usage._fields],
        [(cost.domain, cost.stage, cost.name, *cost.usage) for cost in found],
    )


def table_1_latex(rows: Sequence[Row], caveat: str = "") -> str:
    head = (
        r"Method & Suc. & Out. & Util. & 95\,\% CI & clustered & Rd. & In b. "
        r"& Suc. & Util. & Rd. \\"
    )
    body = []
    for domain, found in _by_domain(rows):
        body.append(_latex_domain(domain, 11))
        for row in found:
            theirs = ("--", "--", "--")
            if row.paper:
                theirs = (
                    percent(row.paper.success),
                    _latex_pm(row.paper.utility, row.paper.utility_std),
                    _latex_pm(row.paper.rounds, row.paper.rounds_std),
                )
            cells = (
                _latex(row.method),
                _latex(percent(row.success)),
                _latex_pm(row.outcomes, row.outcomes_std),
                _latex_pm(row.utility, row.utility_std),
                _latex(f"[{percent(row.utility_ci.low)}, {percent(row.utility_ci.high)}]"),
                _latex(
                    f"[{percent(row.utility_clustered.low)}, {percent(row.utility_clustered.high)}]"
                ),
                _latex_pm(row.rounds, row.rounds_std),
                _latex(percent(row.in_bounds)),
                *theirs,
            )
            body.append(" & ".join(cells) + r" \\")
    top = (
        r"& \multicolumn{7}{c}{this run} & \multicolumn{3}{c}{" + _latex(paper.LABEL) + r"} \\"
        "\n" + r"\cmidrule(lr){2-8}\cmidrule(lr){9-11}"
    )
    return _latex_table("lrrrrrrrrrr", f"{top}\n{head}", body, f"{NOTE_TABLE_1} {caveat}".strip())


def differences_latex(differences: Sequence[Difference], caveat: str = "") -> str:
    head = r"Comparison & Scenarios & Difference & 95\,\% CI \\"
    body = []
    for domain, found in _by_domain(differences):
        body.append(_latex_domain(domain, 4))
        for d in found:
            cells = (
                _latex(f"{d.method} − {d.baseline}"),
                str(d.num_scenarios),
                _latex(signed(d.mean)),
                _latex(f"[{signed(d.low)}, {signed(d.high)}]"),
            )
            body.append(" & ".join(cells) + r" \\")
    return _latex_table("lrrr", head, body, f"{NOTE_DIFFERENCES} {caveat}".strip())


def _by_domain(items):
    domains = dict.fromkeys(item.domain for item in items)
    return [(domain, [item for item in items if item.domain == domain]) for domain in domains]


def _pm(mean: float, std: float) -> str:
    return "–" if math.isnan(mean) else f"{percent(mean)} ± {percent(std)}"


def _notes(note: str, caveat: str) -> list[str]:
    return [note, f"**{caveat}**"] if caveat else [note]


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *lines]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (cell.replace("|", "\\|") for cell in row)
        padded = [
            first.ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)),
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "| " + "-" * widths[0] + " | " + " | ".join("-" * (w - 1) + ":" for w in widths[1:])
    return "\n".join([line(head), f"{rule} |", *map(line, lines)])


def _csv(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for line in lines:
        writer.writerow(
            "" if isinstance(cell, float) and math.isnan(cell) else cell for cell in line
        )
    return out.getvalue()


def _latex(text: str) -> str:
    for character, escaped in (
        ("\\", r"\textbackslash{}"),
        ("&", r"\&"),
        ("%", r"\%"),
        ("_", r"\_"),
        ("#", r"\#"),
        ("−", "$-$"),
        ("±", r"$\pm$"),
        ("–", "--"),
    ):
        text = text.replace(character, escaped)
    return text


def _latex_pm(mean: float, std: float) -> str:
    if math.isnan(mean):
        return "--"
    return rf"{percent(mean)} {{\scriptsize$\pm${percent(std)}}}"


def _latex_domain(domain: str, num_columns: int) -> str:
    title = _latex(TITLES.get(domain, domain))
    return rf"\midrule\multicolumn{{{num_columns}}}{{l}}{{\textit{{{title}}}}} \\"


def _latex_table(columns: str, head: str, body: Sequence[str], note: str) -> str:
    return "\n".join(
        [
            f"% {note}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )
