"""read_offer against hand-labelled utterances, and what holds for any text."""

import json
import math
import re
import time
import tomllib
from pathlib import Path

import pytest

from emodistill.domains import DOMAINS, format_value
from emodistill.errors import InputError
from emodistill.negotiation import offers, read_offer
from emodistill.negotiation.clauses import plain, split_sentences
from emodistill.negotiation.offers import explain
from emodistill.negotiation.quantities import scan
from emodistill.seeding import stream


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
    start = time.perf_counter()
    for _ in range(400):
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
    for _ in range(3_000):
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
