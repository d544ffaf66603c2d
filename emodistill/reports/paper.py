"""The paper's own figures, to stand beside ours (`paper.toml`).

Real models on 20 held-out scenarios a domain: the student is Qwen2.5-7B-Instruct; Qwen3.5-Plus
writes for `vanilla-llm`, `random` and `iql` and speaks for the counterparty.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

LABEL = "paper"
SOURCE = "EmoDistill, arXiv:2605.26785 (Qwen2.5-7B and Qwen3.5-Plus, 20 scenarios)"
COUNTERPARTIES = {
    "deepseek-chat": "deepseek-v3",
    "deepseek-chat-v3-0324": "deepseek-v3",
    "qwen-2.5-3b-instruct": "qwen2.5-3b-instruct",
}
"""Other names that the counterparties of Tables 5 and 10 are served under."""


class PaperCell(NamedTuple):
    """A row of methods; per cent but for the rounds, ± as the paper prints it."""

    success: float
    outcomes: float
    outcomes_std: float
    utility: float
    utility_std: float
    rounds: float
    rounds_std: float


@cache
def tables() -> Mapping[str, Any]:
    """Everything in the file: table -> block -> row -> numbers."""
    text = resources.files("emodistill.reports").joinpath("paper.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def numbers(table: str, block: str | None, row: str) -> Sequence[float] | None:
    """The numbers of a row of `table` (`table-6`), None where the paper has none."""
    if block is None:
        return None
    blocks = tables().get(table.removeprefix("table-"), {})
    served_as = block.rpartition("/")[2].lower()
    return blocks.get(COUNTERPARTIES.get(served_as, served_as), {}).get(row)


def paper_cell(table: str, block: str | None, row: str) -> PaperCell | None:
    """The figures of a row of methods."""
    found = numbers(table, block, row)
    return None if found is None else PaperCell(*found)
