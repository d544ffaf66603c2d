"""Quantity mentions in plain text: which spans are values of a domain's unit, and which are not.

`scan` walks through the text once. At each place the first matching reader takes its span: money,
percentages, ages, dates and rates are taken too, so that their digits are never read as offers. A
mention without a single definite value ("30 to 40 days", "ten business days") has the value None:
it is an offer that can't be read, not one that isn't there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from emodistill.errors import InputError

MINUTE, HOUR, DAY, WEEK, MONTH, YEAR = 1.0, 60.0, 1440.0, 10080.0, 43200.0, 525600.0
_UNIT_MINUTES: dict[str, float] = {
    **dict.fromkeys(("minute", "minutes", "min", "mins"), MINUTE),
    **dict.fromkeys(("hour", "hours", "hr", "hrs", "h"), HOUR),
    **dict.fromkeys(("day", "days", "d"), DAY),
    **dict.fromkeys(("week", "weeks", "wk", "wks"), WEEK),
    **dict.fromkeys(("fortnight", "fortnights"), 2 * WEEK),
    **dict.fromkeys(("month", "months"), MONTH),
    **dict.fromkeys(("year", "years", "yr", "yrs"), YEAR),
}


class Scale(NamedTuple):
    """How a domain counts: minutes per unit (None: clock time), and the durations it takes."""

    unit_minutes: float | None
    shortest_min: float = 0.0
    longest_min: float = float("inf")


SCALES: Mapping[str, Scale] = {
    "crad": Scale(DAY, shortest_min=DAY, longest_min=3 * YEAR),
    "hospital": Scale(DAY, shortest_min=DAY, longest_min=3 * YEAR),
    "disaster": Scale(MINUTE, longest_min=DAY),
    "student": Scale(None),
}
CLOCK_ZERO_H = 21.0  # the student's scale counts hours past 9 PM,
CLOCK_RANGE_H = (-5.0, 9.0)  # and a bedtime lies from 4 PM up to, but not at, 6 AM.


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """One quantity: its value in the domain's unit (None: none that is definite)."""

    value: float | None
    is_bare: bool = False  # a number without a unit: "meet me at 45"
    is_relative: bool = False  # a step from another value: "ten more days"


class Scanned(NamedTuple):
    """Text in which mention k is written `Qk`, and the mentions."""

    text: str
    mentions: tuple[Mention, ...]


# Numbers ---------------------------------------------------------------------------------------

