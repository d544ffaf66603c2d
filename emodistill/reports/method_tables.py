"""Tables whose rows are methods (1 to 6, 9 to 12, 14) and the studies, from dialogues."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from emodistill.configs import METHODS
from emodistill.domains import DOMAINS
from emodistill.evaluation.arms import Arm
from emodistill.reports.run_data import PAPER_DOMAIN, RunData, notes
from emodistill.reports.table import Table
from emodistill.reports.tables import (
    TITLES,
    Entry,
    difference_table,
    entries_of,
    method_rows,
    method_table,
    order_of,
    outcome_table,
)

OUTCOME_TABLES = ("table-9", "table-10", "table-11")
"""Intervals of the outcomes in place of all figures."""


def _methods(
    name: str,
    title: str,
    methods: Sequence[str] | None,
    domains: Sequence[str],
    data: RunData,
) -> Table | None:
    """A table of methods in their default cells; all of them without `methods`."""
    entries = [
        entry
        for entry in entries_of(data.evaluations)
        if entry.block in domains and (methods is None or entry.label in methods)
    ]
    if methods is not None:
        order = order_of(methods)
        entries.sort(key=lambda entry: (order_of(DOMAINS)(entry.block), order(entry.label)))
    if not entries:
        return None
    there = {(entry.block, entry.label) for entry in entries}
    missing = [
        f"{method} in {TITLES[domain]}"
        for domain in dict.fromkeys(entry.block for entry in entries)
        for method in methods or METHODS
        if (domain, method) not in there
    ]
    missing += [
        f"some dialogues of {method} in {TITLES[domain]} (go on with {command})"
        for (domain, method), command in data.unfinished.items()
        if (domain, method) in there
    ]
    return _table(name, title, entries, missing, data)


def _table(
    name: str, title: str, entries: Sequence[Entry], missing: Sequence[str], data: RunData
) -> Table:
    below = notes(data, (t for entry in entries for t in entry.dialogues), missing)
    if name in OUTCOME_TABLES:
        return outcome_table(name, title, entries, data.resampling, below)
    rows = data.rows if name == "table-1" else method_rows(name, entries, data.resampling)
    return method_table(name, title, rows, below)


def _missing(arm: Arm) -> str:
    reason = f" ({arm.reason.rstrip('.')})" if arm.reason else ""
    return f"{_block(arm)} {arm.label}{reason}"


def _block(arm: Arm) -> str:
    """What heads the arm's part of a table."""
    block = TITLES.get(arm.block, f"{TITLES[arm.domain]}: {arm.block}")
    return block if arm.split == "test" else f"{block}, {arm.split}"


def study(study: str, name: str, title: str, data: RunData) -> Table | None:
    """A table of a study's arms."""
    arms = [arm for arm in data.arms.get(study, ()) if arm.method is not None]
    finished = [arm for arm in arms if arm.path in data.arm_dialogues]
    if not finished:
        return None
    is_by_domain = all(arm.block == arm.domain for arm in arms)
    entries = []
    for arm in finished:
        is_published = is_by_domain or arm.domain == PAPER_DOMAIN
        published_as = arm.block if is_published and arm.split == "test" else None
        dialogues = data.arm_dialogues[str(arm.path)]
        entries.append(Entry(_block(arm), arm.label, dialogues, published_as))
    missing = [_missing(arm) for arm in arms if arm not in finished]
    return _table(name, title, entries, missing, data)


def differences(data: RunData) -> Table | None:
    """Methods against each other on the scenarios that both played."""
    found = data.differences
    return difference_table(found, notes(data, (), ())) if found else None


def _crad(data: RunData) -> Sequence[str]:
    """The domain of what the paper has for CRAD alone; another one if that is missing."""
    return [PAPER_DOMAIN] if PAPER_DOMAIN in data.evaluations else list(data.evaluations)[:1]


TRAINED_FREE = ("free-sft", "free-jpo", "free-sft+jpo")
FREE = ("vanilla-slm", *TRAINED_FREE, "iql+sft+jpo", "iql+sft+jpo-stripped")


def free(name: str, title: str, is_crad: bool, data: RunData) -> Table | None:
    """Tables 3 and 12."""
    domains = [
        domain
        for domain in (_crad(data) if is_crad else DOMAINS)
        if set(TRAINED_FREE) & data.evaluations.get(domain, {}).keys()
    ]
    return _methods(name, title, FREE, domains, data)


def refined(data: RunData) -> Table | None:
    """Table 14."""
    methods = ("iql+sft+alol", "iql+sft+jpo", "iql+sft+dpo")
    domains = [d for d in DOMAINS if {methods[0], methods[2]} & data.evaluations.get(d, {}).keys()]
    return _methods("table-14", "A-LoL and DPO in place of JPO", methods, domains, data)


def main(name: str, title: str, methods: Sequence[str] | None) -> Callable[[RunData], Table | None]:
    """Tables 1 and 9; all methods without `methods`."""
    return functools.partial(_methods, name, title, methods, DOMAINS)
