"""The Parquet file holds what the JSON lines hold, whoever reads it."""

import dataclasses
import json
import sys

import pytest
from example_records import TRAJECTORY

from emodistill.errors import InputError
from emodistill.offline.parquet import write_parquet
from emodistill.records import Trajectory

parquet = pytest.importorskip("pyarrow.parquet")


def same(row):
    for side in ("focal", "counterparty"):
        row[side]["cells"] = dict(row[side]["cells"] or ())
    return Trajectory.from_json(row, where="row")


def test_every_field_comes_back(tmp_path):
    cells = dataclasses.replace(TRAJECTORY.focal, cells={"iql": "default", "jpo": "kappa=0.5-1f"})
    played = [
        TRAJECTORY,
        dataclasses.replace(TRAJECTORY, trajectory_id="b", focal=cells),
        dataclasses.replace(TRAJECTORY, trajectory_id="c", outcome="ongoing", final_value=None),
    ]
    write_parquet(played, tmp_path / "t.parquet")
    table = parquet.read_table(tmp_path / "t.parquet")
    assert [same(row) for row in table.to_pylist()] == played
    assert set(table.column_names) == set(json.loads(json.dumps(TRAJECTORY.to_json())))
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_types_do_not_depend_on_the_values(tmp_path):
    silent = tuple(dataclasses.replace(turn, offer=None, emotion=None) for turn in TRAJECTORY.turns)
    empty = dataclasses.replace(TRAJECTORY, turns=silent, outcome="ongoing", final_value=None)
    write_parquet([TRAJECTORY], tmp_path / "a.parquet")
    write_parquet([empty], tmp_path / "b.parquet")
    first, second = (parquet.read_schema(tmp_path / f"{name}.parquet") for name in "ab")
    assert first.equals(second)


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'emodistill\[data\]'"):
        write_parquet([TRAJECTORY], tmp_path / "t.parquet")
