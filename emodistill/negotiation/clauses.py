"""English text in a plain form, cut into sentences and clauses, for the readers of this package.

Plain form: lower case, contractions written out ("can't" -> "can not"), one kind of quote and
dash, no markup. What a word means is judged within its clause, so the cuts matter: "your 90 days
won't work, but I can do 40" is one rejection and one proposal.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_PLAIN = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"[‘’`´]", "'"),
        (r"[“”\"*_]", ""),
        (r"\u00a0", " "),
        (r"\b([ap])\s?\.\s?m\b\.?(?=\s+[a-z])", r"\1m"),
        (r"\b([ap])\s?\.\s?m\b\.?", r"\1m."),
        (
            r"\b(dr|mr|mrs|ms|vs|approx|etc|st|i\.e|e\.g|max|min|mins|hrs?)\.(?=\s*[a-z0-9])",
            r"\1",
        ),
        (
            r"\b(case|invoice|account|order|file|ticket|room|contract|loan) no\.(?=\s*\d)",
            r"\1 number",
        ),
        (r"(?<=\d)\s*[-–‒]\s*(?=\d)", " to "),
        (r"(?<=[a-z])[–‒](?=[a-z])", " — "),
        (r"\s[-–‒]+\s|—|--+|(?<=\w)[–‒]\s|\s[–‒](?=\w)", " — "),
        (r"…|\.\.+", " — "),
        (r"[()\[\]]", ", "),
        (r"\bcan't\b|\bcannot\b|\bcant\b", "can not"),
        (r"\bwon't\b", "will not"),
        (r"\bshan't\b", "shall not"),
        (r"\bain't\b", "is not"),
        (r"n't\b", " not"),
        (r"\blet's\b", "let us"),
        (r"'m\b", " am"),
        (r"'re\b", " are"),
        (r"'ve\b", " have"),
        (r"'ll\b", " will"),
        (r"'d\b", " would"),
        (r"\b(it|that|this|what|here|there|he|she|who|how|where)'s\b", r"\1 is"),
        (r"\bgonna\b", "going to"),
        (r"\bwanna\b", "want to"),
        (r"\bgotta\b", "have to"),
        (r"\bok\b", "okay"),
        (r"\ball right\b", "alright"),
        # Asides between commas would cut a subject from its verb.
        (
            r",? (?:unfortunately|frankly|honestly|sadly|however|regrettably|obviously|clearly|"
            r"quite simply|simply put|with respect|respectfully|sorry|i am afraid|i fear|"
            r"to be honest|to be frank|in all honesty|of course|at this point|for me|for us|"
            r"as you know|as i said|indeed|truly|realistically)(?=,)",
            "",
        ),
        (r"[ \t]+", " "),
    ]
]

_SENTENCE = re.compile(r"(?<=[!?;\n])\s*|(?<=\.)(?!\d)\s*")

_SUBJECT = r"(?:i|we|you|he|she|they|it|that|this|there|let us|please)\b"
_VERB = (
    r"(?:can|could|will|would|should|must|may|need|want|propose|offer|suggest|ask|am|are|is|have|"
    r"hope|insist|demand|accept|agree|expect|request|require|instead|therefore|then)\b"
)
_CUT = re.compile(
    r"(?:,\s*)?\b(?=(?:but|however|though|although|even though|yet|because|while|whereas|so that|"
    r"therefore|even if|only if|if|unless|provided|otherwise|which|given|considering|instead of|"
    r"rather than)\b)"
    r"|(?:,\s*)?\b(?=so (?!long|far|much|soon|many|late|early|close|hard)\w)"
    r"|(?:,\s*)?\b(?=since (?!Q\d))"
    rf"|(?:,\s*)?\b(?=and (?:also |now |still |so )?(?:{_SUBJECT}|{_VERB}))"
    rf"|(?:,\s*)?\b(?=or (?:else|face|expect|risk|lose|{_SUBJECT}))"
    r"|(?:,\s*)?\b(?=before (?:it|i|we|you|they|this|that|things|everything)\b)"
    r"|,\s+|\s*—\s*|:\s+"
)
_BARE_PREDICATE = re.compile(
    r"(?:is|are|was|were|will|would|can|could|does|do|did|has|have|should|may|might|must|works?|"
    r"sounds|seems|feels|suits|makes?|leaves?)\b(?! (?:i|we|you|it|that|this|there)\b)"
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
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    return text.strip()


def split_sentences(text: str) -> list[Sentence]:
    """The sentences of a text in plain form; a semicolon ends one too."""
    sentences = []
    for part in _SENTENCE.split(text):
        words = part.strip(" \n.!?;,")
        if words:
            clauses = _rejoin([c.strip(" ,") for c in _CUT.split(words) if c.strip(" ,")])
            sentences.append(Sentence(tuple(clauses), "?" in part[-3:]))
    return sentences


def _rejoin(clauses: list[str]) -> list[str]:
    """Give a verb that a comma cut off from its subject back to it: "30 days, sadly, is …"."""
    joined: list[str] = []
    for clause in clauses:
        if joined and _BARE_PREDICATE.match(clause):
            joined[-1] = f"{joined[-1]} {clause}"
        else:
            joined.append(clause)
    return joined
