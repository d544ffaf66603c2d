"""Reading the value that an utterance proposes: the measuring instrument of everything else.

Three steps, each plain to inspect with `explain`:

1. mentions: every quantity of the domain's unit, with ranges and alternatives joined into one
   mention without a value (`quantities.scan`, `_join`);
2. roles: what each mention does in its clause, by the first rule of `_role` that fits. A mention is
   written `Q` and its neighbours `q` in the clause, and the rules are phrases around `Q`;
3. choice: the last of the speaker's own proposals; a plain statement counts only where nothing is
   put forward outright. What can't be read is None, never a guess.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from emodistill.negotiation import phrases
from emodistill.negotiation.clauses import Sentence, plain, split_sentences
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
    own = [r for r in explain(text, domain) if r.role in OWN]
    pool = [r for r in own if r.role is Role.PROPOSED] or own
    if not pool:
        return None
    if len({r.value for r in pool}) > 1 and (
        _A_CHOICE.search(plain(text)) or _TWO_BOUNDS.search(plain(text))
    ):
        return None
    return pool[-1].value


def explain(text: str, domain: str) -> list[Reading]:
    """Every quantity of the text with the role that it was given, in order."""
    scanned = _join(scan(plain(text), domain))
    sentences = split_sentences(scanned.text)
    readings: list[Reading] = []
    steps: set[float | None] = set()
    for s, sentence in enumerate(sentences):
        following = sentences[s + 1] if s + 1 < len(sentences) else None
        for c, clause in enumerate(sentence.clauses):
            found = []
            for index in re.findall(r"Q(\d+)", clause):
                mention = scanned.mentions[int(index)]
                role = _role(mention, int(index), sentence, c, following)
                if role in OWN and s == c == 0 and _is_asked_back(clause, sentence, following):
                    role = Role.QUOTED
                focus = _focus(clause, int(index))
                if domain == "student" and _tells_the_time(sentence.clauses, c):
                    role = Role.BACKGROUND
                elif (
                    role in OWN
                    and mention.value not in steps
                    and _is_echo(mention.value, focus, readings)
                ):
                    role = Role.QUOTED
                if mention.is_relative:
                    steps.add(mention.value)
                found.append(Reading(mention.value, role, focus))
            readings += _without_choice(found, clause)
    return readings


OWN = (Role.PROPOSED, Role.STATED)


def _is_echo(value: float | None, clause: str, before: list[Reading]) -> bool:
    """ "I have waited six hours. Six!": a value alone that was no proposal when it came up."""
    same = {None if value is None else unit * value for unit in (1, 7, 30, 60)}
    roles = {reading.role for reading in before if reading.value in same}
    return bool(roles) and roles.isdisjoint(OWN) and bool(phrases.ECHO.match(clause))


def _is_asked_back(clause: str, sentence: Sentence, following: Sentence | None) -> bool:
    """ "Ninety days? I almost laughed.": the first words of an answer, and not taken up."""
    if not sentence.is_question or following is None or len(sentence.clauses) > 1:
        return False
    is_alone = phrases.ECHO.match(re.sub(r"Q\d+", "Q", clause))
    return bool(is_alone) and not phrases.TAKEN_UP.search(following.text)


def _without_choice(found: list[Reading], clause: str) -> list[Reading]:
    """ "In 40 minutes by road or through the garage in 55": alternatives are nothing definite."""
    own = {reading.value for reading in found if reading.role in OWN}
    if len(own) > 1 and re.search(r"Q\d+[^Q]{1,60}\bor\b[^Q]{1,60}Q", clause):
        return [r._replace(value=None) if r.role in OWN else r for r in found]
    return found


# Ranges and alternatives -------------------------------------------------------------------------

_ABOUT = r"(?:about |around |maybe |roughly |even |at |by |in |within |say )?"
_RANGE_GAP = re.compile(rf"\bQ(\d+)(,? (?:to|through|or|and|or maybe|or perhaps)) {_ABOUT}Q(\d+)\b")
_MOVED_FROM = re.compile(
    rf"\b{phrases.MOVE}(?: \w+){{0,4}}? from (?:\w+ )?$|\b{phrases.CHANGE}(?: (?:it|that|this|the|"
    rf"your|my|our))* $"
)
_A_CHOICE = re.compile(
    r"\b(?:option (?:a|b|one|two|1|2)|either(?! of (?:us|you)| side)|your (?:choice|pick)|"
    r"take your pick|whichever|"
    r"up to you|choose between|you choose)\b"
)


_TWO_BOUNDS = re.compile(
    r"\bno (?:more|longer|later) than\b.*\bno (?:fewer|less|sooner|earlier) than\b"
    r"|\bno (?:fewer|less|sooner|earlier) than\b.*\bno (?:more|longer|later) than\b"
    r"|\bat least\b.*\bat most\b|\bat most\b.*\bat least\b"
)


def _join(scanned: Scanned) -> Scanned:
    """Join "30 to 40 days" and "40 or 45" into one mention without a value."""
    text, mentions = scanned
    kept = list(mentions)
    position = 0
    while match := _RANGE_GAP.search(text, position):
        first, gap, second = int(match[1]), match[2].strip(" ,"), int(match[3])
        before = text[: match.start()]
        a, b = kept[first], kept[second]
        is_range = gap.startswith("or") or gap == "through"
        if gap == "to":
            is_range = not _MOVED_FROM.search(re.split(r"[.!?;,]", before)[-1])
        elif gap == "and":
            is_range = a.is_bare or bool(re.search(r"\bbetween (?:\w+ )?$", before))
        if is_range:
            value = a.value if a.value == b.value else None
            kept[second] = Mention(value=value, is_relative=b.is_relative)
            text = f"{before}Q{second}{text[match.end() :]}"
            position = len(before)
        else:
            position = match.start() + 1
    return Scanned(text, tuple(kept))


# Roles -----------------------------------------------------------------------------------------


def _focus(clause: str, index: int) -> str:
    """The clause with this mention as `Q`, any other as `q`."""
    return re.sub(r"Q(\d+)", lambda m: "Q" if int(m[1]) == index else "q", clause)


def _role(
    mention: Mention, index: int, sentence: Sentence, position: int, following: Sentence | None
) -> Role:
    """The role of mention `index` in clause `position`; the first rule that fits decides."""
    clause = _focus(sentence.clauses[position], index)
    after = sentence.clauses[position + 1] if position + 1 < len(sentence.clauses) else ""
    calm = phrases.HARMLESS_NEGATION.sub(" ", clause)
    is_denied = bool(re.search(rf"{phrases.NEGATION}.*\bQ\b", calm))
    is_turned_down = bool(phrases.REJECTED_AFTER.search(clause))

    if mention.is_relative and not phrases.ABSOLUTE_STEP.search(clause):
        return Role.BACKGROUND
    if phrases.GADGET.search(clause):
        return Role.BACKGROUND
    if phrases.IRONY.search(sentence.text):
        return Role.QUOTED
    if _is_hearsay(clause, sentence, position):
        return Role.QUOTED
    if phrases.IF.match(clause):
        return _role_in_condition(clause, sentence, position)
    if sentence.is_question and phrases.ASKED_PAST.search(clause):
        return Role.REJECTED
    if phrases.ASKED_TO.search(clause) or phrases.NOTHING_BUT.search(clause):
        return Role.PROPOSED
    if (is_denied or is_turned_down) and phrases.LIMIT.search(clause):
        return Role.PROPOSED
    if phrases.ACCEPTED.search(clause) and not is_denied and not is_turned_down:
        return Role.QUOTED if phrases.UNBELIEVED.search(clause) else Role.PROPOSED
    if phrases.CONTRAST.search(calm):
        return Role.REJECTED
    if phrases.QUOTED.search(clause):
        return Role.QUOTED
    if phrases.UNBELIEVED.search(calm):
        return Role.REJECTED
    if phrases.NOT_BAD.search(clause) or phrases.CONCEDED.search(clause):
        return Role.STATED if is_denied else Role.PROPOSED
    if is_denied:
        return Role.PROPOSED if re.search(r"\bwithout\b.*\bQ\b", clause) else Role.REJECTED
    if phrases.BACKGROUND.search(clause) or phrases.BRINGS.search(clause):
        return Role.BACKGROUND
    if phrases.PAST_IT.search(clause):
        return Role.PROPOSED
    if is_turned_down:
        return Role.REJECTED
    if phrases.CONSEQUENCE.search(clause):
        return Role.BACKGROUND
    if _is_dismissed(clause, after, sentence, position, following):
        return Role.REJECTED
    if phrases.EARLIER.search(clause):
        return Role.STATED
    if phrases.HAPPENED.search(clause):
        return Role.BACKGROUND
    is_fragment = not re.search(r"[a-z]{2,}.*[a-z]{2,}.*[a-z]{2,}", clause.replace("q", ""))
    return Role.PROPOSED if is_fragment or phrases.PUT_FORWARD.search(clause) else Role.STATED


def _tells_the_time(clauses: tuple[str, ...], position: int) -> bool:
    """ "It's 11 PM and I'm still on page 4": the time now, not a bedtime."""
    clause = re.sub(r"Q\d+", "Q", clauses[position])
    after = clauses[position + 1] if position + 1 < len(clauses) else ""
    is_now = clause.endswith("now") or bool(re.match(r"and (?:i|you|we|my)\b", after))
    return is_now and bool(phrases.TIME_NOW.match(clause))


def _role_in_condition(clause: str, sentence: Sentence, position: int) -> Role:
    """A value under "if": an offer, or the way to something bad.

    "If you can do 40 days, we have a deal" offers 40; "unless you pay within 30 days, we go to
    court" demands 30; "if I wait 90 days, I go bankrupt" turns 90 down.
    """
    if position and re.fullmatch(r"(?:and |but |so )?what", sentence.clauses[position - 1]):
        return Role.PROPOSED
    rest = " , ".join(c for i, c in enumerate(sentence.clauses) if i != position)
    is_harmful = bool(re.search(rf"\b{phrases.HARM}\b", f"{rest} {clause.partition('Q')[2]}"))
    supposed = phrases.SUPPOSED.sub("", clause)
    if phrases.QUOTED.search(supposed) or phrases.HELD_IF.search(clause):
        return Role.PROPOSED if phrases.GRANTED.search(rest) else Role.QUOTED
    if not is_harmful or phrases.DENIED_IF.search(clause) or phrases.DEADLINE_IF.search(clause):
        return Role.PROPOSED
    return Role.REJECTED


def _is_hearsay(clause: str, sentence: Sentence, position: int) -> bool:
    """ "I was told 10 days at the ER, 30 at the clinic, and now it is 70"."""
    earlier = [re.sub(r"Q\d+", "Q", before) for before in sentence.clauses[:position]]
    if phrases.NOW_ANOTHER.search(clause) and any(phrases.QUOTED.search(e) for e in earlier):
        return True
    told = any(phrases.TOLD.search(before) for before in earlier)
    return told and not re.search(r"\b(?:i|we|my|our|me|us|but)\b", clause)


def _is_dismissed(
    clause: str, after: str, sentence: Sentence, position: int, following: Sentence | None
) -> bool:
    """Turned down by what comes next: "90 days, that is an insult", "90 days? No."."""
    if phrases.ELSEWHERE.match(after) and re.search(rf"\b(?:{phrases.BAD})\b", after):
        return not phrases.PUT_FORWARD.search(clause)
    if sentence.is_question and (asked := phrases.THEN_ASKED.match(clause)):
        return not phrases.ASKED_FOR.search(asked[1])
    if not phrases.ECHO.match(clause):
        return False
    if phrases.DISMAY.search(after) or (following and phrases.IRONY.search(following.text)):
        return True
    if sentence.is_question and phrases.ASKED_ABOUT.match(after):
        return not phrases.ASKED_FOR.search(after)
    if position + 1 < len(sentence.clauses) or following is None:
        return False
    if sentence.is_question:
        is_remark = bool(re.match(r"(?:that|this|it) (?:is|would be|sounds)\b", following.text))
        return bool(phrases.DISMISSED.search(following.text)) or (
            is_remark and not phrases.WELCOMED.search(following.text)
        )
    return bool(phrases.DISMAY.match(following.text)) or bool(
        re.match(rf"(?:(?:no|never)$|(?:that is )?(?:{phrases.BAD})\b)", following.text)
    )
