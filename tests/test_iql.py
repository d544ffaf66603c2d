"""IQL against a small MDP solved exactly, a bandit, and hand-made dialogues."""

import dataclasses
import math
from typing import NamedTuple

import chex
import jax
import msgspec
import numpy as np
import pytest
from tiny_mdp import CONFIG, MDP, of_one_run, one_run, transitions

from emodistill.emotions import EMOTION_INDEX, EMOTIONS
from emodistill.errors import DivergenceError, InputError
from emodistill.negotiation.states import DialogueState, feature_names, features
from emodistill.offline.rewards import TurnLimit, scenario_advantages, trajectory_return
from emodistill.records import CounterpartyPlayer, FocalPlayer, Trajectory, Turn
from emodistill.train import learner_losses, q_learning
from emodistill.train.selector_files import SelectorNetworks, forward, load_selector, save_selector
from emodistill.train.transitions import make_transitions


def expectile_of(values, expectile):
    """The v with expectile·Σ(q − v)₊ = (1 − expectile)·Σ(v − q)₊, by bisection."""
    low, high = min(values), max(values)
    for _ in range(80):
        v = (low + high) / 2
        pull = sum((expectile if q > v else 1 - expectile) * (q - v) for q in values)
        low, high = (v, high) if pull > 0 else (low, v)
    return v


def solve(rows, num_states, config):
    """The fixed point of Eq. 14 on a table: {(s, a): Q} and V."""
    value = [0.0] * num_states
    for _ in range(200):
        q = [r + (0.0 if n is None else config.discount * value[n]) for _, _, r, n in rows]
        value = [
            expectile_of(
                [q_i for q_i, row in zip(q, rows, strict=True) if row[0] == s], config.expectile
            )
            for s in range(num_states)
        ]
    return {row[:2]: q_i for q_i, row in zip(q, rows, strict=True)}, value


class Run(NamedTuple):
    """A trained selector and its logged points."""

    networks: SelectorNetworks
    metrics: list


def few_steps(patch, num_steps):
    """`CONFIG` with `num_steps` steps, in calls of 20 steps as there: they share its program."""
    patch.setattr(q_learning, "NUM_CHUNKS", math.ceil(num_steps / 20))
    return dataclasses.replace(CONFIG, num_steps=num_steps)


def train_iql(data, configs):
    metrics = [[] for _ in configs]

    def keep(points):
        for of_run, added in zip(metrics, points, strict=True):
            of_run += added

    return list(map(Run, q_learning.train_networks(data, configs, report=keep), metrics))


def outputs(run, num_states):
    """V [S], Q [S, A] and log-policy [S, A] of a trained run on one-hot states."""
    states = np.eye(num_states, dtype=np.float32)
    logits = forward(run.networks.actor, states).astype(np.float64)
    log_policy = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return (
        forward(run.networks.value, states)[:, 0],
        forward(run.networks.critic, states),
        log_policy,
    )


