"""The weights of the simulated judge's rubric, fitted once to what turns are worth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from emodistill import simulator
from emodistill.domains import DOMAINS
from emodistill.evaluation.bootstrap import Interval
from emodistill.evaluation.judge_validity import clustered_statistic, spearman
from emodistill.evaluation.turn_worth import worth_reliability
from emodistill.files import replacing
from emodistill.prompts import load_pack, turn_judge_messages
from emodistill.records import TurnWorth
from emodistill.seeding import stream
from emodistill.simulator.judge import SPREAD, mixed_scores, read_case
from emodistill.simulator.reading import messages_text
from emodistill.simulator.rubric import read_rubric
from pretraining.config import JudgeFitConfig
from pretraining.judge_turns import make_turns, read_turns, unused_scenarios

RUBRIC = Path(simulator.__file__).with_name("judging.toml")
NUM_FOLDS = 5
NUM_SHARES, NUM_DRAWS = 11, 40
RIDGE = 30.0
"""The penalty on weights in units of the terms' deviations; it acts like a prior worth thirty
turns."""
DEAL_WEIGHT = 0.25
"""Of success beside utility. To utility a modest deal is little more than none; the rubric calls
ending the talks without a deal worse than that."""


REPEATED_POINTS = -1.5
"""What an utterance that was said before costs, in points. The teacher never repeats itself, so
that this is no finding but the rubric's word."""


class FitData(NamedTuple):
    """N turns: what the judge reads of each, and what it is worth."""

    names: list[str]
    """Of the points."""
    terms: np.ndarray
    """[N, points × circumstances]"""
    worths: list[TurnWorth]
    scenarios: np.ndarray
    """[N] scenario ids"""

    def worth(self, name: str) -> np.ndarray:
        return np.array([getattr(worth, name) for worth in self.worths])


class Fit(NamedTuple):
    """What was fitted, and how well it does on scenarios that it was not fitted to."""

    intercept: float
    weights: dict[str, list[float]]
    """Of each point, in all circumstances."""
    spread: float
    """Standard deviation of the fitted worths."""
    held_out: np.ndarray
    """[N] the worth of each turn as the fit to the other folds' scenarios has it."""


def read_data(out: Path, seed: int) -> FitData:
    """All turns of a folder, with the points that the judge reads in its own prompt."""
    pack = load_pack()
    rows, worths, scenario_ids = [], [], []
    for domain in DOMAINS:
        dialogues, of_domain = read_turns(out, domain)
        by_id = {t.trajectory_id: t for t in dialogues}
        scenarios = {s.scenario_id: s for s in unused_scenarios(domain, seed)}
        for worth in of_domain:
            dialogue = by_id[worth.trajectory_id]
            scenario = scenarios[dialogue.scenario_id]
            messages = turn_judge_messages(pack, scenario, dialogue.turns, worth.turn_index)
            rows.append(read_rubric(*read_case(*messages_text(messages))).terms())
            worths.append(worth)
            scenario_ids.append(f"{domain}/{dialogue.scenario_id}")
    terms = np.array([list(itertools.chain(*row.values())) for row in rows])
    return FitData(list(rows[0]), terms, worths, np.array(scenario_ids))


def fit(data: FitData) -> Fit:
    """Ridge regression on the rubric's terms; folds are made of whole scenarios."""
    target = data.worth("utility") + DEAL_WEIGHT * data.worth("success")
    _, index = np.unique(data.scenarios, return_inverse=True)
    held_out = np.empty(len(target))
    for fold in range(NUM_FOLDS):
        is_out = index % NUM_FOLDS == fold
        intercept, weights = _ridge(data.terms[~is_out], target[~is_out])
        held_out[is_out] = intercept + data.terms[is_out] @ weights
    intercept, weights = _ridge(data.terms, target)
    spread = float(np.std(intercept + data.terms @ weights))
    of_point = weights.reshape(len(data.names), -1).tolist()
    named = dict(zip(data.names, of_point, strict=True))
    named["repeated"] = [REPEATED_POINTS / SPREAD * spread, 0.0, 0.0, 0.0]
    return Fit(intercept, named, spread, held_out)


