"""English text in a plain form, cut into sentences and clauses, for the readers of this package.

Plain form: lower case, contractions written out ("can't" -> "can not"), one kind of quote and
dash, no markup. What a word means is judged within its clause, so the cuts matter: "your 90 days
won't work, but I can do 40" is one rejection and one proposal.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from emodistill.negotiation.patterns import load_patterns

_PATTERNS = load_patterns("clauses")
_FULL_WIDTH = {0xFF01 + code: 0x21 + code for code in range(94)}  # "１，５" is "1,5"
_OTHER_DIGIT = re.compile(r"[^\D0-9]")  # of another script


class Sentence(NamedTuple):
    """A sentence's clauses in order, and whether it ends in a question mark."""

    clauses: tuple[str, ...]
    is_question: bool

    @property
    def text(self) -> str:
        return " , ".join(self.clauses)


def plain(text: str) -> str:
    """The text in plain form."""
    text = text.translate(_FULL_WIDTH).lower()
    text = _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)
    for expression, replacement in _PATTERNS.plain:
        text = expression.sub(replacement, text)
    return text.strip()


def split_sentences(text: str) -> list[Sentence]:
    """The sentences of a text in plain form; a semicolon ends one too.

    A sentence of nothing but dashes has no clauses; it still counts as what follows the one before.
    """
    sentences = []
    for part in _PATTERNS.sentence.split(text):
        if not (words := part.strip(" \n.!?;,")):
            continue
        clauses: list[list[str]] = []  # each of one piece, or of a subject and its predicates
        for cut in _PATTERNS.cut.split(words):
            clause = cut.strip(" ,")
            if clauses and _PATTERNS.bare_predicate.match(clause):
                clauses[-1].append(clause)
            elif clause:
                clauses.append([clause])
        sentences.append(Sentence(tuple(map(" ".join, clauses)), "?" in part[-3:]))
    return sentences


def unnumbered(text: str) -> str:
    """The text with every mention of a quantity (`Q0`, `Q1`, …) written as `Q`."""
    return re.sub(r"Q\d+", "Q", text)
