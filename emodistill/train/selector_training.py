"""Stage 3: the emotion selector is trained on a sweep, and what the data says about it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from emodistill.configs import IQLConfig
from emodistill.files import write_json
from emodistill.model import keep_programs
from emodistill.offline.rewards import SweepData, training_dialogues
from emodistill.offline.run_files import SUPPORT
from emodistill.progress import Progress
from emodistill.train.metrics_log import MetricsLog
from emodistill.train.q_learning import train_iql
from emodistill.train.selector_checks import estimated_values, support_map
from emodistill.train.selector_files import save_selector
from emodistill.train.transitions import make_transitions


class SelectorResult(NamedTuple):
    """What a selector was trained on, and what the data says about it."""

    fitted_q: dict[str, float]
    """The estimated value of the selector, of behavior cloning and of random emotions."""
    unsupported: float
    """Share of the policy's choices with too few turns of the data behind them."""
    num_transitions: int
    num_turns: int
    """Focal turns of the training dialogues; those that give no transition are among the counts
    below, which are those of `Transitions`."""
    num_dialogues: int
    num_held_out: int
    """Dialogues of scenarios that are held out, left out."""
    num_truncated: int
    num_truncated_turns: int
    num_without_reward: int
    num_without_emotion: int
    num_cut: int
    num_early_ends: int
    num_without_decision: int
    left_out_scenarios: tuple[str, ...]
    """Scenarios with too few scores to be normalised."""


def train_selector(config: IQLConfig, sweep: SweepData, directory: Path) -> SelectorResult:
    """Train the selector on the dialogues of training scenarios, and write it to `directory`.

    Raises:
      InputError: no transition is left to learn from.
    """
    keep_programs()
    dialogues = training_dialogues(sweep)
    transitions = make_transitions(
        dialogues,
        sweep.scores,
        signal=config.signal,
        state=config.state,
        limit=sweep.limit,
    )
    with (
        MetricsLog(directory, num_steps=0) as log,
        Progress("iql", total=config.num_steps, unit="steps") as bar,
    ):

        def report(points: list[list[dict[str, float]]]) -> None:
            for point in points[0]:
                log.write(int(point["step"]), {k: v for k, v in point.items() if k != "step"})
            last = points[0][-1]
            bar.advance(int(last["step"]) - bar.done, f"critic loss {last['critic/loss']:.3f}")

        (networks,) = train_iql(transitions, [config], report=report)
    save_selector(directory, networks)
    support = support_map(networks, transitions, seed=config.seed)
    write_json(directory / SUPPORT, support)
    return SelectorResult(
        fitted_q=estimated_values(networks, transitions, config),
        unsupported=support["unsupported"],
        num_transitions=len(transitions),
        num_turns=transitions.num_turns,
        num_dialogues=transitions.num_dialogues,
        num_held_out=len(sweep.trajectories) - len(dialogues),
        num_truncated=transitions.num_truncated,
        num_truncated_turns=transitions.num_truncated_turns,
        num_without_reward=transitions.num_without_reward,
        num_without_emotion=transitions.num_without_emotion,
        num_cut=transitions.num_cut,
        num_early_ends=transitions.num_early_ends,
        num_without_decision=transitions.num_without_decision,
        left_out_scenarios=transitions.left_out_scenarios,
    )
