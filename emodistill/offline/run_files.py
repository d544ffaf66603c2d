"""Where the recorded data of a run lie: the sweep, its scores, and what is told about both.

runs/<run>/<domain>/sweep/trajectories.jsonl, scenarios.jsonl, config.yaml, manifest.json
runs/<run>/<domain>/judge/<judge>.jsonl
runs/<run>/<domain>/tournament/<focal>@<counterparty>.jsonl
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from emodistill import cli
from emodistill.configs import SIMULATED_MODELS, SweepConfig
from emodistill.errors import InputError
from emodistill.runs import read_manifest, stage_dir

if TYPE_CHECKING:
    from emodistill.records import Trajectory

TRAJECTORIES = "trajectories.jsonl"
SCENARIOS = "scenarios.jsonl"
CONFIG = "config.yaml"
SUPPORT = "support.json"


def judge_file(run: Path, domain: str, name: str | None) -> Path:
    """The judge's file of a sweep; the only one there is unless `name` says which."""
    return judge_file_in(stage_dir(run, domain, "judge"), name)


def judge_file_in(directory: Path, name: str | None) -> Path:
    """The only file of scores in `directory`, or the one of the judge called `name`.

    Raises:
      InputError: several judges have scored, and none is named.
    """
    from emodistill.offline.judging import judge_path  # brings numpy and the client, not for --help

    if name is not None:
        return judge_path(directory, name)
    files = sorted(directory.glob("*.jsonl"))
    if len(files) > 1:
        names = ", ".join(path.stem for path in files)
        raise InputError(f"{directory} holds scores of {names}; say which with --judge.")
    return files[0] if files else judge_path(directory, SIMULATED_MODELS["judge"])


def by_id(trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    """Dialogues in the order of their ids, so that nothing depends on which finished first."""
    return sorted(trajectories, key=lambda trajectory: trajectory.trajectory_id)


def max_turns(run: Path, domain: str) -> int:
    """The cap that the sweep was played under."""
    manifest = read_manifest(stage_dir(run, domain, "sweep"))
    return int(manifest.config["max_turns"]) if manifest is not None else SweepConfig().max_turns


def sweep_concurrency(run: Path, domain: str) -> int | None:
    """How many dialogues the sweep last played at once; None where its settings aren't kept."""
    path = stage_dir(run, domain, "sweep") / CONFIG
    settings = cli.read_settings(path).get("sweep", {}) if path.is_file() else {}
    return settings.get("concurrency")


def played_pairs(run: Path, domain: str) -> dict[tuple[str, str], Path]:
    """The finished pairs of a tournament: (focal, counterparty) -> dialogues, in order of names."""
    directory = stage_dir(run, domain, "tournament")
    pairs: dict[tuple[str, str], Path] = {}
    for path in sorted(directory.glob("*@*.jsonl")):
        manifest = read_manifest(directory, f"{path.stem}.manifest.json")
        if manifest is not None and manifest.is_finished:
            focal, _, counterparty = path.stem.partition("@")
            pairs[focal, counterparty] = path
    return pairs
