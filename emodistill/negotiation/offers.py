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
from enum import Enum
from itertools import zip_longest
from typing import NamedTuple

from emodistill.negotiation import phrases
from emodistill.negotiation.clauses import Sentence, plain, split_sentences, unnumbered
from emodistill.negotiation.quantities import Mention, Scanned, scan


class Role(Enum):
    """What a quantity does in its clause."""

    PROPOSED = "proposed"  # put forward outright: an offer, a demand, a limit, a yes to a value
    STATED = "stated"  # the speaker's own, told rather than put forward: "the team is 75 away"
    REJECTED = "rejected"
    QUOTED = "quoted"  # the other side's
    BACKGROUND = "background"  # facts, steps, conditions, consequences


class Reading(NamedTuple):
    """A mention's value and role, for `explain`."""

    value: float | None
    role: Role
    clause: str


def read_offer(text: str, domain: str) -> float | None:
    """The value that the speaker proposes, in the domain's unit, or None.

    Days for `crad` and `hospital`, minutes for `disaster`, hours past 9 PM for `student` ("10:45
    PM" is 1.75). A month is 30 days, a fortnight 14. None where nothing is proposed, or nothing
    definite: a range, several equal alternatives, a step ("ten more days"), a calendar date.

    Raises:
      InputError: unknown domain.
    """
    own = [reading for reading in explain(text, domain) if reading.role in OWN]
    values = [r.value for r in own if r.role is Role.PROPOSED] or [r.value for r in own]
    is_choice = len(set(values)) > 1 and phrases.CHOICE.search(plain(text))
    return values[-1] if values and not is_choice else None


OWN = (Role.PROPOSED, Role.STATED)


def explain(text: str, domain: str) -> list[Reading]:
    """Every quantity of the text with the role that it was given, in order."""
    scanned = _join(scan(plain(text), domain))
    sentences = split_sentences(scanned.text)
    readings: list[Reading] = []
    steps: set[float | None] = set()
    for sentence, following in zip_longest(sentences, sentences[1:]):
        for position, clause in enumerate(sentence.clauses):
            in_clause = []
            for index in re.findall(r"Q(\d+)", clause):
                mention = scanned.mentions[int(index)]
                here = _Context(_focus(clause, index), position, sentence, following)
                role = _role(mention, here)
                if domain == "student" and _tells_the_time(here):
                    role = Role.BACKGROUND
                elif role in OWN and (
                    (sentence is sentences[0] and position == 0 and _is_asked_back(here))
                    or (mention.value not in steps and _is_echo(mention, here, readings))
                ):
                    role = Role.QUOTED
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

_ABOUT = r"(?:about |around |maybe |roughly |even |at |by |in |within |say )?"
_RANGE_GAP = re.compile(rf"\bQ(\d+)(,? (?:to|through|or|and|or maybe|or perhaps)) {_ABOUT}Q(\d+)\b")


def _join(scanned: Scanned) -> Scanned:
    """Join "30 to 40 days" and "40 or 45" into one mention without a value."""
    text, mentions = scanned.text, list(scanned.mentions)
    start = 0
    while match := _RANGE_GAP.search(text, start):
        first, gap, second = int(match[1]), match[2].strip(" ,"), int(match[3])
        before = text[: match.start()]
        a, b = mentions[first], mentions[second]
        is_range = gap.startswith("or") or gap == "through"
        if gap == "to":
            is_range = not phrases.MOVED_FROM.search(re.split(r"[.!?;,]", before)[-1])
        elif gap == "and":
            is_range = a.is_bare or bool(re.search(r"\bbetween (?:\w+ )?$", before))
        start = match.start()
        if is_range:
            value = a.value if a.value == b.value else None
            mentions[second] = Mention(value=value, is_relative=b.is_relative)
            text = f"{before}Q{second}{text[match.end() :]}"
        else:
            start += 1
    return Scanned(text, tuple(mentions))


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


def _focus(clause: str, index: str) -> str:
    """The clause with mention `index` as `Q`, any other as `q`."""
    return re.sub(r"Q(\d+)", lambda mention: "Q" if mention[1] == index else "q", clause)


