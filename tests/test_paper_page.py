"""docs/paper.md: its names are there, it leaves nothing out, and its figures are the code's."""

import ast
import dataclasses
import functools
import math
import re
import string
from pathlib import Path

import pytest
from scipy import stats

from emodistill import configs
from emodistill.configs import STUDIES, EvaluateConfig, IQLConfig, JPOConfig, SFTConfig
from emodistill.reports import paper
from emodistill.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
OUTSIDE = ("tests/", "docs/")
NAMED = re.compile(r"`((?:[\w-]+/)*[\w-]+\.(?:py|toml|svg))(?::([\w.]+))?`")
WHAT_IS_RUN = {
    *("domain", "seed", "num_scenarios", "scenarios", "strict", "cells", "sft_cell", "method"),
    *("model", "focal", "student", "counterparty", "judge", "reader", "prompt_pack", "emotion"),
    *("trained_on", "run", "against", "only", "test_ids"),
}
"""Settings that say what is run, and are neither the paper's nor ours."""
SHARED = {f.name for f in dataclasses.fields(configs.AdapterConfig)}
WATCHED = {"turns", "watch", "select", "stop_when_hacked", "watch_every", "watch_seeds"}
PLAYED = {f.name for f in dataclasses.fields(configs.DialogueConfig)}


def rows(heading):
    """The cells of all table rows between a heading and the next one."""
    _, found, rest = PAGE.partition(f"\n## {heading}\n")
    assert found, heading
    lines = rest.partition("\n## ")[0].splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in cells]


@functools.cache
def defined_in(path):
    """The names that a module defines, with those of its classes' methods."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            if isinstance(node, ast.ClassDef):
                inner = [n.name for n in node.body if isinstance(n, ast.FunctionDef)]
                found |= {f"{node.name}.{name}" for name in inner}
    return found


def test_every_name_is_there():
    missing = []
    for file, name in set(NAMED.findall(PAGE)):
        path = (ROOT if file.startswith(OUTSIDE) else ROOT / "emodistill") / file
        if not path.is_file() or (name and name not in defined_in(path)):
            missing.append(f"{file}:{name}")
    assert missing == []
    assert len(NAMED.findall(PAGE)) > 80


def test_every_numbered_part_is_there_and_has_a_place():
    equations, parts = [], []
    for number, _, where, _ in (row for row in rows("Equations") if len(row) == 4):
        if number[:1].isdigit():
            equations += map(int, number.split(","))
            assert NAMED.search(where), number
    assert sorted(equations) == list(range(1, 34))
    for heading in ("Equations", "Tables and figures", "Appendices"):
        for row in rows(heading):
            if re.match(r"(Algorithm|Table|Figure) \d|[A-Q],", row[0]):
                parts.append(row[0].partition(",")[0])
                assert NAMED.search(row[-1]) or row[0].startswith("O,"), row
    assert parts == [
        *(f"Algorithm {n}" for n in range(1, 4)),
        *(f"Table {n}" for n in range(1, 17)),
        *("Figure 1", "Figure 2"),
        *string.ascii_uppercase[:17],
    ]


def default(name):
    kind, _, field = name.partition(".")
    cls = getattr(configs, kind)
    student = {cls.student_field: "a checkpoint"} if cls.student_field else {}
    value = getattr(cls(**student), field)
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def settings_on_page():
    listed = {row[0].strip("`"): row[1] for row in rows("Settings") if "." in row[0]}
    return {name: value for name, value in listed.items() if name[0].isupper()}


def test_the_defaults_are_the_codes():
    wrong = {n: (v, default(n)) for n, v in settings_on_page().items() if v != default(n)}
    assert wrong == {}


@pytest.mark.parametrize(
    ("kind", "elsewhere"),
    [
        ("SweepConfig", set()),
        ("JudgeConfig", set()),
        ("IQLConfig", set()),
        ("SFTConfig", set()),
        ("JPOConfig", SHARED),
        ("ALoLConfig", (SHARED | WATCHED) - {"learning_rate"}),
        ("DPOConfig", (SHARED | WATCHED) - {"learning_rate"}),
        ("GRPOConfig", PLAYED | SHARED),
        ("PPOConfig", {f.name for f in dataclasses.fields(configs.OnPolicyConfig)}),
        ("EvaluateConfig", (PLAYED | SHARED) - {"focal_temperature"}),
        ("ReplayConfig", {f.name for f in dataclasses.fields(EvaluateConfig)} | {"turn"}),
        ("ReportConfig", set()),
    ],
)
def test_every_setting_that_changes_results_is_listed(kind, elsewhere):
    fields = dataclasses.fields(getattr(configs, kind))
    names = {f.name for f in fields if not f.metadata.get("operational")}
    listed = {name.partition(".")[2] for name in settings_on_page() if name.startswith(kind)}
    assert names - listed - WHAT_IS_RUN - elsewhere == set()


def test_every_flag_that_it_names_is_one():
    known = {
        field.name
        for cls in (*configs.CONFIGS.values(), *STUDIES.values())
        for field in dataclasses.fields(cls)
    }
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]+)", PAGE)}
    assert flags - known == {"help", "config"} and len(flags) > 10


def test_printed_yaml_takes_what_the_page_calls_printed_and_changes_nothing_else():
    """What it changes beside configs/ours.yaml has a comment that says where it is printed."""
    path = ROOT / "configs/printed.yaml"
    file, ours = Settings.read(path), Settings.read(ROOT / "configs/ours.yaml")
    lines = path.read_text(encoding="utf-8").splitlines()
    commented = {line.partition(":")[0].strip() for line in lines if "  # " in line}
    changed = set()
    for name in ours.sections.keys() | file.sections.keys() - {"run"}:
        before, after = (one.sections.get(name) or {} for one in (ours, file))
        if isinstance(before, dict) and isinstance(after, dict):
            keys = before.keys() | after.keys()
            changed |= {key for key in keys if before.get(key) != after.get(key)}
    assert changed == commented
    jpo, sft = file.config(JPOConfig), file.config(SFTConfig)
    assert (jpo.ratio, jpo.data, sft.loss_mean) == ("sequence", "top", "reply-sum")
    assert file.config(IQLConfig).advantage_q == "online"
    assert file.config(EvaluateConfig).policy == "closed-form"
    assert (file.config(IQLConfig).num_steps, sft.num_epochs) == (50_000, 2)


def outcome_deviation(domain, method):
    """The population deviation of Table 1's outcomes, which it has of utilities alone."""
    success, _, _, utility, deviation, *_ = paper.tables()["1"][domain][method]
    num = round(success / 5)  # of 20 scenarios
    squares = (deviation**2 + utility**2) * 20 / num
    return math.sqrt(max(0.0, squares - (utility * 20 / num) ** 2)), num


