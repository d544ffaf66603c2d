"""Tables against hand-made numbers, and in their three forms."""

import csv
import json
import math
import re

import msgspec
import pytest
from report_runs import (
    begin,
    make_dialogue,
    make_evaluations,
    make_sweep,
    run_data,
    whole_run,
    write_dialogues,
    write_metrics,
)

from emodistill.configs import METHODS, ReportConfig
from emodistill.errors import InputError
from emodistill.evaluation.arms import Arm, write_arms
from emodistill.llm.usage import Usage
from emodistill.reports import build, paper, read_run, write_report
from emodistill.reports.case_studies import STRIPPED, cases_markdown
from emodistill.reports.catalogue import RECIPES
from emodistill.reports.curves import read_curve
from emodistill.reports.recipe import make_table
from emodistill.reports.report_table import (
    ReportTable,
    TableColumn,
    csv_text,
    latex,
    markdown,
    plain,
    signed,
)
from emodistill.reports.results import Readings, Resampling
from emodistill.reports.run_data import CAVEAT
from emodistill.reports.training_content import on_policy_step_s

RECIPE = {recipe.name: recipe for recipe in RECIPES}


PUBLISHED = (
    *("success", "outcomes", "outcomes_std", "utility", "utility_std"),
    *("rounds", "rounds_std"),
)
"""What the paper's numbers of a row of methods are."""


def method_rows(evaluations, tmp_path, num_resamples=10):
    resampling = Resampling(num_resamples)
    return run_data(tmp_path, evaluations=evaluations, resampling=resampling).method_rows


def differences(evaluations, tmp_path, num_resamples=500):
    resampling = Resampling(num_resamples)
    return run_data(tmp_path, evaluations=evaluations, resampling=resampling).differences


def written_rows(path):
    return list(csv.DictReader(path.with_suffix(".csv").open(newline="")))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The tables of one domain, written once for the tests that only read them."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    write_metrics(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "ALL_FIGURES", {})
        return write_report(whole_run(run))


def test_table_1_by_hand(tmp_path):
    """Savings .8 and .4 and one failure: success 2/3, outcomes .6 ± .2, utility .4 ± .327."""
    dialogues = [
        make_dialogue(number=1, share=0.8, turns=4),
        make_dialogue(number=2, share=0.4, turns=6),
        make_dialogue(number=3, share=None, turns=8),
    ]
    (row,) = method_rows({"crad": {"iql": dialogues}}, tmp_path, 500)
    assert (row["block"], row["method"], row["num_dialogues"]) == ("crad", "iql", 3)
    assert row["success"] == pytest.approx(100 * 2 / 3)
    assert (row["outcomes"], row["outcomes_std"]) == pytest.approx((60.0, 20.0))
    assert (row["utility"], row["utility_std"]) == pytest.approx((40.0, 100 * math.sqrt(0.32 / 3)))
    assert (row["rounds"], row["rounds_std"]) == pytest.approx((6.0, math.sqrt(8 / 3)))
    for name in ("utility_ci", "utility_clustered"):
        assert 0 <= row[f"{name}_low"] < row["utility"] < row[f"{name}_high"] <= 80


def test_statistics_about_which_the_paper_says_two_things(tmp_path):
    """Savings .8 and .4: ± 20 or 28.3; t of one degree of freedom is 12.706."""
    dialogues = [make_dialogue(number=n, share=s) for n, s in enumerate((0.8, 0.4), 1)]
    parts = {"evaluations": {"crad": {"iql": dialogues}}}
    for readings, deviation, half in (
        (Readings(), 20.0, 20.0),  # of two values the bootstrap has these two alone
        (Readings(interval="student"), 20.0, 12.7062 * 20 / math.sqrt(2)),
        (Readings("sample", "student"), math.sqrt(800), 12.7062 * math.sqrt(800) / math.sqrt(2)),
    ):
        data = run_data(tmp_path, **parts, readings=readings, resampling=Resampling(500))
        (row,) = data.method_rows
        assert row["outcomes_std"] == row["utility_std"] == pytest.approx(deviation)
        ends = (60 - half, 60 + half)
        assert (row["interval_low"], row["interval_high"]) == pytest.approx(ends, rel=1e-5)
        note = make_table(RECIPE["table-1"], data).notes[0]
        assert f"± is the {readings.deviation} standard deviation" in note
        note = make_table(RECIPE["table-9"], data).notes[0]
        student = f"Student's t with the {readings.deviation} deviation over dialogues"
        assert (student in note) is (readings.interval == "student")
    command = ReportConfig(deviation="sample", outcome_interval="student", run=tmp_path)
    assert read_run(command).readings == Readings("sample", "student", "mean")


