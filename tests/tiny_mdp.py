"""A Markov decision process that is small enough to be solved by hand, as transitions."""

import jax
import numpy as np

from emodistill.configs import IQLConfig
from emodistill.train import q_learning
from emodistill.train.transitions import Transitions

CONFIG = IQLConfig(num_steps=1_000, batch_size=64, hidden_width=32, learning_rate=3e-3, polyak=0.05)
"""Most tests share its shapes, and data sets of ten rows, so that they share a compilation."""


def transitions(rows, num_states, dialogues=None):
    """(state, action, reward, next state or None) with one-hot states."""
    state, action, reward, after = zip(*rows, strict=True)
    one_hot = np.eye(num_states, dtype=np.float32)
    return Transitions(
        observation_NS=one_hot[list(state)],
        action_N=np.array(action, np.int32),
        reward_N=np.array(reward, np.float32),
        next_observation_NS=one_hot[[0 if s is None else s for s in after]],
        terminal_N=np.array([s is None for s in after]),
        dialogue_N=np.arange(len(rows), dtype=np.int32) if dialogues is None else dialogues,
        state="geometry",
        num_dialogues=len(rows),
    )


def of_one_run(tree):
    """Arrays of a single run, without the axis of runs."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], tree)


def one_run(config):
    """The settings of a single run."""
    return of_one_run(q_learning._settings([config]))


# Rows repeat as often as the behaviour took them: weights 1, 2 and 1 in the first state.
MDP = [
    (0, 0, 0.0, 1),
    (0, 5, 0.3, 2),
    (0, 5, 0.3, 2),
    (0, 27, 0.5, None),
    (1, 0, 1.0, None),
    (1, 5, -1.0, None),
    (1, 27, 0.2, 2),
    (2, 0, -0.5, None),
    (2, 5, 0.8, None),
    (2, 5, 0.8, None),
]
