"""read_offer against hand-labelled utterances, and what holds for any text."""

import contextlib
import json
import math
import re
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from emodistill.domains import DOMAINS, format_value
from emodistill.errors import InputError
from emodistill.negotiation import clauses, closing, offers, quantities, read_offer
from emodistill.negotiation.clauses import plain, split_sentences
from emodistill.negotiation.closing import read_answer
from emodistill.negotiation.offers import explain
from emodistill.negotiation.quantities import scan
from emodistill.negotiation.readers import parse_answer
from emodistill.seeding import stream
from emodistill.simulator.reading import last_figure


def labelled(name):
    path = Path(__file__).parent / "golden" / name
    return [json.loads(line) for line in path.read_text().splitlines()]


def misread(cases):
    """The cases whose reading differs from their label, with the roles that explain it."""
    return [
        (case["domain"], case["text"], case["offer"], read, explain(case["text"], case["domain"]))
        for case in cases
        if (read := read_offer(case["text"], case["domain"])) != pytest.approx(case["offer"])
    ]


def test_every_utterance_of_the_golden_set_is_read_as_labelled():
    wrong = misread(labelled("offers.jsonl"))
    assert not wrong, "\n".join(map(str, wrong))


def test_at_least_97_percent_of_what_the_reader_was_never_mended_for():
    """Written without sight of the reader, and read once. Whoever mends what this set shows takes
    it over into the golden one, and has a new one written in its place (docs/notes.md)."""
    held_back = labelled("offers_held_back.jsonl")
    wrong = misread(held_back)
    assert len(wrong) <= 0.03 * len(held_back), "\n".join(map(str, wrong))


UNITS = {
    "crad": {
        "A month.": 30,
        "A year.": 365,
        "Two weeks.": 14,
        "48 hours.": 2,
        "Two and a half weeks.": 17.5,
        "1,000 days.": 1000,
        "2 hours.": None,
    },
    "hospital": {"A fortnight.": 14},
    "disaster": {
        "1.5 hours.": 90,
        "2 ½ hours.": 150,
        "A quarter of an hour.": 15,
        "Three days.": None,
    },
    "student": {
        "1.75 hours past 9 PM.": 1.75,
        "Half an hour before midnight.": 2.5,
        "9 p.m.": 0,
        "00:30.": 3.5,
        "Ten thirty.": 1.5,
        "One in the morning.": 4,
        "12 PM.": None,
        "8 AM.": None,
        "15 years old.": None,
    },
}


@pytest.mark.parametrize("domain", DOMAINS)
def test_units(domain):
    read = {text: read_offer(text, domain) for text in UNITS[domain]}
    assert read == pytest.approx(UNITS[domain])


