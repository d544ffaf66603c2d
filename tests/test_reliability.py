"""Advantages that know how much of a score is chance."""

import dataclasses

import numpy as np
import pytest
from builders import judgement
from judged_sweep import SCORES, TRAJECTORIES
from simulated_talks import dialogue

from emodistill.configs import JPOConfig
from emodistill.errors import InputError
from emodistill.offline.judging import repeated_scores
from emodistill.offline.reliability import (
    expected_advantages,
    noise_variance,
    reliabilities,
    shrunk_advantages,
)
from emodistill.offline.rewards import FocalTurns, jpo_advantages, scenario_advantages
from emodistill.seeding import stream
from emodistill.simulator.judge import JudgedTurn, mixed_scores, read_turn, share_of
from emodistill.simulator.reading import Speech
from emodistill.train.objectives import select_scored

ONCE = FocalTurns.from_trajectories(TRAJECTORIES, SCORES)


def noisy(truth, spread, repeats, seed=0):
    """N turns of one scenario, scored `repeats` times with noise."""
    count = len(truth)
    scores = truth[:, None] + spread * stream(seed, "scores").normal(size=(count, repeats))
    fields = {f.name: np.resize(getattr(ONCE, f.name), count) for f in dataclasses.fields(ONCE)}
    return FocalTurns(
        **fields
        | {
            "scenario_ids": np.repeat("a", count),
            "scores": scores[:, 0],
            "mean_scores": scores.mean(axis=1),
            "num_scores": np.full(count, repeats),
            "score_variances": scores.var(axis=1, ddof=1)
            if repeats > 1
            else np.full(count, np.nan),
        }
    )