@pytest.fixture(scope="module")
def solved_runs():
    """Two settings side by side, every step on the whole data set: no sampling noise is left."""
    base = dataclasses.replace(CONFIG, learning_rate=2e-3)
    configs = [
        dataclasses.replace(base, expectile=0.7, discount=0.9),
        dataclasses.replace(base, expectile=0.9, discount=0.99, advantage_scale=1.0),
    ]
    every_row_KPLB = np.broadcast_to(np.arange(len(MDP), dtype=np.int32), (2, 3, 700, len(MDP)))
    state, _ = q_learning._train_chunk(
        q_learning._initial_state([0, 1], 3, 32),
        q_learning.device_data(transitions(MDP, 3)),
        q_learning._settings(configs),
        every_row_KPLB,
        np.full(3, 700),
    )
    params = jax.device_get(state.params)
    return configs, [
        Run(q_learning._networks(params, run, config), []) for run, config in enumerate(configs)
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_small_mdp_reaches_the_exact_fixed_point(solved_runs, index):
    config, run = solved_runs[0][index], solved_runs[1][index]
    exact_q, exact_value = solve(MDP, 3, config)
    value, q, log_policy = outputs(run, 3)
    np.testing.assert_allclose(value, exact_value, atol=1e-2)
    for (state, action), expected in exact_q.items():
        assert q[state, action] == pytest.approx(expected, abs=1e-2)
    # The policy is the behaviour reweighted by exp(β(Q − V)), nothing outside the data.
    for state in range(3):
        weight = np.zeros(28)
        for s, action, _, _ in MDP:
            if s == state:
                gain = config.advantage_scale * (exact_q[s, action] - exact_value[s])
                weight[action] += math.exp(gain)
        np.testing.assert_allclose(np.exp(log_policy[state]), weight / weight.sum(), atol=0.02)


ARMS = [(0, 3, 0.0, None), (0, 9, 1.0, None), (0, 20, 0.4, None)] * 3 + [(1, 0, 0.0, None)]


def test_bandit_prefers_the_best_arm_more_with_a_larger_scale():
    mild, keen = train_iql(
        transitions(ARMS, 3),
        [dataclasses.replace(CONFIG, advantage_scale=scale) for scale in (1.0, 5.0)],
    )
    best = [np.exp(outputs(run, 3)[2])[0] for run in (mild, keen)]
    assert best[0].argmax() == best[1].argmax() == 9
    assert 0.4 < best[0][9] < 0.6
    assert best[1][9] > 0.9


def test_weights_are_capped(monkeypatch):
    rows = [(0, 1, 50.0, None), (0, 2, 0.0, None)] * 5
    config = few_steps(monkeypatch, 400)
    config = dataclasses.replace(config, learning_rate=1e-2, weight_cap=7.0)
    (run,) = train_iql(transitions(rows, 3), [config])
    assert max(row["policy/weight_mean"] for row in run.metrics) <= 7.0
    assert run.metrics[-1]["policy/capped_fraction"] == pytest.approx(0.5, abs=0.25)


def test_losses_against_a_loop():
    rng = np.random.default_rng(0)
    value, target, q, bellman, log_prob = rng.normal(size=(5, 32)).astype(np.float32)
    weight = rng.uniform(0, 3, 32).astype(np.float32)
    expected = sum(
        abs(0.8 - (t - v < 0)) * (t - v) ** 2 for v, t in zip(value, target, strict=True)
    )
    assert float(learner_losses.value_loss(value, target, 0.8)) == pytest.approx(
        expected / 32, rel=1e-5
    )
    assert float(learner_losses.critic_loss(q, bellman)) == pytest.approx(
        sum((b - x) ** 2 for b, x in zip(bellman, q, strict=True)) / 32, rel=1e-5
    )
    assert float(learner_losses.actor_loss(log_prob, weight)) == pytest.approx(
        -sum(w * p for w, p in zip(weight, log_prob, strict=True)) / 32, rel=1e-5
    )


def test_each_loss_reaches_its_own_network_only():
    state = of_one_run(q_learning._initial_state([0], 3, 8))
    batch = learner_losses.Data(
        *(np.eye(3, dtype=np.float32), np.array([0, 5, 27]), np.ones(3, np.float32)),
        *(np.eye(3, dtype=np.float32)[::-1], np.float32([1, 1, 0])),
    )
    settings = one_run(CONFIG)
    own = {"value/loss": "value", "critic/loss": "critic", "actor/loss": "actor"}

    @jax.jit
    def gradients(params):
        def losses(p):
            metrics = learner_losses.iql_losses(p, state.target, batch, settings)[1]
            return {name: metrics[name] for name in own}

        return jax.jacrev(losses)(params)

    for loss_name, by_network in gradients(state.params).items():
        norms = {
            name: sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(by_network[name]))
            for name in own.values()
        }
        assert norms.pop(own[loss_name]) > 0
        assert set(norms.values()) == {0.0}, loss_name


def test_the_policy_learns_from_the_target_critic_or_the_critic_itself():
    """Eq. 15 prints the critic's Q; after an update the two differ."""
    state = of_one_run(q_learning._initial_state([0], 3, 8))
    critic = [(kernel + 0.1, bias) for kernel, bias in state.params["critic"]]
    params = state.params | {"critic": critic}
    batch = learner_losses.Data(
        *(np.eye(3, dtype=np.float32), np.array([0, 5, 27]), np.ones(3, np.float32)),
        *(np.eye(3, dtype=np.float32), np.zeros(3, np.float32)),
    )
    losses, network = jax.jit(learner_losses.iql_losses), jax.jit(learner_losses.forward)
    value = np.asarray(network(params["value"], batch.observation))[:, 0]
    for advantage_q, layers in (("target", state.target), ("online", critic)):
        q = np.asarray(network(layers, batch.observation))
        config = dataclasses.replace(CONFIG, advantage_q=advantage_q)
        settings = one_run(config)
        metrics = losses(params, state.target, batch, settings)[1]
        expected = (q[np.arange(3), [0, 5, 27]] - value).mean()
        assert float(metrics["advantage/mean"]) == pytest.approx(expected, rel=1e-5)


