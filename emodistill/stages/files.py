"""Where a run's files are, how they are read, and what goes into a manifest."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from emodistill import cli
from emodistill.configs import (
    DEFAULT_RUN,
    EMBEDDED,
    AdapterConfig,
    ApiConfig,
    ExperimentConfig,
    MatchConfig,
    SweepConfig,
)
from emodistill.errors import InputError
from emodistill.jsonl import read_lines
from emodistill.offline.run_files import (
    SCENARIOS,
    TRAJECTORIES,
    by_id,
)
from emodistill.runs import (
    Manifest,
    canonical_json,
    cell_name,
    file_sha256,
    stage_dir,
)

if TYPE_CHECKING:
    from emodistill.domains.scenario import Scenario
    from emodistill.offline.judging import Level
    from emodistill.offline.rewards import Scores
    from emodistill.records import Trajectory

LOG = "stage.log"
MEBIBYTE = 1 << 20


class Made(NamedTuple):
    """What a stage leaves behind, and the command that goes on from it."""

    path: Path
    next_command: str


def say(text: str) -> None:
    """A line of result; progress goes to stderr, this to stdout."""
    print(text, flush=True)


def announce(config: ExperimentConfig, stage: str) -> None:
    """Say what answers, where that is no named provider.

    Raises:
      InputError: a recording is to answer, and there is none.
    """
    if isinstance(config, ApiConfig) and config.replay is not None:
        from emodistill.llm.cassette import CALLS

        if not (config.replay / CALLS).is_file():
            raise InputError(f"--replay {config.replay} holds no {CALLS}; --record makes one.")
        say(f"{stage}: {config.replay / CALLS} answers all calls, nothing is connected to.")
    elif config.is_simulated:
        say(f"{stage}: no --provider named, so the simulator plays all language models.")


def student_of(config: ExperimentConfig) -> str:
    """The student that a configuration names, `embedded` where it has no say."""
    if isinstance(config, MatchConfig):
        return config.student
    return config.model if isinstance(config, AdapterConfig) else EMBEDDED


def command(script: str, config: ExperimentConfig) -> str:
    """A command that goes on in the same run, with the same provider and student."""
    words = [f"python scripts/{script}.py"]
    if config.run != DEFAULT_RUN:
        words.append(f"--run {config.run}")
    if config.domain != "crad":
        words.append(f"--domain {config.domain}")
    if not config.is_simulated:
        words += [f"--provider {config.provider}"] if config.provider else []
        words += [f"--base-url {config.base_url}"] if config.base_url else []
    flag = {"train_sft": "--model", "train_jpo": "--model", "evaluate": "--student"}.get(script)
    if flag is not None and student_of(config) != EMBEDDED:
        words.append(f"{flag} {student_of(config)}")
    return " ".join(words)


def cell(
    config: ExperimentConfig, base: ExperimentConfig | None, *, without: Iterable[str] = ()
) -> str:
    """The cell's name: what the command line changed on top of its base.

    Which models take part is no cell: a run has one student, and manifests refuse another.
    """
    left_out = {"domain", "model", "student", *without}

    def named(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in left_out}

    return cell_name(named(config.identity()), named((base or config).identity()))


def data_files(run: Path, domain: str) -> list[Path]:
    home = stage_dir(run, domain, "sweep")
    return [home / TRAJECTORIES, home / SCENARIOS]


def judge_manifest(path: Path, level: str) -> str:
    """The name of the manifest beside a judge's file; each level of judging has one."""
    return f"{path.stem}.{level}.manifest.json"


def judge_level(config: ExperimentConfig) -> Level:
    """What has to be scored for a stage's signal."""
    return "dialogue" if getattr(config, "signal", None) == "episode-judge" else "turn"


def scores_hash(path: Path, level: Level, run: Path) -> dict[str, str]:
    """What identifies the scores that a stage learns from: the hash of the lines of that level.

    The judge's file holds both levels; more scores of the other one change nothing here.
    """
    digest = hashlib.sha256()
    for line, _ in read_lines(path):
        is_whole = not isinstance(line, dict) or line.get("turn_index") is None
        if is_whole == (level == "dialogue"):
            digest.update(canonical_json(line).encode() + b"\n")
    inside = path.resolve().is_relative_to(run.resolve())
    name = path.resolve().relative_to(run.resolve()) if inside else path
    return {f"{name} ({level} scores)": digest.hexdigest()}


def read_sweep(run: Path, domain: str) -> tuple[list[Trajectory], list[Scenario]]:
    """Dialogues in the order of their ids, so that nothing depends on which finished first."""
    from emodistill.offline.store import read_scenarios, read_trajectories

    trajectories, scenarios = data_files(run, domain)
    return by_id(read_trajectories(trajectories)), read_scenarios(scenarios)


def read_scores(path: Path) -> Scores:
    from emodistill.offline.judging import scores_by_turn
    from emodistill.offline.store import read_judgements

    return scores_by_turn(read_judgements(path)) if path.is_file() else {}


def covers(found: Manifest | None, config: SweepConfig | MatchConfig) -> bool:
    """Whether a finished stage holds at least the dialogues that are asked for now."""

    def at_least(have: int | None, want: int | None) -> bool:
        return have is None or (want is not None and have >= want)

    return (
        found is not None
        and found.is_finished
        and found.config["num_seeds"] >= config.num_seeds
        and at_least(found.config["num_scenarios"], config.num_scenarios)
    )


def model_hashes(model: str) -> dict[str, str]:
    """What identifies a student: the hashes of its files.

    Raises:
      InputError: there is no such folder, or what is in it is no checkpoint.
    """
    from emodistill.model import student_folder
    from emodistill.model.config import Qwen2Config

    folder = student_folder(model)
    if not folder.is_dir():
        raise InputError(f"student {model}: there is no such folder; name a checkpoint's folder.")
    Qwen2Config.from_pretrained(folder)
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise InputError(f"student {model}: {folder} holds no *.safetensors; nothing else is read.")
    small = [folder / name for name in ("config.json", "tokenizer.json")]
    hashes = {f"{model}/{path.name}": file_sha256(path) for path in small if path.is_file()}
    return hashes | {f"{model}/{path.name}": _weights_sha256(path) for path in shards}


def _weights_sha256(path: Path) -> str:
    """Of a shard: its size and a mebibyte in every sixteen, since no training leaves those alone.

    A small file is read whole.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    stride = MEBIBYTE if size <= 64 * MEBIBYTE else 16 * MEBIBYTE
    with path.open("rb") as file:
        for start in range(0, size, stride):
            file.seek(start)
            digest.update(file.read(MEBIBYTE))
    return digest.hexdigest()


def write_config(
    path: Path, stage: str, config: ExperimentConfig, base: ExperimentConfig | None = None
) -> None:
    """`config.yaml`: pass it as --config to run the same again, in a cell of the same name.

    `base` holds what the cell's name is relative to; it is the second section of the file.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    def section(config: ExperimentConfig) -> dict[str, Any]:
        return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}

    sections = {stage: section(config)}
    if base is not None and base != config:
        sections[cli.BASE] = section(base)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(sections, sort_keys=False))
