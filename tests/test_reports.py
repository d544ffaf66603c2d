"""Tables against hand-made numbers; the page read back as HTML; equal inputs, equal bytes."""

import csv
import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from emodistill.domains import format_value, get_domain
from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.evaluation.arms import Arm
from emodistill.evaluation.metrics import dialogue_utility, num_otherwise_under
from emodistill.evaluation.tournament import EMBEDDED_OPPOSITE
from emodistill.llm.client import Usage
from emodistill.records import CounterpartyPlayer, FocalPlayer, Judgement, Trajectory, Turn
from emodistill.reports import PARTS, RunData, table, write_report
from emodistill.reports.catalogue import TABLES
from emodistill.reports.dialogues import offer_track, outcome_line, typical_pair
from emodistill.reports.figures import Curve, _looks, _told_apart, read_curve, support_maps
from emodistill.reports.paper import PaperCell, paper_cell, tables
from emodistill.reports.table import Block, Column, PlusMinus, Range, Table, plain, signed
from emodistill.reports.tables import (
    METHODS,
    Resampling,
    entries_of,
    method_rows,
    method_table,
    paired_differences,
)
from emodistill.reports.viewer import CAVEAT, headline
from emodistill.runs import begin_stage
from emodistill.seeding import stream

SKILL = dict(zip(METHODS, (0.3, 0.35, 0.35, 0.5, 0.6, 0.55, 0.7), strict=True))
POSITIONS = {"crad": (20.0, 110.0), "disaster": (90.0, 25.0), "hospital": (21.0, 3.0)}
POSITIONS["student"] = (0.5, 4.0)
SAY = (
    "I have read your file closely, and {value} is what this case can carry.",
    "Let us be plain with each other: {value} serves both of us.",
    "I hear what you say, and I am moving. Can we meet at {value}?",
    "This matters to me. {value} would let us close it today.",
)
ANSWER = (
    "That is a lot to ask of me right now. I could manage {value}.",
    "I would need {value}; anything else breaks my week.",
    "You are pressing hard, but fine, {value} is possible.",
)


