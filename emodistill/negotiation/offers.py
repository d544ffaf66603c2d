"""Reading the value that an utterance proposes: the measuring instrument of everything else.

Three steps, each plain to inspect with `explain`:

1. mentions: every quantity of the domain's unit, with ranges and alternatives joined into one
   mention without a value (`quantities.scan`, `_join`);
2. roles: what each mention does in its clause, by the first rule of `_role` that fits. A mention is
   written `Q` and its neighbours `q` in the clause, and the rules are `phrases` around `Q`;
3. choice: the last of the speaker's own proposals; a plain statement counts only where nothing is
   put forward outright. What can't be read is None, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple

from emodistill.negotiation.clauses import Sentence, plain, split_sentences, unnumbered
from emodistill.negotiation.patterns import load_patterns
from emodistill.negotiation.quantities import Mention, Scanned, scan

PHRASES = load_patterns("phrases")

MentionRole = Literal["proposed", "stated", "rejected", "quoted", "background"]
"""What a quantity does in its clause.

proposed: put forward outright, as an offer, a demand, a limit, a yes to a value; stated: the
speaker's own, told rather than put forward ("the team is 75 away"); quoted: the other side's;
background: facts, steps, conditions, consequences.
"""
OWN: tuple[MentionRole, ...] = ("proposed", "stated")

_REACH, _NEAR = 400, 12


class Reading(NamedTuple):
    """A mention's value and role, for `explain`."""

    value: float | None
    role: MentionRole
    clause: str


def read_offer(text: str, domain: str) -> float | None:
    """The value that the speaker proposes, in the domain's unit, or None.

    Days for `crad` and `hospital`, minutes for `disaster`, hours past 9 PM for `student` ("10:45
    PM" is 1.75). A month is 30 days, a fortnight 14. None where nothing is proposed, or nothing
    definite: a range, several equal alternatives, a step ("ten more days"), a calendar date. None
    also for a text of more than 64 quantities, which is no utterance.

    Raises:
      InputError: unknown domain.
    """
    own = [reading for reading in explain(text, domain) if reading.role in OWN]
    values = [r.value for r in own if r.role == "proposed"] or [r.value for r in own]
    is_choice = len(set(values)) > 1 and _offers_choice(plain(text))
    return values[-1] if values and not is_choice else None


def _offers_choice(text: str) -> bool:
    """Whether the text gives a choice of values, or bounds on both sides: nothing definite."""
    bounds = PHRASES.at_most.search(text) and PHRASES.at_least.search(text)
    limits = PHRASES.no_more_than.search(text) and PHRASES.no_less_than.search(text)
    return bool(bounds or limits or PHRASES.choice.search(text))


def explain(text: str, domain: str) -> list[Reading]:
    """Every quantity of the text with the role that it was given, in order.

    A role is decided by what stands near: _REACH characters and _NEAR clauses to both sides. So
    long texts take time in proportion, and in shorter clauses and sentences nothing is cut off.
    None are given of a text that holds too many.
    """
    scanned = scan(plain(text), domain)
    if not scanned.is_whole:
        return []
    scanned = _join(scanned)
    sentences = split_sentences(scanned.text)
    readings: list[Reading] = []
    steps: set[float | None] = set()
    for sentence, following in zip_longest(sentences, sentences[1:]):
        for position, clause in enumerate(sentence.clauses):
            in_clause = []
            for index in re.findall(r"Q(\d+)", clause):
                mention = scanned.mentions[int(index)]
                here = _context(clause, index, position, sentence, following)
                role = _role(mention, here)
                if domain == "student" and _tells_the_time(here):
                    role = "background"
                elif role in OWN and (
                    (sentence is sentences[0] and position == 0 and _is_asked_back(here))
                    or (mention.value not in steps and _is_echo(mention, here, readings))
                ):
                    role = "quoted"
                if mention.is_relative:
                    steps.add(mention.value)
                in_clause.append(Reading(mention.value, role, here.clause))
            readings += _without_choice(in_clause, clause)
    return readings


def _without_choice(readings: list[Reading], clause: str) -> list[Reading]:
    """ "In 40 minutes by road or through the garage in 55": alternatives are nothing definite."""
    own = {reading.value for reading in readings if reading.role in OWN}
    if len(own) > 1 and re.search(r"Q\d+[^Q]{1,60}\bor\b[^Q]{1,60}Q", clause):
        return [r._replace(value=None) if r.role in OWN else r for r in readings]
    return readings


