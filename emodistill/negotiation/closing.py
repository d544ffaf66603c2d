"""Whether an utterance says yes, sets a condition, or ends the talks: what `mediator` listens for.

As in `phrases`, a quantity is `Q` and text is in plain form.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from emodistill.negotiation.clauses import Sentence, plain, split_sentences, unnumbered
from emodistill.negotiation.offers import PHRASES
from emodistill.negotiation.patterns import load_patterns
from emodistill.negotiation.quantities import scan

_PATTERNS = load_patterns("closing")


class Answer(NamedTuple):
    """What an utterance does besides making an offer."""

    accepts: bool
    has_condition: bool
    ends: bool


@functools.lru_cache(maxsize=4096)
def read_answer(text: str, domain: str) -> Answer:
    """Whether the utterance accepts what it answers, sets a condition, or ends the talks."""
    sentences = split_sentences(unnumbered(scan(plain(text), domain).text))
    has_condition = any(
        _PATTERNS.condition.search(_PATTERNS.condition_met.sub(" ", s.text)) for s in sentences
    )
    is_yes = any(map(_says_yes, sentences)) or (len(sentences) == 1 and _is_bare_yes(sentences[0]))
    is_taken_back = any(
        _PATTERNS.takes_back.search(clause) for s in sentences for clause in s.clauses
    )
    is_irony = PHRASES.irony.search(" , ".join(s.text for s in sentences))
    accepts = is_yes and not (has_condition or is_taken_back or is_irony)
    return Answer(accepts, has_condition, any(map(_ends, sentences)))


def _says_yes(sentence: Sentence) -> bool:
    """Whether a clause says yes outright, and nothing in it denies that."""
    return not sentence.is_question and any(
        _PATTERNS.yes.search(clause) and not _PATTERNS.denies.search(clause)
        for clause in sentence.clauses
    )


def _is_bare_yes(sentence: Sentence) -> bool:
    """ "Yes.", "Fine, but I think it unfair": a yes that is the whole answer."""
    first, *rest = sentence.clauses or ("",)  # "—" is a sentence without clauses
    is_alone = all(
        re.match(r"but\b|though\b|why not$", c) or _PATTERNS.bare_yes.match(c) for c in rest
    )
    return bool(_PATTERNS.bare_yes.match(first)) and is_alone and not sentence.is_question


def _ends(sentence: Sentence) -> bool:
    """Whether the sentence ends the talks now; conditions, alternatives and wishes don't."""
    whole = " ".join(sentence.clauses)
    if sentence.is_question or _PATTERNS.threat.search(_PATTERNS.safe_words.sub(" ", whole)):
        return False
    # A comma may cut an ending in two, so that only the whole sentence holds it.
    endings = list(filter(_PATTERNS.ends.search, sentence.clauses)) or list(
        filter(_PATTERNS.ends.search, [whole])
    )
    return any(
        not _PATTERNS.no_ending.search(_PATTERNS.safe_words.sub(" ", ending)) for ending in endings
    )
