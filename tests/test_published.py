"""The published tables: broken quoting, numbers moved, rows left out, wrong files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from published_tables import CRAD_ROW, GOOD, HEADERS, TABLES, needs_tables

from emodistill.domains import DOMAINS, Scenario, get_domain, load_scenarios
from emodistill.domains.cells import CsvColumn, read_cells, read_clock, read_number
from emodistill.errors import InputError


def load(tmp_path: Path, domain: str, *rows: str, strict: bool = False, **keys: str):
    path = tmp_path / "own.csv"
    text = "\n".join([keys.get("header", HEADERS[domain]), *rows]) + keys.get("end", "\n")
    path.write_bytes(text.encode(keys.get("encoding", "utf-8")))
    return load_scenarios(domain, path, strict=strict)


def hospital(**changes: object) -> str:
    cells = {
        "urgency": "Medium",
        "wait": 45,
        "texts": "Fully booked,Stiff hand,Plays piano,Wait for a surgeon",
        "reduction": 30,
    } | changes
    return (
        "1,40,Torn tendon,Tendon repair,{urgency},{wait},No,Senior (Hand),{texts},{reduction},"
        "Undecided".format(**cells)
    )


def game(scenario: Scenario) -> tuple[float, float, bool]:
    return scenario.focal_target, scenario.counterparty_anchor, scenario.repaired


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# The tables as published.


def table(domain: str) -> dict[str, Scenario]:
    path = TABLES / get_domain(domain).table["name"]
    return {scenario.scenario_id: scenario for scenario in load_scenarios(domain, path)}


@needs_tables
def test_debt_table(caplog):
    rows = table("crad")
    assert list(rows) == [f"debt_{i:03d}" for i in range(1, len(rows) + 1)]
    assert len(rows) >= 40 and not warnings(caplog)
    assert not any(s.repaired for s in rows.values())
    assert all(5 <= s.focal_target <= 30 < s.counterparty_anchor <= 180 for s in rows.values())
    assert {s.fields["outstanding_balance_usd"] for s in rows.values()} == {15700}
    assert rows["debt_001"].fields == {
        "creditor": "Hughes, Ortiz and Hudson",
        "debtor": "Lopez, Jimenez and Mcmillan",
        "credit_type": "Working Capital Loan",
        "outstanding_balance_usd": 15700,
        "days_overdue": 133,
        "purchase_purpose": "Tax payments",
        "overdue_reason": "Client bankruptcy affecting receivables",
        "business_sector": "disintermediate intuitive metrics",
        "collateral": "Inventory",
        "recovery_stage": "Pre-Legal",
        "cash_flow": "Complete Breakdown",
    }
    assert game(rows["debt_001"]) == (12, 159, False)
    assert game(rows["debt_033"]) == (16, 33, False)
    assert rows["debt_008"].fields["collateral"] == "None"
    assert game(rows["debt_040"]) == (14, 46, False)


@needs_tables
def test_disaster_table(caplog):
    rows = table("disaster")
    assert len([i for i in rows if i <= "disaster_040"]) == 40
    assert not [s for s in list(rows.values())[:40] if s.repaired]
    expected = (
        "120/90 90/45 60/30 180/120 240/180 200/60 150/40 75/20 300/90 180/120 240/180 45/15 90/30 "
        "300/180 150/120 60/25 130/90 120/60 100/45 110/50 80/30 100/40 140/70 180/60 100/35 "
        "200/90 360/180 120/50 180/120 480/300 150/120 240/90 220/150 120/45 130/80 90/60 300/200 "
        "300/180 75/30 50/20"
    )
    found = [f"{s.focal_target:g}/{s.counterparty_anchor:g}" for s in list(rows.values())[:40]]
    assert found == expected.split()
    for scenario in rows.values():
        fields = scenario.fields
        assert "," not in fields["disaster_type"] and not fields["disaster_type"][:1].isspace()
        assert fields["key_argument"][:1].isupper() and fields["key_argument"][-1] in ".!?'"
        assert "“" not in "".join(fields.values())
        assert all(part.strip() for part in fields["critical_needs"].split(","))
    assert rows["disaster_005"].fields == {
        "disaster_type": "Blizzard",
        "survivor_condition": "Frostbite_starvation",
        "critical_needs": "Heat, Food, Antibiotics",
        "key_argument": "Storm breaks in 90 min, helicopter then. I can guide you to tune the RV "
        "engine for heat. Follow my light to find supplies.",
    }
    assert rows["disaster_037"].fields["disaster_type"] == "Forest"
    assert rows["disaster_037"].fields["survivor_condition"] == "Lost_hiker_sepsis_from_wound"
    assert rows["disaster_037"].fields["critical_needs"] == "Antibiotics, IV_Antibiotics"
    assert rows["disaster_036"].fields["critical_needs"] == "Comfort, Sedative"


@needs_tables
def test_hospital_table(caplog):
    rows = table("hospital")
    first = [scenario for scenario in rows.values() if scenario.scenario_id <= "hospital_040"]
    assert len(first) == 40
    expected = (
        "45/15 35/28R 150/30 180/60 21/14R 60/15 120/75 200/120 30/6 82/75R 150/50 27/20R 270/90 "
        "12/5R 90/15 97/90R 120/35 37/30R 75/15 40/15 100/30 57/50R 35/15 14/7 85/35 17/10R 25/10 "
        "160/50 95/30 29/22R 210/40 22/15R 330/100 110/35 40/10 67/60R 65/10 107/100R 55/20 35/28R"
    )
    found = [f"{s.focal_target:g}/{s.counterparty_anchor:g}{'R' * s.repaired}" for s in first]
    assert found == expected.split()
    assert {s.fields["urgency_level"] for s in first} == {"Low", "Medium", "High"}
    assert all(isinstance(s.fields["patient_age"], int) for s in first)
    assert rows["hospital_033"].fields == {
        "patient_age": 19,
        "patient_condition": "Scoliosis (Progressive, 50 degrees)",
        "required_surgery": "Spinal Fusion Surgery",
        "urgency_level": "Low",
        "surgeon_availability": "Few specialists, long waitlist",
        "delay_risk": "Curve progression, potential lung function impact",
        "urgency_reason": "Teenager, self-conscious, wants surgery before college",
        "hospital_suggestion": "Referral to national specialty center, wait may still be long",
    }
    texts = {
        "hospital_012": (
            "Available, awaiting final biopsy confirmation",
            "Potential for malignancy",
            "Family history of thyroid cancer, fear of spread",
            "Schedule with requested senior as planned",
        ),
        "hospital_019": (
            "Prioritizes medically complex cases",
            "Recurrent infections, damage to adjacent teeth",
            "Pain, difficulty eating, preparing for overseas study",
            "General dentist or junior oral surgeon can perform",
        ),
        "hospital_035": (
            "not stated",
            "Locked knee, cannot extend",
            "Active parent, needs knee to function for childcare",
            "Junior sports medicine surgeon can perform in 1 week",
        ),
        "hospital_037": (
            "not stated",
            "Recurrent, infected, painful",
            "Sitting pain, affecting office job",
            "General surgery resident or junior staff can perform",
        ),
        "hospital_039": (
            "not stated",
            "Non-healing ulcer, risk of infection",
            "Unable to work (stand), financial pressure",
            "Vascular fellow under senior supervision can handle",
        ),
        "hospital_040": (
            "Cosmetically sensitive area, wants best outcome",
            "Growth, cosmetic concern",
            "Wants minimal scar for public-facing role",
            "Wait for the Mohs expert",
        ),
    }
    for scenario_id, expected_texts in texts.items():
        assert tuple(rows[scenario_id].fields.values())[4:] == expected_texts
    (warning,) = warnings(caplog)
    for line in (36, 38, 40):
        assert f"line {line} has no Surgeon_Availability_Reason" in warning


@needs_tables
def test_student_table(caplog):
    rows = table("student")
    first = [scenario for scenario in rows.values() if scenario.scenario_id <= "student_040"]
    assert len(first) == 39 and "student_032" not in rows
    (warning,) = warnings(caplog)
    assert "education_sleep_scenarios.csv" in warning and "rows left out" in warning
    assert 'line 33: Student_Wanted_Bedtime is "N/A (Wants to sleep but can\'t)"' in warning
    assert game(rows["student_001"]) == (1.5, 5.0, False)  # 10:30 PM against 2:00 AM
    assert game(rows["student_004"]) == (0.0, 3.0, True)  # 11:30 PM is half an hour too close
    assert game(rows["student_010"]) == (-0.25, 2.75, True)  # 8:45 PM
    assert game(rows["student_007"]) == (0.5, 3.5, True)  # midnight
    assert game(rows["student_018"]) == (2.0, 6.5, False)
    assert game(rows["student_033"]) == (0.0, 3.0, True)
    assert sum(s.repaired for s in first) == 22
    assert all(s.gap <= -3 for s in rows.values())
    assert rows["student_019"].fields == {
        "student_age": 13,
        "student_background": "Social_Media_Influencer",
        "situation": "'Streak' or daily post obligation.",
        "feeling": "Obsessed with maintaining online persona and metrics.",
        "annoyance_reason": "Addiction to validation; metrics (likes, streaks) feel like "
        "tangible achievements.",
    }
    assert rows["student_020"].fields["situation"] == "Parents away, sibling is restless"
    assert rows["student_016"].fields["feeling"] == "Dread of repetitive, exhausting job."
    assert rows["student_034"].fields["annoyance_reason"].endswith('make nights feel more "alive".')


@needs_tables
def test_strict_refuses_the_student_table():
    with pytest.raises(InputError, match=r"(?s)education_sleep.*--strict.*line 33"):
        load_scenarios("student", TABLES / "education_sleep_scenarios.csv", strict=True)


# Numbers and clock times.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("45", 45.0),
        ("12.5", 12.5),
        ("15,700", 15700.0),
        ("-3", None),
        ("45-60", None),
        ("nan", None),
        ("1e3", None),
        ("about 4", None),
        ("15,70", None),
        ("", None),
    ],
)
def test_read_number(text, value):
    assert read_number(text) == value


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("10:30 PM", 22.5),
        ("12:00 AM", 0.0),
        ("12:15 pm", 12.25),
        ("1 a.m.", 1.0),
        (" midnight ", 0.0),
        ("1:30 AM (at most)", 1.5),
        ("1:30 AM (or 2)", None),
        ("13:00 PM", None),
        ("10:75 PM", None),
        ("0:30 AM", None),
        ("10:30", None),
        ("11 PM - 1 AM", None),
        ("Variable", None),
    ],
)
def test_read_clock(text, hour):
    assert read_clock(text) == hour


# One line into its cells.


def columns(kinds: str) -> list[CsvColumn]:
    names = {"t": "text", "w": "word", "s": "speech", "n": "number", "f": "figure"}
    return [CsvColumn(name=f"{i}", kind=names[kind]) for i, kind in enumerate(kinds)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kinds", "line", "cells"),
    [
        ("ftn", "1,a text,3", ["1", "a text", "3"]),
        ("ftn", "1,a, b and c,3", ["1", "a, b and c", "3"]),
        ("ftn", '1,"a,b",3', ["1", "a,b", "3"]),
        ("ftn", '1, "a ""b""" ,3', ["1", 'a "b"', "3"]),
        ("ftn", '1,"a" b,3', ["1", '"a" b', "3"]),  # quotes that are part of the text
        ("ftn", "1,a,b,3", ["1", "a,b", "3"]),  # one text between two numbers: certain
        ("ftn", "1,a,3,,", ["1", "a", "3"]),  # a spreadsheet's empty cells
        ("ftn", "1,a,b", None),  # no number where one belongs
        ("ftn", "1,3", None),
        ("fttn", "1,a, b,c, d,3", ["1", "a, b", "c, d", "3"]),
        ("fttn", "1,a,b,c,3", None),  # two ways, equally good
        ("fttn", "1,a, b,3", None),  # a text is never cut at a comma that belongs to it
        ("fttn", '1,"a",b,c,3', ["1", "a", "b,c", "3"]),
        ("wtn", "a,b,c,3", ["a", "b,c", "3"]),
        ("fwtn", "1,Forest, Lost_hiker,3", ["1", "Forest", "Lost_hiker", "3"]),
        ("fwtn", "1,Forest, lost hiker,3", None),  # reads like the rest of a text
        ("fwtn", "1,Forest,Lost, cold,3", ["1", "Forest", "Lost, cold", "3"]),
        ("nts", "3,Rope, Light,“Calm, all is well.”", ["3", "Rope, Light", "“Calm, all is well.”"]),
        ("nts", "3,Rope,Light,“Calm,now.”", ["3", "Rope,Light", "“Calm,now.”"]),
        ("nts", "3,Rope,“Calm,now, all is well", ["3", "Rope", "“Calm,now, all is well"]),
        ("nnt", "15,700,a", ["15", "700", "a"]),
        ("nt", "15,700,a", None),  # 15, or 15,700?
        ("ftn", "15,700,a,3", None),
        ("fttn", "1,“a,b”,c,3", ["1", "“a,b”", "c", "3"]),
        ("ftn", '"15,700",a,"3,000"', ["15,700", "a", "3,000"]),
        ("nts", "3,Rope, “Calm.”", ["3", "Rope", "“Calm.”"]),
        ("nn", "3, N/A (moved, unclear)", ["3", "N/A (moved, unclear)"]),
    ],
)
def test_read_cells(kinds, line, cells):
    assert read_cells(line, columns(kinds)) == cells