NUMBERS = {
    "crad": {
        "45,5 days": 45.5,
        "4,5 weeks": 31.5,
        "３０，５ days": 30.5,
        "２０ days": 20,
        "٤٥ days": 45,
        "forty-five point five days": 45.5,
        "four-and-a-half weeks": 31.5,
        "2d12h": 2.5,
        "1w 3d": 10,
        "1 w 3 d": 10,
        "two thirds of a month": 20,
        "⅔ of a month": 20,
        "1/2 month": 15,
        "two dozen days": 24,
        "2 hundred days": 200,
        "1_000 days": None,
        "1.200 days": None,
        "30.000 days": None,
        "1 200 days": None,
        "1\u202f200 days": None,
        "30 000 days": None,
        "30,45 days": None,
        "1,2,3 days": None,
        "1,23,456 days": None,
        "1,234,5 days": None,
        "1.5.2 days": None,
        "3 x 10 days": None,
        "3x10 days": None,
        "2 × 15 days": None,
        "6 times 10 days": None,
        "two 15-day periods": None,
        "2^5 days": None,
        "forty‑five days": 45,
        "30‑day term": 30,
        "3\u200b0 days": 30,
        "30~45 days": None,
        "30 ~ 45 days": None,
        "30—45 days": None,
        "30..45 days": None,
        "30°5 days": None,
        "30٫5 days": None,
        '30"5 days': None,
        "3**5 days": None,
        "30 & 45 days": None,
        "3÷5 days": None,
        "30 plus 5 days": None,
        "negative 5 days": None,
        " –5 days": None,
        "10+20 days": None,
        "20 days + 10 days": None,
        "+5 days": None,
        "-5 days": None,
        "−5 days": None,
        "minus 5 days": None,
        "30 / 45 days": None,
        "30 days / 45 days": None,
        "five-and-twenty days": None,
        "two thousand five hundred days": None,
        "1m 5d": None,
        "2½-3 weeks": None,
        "between 30 and 45,55 days": None,
        "30% of a month": None,
        "half of the 30 days": None,
        "invoice 4711 40 days": 40,
        "one 30-day extension": 30,
        "**30** days": 30,
    },
    "disaster": {
        "1,5 hours": 90,
        "0,75 hours": 45,
        ".5 hours": 30,
        "1h 30m": 90,
        "1h30": 90,
        "1h30m": 90,
        "1 h 30 min": 90,
        "1 hour 30 m": 90,
        "¾ of an hour": 45,
        "3/4 of an hour": 45,
        "3/4-hour": 45,
        "three-quarters of an hour": 45,
        "two thirds of an hour": 40,
        "1 and 1/2 hours": 90,
        "1 1/4 hours": 75,
        "1¾ hours": 105,
        "5-1/2 hours": 330,
        "one-and-a-half hours": 90,
        "one and three quarters of an hour": 105,
        "an hour and three quarters": 105,
        "0:45 hours": 45,
        "1:30 hours": 90,
        "half a dozen minutes": 6,
        "-5 minutes": None,
        "1:15:30 hours": None,
        "1h:30m": None,
        "1,50 hours": None,
        ",5 hours": None,
        "2.5.5 hours": None,
        "1'200 minutes": None,
        "90 +/- 10 minutes": None,
        "90±10 minutes": None,
        "3*10 minutes": None,
        "10^2 minutes": None,
        "30 40 minutes": None,
        "one twenty minutes": None,
        "1 hour 1/2": None,
        "1 hour 30 seconds": None,
        "80％ of an hour": None,
        "0.75 of an hour": None,
        "most of an hour": None,
        "double the 30 minutes": None,
        "90 minutes × 2": None,
        "30 minutes/45 minutes": None,
    },
    "student": {
        "１０：45 PM": 1.75,
        "ten fifty-five PM": 1 + 55 / 60,
        "ten oh five": 1 + 5 / 60,
        "1,5 hours past 9 PM": 1.5,
        "1h 30m past 9 PM": 1.5,
        "1:30 hours past 9 PM": 1.5,
        "1.200 hours past 9 PM": None,
        "30,45 hours past 9 PM": None,
        "10,45 PM": None,
        "10.5 PM": None,
        "10:5 PM": None,
        "10:45:30 PM": None,
        "10 point 5 PM": None,
        "¼ past 10": None,
        "3/4 past ten": None,
        "half 10 PM": None,
        "-10 PM": None,
        "11 PM minus 15 minutes": None,
        "10 PM + 15 minutes": None,
    },
}


@pytest.mark.parametrize("domain", NUMBERS)
def test_a_number_is_read_as_a_whole_or_not_at_all(domain):
    for text, value in NUMBERS[domain].items():
        for template in ("{}", "I can do {}.", "Well, {} it is, then."):
            said = template.format(text)
            assert read_offer(said, domain) == (value and pytest.approx(value)), said
        answer = json.dumps({"offer": text, "act": "propose"})
        if value is None:
            with pytest.raises(ValueError, match="no single figure"):
                parse_answer(answer, domain)
        else:
            assert parse_answer(answer, domain).offer == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "2,400 EUR a month",
        "2 400 EUR a month",
        "2.400,50 EUR a month",
        "2'400 CHF a month",
        "CHF 2,400 a month",
        "2400 zł a month",
        "¥30,000 a month",
        "₹50,000 a month",
        "€85k per year",
        "USD 70,000/year",
        "$2,400/mo",
        "2400 EUR/month",
        "2,400 gross a month",
        "2400 a month",
        "25 kr a week",
        "5% a month",
        "0.5 pp a year",
        "12 shares a quarter",
        "12 shares a month",
        "one payment a month",
        "an email a day",
        "10 km a day",
        "two visits a month",
    ],
)
def test_so_much_a_month_is_no_month(text):
    for template in ("{}", "I want {}.", "My offer is {}, final."):
        assert read_offer(template.format(text), "crad") is None
    assert read_offer(f"I earn {text} and can pay in 40 days.", "crad") == 40


