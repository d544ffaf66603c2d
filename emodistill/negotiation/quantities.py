"""Quantity mentions in plain text: which spans are values of a domain's unit, and which are not.

`scan` walks through the text once. At each word that may start a quantity the first matching reader
claims its span: money, percentages, ages, dates and rates are claimed too, so that their digits are
never read as offers. A mention without a single definite value ("30 to 40 days", "ten business
days") has the value None: it is an offer that can't be read, not one that isn't there.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from emodistill.domains import get_domain
from emodistill.domains.registry import Domain
from emodistill.negotiation.patterns import load_patterns

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


# A unit of durations, and the shortest and longest durations that can be values of it, in minutes:
# hours are no payment terms, and days no rescue; nobody offers more than three years.
_SCALES = {"days": (DAY, DAY, 3 * YEAR), "minutes": (1.0, 0.0, DAY)}
CLOCK_RANGE_H = (-5.0, 9.0)  # a bedtime, in hours past 9 PM: from 4 PM up to, but not at, 6 AM


class Mention(NamedTuple):
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


_TO_NINETEEN, _TENS = map(
    str.split,
    (
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen",
        "twenty thirty forty fifty sixty seventy eighty ninety",
    ),
)
_VALUES = {
    **{word: value for value, word in enumerate(_TO_NINETEEN, start=1)},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
    **{"a": 1, "an": 1, "dozen": 12, "and": 0},
}
_PATTERNS = load_patterns(
    "quantities",
    one=_TO_NINETEEN[:9],
    teen=_TO_NINETEEN[9:],
    ten=_TENS,
    hour=_TO_NINETEEN[:12],
    unit=_UNIT_MINUTES,
)


def number(words: str) -> float:
    """The value of a number in digits or in words (under a thousand)."""
    words = words.strip()
    if words[0].isdigit() or words[0] == "½":
        digits = re.sub(r"\s*(?:½|1/2)$", "", words)
        return float(digits.replace(",", "") or 0) + (0.5 if digits != words else 0.0)
    total = 0.0
    for word in re.split(r"[ -]", words):
        total = max(total, 1) * 100 if word == "hundred" else total + _VALUES[word]
    return 12.0 if "dozen" in words else total


# Durations -------------------------------------------------------------------------------------

_FRACTIONS = {"half": 0.5, "quarter": 0.25, "three": 0.75}


class _Duration(NamedTuple):
    minutes: float  # NaN where it is vague: "30-odd", "ten business days"
    unit: float
    is_relative: bool
    end: int


def _duration(match: re.Match[str]) -> _Duration:
    unit, kind = _UNIT_MINUTES[match["unit"]], match["kind"]
    fractions = filter(None, match.group("fraction", "part", "after"))
    count = sum(_FRACTIONS[words.removeprefix("a ").split()[0]] for words in fractions)
    if amount := match["amount"] or match["stepped"] or (match["step"] and "one"):
        count += number(amount)
    is_vague = match["fuzzy"] or kind in ("business", "working")
    is_step = match["step"] or match["more"] or kind in ("more", "extra", "additional", "further")
    minutes = math.nan if is_vague else count * unit
    return _Duration(minutes, unit, bool(is_step), match.end())


def _read_duration(text: str, start: int) -> _Duration | None:
    """A duration at `start`, with smaller units added ("an hour and 20 minutes")."""
    match = _PATTERNS.duration.match(text, start)
    if match is None:
        return None
    total = _duration(match)
    while plus := _PATTERNS.plus.match(text, total.end):
        match = _PATTERNS.duration.match(text, plus.end())
        if match is None or match["step"]:
            break
        part = _duration(match)
        if part.unit >= total.unit or part.is_relative:
            break
        total = part._replace(minutes=total.minutes + part.minutes, is_relative=total.is_relative)
    left_out = _PATTERNS.minutes_left_out.match(text, total.end)
    if left_out and total.unit == HOUR and total.minutes > 0:
        minutes = total.minutes + number(left_out[1])
        total = total._replace(minutes=minutes, end=left_out.end())
    return total


def _read_span(text: str, start: int, domain: Domain) -> _Hit | None:
    """A duration, or the number of a day: a value where the domain counts in durations."""
    if match := _PATTERNS.day_number.match(text, start):
        is_value = domain.unit == "days"
        return _Hit(Mention(float(match["amount"])) if is_value else "span", match.end())
    if (duration := _read_duration(text, start)) is None:
        return None
    minutes, unit, is_relative, end = duration
    if domain.unit not in _SCALES:
        return _from_clock(text, duration, domain) or _Hit("span", end)
    unit_min, shortest_min, longest_min = _SCALES[domain.unit]
    what: Mention | str = "span"
    if shortest_min <= minutes <= longest_min:
        what = Mention(round(minutes / unit_min, 6), is_relative=is_relative)
    elif math.isnan(minutes) and unit <= longest_min:
        what = Mention(None)
    return _Hit(what, end)


def _from_clock(text: str, duration: _Duration, domain: Domain) -> _Hit | None:
    """ "An hour past midnight", "1.75 hours past 9 PM": a duration counted from a clock time."""
    side = _PATTERNS.away_from.match(text, duration.end)
    if side is None or math.isnan(duration.minutes):
        return None
    hit = _read_clock(text, side.end(), domain) or _read_bare(text, side.end(), domain)
    if hit is None or not isinstance(hit.what, Mention) or hit.what.value is None:
        return None
    hours = duration.minutes / HOUR * (-1 if side[1] == "before" else 1)
    return _Hit(Mention(hit.what.value + hours), hit.end)


# Clock times -----------------------------------------------------------------------------------


def _clock_hours(match: re.Match[str]) -> float | None:
    """Hours past 9 PM of a matched clock time; None where it can't be a bedtime."""
    said = match.groupdict()
    word, spoken, half_day = said["hour"], said.get("spoken"), said.get("half_day")
    hour = 24 if word == "midnight" else _VALUES.get(word) or int(word)
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
    if match := _PATTERNS.not_a_bedtime.match(text, start):
        hit = _Hit("daytime", match.end())
    elif match := next(filter(None, (time.match(text, start) for time in _PATTERNS.clock)), None):
        value = _clock_hours(match)
        hit = _Hit("daytime" if value is None else Mention(value), match.end())
    else:
        return None
    if is_value:
        return hit
    return None if _PATTERNS.unit_ahead.match(text, hit.end) else _Hit("clock", hit.end)


