"""A trained adapter as a folder for other servers, with its canaries."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from emodistill.configs import DEFAULT_CELL, EMBEDDED, ExportAdapterConfig
from emodistill.errors import InputError
from emodistill.evaluation.canaries import export_dir, write_canaries
from emodistill.evaluation.canary_making import canary_prompts, make_canaries
from emodistill.files import new_folder
from emodistill.model import Qwen2, adapted, save_adapter, student_folder
from emodistill.model.adapters import CONFIG_FILE, WEIGHTS_FILE
from emodistill.model.config import read_json_object
from emodistill.model.gguf_adapters import save_gguf_adapter
from emodistill.model.merging import save_merged
from emodistill.prompts import load_pack
from emodistill.runs import read_manifest
from emodistill.stages.runner import finished_cells
from emodistill.train.student import Student, load_student
from emodistill.untrusted import brief, setting_of

GGUF_FILE = "adapter.gguf"


class _Source(NamedTuple):
    """What is exported, and what its canaries are rendered with."""

    adapter: Path
    model: str
    name: str
    is_emotion_free: bool
    prompt_pack: Path | None


def export_adapter(config: ExportAdapterConfig) -> Path:
    """Write the adapter in the form that `config` asks for; prints what it is and how it differs.

    Returns: the folder.

    Raises:
      InputError: no such adapter, a base that is not its own, or a folder that exists.
    """
    source = _source(config)
    out = config.out or export_dir(config.run / config.domain, source.name, config.form)
    if out.exists():
        raise InputError(f"{out} exists already; name another folder with --out.")
    student = load_student(source.model)
    adapter = adapted(student.model, source.adapter)
    with new_folder(out) as folder:
        _write(config, adapter, source, folder)
        if config.num_canaries:
            _add_canaries(config, student, adapter, source, folder)
    return out


def _write(config: ExportAdapterConfig, adapter: Qwen2, source: _Source, folder: Path) -> None:
    base = student_folder(source.model)
    if config.form == "peft":
        save_adapter(adapter, folder, str(base))
    elif config.form == "gguf":
        save_gguf_adapter(adapter, folder / GGUF_FILE, source.name)
    else:
        print(f"export: {save_merged(adapter, base, folder)}.")


def _add_canaries(
    config: ExportAdapterConfig, student: Student, adapter: Qwen2, source: _Source, folder: Path
) -> None:
    pack = load_pack(config.prompt_pack or source.prompt_pack)
    weights = folder / WEIGHTS_FILE
    canaries = make_canaries(
        student.model,
        adapter,
        student.tokenizer,
        canary_prompts(config.domain, pack, is_emotion_free=source.is_emotion_free),
        num_canaries=config.num_canaries,
        weights=weights if weights.is_file() else None,
        source=source.adapter / WEIGHTS_FILE,
    )
    write_canaries(folder, canaries)
    num_differing = sum(c.adapter.text != c.base.text for c in canaries.canaries)
    print(
        f"export: {len(canaries.canaries)} canaries, of which adapter and base answer "
        f"{num_differing} differently; the adapter moves a log-prob by {canaries.effect:.3f} nats "
        "on average."
    )


def _source(config: ExportAdapterConfig) -> _Source:
    if config.adapter is not None:
        fields = read_json_object(
            config.adapter / CONFIG_FILE, "--adapter takes a folder with an adapter in PEFT layout"
        )
        model = config.model or fields.get("base_model_name_or_path")
        if not isinstance(model, str) or not (model == EMBEDDED or Path(model).is_dir()):
            raise InputError(
                f"{config.adapter} names the base model {brief(model)}, which is no folder here; "
                "name its folder with --model."
            )
        return _Source(config.adapter, model, config.adapter.resolve().name, False, None)
    stage = config.trained_by
    home = config.run / config.domain / stage
    cell = home / config.cell
    manifest = read_manifest(cell)
    if manifest is None or manifest.status != "finished" or not (cell / "adapter").is_dir():
        cells = ", ".join(finished_cells(home)) or "there is none yet"
        flag = "" if config.cell == DEFAULT_CELL else "; --cell names one"
        raise InputError(
            f"{cell} holds no finished adapter; finished cells of {stage}: {cells}{flag}. "
            f"scripts/train_{stage}.py trains one, and --adapter takes one from elsewhere."
        )
    said = manifest.stage, manifest.config
    return _Source(
        adapter=cell / "adapter",
        model=config.model or setting_of(*said, "model", str),
        name=f"{stage}-{config.cell}",
        is_emotion_free=setting_of(*said, "emotion_free", bool),
        prompt_pack=setting_of(*said, "prompt_pack", Path | None),
    )
