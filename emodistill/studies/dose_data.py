"""What the study of doses learns from beside a judge's scores: the truth, and own dialogues.

The truth are the worths of turns, found by forks and written as a judge's scores. Own dialogues are
those that the student of `iql+sft` plays on training scenarios; they become the sweep of a run
inside the run, `runs/<run>/own`, with the same selector and the same SFT snapshot.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emodistill.configs import (
    DEFAULT_CELL,
    TRUTH,
    EvaluateConfig,
    IQLConfig,
    JudgeConfig,
    ReplayConfig,
    SFTConfig,
)
from emodistill.configs.studies import DoseStudy
from emodistill.offline.run_files import SCENARIOS, write_as_sweep
from emodistill.offline.store import read_scenarios, read_trajectories
from emodistill.settings import Cell, Settings
from emodistill.stages import run
from emodistill.studies.planned_arms import OWN


def prepare_doses(config: DoseStudy, settings: Settings) -> None:
    """Make the truth and the own dialogues that a study asks for and that aren't there.

    Raises:
      InputError, StoppedError: as the stages that make them.
    """
    if TRUTH in config.judges:
        shared = _shared(config) | {"scores": TRUTH, "continuations": config.continuations}
        run(Cell(settings.config(ReplayConfig, **shared, num_turns=config.num_turns)))
    if config.own_dialogues and "jpo" in config.learners:
        _play_own(config, settings)
        given = _without(_shared(config) | {"run": config.run / OWN}, "data_from", "counterparty")
        run(Cell(settings.config(JudgeConfig, **given, judge=config.judge), None, settings))


def _shared(config: DoseStudy) -> dict[str, Any]:
    names = ("run", "data_from", "domain", "seed", "provider", "base_url", "counterparty")
    given = {name: getattr(config, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _without(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _play_own(config: DoseStudy, settings: Settings) -> None:
    """Make the sweep of the run inside the run; one of as many dialogues is left alone.

    With more dialogues it begins as before, so that the judge scores the new ones alone.
    """
    data = config.data_from or config.run
    own = config.run / OWN / config.domain
    for kind in (IQLConfig, SFTConfig):
        given = _without(_shared(config), "counterparty")
        base = settings.config(kind, **given, judge=config.judge)
        run(Cell(base, None, settings))
        folder = Path(kind.stage) / DEFAULT_CELL
        shutil.copytree(config.run / config.domain / folder, own / folder, dirs_exist_ok=True)
    scenarios = data / config.domain / SCENARIOS
    num_scenarios = sum(s.split == "train" for s in read_scenarios(scenarios))
    base = settings.config(
        EvaluateConfig,
        **_shared(config) | {"run": config.run / OWN, "data_from": data},
        method="iql+sft",
        student=config.student,
    )
    num_seeds = -(-config.own_dialogues // num_scenarios)
    playing = dataclasses.replace(
        base, split="train", num_scenarios=None, num_seeds=num_seeds, yes=True
    )
    played = read_trajectories(run(Cell(playing, base, settings)).path)
    write_as_sweep(own, scenarios, played, limit=config.own_dialogues)