def test_a_line_of_commas_is_given_up_at_once():
    assert read_cells("1," + "a," * 50_000 + "3", columns("ftn")) is None


# Rows that are odd in one way each.


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_every_domain_reads_its_table_however_it_was_saved(tmp_path, domain, end, caplog):
    rows = [GOOD[domain] + (end if end == "\r\n" else ""), "", GOOD[domain]]
    scenarios = load(tmp_path, domain, *rows, end=end, encoding="utf-8-sig")
    prefix = get_domain(domain).scenario_prefix
    assert [s.scenario_id for s in scenarios] == [f"{prefix}_001", f"{prefix}_002"]
    assert scenarios[0].fields == scenarios[1].fields
    assert list(scenarios[0].fields) == list(get_domain(domain).fields)
    assert not warnings(caplog)


def test_columns_are_found_by_name_in_any_order_and_more_are_ignored(tmp_path):
    header = (
        "Primary annoyance reason,note,Student_Wanted_Bedtime,Robots_Requested_Bedtime,"
        "STUDENT_AGE,Student_Background,Situation_Faced,Student_Feeling_Thought"
    )
    (scenario,) = load(
        tmp_path, "student", "Hates rules,x,2 AM,9:45 PM,15,Gamer,Finals,Calm", header=header
    )
    assert game(scenario) == (0.75, 5.0, False)
    assert scenario.fields["annoyance_reason"] == "Hates rules"
    assert scenario.fields["student_age"] == 15


