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
from typing import Any, TypeVar

from emodistill.configs import (
    SIMULATED,
    SIMULATED_MODELS,
    AdapterConfig,
    ApiConfig,
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
    look_at,
    looks_table,
    read_looks,
    selected_look,
)
from emodistill.evaluation.players import PlayerSpec, writing_temperature
from emodistill.jsonl import JsonlAppender
from emodistill.model import save_adapter
from emodistill.offline.budget import capped, read_usage
from emodistill.offline.judging import judge_path, scores_by_turn
from emodistill.offline.rounds import recorded_spent
from emodistill.offline.run_files import SCENARIOS, recorded_run
from emodistill.offline.store import read_judgements, read_trajectories, write_records
from emodistill.records import Judgement
from emodistill.settings import Cell, Settings
from emodistill.stages.evaluation import play, unkept_job
from emodistill.stages.judge import judge_matches
from emodistill.stages.language_models import endpoint_of

C = TypeVar("C", bound=ApiConfig)

DIALOGUES = "dialogues.jsonl"
IN_FLIGHT = 32
"""Dialogues at once against the simulator, which is two for each slot of the student's engine."""


def method_of(config: AdapterConfig) -> str:
    """The method that plays an adapter that has been trained."""
    stage = config.stage
    is_refined = isinstance(config, RefinementConfig) and config.reference == "sft"
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
        for folder in (self.directory / "watch").glob("[0-9]*"):
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
            played = read_trajectories(folder / DIALOGUES)
            judged, judged_first = self._judgements(folder), self._judgements(self._folder(0))
            look = look_at(
                step,
                played,
                read_trajectories(self._folder(0) / DIALOGUES),
                (scores_by_turn(judged), scores_by_turn(judged_first)),
                recorded_spent(played, judged)._replace(cost_usd=self._cost_usd(folder)),
            )
            with JsonlAppender(self.directory / LOOKS) as rows:
                rows.append(look)
            self.looks[step] = look
            print(f"{self.cell.config.stage}: {look.text()}", flush=True)
        return self.cell.config.stop_when_hacked and self.looks[step].is_hacked

    def kept(self, last_step: int) -> tuple[int, Path | None]:
        """The step that `select` asks for, and its adapter; says what was seen."""
        looks, config = list(self.looks.values()), self.cell.config
        print(looks_table(looks), flush=True)
        if config.select == "best":
            step = selected_look(looks).step
            if step == 0:
                print(
                    f"{config.stage}: what training started from is kept: all that came of it has "
                    "an alarm, or plays worse by more than a standard error. Try a lower "
                    "--learning-rate, or another judge.",
                    flush=True,
                )
            elif step != last_step:
                print(f"{config.stage}: step {step:,} is kept.", flush=True)
            return step, self._folder(step) / "adapter"
        if self.looks[last_step].is_hacked:
            print(
                f"{config.stage}: step {last_step:,} is kept, and has an alarm; --select best "
                "would keep a checkpoint without.",
                flush=True,
            )
        return last_step, None

    @property
    def cost_usd(self) -> float:
        """Of all looks."""
        return sum(map(self._cost_usd, (self.directory / "watch").glob("[0-9]*")))

    def _folder(self, step: int) -> Path:
        return self.directory / "watch" / f"{step:06d}"

    def _play(self, step: int) -> None:
        config, folder = self._capped(self.playing, step), self._folder(step)
        focal = PlayerSpec(  # without an adapter: the student that is trained has its own
            method=config.method,
            temperature=writing_temperature(config, config.method),
            cells={} if self.selector_dir is None else {"iql": self.selector_dir.name},
            selector_dir=self.selector_dir,
        )
        name = f"{self.cell.config.stage}: look at step {step:,}"
        if not config.is_simulated and not self.looks:
            print(f"{name}: every look costs as much, and one comes every {self.every:,} steps.")
        job = unkept_job(config, focal, name=name, output=folder / DIALOGUES)
        played = play(job, {config.student: self.student})
        if not played.result.is_complete:
            raise StoppedError(f"{name}: {played.result.text}")
        if played.is_agreed:  # once for all looks
            self.playing = dataclasses.replace(self.playing, yes=True)
        if self.judging is not None:
            scenarios = recorded_run(config) / config.domain / SCENARIOS
            judging = self._capped(self.judging, step)
            judge_matches(judging, folder / DIALOGUES, folder, scenarios)

    def _capped(self, config: C, step: int) -> C:
        """The settings with what the other looks, and the dialogues of this one, have left."""
        others = self.cost_usd - self._cost_usd(self._folder(step))
        own = read_usage(self._folder(step) / DIALOGUES).cost_usd
        return capped(config, others + (own if isinstance(config, JudgeConfig) else 0.0))

    def _judge_file(self, folder: Path) -> Path | None:
        if self.judging is None:
            return None
        return judge_path(folder, endpoint_of(self.judging, "judge").name)

    def _judgements(self, folder: Path) -> list[Judgement]:
        path = self._judge_file(folder)
        return [] if path is None else read_judgements(path)

    def _cost_usd(self, folder: Path) -> float:
        """Of a look; calls that came to nothing are in it."""
        files = folder / DIALOGUES, self._judge_file(folder)
        return sum(read_usage(file).cost_usd for file in files if file is not None)
