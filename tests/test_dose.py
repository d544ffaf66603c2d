"""The study of doses, small: the truth by forks, rates and steps by validation, own dialogues."""

import csv
import json

import pytest
from tiny_run import ADAPTER, SECTIONS

from emodistill.configs import ReportConfig
from emodistill.configs.studies import DoseStudy
from emodistill.errors import InputError
from emodistill.evaluation.arms import read_arms
from emodistill.evaluation.checkpoint_looks import read_looks, selected_look
from emodistill.offline.store import read_judgements, read_trajectories
from emodistill.reports import report_study
from emodistill.settings import Settings
from emodistill.studies.arm_runner import run_study
from emodistill.studies.planned_arms import plan_arms

SMALL = Settings(
    SECTIONS
    | {
        "sweep": {"num_scenarios": 6, "num_seeds": 3, "num_validation": 2, "concurrency": 8},
        "jpo": ADAPTER | {"watch_every": 1, "watch_seeds": 1, "max_samples": 8},
        "evaluate": {"max_turns": 4, "concurrency": 8},
        "replay": {"concurrency": 8},
    }
)


def test_arms_are_doses_for_each_setting():
    study = DoseStudy(kappas=(0.0, 1.0), learners=("jpo", "iql"), own_seeds=12)
    arms = plan_arms(study)
    assert len(arms) == 1 + 2 * 5 + 1 + 1 + 5
    assert {arm.training["jpo"]["select"] for arm in arms if "jpo" in arm.training} == {"best"}
    own = [arm for arm in arms if arm.training.get("jpo", {}).get("turns") == "own"]
    assert [arm.shared for arm in own] == [{"jpo": {"own_seeds": 12}}]
    with pytest.raises(InputError, match="'median' is no ratio"):
        DoseStudy(ratios=("median",))
    with pytest.raises(InputError, match="rate_factors is empty"):
        DoseStudy(rate_factors=())


@pytest.mark.slow
def test_gains_by_validity_with_the_truth_and_own_dialogues(tmp_path, capsys):
    run = tmp_path / "dose"
    study = DoseStudy(
        run=run,
        judges=("sim-judge-0", "truth"),
        rate_factors=(1.0, 5.0),
        learners=("jpo", "iql"),
        own_seeds=2,
        num_turns=40,
        continuations=2,
        num_scenarios=3,
        num_seeds=2,
        concurrency=8,
    )
    run_study(study, SMALL)
    said = capsys.readouterr().out
    forked = said.index("forks of 40 turns to play")  # once an arm asks for them
    assert said.index("--- dose 3/7") < forked < said.index("--- dose 4/7")
    arms = read_arms(run, "dose")
    assert [(arm.label, arm.reason) for arm in arms if arm.status != "finished"] == []
    assert len(read_judgements(run / "crad/judge/truth.jsonl")) == 40
    own = read_trajectories(run / "own/default/crad/sweep/trajectories.jsonl")
    assert len(own) == 2 * 78 and {t.focal.method for t in own} == {"iql+sft"}
    assert {t.split for t in own} == {"train"}
    rows = list(csv.DictReader((run / "report/dose.csv").open(newline="")))
    assert len(rows) == len(arms) == 7 and (run / "report/dose-response.svg").is_file()
    for arm in arms:
        (cell,) = {t.focal.cells.get("jpo") for t in read_trajectories(run / arm.path)}
        if cell is None:
            continue
        home = (run / arm.path).parents[2] / "jpo"
        twins = [
            path.parent
            for path in home.glob("*/watch.jsonl")
            if json.loads((path.parent / "manifest.json").read_text())["config"]["judge"]
            == json.loads((home / cell / "manifest.json").read_text())["config"]["judge"]
        ]
        assert len(twins) == 2  # both rates
        looks = {path.name: selected_look(read_looks(path / "watch.jsonl")) for path in twins}
        worths = {name: (look.step > 0, look.utility) for name, look in looks.items()}
        assert worths[cell] == max(worths.values())
    before = {arm.path: (run / arm.path).stat().st_mtime_ns for arm in arms}
    run_study(study, SMALL)  # everything is there
    assert before == {arm.path: (run / arm.path).stat().st_mtime_ns for arm in arms}
    report_study(ReportConfig(run=run, judge="sim-judge"), "dose")