def test_a_table_with_spaces_after_its_commas(tmp_path, caplog):
    header = HEADERS["disaster"].replace(",", ", ")
    good = "1, Flood, Cold, 40, 120, Rope, “Stay calm.”"
    scenarios = load(tmp_path, "disaster", good, good.replace("Rope", "Rope, Light"), header=header)
    assert [s.fields["survivor_condition"] for s in scenarios] == ["Cold"]
    assert "line 3" in warnings(caplog)[0]


@pytest.mark.parametrize(
    ("endurance", "eta", "expected"),
    [(40, 120, (120, 40, False)), (90, 120, (120, 90, False)), (100, 120, (130, 100, True))],
)
def test_disaster_leaves_half_an_hour(tmp_path, endurance, eta, expected):
    row = f"1,Flood,Cold_and_wet,{endurance},{eta},Rope, Light,“Stay calm, the boat comes.”"
    assert game(load(tmp_path, "disaster", row)[0]) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (45, 15, False)),
        ({"reduction": 0}, (52, 45, True)),
        ({"urgency": "Low"}, (75, 15, False)),
        ({"urgency": "Low", "reduction": 0}, (75, 45, False)),
        ({"reduction": 60}, (45, 1, True)),
        ({"wait": 1, "reduction": 0}, (8, 1, True)),
        ({"wait": 0, "reduction": 0}, (8, 1, True)),
    ],
)
def test_hospital_numbers(tmp_path, changes, expected):
    assert game(load(tmp_path, "hospital", hospital(**changes))[0]) == expected


