"""Stage 3: the emotion selector is trained on a sweep, and what the data says about it is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emodistill.configs import IQLConfig
from emodistill.files import write_json
from emodistill.model import keep_programs
from emodistill.offline.rewards import SweepData, training_dialogues
from emodistill.offline.rounds import counts, recorded_spent
from emodistill.offline.run_files import SUPPORT
from emodistill.offline.sweep import first_dialogues
from emodistill.progress import Progress
from emodistill.records import Trajectory
from emodistill.train.emotion_posterior import NUM_PHASES, fit_posterior
from emodistill.train.metrics_log import MetricsLog
from emodistill.train.q_learning import train_networks
from emodistill.train.selector_checks import (
    MAX_UNSUPPORTED,
    MIN_SUPPORT,
    estimated_values,
    support_map,
)
from emodistill.train.selector_files import Selected, save_selector
from emodistill.train.transitions import Transitions, joined_transitions, make_transitions


class SelectorResult(NamedTuple):
    """What a selector was trained on, and what the data says about it."""

    fitted_q: dict[str, float]
    """The estimated value of the selector, of behavior cloning and of random emotions; empty where
    it wasn't asked for."""
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
    spent: Mapping[str, float]
    """What the dialogues that were learned from have taken (`offline.rounds.Spent`)."""

    @property
    def support_note(self) -> str:
        """How much of the policy lies outside the data; empty where that is little."""
        if self.unsupported <= MAX_UNSUPPORTED:
            return ""
        return (
            f"{self.unsupported:.0%} of the policy's choices have fewer than {MIN_SUPPORT} turns "
            "of the data behind them"
        )


class _Lesson(NamedTuple):
    """What a selector learns from."""

    dialogues: Sequence[Trajectory]
    transitions: Transitions


def train_selectors(
    configs: Sequence[IQLConfig], sweep: SweepData, directories: Sequence[Path]
) -> list[SelectorResult]:
    """Train selectors of one learner on the dialogues of training scenarios, all in one program.

    Args:
      directories: where each is written to.

    Raises:
      InputError: no transition is left to learn from, the sweep has too few dialogues, or the
        configurations can't share a program (`q_learning.SHARED`).
    """
    keep_programs()
    every = training_dialogues(sweep)
    lessons = _lessons(configs, every, sweep)
    trained = _train(configs, [lesson.transitions for lesson in lessons], directories)
    return [
        _finish(config, selected, lesson, directory, len(sweep.trajectories) - len(every))
        for config, selected, lesson, directory in zip(
            configs, trained, lessons, directories, strict=True
        )
    ]


def _lessons(
    configs: Sequence[IQLConfig], every: Sequence[Trajectory], sweep: SweepData
) -> list[_Lesson]:
    """What each configuration learns from; those that learn from the same dialogues share it."""
    known: dict[tuple[object, ...], _Lesson] = {}
    lessons = []
    for config in configs:
        dialogues = list(every)
        if config.num_dialogues is not None:
            first = first_dialogues(every, config.num_dialogues, config.seed)
            dialogues = sorted(first, key=attrgetter("trajectory_id"))
        key = (config.signal, config.state, *(one.trajectory_id for one in dialogues))
        if key not in known:
            transitions = make_transitions(
                dialogues,
                sweep.scores,
                signal=config.signal,
                state=config.state,
                limit=sweep.limit,
            )
            known[key] = _Lesson(dialogues, transitions)
        lessons.append(known[key])
    return lessons


def _train(
    configs: Sequence[IQLConfig], lessons: Sequence[Transitions], directories: Sequence[Path]
) -> list[Selected]:
    """The selectors; each one's metrics are in its directory."""
    learner, num_steps = configs[0].learner, configs[0].num_steps
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(MetricsLog(path, num_steps=0)) for path in directories]
        if learner in NUM_PHASES:
            fitted = [
                fit_posterior(lesson, config)
                for lesson, config in zip(lessons, configs, strict=True)
            ]
            for log, posterior in zip(logs, fitted, strict=True):
                log.write(1, posterior.metrics)
            return list(fitted)
        bar = stack.enter_context(Progress(learner, total=num_steps, unit="steps"))

        def report(points: list[list[dict[str, float]]]) -> None:
            for log, of_run in zip(logs, points, strict=True):
                for point in of_run:
                    log.write(int(point["step"]), {k: v for k, v in point.items() if k != "step"})
            last = points[0][-1]
            loss = "critic/loss" if "critic/loss" in last else "actor/loss"
            text = f"{loss.replace('/', ' ')} {last[loss]:.3f}"
            bar.advance(int(last["step"]) - bar.done, text)

        distinct = list({id(lesson): lesson for lesson in lessons}.values())
        ends = np.cumsum([len(lesson) for lesson in distinct])
        rows_of = {
            id(lesson): np.arange(end - len(lesson), end)
            for lesson, end in zip(distinct, ends.tolist(), strict=True)
        }
        return list(
            train_networks(
                joined_transitions(distinct),
                configs,
                rows=[rows_of[id(lesson)] for lesson in lessons],
                report=report,
            )
        )


def _finish(
    config: IQLConfig,
    selected: Selected,
    lesson: _Lesson,
    directory: Path,
    num_held_out: int,
) -> SelectorResult:
    """Write a selector, and say what the data says about it."""
    dialogues, transitions = lesson
    save_selector(directory, selected)
    support = support_map(selected, transitions, seed=config.seed)
    write_json(directory / SUPPORT, support)
    return SelectorResult(
        fitted_q=estimated_values(selected, transitions, config) if config.estimates_value else {},
        unsupported=support["unsupported"],
        num_transitions=len(transitions),
        num_turns=transitions.num_turns,
        num_dialogues=transitions.num_dialogues,
        num_held_out=num_held_out,
        num_truncated=transitions.num_truncated,
        num_truncated_turns=transitions.num_truncated_turns,
        num_without_reward=transitions.num_without_reward,
        num_without_emotion=transitions.num_without_emotion,
        num_cut=transitions.num_cut,
        num_early_ends=transitions.num_early_ends,
        num_without_decision=transitions.num_without_decision,
        left_out_scenarios=transitions.left_out_scenarios,
        spent=counts(recorded_spent(dialogues, ())),
    )
