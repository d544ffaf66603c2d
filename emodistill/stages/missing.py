"""Making what a stage lacks: on the simulator, never where a provider is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from emodistill import cli
from emodistill.configs import (
    EMBEDDED,
    SIMULATED_MODELS,
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
from emodistill.runs import cell_name, read_manifest, stage_dir
from emodistill.stages import collect, learn
from emodistill.stages.files import (
    SCENARIOS,
    TRAJECTORIES,
    command,
    judge_file,
    judge_level,
    judge_manifest,
    say,
    student_of,
)

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
    make: Callable[[Any], object]


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


def prepare(config: ExperimentConfig, *stages: str) -> None:
    """Make sure that earlier stages are there.

    On the simulator those that are missing are made, at the size of configs/quickstart.yaml, and
    those that were cut off are finished at their own. What the user has put there is used as it
    is.

    Raises:
      InputError: a stage is missing, and a provider is named, what is there came from one, or
        several processes train together; the message has the commands that make it.
    """
    lacking = [stage for stage in stages if not _is_there(config, stage)]
    if not lacking:
        return
    commands = [command(_needed(stage).script, config) for stage in lacking]
    if "judge" in lacking and judge_level(config) == "dialogue":
        commands[lacking.index("judge")] += " --level dialogue"
    is_alone = getattr(config, "coordinator", None) is None
    if not config.is_simulated or not _was_simulated(config) or not is_alone:
        raise InputError(
            f"{config.run / config.domain} lacks {', '.join(lacking)}. Run first:\n  "
            + "\n  ".join(commands)
        )
    settings = cli.read_settings(cli.preset_path("quickstart"))
    say(
        f"{config.run / config.domain} lacks {', '.join(lacking)}: made now on the simulator, at "
        "the size of configs/quickstart.yaml."
    )
    for stage in lacking:
        needed = _needed(stage)
        is_adapter = issubclass(needed.cls, AdapterConfig)
        base = settings if student_of(config) == EMBEDDED or not is_adapter else {}
        fixed = _shared(config, stage)
        made = cli.make_config(needed.cls, stage, base, where="quickstart.yaml", **fixed)
        if stage == "sweep" and (found := read_manifest(_stage_home(config, stage))) is not None:
            sizes = {key: found.config[key] for key in ("num_seeds", "num_scenarios")}
            made = dataclasses.replace(made, **sizes)
        needed.make(made)


def _shared(config: ExperimentConfig, stage: str) -> dict[str, Any]:
    """What `stage` has to have in common with the one that needs it."""
    fixed: dict[str, Any] = {"run": config.run, "domain": config.domain, "seed": config.seed}
    if stage == "judge":
        fixed["level"] = judge_level(config)
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
    return found.config.get("counterparty") in SIMULATED_MODELS.values()


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
    if method.emotion == "iql" and config.iql_cell == "default":
        prepare(config, "iql")
    if method.adapter == "sft" and config.sft_cell == "default":
        prepare(config, "judge", "sft")
    refined = method.adapter
    if refined in ("jpo", "alol", "dpo") and getattr(config, f"{refined}_cell") == "default":
        prepare(config, "judge", "sft", refined)
    if method.adapter == "jpo-base" and config.jpo_cell == "default":
        prepare(config, "judge")
        return {"jpo_cell": base_jpo_cell(config)}
    return {}


def base_jpo_cell(config: EvaluateConfig) -> str:
    """The cell of a JPO that differs from its base in `--reference base` alone."""
    name = cell_name({"reference": "base"}, {})
    directory = stage_dir(config.run, config.domain, "jpo", name)
    found = read_manifest(directory)
    if found is not None and found.is_finished:
        return name
    if not config.is_simulated:
        raise InputError(
            f"{directory} is missing. Run first: {command('train_jpo', config)} --reference base"
        )
    settings = cli.read_settings(cli.preset_path("quickstart"))
    base = settings if config.student == EMBEDDED else {}
    fixed = _shared(config, "jpo")
    start = cli.make_config(JPOConfig, "jpo", base, where="quickstart.yaml", **fixed)
    learn.refine(dataclasses.replace(start, reference="base"), start)
    return name
