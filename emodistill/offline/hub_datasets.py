"""A run's data as Hugging Face datasets, and runs from such datasets.

    OUT/README.md                               the dataset card
    OUT/data/train-00000-of-00001.parquet       `turns`: what the student learns from
    OUT/dialogues/train-00000-of-00001.parquet  and `judgements`, `scenarios`: the records of
                                                docs/data.md, a row a line

That is the hub's own layout: `datasets.load_dataset` reads the folder, and its name on the hub once
it is uploaded. `turns` is derived from the other three, from which `import_dataset` makes the files
of a run, line for line as they were.

Only Parquet and Arrow files are read: no code of a dataset is run, and nothing is unpickled. Only
the stages import this module, and only when they need it: `datasets` takes a second to load.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import types
import typing
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import numpy as np
from datasets import Dataset, DatasetInfo, Features, List, Value, disable_progress_bars
from datasets.exceptions import DatasetsError
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData, snapshot_download

from emodistill.configs import ExportConfig, ImportConfig
from emodistill.domains import DOMAINS
from emodistill.domains.scenario import Scenario, is_split_given, refuse_leaks
from emodistill.errors import InputError, refuse
from emodistill.offline.data_checks import check_dialogues, check_prompts, check_scores
from emodistill.offline.judging import judge_path, scenarios_by_dialogue, scores_by_turn
from emodistill.offline.rewards import (
    FocalTurns,
    SweepData,
    jpo_advantages,
    sft_quality,
    training_dialogues,
)
from emodistill.offline.run_files import SCENARIOS, TRAJECTORIES, judge_file, turn_limit
from emodistill.offline.store import (
    locate_scenarios,
    locate_trajectories,
    read_records,
    unique,
    write_records,
)
from emodistill.prompts import focal_messages, load_pack
from emodistill.records import Judgement, Record, Trajectory
from emodistill.untrusted import brief, parse_json

SPLIT = "train"
"""The one split of every table; which scenarios are held out is said by their own `split`."""
SHARD_BYTES = 500_000_000
"""Of a file's rows in memory, as the hub's own tools cut them."""


class ChatMessage(Record, frozen=True, kw_only=True):
    role: str
    content: str


class TrainingTurn(Record, frozen=True, kw_only=True):
    """A focal turn to learn from; what the columns mean is said in the card."""

    sample_id: str
    trajectory_id: str
    scenario_id: str
    domain: str
    turn_index: int
    prompt: tuple[ChatMessage, ...]
    completion: tuple[ChatMessage, ...]
    emotion: str | None
    offer: float | None
    score: float | None
    dialogue_score: float | None
    shaped_return: float
    advantage: float | None
    q: float | None


TABLES: Mapping[str, type[Record]] = {
    "turns": TrainingTurn,
    "dialogues": Trajectory,
    "judgements": Judgement,
    "scenarios": Scenario,
}
FOLDERS = {name: name for name in TABLES} | {"turns": "data"}
ID_FIELDS = {"dialogues": "trajectory_id", "scenarios": "scenario_id"}


def export_run(config: ExportConfig) -> Path:
    """Write a run's sweep, its scores and the turns to learn from; the dataset's folder.

    Raises:
      InputError: the run lacks its dialogues, or what it has doesn't fit together; several judges
        have scored them and none is named; or the folder exists.
    """
    disable_progress_bars()
    out = config.out or config.run / config.domain / "dataset"
    if out.exists():
        raise InputError(f"--out {out} exists; delete it, or name a folder that doesn't.")
    home = config.run / config.domain
    pack = load_pack(config.prompt_pack)
    located, scenarios = (
        locate_trajectories(home / TRAJECTORIES),
        locate_scenarios(home / SCENARIOS),
    )
    if not located:
        raise InputError(f"{home / TRAJECTORIES} holds no dialogue; sweep first.")
    check_dialogues(config.domain, located, scenarios)
    check_prompts(pack, scenarios, ("focal",))
    trajectories = [trajectory for trajectory, _ in located]
    judgements: dict[Path, list[Judgement]] = {}
    for path in sorted(home.glob("judge/*.jsonl")):
        lines = list(read_records(path, Judgement))
        check_scores(lines, trajectories, path)
        judgements[path] = [judgement for judgement, _ in lines]
    scores_path = judge_file(home / "judge", config.judge)
    if config.judge is not None and scores_path not in judgements:
        raise InputError(f"{scores_path} is missing; have --judge {config.judge} score the sweep.")
    scored = judgements.get(scores_path, [])
    sweep = SweepData(
        trajectories,
        [scenario for scenario, _ in scenarios],
        scores_by_turn(scored),
        pack,
        turn_limit(home),
    )
    tables: dict[str, Iterable[Record]] = {
        "turns": _training_turns(sweep),
        "dialogues": trajectories,
        "judgements": list(itertools.chain.from_iterable(judgements.values())),
        "scenarios": sweep.scenarios,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        partial, cache = Path(scratch) / "dataset", Path(scratch) / "cache"
        infos = {
            name: _write_table(name, records, partial / FOLDERS[name], cache)
            for name, records in tables.items()
            if records
        }
        card = _card(
            infos,
            domain=config.domain,
            max_turns=sweep.limit.horizon,
            judge=scored[0].judge if scored else None,
            pack_sha256=sweep.pack.sha256,
        )
        (partial / "README.md").write_text(card, encoding="utf-8")
        partial.rename(out)
    return out


def import_dataset(config: ImportConfig) -> list[Path]:
    """Make the files of a run out of a dataset's dialogues, judgements and scenarios.

    What a dataset lacks may be in the run already, as its dialogues where somebody adds scores.

    Raises:
      InputError: no such dataset, a table without the columns or the split that it needs, a row
        that is no record or does not fit the others or the domain, or a file that the run has
        already.
    """
    disable_progress_bars()
    home = config.run / config.domain
    pack = load_pack(config.prompt_pack)
    records: dict[str, list[tuple[Any, str]]] = {name: [] for name in TABLES}
    with tempfile.TemporaryDirectory() as scratch:
        for where, dataset in _read_tables(config.source, Path(scratch)):
            name = _table_of(dataset.column_names, where)
            if name != "turns":  # which are derived anew
                records[name] += _records(TABLES[name], dataset, where)
            if name == "scenarios" and "split" in dataset.column_names:
                splits = enumerate(dataset["split"])
                is_split_given([(x is not None, f"{where}, row {row}") for row, x in splits])
    for name, id_field in ID_FIELDS.items():
        unique(records[name], id_field)
    files = {home / SCENARIOS: records["scenarios"], home / TRAJECTORIES: records["dialogues"]}
    for judgement, where in records["judgements"]:
        path = judge_path(home / "judge", judgement.judge)
        files.setdefault(path, []).append((judgement, where))
    files = {path: lines for path, lines in files.items() if lines}
    if not files:
        raise InputError(
            f"{config.source} holds no dialogues, judgements or scenarios; turns make no run."
        )
    for path in files:
        if path.exists():
            raise InputError(f"{path} exists; import into another --run, or move it away.")
    domains = {record.domain for name in ID_FIELDS for record, _ in records[name]}
    if len(domains) == 1 and domains != {config.domain}:
        (domain,) = domains
        is_known = domain in DOMAINS
        advice = f"give --domain {domain}" if is_known else f"the domains are {', '.join(DOMAINS)}"
        raise InputError(f"{config.source} is of domain {domain!r}; {advice}.")
    dialogues, scenarios = records["dialogues"], records["scenarios"]
    if records["judgements"] or (home / TRAJECTORIES).is_file():
        dialogues = dialogues or locate_trajectories(home / TRAJECTORIES)
    if dialogues:
        scenarios = scenarios or locate_scenarios(home / SCENARIOS)
    check_dialogues(config.domain, dialogues, scenarios)
    refuse_leaks(scenarios)
    check_prompts(pack, scenarios, ("focal", "counterparty", "judge"))
    played = [trajectory for trajectory, _ in dialogues]
    for path, lines in files.items():
        if path.parent.name == "judge":
            check_scores(lines, played, path)
    for path, lines in files.items():
        write_records(path, (record for record, _ in lines))
    return list(files)


def _training_turns(sweep: SweepData) -> Iterator[TrainingTurn]:
    """The focal turns by trajectory id and turn, with their prompts and what they are worth.

    Those of training scenarios alone: whoever learns from the table must not meet the others.
    """
    trajectories = training_dialogues(sweep)
    scenario_of = scenarios_by_dialogue(trajectories, sweep.scenarios)
    played = FocalTurns.from_trajectories(trajectories, sweep.scores, max_turns=sweep.limit.horizon)
    turns = played.whole()
    columns = {
        "score": turns.scores,
        "dialogue_score": turns.dialogue_scores,
        "shaped_return": turns.returns,
        "advantage": jpo_advantages(turns),
        "q": sft_quality(turns),
    }
    for row in range(len(turns)):
        trajectory = trajectories[turns.trajectory_index[row]]
        turn = trajectory.turns[turns.turn_index[row]]
        scenario = scenario_of[trajectory.trajectory_id]
        history = trajectory.turns[: turn.index]
        prompt = focal_messages(sweep.pack, scenario, history, turn.emotion)
        values: dict[str, Any] = {
            name: None if np.isnan(column[row]) else float(column[row])
            for name, column in columns.items()
        }
        yield TrainingTurn(
            sample_id=f"{trajectory.trajectory_id}#{turn.index}",
            trajectory_id=trajectory.trajectory_id,
            scenario_id=trajectory.scenario_id,
            domain=trajectory.domain,
            turn_index=turn.index,
            prompt=tuple(ChatMessage(**message) for message in prompt),
            completion=(ChatMessage(role="assistant", content=turn.text),),
            emotion=turn.emotion,
            offer=turn.offer,
            **values,
        )


def _write_table(name: str, records: Iterable[Record], folder: Path, cache: Path) -> DatasetInfo:
    """Write the Parquet files of a table, without ever holding all of its rows."""
    dataset = Dataset.from_generator(
        lambda: map(_row, records),
        features=Features(_feature(TABLES[name])),
        cache_dir=str(cache),
        fingerprint=name,  # else all records would be hashed to find one
    )
    folder.mkdir(parents=True)
    num_shards = max(1, math.ceil(dataset.data.nbytes / SHARD_BYTES))
    for index in range(num_shards):
        shard = dataset.shard(num_shards, index, contiguous=True)
        shard.to_parquet(folder / f"{SPLIT}-{index:05}-of-{num_shards:05}.parquet")
    return dataset.info


def _card(infos: Mapping[str, DatasetInfo], **facts: Any) -> str:
    """The dataset's README.md: the header that `load_dataset` reads, and what the columns mean."""
    header = DatasetCardData(
        license="unknown",
        pretty_name=f"Emotional negotiations ({facts['domain']})",
        language=["en"],
        task_categories=["text-generation"],
        tags=["negotiation", "emotion", "offline-rl"],
        configs=[
            {
                "config_name": name,
                "data_files": [{"split": SPLIT, "path": f"{FOLDERS[name]}/{SPLIT}-*"}],
                **({"default": True} if name == "turns" else {}),
            }
            for name in infos
        ],
    )
    DatasetInfosDict(infos).to_dataset_card_data(header)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("emodistill.offline", ""),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    num_rows = {name: (info.splits or {})[SPLIT].num_examples for name, info in infos.items()}
    template = environment.get_template("dataset_card.md.j2")
    return template.render(header=header.to_yaml(), num_rows=num_rows, **facts)


