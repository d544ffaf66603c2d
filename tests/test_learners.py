"""IQL's controls: losses by hand, a small MDP, a posterior, and what each learns from."""

import dataclasses
import functools

import jax
import msgspec
import numpy as np
import pytest
from builders import negotiation
from scipy.special import logsumexp
from scipy.stats import norm
from tiny_mdp import CONFIG, MDP, one_run, transitions

from emodistill.emotions import EKMAN, EMOTION_INDEX, EMOTIONS
from emodistill.errors import InputError
from emodistill.negotiation.states import feature_names
from emodistill.offline.rewards import dialogue_utility
from emodistill.offline.store import write_records
from emodistill.offline.sweep import first_dialogues
from emodistill.selectors import IQLSelector
from emodistill.stages.inputs import dialogues_hash
from emodistill.train import learner_losses, q_learning
from emodistill.train.emotion_posterior import (
    EmotionPosterior,
    chances_to_be_best,
    fit_posterior,
    returns_to_go,
)
from emodistill.train.selector_files import load_selector, save_selector
from emodistill.train.transitions import Transitions, joined_transitions, make_transitions

BATCH = learner_losses.Data(
    np.eye(3, dtype=np.float32),
    np.array([0, 5, 27]),
    np.float32([0.2, -0.4, 1.0]),
    np.eye(3, dtype=np.float32)[::-1],
    np.float32([1.0, 1.0, 0.0]),
)


def a_critic(seed):
    """One linear layer: Q of state s and emotion e is the kernel's entry."""
    kernel = np.random.default_rng(seed).normal(size=(3, 28)).astype(np.float32)
    return [(kernel, np.zeros(28, np.float32))]


@functools.partial(jax.jit, static_argnums=0)
def graded(losses, *arguments):
    return jax.value_and_grad(losses, has_aux=True, argnums=(0, 1))(*arguments)


@pytest.mark.parametrize("emotions", ["all", "ekman"])
def test_double_q_and_cql_losses_and_their_gradients_by_hand(emotions):
    critic, target = a_critic(0), a_critic(1)
    q, q_target = np.asarray(critic[0][0]), np.asarray(target[0][0])
    allowed = [e for e in range(28) if emotions == "all" or EMOTIONS[e] in EKMAN]
    shared = {"emotions": emotions, "discount": 0.9, "conservatism": 0.5}
    config = dataclasses.replace(CONFIG, learner="cql", **shared)
    errors, penalties, gradient, penalty_gradient = [], [], np.zeros((3, 28)), np.zeros((3, 28))
    for s, (a, r, after, goes_on) in enumerate([(0, 0.2, 2, 1), (5, -0.4, 1, 1), (27, 1.0, 0, 0)]):
        chosen = max(allowed, key=lambda e: q[after, e])
        y = r + 0.9 * goes_on * q_target[after, chosen]
        errors.append((q[s, a] - y) ** 2)
        penalties.append(logsumexp(q[s, allowed]) - q[s, a])
        gradient[s, a] += 2 * (q[s, a] - y) / 3
        penalty_gradient[s, allowed] += np.exp(q[s, allowed] - logsumexp(q[s, allowed])) / 3
        penalty_gradient[s, a] -= 1 / 3
    learners = (learner_losses.dqn_losses, 1.0, 0.0), (learner_losses.cql_losses, 0.5, 0.5)
    for losses, of_errors, scale in learners:
        (loss, metrics), (of_params, of_target) = graded(
            losses, {"critic": critic}, target, BATCH, one_run(config)
        )
        expected = of_errors * np.mean(errors) + scale * np.mean(penalties)
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        assert float(metrics["critic/loss"]) == pytest.approx(np.mean(errors), rel=1e-5)
        (kernel, _), ((fixed, _),) = of_params["critic"][0], of_target
        slope = of_errors * gradient + scale * penalty_gradient
        np.testing.assert_allclose(kernel, slope, atol=1e-6)
        assert not np.asarray(fixed).any()