def test_a_run_against_another(tmp_path):
    """Utilities of .8 and .6 against .5 and .5 on the same scenarios: 20 points."""
    shares = {"this": (0.8, 0.6), "other": (0.5, 0.5)}
    for run, (first, second) in shares.items():
        path = tmp_path / run / "crad/eval/iql@sim-counterparty/default.jsonl"
        played = [make_dialogue(number=n, share=s) for n, s in ((1, first), (2, second))]
        write_dialogues(path, played)
    write_dialogues(
        tmp_path / "this/crad/eval/random@sim-counterparty/default.jsonl", [make_dialogue(share=1)]
    )
    config = ReportConfig(run=tmp_path / "this", against=tmp_path / "other", num_resamples=200)
    (row,) = written_rows(write_report(read_run(config), only="against"))
    assert (row["method"], row["num_scenarios"]) == ("iql", "2")
    means = [float(row[name]) for name in ("method_mean", "baseline_mean", "difference")]
    assert means == pytest.approx([70, 50, 20])
    assert row["reading"] == "unclear"  # two scenarios show nothing
    ends = float(row["interval_low"]), float(row["interval_high"])
    assert ends == pytest.approx((10, 30))
    (tmp_path / "empty").mkdir()
    for other, message in (
        ("empty", r"empty holds no dialogue of evaluate\.py"),
        ("none", "none: there is no such folder"),
        ("other/../this", "is this run; name another one"),
    ):
        with pytest.raises(InputError, match=message):
            read_run(ReportConfig(run=tmp_path / "this", against=tmp_path / other))


def test_the_emotion_free_tables_start_from_a_student_without_the_block(tmp_path):
    methods = ("vanilla-slm", "vanilla-slm-free", "free-sft")
    played = {m: [make_dialogue(method=m, share=0.5)] for m in methods}
    data = run_data(tmp_path, evaluations={"crad": played})
    for name in ("table-3", "table-12"):
        rows = make_table(RECIPE[name], data).rows
        assert [row["method"] for row in rows] == ["vanilla-slm-free", "free-sft"]
        assert rows[0]["paper_utility"] == 8.8


def test_the_papers_numbers_stand_beside_ours(tmp_path):
    """Under the keys of their columns, in their order; a row that the paper lacks has none."""
    dialogues = [make_dialogue(number=n, share=s) for n, s in enumerate((0.8, 0.4, None), 1)]
    data = run_data(tmp_path, evaluations={"crad": {"iql": dialogues}})
    (row,) = make_table(RECIPE["table-1"], data).rows
    numbers = paper_row("table-1", "crad", "iql")
    assert math.isnan(numbers.pop("outcomes_std"))
    assert {name: row[f"paper_{name}"] for name in numbers} == numbers
    assert row["less_utility"] == pytest.approx(40 - 63.6)
    other = run_data(tmp_path, evaluations={"crad": {"oracle": dialogues}})
    assert not any(key.startswith("paper_") for key in make_table(RECIPE["table-1"], other).rows[0])


def test_rows_come_in_order_and_empty_files_are_left_out(tmp_path):
    evaluations = make_evaluations(("student", "crad"), 1, 1)
    evaluations["crad"]["iql"] = []
    evaluations["crad"]["oracle"] = [make_dialogue(share=1.0, method="oracle")]
    for domain, by_method in evaluations.items():
        for method, dialogues in by_method.items():
            path = tmp_path / domain / "eval" / f"{method}@sim-counterparty" / "default.jsonl"
            write_dialogues(path, dialogues)
    rows = read_run(ReportConfig(run=tmp_path, num_resamples=10)).method_rows
    assert [row["method"] for row in rows if row["block"] == "crad"] == [
        *(method for method in METHODS if method != "iql"),
        "oracle",
    ]
    assert [row["block"] for row in rows] == ["crad"] * 7 + ["student"] * 7


def test_a_dialogue_under_another_domain_is_refused(tmp_path):
    write_dialogues(tmp_path / "student/eval/iql@sim-counterparty/default.jsonl", [make_dialogue()])
    with pytest.raises(InputError, match=r"crad/debt_001/seed_0000 is a dialogue of crad"):
        read_run(ReportConfig(run=tmp_path))