def make_dialogue(domain="crad", number=1, seed=0, method="vanilla-slm", *, share=None, turns=None):
    """A dialogue as the stages write it; `share` of the gap is won, None ends it unfinished."""
    target, anchor = POSITIONS[domain]
    gap = target - anchor
    final_value = None if share is None else round((anchor + gap * share) * 4) / 4
    unit = get_domain(domain)
    scenario_id = unit.scenario_id(number)
    rng = stream(seed, "test-reports", domain, scenario_id, method)
    num_turns = turns or int(rng.integers(2, 5)) * 2
    said = []
    for index in range(num_turns):
        is_focal = index % 2 == 0
        progress = index / max(1, num_turns - 1)
        end = 0.5 if share is None else share
        position = 1 - (1 - end) * progress if is_focal else end * progress
        is_last = share is not None and index == num_turns - 1
        value = round((anchor + gap * position) * 4) / 4
        phrases = SAY if is_focal else ANSWER
        text = phrases[index // 2 % len(phrases)].format(value=format_value(domain, value))
        said.append(
            Turn(
                index=index,
                speaker="focal" if is_focal else "counterparty",
                emotion=EMOTIONS[int(rng.integers(28))] if is_focal else None,
                text="Agreed, let us put that in writing." if is_last else text,
                offer=None if is_last else value,
            )
        )
    return Trajectory(
        trajectory_id=f"{domain}/{scenario_id}/seed_{seed:04d}",
        domain=domain,
        scenario_id=scenario_id,
        seed=seed,
        split="test",
        focal_target=target,
        counterparty_anchor=anchor,
        unit=unit.unit,
        focal=FocalPlayer(method=method, model="embedded", temperature=0.7),
        counterparty=CounterpartyPlayer(model="sim-counterparty", temperature=0.7),
        prompt_pack_sha256="0" * 64,
        agreement_rule="stand",
        turns=tuple(said),
        outcome="ongoing" if share is None else "accepted",
        final_value=final_value,
    )


def make_evaluations(domains=("crad",), num_scenarios=6, num_seeds=2, methods=METHODS):
    """Better methods win more and fail less."""
    evaluations = {}
    for domain in domains:
        for method in methods:
            for number in range(1, num_scenarios + 1):
                for seed in range(num_seeds):
                    rng = stream(seed, "test-share", domain, number, method)
                    share = min(1.0, max(0.0, SKILL[method] + 0.2 * rng.standard_normal()))
                    fails = rng.random() > 0.6 + 0.4 * SKILL[method]
                    dialogue = make_dialogue(
                        domain, number, seed, method, share=None if fails else share
                    )
                    evaluations.setdefault(domain, {}).setdefault(method, []).append(dialogue)
    return evaluations


def make_sweep(domain="crad", num_dialogues=40):
    """A sweep and its judgements; every hundredth turn can't be scored."""
    sweep, judgements = [], []
    for i in range(num_dialogues):
        dialogue = make_dialogue(domain, 1 + i % 8, i, "random", share=0.5)
        sweep.append(dialogue)
        for turn in dialogue.focal_turns:
            rank = EMOTIONS.index(turn.emotion)
            noise = stream(i, "test-score", turn.index).standard_normal()
            score = int(min(10, max(1, round(3 + 5 * rank / 27 + noise))))
            failed = len(judgements) % 100 == 99
            judgements.append(
                Judgement(
                    trajectory_id=dialogue.trajectory_id,
                    turn_index=turn.index,
                    judge="sim-judge",
                    repeat=0,
                    attempt=int(failed),
                    rubric_sha256="1" * 64,
                    raw="hm" if failed else f"SCORE: {score}",
                    status="failed" if failed else "scored",
                    score=None if failed else score,
                )
            )
    return sweep, judgements


def write_metrics(run, domain="crad", num_steps=60):
    paths = []
    for stage, metrics in {
        "iql": ("value/loss", "critic/loss", "actor/loss", "policy/entropy"),
        "sft": ("sft/loss",),
        "jpo": ("policy/surrogate", "policy/kl_k3", "policy/ratio_mean"),
    }.items():
        path = run / domain / stage / "default" / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        rng = stream(0, "test-metrics", domain, stage)
        lines = []
        for step in range(1, num_steps + 1):
            values = {m: math.exp(-step / 20) + 0.05 * rng.standard_normal() for m in metrics}
            lines.append(json.dumps({"step": step, **values}) + "\n")
        path.write_text("".join(lines))
        paths.append(path)
    return paths


def make_support():
    """Two clusters; in the second the policy leaves the data for `joy` (.3 of 40 turns)."""
    data, policy = np.full((2, 28), 10), np.full((2, 28), 10.0)
    joy = EMOTIONS.index("joy")
    data[1] = [0 if i == joy else 2 for i in range(28)]
    policy[1] = [12 if i == joy else 28 / 27 for i in range(28)]
    return {
        "emotions": list(EMOTIONS),
        "data": data.tolist(),
        "policy": policy.tolist(),
        "min_support": 1,
        "unsupported": 12 / 320,
    }


def report(run, out, **changes):
    sweep, judgements = make_sweep()
    options = {name: changes.pop(name) for name in ("only", "provenance") if name in changes}
    data = {
        "evaluations": make_evaluations(),
        "judgements": {"crad": judgements},
        "trajectories": {"crad": sweep},
        "curves": [read_curve(path) for path in sorted(run.rglob("metrics.jsonl"))],
        "support": {"crad": make_support()},
        "caveat": CAVEAT,
        "resampling": Resampling(0, 200),
    }
    return write_report(RunData(run_dir=run, **data | changes), out_dir=out, **options)


def table_1(evaluations, num_resamples=10):
    return method_rows("table-1", entries_of(evaluations), Resampling(0, num_resamples))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report of one domain, written once for the tests that only read it."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    write_metrics(run)
    (run / "crad" / "sweep").mkdir(parents=True)
    usage = json.dumps(Usage(num_calls=9)._asdict())
    (run / "crad" / "sweep" / "trajectories.usage.json").write_text(usage)
    return report(run, run / "report", provenance={"Preset": "configs/<quick>.yaml"})


def test_table_1_by_hand():
    """Savings .8 and .4 and one failure: success 2/3, outcomes .6 ± .2, utility .4 ± .327."""
    dialogues = [
        make_dialogue(number=1, share=0.8, turns=4),
        make_dialogue(number=2, share=0.4, turns=6),
        make_dialogue(number=3, share=None, turns=8),
    ]
    (row,) = table_1({"crad": {"iql": dialogues}}, num_resamples=500)
    assert (row.num_dialogues, row.num_scenarios) == (3, 3)
    assert row.success == pytest.approx(100 * 2 / 3)
    assert (row.outcomes, row.outcomes_std) == pytest.approx((60.0, 20.0))
    assert (row.utility, row.utility_std) == pytest.approx((40.0, 100 * math.sqrt(0.32 / 3)))
    assert (row.rounds, row.rounds_std) == pytest.approx((6.0, math.sqrt(8 / 3)))
    for ci in (row.utility_ci, row.utility_clustered):
        assert ci.mean == pytest.approx(row.utility)
        assert 0 <= ci.low < row.utility < ci.high <= 80
    assert row.paper.utility == 63.6


def test_rows_come_in_order_and_empty_cells_are_left_out():
    shuffled = {
        domain: dict(reversed(by_method.items()))
        for domain, by_method in make_evaluations(("student", "crad"), 1, 1).items()
    }
    shuffled["crad"]["iql"] = []
    shuffled["crad"]["oracle"] = [make_dialogue(share=1.0, method="oracle")]
    rows = table_1(shuffled)
    assert [row.label for row in rows if row.block == "crad"] == [
        *(method for method in METHODS if method != "iql"),
        "oracle",
    ]
    assert [row.block for row in rows] == ["crad"] * 7 + ["student"] * 7


def test_a_dialogue_under_another_domain_is_refused():
    with pytest.raises(InputError, match=r"crad/debt_001/seed_0000 is a dialogue of crad"):
        table_1({"student": {"iql": [make_dialogue()]}})


def test_clustered_interval_sees_that_dialogues_of_a_scenario_are_alike():
    """Ten equal dialogues on each of four scenarios hold no more than four."""
    dialogues = [
        make_dialogue(number=number, seed=seed, share=0.2 * number)
        for number in range(1, 5)
        for seed in range(10)
    ]
    (row,) = table_1({"crad": {"iql": dialogues}}, num_resamples=2000)
    naive = row.utility_ci.high - row.utility_ci.low
    clustered = row.utility_clustered.high - row.utility_clustered.low
    assert clustered > 2 * naive


def test_differences_are_paired_on_shared_scenarios():
    """A constant gain over scenarios of very different difficulty has no width when paired."""
    before = [make_dialogue(number=n, share=0.1 * n) for n in range(1, 6)]
    after = [make_dialogue(number=n, share=0.1 * n + 0.25) for n in range(1, 6)]
    alone = make_dialogue(number=9, share=1.0)
    evaluations = {"crad": {"vanilla-slm": before, "iql+sft+jpo": [*after, alone]}}
    (difference,) = paired_differences(evaluations, Resampling(0, 500))
    assert (difference.method, difference.baseline) == ("iql+sft+jpo", "vanilla-slm")
    assert difference.num_scenarios == 5
    assert (difference.mean, difference.low, difference.high) == pytest.approx((25.0,) * 3)
    assert difference.verdict == "higher"
    assert dataclasses.replace(difference, low=-1.0).verdict == "unclear"
    assert dataclasses.replace(difference, low=-9.0, high=-1.0).verdict == "lower"


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
    tested = paired_differences(evaluations, Resampling(0, 500))
    p = {(d.domain, d.method, d.baseline): (d.p, d.p_holm) for d in tested}
    assert p["crad", "iql", "vanilla-slm"] == pytest.approx((2 / 32, 3 * 2 / 32))
    assert p["crad", "iql+sft", "vanilla-slm"] == pytest.approx((4 / 32, 2 * 4 / 32))
    assert p["crad", "iql+sft", "iql"] == pytest.approx((1, 1))
    # Differences of −10, −10, 0, 10, 10 deviate by 10; half a deviation takes 34 pairs (G*Power).
    assert tested[2].num_needed == 34
    path = report(tmp_path, tmp_path, only="differences", evaluations=evaluations)
    lines = [re.sub(" +", " ", line) for line in path.read_text().splitlines()]
    (crad,) = [line for line in lines if line.startswith("| iql − vanilla-slm | 5")]
    (single,) = [line for line in lines if line.startswith("| iql − vanilla-slm | 1")]
    assert crad.endswith("| +14.0 | +10.0 to +18.0 | higher | 0.0625 | 0.1875 | 12 |")
    assert single.endswith("| higher | N/A | N/A | N/A |")
    assert "sees an effect of 5 points with a power of 0.8" in path.read_text()
    *_, line = csv.DictReader(path.with_suffix(".csv").open(newline=""))
    assert (line["block"], line["p"], line["p_holm"], line["num_needed"]) == ("Student", "", "", "")


METHOD_TABLES = ("1", "2", "3", "5", "6", "12", "14")


@pytest.mark.parametrize("name", METHOD_TABLES)
def test_the_papers_figures_agree_with_each_other(name):
    """Utility is success times outcomes, up to the paper's rounding: a check on the copying."""
    for block, rows in tables()[name].items():
        for label in rows:
            cell = paper_cell(f"table-{name}", block, label)
            product = cell.success * cell.outcomes / 100
            assert product == pytest.approx(cell.utility, abs=0.15), (block, label)


def test_the_papers_tables_repeat_the_same_runs():
    """Where two of its tables show one run, success, utility and rounds are the same."""
    for domain, rows in tables()["4"].items():
        for label, method in (
            ("vanilla-llm", "vanilla-llm"),
            ("iql", "iql"),
            (f"iql+sft+jpo of {domain}", "iql+sft+jpo"),
        ):
            here, there = PaperCell(*rows[label]), paper_cell("table-1", domain, method)
            assert (here.success, here.utility, here.rounds) == (
                there.success,
                there.utility,
                there.rounds,
            )
    assert tables()["3"]["crad"] == tables()["12"]["crad"]
    assert paper_cell("table-6", "iql+sft+jpo", "κ = 1") == paper_cell(
        "table-14", "crad", "iql+sft+jpo"
    )
    for domain, rows in tables()["9"].items():
        for method, (outcomes, low, high) in rows.items():
            assert outcomes == paper_cell("table-1", domain, method).outcomes
            assert low <= outcomes <= high


def test_csv_holds_every_number(written):
    rows = table_1(make_evaluations(), num_resamples=200)
    lines = list(csv.DictReader((written.parent / "table-1.csv").open(newline="")))
    assert [line["method"] for line in lines] == list(METHODS)
    for line, row in zip(lines, rows, strict=True):
        assert float(line["utility"]) == row.utility
        assert float(line["utility_std"]) == row.utility_std
        assert float(line["utility_clustered_high"]) == row.utility_clustered.high
        assert float(line["paper_utility"]) == row.paper.utility
        assert float(line["less_utility"]) == row.utility - row.paper.utility
    differences = list(csv.DictReader((written.parent / "differences.csv").open(newline="")))
    assert {d["comparison"] for d in differences} >= {
        "iql+sft+jpo − vanilla-slm",
        "iql − random",
        "iql+sft+jpo − iql+sft",
    }


def test_markdown_and_latex_are_well_formed(written):
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
    text = (written.parent / "table-1.md").read_text()
    assert "population standard deviation" in text
    assert "nothing about real models" in text
    assert "Focal side: embedded. Counterparty: sim-counterparty." in text
    odd = make_dialogue(share=0.5, method="50%_greedy & co")
    rows = table_1({"crad": {odd.focal.method: [odd]}})
    assert r"50\%\_greedy \& co & 1 & 100.0 &" in table.latex(method_table("x", "X", rows))


def test_numbers_without_a_value_are_named_and_left_out():
    rows = table_1({"crad": {"iql": [make_dialogue(share=None)]}})
    assert math.isnan(rows[0].outcomes)
    made = method_table("x", "X", rows)
    assert "| N/A |" in re.sub(" +", " ", table.markdown(made))
    assert "nan" not in table.markdown(made) + table.csv_text(made) + table.latex(made)
    assert (plain(-0.04), signed(-0.04), signed(-1.26), signed(3.0), plain(-1.26)) == (
        "0.0",
        "0.0",
        "−1.3",
        "+3.0",
        "−1.3",
    )


def test_a_table_in_its_three_forms():
    made = Table(
        name="x",
        title="X",
        columns=(
            Column(key="name", title="name"),
            Column(key="mean", title="mean %", best="max"),
            Column(key="ci", title="interval", group="paper"),
            Column(key="low", title="less", best="min", is_signed=True, group="paper"),
        ),
        blocks=(
            Block(
                title="B",
                rows=(
                    ("a|b", PlusMinus(1.04, 2.0), Range(0.0, 3.0), -0.26),
                    ("c", PlusMinus(1.0, math.nan), None, 0.0),
                    ("d", math.nan, None, None),
                ),
            ),
        ),
        notes=("Note.",),
    )
    assert table.csv_text(made).splitlines() == [
        "block,name,mean,mean_std,ci_low,ci_high,low",
        "B,a|b,1.04,2.0,0.0,3.0,-0.26",
        "B,c,1.0,,,,0.0",
        "B,d,,,,,",
    ]
    lines = [re.sub(" +", " ", line) for line in table.markdown(made).splitlines()]
    assert lines[:5] == ["# X", "", "Note.", "", "## B"]
    assert lines[8:] == [
        "| a\\|b | **1.0 ± 2.0** | 0.0 to 3.0 | **−0.3** |",
        "| c | **1.0** | – | 0.0 |",
        "| d | N/A | – | – |",
    ]
    latex = table.latex(made).splitlines()
    assert r"& & \multicolumn{2}{c}{paper} \\" in latex
    assert r"a|b & \textbf{1.0 $\pm$ 2.0} & 0.0 to 3.0 & \textbf{$-$0.3} \\" in latex


def test_a_study_table_has_its_arms_and_says_what_is_missing(tmp_path):
    def arm(label, **more):
        return Arm(block="iql+sft+jpo", label=label, domain="crad", method="iql+sft+jpo", **more)

    arms = [
        arm("κ = 0", status="finished", path="a.jsonl"),
        arm("κ = 0.5", status="failed", reason="disk full"),
        arm("κ = 1"),
    ]
    dialogues = [make_dialogue(number=n, share=0.5, method="iql+sft+jpo") for n in (1, 2)]
    path = report(
        tmp_path,
        tmp_path / "out",
        only="table-6",
        arms={"kappa": arms},
        arm_dialogues={"a.jsonl": dialogues},
    )
    text = path.read_text()
    assert "Missing: CRAD: iql+sft+jpo κ = 0.5 (disk full); CRAD: iql+sft+jpo κ = 1." in text
    (line,) = csv.DictReader((tmp_path / "out/table-6.csv").open(newline=""))
    assert (line["method"], float(line["utility"]), line["paper_utility"]) == ("κ = 0", 50, "73.2")
    with pytest.raises(InputError, match=r"nothing for table-2 yet; scripts/ablate.py signal"):
        report(tmp_path, tmp_path / "out", only="table-2")


def test_the_papers_figures_of_one_domain_stand_beside_no_other(tmp_path):
    arms = [
        Arm(
            block="iql+sft+jpo",
            label="κ = 1",
            domain=domain,
            method="iql+sft+jpo",
            path=f"{domain}.jsonl",
            status="finished",
        )
        for domain in ("crad", "hospital")
    ]
    dialogues = {f"{arm.domain}.jsonl": [make_dialogue(arm.domain, share=0.5)] for arm in arms}
    found = {"arms": {"kappa": arms}, "arm_dialogues": dialogues}
    path = report(tmp_path, tmp_path / "out", only="table-6", **found)
    first, second = csv.DictReader(path.with_suffix(".csv").open(newline=""))
    assert (first["block"], first["paper_utility"]) == ("CRAD: iql+sft+jpo", "72.2")
    assert (second["block"], second["paper_utility"]) == ("Hospital: iql+sft+jpo", "")


def test_a_run_that_has_logged_nothing_is_named(tmp_path):
    (path, *_) = write_metrics(tmp_path)
    path.write_text("")
    text = report(tmp_path, tmp_path / "out", only="table-15").read_text()
    assert "Missing: iql of CRAD, which has logged nothing yet." in text


def test_evaluations_that_were_cut_off_are_named(tmp_path):
    unfinished = {("crad", "iql"): "evaluate.py --config x.yaml"}
    text = report(tmp_path, tmp_path / "out", only="table-1", unfinished=unfinished).read_text()
    assert "some dialogues of iql in CRAD (go on with evaluate.py --config x.yaml)" in text


def test_a_tournament_table_has_both_seats(tmp_path):
    pairs = {
        (a, b): [make_dialogue(number=n, share=0.25 if a == b else 0.5) for n in (1, 2)]
        for a in ("iql", "vanilla-llm")
        for b in ("iql", "vanilla-llm")
    }
    path = report(tmp_path, tmp_path / "out", only="table-13", tournament={"crad": pairs})
    first, second = csv.DictReader(path.with_suffix(".csv").open(newline=""))
    assert (first["focal"], second["focal"]) == ("vanilla-llm", "iql")
    assert float(second["utility_vanilla-llm"]) == 50 and second["paper_vanilla-llm"] == "3.2"
    assert float(first["less_vanilla-llm"]) == pytest.approx(25 - 3.2)
    rated = report(tmp_path, tmp_path / "out", only="ratings", tournament={"crad": pairs})
    lines = list(csv.DictReader(rated.with_suffix(".csv").open(newline="")))
    assert [float(line["strength"]) for line in lines] == pytest.approx([0, 0], abs=1e-6)
    assert EMBEDDED_OPPOSITE not in path.read_text()
    opposite = CounterpartyPlayer(model="embedded", temperature=0.4)
    pairs = {
        pair: [dataclasses.replace(t, counterparty=opposite) for t in ts]
        for pair, ts in pairs.items()
    }
    for name in ("table-13", "ratings"):
        path = report(tmp_path, tmp_path / "out", only=name, tournament={"crad": pairs})
        assert EMBEDDED_OPPOSITE in path.read_text()


def test_more_curves_than_looks_leave_those_of_the_default_cells():
    def curve(domain: str, cell: str) -> Curve:
        return Curve(domain, "jpo", cell, {"jpo/kl": (np.arange(3), np.zeros(3))})

    cells = ["default", *(f"kappa={k}-0000" for k in range(6))]
    few = [curve(domain, cell) for domain in ("crad", "student") for cell in cells[:4]]
    assert _told_apart(few) == few
    assert len(set(_looks(few).values())) == 8
    many = [curve("crad", cell) for cell in cells]
    assert [c.cell for c in _told_apart(many)] == ["default"]
    assert _told_apart(many[1:]) == many[1:]


def test_stability_and_sequences_come_from_curves_and_sweep(tmp_path, written):
    lines = list(csv.DictReader((written.parent / "table-15.csv").open(newline="")))
    assert [line["block"] for line in lines] == ["IQL", "LoRA-SFT", "JPO"]
    assert (lines[0]["num_points"], lines[0]["num_steps"]) == ("60", "60")
    assert (lines[0]["paper_control"], lines[0]["paper_control_std"]) == ("0.323", "0.043")
    assert int(lines[2]["kl_spikes"]) <= 60 and lines[2]["paper_last"] == ""
    same = [make_dialogue(number=1, method="random", share=s, turns=4) for s in (0.2, 0.4, 0.9)]
    path = report(tmp_path, tmp_path / "out", only="table-16", trajectories={"crad": same})
    (line,) = csv.DictReader(path.with_suffix(".csv").open(newline=""))
    first, second = (turn.emotion for turn in same[0].focal_turns)
    assert line["sequence"] == f"{first} → {second}"
    assert (line["num_dialogues"], float(line["utility"])) == ("3", pytest.approx(0.5, abs=0.01))
    assert line["paper"] == "curiosity → surprise (4, 1.00)"


class Reader(HTMLParser):
    """Collects tags, attributes and text; fails where tags don't close in order."""

    VOID = frozenset(["meta", "br", "hr", "img", "input", "link"])

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)