def test_the_papers_intervals_are_by_formula():
    """Table 9: m ± 1.96 s/√n, cut at 0; Tables 10 and 11: m ± t s/√n, cut at 100."""

    def fits(published, half):
        mean, low, high = published
        expected = max(0.0, mean - half), min(100.0, mean + half)
        return all(abs(a - b) <= 0.11 for a, b in zip(expected, (low, high), strict=True))

    num_normal, odd = 0, []
    for domain, by_method in paper.tables()["9"].items():
        for method, published in by_method.items():
            deviation, num = outcome_deviation(domain, method)
            num_normal += fits(published, 1.96 * deviation / math.sqrt(num))
    for table, source in (("10", "5"), ("11", "2")):
        for block, by_label in paper.tables()[table].items():
            for label, published in by_label.items():
                success, _, deviation, *_ = paper.tables()[source][block][label]
                num = round(success / 5)
                half = stats.t.isf(0.025, num - 1) * deviation / math.sqrt(num)
                if not fits(published, half):
                    odd.append((table, block, label))
    assert num_normal == 23
    qwen = "qwen2.5-3b-instruct"
    assert odd == [("10", qwen, "iql+sft"), ("10", qwen, "iql+sft+jpo")]


def test_the_paper_has_both_deviations():
    """Of k agreements at 1 among 20, and the rest at 0: which deviation is printed?"""
    for table, domain, label, num_won, ddof in (
        ("1", "disaster", "vanilla-llm", 3, 0),
        ("1", "hospital", "iql+sft+jpo", 9, 0),
        ("12", "hospital", "free-sft", 2, 1),
        ("12", "disaster", "free-jpo", 3, 1),
        ("12", "hospital", "free-jpo", 8, 1),
        ("14", "disaster", "iql+sft+alol", 2, 1),
        ("14", "disaster", "iql+sft+jpo", 6, 0),
    ):
        utility, deviation = paper.tables()[table][domain][label][3:5]
        p = num_won / 20
        assert utility == pytest.approx(100 * p)
        expected = 100 * math.sqrt(p * (1 - p) * 20 / (20 - ddof))
        assert deviation == pytest.approx(expected, abs=0.06)


def test_utilities_tell_which_deviation_outcomes_have():
    """Of 20 scenarios, failures at 0: the deviation of utilities follows from that of outcomes."""

    def fits(row, ddof):
        success, outcomes, of_outcomes, utility, printed, *_ = row
        num = round(success / 5)
        squares = of_outcomes**2 * (num - ddof) + num * outcomes**2
        expected = math.sqrt(max(0.0, (squares - 20 * utility**2) / (20 - ddof)))
        return abs(expected - printed) <= 0.12

    rows = [
        row
        for table in ("2", "5")
        for by_label in paper.tables()[table].values()
        for row in by_label.values()
    ]
    assert (len(rows), sum(fits(row, 0) for row in rows)) == (21, 20)
    kappas = paper.tables()["6"]["iql+sft+jpo"]
    assert fits(kappas["κ = 0.75"], 1) and not fits(kappas["κ = 0.75"], 0)
    trained = paper.tables()["3"]["crad"]
    neither = [kappas["κ = 0"], trained["free-sft"], trained["free-sft+jpo"]]
    assert not any(fits(row, ddof) for row in neither for ddof in (0, 1))
