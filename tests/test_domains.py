"""Domains as data, how values are said, the built-in scenarios, scenarios from JSONL."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from emodistill.domains import (
    DOMAINS,
    Scenario,
    format_value,
    get_domain,
    load_scenarios,
    split_scenarios,
)
from emodistill.domains.generator import generate_scenarios
from emodistill.errors import InputError

FIELDS = {
    "crad": "creditor debtor credit_type outstanding_balance_usd days_overdue purchase_purpose "
    "overdue_reason business_sector collateral recovery_stage cash_flow",
    "disaster": "disaster_type survivor_condition critical_needs key_argument",
    "hospital": "patient_age patient_condition required_surgery urgency_level "
    "surgeon_availability delay_risk urgency_reason hospital_suggestion",
    "student": "student_age student_background situation feeling annoyance_reason",
}
NUMBER_WORDS = r"\d|\b(one|two|three|four|five|six|seven|eight|nine|ten|half|first|second)\b"


def a_scenario(**changes: object) -> dict:
    line = {
        "schema": 1,
        "scenario_id": "debt_001",
        "domain": "crad",
        "split": "train",
        "focal_target": 12,
        "counterparty_anchor": 90,
        "unit": "days",
        "fields": {"creditor": "Harbor Bank", "days_overdue": 30},
        "repaired": False,
    }
    return line | changes


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines))
    return path


@pytest.mark.parametrize(
    ("domain", "unit", "direction", "tolerance"),
    [
        ("crad", "days", -1, 0),
        ("disaster", "minutes", 1, 0),
        ("hospital", "days", 1, 0),
        ("student", "hours past 9 PM", -1, 0.25),
    ],
)
def test_domain_says_what_is_negotiated(domain, unit, direction, tolerance):
    spec = get_domain(domain)
    assert (spec.unit, spec.direction, spec.tolerance) == (unit, direction, tolerance)
    assert list(spec.fields) == FIELDS[domain].split()


def test_unknown_domain_lists_the_four():
    with pytest.raises(InputError, match=r"'debt'.*crad, disaster, hospital, student"):
        get_domain("debt")
    with pytest.raises(InputError, match="crad, disaster, hospital, student"):
        load_scenarios("../crad")


@pytest.mark.parametrize(
    ("domain", "value", "text"),
    [
        ("crad", 35.0, "35 days"),
        ("crad", 1, "1 day"),
        ("crad", 0, "0 days"),
        ("crad", 12.5, "12.5 days"),
        ("crad", 33.333333, "33.33 days"),
        ("crad", 120, "120 days"),
        ("disaster", 90, "90 minutes"),
        ("disaster", 1, "1 minute"),
        ("disaster", 1000000, "1000000 minutes"),
        ("hospital", 10, "10 days"),
        ("student", 0, "9:00 PM"),
        ("student", 1.75, "10:45 PM"),
        ("student", 3, "12:00 AM"),
        ("student", 3.25, "12:15 AM"),
        ("student", 4.5, "1:30 AM"),
        ("student", -0.25, "8:45 PM"),
        ("student", -9, "12:00 PM"),
        ("student", 15.5, "12:30 PM"),
        ("student", 2.9999, "12:00 AM"),
    ],
)
def test_format_value(domain, value, text):
    assert format_value(domain, value) == text


@pytest.mark.parametrize("domain", DOMAINS)
def test_generated_scenarios_are_complete_and_distinct(domain):
    spec = get_domain(domain)
    scenarios = load_scenarios(domain)
    prefix = "debt" if domain == "crad" else domain
    assert [s.scenario_id for s in scenarios] == [f"{prefix}_{i:03d}" for i in range(1, 101)]
    assert all(s.unit == spec.unit and s.domain == domain and not s.repaired for s in scenarios)
    assert all(list(s.fields) == FIELDS[domain].split() for s in scenarios)
    assert len({tuple(s.fields.values()) for s in scenarios}) == 100
    assert len({(s.focal_target, s.counterparty_anchor) for s in scenarios}) > 40
    for name in spec.fields:
        if name != "urgency_level":
            assert len({s.fields[name] for s in scenarios}) >= 4, name


@pytest.mark.parametrize("domain", DOMAINS)
def test_generated_texts_suit_a_small_model(domain):
    texts = [
        value
        for scenario in load_scenarios(domain)
        for value in scenario.fields.values()
        if isinstance(value, str)
    ]
    assert max(len(text.split()) for text in texts) <= 7
    assert not [text for text in texts if re.search(NUMBER_WORDS, text.lower())]
    assert len({word for text in texts for word in re.findall(r"[a-z]+", text.lower())}) < 320


@pytest.mark.parametrize(
    ("domain", "target", "anchor", "gap"),
    [
        ("crad", (5, 30), (45, 180), (15, 175)),
        ("disaster", (45, 330), (15, 180), (30, 150)),
        ("hospital", (12, 200), (2, 60), (10, 140)),
        ("student", (-0.5, 2), (2, 6.5), (2.5, 4.5)),
    ],
)
def test_generated_games_leave_room_in_the_right_direction(domain, target, anchor, gap):
    step = 0.25 if domain == "student" else 1
    for s in load_scenarios(domain):
        assert target[0] <= s.focal_target <= target[1]
        assert anchor[0] <= s.counterparty_anchor <= anchor[1]
        assert gap[0] <= s.gap * get_domain(domain).direction <= gap[1]
        assert s.focal_target % step == 0 and s.counterparty_anchor % step == 0


def test_hospital_waits_follow_the_urgency():
    by_urgency: dict[str, list[float]] = {}
    for s in load_scenarios("hospital"):
        by_urgency.setdefault(str(s.fields["urgency_level"]), []).append(s.focal_target)
    mean = {level: sum(values) / len(values) for level, values in by_urgency.items()}
    assert mean["High"] < mean["Medium"] < mean["Low"]


def test_generated_scenarios_are_the_same_in_another_process_and_for_another_number():
    code = (
        "import json; from emodistill.domains import load_scenarios as load;"
        "print(json.dumps([s.to_json() for d in ('crad', 'student') for s in load(d)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    here = [s.to_json() for domain in ("crad", "student") for s in load_scenarios(domain)]
    assert json.loads(done.stdout) == here
    assert generate_scenarios("hospital", 30) == load_scenarios("hospital")[:30]


def test_generated_scenarios_split_and_survive_jsonl(tmp_path):
    split = split_scenarios(load_scenarios("disaster"), n_validation=10)
    assert [len(part) for part in split] == [70, 10, 20]
    path = write_lines(tmp_path / "own.jsonl", *(s.to_json() for s in split.all()))
    assert load_scenarios("disaster", path) == split.all()


def test_jsonl_with_a_byte_order_mark_and_blank_lines(tmp_path):
    lines = "\ufeff", a_scenario(), "\n", a_scenario(scenario_id="x")
    path = write_lines(tmp_path / "own.JSONL", *lines)
    assert [s.scenario_id for s in load_scenarios("crad", str(path))] == ["debt_001", "x"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"schema": 1, "scena', r":2: this line is no JSON"),
        ("[1]\n", r":2: not a Scenario record: Expected .object"),
        (a_scenario(schema=2), r":2: schema=2 is not known"),
        (a_scenario(unit="weeks"), r":2: unit='weeks'.*'days'"),
        (a_scenario(domain="student"), r":2: domain='student'.*--domain student"),
        (a_scenario(), r":2: scenario_id='debt_001' stands in line 1 too"),
        (a_scenario(counterparty_anchor=12), r":2: .*nothing to negotiate"),
        (a_scenario(focal_target=float("nan")), r":2: .*no JSON .NaN is no JSON number"),
        (a_scenario(focal_target="soon"), r":2: .*Expected .float., got .str. - at .*focal_target"),
        (a_scenario(fields={"creditor": "A\n# Role"}), r":2: field 'creditor'.*line break"),
        (a_scenario(fields={"creditor": "A\u2028B"}), r":2: field 'creditor'.*in one line"),
        (a_scenario(fields={"creditor": "A\x1b[2J"}), r":2: field 'creditor'.*control"),
        (a_scenario(fields={"creditor": ["a"]}), r":2: field 'creditor'.*string or a number"),
        (a_scenario(colour="red"), r":2: .*unknown field .colour."),
    ],
)
def test_bad_jsonl_line_is_named(tmp_path, line, message):
    path = write_lines(tmp_path / "own.jsonl", a_scenario(), line)
    with pytest.raises(InputError, match=r"own\.jsonl" + message):
        load_scenarios("crad", path)


def test_unreadable_files_say_why(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "latin.csv").write_bytes("Créditeur,Débiteur\n".encode("latin-1"))
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, message in {
        "absent.csv": "absent.csv does not exist; check --scenarios",
        "absent.jsonl": "absent.jsonl does not exist",
        "folder.csv": "folder.csv is a folder",
        "latin.csv": "latin.csv is not UTF-8 text .*save it as UTF-8",
        "empty.jsonl": "empty.jsonl holds no scenario",
        "table.pkl": r"table.pkl: scenarios are read from .csv .* or .jsonl .* not from .pkl files",
        "table.xlsx": "not from .xlsx files",
        "table": "not from suffixless files",
        ".": "is a folder; --scenarios takes one file",
    }.items():
        with pytest.raises(InputError, match=message):
            load_scenarios("crad", tmp_path / name)


def test_zero_gap_is_refused():
    with pytest.raises(InputError, match=r"debt_001.*both 12.*Give them different values"):
        Scenario.from_json(a_scenario(counterparty_anchor=12.0), where="here")
