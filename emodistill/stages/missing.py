"""Making what a stage lacks: on the simulator, never where a provider is named."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emodistill import cli
from emodistill.configs import (
    EMBEDDED,
    SIMULATED,
    AdapterConfig,
    ALoLConfig,
    DPOConfig,
    EvaluateConfig,
    ExperimentConfig,
    IQLConfig,
    JPOConfig,
    JudgeConfig,
    MatchConfig,
    SFTConfig,
    SweepConfig,
)
from emodistill.errors import InputError
from emodistill.offline.run_files import SCENARIOS, TRAJECTORIES, judge_file
from emodistill.runs import cell_name, read_manifest, stage_dir
from emodistill.stages import collect, learn
from emodistill.stages.files import cell, command, judge_level, judge_manifest, say, student_of

SHARED_BY_ADAPTERS = (
    "judge",
    "prompt_pack",
    "emotion_free",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "quantize",
)
"""Settings that a refinement takes over from the SFT that it starts from."""


class _Needed(NamedTuple):
    script: str
    cls: type[ExperimentConfig]
    make: Callable[..., object]


def _needed(stage: str) -> _Needed:
    return {
        "sweep": _Needed("sweep", SweepConfig, collect.sweep),
        "judge": _Needed("judge", JudgeConfig, collect.judge),
        "iql": _Needed("train_iql", IQLConfig, learn.iql),
        "sft": _Needed("train_sft", SFTConfig, learn.sft),
        "jpo": _Needed("train_jpo", JPOConfig, learn.refine),
        "alol": _Needed("train_alol", ALoLConfig, learn.refine),
        "dpo": _Needed("train_dpo", DPOConfig, learn.refine),
    }[stage]


def prepare(
    config: ExperimentConfig, *stages: str, settings: Mapping[str, Any] | None = None
) -> None:
    """Make sure that earlier stages are there.

    On the simulator those that are missing are made, by their sections of `settings` (those of
    configs/quickstart.yaml without any), and those that were cut off are finished at their own
    size. What the user has put there is used as it is.

    Raises:
      InputError: a stage is missing, and a provider is named, what is there came from one, or
        several processes train together; the message has the commands that make it.
    """
    lacking = [stage for stage in stages if not _is_there(config, stage)]
    if not lacking:
        return
    commands = [command(_needed(stage).script, config) for stage in lacking]
    if "judge" in lacking:
        judge = getattr(config, "judge", None)
        commands[lacking.index("judge")] += (f" --judge {judge}" if judge else "") + (
            " --level dialogue" if judge_level(config) == "dialogue" else ""
        )
    is_alone = getattr(config, "coordinator", None) is None
    if not config.is_simulated or not _was_simulated(config) or not is_alone:
        raise InputError(
            f"{config.run / config.domain} lacks {', '.join(lacking)}. Run first:\n  "
            + "\n  ".join(commands)
        )
    where = "the settings given"
    if settings is None:
        settings, where = (
            cli.read_settings(cli.preset_path("quickstart")),
            "configs/quickstart.yaml",
        )
    say(
        f"{config.run / config.domain} lacks {', '.join(lacking)}: made now on the simulator, at "
        f"the size of {where}."
    )
    for stage in lacking:
        needed = _needed(stage)
        is_adapter = issubclass(needed.cls, AdapterConfig)
        base = settings if student_of(config) == EMBEDDED or not is_adapter else {}
        fixed = _shared(config, stage)
        made = cli.make_config(needed.cls, stage, base, where=where, **fixed)
        if stage == "sweep" and (found := read_manifest(_stage_home(config, stage))) is not None:
            sizes = {key: found.config[key] for key in ("num_seeds", "num_scenarios")}
            made = dataclasses.replace(made, **sizes)
        needed.make(made)


def _shared(config: ExperimentConfig, stage: str) -> dict[str, Any]:
    """What `stage` has to have in common with the one that needs it."""
    shared = ("run", "domain", "seed", "provider", "base_url")
    fixed: dict[str, Any] = {name: getattr(config, name) for name in shared}
    if stage == "judge":
        fixed["level"] = judge_level(config)
        if (judge := getattr(config, "judge", None)) is not None:
            fixed["judge"] = judge
    if issubclass(_needed(stage).cls, AdapterConfig):
        fixed["model"] = student_of(config)
        if isinstance(config, MatchConfig):
            fixed["prompt_pack"] = config.prompt_pack
        elif isinstance(config, AdapterConfig):
            fixed |= {name: getattr(config, name) for name in SHARED_BY_ADAPTERS}
    return fixed


def _is_there(config: ExperimentConfig, stage: str) -> bool:
    home = _stage_home(config, stage)
    if stage == "sweep":
        files = (home / TRAJECTORIES).is_file() and (home / SCENARIOS).is_file()
        return files and _is_whole(home)
    if stage == "judge":
        if not hasattr(config, "judge") and len(list(home.glob("*.jsonl"))) > 1:
            return True  # which of them is meant is for the stage to say that learns from it
        path = judge_file(config.run, config.domain, getattr(config, "judge", None))
        if not path.is_file():
            return False
        found = read_manifest(home, judge_manifest(path, judge_level(config)))
        if found is None:  # the user's own file, unless another level of judging has made it
            return not any(home.glob(judge_manifest(path, "*")))
        dialogues = _stage_home(config, "sweep") / TRAJECTORIES
        size = dialogues.stat().st_size if dialogues.is_file() else 0
        return found.is_finished and found.config["dialogues_bytes"] == size
    found = read_manifest(home / "default")
    return found is not None and found.is_finished


def _is_whole(home: Path) -> bool:
    """Finished, or the user's own file without a manifest."""
    found = read_manifest(home)
    return found is None or found.is_finished