@pytest.mark.parametrize(
    ("requested", "wanted", "expected"),
    [
        ("10:00 PM", "1:00 AM", (1, 4, False)),
        ("10:00 PM", "12:59 AM", (1, 4, True)),
        ("8:30 PM", "12:00 AM", (-0.5, 3, False)),
        ("10:00 PM", "7:00 AM", (1, 10, False)),
        ("12:00 AM", "11:00 PM", (3, 6, True)),
        ("9:10 PM", "2:20 AM", (1 / 6, 16 / 3, False)),
    ],
)
def test_student_clock(tmp_path, requested, wanted, expected):
    row = f"1,16,Runner,Race,Calm,{requested},{wanted},Not tired."
    target, anchor, repaired = game(load(tmp_path, "student", row)[0])
    assert (target, anchor) == pytest.approx(expected[:2]) and repaired is expected[2]


def test_rows_without_a_number_are_left_out_in_one_warning_and_ids_stay(tmp_path, caplog):
    good = GOOD["disaster"]
    rows = [
        good,
        good.replace("40,120", "Variable,120"),
        good.replace("40,120", "N/A (stable, trapped),120"),
        good.replace("40,120", "about an hour,120"),
        good.replace(",40,", ","),
        good,
    ]
    scenarios = load(tmp_path, "disaster", *rows)
    assert [s.scenario_id for s in scenarios] == ["disaster_001", "disaster_006"]
    (warning,) = warnings(caplog)
    assert "own.csv: 4 of 6 rows left out" in warning
    assert "line 3: Estimated_Survivor_Endurance(minutes) is 'Variable', no number" in warning
    assert "line 4: " in warning and "'N/A (stable, trapped)'" in warning
    assert "line 5: Estimated_Survivor_Endurance(minutes) can't be 'about an hour'" in warning
    assert "line 6: 6 cells for 7 columns" in warning
    with pytest.raises(InputError, match=r"--strict.*line 3.*line 4.*line 5.*line 6"):
        load(tmp_path, "disaster", *rows, strict=True)


