"""What a stage is made from, as its manifest has it: hashes of inputs, sizes of what exists."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import msgspec

from emodistill.errors import InputError
from emodistill.model import stored_template_sha256, student_folder
from emodistill.model.config import Qwen2Config
from emodistill.offline.sweep import first_dialogues
from emodistill.runs import MANIFEST, name_in_run, read_manifest
from emodistill.untrusted import brief, setting_of

MEBIBYTE = 1 << 20


class _Swept(msgspec.Struct):
    """What the choice of dialogues to learn from is made by."""

    trajectory_id: str
    scenario_id: str
    seed: int
    split: str
    line: bytes = b""


def dialogues_hash(path: Path, num_dialogues: int, seed: int, run: Path) -> dict[str, str]:
    """What identifies the first dialogues of a sweep: the hash of their lines, which stays when the
    sweep grows.

    Raises:
      InputError: the file is missing, a line is no dialogue, or there are fewer.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; run the stage that makes it first.")
    swept = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                one = msgspec.json.decode(line, type=_Swept)
            except msgspec.DecodeError as error:
                raise InputError(
                    f"{path}, line {number}: no dialogue ({brief(error)}). Correct it, or delete "
                    "the line to have it played again."
                ) from None
            one.line = line.strip()
            if one.split == "train":
                swept.append(one)
    digest = hashlib.sha256()
    for one in first_dialogues(swept, num_dialogues, seed):
        digest.update(one.line + b"\n")
    name = f"{name_in_run(path, run)} (first {num_dialogues} dialogues)"
    return {name: digest.hexdigest()}


def grown(config: Any, directory: Path, manifest_name: str = MANIFEST) -> Any:
    """`config`, asking for no fewer dialogues than a finished stage holds already."""
    existing = read_manifest(directory, manifest_name)
    if existing is None or existing.status != "finished":
        return config
    scenarios, wanted = (
        setting_of(existing.stage, existing.config, "num_scenarios", int | None),
        config.num_scenarios,
    )
    sizes = {
        "num_seeds": setting_of(existing.stage, existing.config, "num_seeds", int),
        "num_scenarios": scenarios,
    }
    has_scenarios = scenarios is None or (wanted is not None and scenarios >= wanted)
    if sizes["num_seeds"] >= config.num_seeds and has_scenarios:
        return dataclasses.replace(config, **sizes)
    return config


def model_hashes(model: str) -> dict[str, str]:
    """What identifies a student: the hashes of its files and of its chat template.

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
    template = stored_template_sha256(folder)
    hashes = {} if template is None else {"chat template": template}
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
