"""Which scenarios a sweep plays and holds out: files by domain, ids, the paper's setting, and how a
report says so."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from published_tables import GOOD, HEADERS, TABLES, needs_tables
from report_runs import make_evaluations, run_data
from tiny_run import run_stage

from emodistill import cli
from emodistill.configs import JudgeConfig, PlanConfig, QuickstartConfig, ReportConfig, SweepConfig
from emodistill.domains import DOMAINS, get_domain, load_scenarios, load_split, split_scenarios
from emodistill.errors import InputError
from emodistill.offline.store import read_scenarios, read_trajectories, write_records
from emodistill.reports.build import FORMS
from emodistill.reports.catalogue import RECIPES
from emodistill.reports.recipe import Recipe, TableContent, make_table
from emodistill.reports.report_table import TableColumn
from emodistill.reports.run_data import read_run
from emodistill.runs import read_manifest
from emodistill.settings import Cell, Settings, write_settings
from emodistill.simulator.process import running_simulator
from emodistill.stages import STAGES, required_cell
from emodistill.stages.stage import Requirement, command
from emodistill.stages.sweep import split_of
from emodistill.studies import quickstart

ROOT = Path(__file__).resolve().parents[1]
FILES = {"crad": Path("tables/crad.csv"), "student": Path("tables/student.csv")}


@pytest.fixture
def mapped(tmp_path):
    """A configuration file with the scenarios of two domains."""
    path = tmp_path / "own.yaml"
    path.write_text(yaml.dump({"sweep": {"scenarios": {k: str(v) for k, v in FILES.items()}}}))
    return path


def sweep_of(*args):
    return cli.parse(SweepConfig, "", [str(arg) for arg in args]).config


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), FILES["crad"]),
        (("--domain", "student"), FILES["student"]),
        (("--domain", "student", "--scenarios", "mine.jsonl"), Path("mine.jsonl")),
        (("--domain", "hospital", "--scenarios", "mine.jsonl"), Path("mine.jsonl")),
        (("--domain", "hospital", "--scenarios", "generated"), None),
        (("--scenarios", "generated"), None),
    ],
)
def test_the_domain_that_is_played_decides_about_the_file(mapped, tmp_path, flags, expected):
    cell = cli.parse(SweepConfig, "", ["--config", str(mapped), *flags])
    assert cell.config.scenarios == expected
    # What a run leaves behind, and what a printed command says, ask for the same again.
    write_settings(tmp_path / "config.yaml", cell)
    assert cli.parse(SweepConfig, "", ["--config", str(tmp_path / "config.yaml")])[:2] == cell[:2]
    words = shlex.split(command("sweep", cell.config, Settings.read(mapped)))[2:]
    assert sweep_of(*words) == cell.config
    assert ("--scenarios" in words) == ("--scenarios" in flags)


def test_a_file_may_stand_at_the_top_and_say_generated(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("scenarios: {crad: ~/a.csv, hospital: generated}")
    assert sweep_of("--config", path).scenarios == Path("~/a.csv").expanduser()
    assert split_of(sweep_of("--config", path, "--domain", "hospital")).where
    path.write_text("scenarios: generated")
    assert sweep_of("--config", path).scenarios is None
    path.write_text("scenarios: one.csv")
    assert sweep_of("--config", path, "--domain", "student").scenarios == Path("one.csv")


def test_a_domain_without_a_file_is_never_played_unasked(mapped):
    config = sweep_of("--config", mapped, "--domain", "hospital")
    with pytest.raises(InputError, match=r"crad, student and none.*hospital: FILE.*generated"):
        split_of(config)
    with pytest.raises(InputError, match="hospital"):
        STAGES["sweep"].job(Cell(config))
    with pytest.raises(InputError, match="hospital"):  # before anything is made for crad
        domains = ("crad", "hospital")
        quickstart(QuickstartConfig(domains=domains), Settings.read(mapped))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{mars: a.csv}", r"scenarios=.*crad.*disaster.*hospital.*student.*'mars'"),
        ("[a.csv]", r"scenarios=\['a.csv'\]: expected Path \| None"),
        ("{crad: 3}", r"scenarios=.*Expected `path`, got `int`"),
    ],
)
def test_a_mapping_of_another_kind_is_refused(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(f"sweep: {{scenarios: {text}}}")
    with pytest.raises(InputError, match=message):
        sweep_of("--config", path)


def test_what_is_made_on_the_way_takes_the_file_of_its_domain(mapped):
    settings = Settings.read(mapped)
    for domain, path in FILES.items():
        judge = Cell(settings.config(JudgeConfig, domain=domain), None, settings)
        assert required_cell(judge, Requirement("sweep")).config.scenarios == path
    transfer = Cell(settings.config(JudgeConfig), None, settings)
    need = Requirement("sweep", domain="student")
    assert required_cell(transfer, need).config.scenarios == FILES["student"]
    assert settings.config(PlanConfig, domain="student").scenarios == FILES["student"]


# Which scenarios are held out.


def ids_of(split):
    return [[scenario.scenario_id for scenario in part] for part in split]


def test_the_last_of_a_file_are_held_out_in_its_order():
    scenarios = load_scenarios("crad")[:10]
    train, validation, test = ids_of(split_scenarios(scenarios, 3, 2, held_out="last"))
    assert test == ["debt_008", "debt_009", "debt_010"] and len(validation) == 2
    assert sorted(train + validation) == [f"debt_{i:03d}" for i in range(1, 8)]
    reverse = split_scenarios(scenarios[::-1], 3, 2, held_out="last")
    assert ids_of(reverse)[2] == ["debt_003", "debt_002", "debt_001"]
    assert ids_of(split_scenarios(scenarios, 0, held_out="last"))[2] == []
    drawn = split_scenarios(scenarios, 3, 2)
    named = split_scenarios(scenarios, 0, 2, test_ids=ids_of(drawn)[2])
    assert named == drawn  # the validation scenarios are drawn as before
    text = load_split("crad", num_test=20, num_validation=0, seed=0, held_out="last").text
    assert text == "split with the last 20 of the built-in scenarios held out: " + (
        "80 train, 0 validation, 20 test"
    )


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("debt_002\n\n# mine\n  debt_009 # the ninth\r\n", ["debt_002", "debt_009"]),
        ("\ufeffdebt_003", ["debt_003"]),
        ("", "names no scenario"),
        ("# debt_001\n", "names no scenario"),
        (
            "debt_001\nnope\ndebt_001\n\x1b[2Jx\n",
            r"(?s)ids:2: there is no scenario 'nope'.*ids:3: 'debt_001' stands in line 1 too.*"
            r"ids:4: there is no scenario '[^\x1b]*x'.*such as debt_001",
        ),
        ("\n".join(f"debt_{i:03d}" for i in range(1, 101)), "leave no training scenario"),
        ("x" * 200_000, "more than 131,072 bytes"),
        (b"\xff\xfe", "can't be read"),
        (None, "can't be read .No such file"),
    ],
)
def test_ids_name_the_scenarios_to_hold_out(tmp_path, text, outcome):
    path = tmp_path / "ids"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    config = SweepConfig(test_ids=path, num_validation=3)
    if isinstance(outcome, str):
        with pytest.raises(InputError, match=outcome):
            split_of(config)
        return
    split, said, *_ = split_of(config)
    assert ids_of(split)[2] == outcome and len(split.validation) == 3
    assert f"split with those of {path} held out (--num-test plays no part)" in said


def test_ids_beside_another_split_are_refused(tmp_path):
    ids, own = tmp_path / "ids", tmp_path / "own.jsonl"
    ids.write_text("debt_001")
    write_records(own, load_scenarios("crad"))  # each says its split
    with pytest.raises(InputError, match=r"--test-ids .*ids: .*own\.jsonl says itself"):
        split_of(SweepConfig(test_ids=ids, scenarios=own))
    with pytest.raises(InputError, match="leave out --held-out last, or the ids"):
        SweepConfig(test_ids=ids, held_out="last")


def test_what_is_held_out_is_part_of_what_the_sweep_is(tmp_path):
    ids = tmp_path / "ids"
    ids.write_text("debt_001")
    plain, named, last = (
        SweepConfig(run=tmp_path / "run", **changes)
        for changes in ({}, {"test_ids": ids}, {"held_out": "last"})
    )
    assert len({str(sorted(c.identity().items(), key=str)) for c in (plain, named, last)}) == 3
    assert set(STAGES["sweep"].job(Cell(plain)).inputs) == {"prompt pack"}
    before = STAGES["sweep"].job(Cell(named)).inputs
    ids.write_text("debt_002")
    assert before[str(ids)] != STAGES["sweep"].job(Cell(named)).inputs[str(ids)]


# The paper's setting.


def paper_sweep(*flags):
    """Run the sweep of configs/paper.yaml in the working directory."""
    args = ["--config", str(ROOT / "configs/paper.yaml"), *map(str, flags)]
    cli.main(SweepConfig, "", args=args)


def test_the_papers_setting_without_its_tables_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    nobody = ("--provider", "vllm", "--base-url", "http://127.0.0.1:9/v1", "--focal", "m")
    for domain in DOMAINS:
        with pytest.raises(SystemExit) as ended:
            paper_sweep("--domain", domain, *nobody)
        said = capsys.readouterr().err
        assert ended.value.code == 2
        name = get_domain(domain).table["name"]
        assert f"data/{name} does not exist" in said and f"{name} in the folder data/ of" in said
        assert "https://github.com/Yunbo-max/EmoMAS" in said and "--scenarios generated" in said
        assert not list(tmp_path.iterdir())
        page = (ROOT / "docs/reproduce.md").read_text() + (ROOT / "README.md").read_text()
        assert page.count(name) >= 2


def test_the_papers_setting_plays_built_in_scenarios_only_when_told():
    config = sweep_of("--config", ROOT / "configs/paper.yaml", "--scenarios", "generated")
    assert config.scenarios is None and config.provider == "dashscope"


@needs_tables
def test_the_papers_setting_plays_the_published_scenarios(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TABLES, "data")
    with running_simulator() as url:
        server = ("--provider", "vllm", "--base-url", url)
        models = ("--focal", "sim-teacher", "--counterparty", "sim-counterparty")
        paper_sweep(*server, *models, "--num-seeds", 1, "--held-out", "last")
    path = Path("data/credit_recovery_scenarios.csv")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [*csv.DictReader(file)]
    table = {
        f"debt_{number:03d}": (float(row["Creditor Target Days"]), float(row["Debtor Target Days"]))
        for number, row in enumerate(rows, start=1)
    }
    home = Path("runs/paper/crad/sweep")
    played = {
        t.scenario_id: (t.focal_target, t.counterparty_anchor)
        for t in read_trajectories(home / "trajectories.jsonl")
    }
    assert played == {name: table[name] for name in [*table][:-20]}
    held_out = [
        s.scenario_id for s in read_scenarios(home / "scenarios.jsonl") if s.split == "test"
    ]
    assert held_out == [*table][-20:]
    manifest = read_manifest(home)
    assert manifest is not None
    assert str(tmp_path / "data/credit_recovery_scenarios.csv") in manifest.inputs
    for domain in DOMAINS:
        config = sweep_of("--config", ROOT / "configs/paper.yaml", "--domain", domain)
        assert next(iter(split_of(config).where.values())).startswith(f"{config.scenarios}:")


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_table_of_another_shape_is_refused_with_what_was_expected(tmp_path, domain):
    path = tmp_path / "own.csv"
    path.write_text("a,b\n1,2\n")
    needed = re.escape(HEADERS[domain].split(",")[-3 if domain == "student" else 1])
    with pytest.raises(
        InputError, match=rf"(?s)own\.csv is not the {domain} table.*EmoMAS.*{needed}"
    ):
        load_scenarios(domain, path)
    path.write_text(f"{HEADERS[domain]}\n{GOOD[domain]}\n")
    assert len(load_scenarios(domain, path)) == 1


# What a report says of them.


def notes_of(data, name="table-1"):
    recipe = next(recipe for recipe in RECIPES if recipe.name == name)
    table = make_table(recipe, data)
    assert table is not None
    return [note for note in table.notes if note.startswith("Scenarios: ")]


@pytest.mark.parametrize(
    ("settings", "summary", "text"),
    [
        ({}, {"is_split_given": False}, "generated, 6 (4 train, 2 test, drawn by seed 3)"),
        ({}, {}, "generated, 6 (4 train, 2 test)"),  # unfinished
        (
            {"scenarios": "/home/me/a.csv", "held_out": "last"},
            {},
            "a.csv, 6 (4 train, 2 test, the last ones)",
        ),
        (
            {"scenarios": "a.csv", "test_ids": "x/ids.txt"},
            {"is_split_given": False},
            "a.csv, 6 (4 train, 2 test, those of ids.txt)",
        ),
        (
            {"scenarios": "a.jsonl"},
            {"is_split_given": True},
            "a.jsonl, 6 (4 train, 2 test, as the file has them)",
        ),
        ({"scenarios": "x/\x1b[2Jé\n# b.csv"}, {}, "\ufffd[2Jé # b.csv, 6 (4 train, 2 test)"),
        ({"scenarios": ["a"]}, {}, "['a'], 6 (4 train, 2 test)"),
        (None, {}, "given by the run's own scenarios.jsonl, 6 (4 train, 2 test)"),
    ],
)
def test_every_table_says_which_scenarios_it_stands_on(tmp_path, settings, summary, text):
    scenarios = split_scenarios(load_scenarios("crad")[:6], 2).all()
    home = tmp_path / "data/crad/sweep"
    write_records(home / "scenarios.jsonl", scenarios)
    if settings is not None:
        manifest = {
            "stage": "sweep",
            "status": "finished",
            "config": {"scenarios": None, "held_out": "drawn", "test_ids": None} | settings,
            "config_sha256": "0",
            "code_version": "1",
            "seed": 3,
            "inputs": {},
            "summary": summary,
        }
        (home / "manifest.json").write_text(json.dumps(manifest))
    # The run reads the sweep of another one.
    data = run_data(tmp_path / "own", data_from=tmp_path / "data", evaluations=make_evaluations())
    assert notes_of(data) == [f"Scenarios: CRAD: {text}."]
    assert notes_of(data, "table-9") == notes_of(data, "table-8") == notes_of(data)


def test_a_report_of_several_domains_names_those_of_each_table(tmp_path):
    write_records(tmp_path / "crad/sweep/scenarios.jsonl", load_scenarios("crad"))
    data = run_data(tmp_path, evaluations=make_evaluations(("crad", "student")))
    own = "CRAD: given by the run's own scenarios.jsonl, 100 (100 train)"
    (note,) = notes_of(data)
    assert note == f"Scenarios: {own}; Student: not known, as the run has no scenarios.jsonl."
    of_crad = TableContent([{"a": 1}], players_of=data.played_in("evaluation", domain="crad"))
    recipe = Recipe(name="x", title="X", content=lambda _: of_crad, columns=[TableColumn("a")])
    table = make_table(recipe, data)
    assert table is not None and f"Scenarios: {own}." in table.notes


def test_a_run_of_the_stages_says_it_in_every_form(tmp_path):
    config = SweepConfig(run=tmp_path, num_scenarios=2, num_seeds=1, num_test=5, held_out="last")
    run_stage(config)
    data = read_run(ReportConfig(run=tmp_path))
    table = make_table(next(r for r in RECIPES if r.name == "table-8"), data)
    assert table is not None
    expected = "Scenarios: CRAD: generated, 100 (95 train, 5 test, the last ones)."
    assert expected in FORMS["md"](table) and f"% {expected}" in FORMS["tex"](table)