def _read_tables(source: str, scratch: Path) -> Iterator[tuple[str, Dataset]]:
    """The tables of a Parquet file, of a folder or of a dataset of the hub, each with where it is.

    A table of a folder is the Parquet files beside each other, or what `save_to_disk` has written.

    Raises:
      InputError: there is none, one has no split `train`, or a file can't be read.
    """
    path = Path(source) if source and Path(source).exists() else _downloaded(source, scratch)
    tables: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    if path.is_file():
        tables[path][SPLIT] = [path]
    for file in sorted(path.rglob("*.parquet")):
        tables[file.parent][file.stem.split("-")[0]].append(file)
    for file in sorted(path.rglob("state.json")):
        is_split = (file.parents[1] / "dataset_dict.json").is_file()
        table, split = (file.parents[1], file.parent.name) if is_split else (file.parent, SPLIT)
        tables[table][split] = [file.parent]
    if not tables:
        raise InputError(
            f"{source} holds no Parquet file and nothing that `save_to_disk` has written; nothing "
            "else is read."
        )
    for table, splits in tables.items():
        if SPLIT not in splits:
            raise InputError(
                f"{table} has no split {SPLIT!r}, only {', '.join(splits)}. All rows go there; "
                "which scenarios are held out is said by their own column `split`."
            )
        files = [str(file) for file in splits[SPLIT]]
        try:
            if splits[SPLIT][0].is_dir():
                dataset = Dataset.load_from_disk(files[0])
            else:
                dataset = Dataset.from_parquet(files, cache_dir=str(scratch / "cache"))  # type: ignore[arg-type]
        except (ValueError, OSError, DatasetsError) as error:
            raise InputError(f"{files[0]} can't be read: {error}") from None
        yield str(table), dataset


