"""What evaluation and tournament share: who plays, and the file and manifest of what is played."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from emodistill.configs import EvaluateConfig, MatchConfig
from emodistill.errors import InputError
from emodistill.runs import Manifest, begin_stage, input_hashes, read_manifest, stage_dir
from emodistill.stages.files import covers

if TYPE_CHECKING:
    from emodistill.domains.scenario import Scenario
    from emodistill.evaluation.players import PlayerSpec
    from emodistill.prompts import PromptPack

Config = TypeVar("Config", bound=MatchConfig)


class Entrant(NamedTuple):
    """A player and the files that it is made of."""

    player: PlayerSpec
    inputs: list[Path]


class Begun(NamedTuple, Generic[Config]):
    """Where dialogues go and how far they are; `config` asks for no fewer than are there."""

    config: Config
    manifest: Manifest
    path: Path
    manifest_name: str


def entrant(config: EvaluateConfig, language_model: str | None) -> Entrant:
    """Who plays the method of `config`; `language_model` writes where no student does."""
    from emodistill.evaluation.methods import get_method
    from emodistill.evaluation.players import PlayerSpec, writing_temperature

    method = get_method(config.method)
    cells: dict[str, str] = {}
    inputs: list[Path] = []
    selector_dir = adapter_dir = None
    source = config.trained_on or config.domain
    if method.selector == "iql":
        cells["iql"] = config.iql_cell
        home = source if config.selector == "source" else config.domain
        selector_dir = stage_dir(config.run, home, "iql", config.iql_cell)
        inputs += [selector_dir / "selector.json", selector_dir / "selector.safetensors"]
    if method.adapter is not None:
        stage = method.adapter
        cells[stage] = getattr(config, f"{stage}_cell", "default")
        adapter_dir = stage_dir(config.run, source, stage, cells[stage]) / "adapter"
        inputs += [adapter_dir / "adapter_config.json", adapter_dir / "adapter_model.safetensors"]
    player = PlayerSpec(
        method=config.method,
        emotion=config.emotion,
        language_model=None if method.writer == "student" else language_model,
        temperature=writing_temperature(config, config.method),
        cells=cells,
        selector_dir=selector_dir,
        adapter_dir=adapter_dir,
    )
    return Entrant(player, inputs)


def begin_matches(
    config: Config,
    *,
    stage: str,
    directory: Path,
    name: str,
    identity: Mapping[str, Any],
    without: Iterable[str] = (),
    inputs: Iterable[Path],
    student_hashes: Mapping[str, str],
    reader: str | None,
    pack: PromptPack,
) -> Begun[Config]:
    """Open the file of two players, or find it as it was left.

    Args:
      name: of the `.jsonl` file in `directory` and of the manifest beside it.
      student_hashes: what identifies the student, where one plays.
      identity: who plays, beside the settings of `config`; `without` leaves out some of those.

    Raises:
      StaleInputError: as `begin_stage`.
    """
    from emodistill.offline.sweep import failures_path
    from emodistill.prompts import offer_prompt_sha256

    manifest_name = f"{name}.manifest.json"
    path = directory / f"{name}.jsonl"
    found = read_manifest(directory, manifest_name)
    if found is not None and covers(found, config):
        sizes = {key: found.config[key] for key in ("num_seeds", "num_scenarios")}
        config = dataclasses.replace(config, **sizes)
    settings = {k: value for k, value in config.identity().items() if k not in set(without)}
    manifest = begin_stage(
        directory,
        stage=stage,
        config=settings | {**identity, "reader": reader},
        seed=config.seed,
        inputs=input_hashes(inputs, config.run)
        | dict(student_hashes)
        | ({} if reader is None else {"offer reader's prompt": offer_prompt_sha256()})
        | {"prompt pack": pack.sha256},
        growing=("num_seeds", "num_scenarios"),
        name=manifest_name,
        output=path,
        leftovers=[failures_path(path)],
    )
    return Begun(config, manifest, path, manifest_name)


def held_out(scenarios_file: Path, split: str) -> list[Scenario]:
    """The scenarios of a run that nothing was trained on, in order.

    Raises:
      InputError: there is none.
    """
    from emodistill.offline.store import read_scenarios

    found = [scenario for scenario in read_scenarios(scenarios_file) if scenario.split == split]
    if not found:
        flag = {"test": "--num-test 20", "validation": "--num-validation 10"}[split]
        raise InputError(
            f"{scenarios_file}: no scenario has split={split!r}; sweep with {flag} into a new "
            "--run."
        )
    return found
