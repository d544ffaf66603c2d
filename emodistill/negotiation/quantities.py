"""Quantity mentions in plain text: which spans are values of a domain's unit, and which are not.

`scan` walks through the text once. At each word that may start a quantity the first matching reader
claims its span: money, percentages, ages, dates and rates are claimed too, so that their digits are
never read as offers. A mention without a single definite value ("30 to 40 days", "ten business
days") has the value None: it is an offer that can't be read, not one that isn't there.

No number is read by a part of it. Where the digits and words that belong together go on before or
behind what a reader has matched ("3 x 10 days", "1.200 days", "minus 5 days"), the whole is a
mention without a value.
"""

from __future__ import annotations

import math
import re
import unicodedata
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
        "week weeks wk wks w": 7 * DAY,
        "fortnight fortnights": 14 * DAY,
        "month months": 30 * DAY,
        "year years yr yrs": YEAR,
    }.items()
    for name in names.split()
}


# A unit of durations, and the shortest and longest durations that can be values of it, in minutes:
# hours are no payment terms, and days no rescue; nobody offers more than three years.
_SCALES = {"days": (DAY, DAY, 3 * YEAR), "minutes": (1.0, 0.0, DAY)}
MAX_MENTIONS, MAX_STARTS = 64, 1_000
"""Quantities, and words that may start one, in a text: utterances hold six and some forty. What
holds more is none, and reading it to its end would take seconds."""
_WINDOW = 60  # characters before a quantity that decide what it is; longer than any phrase there
CLOCK_RANGE_H = (-5.0, 9.0)  # a bedtime, in hours past 9 PM: from 4 PM up to, but not at, 6 AM


class Mention(NamedTuple):
    """One quantity: its value in the domain's unit (None: none that is definite)."""

    value: float | None
    is_bare: bool = False  # a number without a unit: "meet me at 45"
    is_relative: bool = False  # a step from another value: "ten more days"


class Scanned(NamedTuple):
    """Text in which mention k is written `Qk`, and the mentions; whether all of it was scanned."""

    text: str
    mentions: tuple[Mention, ...]
    is_whole: bool = True


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
    **{"a": 1, "an": 1, "and": 0, "zero": 0, "oh": 0},
}
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8}
_PATTERNS = load_patterns(
    "quantities",
    one=_TO_NINETEEN[:9],
    teen=_TO_NINETEEN[9:],
    ten=_TENS,
    hour=_TO_NINETEEN[:12],
    unit=_UNIT_MINUTES,
    part=_PARTS,
)


def number(words: str) -> float:
    """The value of a number in digits or in words (under a thousand); NaN where it has two.

    "1.200" is a thousand and two hundred to some and little more than one to others.
    """
    words = words.strip()
    if match := _PATTERNS.numeral.fullmatch(words):
        return _in_digits(match["whole"]) + (_fraction(match["part"]) if match["part"] else 0.0)
    if words.endswith("dozen"):
        times = words.removesuffix("dozen").strip(" -")
        return 12 * (_fraction(times) if times.startswith("half") else number(times or "one"))
    before, point, behind = words.partition(" point ")
    if point:
        return number(before) + float(
            f"0.{''.join(str(_VALUES.get(d, d)) for d in behind.split())}"
        )
    total = 0.0
    for word in re.split(r"[ -]", words):
        if word == "hundred":
            total = max(total, 1) * 100
            continue
        value = float(word) if word.isdigit() else _VALUES[word]
        if value >= 10 and total % 100:  # "one twenty"
            return math.nan
        total += value
    return total


def _in_digits(digits: str) -> float:
    if re.fullmatch(r"[1-9]\d*\.\d{3}", digits):
        return math.nan
    is_grouped = re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", digits)
    return float(digits.replace(",", "" if is_grouped else ".") or 0)


def _fraction(words: str) -> float:
    """The value of "¾", "3/4 of an", "three quarters", "half an"."""
    for part in re.split(r"[ -]", words):
        if not part.isascii():
            return unicodedata.numeric(part)
        if "/" in part:
            above, below = part.split("/")
            return int(above) / int(below)
    first, *_ = counted = [word.removesuffix("s") for word in re.split(r"[ -]", words)]
    (below,) = (_PARTS[word] for word in counted if word in _PARTS)
    return (1 if first in (*_PARTS, "an") else number(first)) / below


# Durations -------------------------------------------------------------------------------------


class _Duration(NamedTuple):
    minutes: float  # NaN where it is vague: "30-odd", "ten business days"
    unit: float
    is_relative: bool
    end: int


def _duration(match: re.Match[str]) -> _Duration:
    unit, kind = _UNIT_MINUTES[match["unit"]], match["kind"]
    count = sum(map(_fraction, filter(None, match.group("fraction", "part", "after"))))
    if amount := match["amount"] or match["stepped"] or (match["step"] and "one"):
        count += number(amount)
    is_vague = match["fuzzy"] or kind in ("business", "working")
    is_step = match["step"] or match["more"] or kind in ("more", "extra", "additional", "further")
    minutes = math.nan if is_vague else count * unit
    return _Duration(minutes, unit, bool(is_step), match.end())


def _read_duration(text: str, start: int) -> _Duration | None:
    """A duration at `start`, with smaller units added ("an hour and 20 minutes")."""
    if match := _PATTERNS.hours_and_minutes.match(text, start):
        minutes = 60.0 * int(match["hours"]) + int(match["minutes"])
        return _Duration(minutes, HOUR, is_relative=False, end=match.end())
    short = _read_short_parts(text, start)
    match = _PATTERNS.duration.match(text, start)
    if match is None:
        return short
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
    return short if short and short.end > total.end else total