def leaves_equal(run, other):
    pairs = zip(
        jax.tree.leaves(run.networks.actor), jax.tree.leaves(other.networks.actor), strict=True
    )
    return all(np.array_equal(a, b) for a, b in pairs)


def test_same_seed_same_bits_and_seeds_side_by_side_equal_seeds_alone(monkeypatch):
    data, config = transitions(MDP, 3), few_steps(monkeypatch, 200)
    configs = [dataclasses.replace(config, seed=seed) for seed in (3, 4)]
    together, again = train_iql(data, configs), train_iql(data, configs)
    for run, same in zip(together, again, strict=True):
        assert leaves_equal(run, same)
        assert run.metrics == same.metrics
    assert not leaves_equal(*together)
    assert [run.networks.settings["seed"] for run in together] == [3, 4]
    (alone,) = train_iql(data, configs[1:])
    assert alone.networks.settings["seed"] == 4
    for row, row_alone in zip(together[1].metrics[:50], alone.metrics[:50], strict=True):
        assert row == pytest.approx(row_alone, rel=1e-3, abs=1e-4)


def test_metrics_progress_and_one_compilation(monkeypatch):
    data, config = transitions(MDP, 3), few_steps(monkeypatch, 390)
    traced_once = chex.assert_max_traces(q_learning._train_chunk.__wrapped__, n=1)
    jitted = jax.jit(traced_once, donate_argnames="state", static_argnames="learner")
    monkeypatch.setattr(q_learning, "_train_chunk", jitted)
    seen = []
    q_learning.train_networks(data, [config], report=seen.append)
    run = Run(None, [point for points in seen for point in points[0]])
    train_iql(data, [dataclasses.replace(config, expectile=0.9, discount=0.5, seed=9)])
    train_iql(data, [dataclasses.replace(config, num_steps=400)])
    assert [row["step"] for row in run.metrics] == list(range(1, 391))
    assert [points[0][-1]["step"] for points in seen] == [*range(20, 390, 20), 390]
    assert train_iql(data, [config])[0].metrics == run.metrics
    assert run.metrics[0]["policy/entropy"] == pytest.approx(math.log(28), abs=0.01)
    assert run.metrics[-1]["policy/entropy"] < 1.5


def test_chunking_changes_nothing(monkeypatch):
    data, config = transitions(MDP, 3), few_steps(monkeypatch, 195)
    (run,) = train_iql(data, [config])
    monkeypatch.setattr(q_learning, "NUM_CHUNKS", 2)
    monkeypatch.setattr(q_learning, "MAX_POINTS", 7)
    (coarse,) = train_iql(data, [config])
    assert [row["step"] for row in coarse.metrics] == [28, 56, 84, 112, 140, 168, 195]
    for index, row in enumerate(coarse.metrics):
        window = run.metrics[28 * index : 28 * (index + 1)]
        mean = np.mean([fine["critic/loss"] for fine in window])
        assert row["critic/loss"] == pytest.approx(mean, rel=1e-3)


def test_a_trained_selector_survives_its_folder(tmp_path, monkeypatch):
    config = dataclasses.replace(few_steps(monkeypatch, 20), advantage_scale=2.0)
    (run,) = train_iql(transitions(MDP, 3), [config])
    save_selector(tmp_path, run.networks)
    back = load_selector(tmp_path)
    x = np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(forward(back.actor, x), forward(run.networks.actor, x))
    assert (back.advantage_scale, back.state) == (2.0, "geometry")
    assert back.settings["num_steps"] == 20


def test_numpy_and_jax_agree_on_the_networks():
    state = of_one_run(q_learning._initial_state([5], 3, 8))
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    networks = [state.params["value"], state.params["actor"], state.target]
    compute = jax.jit(learner_losses.forward)
    for layers in networks:
        found = compute(layers, x)
        as_numpy = tuple((np.asarray(kernel), np.asarray(bias)) for kernel, bias in layers)
        np.testing.assert_allclose(forward(as_numpy, x), found, rtol=1e-4, atol=1e-6)