# Ranges and alternatives -------------------------------------------------------------------------


def _join(scanned: Scanned) -> Scanned:
    """Join "30 to 40 days" and "40 or 45" into one mention without a value."""
    text, mentions = scanned.text, list(scanned.mentions)
    out: list[str] = []
    position = 0
    while match := PHRASES.range_gap.search(text, position):
        first, gap, second = int(match[1]), match[2].strip(" ,"), int(match[3])
        before = text[max(0, match.start() - _REACH) : match.start()]
        a, b = mentions[first], mentions[second]
        is_range = gap.startswith("or") or gap == "through"
        if gap == "to":
            is_range = not PHRASES.moved_from.search(re.split(r"[.!?;,]", before)[-1])
        elif gap == "and":
            is_range = a.is_bare or bool(re.search(r"\bbetween (?:\w+ )?$", before))
        # The second one may be the first of another range.
        next_position = match.end() - len(f"Q{second}")
        if is_range:
            value = a.value if a.value == b.value else None
            mentions[second] = Mention(value, is_relative=b.is_relative)
            out.append(text[position : match.start()])
        else:
            out.append(text[position:next_position])
        position = next_position
    return Scanned("".join([*out, text[position:]]), tuple(mentions))


# Roles -----------------------------------------------------------------------------------------


class _Context(NamedTuple):
    """Where a mention stands: its clause, with the mention as `Q` and others as `q`, and the rest.

    `position` is the clause's in `sentence`; `following` is the next sentence, if there is one.
    """

    clause: str
    position: int
    sentence: Sentence
    following: Sentence | None

    @property
    def after(self) -> str:
        """The sentence's next clause, or nothing."""
        return "".join(self.sentence.clauses[self.position + 1 : self.position + 2])


def _context(
    clause: str, index: str, position: int, sentence: Sentence, following: Sentence | None
) -> _Context:
    """The neighbourhood of mention `index` in the clause at `position`, cut to what counts."""
    at = re.search(rf"Q{index}\b", clause)
    start, end = at.span() if at else (0, 0)
    near = clause[max(0, start - _REACH) : end + _REACH]
    focus = re.sub(r"Q(\d+)", lambda mention: "Q" if mention[1] == index else "q", near)
    first = max(0, position - _NEAR)
    around = _cut(sentence.clauses[first : position + _NEAR])
    if following:
        following = following._replace(clauses=_cut(following.clauses[:_NEAR]))
    return _Context(focus, position - first, sentence._replace(clauses=around), following)


def _cut(clauses: Sequence[str]) -> tuple[str, ...]:
    return tuple(clause[: 2 * _REACH] for clause in clauses)


def _role(mention: Mention, here: _Context) -> MentionRole:
    """The role of a mention in its clause; the first rule that fits decides."""
    clause, sentence = here.clause, here.sentence
    calm = PHRASES.harmless_negation.sub(" ", clause)
    is_denied = bool(PHRASES.denied.search(calm))
    is_turned_down = bool(PHRASES.rejected_after.search(clause))

    if mention.is_relative and not PHRASES.absolute_step.search(clause):
        return "background"
    if PHRASES.gadget.search(clause):
        return "background"
    if PHRASES.irony.search(sentence.text) or _is_hearsay(here):
        return "quoted"
    if PHRASES.conditional.match(clause):
        return _role_in_condition(here)
    if sentence.is_question and PHRASES.asked_past.search(clause):
        return "rejected"
    if PHRASES.asked_to.search(clause) or PHRASES.nothing_but.search(clause):
        return "proposed"
    if is_denied or is_turned_down:
        if PHRASES.limit.search(clause):
            return "proposed"
    elif PHRASES.accepted.search(clause):
        return "quoted" if PHRASES.unbelieved.search(clause) else "proposed"
    if PHRASES.contrast.search(calm):
        return "rejected"
    if PHRASES.quoted.search(clause):
        return "quoted"
    if PHRASES.unbelieved.search(calm):
        return "rejected"
    if PHRASES.defended.search(clause):
        return "stated" if is_denied else "proposed"
    if is_denied:
        return "proposed" if re.search(r"\bwithout\b.*\bQ\b", clause) else "rejected"
    if PHRASES.background.search(clause):
        return "background"
    if PHRASES.past_it.search(clause):
        return "proposed"
    if is_turned_down:
        return "rejected"
    if PHRASES.consequence.search(clause):
        return "background"
    if _is_dismissed(here):
        return "rejected"
    if PHRASES.earlier.search(clause):
        return "stated"
    if PHRASES.happened.search(clause):
        return "background"
    is_fragment = not re.search(r"[a-z]{2,}.*[a-z]{2,}.*[a-z]{2,}", clause.replace("q", ""))
    return "proposed" if is_fragment or PHRASES.put_forward.search(clause) else "stated"


