"""How the simulated judge's weights are fitted, on planted ones."""

import dataclasses
import tomllib
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from simulated_talks import SCENARIOS, dialogues

from emodistill import simulator
from emodistill.domains import DOMAINS, load_scenarios
from emodistill.errors import InputError
from emodistill.offline.forks import TurnKey
from emodistill.records import TurnWorth
from emodistill.seeding import stream
from emodistill.simulator.judge import Rubric, rubric
from emodistill.simulator.reading import Speech
from emodistill.simulator.rubric import read_rubric
from pretraining import judge_turns
from pretraining.config import JudgeFitConfig
from pretraining.judge_fit import (
    Fit,
    FitData,
    fit,
    rubric_text,
    validities,
    validity,
    validity_intervals,
)
from pretraining.judge_turns import fork_worths, make_turns, unused_scenarios

NAMES = list(read_rubric("crad", 30.0, [Speech(True, "30 days.")], "I stay at 30 days.").points)


def planted(num_turns=600):
    """Turns whose worth is a weighted sum of their terms and luck, and the sums alone."""
    rng = stream(0, "judge-fit")
    terms = rng.normal(size=(num_turns, 4 * len(NAMES)))
    reading = terms @ np.where(np.arange(terms.shape[1]) % 9 == 0, 0.04, 0.0)
    utility = reading + 0.1 * rng.normal(size=num_turns)
    worths = [
        TurnWorth(
            trajectory_id=f"crad/{number}",
            turn_index=0,
            continued_by="recorded",
            num_pairs=12,
            utility=float(value),
            utility_error=0.01,
            success=0.0,
            success_error=0.01,
        )
        for number, value in enumerate(utility)
    ]
    scenarios = np.array([f"s{number % 40}" for number in range(num_turns)])
    return FitData(NAMES, terms, worths, scenarios), reading


def test_planted_weights_are_found_on_scenarios_held_out():
    data, reading = planted()
    fitted = fit(data)
    assert spearmanr(fitted.held_out, reading).statistic > 0.9
    assert fitted.weights[NAMES[0]][0] == pytest.approx(0.04, abs=0.012)
    assert fitted.weights[NAMES[0]][1] == pytest.approx(0.0, abs=0.012)
    assert fitted.weights["repeated"] == [pytest.approx(-0.75 * fitted.spread), 0, 0, 0]
    of_shares = validities(fitted, data)
    top = spearmanr(fitted.held_out, data.worth("utility")).statistic
    assert of_shares[0] == 0 and of_shares == sorted(of_shares)
    assert of_shares[-1] == pytest.approx(top, abs=0.03)
    text = rubric_text(fitted, of_shares, 600, JudgeFitConfig())
    written = Rubric(**tomllib.loads(text))
    assert written.weights.keys() == fitted.weights.keys()
    assert max(map(len, text.splitlines())) <= 100


def test_validities_come_with_intervals():
    data, reading = planted()
    found, exact = validity_intervals(reading, data, "utility")
    assert (found.mean, exact.mean) == pytest.approx(validity(reading, data, "utility"))
    assert found.low < found.mean < found.high < found.low + 0.2
    assert exact.high / found.high == pytest.approx(exact.mean / found.mean)


def test_the_shipped_weights_are_those_of_the_points_that_are_read():
    assert list(rubric().weights) == NAMES
    assert {len(some) for some in rubric().weights.values()} == {4}


def test_the_shipped_file_says_what_a_fit_writes():
    text = rubric_text(Fit(0.0, {}, 0.0, np.zeros(0)), [], 1_200, JudgeFitConfig())
    shipped = Path(simulator.__file__).with_name("judging.toml").read_text(encoding="utf-8")
    comments = [line for line in shipped.splitlines() if line.startswith("#")]
    assert comments == [line for line in text.splitlines() if line.startswith("#")]
    assert "utility plus a quarter of" in text  # the target of `fit`


def test_it_is_fitted_on_scenarios_that_no_experiment_uses():
    with pytest.raises(InputError, match="draws the scenarios of the experiments"):
        JudgeFitConfig(seed=0)
    for domain in DOMAINS:
        used = {tuple(s.fields.values()) for s in load_scenarios(domain)}
        unused = unused_scenarios(domain, 1)
        assert len(unused) > 90
        assert not used & {tuple(s.fields.values()) for s in unused}


def test_a_turns_worth_is_forked_in_process():
    talks = dialogues("crad", num=1)
    turns = [TurnKey(talks[0].trajectory_id, 0)]
    (worth,) = fork_worths(turns, talks, SCENARIOS["crad"], 2, 0)
    assert worth.num_pairs == 2 and -1 <= worth.utility <= 1


def test_turns_of_other_settings_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_turns, "DOMAINS", ())  # the settings alone, without any turns
    first = JudgeFitConfig(out=tmp_path / "fit", num_processes=1)
    make_turns(first)
    make_turns(first)
    for name, value in {"seed": 2, "num_turns": 20, "continuations": 3, "num_seeds": 1}.items():
        with pytest.raises(InputError, match=rf"{name}={value}, but .*settings\.json") as caught:
            make_turns(dataclasses.replace(first, **{name: value}))
        assert f"made under {getattr(first, name)}" in str(caught.value)
        assert "Take another --out" in str(caught.value)


def test_turns_without_settings_are_refused(tmp_path):
    (tmp_path / "crad.dialogues.jsonl").touch()
    with pytest.raises(InputError, match=r"settings\.json.* is missing"):
        make_turns(JudgeFitConfig(out=tmp_path))
    assert not (tmp_path / "settings.json").exists()