TEXTS = ("surgeon_availability", "delay_risk", "urgency_reason", "hospital_suggestion")
NONE = "not stated"


@pytest.mark.parametrize(
    ("domain", "row", "fields", "columns"),
    [
        (  # a comma too many: which of five texts has it?
            "hospital",
            hospital(texts="Fully booked,Stiff hand,Plays piano,Waits long,Wait for a surgeon"),
            {
                "surgeon_availability": NONE,
                "delay_risk": "Senior (Hand),Fully booked,Stiff hand,Plays piano,Waits long,"
                "Wait for a surgeon",
                "urgency_reason": NONE,
                "hospital_suggestion": NONE,
            },
            "Recommended_Surgeon_Experience_Level to Hospital_Suggestion",
        ),
        (  # which column is missing?
            "hospital",
            hospital(texts="Stiff hand, swollen,Surgeon is away,Wait for a surgeon"),
            dict(
                zip(
                    TEXTS,
                    (NONE, "Stiff hand, swollen,Surgeon is away", NONE, "Wait for a surgeon"),
                    strict=True,
                )
            ),
            "Surgeon_Availability_Reason to Patient_Reason_For_Urgency",
        ),
        (  # the last one is no suggestion
            "hospital",
            hospital(texts="Stiff hand, swollen,Plays piano,Nothing"),
            dict(
                zip(
                    TEXTS,
                    (NONE, "Stiff hand, swollen,Plays piano,Nothing", NONE, NONE),
                    strict=True,
                )
            ),
            "Surgeon_Availability_Reason to Hospital_Suggestion",
        ),
        (  # no comma to divide them at
            "hospital",
            hospital(texts="Fully booked,Wait for a surgeon"),
            dict(zip(TEXTS, (NONE, "Fully booked", NONE, "Wait for a surgeon"), strict=True)),
            "Surgeon_Availability_Reason to Patient_Reason_For_Urgency",
        ),
        (  # the border has a space behind it, as commas within a text have
            "student",
            '1,16,Runner, Has a race tomorrow,"Calm, almost.",10:00 PM,1:30 AM,Not tired, at all.',
            {
                "student_background": "Runner, Has a race tomorrow",
                "situation": NONE,
                "feeling": "Calm, almost.",
                "annoyance_reason": "Not tired, at all.",
            },
            "Student_Background to Situation_Faced",
        ),
        (  # a comma too many, but quotes say where the first text ends
            "student",
            '1,16,"Runner, fast",Race,nerves,Calm,10:00 PM,1:30 AM,Not tired.',
            {
                "student_background": "Runner, fast",
                "situation": "Race,nerves,Calm",
                "feeling": NONE,
                "annoyance_reason": "Not tired.",
            },
            "Situation_Faced to Student_Feeling_Thought",
        ),
        (
            "disaster",
            "1,Forest, lost and cold,40,120,Rope,Light,Stay, calm.",
            {
                "disaster_type": "Forest, lost and cold",
                "survivor_condition": NONE,
                "critical_needs": "Rope,Light,Stay, calm.",
                "key_argument": NONE,
            },
            "Disaster_Type to Survivor_Condition; Critical_Needs to Key_Negotiation_Argument",
        ),
        (
            "crad",
            CRAD_ROW.format(target=12, anchor=90).replace("Bad harvest", "Bad harvest,hail"),
            {
                "creditor": "Stone, Reed and Co",
                "credit_type": "Trade Loan",
                "purchase_purpose": "Tax payments,Bad harvest,hail,farming",
                "overdue_reason": NONE,
                "business_sector": NONE,
                "collateral": "None",
            },
            "Purchase Purpose to Business Sector",
        ),
    ],
)
def test_texts_that_can_not_be_told_apart_are_kept_as_one(
    tmp_path, domain, row, fields, columns, caplog
):
    good, odd = load(tmp_path, domain, GOOD[domain], row)
    assert game(odd) == game(good)  # no number has moved
    assert {name: odd.fields[name] for name in fields} == fields
    (warning,) = warnings(caplog)
    assert "1 of 2 rows read with texts that can't be told apart as one text" in warning
    assert f"line 3: {columns}" in warning
    with pytest.raises(InputError, match=rf"--strict.*line 3: {columns}.* can't be told apart"):
        load(tmp_path, domain, GOOD[domain], row, strict=True)


