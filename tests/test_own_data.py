"""Own data: its split is kept to, and what it says wrongly is refused, all lines at once."""

import json

import msgspec
import pytest
from builders import judgement, turns
from own_dialogues import ID, ONE, own

from emodistill.configs import SweepConfig
from emodistill.domains import get_domain, load_scenarios, load_split
from emodistill.domains.scenario import Scenario, scenario_problems
from emodistill.errors import InputError, refuse
from emodistill.offline.data_checks import check_dialogues, check_prompts, check_scores
from emodistill.offline.rewards import SweepData, training_dialogues
from emodistill.offline.run_files import read_sweep
from emodistill.offline.store import read_scenarios, write_records
from emodistill.prompts import load_pack
from emodistill.settings import Cell
from emodistill.stages import STAGES
from emodistill.stages.sweep import split_of

PACK = load_pack()
GENERATED = load_scenarios("crad")


def lines_of(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


def scenario_lines(*splits):
    """A line for each split; None leaves the field out."""
    lines = []
    for scenario, split in zip(GENERATED, splits, strict=False):
        line = scenario.to_json() | {"split": split}
        if split is None:
            del line["split"]
        lines.append(line)
    return lines


def split_with(tmp_path, *splits, **sizes):
    path = tmp_path / "own.jsonl"
    path.write_text(lines_of(*scenario_lines(*splits)))
    return load_split("crad", path, **{"num_test": 1, "num_validation": 0, "seed": 0} | sizes)


def test_a_given_split_is_used_as_given_and_said(tmp_path):
    splits = ("test", "train", "test", "test", "test", "validation")
    split, text, *_ = split_with(tmp_path, *splits)
    by_id = {s.scenario_id: s.split for s in split.all()}
    assert [by_id[s.scenario_id] for s in GENERATED[:6]] == [*splits]
    assert "as " in text and "1 train, 1 validation, 4 test" in text and "--num-test" in text
    config = SweepConfig(scenarios=tmp_path / "own.jsonl", num_test=2, seed=5)
    assert split_of(config).split == split


def test_without_a_split_it_is_drawn_and_said(tmp_path):
    split, text, *_ = split_with(tmp_path, None, None, None)
    assert [len(part) for part in split] == [2, 0, 1]
    assert text == "split drawn by --seed 0: 2 train, 0 validation, 1 test"


def test_a_partial_split_is_refused_with_its_lines(tmp_path):
    with pytest.raises(InputError, match=r"(?s)jsonl:2: no `split`.*jsonl:4.*2 of 4 scenarios"):
        split_with(tmp_path, "test", None, "train", None)
    path = tmp_path / "scenarios.jsonl"  # put in place of a sweep's
    path.write_text(lines_of(*scenario_lines("test", None)))
    with pytest.raises(InputError, match=r"jsonl:2: no `split`"):
        read_scenarios(path)


@pytest.mark.parametrize("split", ["dev", "Test", "", 3])
def test_an_unknown_split_is_refused(tmp_path, split):
    with pytest.raises(InputError, match=r"own\.jsonl:2: not a Scenario record.*split"):
        split_with(tmp_path, "test", split)


def test_one_scenario_in_two_splits_is_refused(tmp_path):
    first, second = scenario_lines("train", "test")
    path = tmp_path / "own.jsonl"
    path.write_text(lines_of(first, first | {"scenario_id": "again", "split": "test"}, second))
    with pytest.raises(InputError, match=r"jsonl:2: split='test', but the same facts.*jsonl:1"):
        load_split("crad", path, num_test=1, num_validation=0, seed=0)


def test_a_table_may_have_a_column_split(tmp_path):
    column = get_domain("disaster").table["columns"]
    names = [*column, "Split"]
    cells = {"number": "30", "text": "a", "word": "a", "figure": "1", "speech": "a"}

    def row(number, split):
        values = []
        for about in column.values():
            low, high = str(20 + number), str(200 + number)
            value = {"eta": high, "endurance": low}.get(about.get("number"), "")
            values.append(value or about.get("choices", [cells.get(about["kind"], "a")])[0])
        return ",".join([*values, split])

    path = tmp_path / "own.csv"

    def load(*splits):
        rows = [row(number, split) for number, split in enumerate(splits)]
        path.write_text("\n".join([",".join(names), *rows]) + "\n")
        return load_split("disaster", path, num_test=1, num_validation=0, seed=0)

    split, text, *_ = load("test", "train", "Test")
    assert [len(part) for part in split] == [1, 0, 2] and "as " in text
    with pytest.raises(InputError, match=r"own\.csv:3: no `split`"):
        load("test", "")
    with pytest.raises(InputError, match=r"own\.csv:2: split 'dev' is none of train"):
        load("dev", "test")


def test_nothing_is_trained_on_that_is_held_out():
    held_out = msgspec.structs.replace(ONE, split="test")
    leaked = [own(name=f"d{n}", split="train") for n in range(2)]
    for scenarios, words in (([held_out], "held out for test"), ([], "not among those of the run")):
        with pytest.raises(InputError, match=rf"d0: split='train', but .*{words}"):
            training_dialogues(SweepData(leaked, scenarios, {}, PACK))
    both = [own(), own(held_out, name="x", scenario_id="held_out")]
    other = msgspec.structs.replace(held_out, scenario_id="held_out")
    assert training_dialogues(SweepData(both, [ONE, other], {}, PACK)) == both[:1]
    with pytest.raises(InputError, match="no dialogue belongs to a training scenario"):
        training_dialogues(SweepData(both[1:], [ONE, other], {}, PACK))


def test_what_fits_passes():
    check_dialogues("crad", [(own(), "t:1")], [(ONE, "s:1")])
    midpoint = own(agreement_rule="upstream", turns=turns(30.0, 33.0), final_value=32.0)
    check_dialogues("crad", [(midpoint, "t:1")], [(ONE, "s:1")])
    check_dialogues("crad", [(own(turns=turns(None, None), final_value=40.0), "t")], [(ONE, "s")])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"turns": own().turns[1:2]}, "not numbered"),
        ({"focal_target": 3.0}, rf"t:1: focal_target=3.0, but .* has {ONE.focal_target}"),
        ({"domain": "hospital"}, r"t:1: domain='hospital', but the scenario .* has 'crad'"),
        ({"split": "test"}, r"t:1: split='test', but the scenario .* has 'train'"),
        ({"unit": "weeks"}, "t:1: unit='weeks', but"),
        ({"scenario_id": "debt_999"}, "t:1: scenario 'debt_999' is not among the 1 of"),
        ({"final_value": 99999.0}, "t:1: final_value=99999 is not what was offered last"),
        ({"final_value": float("nan")}, "t:1: final_value=nan is not what was offered last"),
        ({"final_value": 99999.0, "turns": turns(None, None)}, "must lie between 0 and 3650 days"),
        ({"turns": turns(30.0, float("inf")), "final_value": 30.0}, r"turns\[1\]\.offer=inf is no"),
        ({"agreement_rule": "handshake"}, "agreement_rule='handshake' is none of stand"),
        ({"cost_usd": -1.0}, "t:1: cost_usd=-1.0 must be a finite number"),
        ({"cost_usd": float("nan")}, "t:1: cost_usd=nan must be"),
    ],
)
def test_dialogues_that_do_not_fit_are_refused(fields, words):
    with pytest.raises(InputError, match=words):
        check_dialogues("crad", [(own(**fields), "t:1")], [(ONE, "s:1")])


