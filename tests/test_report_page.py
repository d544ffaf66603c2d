"""Figures, shown dialogues and the page read back as HTML; equal inputs, equal bytes."""

import dataclasses
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from report_runs import (
    make_dialogue,
    make_evaluations,
    make_support,
    make_sweep,
    run_data,
    whole_run,
    write_dialogues,
    write_metrics,
    write_support,
)

from emodistill.configs import ReportConfig
from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.evaluation.metrics import num_otherwise_under
from emodistill.llm.usage import Usage
from emodistill.offline.rewards import dialogue_utility
from emodistill.reports import RECIPES, page, read_run, write_report
from emodistill.reports.build import part_names
from emodistill.reports.curves import Curve, read_curve
from emodistill.reports.figures import _distinguishable, _looks, support_maps
from emodistill.reports.page import headline
from emodistill.reports.report_table import ReportTable, TableColumn, terminal_text
from emodistill.reports.results import Resampling
from emodistill.reports.shown_dialogues import BOTTOM, TOP, offer_track, outcome_line, typical_pair


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of one domain, written once for the tests that only read it."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    write_metrics(run)
    write_support(run)
    (run / "crad" / "sweep").mkdir(parents=True)
    usage = json.dumps(Usage(num_calls=9)._asdict())
    (run / "crad" / "sweep" / "trajectories.usage.json").write_text(usage)
    return write_report(whole_run(run))


def gains_of(run, evaluations, num_resamples=10):
    """The differences between the trained student and the untrained one."""
    data = run_data(run, evaluations=evaluations, resampling=Resampling(num_resamples))
    return [d for d in data.differences if d["comparison"] == "iql+sft+jpo − vanilla-slm"]


def test_more_curves_than_looks_leave_those_of_the_default_cells():
    def curve(domain: str, cell: str) -> Curve:
        return Curve(domain, "jpo", cell, {"jpo/kl": (np.arange(3), np.zeros(3))})

    cells = ["default", *(f"kappa={k}-0000" for k in range(6))]
    few = [curve(domain, cell) for domain in ("crad", "student") for cell in cells[:4]]
    assert _distinguishable(few) == few
    assert len(set(_looks(few).values())) == 8
    many = [curve("crad", cell) for cell in cells]
    assert [c.cell for c in _distinguishable(many)] == ["default"]
    assert _distinguishable(many[1:]) == many[1:]


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


