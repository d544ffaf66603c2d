"""The paper's own figures, to stand beside ours (`paper.toml`).

Real models on 20 held-out scenarios a domain: the student is Qwen2.5-7B-Instruct; Qwen3.5-Plus
writes for `vanilla-llm`, `random` and `iql` and speaks for the counterparty.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

SOURCE = "EmoDistill, arXiv:2605.26785 (Qwen2.5-7B and Qwen3.5-Plus, 20 scenarios)"
COUNTERPARTIES = {
    "deepseek-chat": "deepseek-v3",
    "deepseek-chat-v3-0324": "deepseek-v3",
    "qwen-2.5-3b-instruct": "qwen2.5-3b-instruct",
}
"""Other names that the counterparties of Tables 5 and 10 are served under."""
METHOD_FIGURES = (
    *("success", "outcomes", "outcomes_std", "utility", "utility_std"),
    *("rounds", "rounds_std"),
)
"""What the numbers of a row of methods are; per cent but for the rounds, ± as the paper has it."""


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


def beside(
    row: Mapping[str, Any], published: Sequence[float] | None, names: Sequence[str]
) -> dict[str, float]:
    """The paper's values for a row, and ours less the paper's.

    Args:
      row: our values.
      published: the paper's, in the order of `names`; None where the paper has none.
      names: keys of `row`.

    Returns:
      `paper_<name>` and `less_<name>` for each value that the paper gives. NaN is none; a deviation
      (`<name>_std`) may be NaN where its mean is not.
    """
    values = {} if published is None else dict(zip(names, published, strict=True))
    given = {
        n: v for n, v in values.items() if not math.isnan(values.get(n.removesuffix("_std"), v))
    }
    return {f"paper_{name}": value for name, value in given.items()} | {
        f"less_{name}": row[name] - value for name, value in given.items()
    }
