"""Dialogues as one Parquet file, for `datasets`, pandas, DuckDB and the like.

    datasets.load_dataset("parquet", data_files="trajectories.parquet")

One row a dialogue, with the fields of its JSON line (docs/data.md); types are fixed, so that a
column without any value has the same type as one with some.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emodistill.errors import InputError
from emodistill.files import replacing
from emodistill.records import SCHEMA, Trajectory


def write_parquet(trajectories: Sequence[Trajectory], path: Path) -> None:
    """Write all dialogues, so that a reader sees the old file or the new one.

    Raises:
      InputError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise InputError(
            "Parquet needs pyarrow: pip install 'emodistill[data]', or leave --parquet out."
        ) from None
    rows = [trajectory.to_json() for trajectory in trajectories]
    for row in rows:
        row["focal"] = row["focal"] | {"cells": list(row["focal"].get("cells", {}).items())}
    table = pa.Table.from_pylist(rows, schema=_schema(pa))
    with replacing(path) as partial:
        parquet.write_table(table, partial, compression="zstd")


def _schema(pa: Any) -> Any:
    text, number, count = pa.string(), pa.float64(), pa.int64()
    side = [("method", text), ("model", text), ("temperature", number)]
    side += [("cells", pa.map_(text, text))]
    turn = [
        *(("index", count), ("speaker", text), ("emotion", text), ("text", text)),
        *(("offer", number), ("prompt_tokens", count), ("completion_tokens", count)),
        ("latency_s", number),
    ]
    usage = [(name, count) for name in ("calls", "prompt_tokens", "completion_tokens")]
    columns = [
        ("schema", count),
        *((name, text) for name in ("trajectory_id", "domain", "scenario_id")),
        *(("seed", count), ("split", text)),
        *(("focal_target", number), ("counterparty_anchor", number), ("unit", text)),
        *((name, pa.struct(side)) for name in ("focal", "counterparty")),
        *((name, text) for name in ("prompt_pack_sha256", "agreement_rule")),
        ("turns", pa.list_(pa.struct(turn))),
        *(("outcome", text), ("final_value", number)),
        ("usage", pa.struct(usage)),
        ("cost_usd", number),
    ]
    return pa.schema(columns, metadata={"emodistill schema": str(SCHEMA)})