def test_an_exact_judge_changes_nothing():
    exact = FocalTurns.from_trajectories(
        TRAJECTORIES, SCORES, repeats={key: [score] * 3 for key, score in SCORES.items()}
    )
    assert noise_variance(exact) == 0
    np.testing.assert_array_equal(shrunk_advantages(exact), jpo_advantages(exact))
    config = JPOConfig(shrink=True)
    plain = select_scored(dataclasses.replace(config, shrink=False), exact)
    for ours, theirs in zip(select_scored(config, exact), plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_advantages_shrink_to_the_best_guess_of_the_truth():
    """Least squares of the true scores on the noisy ones has the slope λ."""
    truth = stream(1, "truth").normal(size=4_000)
    turns = noisy(truth, spread=1.5, repeats=2)
    assert noise_variance(turns) == pytest.approx(2.25, rel=0.1)
    (reliability,) = set(np.round(reliabilities(turns), 12))
    assert reliability == pytest.approx(1 / (1 + 2.25 / 2), abs=0.04)
    deviation = turns.mean_scores - turns.mean_scores.mean()
    slope = (deviation * truth).sum() / (deviation**2).sum()
    assert reliability == pytest.approx(slope, abs=0.04)
    guess = shrunk_advantages(turns) * turns.mean_scores.std()
    raw = jpo_advantages(turns) * turns.scores.std()
    assert np.mean((guess - truth) ** 2) < 0.4 * np.mean((raw - truth) ** 2)


def test_nothing_but_chance_teaches_nothing_and_fewer_scores_count_for_less():
    chance = noisy(np.zeros(3_000), spread=1.0, repeats=4)
    assert np.abs(shrunk_advantages(chance)).mean() < 0.1
    turns = noisy(stream(2, "truth").normal(size=100), spread=1.0, repeats=3)
    turns.num_scores[0] = 1
    found = reliabilities(turns)
    assert found[0] < found[1] - 0.1 and len(set(found[1:])) == 1


def reading(trajectory, turn) -> float:
    """What an exact judge makes of a turn."""
    history = [Speech(t.speaker == "focal", t.text) for t in trajectory.turns[: turn.index]]
    return read_turn(JudgedTurn("crad", trajectory.focal_target, history, turn.text))


def test_half_of_what_noise_costs_comes_back_for_half_as_many_calls_again():
    """At a validity of 0.4; the unit is the gap between an exact judge's advantages and those of
    one score a turn, in correlation with the exact reading within scenarios."""
    played = [
        dialogue("crad", number, "random", repeat) for number in range(30) for repeat in range(1, 6)
    ]
    once = FocalTurns.from_trajectories(played, {})
    exact = np.array(
        [
            reading(one, one.turns[index])
            for one, index in zip(once.dialogues, once.turn_index, strict=True)
        ]
    )
    deviation = exact.copy()
    for scenario in set(once.scenario_ids):
        members = once.scenario_ids == scenario
        deviation[members] -= exact[members].mean()

    def agreement(advantages) -> float:
        return np.corrcoef(advantages, deviation)[0, 1]

    best = agreement(scenario_advantages(mixed_scores(exact, 1.0, 0.0), once.scenario_ids))
    recovered = []
    for draw in range(8):
        rng = stream(draw, "noise")
        scores = mixed_scores(exact[:, None], share_of(0.4), rng.normal(size=(len(exact), 2)))
        is_repeated = rng.random(len(exact)) < 0.5
        judged = dataclasses.replace(
            once,
            scores=scores[:, 0],
            mean_scores=np.where(is_repeated, scores.mean(axis=1), scores[:, 0]),
            num_scores=1 + is_repeated,
            score_variances=np.where(is_repeated, scores.var(axis=1, ddof=1), np.nan),
        )
        single = agreement(jpo_advantages(judged))
        recovered.append((agreement(shrunk_advantages(judged)) - single) / (best - single))
    assert np.mean(recovered) >= 0.5


def test_what_is_expected_of_a_turn_comes_from_other_scenarios_and_where_it_leaves_the_table():
    """A scenario's own scores don't change what is expected of its turns; turns that give way more
    are scored lower everywhere, and so are expected to be."""
    played = [dialogue("crad", number, "random", 1) for number in range(30)]
    turns = FocalTurns.from_trajectories(played, {})
    scores = np.where(turns.turn_index < 3, 10.0, 1.0)
    judged = dataclasses.replace(
        turns, mean_scores=scores, num_scores=np.ones_like(turns.turn_index)
    )
    expected, advantages = (
        expected_advantages(judged),
        scenario_advantages(scores, turns.scenario_ids),
    )
    known = ~np.isnan(advantages)
    assert np.corrcoef(expected[known], advantages[known])[0, 1] > 0.8
    some = turns.scenario_ids == turns.scenario_ids[known][0]
    other = dataclasses.replace(judged, mean_scores=np.where(some, 11.0 - scores, scores))
    np.testing.assert_allclose(expected_advantages(other)[some], expected[some])
    alone = dataclasses.replace(judged, scenario_ids=np.repeat("a", len(turns)))
    assert not expected_advantages(alone).any()


def test_a_share_of_repeats_is_enough_to_know_the_noise():
    """Half of the turns scored twice: λ is the slope of the truth on each half's means."""
    truth = stream(3, "truth").normal(size=8_000)
    turns = noisy(truth, spread=1.5, repeats=2)
    once = np.arange(len(truth)) % 2 == 0
    turns.mean_scores[once], turns.num_scores[once] = turns.scores[once], 1
    turns.score_variances[once] = np.nan
    assert noise_variance(turns) == pytest.approx(2.25, rel=0.1)
    found = reliabilities(turns)
    for half, expected in ((once, 1 / 3.25), (~once, 1 / 2.125)):
        (reliability,) = set(np.round(found[half], 12))
        slope = np.cov(truth[half], turns.mean_scores[half])[0, 1] / turns.mean_scores[half].var()
        assert reliability == pytest.approx(expected, abs=0.04)
        assert reliability == pytest.approx(slope, abs=0.04)


def test_failed_repeats_leave_the_others_and_unscored_turns_stay_out():
    (name, index), *_ = SCORES
    lines = [
        judgement(name, index, score, repeat=repeat) for repeat, score in enumerate((4, None, 8))
    ]
    lines.append(judgement(name, index + 2, 3, repeat=0))
    assert repeated_scores(lines) == {(name, index): [4, 8]}
    rest = {key: score for key, score in SCORES.items() if key != (name, index + 2)}
    turns = FocalTurns.from_trajectories(TRAJECTORIES, rest, repeats=repeated_scores(lines))
    is_named = np.array([TRAJECTORIES[i].trajectory_id == name for i in turns.trajectory_index])
    row = np.flatnonzero(is_named & (turns.turn_index == index))[0]
    assert (turns.mean_scores[row], turns.num_scores[row]) == (6, 2)
    assert turns.score_variances[row] == 8
    assert np.isnan(shrunk_advantages(turns)[row + 1])


def test_a_single_score_says_nothing_of_chance():
    with pytest.raises(InputError, match=r"judge\.py --repeats 2"):
        shrunk_advantages(ONCE)
    with pytest.raises(InputError, match="not for --signal outcome"):
        select_scored(JPOConfig(shrink=True, signal="outcome"), ONCE)