def _stage_home(config: ExperimentConfig, stage: str) -> Path:
    return stage_dir(config.run, config.domain, stage)


def _was_simulated(config: ExperimentConfig) -> bool:
    """Whether the sweep that is there, if any, was played on the simulator."""
    home = _stage_home(config, "sweep")
    found = read_manifest(home)
    if found is None:
        return not (home / TRAJECTORIES).is_file()
    return found.config.get("counterparty") in SIMULATED


def prepare_method(config: EvaluateConfig) -> dict[str, str]:
    """Make what the method of `config` lacks, and name the cells that it plays instead of others.

    Only what is called `default` is made; other cells are the user's own.

    Returns:
      Changes to `config`, such as `{"jpo_cell": "reference=base-1f3c"}`.

    Raises:
      InputError: as `prepare`.
    """
    from emodistill.agents import get_method

    method = get_method(config.method)
    home = dataclasses.replace(config, domain=config.trained_on or config.domain)
    if method.emotion == "iql" and config.iql_cell == "default":
        prepare(home if config.selector == "source" else config, "iql")
    if method.adapter is None or getattr(config, f"{method.adapter}_cell") != "default":
        return {}
    prepare(home, "sweep", "judge")
    adapters = [stage for stage in method.stages if stage != "iql"]
    made = chain(adapters, method.settings, functools.partial(_cell_with, home))
    return {f"{method.adapter}_cell": made[method.adapter]}


def chain(
    stages: Sequence[str],
    changes: Mapping[str, Mapping[str, Any]],
    make: Callable[[str, Mapping[str, Any]], str],
) -> dict[str, str]:
    """`{stage: cell}` of stages that are made one after the other.

    Args:
      changes: stage -> what its training changes.
      make: makes the cell of a stage with such changes; a refinement's name the SFT cell that it
        starts from, unless that is the default one.
    """
    made: dict[str, str] = {}
    for stage in stages:
        start = made.get("sft", "default")
        from_sft = {} if start == "default" else {"sft_cell": start}
        made[stage] = make(stage, {**changes.get(stage, {}), **from_sft})
    return made


def _cell_with(config: EvaluateConfig, stage: str, changes: Mapping[str, Any]) -> str:
    """The cell of a stage that differs from the default one by `changes`; made if it is missing."""
    if not changes:
        prepare(config, stage)
        return "default"
    name = cell_name(changes, {})
    directory = stage_dir(config.run, config.domain, stage, name)
    found = read_manifest(directory)
    if found is not None and found.is_finished:
        return name
    if not config.is_simulated:
        flags = " ".join(_flag(key, value) for key, value in changes.items())
        raise InputError(
            f"{directory} is missing. Run first: {command(_needed(stage).script, config)} {flags}"
        )
    is_embedded = config.student == EMBEDDED
    settings = cli.read_settings(cli.preset_path("quickstart")) if is_embedded else {}
    planned = plan_cell(config, stage, changes, settings)
    planned.prepare(settings)
    planned.train()
    return name


def _flag(key: str, value: Any) -> str:
    flag = f"--{key.replace('_', '-')}"
    return flag if value is True else f"{flag} {value}"


class Cell(NamedTuple):
    """One training of a stage."""

    stage: str
    config: Any
    base: Any
    """The settings that its name is relative to."""

    @property
    def name(self) -> str:
        """`default` where nothing differs from the base."""
        return cell(self.config, self.base)

    @property
    def directory(self) -> Path:
        return stage_dir(self.config.run, self.config.domain, self.stage, self.name)

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Make sure that the data that it learns from are there."""
        is_blind = self.stage == "iql" and self.config.signal == "outcome"
        prepare(self.config, "sweep", *([] if is_blind else ["judge"]), settings=settings)

    def train(self) -> None:
        """Train it, unless that was done.

        Raises:
          StaleInputError: the cell is there and was made otherwise, or from other data.
        """
        _needed(self.stage).make(self.config, self.base)


def plan_cell(
    config: ExperimentConfig,
    stage: str,
    changes: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    judge: str | None = None,
) -> Cell:
    """A stage with `changes` on top of its section of `settings`; nothing is made yet.

    Args:
      judge: whose scores it learns from; None leaves that to the settings.
    """
    needed = _needed(stage)
    fixed = _shared(config, stage) | ({} if judge is None else {"judge": judge})
    base: Any = cli.make_config(needed.cls, stage, settings, where=f"{stage} settings", **fixed)
    return Cell(stage, dataclasses.replace(base, **changes), base)