def test_clustered_interval_sees_that_dialogues_of_a_scenario_are_alike(tmp_path):
    """Ten equal dialogues on each of four scenarios hold no more than four."""
    dialogues = [
        make_dialogue(number=number, seed=seed, share=0.2 * number)
        for number in range(1, 5)
        for seed in range(10)
    ]
    (row,) = method_rows({"crad": {"iql": dialogues}}, tmp_path, 2000)
    naive = row["utility_ci_high"] - row["utility_ci_low"]
    assert row["utility_clustered_high"] - row["utility_clustered_low"] > 2 * naive


def test_differences_are_paired_on_shared_scenarios(tmp_path):
    """A constant gain over scenarios of very different difficulty has no width when paired."""
    before = [make_dialogue(number=n, share=0.1 * n) for n in range(1, 7)]
    after = [make_dialogue(number=n, share=0.1 * n + 0.25) for n in range(1, 7)]
    alone = make_dialogue(number=9, share=1.0)
    evaluations = {"crad": {"vanilla-slm": before, "iql+sft+jpo": [*after, alone]}}
    (gain,) = differences(evaluations, tmp_path)
    assert gain["comparison"] == "iql+sft+jpo − vanilla-slm"
    assert (gain["num_scenarios"], gain["reading"]) == (6, "higher")
    assert math.isnan(gain["num_needed"])  # no variance, so nothing to plan with
    values = gain["difference"], gain["interval_low"], gain["interval_high"]
    assert values == pytest.approx((25.0,) * 3)
    swapped = {"crad": {"vanilla-slm": after, "iql+sft+jpo": before}}
    assert differences(swapped, tmp_path)[0]["reading"] == "lower"
    mixed = [make_dialogue(number=n, share=0.1 * n + 0.1 * (-1) ** n) for n in range(1, 6)]
    unclear = {"crad": {"vanilla-slm": before, "iql+sft+jpo": mixed}}
    assert differences(unclear, tmp_path)[0]["reading"] == "unclear"


def test_differences_are_tested_and_corrected_by_hand(tmp_path):
    """Of 2^5 flips of signs, 2 lead as far as five equal signs, 4 as far as four and a zero."""
    gains = {
        "vanilla-slm": (0, 0, 0, 0, 0),
        "iql": (0.1, 0.2, 0.1, 0.2, 0.1),
        "iql+sft": (0, 0.1, 0.1, 0.3, 0.2),
    }
    evaluations = {
        "crad": {
            method: [make_dialogue(number=n, share=0.4 + gain) for n, gain in enumerate(found, 1)]
            for method, found in gains.items()
        },
        "student": {
            method: [make_dialogue("student", share=0.4 + found[1])]
            for method, found in gains.items()
        },
    }
    data = run_data(tmp_path, evaluations=evaluations, resampling=Resampling(500))
    p = {(d["block"], d["comparison"]): (d["p"], d["p_holm"]) for d in data.differences}
    assert p["crad", "iql − vanilla-slm"] == pytest.approx((2 / 32, 3 * 2 / 32))
    assert p["crad", "iql+sft − vanilla-slm"] == pytest.approx((4 / 32, 2 * 4 / 32))
    assert p["crad", "iql+sft − iql"] == pytest.approx((1, 1))
    # Differences of −10, −10, 0, 10, 10 deviate by 10; half a deviation takes 34 pairs (G*Power).
    assert data.differences[2]["num_needed"] == 34
    path = write_report(data, only="differences")
    lines = [re.sub(" +", " ", line) for line in path.read_text().splitlines()]
    (crad,) = [line for line in lines if line.startswith("| iql − vanilla-slm | 5")]
    (single,) = [line for line in lines if line.startswith("| iql − vanilla-slm | 1")]
    assert crad.endswith("| +14.0 | +10.0 to +18.0 | unclear | 0.0625 | 0.1875 | 12 |")
    assert single.endswith("| unclear | N/A | N/A | N/A |")
    assert "sees an effect of 5 points with a power of 0.8" in path.read_text()
    *_, line = written_rows(path)
    assert (line["block"], line["p"], line["p_holm"], line["num_needed"]) == ("Student", "", "", "")