def _role(mention: Mention, here: _Context) -> Role:
    """The role of a mention in its clause; the first rule that fits decides."""
    clause, sentence = here.clause, here.sentence
    calm = phrases.HARMLESS_NEGATION.sub(" ", clause)
    is_denied = bool(phrases.DENIED.search(calm))
    is_turned_down = bool(phrases.REJECTED_AFTER.search(clause))

    if mention.is_relative and not phrases.ABSOLUTE_STEP.search(clause):
        return Role.BACKGROUND
    if phrases.GADGET.search(clause):
        return Role.BACKGROUND
    if phrases.IRONY.search(sentence.text) or _is_hearsay(here):
        return Role.QUOTED
    if phrases.IF.match(clause):
        return _role_in_condition(here)
    if sentence.is_question and phrases.ASKED_PAST.search(clause):
        return Role.REJECTED
    if phrases.ASKED_TO.search(clause) or phrases.NOTHING_BUT.search(clause):
        return Role.PROPOSED
    if is_denied or is_turned_down:
        if phrases.LIMIT.search(clause):
            return Role.PROPOSED
    elif phrases.ACCEPTED.search(clause):
        return Role.QUOTED if phrases.UNBELIEVED.search(clause) else Role.PROPOSED
    if phrases.CONTRAST.search(calm):
        return Role.REJECTED
    if phrases.QUOTED.search(clause):
        return Role.QUOTED
    if phrases.UNBELIEVED.search(calm):
        return Role.REJECTED
    if phrases.DEFENDED.search(clause):
        return Role.STATED if is_denied else Role.PROPOSED
    if is_denied:
        return Role.PROPOSED if re.search(r"\bwithout\b.*\bQ\b", clause) else Role.REJECTED
    if phrases.BACKGROUND.search(clause):
        return Role.BACKGROUND
    if phrases.PAST_IT.search(clause):
        return Role.PROPOSED
    if is_turned_down:
        return Role.REJECTED
    if phrases.CONSEQUENCE.search(clause):
        return Role.BACKGROUND
    if _is_dismissed(here):
        return Role.REJECTED
    if phrases.EARLIER.search(clause):
        return Role.STATED
    if phrases.HAPPENED.search(clause):
        return Role.BACKGROUND
    is_fragment = not re.search(r"[a-z]{2,}.*[a-z]{2,}.*[a-z]{2,}", clause.replace("q", ""))
    return Role.PROPOSED if is_fragment or phrases.PUT_FORWARD.search(clause) else Role.STATED


def _role_in_condition(here: _Context) -> Role:
    """A value under "if": an offer, or the way to something bad.

    "If you can do 40 days, we have a deal" offers 40; "unless you pay within 30 days, we go to
    court" demands 30; "if I wait 90 days, I go bankrupt" turns 90 down.
    """
    clause, position, clauses = here.clause, here.position, here.sentence.clauses
    if position and re.fullmatch(r"(?:and |but |so )?what", clauses[position - 1]):
        return Role.PROPOSED
    rest = " , ".join(clauses[:position] + clauses[position + 1 :])
    if phrases.HELD_IF.search(clause) or phrases.QUOTED.search(phrases.SUPPOSED.sub("", clause)):
        return Role.PROPOSED if phrases.GRANTED.search(rest) else Role.QUOTED
    is_harmful = phrases.HARM.search(f"{rest} {clause.partition('Q')[2]}")
    if not is_harmful or phrases.DEMANDED_IF.search(clause):
        return Role.PROPOSED
    return Role.REJECTED


def _is_hearsay(here: _Context) -> bool:
    """ "I was told 10 days at the ER, 30 at the clinic, and now it is 70"."""
    earlier = [unnumbered(clause) for clause in here.sentence.clauses[: here.position]]
    if phrases.NOW_ANOTHER.search(here.clause) and any(map(phrases.QUOTED.search, earlier)):
        return True
    is_own = re.search(r"\b(?:i|we|my|our|me|us|but)\b", here.clause)
    return not is_own and any(map(phrases.TOLD.search, earlier))


def _is_dismissed(here: _Context) -> bool:
    """Turned down by what comes next: "90 days, that is an insult", "90 days? No."."""
    clause, after, following = here.clause, here.after, here.following
    is_question = here.sentence.is_question
    if phrases.ELSEWHERE.match(after) and phrases.BAD.search(after):
        return not phrases.PUT_FORWARD.search(clause)
    if is_question and (asked := phrases.THEN_ASKED.match(clause)):
        return not phrases.ASKED_FOR.search(asked[1])
    if not phrases.ECHO.match(clause):
        return False
    if phrases.DISMAY.search(after) or (following and phrases.IRONY.search(following.text)):
        return True
    if is_question and phrases.ASKED_ABOUT.match(after):
        return not phrases.ASKED_FOR.search(after)
    if after or following is None:
        return False
    if not is_question:
        return bool(phrases.DISMAY.match(following.text) or phrases.VERDICT.match(following.text))
    is_remark = re.match(r"(?:that|this|it) (?:is|would be|sounds)\b", following.text)
    return bool(
        phrases.DISMISSED.search(following.text)
        or (is_remark and not phrases.WELCOMED.search(following.text))
    )


def _tells_the_time(here: _Context) -> bool:
    """ "It's 11 PM and I'm still on page 4": the time now, not a bedtime."""
    is_now = here.clause.endswith("now") or re.match(r"and (?:i|you|we|my)\b", here.after)
    return bool(is_now and phrases.TIME_NOW.match(here.clause))


def _is_asked_back(here: _Context) -> bool:
    """ "Ninety days? I almost laughed.": the first words of an answer, and not taken up."""
    sentence, following = here.sentence, here.following
    if not sentence.is_question or following is None or len(sentence.clauses) > 1:
        return False
    return bool(phrases.ECHO.match(here.clause)) and not phrases.TAKEN_UP.search(following.text)


def _is_echo(mention: Mention, here: _Context, before: list[Reading]) -> bool:
    """ "I have waited six hours. Six!": a value alone that was no proposal when it came up."""
    value = mention.value
    same = {None if value is None else unit * value for unit in (1, 7, 30, 60)}
    roles = {reading.role for reading in before if reading.value in same}
    return bool(roles) and roles.isdisjoint(OWN) and bool(phrases.ECHO.match(here.clause))