PIECES = [
    "1",
    "1,",
    "$1,",
    "30 days ",
    "30 days, ",
    "30 to ",
    "a ",
    "a more ",
    "(",
    "to ",
    "\n",
    " ",
]
PIECES += [
    "1h ",
    "one hundred ",
    "is, ",
    "not ",
    "no more than ",
    "at least ",
    "? ",
    "—",
    "if 1 ",
    "{",
    '{"offer": "1", "act": "accept"}',
    '{"offer": "',
]


@pytest.mark.parametrize("piece", PIECES)
def test_reading_takes_time_in_proportion_to_the_length(piece):
    def seconds(length, read):
        text = (piece * length)[:length] + " 30 days"
        start = time.process_time()
        read(text)
        return time.process_time() - start

    def read_by_model(text):
        with contextlib.suppress(ValueError):
            parse_answer(text, "crad")

    for read in (
        lambda text: read_offer(text, "crad"),
        lambda text: read_answer.__wrapped__(text, "student"),
        lambda text: last_figure.__wrapped__(text, "crad"),
        read_by_model,
    ):
        for is_last in (False, False, True):  # others may have kept the processor busy
            once, twice = seconds(6_000, read), seconds(12_000, read)
            is_quick = twice < 0.3 and twice < 3 * once + 0.02
            assert is_quick or not is_last
            if is_quick:
                break


def test_a_text_of_nothing_but_quantities_offers_nothing():
    assert read_offer("30 days " * 750, "crad") is None
    assert read_offer("I can do 30 days. " + "a b " * 2_000, "crad") is None
    assert read_offer("Thank you for the call. " * 100 + "I can do 30 days.", "crad") == 30


@pytest.mark.parametrize("domain", DOMAINS)
def test_reads_what_format_value_writes(domain):
    step = 0.25 if domain == "student" else 1.0
    for k in range(1, 24):
        value = k * step
        said = format_value(domain, value)
        for template in ("Let us say {}.", "My figure is {}.", "Agreed, {} it is.", "{}."):
            assert read_offer(template.format(said), domain) == value, said
        assert read_offer(f"I can't accept {said}.", domain) is None
        assert read_offer(f"You asked for {said}.", domain) is None


def test_the_domain_alone_decides_the_unit():
    text = "I need 90 minutes, and payment in 40 days."
    assert read_offer(text, "disaster") == 90
    assert read_offer(text, "crad") == 40
    assert read_offer(text, "student") is None


def test_roles():
    text = (
        "You asked for 90 days. I can't do 30 days, but 45 days is possible; it's 60 days overdue."
    )
    roles = [(reading.value, reading.role) for reading in explain(text, "crad")]
    assert roles == [
        (90, "quoted"),
        (30, "rejected"),
        (45, "proposed"),
        (60, "background"),
    ]


def test_a_range_is_a_mention_without_a_value():
    (reading,) = explain("I could pay in 30 to 40 days.", "crad")
    assert reading.value is None
    assert reading.role == "proposed"


def test_unknown_domain():
    with pytest.raises(InputError, match="domain='rent' is not known; use one of crad"):
        read_offer("40 days", "rent")


def test_typography_does_not_matter():
    for text in (
        "I can’t do 30 days—45 days.",
        "I can't do 30 days - 45 days.",
        "I CAN'T DO 30 DAYS; 45 DAYS",
    ):
        assert read_offer(text, "crad") == 45, text
    assert read_offer("How about “10:45 p.m.”?", "student") == 1.75
    assert read_offer("I can’t do 30 days.", "crad") is None