def _read_short_parts(text: str, start: int) -> _Duration | None:
    """ "1h 30m", "2d12h", "1h30": parts of ever smaller units, two at least."""
    minutes, unit, end, num_parts = 0.0, math.inf, start, 0
    while match := _PATTERNS.short_part.match(text, end if end == start else _next(text, end)):
        smaller = _UNIT_MINUTES.get(match["unit"], 1.0 if unit == HOUR else math.inf)
        if smaller >= unit:
            break
        minutes, unit, end = minutes + number(match["count"]) * smaller, smaller, match.end()
        num_parts += 1
    if unit == HOUR and (rest := _PATTERNS.minutes_at_end.match(text, end)):
        minutes, end, num_parts = minutes + int(rest[0]), rest.end(), num_parts + 1
    is_whole = num_parts > 1 and _PATTERNS.end.match(text, end)
    return _Duration(minutes, unit, is_relative=False, end=end) if is_whole else None


def _next(text: str, end: int) -> int:
    """Where the part after one that ends at `end` would begin."""
    between = _PATTERNS.between_short_parts.match(text, end)
    return between.end() if between else end


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
    if side is None:
        return None
    hit = _read_clock(text, side.end(), domain) or _read_bare(text, side.end(), domain)
    if hit is None or not isinstance(hit.what, Mention) or hit.what.value is None:
        return None
    hours = duration.minutes / HOUR * (-1 if side[1] == "before" else 1)
    return _Hit(Mention(None if math.isnan(hours) else hit.what.value + hours), hit.end)


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
    if _PATTERNS.unit_ahead.match(text, hit.end):
        return None
    return hit if is_value else _Hit("clock", hit.end)


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
    match = _PATTERNS.bare.match(text, start)
    window = max(0, start - _WINDOW), start
    if (
        match is None
        or not _PATTERNS.after_bare.match(text, match.end())
        or _PATTERNS.counted_before.search(text, *window)
    ):
        return None
    words = match[0]
    if not words[0].isdigit():
        allowed = _PATTERNS.before_one if words == "one" else _PATTERNS.before_word
        if not allowed.search(text, *window) or (words == "one" and not is_clock):
            return None
    value: float | None = number(words)
    if is_clock:
        if value not in range(1, 13) or _PATTERNS.span_follows.match(text, match.end()):
            return None
        value = _past_nine(value, 0.0, None)
    return _Hit(Mention(value, is_bare=True), match.end())


# Numbers that are not covered -------------------------------------------------------------------


def _whole(text: str, start: int, hit: _Hit | None, domain: Domain) -> _Hit | None:
    """The hit at `start`, if it covers its number to both sides; else what can be said of all."""
    mention = hit.what if hit and isinstance(hit.what, Mention) else None
    run = (_PATTERNS.spaced if mention or hit is None else _PATTERNS.glued).match(text, start)
    if run and run.end() > (hit.end if hit else start):
        return _unread(text, start, run.end(), is_offer=mention is not None, domain=domain)
    if hit is None or mention is None:
        return hit
    window = max(0, start - _WINDOW), start
    if _PATTERNS.goes_on.match(text, hit.end) or _PATTERNS.tail_of.search(text, *window):
        mention = mention._replace(value=None)
    return hit._replace(what=mention)


def _unread(text: str, start: int, end: int, *, is_offer: bool, domain: Domain) -> _Hit:
    """Digits from `start` to `end` that can't be read: an offer all the same, with a unit of it.

    Without one, they are an offer where a part of them would have been (`is_offer`).
    """
    is_clock = domain.clock_origin_h is not None
    if is_clock and (half_day := _PATTERNS.half_day_of_unread.match(text, end)):
        return _Hit(Mention(None), half_day.end())
    if unit := _PATTERNS.unit_of_unread.match(text, end):
        end = unit.end()
        is_offer = False
        if domain.unit in _SCALES:
            is_offer = _UNIT_MINUTES[unit["unit"]] <= _SCALES[domain.unit][2]
        elif side := _PATTERNS.away_from.match(text, end):
            from_time = _read_clock(text, side.end(), domain) or _read_bare(
                text, side.end(), domain
            )
            is_offer, end = True, from_time.end if from_time else end
    return _Hit(Mention(None) if is_offer else text[start:end], end)


# The walk through a text -------------------------------------------------------------------------


def scan(text: str, domain: str) -> Scanned:
    """Find the quantity mentions of `text` (plain form, see clauses.plain) for `domain`.

    The walk ends where there are too many (MAX_MENTIONS, MAX_STARTS); what follows stays as it is.

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
    num_starts = 0
    while start := _PATTERNS.starts.search(text, position):
        num_starts += 1
        if len(mentions) == MAX_MENTIONS or num_starts > MAX_STARTS:
            break
        out.append(text[position : start.start()])
        position = start.start()
        hit = next(filter(None, (read(text, position, spec) for read in readers)), None)
        hit = _whole(text, position, hit, spec) or _Hit(text[position], position + 1)
        what, position = hit
        if isinstance(what, Mention):
            mentions.append(what)
            what = f"Q{len(mentions) - 1}"
        out.append(what)
    return Scanned("".join([*out, text[position:]]), tuple(mentions), is_whole=start is None)
