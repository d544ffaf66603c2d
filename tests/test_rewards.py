"""Returns, savings, advantages and signals against hand-worked figures and plain loops."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from emodistill.errors import InputError
from emodistill.offline import rewards
from emodistill.offline.rewards import FocalTurns
from emodistill.records import CounterpartyPlayer, FocalPlayer, Trajectory, Turn


def trajectory(
    name,
    offers,
    *,
    outcome="accepted",
    final_value=40.0,
    scenario_id="debt_001",
    emotions=("anger", "joy", "fear", "neutral"),
):
    """Focal and counterparty turns alternate through `offers`; the focal side opens."""
    turns = tuple(
        Turn(
            index=i,
            speaker="focal" if i % 2 == 0 else "counterparty",
            emotion=emotions[(i // 2) % len(emotions)] if i % 2 == 0 else None,
            text="",
            offer=offer,
        )
        for i, offer in enumerate(offers)
    )
    return Trajectory(
        trajectory_id=name,
        domain="crad",
        scenario_id=scenario_id,
        seed=0,
        split="train",
        focal_target=30.0,
        counterparty_anchor=90.0,
        unit="days",
        focal=FocalPlayer(method="sweep", model="m", temperature=0.7),
        counterparty=CounterpartyPlayer(model="m", temperature=0.7),
        prompt_pack_sha256="0",
        agreement_rule="stand",
        turns=turns,
        outcome=outcome,
        final_value=final_value if outcome == "accepted" else None,
    )


def looped_return(target, anchor, focal, counterparty, accepted, cap):
    """The definition, turn by turn."""
    gap = target - anchor
    sign = int(gap > 0) - int(gap < 0)
    d = max(1.0, abs(gap))
    total, last_focal, last_counterparty = 0.0, target, anchor
    for t in range(1, max(len(focal), len(counterparty)) + 1):
        x_foc = focal[t - 1] if t <= len(focal) and focal[t - 1] is not None else last_focal
        has_reply = t <= len(counterparty) and counterparty[t - 1] is not None
        x_ctp = counterparty[t - 1] if has_reply else last_counterparty
        concession = min(2.0, max(-2.0, sign * (x_ctp - last_counterparty) / d))
        retreat = min(2.0, max(-2.0, -sign * (x_foc - last_focal) / d))
        total += max(0.0, min(1.0, 1 - t / cap)) * (concession - retreat)
        last_focal, last_counterparty = x_foc, x_ctp
    return total + (2.0 if accepted else -2.0)


def test_shaped_return_by_hand():
    # g = -60: replies 90 -> 80 -> 50 concede 1/6 and 1/2, own 30 -> 30 -> 45 retreats 1/4.
    found = rewards.shaped_return(30, 90, [30, 45], [80, 50], True)
    assert found == pytest.approx(29 / 30 / 6 + 28 / 30 * (1 / 2 - 1 / 4) + 2)
    assert rewards.shaped_return(30, 90, [], [], False) == -2.0


def test_shaped_return_is_the_same_game_in_a_mirror():
    down = rewards.shaped_return(30, 90, [35, None, 50], [85, 70, None], True)
    up = rewards.shaped_return(90, 30, [85, None, 70], [35, 50, None], True)
    assert up == pytest.approx(down)
    assert up != pytest.approx(2.0)


def test_shaped_return_matches_the_loop_on_random_dialogues():
    rng = np.random.default_rng(0)
    for _ in range(300):
        target, anchor = rng.uniform(-50, 50, 2).round(1)
        if rng.random() < 0.2:
            anchor = target + rng.uniform(-0.9, 0.9)  # gaps below 1 are not blown up
        offers = [
            [None if rng.random() < 0.3 else float(v) for v in rng.uniform(-80, 80, n)]
            for n in rng.integers(0, 45, 2)
        ]
        accepted, cap = bool(rng.random() < 0.5), int(rng.integers(1, 40))
        found = rewards.shaped_return(target, anchor, *offers, accepted, max_turns=cap)
        assert found == pytest.approx(
            looped_return(target, anchor, *offers, accepted, cap), rel=1e-12, abs=1e-12
        )


def test_shaped_return_clips_a_single_move_and_small_gaps():
    assert rewards.shaped_return(0, 0.5, [], [-9.5], False, max_turns=10) == pytest.approx(
        0.9 * 2.0 - 2.0  # 10 / d with d = 1, clipped at 2
    )
    assert rewards.shaped_return(0, 0.5, [], [0.0], False, max_turns=10) == pytest.approx(
        0.9 * 0.5 - 2.0  # d is 1, not 0.5
    )


def test_shaped_return_past_the_cap_and_missing_offers():
    replies = [90.0] * 30 + [30.0]
    assert rewards.shaped_return(30, 90, [], replies, True) == 2.0
    assert rewards.shaped_return(30, 90, [], [None, math.nan, 60], True) == pytest.approx(
        2 + 0.9 * 0.5
    )


def test_shaped_return_refuses_what_is_no_number():
    with pytest.raises(InputError, match=r"offer=inf must be a finite number"):
        rewards.shaped_return(30, 90, [math.inf], [], True)
    with pytest.raises(InputError, match="focal_target=nan"):
        rewards.shaped_return(math.nan, 90, [], [], True)
    with pytest.raises(InputError, match="max_turns=0 must be at least 1"):
        rewards.shaped_return(30, 90, [], [], True, max_turns=0)


@pytest.mark.parametrize(
    ("final", "anchor", "target", "expected"),
    [
        (45, 90, 30, 0.75),
        (75, 30, 90, 0.75),
        (30, 90, 30, 1.0),
        (20, 90, 30, 1.0),
        (95, 90, 30, 0.0),
        (90, 90, 30, 0.0),
    ],
)
def test_savings(final, anchor, target, expected):
    assert rewards.savings(final, anchor, target) == pytest.approx(expected)


def test_savings_needs_a_gap():
    with pytest.raises(InputError, match="both 30; savings need a gap"):
        rewards.savings(30, 30, 30)


def test_aligned_offers_takes_the_last_reply_to_each_focal_turn():
    turns = [
        ("counterparty", 88.0),  # before the first focal turn: answers none
        ("focal", 30.0),
        ("counterparty", 80.0),
        ("counterparty", 70.0),
        ("focal", None),
        ("focal", 35.0),
        ("counterparty", None),
    ]
    base = trajectory("t", [30.0])
    played = tuple(
        Turn(index=i, speaker=who, emotion=None, text="", offer=offer)
        for i, (who, offer) in enumerate(turns)
    )
    record = Trajectory(
        **{name: getattr(base, name) for name in base.__slots__ if name != "turns"}, turns=played
    )
    assert rewards.aligned_offers(record) == ([30.0, None, 35.0], [70.0, None, None])
    assert rewards.trajectory_return(record) == pytest.approx(
        2 + 29 / 30 * (20 / 60) - 27 / 30 * (5 / 60)
    )


def test_truncated_is_open_before_the_cap():
    assert rewards.is_truncated(trajectory("a", [30, 80, 35], outcome="ongoing"))
    assert not rewards.is_truncated(trajectory("a", [30, 80, 35], outcome="ongoing"), cap=3)
    assert not rewards.is_truncated(trajectory("a", [30, 80, 35], outcome="breakdown"))


def test_scenario_advantages_match_a_loop():
    rng = np.random.default_rng(1)
    ids = rng.choice(["a", "b", "c"], 200)
    scores = rng.integers(1, 11, 200).astype(float)
    scores[rng.random(200) < 0.2] = np.nan
    found = rewards.scenario_advantages(scores, ids)
    for name in "abc":
        kept = [s for s, i in zip(scores, ids, strict=True) if i == name and not math.isnan(s)]
        mean = sum(kept) / len(kept)
        sigma = math.sqrt(sum((s - mean) ** 2 for s in kept) / len(kept))
        for score, advantage in zip(scores[ids == name], found[ids == name], strict=True):
            if math.isnan(score):
                assert math.isnan(advantage)
            else:
                assert advantage == pytest.approx((score - mean) / (sigma + 1e-6), rel=1e-9)


def test_scenario_advantages_leave_small_scenarios_out():
    scores = [1, 2, 3, np.nan, 5, 6, 7, 8, 9]
    ids = ["few"] * 4 + ["enough"] * 4 + ["one"]
    found = rewards.scenario_advantages(scores, ids)
    assert np.isnan(found[[0, 1, 2, 3, 8]]).all()
    assert np.isfinite(found[4:8]).all()


def test_scenario_advantages_extremes():
    lone = np.r_[np.ones(400), 10.0]
    assert rewards.scenario_advantages(lone, ["s"] * 401).max() == 10.0  # 20 without the clip
    assert rewards.scenario_advantages(-lone, ["s"] * 401).min() == -10.0
    np.testing.assert_array_equal(rewards.scenario_advantages([7] * 5, ["s"] * 5), np.zeros(5))
    assert rewards.scenario_advantages([], []).shape == (0,)


def test_scenario_advantages_bad_input():
    with pytest.raises(InputError, match=r"scores has shape \(2,\) and scenario_ids \(1,\)"):
        rewards.scenario_advantages([1, 2], ["a"])
    with pytest.raises(InputError, match=r"scores\[1\]=inf must be finite"):
        rewards.scenario_advantages([1, np.inf, 3, 4], ["a"] * 4)


def test_top_fraction_keeps_ties_in_order_and_skips_unscored():
    quality = [5, 9, 7, np.nan, 9, 7, 7, 1, 2]
    np.testing.assert_array_equal(rewards.top_fraction(quality, 0.5), [1, 4, 2, 5])
    np.testing.assert_array_equal(rewards.top_fraction(quality), [1, 4])
    np.testing.assert_array_equal(rewards.top_fraction(quality, 1.0), [1, 4, 2, 5, 6, 0, 8, 7])
    np.testing.assert_array_equal(rewards.top_fraction([3.0, 4.0]), [1])  # one at least
    many = np.tile([4.0, 8.0], 500)  # long enough for an unstable sort to show
    np.testing.assert_array_equal(rewards.top_fraction(many), np.arange(1, 501, 2))
    assert len(rewards.top_fraction([np.nan])) == 0
    with pytest.raises(InputError, match="top_fraction=0 must lie"):
        rewards.top_fraction(quality, 0)


@pytest.fixture
def swept():
    """Six dialogues of a scenario and two of another, out of order; some turns unscored."""
    dialogues = [
        trajectory(f"crad/debt_001/seed_{i:04d}", [30, 80 - 5 * i, 35, 60]) for i in (5, 0, 3, 1)
    ]
    dialogues += [
        trajectory(f"crad/debt_001/seed_{i:04d}", [30, 80], outcome="breakdown") for i in (2, 4)
    ]
    dialogues += [
        trajectory(f"crad/debt_000/seed_{i:04d}", [30, 50, 40], scenario_id="debt_000")
        for i in (1, 0)
    ]
    scores = {(d.trajectory_id, 0): 3 + k for k, d in enumerate(dialogues)}
    scores |= {(d.trajectory_id, 2): 9 - k for k, d in enumerate(dialogues[:4])}
    scores |= {(d.trajectory_id, None): 2 + k for k, d in enumerate(dialogues)}
    return dialogues, scores, FocalTurns.from_trajectories(dialogues, scores)


def test_focal_turns_are_sorted_and_lead_back(swept):
    dialogues, scores, turns = swept
    assert len(turns) == 4 * 2 + 2 * 1 + 2 * 2
    names = [
        (dialogues[index].trajectory_id, int(turn_index))
        for index, turn_index in zip(turns.trajectory_index, turns.turn_index, strict=True)
    ]
    assert names == sorted(names)
    for row, (name, index) in enumerate(names):
        dialogue = dialogues[turns.trajectory_index[row]]
        turn = dialogue.turns[index]
        assert (turn.speaker, turn.emotion) == ("focal", turns.emotions[row])
        assert dialogue.scenario_id == turns.scenario_ids[row]
        np.testing.assert_equal(turns.scores[row], scores.get((name, index), math.nan))
        np.testing.assert_equal(turns.dialogue_scores[row], scores[name, None])
        assert turns.returns[row] == pytest.approx(rewards.trajectory_return(dialogue))
        assert turns.is_last[row] == (index == dialogue.focal_turns[-1].index)


def test_focal_turns_do_not_depend_on_the_order_of_arrival(swept):
    dialogues, scores, turns = swept
    again = FocalTurns.from_trajectories(dialogues[::-1], scores)
    for name in ("turn_index", "scenario_ids", "emotions", "is_last", "returns"):
        np.testing.assert_array_equal(getattr(again, name), getattr(turns, name))
    np.testing.assert_array_equal(again.scores, turns.scores)
    with pytest.raises(InputError, match="'crad/debt_001/seed_0005' occurs twice"):
        FocalTurns.from_trajectories([*dialogues, dialogues[0]], scores)


def test_iql_outcome_reward_sits_on_the_last_focal_turn(swept):
    dialogues, _, turns = swept
    values = rewards.iql_rewards(turns)
    assert rewards.left_out_scenarios(turns, values) == ()
    for row, value in enumerate(values):
        dialogue = dialogues[turns.trajectory_index[row]]
        is_last = turns.turn_index[row] == dialogue.focal_turns[-1].index
        assert value == (pytest.approx(rewards.trajectory_return(dialogue)) if is_last else 0.0)


def test_judge_signals_per_turn(swept):
    _, _, turns = swept
    expected = rewards.scenario_advantages(turns.scores, turns.scenario_ids)
    for values in (rewards.iql_rewards(turns, "turn-judge"), rewards.jpo_advantages(turns)):
        np.testing.assert_array_equal(values, expected)
        assert np.isnan(values).sum() == 4
        # The later turns of this scenario have no score.
        assert rewards.left_out_scenarios(turns, values) == ("debt_000",)


def test_dialogue_signals_count_each_dialogue_once(swept):
    dialogues, scores, turns = swept
    normalised = [d for d in dialogues if d.scenario_id == "debt_001"]  # of the other there are two
    judged = np.array([scores[d.trajectory_id, None] for d in normalised], float)
    returns = np.array([rewards.trajectory_return(d) for d in normalised])
    for values, found in (
        (judged, rewards.jpo_advantages(turns, "episode-judge")),
        (judged, rewards.iql_rewards(turns, "episode-judge")),
        (returns, rewards.jpo_advantages(turns, "outcome")),
    ):
        expected = (values - values.mean()) / (values.std() + 1e-6)
        by_id = {d.trajectory_id: a for d, a in zip(normalised, expected, strict=True)}
        names = [dialogues[index].trajectory_id for index in turns.trajectory_index]
        wanted = [by_id.get(name, math.nan) for name in names]
        np.testing.assert_allclose(found, wanted, rtol=1e-9)
        assert rewards.left_out_scenarios(turns, found) == ("debt_000",)


def test_sft_quality(swept):
    _, _, turns = swept
    np.testing.assert_allclose(rewards.sft_quality(turns), turns.scores + 0.5 * turns.returns)
    np.testing.assert_array_equal(rewards.sft_quality(turns, "turn-judge"), turns.scores)
    episode = rewards.sft_quality(turns, "episode-judge")
    np.testing.assert_array_equal(episode, turns.dialogue_scores)
    assert np.isnan(rewards.sft_quality(turns)).sum() == 2


def test_a_signal_that_there_is_not_is_refused(swept):
    _, _, turns = swept
    for function, known in (
        (rewards.sft_quality, "hybrid, episode-judge, turn-judge"),
        (rewards.jpo_advantages, "turn-judge, episode-judge, outcome"),
        (rewards.iql_rewards, "turn-judge, episode-judge, outcome"),
    ):
        with pytest.raises(InputError, match=f"signal='hybird' is none of {known}"):
            function(turns, "hybird")


def test_an_empty_data_set_has_no_focal_turns():
    turns = FocalTurns.from_trajectories([], {})
    assert len(turns) == 0
    assert rewards.jpo_advantages(turns).shape == (0,)
    assert rewards.jpo_advantages(turns, "outcome").shape == (0,)


def test_the_worked_dialogue_of_the_documentation():
    text = (Path(__file__).parents[1] / "docs/rewards.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if re.match(r"\| \d", line)]
    focal = [float(row[1]) for row in rows]
    counterparty = [float(row[2].split(",")[0]) for row in rows]
    found = rewards.shaped_return(20, 110, focal, counterparty, True)
    parts = [float(row[6]) for row in rows]
    assert found == pytest.approx(sum(parts) + 2, abs=1e-4)
    before = list(zip([20, *focal], [110, *counterparty], strict=True))
    for t, (row, x, y, (x0, y0)) in enumerate(
        zip(rows, focal, counterparty, before, strict=False), start=1
    ):
        moves = (-(y - y0) / 90, (x - x0) / 90, 1 - t / 30)
        assert [float(cell) for cell in row[3:6]] == pytest.approx(moves, abs=5e-5)

    def said(pattern):
        return [float(number) for number in re.search(pattern, text, re.S).groups()]

    assert said(r"\+ 2 = ([\d.]+)") == pytest.approx([found], abs=5e-5)
    assert said(r"\(20 − 110\) = ([\d.]+)") == pytest.approx(
        [rewards.savings(45, 110, 20)], abs=5e-5
    )
    quality = np.array([6, 7, 9]) + found / 2
    assert said(r"R/2 is ([\d.]+), ([\d.]+) and ([\d.]+);") == pytest.approx(quality, abs=5e-5)
    scores = [6, 7, 9, 5, 5, 4, 6, 8]
    advantages = rewards.scenario_advantages(scores, ["s"] * 8)[:3]
    shown = said(r"A = .*? is −([\d.]+), ([\d.]+) and\s+([\d.]+)\.")
    assert [-shown[0], *shown[1:]] == pytest.approx(advantages, abs=5e-5)
    halved = said(r"counts half: −([\d.]+)\.")
    assert halved == pytest.approx([-0.5 * advantages[0]], abs=1e-4)