def test_page_says_what_it_must(written, tmp_path):
    text = " ".join(" ".join(read_page(written).text).split())
    (gain,) = gains_of(tmp_path, make_evaluations(), 200)
    assert headline([gain]).title in text and gain["reading"] == "unclear"
    assert f"{gain['difference']:.1f} points, has a 95 % interval" in text
    assert re.search(r"a deal, was [\d.]+ % before training and is [\d.]+ % now", text)
    assert "claim nothing about real models" in text
    _, judgements = make_sweep()
    failed = sum(j.status == "failed" for j in judgements)
    assert failed and f"{len(judgements)} items, {failed} without a readable score" in text
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
        turns = tuple(msgspec.structs.replace(turn, text=attack) for turn in dialogue.turns)
        focal = msgspec.structs.replace(dialogue.focal, model="<b>sim-x</b>")
        evaluations["crad"][method] = [msgspec.structs.replace(dialogue, turns=turns, focal=focal)]
    data = run_data(tmp_path / "a<b>", evaluations=evaluations)
    path = write_report(data)
    page = read_page(path)
    assert not {"script", "img"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert attack in "".join(page.text)


def test_same_inputs_same_bytes(written, tmp_path):
    run = tmp_path / written.parents[1].name
    shutil.copytree(written.parents[1], run, ignore=shutil.ignore_patterns("report"))
    again = write_report(whole_run(run))
    names = sorted(path.name for path in written.parent.iterdir())
    assert names == sorted(path.name for path in again.parent.iterdir())
    parts = {name.partition(".")[0] for name in names}
    assert parts <= {*part_names(), "index"} and parts >= {
        *("table-1", "table-7", "table-9", "table-15", "differences", "cost", "index"),
        *("utility", "figure-1", "training-curves", "support"),
    }
    for name in names:
        assert (written.parent / name).read_bytes() == (again.parent / name).read_bytes(), name


def test_only_one_part(written, tmp_path):
    data = dataclasses.replace(whole_run(written.parents[1]), run_dir=tmp_path)
    path = write_report(data, only="table-1")
    assert path.name == "table-1.md"
    assert sorted(p.name for p in path.parent.iterdir()) == [
        f"table-1.{s}" for s in ("csv", "md", "tex")
    ]
    with pytest.raises(InputError, match=r"only='table-17' .* use one of table-1"):
        write_report(data, only="table-17")
    assert {recipe.name for recipe in RECIPES} >= {f"table-{number}" for number in range(1, 17)}


def test_the_support_map_crosses_out_what_the_data_does_not_know():
    figure = support_maps({"crad": make_support()})
    (ax,) = figure.axes
    assert ax.get_title(loc="left") == "CRAD: 3.8% outside the data"
    (crosses,) = ax.lines
    assert crosses.get_xydata().tolist() == [[EMOTIONS.index("joy") + 0.5, 1.5]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["280", "54"]


def test_nothing_to_report_leaves_nothing(tmp_path):
    empty = run_data(tmp_path, evaluations={"crad": {"iql": []}})
    with pytest.raises(InputError, match=r"holds nothing for a report yet"):
        write_report(empty)
    with pytest.raises(InputError, match=r"nothing for training-curves .* a training run"):
        write_report(empty, only="training-curves")
    assert not (tmp_path / "report").exists()


def test_a_run_without_both_ends_promises_nothing():
    found = headline([])
    assert not found.gains
    assert "evaluate both vanilla-slm and iql+sft+jpo" in found.lead


def test_headline_claims_no_more_than_the_intervals(tmp_path):
    gains = gains_of(tmp_path, make_evaluations(("crad", "student"), 2, 1))
    crad, student = (
        gain | {"difference": 5.0, "interval_low": 1.0, "interval_high": 9.0, "reading": "higher"}
        for gain in gains
    )
    unclear = student | {"interval_low": -1.0, "reading": "unclear"}
    worse = student | {"difference": -5.0, "interval_low": -9.0, "interval_high": -1.0}
    worse |= {"reading": "lower"}
    assert headline([crad, student]).title == "The student got better in all 2 domains"
    assert headline([crad, unclear]).title == "The student got better in 1 of 2 domains"
    assert "1 got worse" in headline([crad, worse]).lead
    assert headline([unclear]).title.startswith("Can't tell yet")
    assert headline([worse]).title == "The student got worse, by 5.0 points of utility"
    assert "Of these, 2 can't be told" in headline([unclear, unclear]).lead


def test_headline_speaks_of_the_scenarios_that_both_ends_played(tmp_path):
    evaluations = make_evaluations(("crad",), 6, 1)
    by_method = evaluations["crad"]
    by_method["vanilla-llm"] = by_method["vanilla-llm"][:2]
    by_method["vanilla-slm"] = by_method["vanilla-slm"][:4]
    words = headline(gains_of(tmp_path, evaluations))
    (gain,) = words.gains
    assert "On 4 held-out scenarios of CRAD" in words.lead
    shared = {t.scenario_id for t in by_method["vanilla-slm"]}
    after = gain["baseline_mean"] + gain["difference"]
    for value, method in ((gain["baseline_mean"], "vanilla-slm"), (after, "iql+sft+jpo")):
        mean = np.mean([dialogue_utility(t) for t in by_method[method] if t.scenario_id in shared])
        assert value == pytest.approx(100 * mean)


def test_dialogues_that_failed_are_counted_on_the_page(tmp_path):
    path = tmp_path / "crad/eval/iql@sim-counterparty/default.jsonl"
    write_dialogues(path, [make_dialogue(method="iql", share=0.5)])
    config = ReportConfig(run=tmp_path, num_resamples=10)
    assert "never answered" not in write_report(read_run(config)).read_text()
    path.with_suffix(".failures.jsonl").write_text("{}\n" * 3)
    text = write_report(read_run(config)).read_text()
    assert "3, refused by a server or never answered" in text


def test_shown_pair_is_the_median_one():
    before = [make_dialogue(number=n, share=0.2) for n in (1, 2, 3)]
    after = [make_dialogue(number=n, share=s) for n, s in ((1, 0.9), (2, 0.3), (3, 0.5))]
    pair = typical_pair(before, after)
    assert (pair.before.scenario_id, pair.after.scenario_id) == ("debt_003", "debt_003")
    assert typical_pair(before[:1], after[1:]) is None


def test_a_dialogue_in_words_and_lines():
    won = make_dialogue(share=0.5, turns=4)
    assert outcome_line(won) == "agreed on 65 days after 4 turns: 50 % of the gap won"
    assert "no agreement" in outcome_line(make_dialogue(share=None))
    first, *_, last = offer_track(won)
    assert first.y == TOP, "the focal side opens at its target, on top"
    assert (last.speaker, last.is_deal) == ("counterparty", True)
    assert last.y == pytest.approx((TOP + BOTTOM) / 2)


def test_an_offer_far_beyond_the_target_stays_clear_of_the_label():
    dialogue = make_dialogue(turns=4)
    turn = msgspec.structs.replace(dialogue.turns[0], offer=dialogue.focal_target - 1000)
    first, *_ = offer_track(msgspec.structs.replace(dialogue, turns=(turn, *dialogue.turns[1:])))
    assert 15 < first.y < TOP


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


def test_the_other_rule_of_agreement_is_told_apart():
    turns = make_dialogue(share=0.5).turns
    near = msgspec.structs.replace(turns[1], offer=turns[0].offer + 4)
    close = msgspec.structs.replace(
        make_dialogue(share=0.5), turns=(turns[0], near), outcome="ongoing", final_value=None
    )
    far = msgspec.structs.replace(
        close, turns=(turns[0], msgspec.structs.replace(near, offer=900.0))
    )
    assert num_otherwise_under([close, far], "upstream") == 1


def test_the_page_claims_no_more_than_the_corrected_test():
    gain = {
        **{"method": "iql+sft+jpo", "baseline": "vanilla-slm", "block": "crad"},
        **{"difference": 4.0, "baseline_mean": 20.0, "num_scenarios": 20, "reading": "unclear"},
        **{"interval_low": 0.5, "interval_high": 8.0, "num_to_tell": 55},
    }
    assert headline([gain]).title == (
        "Can't tell yet whether the student got better; 35 more scenarios would, if the "
        "difference stays as it is"
    )
    assert "; more scenarios would" in headline([gain | {"num_to_tell": 12}]).title
    assert headline([gain | {"num_to_tell": math.nan}]).title.endswith("got better")


def test_equal_values_are_not_set_in_bold_and_the_terminal_gets_narrow_lines():
    column = TableColumn("utility", best="max")
    table = ReportTable(name="t", title="T", columns=[column], rows=[])
    for values, bold in (([5.0, 5.0], [False, False]), ([5.0, 6.0, 6.0], [False, True, True])):
        rows = [{"utility": value} for value in values]
        assert [cells[0].is_best for cells in table.cells(rows)] == bold
    heads = "block,method,success,utility,utility_clustered_low,utility_clustered_high,rounds"
    text = terminal_text(f"{heads}\nCRAD,iql+sft+jpo,83.3,23.7,3.6,47.8,11.2\n")
    assert max(map(len, text.splitlines())) <= 80 and "3.6 to 47.8" in text


def test_nothing_of_a_table_is_hidden_or_clipped_in_print():
    folder = Path(page.__file__).parent
    assert "<details" in (html := (folder / "report.html.j2").read_text("utf-8"))
    assert html.count("<details") == html.count(" open><summary>")
    css = (folder / "report.css").read_text("utf-8")
    in_print = css[css.index("@media print") :]
    assert "white-space: normal" in in_print and "overflow: visible" in in_print