def _role_in_condition(here: _Context) -> MentionRole:
    """A value under "if": an offer, or the way to something bad.

    "If you can do 40 days, we have a deal" offers 40; "unless you pay within 30 days, we go to
    court" demands 30; "if I wait 90 days, I go bankrupt" turns 90 down.
    """
    clause, position, clauses = here.clause, here.position, here.sentence.clauses
    if position and re.fullmatch(r"(?:and |but |so )?what", clauses[position - 1]):
        return "proposed"
    rest = " , ".join(clauses[:position] + clauses[position + 1 :])
    if PHRASES.held_if.search(clause) or PHRASES.quoted.search(PHRASES.supposed.sub("", clause)):
        return "proposed" if PHRASES.granted.search(rest) else "quoted"
    is_harmful = PHRASES.harm.search(f"{rest} {clause.partition('Q')[2]}")
    if not is_harmful or PHRASES.demanded_if.search(clause):
        return "proposed"
    return "rejected"


def _is_hearsay(here: _Context) -> bool:
    """ "I was told 10 days at the ER, 30 at the clinic, and now it is 70"."""
    earlier = [unnumbered(clause) for clause in here.sentence.clauses[: here.position]]
    if PHRASES.now_another.search(here.clause) and any(map(PHRASES.quoted.search, earlier)):
        return True
    is_own = re.search(r"\b(?:i|we|my|our|me|us|but)\b", here.clause)
    return not is_own and any(map(PHRASES.told.search, earlier))


def _is_dismissed(here: _Context) -> bool:
    """Turned down by what comes next: "90 days, that is an insult", "90 days? No."."""
    clause, after, following = here.clause, here.after, here.following
    is_question = here.sentence.is_question
    if PHRASES.elsewhere.match(after) and PHRASES.bad.search(after):
        return not PHRASES.put_forward.search(clause)
    if is_question and (asked := PHRASES.then_asked.match(clause)):
        return not PHRASES.asked_for.search(asked[1])
    if not PHRASES.echo.match(clause):
        return False
    if PHRASES.dismay.search(after) or (following and PHRASES.irony.search(following.text)):
        return True
    if is_question and PHRASES.asked_about.match(after):
        return not PHRASES.asked_for.search(after)
    if after or following is None:
        return False
    if not is_question:
        return bool(PHRASES.dismay.match(following.text) or PHRASES.verdict.match(following.text))
    is_remark = re.match(r"(?:that|this|it) (?:is|would be|sounds)\b", following.text)
    return bool(
        PHRASES.dismissed.search(following.text)
        or (is_remark and not PHRASES.welcomed.search(following.text))
    )


def _tells_the_time(here: _Context) -> bool:
    """ "It's 11 PM and I'm still on page 4": the time now, not a bedtime."""
    is_now = here.clause.endswith("now") or re.match(r"and (?:i|you|we|my)\b", here.after)
    return bool(is_now and PHRASES.time_now.match(here.clause))


def _is_asked_back(here: _Context) -> bool:
    """ "Ninety days? I almost laughed.": the first words of an answer, and not taken up."""
    sentence, following = here.sentence, here.following
    if not sentence.is_question or following is None or len(sentence.clauses) > 1:
        return False
    return bool(PHRASES.echo.match(here.clause)) and not PHRASES.taken_up.search(following.text)


def _is_echo(mention: Mention, here: _Context, before: list[Reading]) -> bool:
    """ "I have waited six hours. Six!": a value alone that was no proposal when it came up."""
    value = mention.value
    same = {None if value is None else unit * value for unit in (1, 7, 30, 60)}
    roles = {reading.role for reading in before if reading.value in same}
    return bool(roles) and roles.isdisjoint(OWN) and bool(PHRASES.echo.match(here.clause))