def test_a_split_is_no_text_that_might_be_joined(tmp_path, caplog):
    header = HEADERS["student"] + ",split"
    rows = [f"{GOOD['student']},train", f"{GOOD['student']},at,all,test"]
    (scenario,) = load(tmp_path, "student", *rows, header=header)
    assert scenario.split == "train" and "line 3: 11 cells for 9 columns" in warnings(caplog)[0]


@pytest.mark.parametrize(
    ("domain", "row", "problem"),
    [
        # Which of the two figures is the reduction, with texts on both sides of it?
        ("hospital", hospital(texts="Booked,3,Stiff hand,Plays piano,Wait"), "15 cells"),
        ("student", GOOD["student"].replace("1:30 AM", "late"), "'late'"),
        ("student", GOOD["student"].replace(",10:00 PM", ""), "7 cells"),
        ("student", GOOD["student"].replace(",10:00 PM", ",10:00 PM,11:00 PM"), "9 cells"),
        ("crad", CRAD_ROW.format(target="12,13", anchor=90), "20 cells"),
        ("crad", CRAD_ROW.format(target="soon", anchor=90), "'soon'"),
    ],
)
def test_a_row_whose_numbers_are_uncertain_is_left_out(tmp_path, domain, row, problem, caplog):
    (scenario,) = load(tmp_path, domain, GOOD[domain], row)
    assert scenario.scenario_id.endswith("_001")
    assert problem in warnings(caplog)[0] and "line 3: " in warnings(caplog)[0]