def _ridge(points: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    mean, spread = points.mean(axis=0), np.maximum(points.std(axis=0), 1e-9)
    scaled = (points - mean) / spread
    normal = scaled.T @ scaled + RIDGE * np.eye(scaled.shape[1])
    weights = np.linalg.solve(normal, scaled.T @ (target - target.mean())) / spread
    return float(target.mean() - mean @ weights), weights


def validity(reading: np.ndarray, data: FitData, name: str) -> tuple[float, float]:
    """Spearman's correlation with the worths, and the same corrected for the forks' own luck."""
    found = float(spearmanr(reading, data.worth(name)).statistic)
    return found, found / float(np.sqrt(worth_reliability(data.worths, name)))


def validity_intervals(reading: np.ndarray, data: FitData, name: str) -> tuple[Interval, Interval]:
    """Both as `validity` has them, with intervals over resampled scenarios.

    The correction is that of all turns in every resample.
    """
    worth = data.worth(name)
    found = clustered_statistic(
        lambda chosen: spearman(reading[chosen], worth[chosen]), data.scenarios.tolist()
    )
    root = float(np.sqrt(worth_reliability(data.worths, name)))
    return found, Interval(*(end / root for end in found))


def validities(fitted: Fit, data: FitData) -> list[float]:
    """The validity in utility of scores with shares of 0 to 1, on scenarios held out.

    Shares of 0 have exactly 0; sampling leaves no more than 0.01 of doubt about the others.
    """
    reading = (fitted.held_out - fitted.held_out.mean()) / fitted.held_out.std()
    rng = stream(0, "judge-validities")
    found = []
    for share in np.linspace(0.0, 1.0, NUM_SHARES):
        draws = [
            validity(mixed_scores(reading, share, rng.normal(size=len(reading))), data, "utility")
            for _ in range(NUM_DRAWS)
        ]
        found.append(float(np.mean([exact for _, exact in draws])))
    return [0.0, *np.maximum.accumulate(np.maximum(found[1:], 0.0)).tolist()]


def fit_judge(config: JudgeFitConfig) -> None:
    """Make the turns that are missing, fit the weights, say how well they do, and write them."""
    make_turns(config)
    data = read_data(config.out, config.seed)
    fitted = fit(data)
    for name in ("utility", "success"):
        found, exact = validity_intervals(fitted.held_out, data, name)
        print(
            f"{len(data.worths):,} turns of all domains, scenarios held out: Spearman {found.text} "
            f"with their worth in {name}, {exact.text} if that were exact."
        )
    text = rubric_text(fitted, validities(fitted, data), len(data.worths), config)
    print(text)
    if config.write:
        with replacing(RUBRIC) as partial:
            partial.write_text(text, encoding="utf-8")
        print(f"the weights are in {RUBRIC}")


def rubric_text(
    fitted: Fit, of_shares: Sequence[float], num_turns: int, config: JudgeFitConfig
) -> str:
    """The file of the weights."""
    lines = [
        "# What the points of the judge's rubric weigh (`rubric.py`), in utility plus a quarter of",
        "# success: fitted once, by",
        f"# `python scripts/fit_judge.py --seed {config.seed} --num-turns {config.num_turns} "
        f"--continuations {config.continuations} --write`,",
        f"# to what {num_turns:,} turns of the simulated teacher are worth, the same teacher going",
        "# on, on scenarios that no experiment uses. No trained student was looked at;",
        "# docs/simulator.md has the reasoning.",
        "",
        "# Rank correlation of scores with exact worths, on scenarios held out, by the share of",
        "# the reading in them, from 0 to 1 in equal steps.",
        f"validities = [{', '.join(f'{one:.3f}' for one in of_shares)}]",
        f"intercept = {fitted.intercept:.4f}",
        "# Standard deviation of the weighted sums.",
        f"spread = {fitted.spread:.4f}",
        "",
        "# Of each point: alone, and times strain (how much of the usual patience is used up, 0 to",
        "# 1), distance and the other side's last movement.",
        "[weights]",
        *(
            f"{name} = [{', '.join(f'{w:.4f}' for w in some)}]"
            for name, some in fitted.weights.items()
        ),
    ]
    return "\n".join(lines) + "\n"