_ONES = {
    word: value
    for value, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine"), start=1
    )
}
_TEENS = {"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15}
_TEENS |= {"sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19}
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50}
_TENS |= {"sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_SMALL = {**_ONES, **_TEENS, **_TENS, "a": 1, "an": 1, "dozen": 12}
_ONE = f"(?:{'|'.join(_ONES)})"
_UNDER_100 = f"(?:(?:{'|'.join(_TENS)})(?:[ -]{_ONE})?|{'|'.join(_TEENS)}|{'|'.join(_ONES)})"
_WORDS = f"(?:(?:a |{_ONE} )?hundred(?: and)?(?: {_UNDER_100})?|(?:a )?dozen|{_UNDER_100})"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?: ?½| 1/2)?|½"
_NUMBER = rf"(?:{_DIGITS}|{_WORDS})"
_END = r"(?![\w%$€£°])(?!\.\d)"


def number(words: str) -> float:
    """The value of a number in digits or in words (under a thousand)."""
    words = words.strip()
    if words[0].isdigit() or words[0] == "½":
        half = 0.5 if words.endswith(("½", "1/2")) else 0.0
        digits = re.sub(r"\s*(?:½|1/2)$", "", words).replace(",", "")
        return float(digits or 0) + half
    total = 0.0
    for word in re.split(r"[ -]", words):
        if word == "hundred":
            total = max(total, 1) * 100
        elif word == "dozen":
            total = 12
        elif word != "and":
            total += _SMALL[word]
    return total


# Durations -------------------------------------------------------------------------------------

_UNIT = f"(?:{'|'.join(sorted(_UNIT_MINUTES, key=len, reverse=True))})"
_KIND = (
    r"(?P<kind>more|extra|additional|further|other|business|working|calendar|full|whole|short|"
    r"solid|"
    r"straight|consecutive|long|little|precious|measly|painful|single)"
)
_AND_PART = r"(?: and (?P<part>a half|a quarter|three quarters|half))"
_PARTS = {"a half": 0.5, "half": 0.5, "a quarter": 0.25, "three quarters": 0.75}
_DURATION_UNIT = re.compile(
    r"(?:(?P<fraction>half an?|half of an?|a half|(?:a )?quarter of an?|three quarters of an?)"
    rf"|(?P<step>another|an extra|an additional|one more)(?: (?P<stepped>{_NUMBER}))?"
    rf"|(?P<amount>{_NUMBER}|an?))(?P<fuzzy>-?odd|-something|\+|ish)?{_AND_PART}?"
    rf"(?:[ -]|(?<=\d))(?:{_KIND} )*(?P<unit>{_UNIT}){_END}"
    r"(?P<after> and a half| and a quarter)?(?P<more> more\b)?"
)
_DAY_NUMBER = re.compile(rf"\bday (?P<amount>\d{{1,3}}){_END}")
_MINUTES_LEFT_OUT = re.compile(  # "an hour and fifteen"
    r"(?: and)? (ten|fifteen|twenty|thirty|forty|fifty|twenty[ -]five|thirty[ -]five|forty[ -]five|"
    r"fifty[ -]five|[1-5]\d)(?=\s*(?:[.,;!?—]|$))"
)
_PLUS = re.compile(r"(?:,? and |,? )")


class _Duration(NamedTuple):
    minutes: float | None
    unit: float
    is_relative: bool


def _duration_part(match: re.Match[str]) -> _Duration:
    unit = _UNIT_MINUTES[match["unit"]]
    if match["fraction"]:
        words = match["fraction"].removeprefix("a ")
        count = {"h": 0.5, "q": 0.25, "t": 0.75}[words[0]]
    elif match["step"]:
        count = number(match["stepped"]) if match["stepped"] else 1.0
    else:
        count = number(match["amount"])
    count += _PARTS.get(match["part"] or "", 0.0)
    count += _PARTS.get((match["after"] or "").removeprefix(" and "), 0.0)
    kind = match["kind"]
    is_definite = kind not in ("business", "working") and not match["fuzzy"]
    is_relative = bool(match["step"] or match["more"]) or kind in (
        "more",
        "extra",
        "additional",
        "further",
    )
    return _Duration(count * unit if is_definite else None, unit, is_relative)


def _read_duration(text: str, start: int) -> tuple[_Duration, int] | None:
    """A duration at `start`, with smaller units added ("an hour and 20 minutes"), and its end."""
    match = _DURATION_UNIT.match(text, start)
    if match is None:
        return None
    total, end = _duration_part(match), match.end()
    while plus := _PLUS.match(text, end):
        match = _DURATION_UNIT.match(text, plus.end())
        if match is None or match["step"]:
            break
        part = _duration_part(match)
        if part.unit >= total.unit or part.is_relative:
            break
        both = (total.minutes, part.minutes)
        minutes = None if None in both else sum(value for value in both if value is not None)
        total, end = _Duration(minutes, part.unit, total.is_relative), match.end()
    if total.unit == HOUR and total.minutes and (match := _MINUTES_LEFT_OUT.match(text, end)):
        total, end = total._replace(minutes=total.minutes + number(match[1])), match.end()
    return total, end


# Clock times -----------------------------------------------------------------------------------

_HOURS = {**_ONES, "ten": 10, "eleven": 11, "twelve": 12}
_HOUR_WORD = f"(?:{'|'.join(_HOURS)})"
_HALF_DAY = (
    r"(?:\s?(?P<half_day>am|pm)\b|(?: o'? ?clock)?"
    r"(?P<spoken> in the morning| at night| in the evening| tonight)?)"
)
_CLOCK = [
    re.compile(pattern)
    for pattern in (
        rf"(?P<hour>\d{{1,2}}):(?P<minute>\d{{2}}){_HALF_DAY}",
        r"(?P<hour>\d{1,2})[.:h](?P<minute>\d{2})\s?(?P<half_day>am|pm)\b",
        rf"(?:a )?(?P<past>half|quarter|five|ten|twenty[ -]five|twenty)(?: minutes?)? "
        rf"(?P<side>past|after|to|before|of|till) (?P<hour>midnight|{_HOUR_WORD}|"
        rf"\d{{1,2}}){_HALF_DAY}{_END}",
        rf"(?P<past>\d{{1,2}})(?: minutes?)? (?P<side>past|after) "
        rf"(?P<hour>midnight|{_HOUR_WORD}|\d{{1,2}}){_HALF_DAY}{_END}",
        rf"half (?P<late>{_HOUR_WORD})\b{_HALF_DAY}",
        rf"(?P<hour>{_HOUR_WORD})[ -](?P<spelled>thirty|fifteen|forty[ -]five|twenty|ten|forty|"
        rf"fifty)\b"
        rf"{_HALF_DAY}",
        rf"(?P<hour>{_HOUR_WORD}|\d{{1,2}})(?P<ish>-?ish)?\s?(?P<half_day>am|pm)\b",
        r"(?:twelve )?(?P<hour>midnight)(?: tonight)?\b",
        rf"(?P<hour>{_HOUR_WORD}|\d{{1,2}}) o'? ?clock{_HALF_DAY}",
        rf"(?P<hour>{_HOUR_WORD}|\d{{1,2}})(?P<spoken> in the morning| at night| in the evening)\b",
    )
]
_AWAY_FROM_CLOCK = re.compile(r" (past|after|before) ")
_UNIT_AHEAD = re.compile(rf"[ -]?{_UNIT}{_END}")
_NOT_A_BEDTIME = re.compile(r"\b(?:noon|midday|24/7)\b")
_PAST = {"half": 30, "quarter": 15, "five": 5, "ten": 10, "twenty": 20}


def _clock_hours(match: re.Match[str]) -> float | None:
    """Hours past 9 PM of a matched clock time; None where it can't be a bedtime."""
    groups = match.groupdict()
    if groups.get("late"):
        hour, minutes = _HOURS[groups["late"]], 30.0
    else:
        word = groups["hour"]
        hour = 24 if word == "midnight" else _HOURS.get(word) or int(word)
        minutes = float(groups.get("minute") or 0)
        if groups.get("spelled"):
            minutes = number(groups["spelled"])
        if past := groups.get("past"):
            away = _PAST.get(past) or number(past)
            minutes = -away if groups["side"] in ("to", "before", "of", "till") else away
    half_day = groups.get("half_day")
    if groups.get("spoken"):
        late = groups["spoken"].strip() != "in the morning" and hour != 12
        half_day = "pm" if late and 5 <= hour < 12 else "am"
    return _past_nine(hour, minutes, half_day)


def _past_nine(hour: float, minutes: float, half_day: str | None) -> float | None:
    """Hours past 9 PM. Without AM or PM, 1 to 5 are after midnight and 6 to 12 before or at it."""
    if hour > 24 or abs(minutes) >= 60:
        return None
    if half_day and hour > 12:
        half_day = None
    if half_day is None and hour <= 12:
        half_day = "am" if hour < 6 or hour == 12 else "pm"
    if half_day == "pm":
        hour = hour % 12 + 12
    elif half_day == "am":
        hour = hour % 12
    value = hour + minutes / 60 - CLOCK_ZERO_H
    if value < CLOCK_RANGE_H[0]:
        value += 24
    return value if CLOCK_RANGE_H[0] <= value < CLOCK_RANGE_H[1] else None


# What is not an offer --------------------------------------------------------------------------

_MONTHS = (
    r"(?:january|february|march|april|june|july|august|september|october|november|december|"
    r"jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)"
)
# In "four calls a day" a plural counts; in "this is a day" none does.
_NO_PLURALS = ("is", "this", "was", "has", "us", "as", "yes", "plus", "less", "unless", "means")
_NO_PLURALS += ("takes", "needs", "gives", "lasts", "always", "perhaps", "sometimes")
_NOT_A_NOUN = "".join(rf"(?<!\b{word} )" for word in _NO_PLURALS)
_OTHER: list[tuple[str, re.Pattern[str]]] = [
    (word, re.compile(pattern))
    for word, pattern in (
        ("someday", r"\d{4}-\d{2}-\d{2}|\d{1,2}/\d{1,2}(?:/\d{2,4})?(?![\w/])"),
        ("someday", rf"(?:the )?\d{{1,2}}(?:st|nd|rd|th)?(?: of)? {_MONTHS}\b(?:,? \d{{4}})?"),
        ("someday", rf"{_MONTHS}\.? (?:the )?\d{{1,2}}(?:st|nd|rd|th)?\b(?:,? \d{{4}})?"),
        ("someday", r"may \d{1,2}(?:st|nd|rd|th)\b"),
        ("ordinal", r"\d+(?:st|nd|rd|th)\b"),
        (
            "money",
            r"(?:[$€£]|(?:usd|eur|gbp) )\s?\d[\d,.]*\d?(?: ?(?:k|m|thousand|million|grand))?\b",
        ),
        (
            "money",
            rf"{_NUMBER}(?: ?(?:k|thousand|million|hundred thousand|grand))?"
            r"[ -](?:us )?(?:dollars?|usd|euros?|pounds?|bucks|cents)\b",
        ),
        ("money", rf"{_NUMBER} ?(?:k|thousand|million|grand)\b"),
        ("percent", rf"{_NUMBER} ?(?:%|percent\b|per cent\b)"),
        ("aged", rf"{_NUMBER}[ -](?:years?|months?|weeks?|days?)[ -]old\b"),
        ("aged", rf"(?:aged|age of|age|turned|turning) {_NUMBER}{_END}"),
        ("rate", rf"(?:per|each|every) (?:{_NUMBER} )?(?:other )?{_UNIT}\b"),
        ("rate", rf"{_NUMBER} (?:times|hours?|pages|nights|visits|shifts) (?:a|an|per) {_UNIT}\b"),
        ("rate", rf"(?:once|twice) an? {_UNIT}\b"),
        ("rate", rf"(?<=[a-z]s ){_NOT_A_NOUN}an? {_UNIT}\b"),
        ("ratio", r"\d{2,3} over \d{2,3}\b"),
        ("ratio", rf"{_NUMBER} out of {_NUMBER}"),
        ("ratio", r"\d+/\d+(?![\w/])"),
        ("number", rf"a scale (?:from|of) {_NUMBER} to {_NUMBER}"),
        ("number", r"\d{5,}(?:\.\d+)?\b"),
    )
]
_RATE_TAIL = re.compile(rf" (?:a|an) {_UNIT}\b")
_COUNTED_BEFORE = re.compile(
    r"(?:\b(?:i am|you are|he is|she is|who is|(?:daughter|son|child|boy|girl|baby|kid|wife|"
    r"husband|mother|father|sister|brother) is|team|squad|crew|engine|ladder|bed|block|gate|"
    r"platform|stage|apartment|suite|lane|exit|station|pier|ward|number|room|floor|step|level|"
    r"grade|option|case|phase|chapter|"
    r"page|unit|ward|line|section|article|tier|score|plan|sector|zone|highway|route|channel|top|"
    r"building|tunnel|shaft|version|year|what am i|those|these|both|all|other|exam|unit),? |"
    r"\bscore: |[#:/.$-])$"
)
_FOLLOWS_A_BARE_NUMBER = re.compile(
    r"\s*(?:$|[.,;:!?—]|to (?:\d|{tens})|(?:is|are|was|were|would|will|it|that|then|if|and|or|but|"
    r"because|so|not|instead|at|for|to|from|with|works?|sounds|seems|max|maximum|tops|minimum|"
    r"flat|be|"
    r"final|please|now|today|tonight|sharp|latest|on|in|by|as|which|since|while|though|rather|"
    r"versus|"
    r"vs|than|no|you|i|we|may|might|should|must|has|does|do|suits?|fits?|total|too|here|straight|"
    r"down|up|maybe|perhaps|honestly|either)\b)".replace("{tens}", "|".join(_TENS))
)
_BARE = re.compile(
    rf"(?:\d{{1,3}}(?:\.5)?|{_UNDER_100}|"
    rf"(?:a )?hundred(?: and)?(?: {_UNDER_100})?)(?![\w%$€£°/'-]|,\d{{3}}|\.\d)"
)
_BEFORE_A_BARE_WORD = re.compile(
    r"\b(?:roughly|approximately|maybe|perhaps|another|at|by|till|until|to|past|before|after|about|around|for|than|not|it|say|do|accept|of|"
    r"and|offer|propose|on|deal|agreed|your|my|between|from|say|with|in|within|want|need|or|is|yes)"
    r"(?: exactly| only| just)? $"
)
_SPAN_FOLLOWS = re.compile(rf" (?:and|to|or) {_NUMBER} {_UNIT}\b")
_IN_A_NUMBER = re.compile(r"\d,$")
_BEFORE_ONE = re.compile(r"\b(?:at|by|till|until|past|before|after|around|about) $")
_MORE_DIGITS = re.compile(r"\d+")
_LIST_NUMBER = re.compile(r"(?:^|\n)\s*\d{1,2}[.)]\s")


_STARTS = re.compile(
    rf"(?<![\w'])(?:[\d$€£½]|(?:{'|'.join([*_ONES, *_TEENS, *_TENS])}|{_MONTHS}|an?|the|another|"
    r"half|quarter|hundred|dozen|day|midnight|noon|midday|per|each|every|once|twice|aged?|turned|"
    r"turning|usd|eur|gbp|may)\b)"
)


def scan(text: str, domain: str) -> Scanned:
    """Find the quantity mentions of `text` (plain form, see clauses.plain) for `domain`.

    Raises:
      InputError: the domain is none of the four.
    """
    if domain not in SCALES:
        raise InputError(f"domain={domain!r} is not known; use one of {', '.join(SCALES)}.")
    readers: list[Callable[[str, int], tuple[Mention | str, int] | None]]
    readers = [_read_other, *([_read_clock] if domain == "student" else []), _span_reader(domain)]
    readers += [_clock_skipper] if domain != "student" else []
    readers += [_bare_reader(domain)]
    text = _LIST_NUMBER.sub("\n", text)
    out: list[str] = []
    mentions: list[Mention] = []
    position = 0
    while start := _STARTS.search(text, position):
        out.append(text[position : start.start()])
        position = start.start()
        found = next((hit for read in readers if (hit := read(text, position))), None)
        if found is None:
            out.append(text[position])
            position += 1
            continue
        what, position = found
        if (rest := _MORE_DIGITS.match(text, position)) is not None:  # "10:455 pm" is no time
            what, position = "number", rest.end()
        if isinstance(what, Mention):
            out.append(f"Q{len(mentions)}")
            mentions.append(what)
        else:
            out.append(what)
    out.append(text[position:])
    return Scanned("".join(out), tuple(mentions))


def _read_other(text: str, start: int) -> tuple[str, int] | None:
    for word, pattern in _OTHER:
        if match := pattern.match(text, start):
            end = match.end()
            if tail := _RATE_TAIL.match(text, end) if word in ("money", "percent") else None:
                end = tail.end()
            return word, end
    return None


def _span_reader(domain: str) -> Callable[[str, int], tuple[Mention | str, int] | None]:
    scale = SCALES[domain]

    def read(text: str, start: int) -> tuple[Mention | str, int] | None:
        if match := _DAY_NUMBER.match(text, start):
            if scale.unit_minutes == DAY:
                return Mention(value=float(match["amount"])), match.end()
            return "span", match.end()
        hit = _read_duration(text, start)
        if hit is None:
            return None
        duration, end = hit
        if scale.unit_minutes is None:
            return _from_clock(text, duration, end) or ("span", end)
        if duration.minutes is None:
            fits = duration.unit <= scale.longest_min
            return (Mention(value=None), end) if fits else ("span", end)
        if not scale.shortest_min <= duration.minutes <= scale.longest_min:
            return "span", end
        value = round(duration.minutes / scale.unit_minutes, 6)
        return Mention(value=value, is_relative=duration.is_relative), end

    return read


def _from_clock(text: str, duration: _Duration, end: int) -> tuple[Mention, int] | None:
    """ "An hour past midnight", "1.75 hours past 9 PM": a duration counted from a clock time."""
    side = _AWAY_FROM_CLOCK.match(text, end)
    if side is None or duration.minutes is None:
        return None
    hit = _read_clock(text, side.end()) or _bare_reader("student")(text, side.end())
    if hit is None or not isinstance(hit[0], Mention) or hit[0].value is None:
        return None
    hours = duration.minutes / HOUR * (-1 if side[1] == "before" else 1)
    return Mention(value=hit[0].value + hours), hit[1]


def _read_clock(text: str, start: int) -> tuple[Mention | str, int] | None:
    if match := _NOT_A_BEDTIME.match(text, start):
        return "daytime", match.end()
    for pattern in _CLOCK:
        if match := pattern.match(text, start):
            value = _clock_hours(match)
            return ("daytime" if value is None else Mention(value=value)), match.end()
    return None


def _clock_skipper(text: str, start: int) -> tuple[str, int] | None:
    """A clock time where the domain counts durations: no offer, and its digits are none either."""
    found = _read_clock(text, start)
    if found is None or _UNIT_AHEAD.match(text, found[1]):
        return None
    return "clock", found[1]


def _bare_reader(domain: str) -> Callable[[str, int], tuple[Mention | str, int] | None]:
    is_clock = SCALES[domain].unit_minutes is None

    def read(text: str, start: int) -> tuple[Mention | str, int] | None:
        match = _BARE.match(text, start)
        if match is None or not _FOLLOWS_A_BARE_NUMBER.match(text, match.end()):
            return None
        before = text[:start]
        if is_clock and _SPAN_FOLLOWS.match(text, match.end()):
            return None
        if (
            _COUNTED_BEFORE.search(before)
            or (start and before[-1] in "-/.$#")
            or _IN_A_NUMBER.search(before)
        ):
            return None
        words = match[0]
        if not words[0].isdigit():
            allowed = _BEFORE_ONE if words == "one" else _BEFORE_A_BARE_WORD
            if (words == "one" and not is_clock) or not (
                allowed.search(before) or not before.strip() or before.rstrip()[-1:] in ",.;:!?—"
            ):
                return None
        value = number(words)
        if not is_clock:
            return Mention(value=value, is_bare=True), match.end()
        if value != int(value) or not 1 <= value <= 12:
            return None
        hours = _past_nine(value, 0.0, None)
        return None if hours is None else (Mention(value=hours, is_bare=True), match.end())

    return read