def test_a_missing_column_is_said_not_shifted(tmp_path, caplog):
    row = hospital(texts="Stiff hand, swollen,Plays piano,Wait for a surgeon")
    (scenario,) = load(tmp_path, "hospital", row)
    assert scenario.fields["surgeon_availability"] == "not stated"
    assert scenario.fields["delay_risk"] == "Stiff hand, swollen"
    assert game(scenario) == (45, 15, False)
    assert "line 2 has no Surgeon_Availability_Reason" in warnings(caplog)[0]
    with pytest.raises(InputError, match="line 2 has no Surgeon_Availability_Reason"):
        load(tmp_path, "hospital", row, strict=True)


def test_an_open_quote_swallows_no_other_row(tmp_path, caplog):
    good = GOOD["student"]
    open_quote = good.replace('energy."', "energy.")
    scenarios = load(tmp_path, "student", open_quote, good)
    assert [s.fields["feeling"] for s in scenarios] == ['"Full of energy.', "Full of energy."]
    unreadable = open_quote.replace("energy.", "energy.,and joy")
    assert [s.scenario_id for s in load(tmp_path, "student", unreadable, good, good)] == [
        "student_002",
        "student_003",
    ]
    assert "line 2" in warnings(caplog)[0]


def test_a_quoted_line_break_belongs_to_its_cell(tmp_path, caplog):
    good = GOOD["student"]
    scenarios = load(tmp_path, "student", good.replace("Full of", "Full\nof"), "bad", good)
    assert [s.scenario_id for s in scenarios] == ["student_001", "student_003"]
    assert scenarios[0].fields["feeling"] == "Full of energy."
    assert "line 4" in warnings(caplog)[0]


def test_control_tokens_and_empty_cells_are_data(tmp_path):
    row = GOOD["student"].replace("Runner", "<|im_end|>").replace("Race tomorrow", "")
    fields = load(tmp_path, "student", row)[0].fields
    assert fields["student_background"] == "<|im_end|>"
    assert fields["situation"] == "not stated"


def test_repaired_rows_are_counted(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="emodistill"):
        load(tmp_path, "hospital", hospital(), hospital(reduction=0), hospital(reduction=60))
    assert "3 scenarios, 2 of them with a number moved" in caplog.text


# Wrong files.


def test_zero_gap_names_the_line(tmp_path):
    rows = [CRAD_ROW.format(target=12, anchor=90), CRAD_ROW.format(target=30, anchor=30)]
    with pytest.raises(InputError, match=r"own\.csv:3: the creditor's target \(30 days\).*below"):
        load(tmp_path, "crad", *rows)
    with pytest.raises(InputError, match=r"own\.csv:2: .*must lie below the debtor's \(20\)"):
        load(tmp_path, "crad", CRAD_ROW.format(target=30, anchor=20))


@pytest.mark.parametrize("domain", DOMAINS)
def test_another_domains_table_is_recognised(tmp_path, domain):
    other = "crad" if domain == "student" else "student"
    with pytest.raises(InputError, match=rf"own\.csv is the {other} table .*--domain {other}"):
        load(tmp_path, domain, GOOD[other], header=HEADERS[other])


def test_missing_columns_are_named(tmp_path):
    header = HEADERS["student"].replace(",Student_Wanted_Bedtime", "").replace("_Faced", "")
    with pytest.raises(InputError, match="lacks Situation_Faced, Student_Wanted_Bedtime"):
        load(tmp_path, "student", GOOD["student"], header=header)
    with pytest.raises(InputError, match="comma-separated"):
        load(tmp_path, "student", header=HEADERS["student"].replace(",", ";"))
    with pytest.raises(InputError, match="same name"):
        load(tmp_path, "student", header=HEADERS["student"] + ",Case_ID")


def test_empty_tables_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"own\.csv:1 is empty; the first line must be the header"):
        load(tmp_path, "crad", header="")
    with pytest.raises(InputError, match=r"no playable row\. there is no row below the header"):
        load(tmp_path, "crad")
    with pytest.raises(InputError, match=r"no playable row. line 2: .*'Variable'"):
        load(tmp_path, "student", GOOD["student"].replace("1:30 AM", "Variable"))
