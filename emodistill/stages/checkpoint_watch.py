"""Checkpoints of a training play the validation scenarios, and what they show is looked at.

    <cell>/watch.jsonl              a row for each look
          /watch/<step>/adapter     the checkpoint in PEFT's layout
                       /dialogues.jsonl, <judge>.jsonl

The student that is trained plays, as it is at that moment: no second copy of it is loaded.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emodistill.configs import (
    SIMULATED,
    SIMULATED_MODELS,
    AdapterConfig,
    EvaluateConfig,
    ExperimentConfig,
    JudgeConfig,
    RecordedRefinementConfig,
    RefinementConfig,
)
from emodistill.errors import StoppedError
from emodistill.evaluation.checkpoint_looks import (
    LOOKS,
    CheckpointLook,
    best_look,
    look_at,
    looks_table,
    read_looks,
)
from emodistill.evaluation.players import PlayerSpec, writing_temperature
from emodistill.jsonl import JsonlAppender
from emodistill.model import save_adapter
from emodistill.offline.judging import judge_path, scores_by_turn
from emodistill.offline.rewards import Scores
from emodistill.offline.run_files import SCENARIOS
from emodistill.offline.store import read_judgements, read_trajectories, write_records
from emodistill.settings import Cell, Settings
from emodistill.stages.evaluation import play, unkept_job
from emodistill.stages.judge import judge_matches
from emodistill.stages.language_models import endpoint_of

DIALOGUES = "dialogues.jsonl"
IN_FLIGHT = 32
"""Dialogues at once against the simulator, which is two for each slot of the student's engine."""


def method_of(config: AdapterConfig) -> str:
    """The method that plays an adapter that has been trained."""
    stage = config.stage
    is_refined = isinstance(config, RefinementConfig) and not config.starts_from_base
    trained = f"sft+{stage}" if is_refined or stage not in ("sft", "jpo") else stage
    return f"free-{trained}" if config.emotion_free else f"iql+{trained}"


def watched_match(cell: Cell) -> EvaluateConfig:
    """The settings with which a training's checkpoints play."""
    config: RecordedRefinementConfig = cell.config
    names = (f.name for f in dataclasses.fields(ExperimentConfig))
    shared = {name: getattr(config, name) for name in names}
    playing = (cell.settings or Settings()).config(
        EvaluateConfig,
        **shared,
        data_from=config.data_from,
        method=method_of(config),
        split="validation",
        num_seeds=config.watch_seeds,
        num_scenarios=None,
        student=config.model,
        student_url=None,
        student_model=None,
        prompt_pack=config.prompt_pack,
        quantize=config.quantize,
        cells={},
    )
    playing = dataclasses.replace(playing, keep_unread=True)  # a ruined checkpoint is a finding
    return dataclasses.replace(playing, concurrency=IN_FLIGHT) if playing.is_simulated else playing


def watching_judge(cell: Cell) -> JudgeConfig | None:
    """Who scores what the checkpoints say: the judge that is learned from, if it can be asked.

    Worths of turns under a judge's name can't, nor a real judge that nobody has named.
    """
    config: RecordedRefinementConfig = cell.config
    names = (f.name for f in dataclasses.fields(ExperimentConfig))
    shared: Mapping[str, Any] = {name: getattr(config, name) for name in names}
    judge = config.judge
    if config.is_simulated:
        if (judge or SIMULATED_MODELS["judge"]) not in SIMULATED:
            return None
    elif judge is None:
        return None
    pack = {"prompt_pack": config.prompt_pack, "judge": judge}
    judging = (cell.settings or Settings()).config(JudgeConfig, **shared, **pack)
    return dataclasses.replace(judging, level="turn", repeats=1, yes=True, batch=False)


@dataclass
class CheckpointWatch:
    """Watches the checkpoints of one training (`train.watching.Watcher`)."""

    cell: Cell
    directory: Path
    """Of the training."""
    selector_dir: Path | None
    """Of the selector that picks the emotions, where one does."""
    student: Any
    """The student that is trained (`train.student.Student`)."""
    looks: dict[int, CheckpointLook] = field(init=False)
    """By step."""

    def __post_init__(self) -> None:
        self.playing = watched_match(self.cell)
        self.judging = watching_judge(self.cell)
        self.every: int = self.cell.config.watch_every
        with JsonlAppender(self.directory / LOOKS):  # cuts a torn last line off
            self.looks = {look.step: look for look in read_looks(self.directory / LOOKS)}

    def begin(self, step: int) -> None:
        """Forget whatever was seen after `step`, from which the training goes on."""
        for folder in (self.directory / "watch").glob("*"):
            if int(folder.name) > step:
                shutil.rmtree(folder)
        if any(seen > step for seen in self.looks):
            self.looks = {seen: look for seen, look in self.looks.items() if seen <= step}
            write_records(self.directory / LOOKS, self.looks.values())

    def look(self, step: int, model: Any) -> bool:
        """Play, judge and compare what was not yet; whether to stop."""
        if step not in self.looks:
            folder = self._folder(step)
            save_adapter(model, folder / "adapter", self.cell.config.model)
            self._play(step)
            look = look_at(
                step,
                read_trajectories(folder / DIALOGUES),
                read_trajectories(self._folder(0) / DIALOGUES),
                (self._scores(folder), self._scores(self._folder(0))),
            )
            with JsonlAppender(self.directory / LOOKS) as rows:
                rows.append(look)
            self.looks[step] = look
            print(f"{self.cell.config.stage}: {look.text()}", flush=True)
        return self.cell.config.stop_when_hacked and self.looks[step].is_hacked

    def kept(self, last_step: int) -> tuple[int, Path | None]:
        """The step that `select` asks for, and its adapter; says what was seen."""
        print(looks_table(list(self.looks.values())), flush=True)
        if self.cell.config.select == "last":
            return last_step, None
        step = best_look(list(self.looks.values())).step
        return step, self._folder(step) / "adapter"

    def _folder(self, step: int) -> Path:
        return self.directory / "watch" / f"{step:06d}"

    def _play(self, step: int) -> None:
        config, folder = self.playing, self._folder(step)
        focal = PlayerSpec(  # without an adapter: the student that is trained has its own
            method=config.method,
            temperature=writing_temperature(config, config.method),
            cells={} if self.selector_dir is None else {"iql": self.selector_dir.name},
            selector_dir=self.selector_dir,
        )
        name = f"{self.cell.config.stage}: look at step {step:,}"
        job = unkept_job(config, focal, name=name, output=folder / DIALOGUES)
        played = play(job, {config.student: self.student})
        if not played.result.is_complete:
            raise StoppedError(f"{name}: {played.result.text}")
        if played.is_agreed:  # once for all looks
            self.playing = dataclasses.replace(config, yes=True)
        if self.judging is not None:
            scenarios = (config.data_from or config.run) / config.domain / SCENARIOS
            judge_matches(self.judging, folder / DIALOGUES, folder, scenarios)

    def _scores(self, folder: Path) -> Scores:
        if self.judging is None:
            return {}
        path = judge_path(folder, endpoint_of(self.judging, "judge").name)
        return scores_by_turn(read_judgements(path))