def speakers(*names):
    return tuple(
        msgspec.structs.replace(turn, speaker=name)
        for turn, name in zip(turns(*[30.0] * len(names)), names, strict=True)
    )


@pytest.mark.parametrize(
    ("names", "index"),
    [
        (("counterparty", "focal"), 0),
        (("focal", "focal", "counterparty"), 1),
        (("focal", "counterparty", "counterparty"), 2),
    ],
)
def test_the_focal_agent_opens_and_the_two_take_turns(names, index):
    said = own(turns=speakers(*names), final_value=30.0)
    with pytest.raises(
        InputError, match=rf"t:1: turns\[{index}\]\.speaker=.*the focal agent opens"
    ):
        check_dialogues("crad", [(said, "t:1")], [(ONE, "s:1")])


def test_all_bad_lines_are_told_at_once_and_no_more_than_twenty():
    bad = [(own(name=f"d{n}", cost_usd=-1.0), f"t:{n}") for n in range(30)]
    with pytest.raises(InputError) as caught:
        check_dialogues("crad", bad, [(ONE, "s:1")])
    lines = str(caught.value).split("\n")
    assert len(lines) == 22 and lines[20] == "… and 10 more." and lines[0].startswith("t:0: cost")
    refuse([])


def test_lines_of_other_fields_are_told_at_once(tmp_path):
    path = tmp_path / "crad/sweep/trajectories.jsonl"
    path.parent.mkdir(parents=True)
    good = own().to_json()
    anger = json.loads(json.dumps(good).replace('"emotion": null', '"emotion": "furious"'))
    path.write_text(lines_of(anger, good, good | {"seed": "x", "trajectory_id": "b"}))
    write_records(path.with_name("scenarios.jsonl"), [ONE])
    with pytest.raises(InputError, match=r"(?s)jsonl:1: .*'furious' is none of.*jsonl:3: .*seed"):
        read_sweep(tmp_path / "crad", PACK)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"focal_target": -5.0}, "focal_target=-5 must lie between 0 and 3650 days"),
        ({"counterparty_anchor": 1e6}, "counterparty_anchor=1e[+]06 must lie between"),
        ({"focal_target": 120.0, "counterparty_anchor": 20.0}, "below counterparty_anchor=20 in"),
        ({"unit": "hours"}, "unit='hours'; scenarios of crad are in 'days'"),
        ({"fields": {"x": float("nan")}}, "field 'x' of `fields` is nan"),
        ({"domain": "student"}, "domain='student' in a file for --domain crad"),
    ],
)
def test_scenarios_outside_their_domain_are_refused(fields, words):
    wrong = msgspec.structs.replace(ONE, **fields)
    with pytest.raises(InputError, match=f"s:1: .*{words}"):
        check_dialogues("crad", [], [(wrong, "s:1")])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_target_is_finite_and_not_the_anchor(value):
    line = ONE.to_json()
    for fields in ({"focal_target": value}, {"focal_target": line["counterparty_anchor"]}):
        with pytest.raises(InputError, match="s:1"):
            Scenario.from_json(line | fields, where="s:1")