def _downloaded(name: str, folder: Path) -> Path:
    """The Parquet and Arrow files of a dataset of the hub, and what describes the latter."""
    try:
        patterns = ["*.parquet", "*.arrow", "*.json"]
        snapshot_download(name, repo_type="dataset", local_dir=folder, allow_patterns=patterns)
    except (ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"--source {name}: there is no such file or folder, and the hub gives no dataset of "
            f"that name ({reason})."
        ) from None
    return folder


def _table_of(columns: Sequence[str], where: str) -> str:
    """Which table has these columns.

    Raises:
      InputError: none; the message names what the nearest one lacks or does not know.
    """
    missing = {
        name: [
            field.name
            for field in msgspec.structs.fields(kind)
            if field.required and field.name not in columns
        ]
        for name, kind in TABLES.items()
    }
    name = min(TABLES, key=lambda name: len(missing[name]))
    unknown = sorted({*columns} - {*TABLES[name].__struct_fields__})
    for problem, names in (("lacks", missing[name]), ("has the unknown", unknown)):
        if names:
            raise InputError(
                f"{where}: a table of {name} {problem} column {names[0]!r}. docs/data.md has the "
                f"columns of {', '.join(TABLES)}; rename or drop yours."
            )
    return name


def _records(kind: type[Record], dataset: Dataset, where: str) -> Iterator[tuple[Record, str]]:
    """The records of a table, each with where it is.

    Raises:
      InputError: rows that hold none; all of them, once the last has been read.
    """
    problems: list[str] = []
    for number, row in enumerate(dataset):
        where_row = f"{where}, row {number}"
        try:
            record = kind.from_json(_json(kind, row), where=where_row)
        except InputError as error:
            problems.append(str(error))
        except ValueError as error:
            problems.append(f"{where_row}: a column of JSON text holds none ({brief(error)}).")
        else:
            yield record, where_row
    refuse(problems)