def test_divergence_names_metric_and_step():
    rows = [(0, 1, 3e38, None)] * 10
    with pytest.raises(DivergenceError, match=r"IQL: critic/loss is inf by step 1 \(run 0\)"):
        train_iql(transitions(rows, 3), [CONFIG])


def test_bad_requests():
    data = transitions(MDP, 3)
    with pytest.raises(InputError, match="num_steps=5 beside 1000"):
        train_iql(data, [CONFIG, dataclasses.replace(CONFIG, num_steps=5)])
    with pytest.raises(InputError, match="transitions hold 'geometry' features"):
        train_iql(data, [dataclasses.replace(CONFIG, state="upstream")])
    with pytest.raises(InputError, match="configs is empty"):
        train_iql(data, [])


def dialogue(name, offers, outcome, *, scenario_id="debt_001", emotions=("anger", "joy", "fear")):
    turns = tuple(
        Turn(
            index=i,
            speaker="focal" if i % 2 == 0 else "counterparty",
            emotion=emotions[i // 2] if i % 2 == 0 else None,
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
        final_value=60.0 if outcome == "accepted" else None,
    )


def test_transitions_by_hand():
    accepted = dialogue("b", [30, 80, 40, 70, 60], "accepted")
    cut = dialogue("a", [30, 85, 35], "ongoing")
    made = make_transitions([accepted, cut], {})
    assert (len(made), made.num_dialogues, made.num_truncated) == (3, 1, 1)
    assert made.observation_NS.shape == (3, len(feature_names("geometry")))
    assert made.observation_NS.dtype == np.float32
    assert [EMOTIONS[a] for a in made.action_N] == ["anger", "joy", "fear"]
    np.testing.assert_array_equal(made.terminal_N, [False, False, True])
    np.testing.assert_allclose(made.reward_N, [0, 0, trajectory_return(accepted)], rtol=1e-6)
    for row, index in enumerate((0, 2, 4)):
        state = DialogueState.from_turns(accepted, accepted.turns[:index], 30)
        np.testing.assert_array_equal(made.observation_NS[row], features(state))
    np.testing.assert_array_equal(made.next_observation_NS[:2], made.observation_NS[1:])


def test_open_at_the_cap_is_terminal_and_paid():
    capped = dialogue("a", [30, 85, 35, 80], "ongoing")
    made = make_transitions([capped], {}, state="upstream", limit=TurnLimit(4, 4))
    np.testing.assert_array_equal(made.terminal_N, [False, True])
    assert made.reward_N[-1] == pytest.approx(trajectory_return(capped, 4), rel=1e-6)
    assert made.reward_N[-1] < -1
    assert made.observation_NS.shape == (2, 10)


def test_thirty_turns_of_the_focal_side_are_sixty_of_both():
    """The shape of the return stays; progress and what counts as cut off go by the sixty."""
    cut = dialogue("a", [30, 85, 35, 80], "ongoing")
    with pytest.raises(InputError, match="1 are cut off"):
        make_transitions([cut], {}, limit=TurnLimit(4, 8))
    ended = dialogue("a", [30, 85, 35, 80], "breakdown")
    made = make_transitions([ended], {}, limit=TurnLimit(4, 8))
    assert made.reward_N[-1] == pytest.approx(trajectory_return(ended, 4), rel=1e-6)
    progress = made.observation_NS[:, feature_names("geometry").index("progress")]
    np.testing.assert_allclose(progress, [0.0, 2 / 8])


def test_turns_without_score_or_emotion_are_left_out_and_counted():
    dialogues = [dialogue(f"d{i}", [30, 80, 40], "breakdown") for i in range(4)]
    dialogues.append(dialogue("e", [30, 80, 40], "breakdown", emotions=(None, "joy")))
    scores = {(f"d{i}", 0): 2 + i for i in range(4)} | {("d0", 2): 9, ("e", 0): 5, ("e", 2): 4}
    made = make_transitions(dialogues, scores, signal="turn-judge")
    expected = scenario_advantages([2, 9, 3, 4, 5, 5, 4], ["s"] * 7)  # rows d0 d0 d1 d2 d3 e e
    np.testing.assert_allclose(made.reward_N, expected[[0, 1, 2, 3, 4, 6]], rtol=1e-5)
    assert (made.num_without_reward, made.num_without_emotion) == (3, 1)
    assert made.action_N[-1] == EMOTION_INDEX["joy"]
    # Dialogues begin where they begin, although the last turns of most are not there.
    np.testing.assert_array_equal(made.dialogue_N, [0, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(made.starts, [0, 2, 3, 4, 5])
    with pytest.raises(InputError, match="1 are cut off"):
        make_transitions([dialogue("a", [30, 80], "ongoing")], {})
    with pytest.raises(InputError, match=r"signal='episode-judge': 0 are cut off"):
        make_transitions(dialogues, scores, signal="episode-judge")


def test_the_outcome_counts_for_the_last_turn_with_an_emotion():
    """A breakdown whose last turn has no emotion stays one: its R moves to the turn before."""
    silent_end = dialogue("a", [30, 80, 40, 75, 35], "breakdown", emotions=("anger", "joy", None))
    gap = dialogue("b", [30, 80, 40, 75, 35], "breakdown", emotions=("anger", None, "fear"))
    mute = dialogue("c", [30, 80, 40], "breakdown", emotions=(None, None))
    whole = dialogue("d", [30, 80, 40], "breakdown")
    made = make_transitions([silent_end, gap, mute, whole], {})
    np.testing.assert_array_equal(made.dialogue_N, [0, 0, 1, 1, 3, 3])
    np.testing.assert_array_equal(made.terminal_N, [False, True] * 3)
    ends = [trajectory_return(one) for one in (silent_end, gap, whole)]
    np.testing.assert_allclose(made.reward_N[1::2], ends, rtol=1e-6)
    assert not made.reward_N[::2].any() and max(ends) < 0
    # The first decision of `gap` leads to its next one, past the turn without an emotion.
    state = DialogueState.from_turns(gap, gap.turns[:4], 30)
    np.testing.assert_array_equal(made.next_observation_NS[2], features(state, "geometry"))
    counts = (made.num_without_emotion, made.num_early_ends, made.num_without_decision)
    assert counts == (4, 1, 1)
    assert made.num_turns == len(made) + made.num_without_emotion == 10


def test_a_cut_turn_is_no_decision_and_is_counted():
    whole = dialogue("a", [30, 80, 40, 75, 35], "breakdown")
    turns = list(whole.turns)
    turns[4] = msgspec.structs.replace(turns[4], finish_reason="length", offer=None)
    made = make_transitions([msgspec.structs.replace(whole, turns=tuple(turns))], {})
    assert (len(made), made.num_cut, made.num_without_emotion, made.num_turns) == (2, 1, 0, 3)
    np.testing.assert_array_equal(made.terminal_N, [False, True])
    assert made.reward_N[-1] < 0


def test_a_score_of_a_turn_without_an_emotion_is_no_reward():
    dialogues = [
        dialogue(f"d{i}", [30, 80, 40], "breakdown", emotions=("joy", None)) for i in "abcd"
    ]
    scores = {(f"d{i}", turn): 2 + n + turn for n, i in enumerate("abcd") for turn in (0, 2)}
    made = make_transitions(dialogues, scores, signal="turn-judge")
    expected = scenario_advantages([2, 4, 3, 5, 4, 6, 5, 7], ["s"] * 8)[::2]
    np.testing.assert_allclose(made.reward_N, expected, rtol=1e-5)
    assert made.terminal_N.all() and made.num_without_reward == 0


def test_runs_side_by_side_are_runs_one_after_the_other(monkeypatch):
    """As on an accelerator, and as on CPU."""
    shape = 2, 3, 700, len(MDP)  # as above, to share a program; of these 700 steps few are taken
    rows_KPLB = np.random.default_rng(0).integers(len(MDP), size=shape, dtype=np.int32)
    side_by_side, found = jax.jit(lambda *args: q_learning._train_chunk.__wrapped__(*args)), []
    for backend, train in (("cpu", q_learning._train_chunk), ("gpu", side_by_side)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        state, metrics = train(
            q_learning._initial_state([0, 1], 3, 32),
            q_learning.device_data(transitions(MDP, 3)),
            q_learning._settings([CONFIG, dataclasses.replace(CONFIG, expectile=0.9)]),
            rows_KPLB,
            np.array([4, 4, 2]),
        )
        found.append(jax.tree.leaves((state.params, metrics)))
        assert metrics["value/loss"].shape == (2, 3)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