@pytest.mark.parametrize("domain", ["crad", "disaster", "hospital", "student"])
def test_the_built_in_scenarios_are_within_their_domains(domain):
    spec = get_domain(domain)
    assert not [p for s in load_scenarios(domain) for p in scenario_problems(s, spec)]


def test_empty_fields_are_refused_before_anybody_is_prompted_with_them():
    empty = msgspec.structs.replace(ONE, fields={})
    for who in ("focal", "counterparty", "judge"):
        with pytest.raises(InputError, match=r"s:1: `fields`: .*nothing is known as \{"):
            check_prompts(PACK, [(empty, "s:1")], (who,))
        check_prompts(PACK, [(ONE, "s:1")], (who,))
    check_prompts(PACK, [(empty, "s:1")], ())


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (
            judgement("hospital/a/seed_0000", 0, 5),
            "trajectory_id='hospital/a/seed_0000' is none of",
        ),
        (judgement(ID, 1, 5), "turn_index=1 is the counterparty's"),
        (judgement(ID, 8, 5), "turn_index=8, and .* has turns 0 to 2"),
        (judgement(ID, -1, 5), "turn_index=-1"),
        (judgement(ID, 0, 5, judge="somebody"), "judge='somebody' in sim-judge.jsonl"),
        (judgement(ID, 0, 5, rubric_sha256="ef"), "rubric_sha256='ef', and 'cd' before it"),
        (judgement(ID, 0, 5, repeat=-1), "repeat=-1 must be"),
        (judgement(ID, None, 5, cost_usd=float("inf")), "cost_usd=inf must be"),
    ],
)
def test_scores_of_something_else_are_refused(tmp_path, score, words):
    good = judgement(ID, 2, 7)
    path = tmp_path / "sim-judge.jsonl"
    check_scores([(good, "j:1")], [own()], path)
    with pytest.raises(InputError, match=f"j:2: {words}"):
        check_scores([(good, "j:1"), (score, "j:2")], [own()], path)


def test_a_sweep_is_read_with_its_checks(tmp_path):
    home = tmp_path / "crad"
    write_records(home / "sweep/trajectories.jsonl", [own()])
    write_records(home / "sweep/scenarios.jsonl", [ONE])
    scores = home / "judge/sim-judge.jsonl"
    write_records(scores, [judgement(ID, 0, 5)])
    assert read_sweep(home, PACK, scores, prompted=("focal", "judge")).scores == {(ID, 0): 5}
    write_records(scores, [judgement("other", 0, 5)])
    with pytest.raises(InputError, match=r"sim-judge\.jsonl:1: trajectory_id='other'"):
        read_sweep(home, PACK, scores)
    held_out = msgspec.structs.replace(ONE, split="test")
    write_records(home / "sweep/scenarios.jsonl", [held_out])
    with pytest.raises(InputError, match=r"trajectories\.jsonl:1: split='train', but the scenario"):
        read_sweep(home, PACK)


def test_a_scenario_that_no_prompt_can_be_filled_with_is_named_by_its_line(tmp_path):
    path = tmp_path / "own.jsonl"
    lines = [scenario.to_json() for scenario in load_scenarios("crad")[:8]]
    lines[1]["fields"] = {}
    for line in lines:
        del line["split"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = SweepConfig(run=tmp_path / "run", scenarios=path, num_test=2)
    with pytest.raises(InputError, match=r"own\.jsonl:2: `fields`"):
        STAGES["sweep"].job(Cell(config))
