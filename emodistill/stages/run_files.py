"""Where the files of a run are, how stages read them, and what identifies them in a manifest."""

from __future__ import annotations

import dataclasses
import hashlib
from operator import attrgetter
from pathlib import Path
from typing import Any

from emodistill.configs import SIMULATED_MODELS, SweepConfig
from emodistill.errors import InputError
from emodistill.files import canonical_json
from emodistill.jsonl import read_lines
from emodistill.model import student_folder
from emodistill.model.config import Qwen2Config
from emodistill.offline.judging import Level, judge_path, scores_by_turn
from emodistill.offline.rewards import SweepData
from emodistill.offline.store import read_judgements, read_scenarios, read_trajectories
from emodistill.prompts import PromptPack
from emodistill.runs import MANIFEST, read_manifest
from emodistill.settings import Settings

TRAJECTORIES = "sweep/trajectories.jsonl"
SCENARIOS = "sweep/scenarios.jsonl"
"""The sweep's files, within the folder of a domain."""
LOG = "stage.log"
SUPPORT = "support.json"
MEBIBYTE = 1 << 20


def judge_file(directory: Path, name: str | None) -> Path:
    """The scores of a judge in `directory`: the only ones there are, unless `name` says which.

    Raises:
      InputError: there are several, and `name` is None.
    """
    if name is not None:
        return judge_path(directory, name)
    files = sorted(directory.glob("*.jsonl"))
    if len(files) > 1:
        names = ", ".join(path.stem for path in files)
        raise InputError(f"{directory} holds scores of {names}; say which with --judge.")
    return files[0] if files else judge_path(directory, SIMULATED_MODELS["judge"])


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


def read_sweep(home: Path, pack: PromptPack, scores: Path | None = None) -> SweepData:
    """The sweep of a domain's folder and a judge's scores of it; no scores if there is no file.

    Dialogues come in the order of their ids, so that nothing depends on which finished first.
    """
    trajectories = read_trajectories(home / TRAJECTORIES)
    manifest = read_manifest(home / "sweep")
    return SweepData(
        trajectories=sorted(trajectories, key=attrgetter("trajectory_id")),
        scenarios=read_scenarios(home / SCENARIOS),
        pack=pack,
        scores={} if scores is None else scores_by_turn(read_judgements(scores)),
        max_turns=int(manifest.config["max_turns"]) if manifest else SweepConfig().max_turns,
    )


def sweep_concurrency(run: Path, domain: str) -> int | None:
    """How many dialogues the sweep last played at once; None where its settings aren't there."""
    path = run / domain / "sweep" / "config.yaml"
    return Settings.read(path).values(SweepConfig).get("concurrency") if path.is_file() else None


def grown(config: Any, directory: Path, manifest_name: str = MANIFEST) -> Any:
    """`config`, asking for no fewer dialogues than a finished stage holds already."""
    existing = read_manifest(directory, manifest_name)
    if existing is None or existing.status != "finished":
        return config
    sizes = {name: existing.config[name] for name in ("num_seeds", "num_scenarios")}
    scenarios, wanted = sizes["num_scenarios"], config.num_scenarios
    has_scenarios = scenarios is None or (wanted is not None and scenarios >= wanted)
    if sizes["num_seeds"] >= config.num_seeds and has_scenarios:
        return dataclasses.replace(config, **sizes)
    return config


def model_hashes(model: str) -> dict[str, str]:
    """What identifies a student: the hashes of its files.

    Of a large shard, its size and a mebibyte in every sixteen are hashed, since no training leaves
    those alone; a small one is read whole.

    Raises:
      InputError: there is no such folder, or what is in it is no checkpoint.
    """
    folder = student_folder(model)
    if not folder.is_dir():
        raise InputError(f"student {model}: there is no such folder; name a checkpoint's folder.")
    Qwen2Config.from_pretrained(folder)
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise InputError(f"student {model}: {folder} holds no *.safetensors; nothing else is read.")
    hashes = {}
    for path in [folder / "config.json", folder / "tokenizer.json", *shards]:
        if not path.is_file():
            continue
        is_shard = path in shards
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode() if is_shard else b"")
        stride = MEBIBYTE if size <= 64 * MEBIBYTE else 16 * MEBIBYTE
        with path.open("rb") as file:
            for start in range(0, size, stride):
                file.seek(start)
                digest.update(file.read(MEBIBYTE))
        hashes[f"{model}/{path.name}"] = digest.hexdigest()
    return hashes