def test_any_text_is_read_without_an_error_and_quickly():
    rng = stream(0, "offers-fuzz")
    words = [word for case in labelled("offers.jsonl") for word in case["text"].split()]
    words += ["30", "-", "½", "q", "Q1", "$", "%", "10:99", "to", "or", "\n", "…", "ß", "日", "'s"]
    words = np.array(words)
    start = time.perf_counter()
    for _ in range(200):
        text = " ".join(rng.choice(words, size=rng.integers(0, 40)))
        for domain in DOMAINS:
            value = read_offer(text, domain)
            assert value is None or isinstance(value, float)
    long = " ".join(rng.choice(words, size=4000))
    read_offer(long, "crad")
    assert time.perf_counter() - start < 15


def test_text_with_placeholder_like_words_is_safe():
    assert read_offer("Q1 was bad and Q7 was worse; 40 days.", "crad") == 40


def test_clauses_keep_a_verb_with_its_subject():
    text = scan(plain("30 days, unfortunately, is not possible, but 45 days is."), "crad").text
    (sentence,) = split_sentences(text)
    assert sentence.clauses == ("Q0 is not possible", "but Q1 is")


def test_negated_and_plain_forms_differ():
    """The reader looks at the clause, not at the number."""
    for plain_form, denied in [
        ("I can do 40 days.", "I can't do 40 days."),
        ("Your 40 days works for me.", "Your 40 days doesn't work for me."),
        ("40 days is fair.", "40 days is not fair."),
        ("We agree to 40 days.", "We never agreed to 40 days."),
    ]:
        assert read_offer(plain_form, "crad") == 40
        assert read_offer(denied, "crad") is None, denied


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_text_is_too_odd_to_read(domain):
    """A small model's slips are texts too: digits run together, half a time, a stray sign."""
    parts = "0 1 7 15 30 45 120 : . , - / $ Q3 pm AM days hours weeks at to or and in I can do ½ %"
    pieces = [*parts.split(), " ", "  ", "\n"]
    rng = stream(0, "odd texts", domain)
    for _ in range(1_500):
        text = "".join(rng.choice(pieces, size=rng.integers(1, 14)))
        value = read_offer(text, domain)
        assert value is None or math.isfinite(value), text


def test_a_time_with_too_many_digits_is_no_offer():
    assert read_offer("Bed at 10:455 PM.", "student") is None
    assert read_offer("I say 10:1515 PM.", "student") is None


def test_code_and_pattern_files_name_the_same_patterns():
    """A misspelt name would only fail on the utterance that reaches it; an unused one is dead."""
    folder = Path(offers.__file__).parent
    code = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    data = [path.read_text(encoding="utf-8") for path in folder.glob("*.toml")]
    defined = {name for text in data for name in tomllib.loads(text)}
    in_code = set(re.findall(r"\b(?:PHRASES|_PATTERNS)\.(\w+)", code))
    in_patterns = {name for text in data for name in re.findall(r"\{([a-z]\w*)\}", text)}
    assert in_code <= defined
    assert defined <= in_code | in_patterns


@pytest.mark.parametrize("module", [clauses, quantities, offers, closing])
def test_every_pattern_is_a_regular_expression(module):
    """They are compiled when they are first asked for, so a broken one would fail late."""
    patterns = module.PHRASES if module is offers else module._PATTERNS
    name = "phrases" if module is offers else module.__name__.rpartition(".")[2]
    path = Path(offers.__file__).with_name(f"{name}.toml")
    for key in tomllib.loads(path.read_text(encoding="utf-8")):
        content = getattr(patterns, key)
        found = content if isinstance(content, list) else [content]
        assert found and all(
            isinstance(one[0] if isinstance(one, tuple) else one, re.Pattern) for one in found
        )
    with pytest.raises(AttributeError, match="no pattern 'nothing'"):
        _ = patterns.nothing
