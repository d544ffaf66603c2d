"""English text in a plain form, cut into sentences and clauses, for the readers of this package.

Plain form: lower case, contractions written out ("can't" -> "can not"), one kind of quote and
dash, no markup. What a word means is judged within its clause, so the cuts matter: "your 90 days
won't work, but I can do 40" is one rejection and one proposal.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from emodistill.negotiation.patterns import pattern

# Applied in this order. Dots of abbreviations go before sentences are cut at dots.
_PLAIN = {
    pattern(source): replacement
    for source, replacement in {
        # typography: quotes, emphasis, spaces
        r"[‘’`´]": "'",
        r"[“”\"*_]": "",
        r"\u00a0": " ",
        # dots that end no sentence: "p.m.", "Dr.", "no. 7"
        r"\b([ap])\s?\.\s?m\b\.?(?=\s+[a-z])": r"\1m",
        r"\b([ap])\s?\.\s?m\b\.?": r"\1m.",
        r"\b(dr|mr|mrs|ms|vs|approx|etc|st|i\.e|e\.g|max|min|mins|hrs?)\.(?=\s*[a-z0-9])": r"\1",
        r"\b(case|invoice|account|order|file|ticket|room|contract|loan) no\.(?=\s*\d)": (
            r"\1 number"
        ),
        # dashes: a range, or a break between clauses; other breaks
        r"(?<=\d)\s*[-–‒]\s*(?=\d)": " to ",
        r"(?<=[a-z])[–‒](?=[a-z])": " — ",
        r"\s[-–‒]+\s|—|--+|(?<=\w)[–‒]\s|\s[–‒](?=\w)": " — ",
        r"…|\.\.+": " — ",
        r"[()\[\]]": ", ",
        # contractions
        r"\bcan't\b|\bcannot\b|\bcant\b": "can not",
        r"\bwon't\b": "will not",
        r"\bshan't\b": "shall not",
        r"\bain't\b": "is not",
        r"n't\b": " not",
        r"\blet's\b": "let us",
        r"'m\b": " am",
        r"'re\b": " are",
        r"'ve\b": " have",
        r"'ll\b": " will",
        r"'d\b": " would",
        r"\b(it|that|this|what|here|there|he|she|who|how|where)'s\b": r"\1 is",
        r"\bgonna\b": "going to",
        r"\bwanna\b": "want to",
        r"\bgotta\b": "have to",
        r"\bok\b": "okay",
        r"\ball right\b": "alright",
        # asides between commas, which would cut a subject from its verb
        r"""
        ,? (?:unfortunately|frankly|honestly|sadly|however|regrettably|obviously|clearly
        |quite simply|simply put|with respect|respectfully|sorry|i am afraid|i fear|to be honest
        |to be frank|in all honesty|of course|at this point|for me|for us|as you know|as i said
        |indeed|truly|realistically)(?=,)
        """: "",
        r"[ \t]+": " ",
    }.items()
}

_SENTENCE = re.compile(r"(?<=[!?;\n])\s*|(?<=\.)(?!\d)\s*")

# Words that start a new clause, and marks between clauses.
_CUT = pattern(
    r"""
    (?:,\s*)?\b(?=(?:but|however|though|although|even though|yet|because|while|whereas|so that
    |therefore|even if|only if|if|unless|provided|otherwise|which|given|considering|instead of
    |rather than)\b)
    # "so I …", but not "so long"
    |(?:,\s*)?\b(?=so (?!long|far|much|soon|many|late|early|close|hard)\w)
    # "since you …", but not "since three weeks"
    |(?:,\s*)?\b(?=since (?!Q))
    # "and we …", "and can …", but not "bread and cake"
    |(?:,\s*)?\b(?=and (?:also |now |still |so )?(?:{SUBJECT}|{VERB}))
    |(?:,\s*)?\b(?=or (?:else|face|expect|risk|lose|{SUBJECT}))
    |(?:,\s*)?\b(?=before (?:it|i|we|you|they|this|that|things|everything)\b)
    |,\s+|\s*—\s*|:\s+
    """,
    SUBJECT=pattern(r"(?:i|we|you|he|she|they|it|that|this|there|let us|please)\b"),
    VERB=pattern(
        r"""
        (?:can|could|will|would|should|must|may|need|want|propose|offer|suggest|ask|am|are|is|have
        |hope|insist|demand|accept|agree|expect|request|require|instead|therefore|then)\b
        """
    ),
)

# A verb that a comma cut off from its subject: "30 days, sadly, is …".
_BARE_PREDICATE = pattern(
    r"""
    (?:is|are|was|were|will|would|can|could|does|do|did|has|have|should|may|might|must|works?
    |sounds|seems|feels|suits|makes?|leaves?)\b(?! (?:i|we|you|it|that|this|there)\b)
    """
)


class Sentence(NamedTuple):
    """A sentence's clauses in order, and whether it ends in a question mark."""

    clauses: tuple[str, ...]
    is_question: bool

    @property
    def text(self) -> str:
        return " , ".join(self.clauses)


def plain(text: str) -> str:
    """The text in plain form."""
    text = text.lower()
    for expression, replacement in _PLAIN.items():
        text = expression.sub(replacement, text)
    return text.strip()


def split_sentences(text: str) -> list[Sentence]:
    """The sentences of a text in plain form; a semicolon ends one too.

    A sentence of nothing but dashes has no clauses; it still counts as what follows the one before.
    """
    sentences = []
    for part in _SENTENCE.split(text):
        if not (words := part.strip(" \n.!?;,")):
            continue
        clauses: list[str] = []
        for cut in _CUT.split(words):
            clause = cut.strip(" ,")
            if clauses and _BARE_PREDICATE.match(clause):
                clauses[-1] += f" {clause}"
            elif clause:
                clauses.append(clause)
        sentences.append(Sentence(tuple(clauses), "?" in part[-3:]))
    return sentences


def unnumbered(text: str) -> str:
    """The text with every mention of a quantity (`Q0`, `Q1`, …) written as `Q`."""
    return re.sub(r"Q\d+", "Q", text)
