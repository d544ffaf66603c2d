"""Records against their own reader and against the JSON Schemas in the package."""

import copy
import json
from importlib import resources

import jsonschema
import msgspec
import pytest
from builders import JUDGEMENT, SCENARIO, TRAJECTORY

from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.records import CounterpartyPlayer, Trajectory


def schema(name):
    file = resources.files("emodistill").joinpath("schema", f"{name}.schema.json")
    value = json.loads(file.read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(value)
    return jsonschema.Draft202012Validator(value)


KINDS = {"scenario": SCENARIO, "trajectory": TRAJECTORY, "judgement": JUDGEMENT}


@pytest.mark.parametrize("name", KINDS)
def test_a_record_survives_json_and_satisfies_its_schema(name):
    record = KINDS[name]
    line = json.loads(json.dumps(record.to_json()))
    schema(name).validate(line)
    assert type(record).from_json(line, where="x:1") == record


@pytest.mark.parametrize("name", KINDS)
def test_schema_and_reader_agree_on_which_fields_must_be_there(name):
    validator, kind = schema(name), type(KINDS[name])
    line = KINDS[name].to_json()
    line = json.loads(json.dumps(line))
    for field in line:
        rest = {key: value for key, value in line.items() if key != field}
        try:
            kind.from_json(rest, where="x:1")
            is_read = True
        except InputError as error:
            assert field in str(error) and "x:1" in str(error)
            is_read = False
        assert validator.is_valid(rest) == is_read, field


@pytest.mark.parametrize(
    ("side", "optional"),
    [
        ("focal", {"cells", "server", "provider"}),
        ("counterparty", {"cells", "method", "server", "provider"}),
    ],
)
def test_a_side_may_leave_out_what_it_does_not_have(side, optional):
    line = json.loads(json.dumps(TRAJECTORY.to_json()))
    line[side] = {name: line[side][name] for name in line[side].keys() - optional}
    assert line[side].keys() == {"model", "temperature"} | ({"method"} - optional)
    schema("trajectory").validate(line)
    assert not getattr(Trajectory.from_json(line, where="x:1"), side).cells


def test_a_counterparty_that_plays_by_a_method_says_so():
    other = CounterpartyPlayer(model="c", temperature=0.0, method="iql", cells={"iql": "default"})
    record = msgspec.structs.replace(TRAJECTORY, counterparty=other)
    line = json.loads(json.dumps(record.to_json()))
    schema("trajectory").validate(line)
    assert Trajectory.from_json(line, where="x:1") == record


def edited(record, path, value):
    line = json.loads(json.dumps(record.to_json()))
    place = line
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return line


BAD = [
    ("scenario", ["schema"], 2),
    ("scenario", ["split"], "dev"),
    ("scenario", ["focal_target"], "30"),
    ("scenario", ["focal_target"], None),
    ("scenario", ["fields"], ["a"]),
    ("scenario", ["repaired"], 1),
    ("scenario", ["colour"], "red"),
    ("trajectory", ["schema"], 2),
    ("trajectory", ["outcome"], "won"),
    ("trajectory", ["outcome"], "breakdown"),
    ("trajectory", ["final_value"], None),
    ("trajectory", ["seed"], "7"),
    ("trajectory", ["seed"], True),
    ("trajectory", ["turns"], {}),
    ("trajectory", ["turns", 0, "speaker"], "mediator"),
    ("trajectory", ["turns", 0, "emotion"], "hunger"),
    ("trajectory", ["turns", 0, "offer"], "30 days"),
    ("trajectory", ["turns", 0, "mood"], "joy"),
    ("trajectory", ["focal", "temperature"], "hot"),
    ("trajectory", ["usage", "calls"], 1.5),
    ("judgement", ["schema"], "1"),
    ("judgement", ["status"], "maybe"),
    ("judgement", ["status"], "failed"),
    ("judgement", ["score"], None),
    ("judgement", ["score"], 11),
    ("judgement", ["score"], 0),
    ("judgement", ["score"], 7.5),
    ("judgement", ["raw"], None),
]


@pytest.mark.parametrize(("name", "path", "value"), BAD)
def test_bad_lines_are_refused_by_schema_and_reader(name, path, value):
    line = edited(KINDS[name], path, value)
    assert not schema(name).is_valid(line)
    with pytest.raises(InputError, match=r"runs/x\.jsonl:12"):
        type(KINDS[name]).from_json(line, where="runs/x.jsonl:12")


def test_the_reader_refuses_what_a_schema_cannot_say():
    line = edited(SCENARIO, ["counterparty_anchor"], 30.0)
    with pytest.raises(InputError, match="nothing to negotiate"):
        Scenario.from_json(line, where="s:1")
    line = edited(TRAJECTORY, ["turns", 1, "index"], 5)
    with pytest.raises(InputError, match="not numbered"):
        Trajectory.from_json(line, where="t:1")


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_a_line_that_is_no_object_is_refused(value):
    with pytest.raises(InputError, match="t:3: not a Trajectory record: Expected `object`"):
        Trajectory.from_json(value, where="t:3")


def test_the_schema_lists_the_28_emotions():
    known = schema("trajectory").schema["$defs"]
    assert known["label"]["enum"] == [None, *EMOTIONS]
    for name in ("emotion", "heard_emotion"):
        assert known["turn"]["properties"][name] == {"$ref": "#/$defs/label"}


def test_whole_numbers_are_read_as_floats_and_stay_equal():
    line = edited(TRAJECTORY, ["final_value"], 30)
    record = Trajectory.from_json(copy.deepcopy(line), where="t:1")
    assert isinstance(record.final_value, float) and record == TRAJECTORY