@pytest.fixture(scope="module")
def controls():
    """Learner -> two runs of one program: on all emotions and transitions, and on some of both."""
    data, found = transitions(MDP * 10, 3), {}
    for learner in ("dqn", "cloning"):
        both = dataclasses.replace(CONFIG, learner=learner)
        few = dataclasses.replace(both, emotions="ekman", seed=1)
        rows = [np.arange(len(data)), np.flatnonzero(data.action_N != EMOTION_INDEX["neutral"])]
        found[learner] = q_learning.train_networks(
            joined_transitions([data, transitions([(2, EMOTION_INDEX["joy"], 0.5, None)], 3)]),
            [both, few],
            rows=[rows[0], np.append(rows[1], len(data))],
        )
    return found


def test_q_learning_finds_the_best_way_and_cloning_what_was_done(controls):
    best, choice = controls["dqn"][0], np.eye(3, dtype=np.float32)
    assert best.probabilities(choice).argmax(axis=1).tolist() == [5, 0, 5]
    assert not best.actor and not best.value
    np.testing.assert_allclose(
        controls["cloning"][0].probabilities(choice)[:, [0, 5, 27]],
        [[0.25, 0.5, 0.25], [1 / 3, 1 / 3, 1 / 3], [1 / 3, 2 / 3, 0]],
        atol=0.06,
    )


def test_seven_emotions_are_all_that_is_chosen_from(controls):
    for learner in controls:
        shares = controls[learner][1].probabilities(np.eye(3, dtype=np.float32))
        others = [EMOTION_INDEX[e] for e in EMOTIONS if e not in EKMAN]
        assert not shares[:, others].any()
        assert shares[2, EMOTION_INDEX["joy"]] > 0.9  # the only row that it may learn from
    with pytest.raises(InputError, match="none of the 10 transitions has such an emotion"):
        only = dataclasses.replace(CONFIG, emotions="ekman")
        q_learning.train_networks(transitions([(0, 0, 0.0, None)] * 10, 3), [only])


def test_a_control_has_no_closed_form_and_comes_back_from_its_folder(tmp_path, controls):
    for learner, (networks, _) in controls.items():
        save_selector(tmp_path / learner, networks)
        back = load_selector(tmp_path / learner)
        states = np.eye(3, dtype=np.float32)
        np.testing.assert_array_equal(back.probabilities(states), networks.probabilities(states))
        with pytest.raises(InputError, match=f"of learner='{learner}' has none"):
            IQLSelector(networks=back, policy="closed-form")


def talks(payments):
    """Transitions of dialogues, each a list of (progress, emotion), which pay at their end."""
    rows = [
        (number, progress, emotion, pay if is_last else 0.0)
        for number, (turns, pay) in enumerate(payments)
        for is_last, (progress, emotion) in zip(
            [*[False] * (len(turns) - 1), True], turns, strict=True
        )
    ]
    dialogue, progress, emotion, reward = map(np.array, zip(*rows, strict=True))
    observation = np.zeros((len(rows), len(feature_names())), np.float32)
    observation[:, feature_names().index("progress")] = progress
    return Transitions(
        observation_NS=observation,
        action_N=emotion.astype(np.int32),
        reward_N=reward.astype(np.float32),
        next_observation_NS=observation,
        terminal_N=np.append(dialogue[1:] != dialogue[:-1], True),
        dialogue_N=dialogue.astype(np.int32),
        state="geometry",
        num_dialogues=len(payments),
    )


def test_the_posterior_is_the_conjugate_one_and_finds_what_pays_in_each_phase(tmp_path):
    rng = np.random.default_rng(0)
    best = {0: 3, 2: 9}
    payments = [
        ([(0.3 * phase, emotion)], float(best.get(phase) == emotion) + rng.normal(0, 0.3))
        for phase in range(3)
        for emotion in range(27)  # nobody has tried the last one
        for _ in range(10)
    ]
    data = talks(payments)
    found = fit_posterior(data, dataclasses.replace(CONFIG, learner="bandit"))
    states = data.observation_NS[[0, 300, 600]]
    early, middle, late = found.probabilities(states)
    assert early[3] > 0.99 and late[9] > 0.99
    assert middle.max() < 0.5  # none is better there
    pays = np.reshape([pay for _, pay in payments], (3, 27, 10))
    noise = pays.var(axis=2, ddof=1).mean()
    spread = (pays.mean(axis=2) - pays.mean(axis=(1, 2))[:, None]) ** 2 - noise / 10
    between = spread.mean()
    variance = 1 / (1 / between + 10 / noise)
    expected = variance * (pays[0].mean() / between + pays[0, 3].sum() / noise)
    assert found.mean_PA[0, 3] == pytest.approx(expected, rel=1e-4)
    assert found.deviation_PA[0, 3] == pytest.approx(variance**0.5, rel=1e-4)
    assert found.mean_PA[0, 27] == pytest.approx(pays[0].mean(), rel=1e-4)
    assert found.deviation_PA[0, 27] == pytest.approx(between**0.5, rel=1e-4)
    save_selector(tmp_path, found)
    back = load_selector(tmp_path)
    assert isinstance(back, EmotionPosterior)
    np.testing.assert_array_equal(back.probabilities(states), found.probabilities(states))