def read_page(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert not reader.open
    return reader


def test_page_is_one_offline_file(written):
    page = read_page(written)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    loads = ("src", "href", "xlink:href", "srcset", "poster", "action")
    foreign = [a for a in page.attributes if a[1] in loads and not a[2].startswith("#")]
    assert not foreign
    text = written.read_text()
    assert not re.search(r"@import|url\((?!#)", text)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {a[2][1:] for a in page.attributes if a[1] in ("href", "xlink:href")}
    assert targets | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert not re.search("#(1f2328|6a737d|ffffff)", text.partition("<svg")[2]), "follows dark mode"


def test_page_says_what_it_must(written):
    text = " ".join(" ".join(read_page(written).text).split())
    gain = next(
        d
        for d in paired_differences(make_evaluations(), Resampling(0, 200))
        if (d.method, d.baseline) == ("iql+sft+jpo", "vanilla-slm")
    )
    assert f"The student got better, by {gain.mean:.1f} points of utility" in text
    assert "claim nothing about real models" in text
    _, judgements = make_sweep()
    failed = sum(j.status == "failed" for j in judgements)
    assert failed and f"{len(judgements)} items, {failed} without a readable score" in text
    assert "configs/<quick>.yaml" in text
    for part in (
        "Before training: vanilla-slm",
        "After training: iql+sft+jpo",
        "EmoDistill, arXiv:2605.26785",
    ):
        assert part in text
    assert text.count(" Agreement at ") + text.count("Breakdown") + text.count("Still open") >= 2


def test_whatever_is_said_stays_text(tmp_path):
    attack = "</p></style><script>alert(1)</script> & {{ 7 * 7 }} <img src=x onerror=alert(1)>"
    evaluations = make_evaluations(num_scenarios=1, num_seeds=1)
    for method, (dialogue,) in evaluations["crad"].items():
        turns = tuple(dataclasses.replace(turn, text=attack) for turn in dialogue.turns)
        focal = dataclasses.replace(dialogue.focal, model="<b>sim-x</b>")
        evaluations["crad"][method] = [dataclasses.replace(dialogue, turns=turns, focal=focal)]
    path = report(
        tmp_path / "a<b>",
        tmp_path / "report",
        evaluations=evaluations,
        trajectories={},
        judgements={},
        curves=[],
        support={},
    )
    page = read_page(path)
    assert not {"script", "img"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert attack in "".join(page.text)


def test_same_inputs_same_bytes(written, tmp_path):
    run = written.parents[1]
    again = report(run, tmp_path / "again", provenance={"Preset": "configs/<quick>.yaml"})
    names = sorted(path.name for path in written.parent.iterdir())
    assert names == sorted(path.name for path in again.parent.iterdir())
    made = {name.partition(".")[0] for name in names}
    assert made <= {*PARTS, "index"} and made >= {
        *("table-1", "table-7", "table-9", "table-15", "differences", "cost", "index"),
        *("utility", "figure-1", "training-curves", "support"),
    }
    for name in names:
        assert (written.parent / name).read_bytes() == (again.parent / name).read_bytes(), name


def test_only_one_part(written, tmp_path):
    path = report(written.parents[1], tmp_path, only="table-1")
    assert path.name == "table-1.md"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"table-1.{s}" for s in ("csv", "md", "tex")
    ]
    with pytest.raises(InputError, match=r"only='table-17' .* use one of table-1"):
        report(written.parents[1], tmp_path, only="table-17")
    assert set(TABLES) >= {f"table-{number}" for number in range(1, 17)}


def test_the_support_map_crosses_out_what_the_data_does_not_know():
    figure = support_maps({"crad": make_support()})
    (ax,) = figure.axes
    assert ax.get_title(loc="left") == "CRAD: 3.8% outside the data"
    (crosses,) = ax.lines
    assert crosses.get_xydata().tolist() == [[EMOTIONS.index("joy") + 0.5, 1.5]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["280", "54"]


def test_nothing_to_report_leaves_nothing(tmp_path):
    empty = {
        "evaluations": {"crad": {"iql": []}},
        "trajectories": {},
        "judgements": {},
        "support": {},
    }
    with pytest.raises(InputError, match=r"holds nothing for a report yet"):
        report(tmp_path, tmp_path / "out", curves=[], **empty)
    with pytest.raises(InputError, match=r"nothing for training-curves .* a training run"):
        report(tmp_path, tmp_path / "out", curves=[], only="training-curves")
    assert not (tmp_path / "out").exists()


def test_a_run_without_both_ends_promises_nothing():
    found = headline([])
    assert not found.tiles
    assert "evaluate both vanilla-slm and iql+sft+jpo" in found.lead


def test_headline_claims_no_more_than_the_intervals():
    differences = [
        d
        for d in paired_differences(make_evaluations(("crad", "student"), 2, 1), Resampling(0, 10))
        if (d.method, d.baseline) == ("iql+sft+jpo", "vanilla-slm")
    ]
    crad, student = (dataclasses.replace(d, mean=5.0, low=1.0, high=9.0) for d in differences)
    unclear = dataclasses.replace(student, low=-1.0)
    worse = dataclasses.replace(student, mean=-5.0, low=-9.0, high=-1.0)
    assert headline([crad, student]).title == "The student got better in all 2 domains"
    assert headline([crad, unclear]).title == "The student got better in 1 of 2 domains"
    assert "1 got worse" in headline([crad, worse]).lead
    assert headline([unclear]).title.endswith("the interval includes zero")
    assert headline([worse]).title == "The student got worse, by 5.0 points of utility"
    assert "Of these, 2 can't be told" in headline([unclear, unclear]).lead


def test_headline_speaks_of_the_scenarios_that_both_ends_played():
    evaluations = make_evaluations(("crad",), 6, 1)
    by_method = evaluations["crad"]
    by_method["vanilla-llm"] = by_method["vanilla-llm"][:2]
    by_method["vanilla-slm"] = by_method["vanilla-slm"][:4]
    found = headline(paired_differences(evaluations, Resampling(0, 10)))
    (tile,) = found.tiles
    assert "On 4 held-out scenarios of CRAD" in found.lead
    shared = {t.scenario_id for t in by_method["vanilla-slm"]}
    for value, method in ((tile.before, "vanilla-slm"), (tile.after, "iql+sft+jpo")):
        mean = np.mean([dialogue_utility(t) for t in by_method[method] if t.scenario_id in shared])
        assert value == pytest.approx(100 * mean)


def test_dialogues_that_failed_are_counted_on_the_page(tmp_path):
    page = report(tmp_path, tmp_path / "a", num_failed=3).read_text()
    assert "3, refused by a server or never answered" in page
    assert "never answered" not in report(tmp_path, tmp_path / "b").read_text()


def test_shown_pair_is_the_median_one():
    before = [make_dialogue(number=n, share=0.2) for n in (1, 2, 3)]
    after = [make_dialogue(number=n, share=s) for n, s in ((1, 0.9), (2, 0.3), (3, 0.5))]
    pair = typical_pair("crad", before, after)
    assert (pair.before.scenario_id, pair.after.scenario_id) == ("debt_003", "debt_003")
    assert typical_pair("crad", before[:1], after[1:]) is None


def test_a_dialogue_in_words_and_lines():
    won = make_dialogue(share=0.5, turns=4)
    assert outcome_line(won) == "agreed on 65 days after 4 turns: 50 % of the gap won"
    assert "no agreement" in outcome_line(make_dialogue(share=None))
    track = offer_track(won)
    assert track.focal[0].y == track.target_y, "the focal side opens at its target, on top"
    assert track.counterparty[-1].is_deal
    assert track.counterparty[-1].y == pytest.approx((track.target_y + track.anchor_y) / 2)


def test_an_offer_far_beyond_the_target_stays_clear_of_the_label():
    dialogue = make_dialogue(turns=4)
    turn = dataclasses.replace(dialogue.turns[0], offer=dialogue.focal_target - 1000)
    track = offer_track(dataclasses.replace(dialogue, turns=(turn, *dialogue.turns[1:])))
    assert 15 < track.focal[0].y < track.target_y


def test_metrics_with_a_torn_end_are_read_and_broken_ones_named(tmp_path):
    (path, *_) = write_metrics(tmp_path, num_steps=3)
    path.write_text(path.read_text() + '{"step": 4, "value/lo')
    curve = read_curve(path)
    assert (curve.name, curve.stage) == ("CRAD", "iql")
    assert curve.metrics["value/loss"][0].tolist() == [1, 2, 3]
    path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2"):
        read_curve(path)
    with pytest.raises(InputError, match=r"is missing"):
        read_curve(tmp_path / "crad" / "alol" / "default" / "metrics.jsonl")


def test_the_cost_table_adds_up_what_the_stages_counted(tmp_path):
    run = tmp_path / "run"
    used = {
        "crad/sweep/trajectories": Usage(100, 3, 5_000, 700, 1.25),
        "crad/judge/gpt-4o-mini": Usage(40, 0, 2_000, 80, 0.5),
        "student/sweep/trajectories": Usage(10, 0, 400, 60, 0.25),
        "student/eval/iql+sft@deepseek/default": Usage(7, 1, 300, 20, 0.125),
    }
    for name, usage in used.items():
        path = run / f"{name}.usage.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(usage._asdict()))
    nothing = {"evaluations": {}, "trajectories": {}, "judgements": {}, "support": {}}
    path = report(run, tmp_path / "out", only="cost", curves=[], **nothing)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in path.read_text().splitlines()
        if line.startswith("|")
    ]
    assert rows[2] == ["CRAD", "sweep", "", "100", "3", "5,000", "700", "1.25", "–"]
    assert [row[:3] for row in rows[3:6]] == [
        ["CRAD", "judge", "gpt-4o-mini"],
        ["Student", "sweep", ""],
        ["Student", "eval", "iql+sft@deepseek"],
    ]
    assert rows[8] == ["all", "sweep", "", "110", "3", "5,400", "760", "1.50", "31.00"]
    assert rows[-1] == ["all", "", "", "157", "4", "7,700", "860", "2.12", "44.60"]
    (_, first, *_) = csv.reader((tmp_path / "out/cost.csv").read_text().splitlines())
    assert first[:5] == ["By stage", "CRAD", "sweep", "", "100"]


def test_on_policy_steps_by_hand(tmp_path):
    """4 samples of 10 s of talk and 2.5 turns judged in 3 s each, 2 at once: 35 s, 70 offline."""
    run = tmp_path / "run"
    home = run / "crad/jpo/default"
    config = {"model": "embedded", "batch_size": 4}
    begin_stage(home, stage="jpo", config=config, seed=0, inputs={})
    lines = [{"step": n, "time/step_s": s} for n, s in enumerate((9.0, 0.5, 0.5, 0.7, 0.4), 1)]
    (home / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    usage = Usage(num_calls=7, num_retries=2, latency_s=15.0)
    (run / "crad/judge").mkdir()
    (run / "crad/judge/sim-judge.usage.json").write_text(json.dumps(usage._asdict()))
    sweep = [make_dialogue(number=n, share=0.5, turns=2 + 2 * n) for n in (1, 2)]
    timed = [
        dataclasses.replace(
            t, turns=tuple(dataclasses.replace(turn, latency_s=2.0) for turn in t.turns)
        )
        for t in sweep
    ]
    _, (judged, *_) = make_sweep(num_dialogues=1)
    judgements = [
        dataclasses.replace(judged, trajectory_id=t.trajectory_id, turn_index=turn.index)
        for t in timed
        for turn in t.focal_turns
    ]
    judgements.insert(0, dataclasses.replace(judgements[0], status="failed", score=None))
    found = {"judgements": {"crad": judgements}, "trajectories": {"crad": timed}}
    found |= {"curves": [read_curve(home / "metrics.jsonl")], "concurrency": {"crad": 2}}
    path = report(run, tmp_path / "out", only="policy-cost", **found)
    (line,) = csv.DictReader(path.with_suffix(".csv").open(newline=""))
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
    untimed = found | {"trajectories": {"crad": sweep, "student": [make_dialogue("student")]}}
    text = report(run, tmp_path / "out", only="policy-cost", **untimed).read_text()
    assert "| CRAD | 0.50 | N/A | 3.000 | 5.0 | 2.5 | 4 | 2 | N/A | N/A |" in re.sub(
        " +", " ", text
    )
    assert "Missing: JPO of Student." in text
    with pytest.raises(InputError, match=r"nothing for policy-cost yet; scripts/train_jpo.py"):
        report(run, tmp_path / "out", only="policy-cost", curves=[])


def test_the_papers_on_policy_step_follows_from_its_parts():
    offline_s, talk_s, judging_s, turns, samples, at_once, on_policy_s, ratio = tables()[
        "policy-cost"
    ]["all"]["jpo"]
    assert samples * (talk_s + turns * judging_s) / at_once == on_policy_s
    assert on_policy_s / offline_s == pytest.approx(ratio, rel=0.05)  # it says roughly


def test_the_other_rule_of_agreement_is_told_apart():
    turns = make_dialogue(share=0.5).turns
    near = dataclasses.replace(turns[1], offer=turns[0].offer + 4)
    close = dataclasses.replace(
        make_dialogue(share=0.5), turns=(turns[0], near), outcome="ongoing", final_value=None
    )
    far = dataclasses.replace(close, turns=(turns[0], dataclasses.replace(near, offer=900.0)))
    assert num_otherwise_under([close, far], "upstream") == 1
