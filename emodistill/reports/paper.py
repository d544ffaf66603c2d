"""The paper's own figures, to stand beside ours: real models, 20 held-out scenarios a domain.

Table 1 (success, utility, rounds) and Table 9 (outcomes) of arXiv:2605.26785. The writer of
`vanilla-slm` and of the trained rows is Qwen2.5-7B-Instruct, that of `vanilla-llm`, `random` and
`iql` Qwen3.5-Plus, which also speaks for the counterparty.
"""

from __future__ import annotations

from typing import NamedTuple

LABEL = "paper, real models"
SOURCE = "EmoDistill, arXiv:2605.26785, Tables 1 and 9 (Qwen2.5-7B and Qwen3.5-Plus)"


class PaperCell(NamedTuple):
    """A method in a domain; per cent but for the rounds, ± as the paper prints it."""

    success: float
    utility: float
    utility_std: float
    rounds: float
    rounds_std: float
    outcomes: float


TABLE_1: dict[str, dict[str, PaperCell]] = {
    "crad": {
        "vanilla-llm": PaperCell(50.0, 5.0, 15.7, 8.5, 2.4, 10.0),
        "vanilla-slm": PaperCell(25.0, 8.8, 20.1, 11.2, 5.9, 35.2),
        "random": PaperCell(85.0, 40.6, 40.5, 13.9, 9.7, 47.7),
        "iql": PaperCell(95.0, 63.6, 38.1, 10.4, 8.1, 66.9),
        "iql+sft": PaperCell(100.0, 69.8, 30.4, 10.1, 7.8, 69.8),
        "iql+jpo": PaperCell(95.0, 51.7, 34.2, 14.1, 8.1, 54.4),
        "iql+sft+jpo": PaperCell(90.0, 72.2, 37.5, 15.0, 9.8, 80.2),
    },
    "disaster": {
        "vanilla-llm": PaperCell(100.0, 15.0, 35.7, 6.5, 4.8, 15.0),
        "vanilla-slm": PaperCell(75.0, 37.9, 41.7, 9.9, 7.2, 50.5),
        "random": PaperCell(100.0, 10.0, 30.0, 4.5, 3.4, 10.0),
        "iql": PaperCell(100.0, 5.0, 21.8, 4.3, 3.5, 5.0),
        "iql+sft": PaperCell(100.0, 15.0, 35.7, 7.4, 5.5, 15.0),
        "iql+jpo": PaperCell(90.0, 40.0, 49.0, 11.3, 8.7, 44.4),
        "iql+sft+jpo": PaperCell(100.0, 30.0, 45.8, 6.5, 4.0, 30.0),
    },
    "hospital": {
        "vanilla-llm": PaperCell(100.0, 35.0, 47.7, 4.5, 2.9, 35.0),
        "vanilla-slm": PaperCell(90.0, 40.3, 45.0, 4.3, 2.8, 44.8),
        "random": PaperCell(100.0, 30.0, 45.8, 4.2, 2.2, 30.0),
        "iql": PaperCell(100.0, 0.0, 0.0, 3.1, 1.6, 0.0),
        "iql+sft": PaperCell(95.0, 20.0, 40.0, 6.0, 6.5, 21.1),
        "iql+jpo": PaperCell(100.0, 35.0, 47.7, 7.4, 6.0, 35.0),
        "iql+sft+jpo": PaperCell(100.0, 45.0, 49.7, 5.5, 3.4, 45.0),
    },
    "student": {
        "vanilla-llm": PaperCell(100.0, 45.9, 21.5, 2.5, 1.2, 45.9),
        "vanilla-slm": PaperCell(100.0, 15.0, 30.7, 3.4, 1.5, 15.0),
        "random": PaperCell(100.0, 43.8, 30.5, 2.5, 1.3, 43.8),
        "iql": PaperCell(100.0, 47.9, 30.5, 2.8, 1.2, 47.9),
        "iql+sft": PaperCell(100.0, 51.7, 20.7, 2.5, 1.5, 51.7),
        "iql+jpo": PaperCell(100.0, 23.5, 33.9, 5.5, 5.1, 23.5),
        "iql+sft+jpo": PaperCell(100.0, 52.6, 26.6, 3.1, 2.9, 52.6),
    },
}


def paper_cell(domain: str, method: str) -> PaperCell | None:
    """The paper's figures of a method in a domain, None where it has none."""
    return TABLE_1.get(domain, {}).get(method)