def _feature(hint: Any) -> Any:
    """The type of a column, by that of the record's field; objects with free keys are JSON text."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _feature(next(arg for arg in args if arg is not type(None)))
    if origin is tuple:
        return List(_feature(args[0]))
    if isinstance(hint, type) and issubclass(hint, Record):
        return {name: _feature(inner) for name, inner in typing.get_type_hints(hint).items()}
    return Value({int: "int64", float: "float64", bool: "bool"}.get(hint, "string"))


def _row(value: Any) -> Any:
    """A record as the row of its table."""
    if isinstance(value, Record):
        return {name: _row(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple):
        return [_row(item) for item in value]
    if isinstance(value, Mapping):
        return json.dumps(dict(value), ensure_ascii=False)
    if isinstance(value, str) and not value.isascii():  # half a surrogate pair can't be written
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


def _json(hint: Any, value: Any) -> Any:
    """A row as the JSON of its record; what is null and may not be takes its default."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list):
        return [_json(args[0], item) for item in value]
    if origin is Mapping and isinstance(value, str):
        return parse_json(value)
    if isinstance(hint, type) and issubclass(hint, Record) and isinstance(value, Mapping):
        hints = typing.get_type_hints(hint)
        return {
            name: _json(hints.get(name), item)
            for name, item in value.items()
            if item is not None or type(None) in typing.get_args(hints.get(name))
        }
    return value