def paper_row(table, block, label):
    numbers = paper.numbers(table, block, label)
    return dict(zip(PUBLISHED, numbers, strict=True))


def test_the_papers_figures_agree_with_each_other():
    """Utility is success times outcomes, up to the paper's rounding: a check on the copying."""
    wrong = []
    for name in ("1", "2", "3", "5", "6", "12", "14"):
        for block, rows in paper.tables()[name].items():
            for label in rows:
                row = paper_row(f"table-{name}", block, label)
                if abs(row["success"] * row["outcomes"] / 100 - row["utility"]) > 0.15:
                    wrong.append((name, block, label))
    assert not wrong


def test_the_papers_tables_repeat_the_same_runs():
    """Where two of its tables show one run, success, utility and rounds are the same."""
    tables = paper.tables()
    for domain in tables["4"]:
        for label, method in (
            ("vanilla-llm", "vanilla-llm"),
            ("iql", "iql"),
            (f"iql+sft+jpo of {domain}", "iql+sft+jpo"),
        ):
            here, there = paper_row("4", domain, label), paper_row("table-1", domain, method)
            for name in ("success", "utility", "rounds"):
                assert here[name] == there[name], (domain, label)
    assert tables["3"]["crad"] == tables["12"]["crad"]
    assert tables["6"]["iql+sft+jpo"]["κ = 1"] == tables["14"]["crad"]["iql+sft+jpo"]
    for domain, rows in tables["9"].items():
        for method, (outcomes, low, high) in rows.items():
            assert outcomes == paper_row("table-1", domain, method)["outcomes"]
            assert low <= outcomes <= high


def test_csv_holds_every_number(written, tmp_path):
    rows = method_rows(make_evaluations(), tmp_path, 200)
    lines = written_rows(written.with_name("table-1"))
    assert [line["method"] for line in lines] == list(METHODS)
    for line, row in zip(lines, rows, strict=True):
        for name in ("utility", "utility_std", "utility_clustered_high"):
            assert float(line[name]) == row[name]
        assert float(line["less_utility"]) == row["utility"] - float(line["paper_utility"])
    comparisons = {line["comparison"] for line in written_rows(written.with_name("differences"))}
    assert comparisons >= {
        "iql+sft+jpo − vanilla-slm",
        "iql − random",
        "iql+sft+jpo − iql+sft",
    }


def test_markdown_and_latex_are_well_formed(written, tmp_path):
    for path in (p for p in written.parent.glob("*.md") if p.stem != "cases"):
        groups = re.findall(r"(?:^\|.*\n)+", path.read_text(), flags=re.M)
        assert groups, path
        for group in groups:
            assert len({line.replace("\\|", "").count("|") for line in group.splitlines()}) == 1
    for path in written.parent.glob("*.tex"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("%")]
        assert not re.search(r"(?<!\\)%", "\n".join(lines)), path
        num_columns = len(re.search(r"tabular\}\{(\w+)\}", path.read_text())[1])
        rows = [line for line in lines if line.endswith(r"\\") and "multicolumn" not in line]
        assert rows and all(len(re.findall(r"(?<!\\)&", r)) == num_columns - 1 for r in rows), path
    text = written.with_name("table-1.md").read_text()
    assert "population standard deviation" in text
    assert "nothing about real models" in text
    assert "Focal side: embedded. Counterparty: sim-counterparty." in text
    odd = make_dialogue(share=0.5, method="50%_greedy & co")
    data = run_data(tmp_path, evaluations={"crad": {odd.focal.method: [odd]}})
    assert r"50\%\_greedy \& co & 1 & 100.0 &" in latex(make_table(RECIPE["table-1"], data))


def test_numbers_without_a_value_are_named_and_left_out(tmp_path):
    data = run_data(tmp_path, evaluations={"crad": {"iql": [make_dialogue(share=None)]}})
    assert math.isnan(data.method_rows[0]["outcomes"])
    table = make_table(RECIPE["table-1"], data)
    assert "| N/A |" in re.sub(" +", " ", markdown(table))
    assert "nan" not in markdown(table) + csv_text(table) + latex(table)
    assert (plain(-0.04), signed(-0.04), signed(-1.26), signed(3.0), plain(-1.26)) == (
        "0.0",
        "0.0",
        "−1.3",
        "+3.0",
        "−1.3",
    )