# What is not an offer --------------------------------------------------------------------------


def _read_other(text: str, start: int, domain: Domain) -> _Hit | None:
    """A date, sum, percentage, age, rate or ratio: its kind is written in its stead."""
    match = _PATTERNS.other.match(text, start)
    if match is None or match.lastgroup is None:
        return None
    is_amount = match.lastgroup in ("money", "percent")
    tail = _PATTERNS.rate_tail.match(text, match.end()) if is_amount else None
    return _Hit(match.lastgroup, (tail or match).end())


# Numbers without a unit --------------------------------------------------------------------------


def _read_bare(text: str, start: int, domain: Domain) -> _Hit | None:
    """A number alone: a value in the domain's unit, or the hour of a bedtime."""
    is_clock = domain.clock_origin_h is not None
    match, before = _PATTERNS.bare.match(text, start), text[:start]
    if (
        match is None
        or not _PATTERNS.after_bare.match(text, match.end())
        or _PATTERNS.counted_before.search(before)
    ):
        return None
    words = match[0]
    if not words[0].isdigit():
        allowed = _PATTERNS.before_one if words == "one" else _PATTERNS.before_word
        if not allowed.search(before) or (words == "one" and not is_clock):
            return None
    value: float | None = number(words)
    if is_clock:
        if value not in range(1, 13) or _PATTERNS.span_follows.match(text, match.end()):
            return None
        value = _past_nine(value, 0.0, None)
    return _Hit(Mention(value, is_bare=True), match.end())


# The walk through a text -------------------------------------------------------------------------


def scan(text: str, domain: str) -> Scanned:
    """Find the quantity mentions of `text` (plain form, see clauses.plain) for `domain`.

    Raises:
      InputError: the domain is none of the four.
    """
    spec = get_domain(domain)
    timed = [_read_span, _read_clock]
    if spec.clock_origin_h is not None:  # bedtimes: "ten to eleven" is a time before all else
        timed.reverse()
    readers = (_read_other, *timed, _read_bare)
    text = _PATTERNS.list_number.sub("\n", text)
    out: list[str] = []
    mentions: list[Mention] = []
    position = 0
    while start := _PATTERNS.starts.search(text, position):
        out.append(text[position : start.start()])
        position = start.start()
        hit = next(filter(None, (read(text, position, spec) for read in readers)), None)
        if hit is None:
            hit = _Hit(text[position], position + 1)
        elif rest := _PATTERNS.digits.match(text, hit.end):  # "10:455 pm" is no time
            hit = _Hit("number", rest.end())
        what, position = hit
        if isinstance(what, Mention):
            mentions.append(what)
            what = f"Q{len(mentions) - 1}"
        out.append(what)
    return Scanned("".join([*out, text[position:]]), tuple(mentions))
