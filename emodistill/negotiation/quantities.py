"""Quantity mentions in plain text: which spans are values of a domain's unit, and which are not.

`scan` walks through the text once. At each word that may start a quantity the first matching reader
claims its span: money, percentages, ages, dates and rates are claimed too, so that their digits are
never read as offers. A mention without a single definite value ("30 to 40 days", "ten business
days") has the value None: it is an offer that can't be read, not one that isn't there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from emodistill.domains import get_domain
from emodistill.domains.registry import Domain
from emodistill.negotiation.patterns import pattern

HOUR, DAY, YEAR = 60.0, 1440.0, 525600.0
_UNIT_MINUTES = {
    name: minutes
    for names, minutes in {
        "minute minutes min mins": 1.0,
        "hour hours hr hrs h": HOUR,
        "day days d": DAY,
        "week weeks wk wks": 7 * DAY,
        "fortnight fortnights": 14 * DAY,
        "month months": 30 * DAY,
        "year years yr yrs": YEAR,
    }.items()
    for name in names.split()
}


class _Scale(NamedTuple):
    """A unit of durations, in minutes, and the durations that can be values of it."""

    unit_min: float
    shortest_min: float
    longest_min: float


# Hours are no payment terms, and days no rescue; nobody offers more than three years.
_SCALES = {"days": _Scale(DAY, DAY, 3 * YEAR), "minutes": _Scale(1.0, 0.0, DAY)}
CLOCK_RANGE_H = (-5.0, 9.0)  # a bedtime, in hours past 9 PM: from 4 PM up to, but not at, 6 AM


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


class _Hit(NamedTuple):
    """What a reader claims: a mention, or a word to stand for what is none; and where it ends."""

    what: Mention | str
    end: int


# Numbers ---------------------------------------------------------------------------------------


def _numbers(words: str, start: int, step: int = 1) -> dict[str, int]:
    return {word: start + step * k for k, word in enumerate(words.split())}


def _any(words: Iterable[str]) -> re.Pattern[str]:
    return re.compile(f"(?:{'|'.join(words)})")


_ONES = _numbers("one two three four five six seven eight nine", 1)
_TEENS = _numbers(
    "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen", 10
)
_TENS = _numbers("twenty thirty forty fifty sixty seventy eighty ninety", 20, 10)
_SMALL = {**_ONES, **_TEENS, **_TENS, "a": 1, "an": 1, "dozen": 12, "and": 0}
_ONE, _TEN = _any(_ONES), _any(_TENS)
_UNDER_100 = pattern(r"(?:{TEN}(?:[ -]{ONE})?|{TEEN}|{ONE})", ONE=_ONE, TEN=_TEN, TEEN=_any(_TEENS))
_NUMBER = pattern(
    r"""
    (?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?: ?½| 1/2)?|½
    |(?:(?:a |{ONE} )?hundred(?: and)?(?: {UNDER})?|(?:a )?dozen|{UNDER}))
    """,
    ONE=_ONE,
    UNDER=_UNDER_100,
)
_END = pattern(r"(?![\w%$€£°])(?!\.\d)")


def number(words: str) -> float:
    """The value of a number in digits or in words (under a thousand)."""
    words = words.strip()
    if words[0].isdigit() or words[0] == "½":
        digits = re.sub(r"\s*(?:½|1/2)$", "", words)
        return float(digits.replace(",", "") or 0) + (0.5 if digits != words else 0.0)
    total = 0.0
    for word in re.split(r"[ -]", words):
        total = max(total, 1) * 100 if word == "hundred" else total + _SMALL[word]
    return 12.0 if "dozen" in words else total


# Durations -------------------------------------------------------------------------------------

_UNIT = _any(sorted(_UNIT_MINUTES, key=len, reverse=True))
_DURATION = pattern(
    r"""
    (?:(?P<fraction>half an?|half of an?|a half|(?:a )?quarter of an?|three quarters of an?)
    |(?P<step>another|an extra|an additional|one more)(?: (?P<stepped>{NUMBER}))?
    |(?P<amount>{NUMBER}|an?))
    (?P<fuzzy>-?odd|-something|\+|ish)?
    (?: and (?P<part>a half|a quarter|three quarters|half))?
    (?:[ -]|(?<=\d))
    (?:(?P<kind>more|extra|additional|further|other|business|working|calendar|full|whole|short
    |solid|straight|consecutive|long|little|precious|measly|painful|single) )*
    (?P<unit>{UNIT}){END}
    (?: and (?P<after>a half|a quarter))?(?P<more> more\b)?
    """,
    NUMBER=_NUMBER,
    UNIT=_UNIT,
    END=_END,
)
_FRACTIONS = {"half": 0.5, "quarter": 0.25, "three": 0.75}
_DAY_NUMBER = pattern(r"\bday (?P<amount>\d{1,3}){END}", END=_END)
# "an hour and fifteen"
_MINUTES_LEFT_OUT = pattern(
    r"""
    (?: and)? (ten|fifteen|twenty|thirty|forty|fifty|twenty[ -]five|thirty[ -]five|forty[ -]five
    |fifty[ -]five|[1-5]\d)(?=\s*(?:[.,;!?—]|$))
    """
)
_PLUS = re.compile(r"(?:,? and |,? )")
_AWAY_FROM = re.compile(r" (past|after|before) ")


class _Duration(NamedTuple):
    minutes: float  # NaN where it is vague: "30-odd", "ten business days"
    unit: float
    is_relative: bool
    end: int


def _fraction(words: str | None) -> float:
    """The value of "a half" or "three quarters of an"; 0 where nothing is said."""
    return _FRACTIONS[words.removeprefix("a ").split()[0]] if words else 0.0


def _duration(match: re.Match[str]) -> _Duration:
    unit, kind = _UNIT_MINUTES[match["unit"]], match["kind"]
    count = sum(_fraction(match[group]) for group in ("fraction", "part", "after"))
    if amount := match["amount"] or match["stepped"] or (match["step"] and "one"):
        count += number(amount)
    is_vague = match["fuzzy"] or kind in ("business", "working")
    is_step = match["step"] or match["more"] or kind in ("more", "extra", "additional", "further")
    minutes = math.nan if is_vague else count * unit
    return _Duration(minutes, unit, bool(is_step), match.end())


def _read_duration(text: str, start: int) -> _Duration | None:
    """A duration at `start`, with smaller units added ("an hour and 20 minutes")."""
    match = _DURATION.match(text, start)
    if match is None:
        return None
    total = _duration(match)
    while plus := _PLUS.match(text, total.end):
        match = _DURATION.match(text, plus.end())
        if match is None or match["step"]:
            break
        part = _duration(match)
        if part.unit >= total.unit or part.is_relative:
            break
        total = part._replace(minutes=total.minutes + part.minutes, is_relative=total.is_relative)
    left_out = _MINUTES_LEFT_OUT.match(text, total.end)
    if left_out and total.unit == HOUR and total.minutes > 0:
        minutes = total.minutes + number(left_out[1])
        total = total._replace(minutes=minutes, end=left_out.end())
    return total


def _read_span(text: str, start: int, domain: Domain) -> _Hit | None:
    """A duration, or the number of a day: a value where the domain counts in durations."""
    scale = _SCALES.get(domain.unit)
    if match := _DAY_NUMBER.match(text, start):
        is_value = domain.unit == "days"
        return _Hit(Mention(value=float(match["amount"])) if is_value else "span", match.end())
    if (duration := _read_duration(text, start)) is None:
        return None
    minutes, unit, is_relative, end = duration
    if scale is None:
        return _from_clock(text, duration, domain) or _Hit("span", end)
    if math.isnan(minutes):
        return _Hit(Mention(value=None) if unit <= scale.longest_min else "span", end)
    if not scale.shortest_min <= minutes <= scale.longest_min:
        return _Hit("span", end)
    value = round(minutes / scale.unit_min, 6)
    return _Hit(Mention(value=value, is_relative=is_relative), end)


def _from_clock(text: str, duration: _Duration, domain: Domain) -> _Hit | None:
    """ "An hour past midnight", "1.75 hours past 9 PM": a duration counted from a clock time."""
    side = _AWAY_FROM.match(text, duration.end)
    if side is None or math.isnan(duration.minutes):
        return None
    hit = _read_clock(text, side.end(), domain) or _read_bare(text, side.end(), domain)
    if hit is None or not isinstance(hit.what, Mention) or hit.what.value is None:
        return None
    hours = duration.minutes / HOUR * (-1 if side[1] == "before" else 1)
    return _Hit(Mention(value=hit.what.value + hours), hit.end)


# Clock times -----------------------------------------------------------------------------------

_HOURS = _ONES | _numbers("ten eleven twelve", 10)
_HOUR = _any(_HOURS)
_HALF_DAY = pattern(
    r"""
    (?:\s?(?P<half_day>am|pm)\b
    |(?: o'? ?clock)?(?P<spoken> in the morning| at night| in the evening| tonight)?)
    """
)
# In the order in which they are tried; a number alone is none of them (`_read_bare`).
_CLOCK = [
    pattern(source, HOUR=_HOUR, HALF=_HALF_DAY, END=_END)
    for source in (
        # "10:45", "10.45 pm"
        r"(?P<hour>\d{1,2}):(?P<minute>\d{2}){HALF}",
        r"(?P<hour>\d{1,2})[.:h](?P<minute>\d{2})\s?(?P<half_day>am|pm)\b",
        # "a quarter to eleven", "20 past midnight", "half ten"
        r"""
        (?:a )?(?P<away>half|quarter|five|ten|twenty[ -]five|twenty)(?: minutes?)? (?P<side>past
        |after|to|before|of|till) (?P<hour>midnight|{HOUR}|\d{1,2}){HALF}{END}
        """,
        r"""
        (?P<away>\d{1,2})(?: minutes?)? (?P<side>past|after) (?P<hour>midnight|{HOUR}
        |\d{1,2}){HALF}{END}
        """,
        r"(?P<away>half) (?P<hour>{HOUR})\b{HALF}",
        # "ten thirty"
        r"""
        (?P<hour>{HOUR})[ -](?P<minute>thirty|fifteen|forty[ -]five|twenty|ten|forty
        |fifty)\b{HALF}
        """,
        # whole hours
        r"(?P<hour>{HOUR}|\d{1,2})(?:-?ish)?\s?(?P<half_day>am|pm)\b",
        r"(?:twelve )?(?P<hour>midnight)(?: tonight)?\b",
        r"(?P<hour>{HOUR}|\d{1,2}) o'? ?clock{HALF}",
        r"(?P<hour>{HOUR}|\d{1,2})(?P<spoken> in the morning| at night| in the evening)\b",
    )
]
_UNIT_AHEAD = pattern(r"[ -]?{UNIT}{END}", UNIT=_UNIT, END=_END)
_NOT_A_BEDTIME = re.compile(r"\b(?:noon|midday|24/7)\b")


def _clock_hours(match: re.Match[str]) -> float | None:
    """Hours past 9 PM of a matched clock time; None where it can't be a bedtime."""
    said = match.groupdict()
    word, spoken, half_day = said["hour"], said.get("spoken"), said.get("half_day")
    hour = 24 if word == "midnight" else _HOURS.get(word) or int(word)
    minutes = number(said.get("minute") or "0")
    if away := said.get("away"):
        minutes = {"half": 30, "quarter": 15}.get(away) or number(away)
        minutes *= -1 if said.get("side") in ("to", "before", "of", "till") else 1
    if spoken:
        late = spoken != " in the morning" and 5 <= hour < 12
        half_day = "pm" if late else "am"
    return _past_nine(hour, minutes, half_day)


def _past_nine(hour: float, minutes: float, half_day: str | None) -> float | None:
    """Hours past 9 PM. Without AM or PM, 1 to 5 are after midnight and 6 to 12 before or at it."""
    if hour > 24 or abs(minutes) >= 60:
        return None
    if hour <= 12:
        is_morning = half_day == "am" if half_day else hour < 6 or hour == 12
        hour = hour % 12 + (0 if is_morning else 12)
    value = hour + minutes / 60 - 21
    if value < CLOCK_RANGE_H[0]:
        value += 24
    return value if CLOCK_RANGE_H[0] <= value < CLOCK_RANGE_H[1] else None


def _read_clock(text: str, start: int, domain: Domain) -> _Hit | None:
    """A clock time; no offer, but not to be read as digits either, where durations count."""
    is_value = domain.clock_origin_h is not None
    if match := _NOT_A_BEDTIME.match(text, start):
        hit = _Hit("daytime", match.end())
    elif match := next(filter(None, (time.match(text, start) for time in _CLOCK)), None):
        value = _clock_hours(match)
        hit = _Hit("daytime" if value is None else Mention(value=value), match.end())
    else:
        return None
    if is_value:
        return hit
    return None if _UNIT_AHEAD.match(text, hit.end) else _Hit("clock", hit.end)


# What is not an offer --------------------------------------------------------------------------

_MONTHS = pattern(
    r"""
    (?:january|february|march|april|june|july|august|september|october|november|december|jan|feb
    |mar|apr|jun|jul|aug|sept?|oct|nov|dec)
    """
)
_OTHER = pattern(
    r"""
    (?P<someday>\d{4}-\d{2}-\d{2}|\d{1,2}/\d{1,2}(?:/\d{2,4})?(?![\w/])
    |(?:the )?\d{1,2}(?:st|nd|rd|th)?(?: of)? {MONTHS}\b(?:,? \d{4})?
    |{MONTHS}\.? (?:the )?\d{1,2}(?:st|nd|rd|th)?\b(?:,? \d{4})?
    |may \d{1,2}(?:st|nd|rd|th)\b)
    |(?P<ordinal>\d+(?:st|nd|rd|th)\b)
    |(?P<money>(?:[$€£]|(?:usd|eur|gbp) )\s?\d[\d,.]*\d?(?: ?(?:k|m|thousand|million|grand))?\b
    |{NUMBER}(?: ?(?:k|thousand|million|hundred thousand|grand))?
    [ -](?:us )?(?:dollars?|usd|euros?|pounds?|bucks|cents)\b
    |{NUMBER} ?(?:k|thousand|million|grand)\b)
    |(?P<percent>{NUMBER} ?(?:%|percent\b|per cent\b))
    |(?P<aged>{NUMBER}[ -](?:years?|months?|weeks?|days?)[ -]old\b
    |(?:aged|age of|age|turned|turning) {NUMBER}{END})
    # "four calls a day"; singulars that end in s make no rate: "this is a day"
    |(?P<rate>(?:per|each|every) (?:{NUMBER} )?(?:other )?{UNIT}\b
    |{NUMBER} (?:times|hours?|pages|nights|visits|shifts) (?:a|an|per) {UNIT}\b
    |(?:once|twice) an? {UNIT}\b
    |(?<=[a-z]s )(?<!\bis )(?<!\bthis )(?<!\bwas )(?<!\bhas )(?<!\bus )(?<!\bas )(?<!\byes )
    (?<!\bplus )(?<!\bless )(?<!\bunless )(?<!\bmeans )(?<!\btakes )(?<!\bneeds )(?<!\bgives )
    (?<!\blasts )(?<!\balways )(?<!\bperhaps )(?<!\bsometimes )
    an? {UNIT}\b)
    |(?P<ratio>\d{2,3} over \d{2,3}\b|{NUMBER} out of {NUMBER}|\d+/\d+(?![\w/]))
    |(?P<number>a scale (?:from|of) {NUMBER} to {NUMBER}|\d{5,}(?:\.\d+)?\b)
    """,
    MONTHS=_MONTHS,
    NUMBER=_NUMBER,
    UNIT=_UNIT,
    END=_END,
)
_RATE_TAIL = pattern(r" (?:a|an) {UNIT}\b", UNIT=_UNIT)


def _read_other(text: str, start: int, domain: Domain) -> _Hit | None:
    """A date, sum, percentage, age, rate or ratio: its kind is written in its stead."""
    match = _OTHER.match(text, start)
    if match is None or match.lastgroup is None:
        return None
    is_amount = match.lastgroup in ("money", "percent")
    tail = _RATE_TAIL.match(text, match.end()) if is_amount else None
    return _Hit(match.lastgroup, (tail or match).end())


# Numbers without a unit --------------------------------------------------------------------------

_BARE = pattern(
    r"""
    (?:\d{1,3}(?:\.5)?|{UNDER}|(?:a )?hundred(?: and)?(?: {UNDER})?)
    (?![\w%$€£°/'-]|,\d{3}|\.\d)
    """,
    UNDER=_UNDER_100,
)
# What makes a number the name or count of something else: "room 12", "I am 15", "$ 40".
_COUNTED_BEFORE = pattern(
    r"""
    (?:\b(?:i am|you are|he is|she is|who is|(?:daughter|son|child|boy|girl|baby|kid|wife|husband
    |mother|father|sister|brother) is|team|squad|crew|engine|ladder|bed|block|gate|platform|stage
    |apartment|suite|lane|exit|station|pier|ward|number|room|floor|step|level|grade|option|case
    |phase|chapter|page|unit|line|section|article|tier|score|plan|sector|zone|highway|route
    |channel|top|building|tunnel|shaft|version|year|what am i|those|these|both|all|other
    |exam),? |\bscore: |[#:/.$-]|\d,)$
    """
)
# What may follow a number that is no count: "40 works", but not "40 trucks".
_AFTER_BARE = pattern(
    r"""
    \s*(?:$|[.,;:!?—]|to (?:\d|{TEN})|(?:is|are|was|were|would|will|it|that|then|if|and|or|but
    |because|so|not|instead|at|for|to|from|with|works?|sounds|seems|max|maximum|tops|minimum|flat
    |be|final|please|now|today|tonight|sharp|latest|on|in|by|as|which|since|while|though|rather
    |versus|vs|than|no|you|i|we|may|might|should|must|has|does|do|suits?|fits?|total|too|here
    |straight|down|up|maybe|perhaps|honestly|either)\b)
    """,
    TEN=_TEN,
)
# A number in words counts at the start of a clause or after one of these; "one" is a pronoun
# almost everywhere else.
_BEFORE_WORD = pattern(
    r"""
    (?:(?:^|[,.;:!?—])\s*|\b(?:roughly|approximately|maybe|perhaps|another|at|by|till|until|to
    |past|before|after|about|around|for|than|not|it|say|do|accept|of|and|offer|propose|on|deal
    |agreed|your|my|between|from|with|in|within|want|need|or|is|yes)(?: exactly| only| just)? )$
    """
)
_BEFORE_ONE = re.compile(
    r"(?:(?:^|[,.;:!?—])\s*|\b(?:at|by|till|until|past|before|after|around|about) )$"
)
_SPAN_FOLLOWS = pattern(r" (?:and|to|or) {NUMBER} {UNIT}\b", NUMBER=_NUMBER, UNIT=_UNIT)


def _read_bare(text: str, start: int, domain: Domain) -> _Hit | None:
    """A number alone: a value in the domain's unit, or the hour of a bedtime."""
    is_clock = domain.clock_origin_h is not None
    match, before = _BARE.match(text, start), text[:start]
    if match is None or not _AFTER_BARE.match(text, match.end()) or _COUNTED_BEFORE.search(before):
        return None
    words = match[0]
    if not words[0].isdigit():
        allowed = _BEFORE_ONE if words == "one" else _BEFORE_WORD
        if not allowed.search(before) or (words == "one" and not is_clock):
            return None
    value: float | None = number(words)
    if is_clock:
        if value not in range(1, 13) or _SPAN_FOLLOWS.match(text, match.end()):
            return None
        value = _past_nine(value, 0.0, None)
    return _Hit(Mention(value=value, is_bare=True), match.end())


# The walk through a text -------------------------------------------------------------------------

_Reader = Callable[[str, int, Domain], _Hit | None]
_READERS: tuple[_Reader, ...] = (_read_other, _read_span, _read_clock, _read_bare)
# Where bedtimes are negotiated, "ten to eleven" is a time before it is anything else.
_CLOCK_READERS: tuple[_Reader, ...] = (_read_other, _read_clock, _read_span, _read_bare)
_DIGITS = re.compile(r"\d+")
_LIST_NUMBER = re.compile(r"(?:^|\n)\s*\d{1,2}[.)]\s")
_STARTS = pattern(
    r"""
    (?<![\w'])(?:[\d$€£½]|(?:{NUMBER}|{MONTHS}|an?|the|another|half|quarter|hundred|dozen|day
    |midnight|noon|midday|per|each|every|once|twice|aged?|turned|turning|usd|eur|gbp|may)\b)
    """,
    NUMBER=_any([*_ONES, *_TEENS, *_TENS]),
    MONTHS=_MONTHS,
)


def scan(text: str, domain: str) -> Scanned:
    """Find the quantity mentions of `text` (plain form, see clauses.plain) for `domain`.

    Raises:
      InputError: the domain is none of the four.
    """
    spec = get_domain(domain)
    readers = _READERS if spec.clock_origin_h is None else _CLOCK_READERS
    text = _LIST_NUMBER.sub("\n", text)
    out: list[str] = []
    mentions: list[Mention] = []
    position = 0
    while start := _STARTS.search(text, position):
        out.append(text[position : start.start()])
        position = start.start()
        hit = next(filter(None, (read(text, position, spec) for read in readers)), None)
        if hit is None:
            hit = _Hit(text[position], position + 1)
        elif rest := _DIGITS.match(text, hit.end):  # "10:455 pm" is no time
            hit = _Hit("number", rest.end())
        what, position = hit
        if isinstance(what, Mention):
            mentions.append(what)
            what = f"Q{len(mentions) - 1}"
        out.append(what)
    return Scanned("".join([*out, text[position:]]), tuple(mentions))