def test_the_best_fixed_emotion_is_one_and_may_be_one_of_seven():
    joy, love = EMOTION_INDEX["joy"], EMOTION_INDEX["love"]
    turns = [([(0.0, love), (0.1, love)], 1.0), ([(0.0, joy), (0.1, joy)], 0.5)]
    data = talks([*turns * 20, *[([(0.0, 2)], 0.0)] * 20])
    for emotions, best in (("all", love), ("ekman", joy)):
        config = dataclasses.replace(CONFIG, learner="best-fixed", emotions=emotions)
        shares = fit_posterior(data, config).probabilities(data.observation_NS[0])
        assert shares[best] == 1.0 == shares.sum()


def test_returns_are_what_a_dialogue_pays_from_a_turn_on():
    data = talks([([(0.0, 1), (0.1, 2), (0.2, 3)], 0.7), ([(0.0, 1)], -1.0)])
    data.reward_N[1] = 0.1
    np.testing.assert_allclose(returns_to_go(data), [0.8, 0.8, 0.7, -1.0], rtol=1e-6)


def test_thompsons_chances_are_those_of_two_normals():
    is_allowed = np.array([True, True, False])
    found = chances_to_be_best(np.array([0.3, 0.1, 9.0]), np.array([0.2, 0.4, 0.1]), is_allowed)
    expected = norm.cdf((0.3 - 0.1) / np.hypot(0.2, 0.4))
    np.testing.assert_allclose(found, [expected, 1 - expected, 0], atol=1e-4)


def test_the_first_dialogues_are_spread_over_scenarios_and_stay_when_a_sweep_grows():
    small, large = (
        [negotiation(number=s, seed=n) for s in range(1, 6) for n in range(count)]
        for count in (2, 4)
    )
    first = first_dialogues(small, 7, seed=3)
    assert len({t.scenario_id for t in first[:5]}) == 5
    assert [t.seed for t in first] == [0] * 5 + [1] * 2
    assert [t.trajectory_id for t in first_dialogues(large, 7, seed=3)] == [
        t.trajectory_id for t in first
    ]
    assert [t.scenario_id for t in first_dialogues(small, 7, seed=4)] != [
        t.scenario_id for t in first
    ]
    with pytest.raises(InputError, match=r"num_dialogues=11, but the sweep has 10 dialogues"):
        first_dialogues(small, 11, seed=0)


def test_the_utility_is_paid_at_the_end():
    dialogues = [negotiation(), negotiation(seed=1, share=None)]
    made = make_transitions(dialogues, {}, signal="utility")
    for number, dialogue in enumerate(dialogues):
        rewards = made.reward_N[made.dialogue_N == number]
        assert rewards[-1] == pytest.approx(dialogue_utility(dialogue))
        assert not rewards[:-1].any()


def test_what_a_small_budget_learned_from_stays_when_the_sweep_grows(tmp_path):
    path = tmp_path / "trajectories.jsonl"
    hashes = []
    for count in (2, 3):
        talks = [negotiation(number=s, seed=n) for n in range(count) for s in (1, 2)]
        write_records(path, [msgspec.structs.replace(one, split="train") for one in talks])
        hashes.append(dialogues_hash(path, 3, 0, tmp_path))
    assert hashes[0] == hashes[1] != dialogues_hash(path, 4, 0, tmp_path)
    path.write_bytes(path.read_bytes() + b'{"trajectory_id": "half')
    with pytest.raises(InputError, match=r"trajectories.jsonl, line 7: no dialogue"):
        dialogues_hash(path, 3, 0, tmp_path)