def test_a_table_in_its_three_forms():
    table = ReportTable(
        name="x",
        title="X",
        columns=(
            TableColumn("name", "name"),
            TableColumn("mean", "mean %", spread="std", best="max"),
            TableColumn("ci", "interval", spread="interval", group="paper"),
            TableColumn("low", "less", best="min", is_signed=True, group="paper"),
            TableColumn("none", "none", spread="std"),
        ),
        rows=(
            {"name": "a|b", "mean": 1.04, "mean_std": 2.0, "ci_low": 0.0, "ci_high": 3.0}
            | {"low": -0.26, "block": "B"},
            {"name": "e", "mean": 2.0, "block": "other"},
            {"name": "c", "mean": 1.0, "mean_std": math.nan, "low": 0.0, "block": "B"},
            {"name": "d", "mean": math.nan, "block": "B"},
        ),
        notes=("Note.",),
    )
    assert csv_text(table).splitlines() == [
        "block,name,mean,mean_std,ci_low,ci_high,low,none",
        "B,a|b,1.04,2.0,0.0,3.0,-0.26,",
        "B,c,1.0,,,,0.0,",
        "B,d,,,,,,",
        "other,e,2.0,,,,,",
    ]
    lines = [re.sub(" +", " ", line) for line in markdown(table).splitlines()]
    assert lines[:5] == ["# X", "", "Note.", "", "## B"]
    assert lines[8:11] == [
        "| a\\|b | 1.0 ± 2.0 | 0.0 to 3.0 | **−0.3** | – |",
        "| c | 1.0 | – | 0.0 | – |",
        "| d | N/A | – | – | – |",
    ]
    lines = latex(table).splitlines()
    assert r"& & \multicolumn{2}{c}{paper} &  \\" in lines
    assert r"a|b & 1.0 $\pm$ 2.0 & 0.0 to 3.0 & \textbf{$-$0.3} & -- \\" in lines


def arm(label, domain="crad", **more):
    return Arm(block="iql+sft+jpo", label=label, domain=domain, method="iql+sft+jpo", **more)


def test_a_study_table_has_its_arms_and_says_what_is_missing(tmp_path):
    arms = [
        arm("κ = 0", status="finished", path="a.jsonl"),
        arm("κ = 0.5", status="failed", reason="disk full"),
        arm("κ = 1"),
    ]
    write_arms(tmp_path, "kappa", arms)
    dialogues = [make_dialogue(number=n, share=0.5, method="iql+sft+jpo") for n in (1, 2)]
    write_dialogues(tmp_path / "a.jsonl", dialogues)
    data = read_run(ReportConfig(run=tmp_path, num_resamples=10))
    path = write_report(data, only="table-6")
    text = path.read_text()
    assert "Missing: CRAD: iql+sft+jpo κ = 0.5 (disk full); CRAD: iql+sft+jpo κ = 1." in text
    (line,) = written_rows(path)
    assert (line["method"], float(line["utility"]), line["paper_utility"]) == ("κ = 0", 50, "73.2")
    with pytest.raises(InputError, match=r"nothing for table-2 yet; scripts/ablate.py signal"):
        write_report(data, only="table-2")


def test_the_papers_figures_of_one_domain_stand_beside_no_other(tmp_path):
    domains = ("crad", "hospital")
    arms = [arm("κ = 1", domain, path=f"{domain}.jsonl", status="finished") for domain in domains]
    write_arms(tmp_path, "kappa", arms)
    for domain in domains:
        write_dialogues(tmp_path / f"{domain}.jsonl", [make_dialogue(domain, share=0.5)])
    path = write_report(read_run(ReportConfig(run=tmp_path, num_resamples=10)), only="table-6")
    first, second = written_rows(path)
    assert (first["block"], first["paper_utility"]) == ("CRAD: iql+sft+jpo", "72.2")
    assert (second["block"], second["paper_utility"]) == ("Hospital: iql+sft+jpo", "")


def test_a_run_that_has_logged_nothing_is_named(tmp_path):
    (path, *_) = write_metrics(tmp_path)
    path.write_text("")
    text = write_report(whole_run(tmp_path), only="table-15").read_text()
    assert "Missing: iql of CRAD, which has logged nothing yet." in text


