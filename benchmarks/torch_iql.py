"""The peer of `iql`: the loop as it is usually written in PyTorch, an optimiser per network."""

from __future__ import annotations

import copy
import time

import torch
from torch.nn.functional import log_softmax, mse_loss

from emodistill.configs import IQLConfig
from emodistill.emotions import EMOTIONS
from emodistill.train.transitions import Transitions


def updates_per_second(transitions: Transitions, config: IQLConfig, num_steps: int) -> float:
    """Train V, Q and the policy for `num_steps` steps."""
    columns = (
        torch.from_numpy(transitions.observation_NS),
        torch.from_numpy(transitions.action_N).long()[:, None],
        torch.from_numpy(transitions.reward_N),
        torch.from_numpy(transitions.next_observation_NS),
        torch.from_numpy(~transitions.terminal_N).float(),
    )

    def network(num_outputs: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        width = config.hidden_width
        mlp = torch.nn.Sequential(
            torch.nn.Linear(columns[0].shape[1], width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, num_outputs),
        )
        return mlp, torch.optim.Adam(mlp.parameters(), lr=config.learning_rate)

    value, value_optimizer = network(1)
    critic, critic_optimizer = network(len(EMOTIONS))
    actor, actor_optimizer = network(len(EMOTIONS))
    target = copy.deepcopy(critic)
    generator = torch.Generator().manual_seed(config.seed)
    started = time.perf_counter()
    for _ in range(num_steps):
        rows = torch.randint(len(transitions), (config.batch_size,), generator=generator)
        states, actions, rewards, next_states, continues = (column[rows] for column in columns)
        with torch.no_grad():
            target_q = target(states).gather(1, actions)[:, 0]
        error = target_q - value(states)[:, 0]
        weight = torch.where(error > 0, config.expectile, 1 - config.expectile)
        _step(value_optimizer, (weight * error**2).mean())
        with torch.no_grad():
            next_value = value(next_states)[:, 0]
        bellman = rewards + config.discount * continues * next_value
        _step(critic_optimizer, mse_loss(critic(states).gather(1, actions)[:, 0], bellman))
        with torch.no_grad():
            advantage = target_q - value(states)[:, 0]
            weight = torch.exp(config.advantage_scale * advantage).clamp(max=config.weight_cap)
        log_prob = log_softmax(actor(states), dim=-1).gather(1, actions)[:, 0]
        _step(actor_optimizer, -(weight * log_prob).mean())
        with torch.no_grad():
            for old, new in zip(target.parameters(), critic.parameters(), strict=True):
                old.lerp_(new, config.polyak)
    return num_steps / (time.perf_counter() - started)


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
