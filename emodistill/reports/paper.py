"""The paper's own figures, to stand beside ours (`paper.toml`).

Real models on 20 held-out scenarios a domain: the student is Qwen2.5-7B-Instruct; Qwen3.5-Plus
writes for `vanilla-llm`, `random` and `iql` and speaks for the counterparty.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

COUNTERPARTIES = {
    "deepseek-chat": "deepseek-v3",
    "deepseek-chat-v3-0324": "deepseek-v3",
    "qwen-2.5-3b-instruct": "qwen2.5-3b-instruct",
}
"""Other names that the counterparties of Tables 5 and 10 are served under."""


@cache
def tables() -> Mapping[str, Any]:
    """Everything in the file: table -> block -> row -> numbers."""
    return tomllib.loads(Path(__file__).with_name("paper.toml").read_text(encoding="utf-8"))


def numbers(table: str, block: str, row: str) -> Sequence[float] | None:
    """The numbers of a row of `table` (`table-6`), None where the paper has none."""
    blocks = tables().get(table.removeprefix("table-"), {})
    served_as = re.split("[/:#]", block)[-1].lower()
    return blocks.get(COUNTERPARTIES.get(served_as, served_as), {}).get(row)