def test_evaluations_that_were_cut_off_are_named(tmp_path):
    path = tmp_path / "crad/eval/iql@sim-counterparty/default.jsonl"
    write_dialogues(path, [make_dialogue(method="iql", share=0.5)])
    begin(path.parent, manifest="default.manifest.json")
    text = write_report(read_run(ReportConfig(run=tmp_path)), only="table-1").read_text()
    command = f"evaluate.py --config {path.with_name('default.config.yaml')}"
    assert f"some dialogues of iql in CRAD (go on with {command})" in text


def test_a_tournament_table_has_both_roles(tmp_path):
    pairs = {
        (a, b): [make_dialogue(number=n, share=0.25 if a == b else 0.5) for n in (1, 2)]
        for a in ("iql", "vanilla-llm")
        for b in ("iql", "vanilla-llm")
    }
    data = run_data(tmp_path, tournament={"crad": pairs})
    path = write_report(data, only="table-13")
    first, second = written_rows(path)
    assert (first["focal"], second["focal"]) == ("vanilla-llm", "iql")
    assert float(second["utility_vanilla-llm"]) == 50 and second["paper_vanilla-llm"] == "3.2"
    assert float(first["less_vanilla-llm"]) == pytest.approx(25 - 3.2)
    lines = written_rows(write_report(data, only="ratings"))
    assert [float(line["strength"]) for line in lines] == pytest.approx([0, 0], abs=1e-6)
    del pairs["iql", "iql"]
    data = run_data(tmp_path, tournament={"crad": pairs})
    for name in ("table-13", "ratings"):
        text = write_report(data, only=name).read_text()
        assert ("Missing: iql against iql in CRAD." in text) == (name == "table-13")


def test_stability_and_sequences_come_from_curves_and_sweep(tmp_path, written):
    lines = written_rows(written.with_name("table-15"))
    assert [line["block"] for line in lines] == ["IQL", "LoRA-SFT", "JPO"]
    assert (lines[0]["num_points"], lines[0]["num_steps"]) == ("60", "60")
    assert (lines[0]["paper_control"], lines[0]["paper_control_std"]) == ("0.323", "0.043")
    assert int(lines[2]["kl_spikes"]) <= 60 and lines[2]["paper_last"] == ""
    same = [make_dialogue(number=1, method="random", share=s, turns=4) for s in (0.2, 0.4, 0.9)]
    (line,) = written_rows(write_report(run_data(tmp_path, sweep=same), only="table-16"))
    first, second = (turn.emotion for turn in same[0].focal_turns)
    assert line["sequence"] == f"{first} → {second}"
    assert (line["num_dialogues"], float(line["outcomes"])) == ("3", pytest.approx(0.5, abs=0.01))
    assert line["paper"] == "curiosity → surprise (4, 1.00)"


def test_the_cost_table_adds_up_what_the_stages_counted(tmp_path):
    used = {
        "crad/sweep/trajectories": Usage(100, 3, 5_000, 700, 1.25),
        "crad/judge/gpt-4o-mini": Usage(40, 0, 2_000, 80, 0.5),
        "student/sweep/trajectories": Usage(10, 0, 400, 60, 0.25),
        "student/eval/iql+sft@deepseek/default": Usage(7, 1, 300, 20, 0.125),
        "crad/judge/qwen-plus": Usage(30, 0, 1_500, 60, 0.375),
    }
    for name, usage in used.items():
        path = tmp_path / f"{name}.usage.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(usage._asdict()))
    path = write_report(run_data(tmp_path), only="cost")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in path.read_text().splitlines()
        if line.startswith("|")
    ]
    assert rows[2] == ["CRAD", "sweep", "", "100", "3", "5,000", "700", "1.25", "–"]
    assert [row[:3] for row in rows[3:7]] == [
        ["CRAD", "judge", "gpt-4o-mini"],
        ["CRAD", "re-judging", "qwen-plus"],
        ["Student", "sweep", ""],
        ["Student", "eval", "iql+sft@deepseek"],
    ]
    assert rows[9] == ["all", "sweep", "", "110", "3", "5,400", "760", "1.50", "31.00"]
    total, again = rows[-2:]
    assert total == [
        "all",
        *("all but re-judging", "", "157", "4", "7,700", "860", "2.12", "44.60"),
    ]
    assert again == ["all", "re-judging", "", "30", "0", "1,500", "60", "0.38", "7.00"]
    (_, first, *_) = csv.reader(path.with_suffix(".csv").read_text().splitlines())
    assert first[:5] == ["By stage", "CRAD", "sweep", "", "100"]


def test_the_case_studies_quote_what_was_said(tmp_path):
    def played(method, *shares):
        return [make_dialogue(number=n, method=method, share=s) for n, s in enumerate(shares, 1)]

    ends = {m: played(m, *s) for m, s in (("iql+sft+jpo", (0.9, 0.8)), (STRIPPED, (0.5, 0.5)))}
    sweep = played("random", 0.5, 0.5)
    text = cases_markdown(run_data(tmp_path, sweep=sweep, evaluations={"crad": ends}))
    assert "## CRAD" in text and CAVEAT in text
    assert "Emotions that close the gap" in text and "with the selector and without" in text
    assert "worth learning" not in text, "nothing is judged"
    assert sweep[0].turns[0].text.split(",")[0] in text
    assert cases_markdown(run_data(tmp_path)) is None


def test_on_policy_steps_by_hand(tmp_path):
    """4 samples of 10 s of talk and 2.5 turns judged in 3 s each, 2 at once: 35 s, 70 offline."""
    home = tmp_path / "crad/jpo/default"
    config = {"model": "embedded", "batch_size": 4}
    begin(home, identity=config)
    lines = [{"step": n, "time/step_s": s} for n, s in enumerate((9.0, 0.5, 0.5, 0.7, 0.4), 1)]
    (home / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for folder in ("judge", "sweep"):
        (tmp_path / "crad" / folder).mkdir()
    usage = Usage(num_calls=7, num_retries=2, latency_s=15.0)
    (tmp_path / "crad/judge/sim-judge.usage.json").write_text(json.dumps(usage._asdict()))
    (tmp_path / "crad/sweep/config.yaml").write_text("sweep: {concurrency: 2}\n")
    sweep = [make_dialogue(number=n, share=0.5, turns=2 + 2 * n) for n in (1, 2)]
    timed = [
        msgspec.structs.replace(
            t, turns=tuple(msgspec.structs.replace(turn, latency_s=2.0) for turn in t.turns)
        )
        for t in sweep
    ]
    _, (judged, *_) = make_sweep(num_dialogues=1)
    judgements = [
        msgspec.structs.replace(judged, trajectory_id=t.trajectory_id, turn_index=turn.index)
        for t in timed
        for turn in t.focal_turns
    ]
    judgements.insert(0, msgspec.structs.replace(judgements[0], status="failed", score=None))
    parts = {"judgements": {"crad": judgements}, "curves": [read_curve(home / "metrics.jsonl")]}
    path = write_report(run_data(tmp_path, sweep=timed, **parts), only="policy-cost")
    (line,) = written_rows(path)
    ours = {key: float(v) for key, v in line.items() if key != "domain" and "paper" not in key}
    assert ours == {
        "offline_step_s": 0.5,
        "negotiation_s": 10,
        "judging_s": 3,
        "num_turns": 5,
        "num_judged_turns": 2.5,
        "batch_size": 4,
        "concurrency": 2,
        "on_policy_step_s": 35,
        "ratio": 70,
    }
    assert (line["paper_negotiation_s"], line["paper_ratio"]) == ("75", "130")
    text = path.read_text()
    assert "Judge: sim-judge." in text and "Student: embedded." in text
    assert "Focal side: embedded. Counterparty: sim-counterparty." in text and CAVEAT in text
    untimed = run_data(tmp_path, sweep=[*sweep, make_dialogue("student")], **parts)
    text = re.sub(" +", " ", write_report(untimed, only="policy-cost").read_text())
    assert "| CRAD | 0.50 | N/A | 3.000 | 5.0 | 2.5 | 4 | 2 | N/A | N/A |" in text
    assert "Missing: JPO of Student." in text
    with pytest.raises(InputError, match=r"nothing for policy-cost yet; scripts/train_jpo.py"):
        write_report(run_data(tmp_path, sweep=sweep), only="policy-cost")


def test_the_papers_on_policy_step_follows_from_its_parts():
    row = paper.tables()["policy-cost"]["all"]["jpo"]
    offline_s, talk_s, judging_s, turns, samples, at_once, on_policy_s, ratio = row
    found_s = on_policy_step_s(
        batch_size=samples,
        negotiation_s=talk_s,
        num_judged_turns=turns,
        judging_s=judging_s,
        concurrency=at_once,
    )
    assert found_s == on_policy_s == 680
    assert on_policy_s / offline_s == pytest.approx(ratio, rel=0.05)  # it says roughly
