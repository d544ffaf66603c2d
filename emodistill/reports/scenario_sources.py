"""Which scenarios the figures of a domain stand on, said from what the sweep has left."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from emodistill.domains import Split
from emodistill.offline.store import read_scenarios
from emodistill.runs import Manifest, read_manifest
from emodistill.untrusted import brief


def source_text(path: Path) -> str:
    """Where a domain's scenarios come from, how many there are, and which are held out.

    Args:
      path: the domain's `scenarios.jsonl`; the sweep's manifest lies beside it, unless a user has
        put the file there.
    """
    counts = Counter(scenario.split for scenario in read_scenarios(path))
    parts = [f"{counts[name]} {name}" for name in Split._fields if counts[name]]
    manifest = read_manifest(path.parent)
    source = f"given by the run's own {path.name}"
    if manifest is not None:
        source = _file_name(manifest.config.get("scenarios")) or "generated"
        if counts["test"] and (held_out := _held_out(manifest)):
            parts.append(held_out)
    return f"{source}, {counts.total()} ({', '.join(parts)})"


def _file_name(path: Any) -> str:
    """The name of a file as a manifest has its path, fit to be shown; empty for none."""
    return "" if path is None else brief(Path(brief(path)).name)


def _held_out(manifest: Manifest) -> str:
    """Which scenarios the test ones are; empty where an unfinished sweep doesn't say."""
    config = manifest.config
    if manifest.summary.get("is_split_given"):
        return "as the file has them"
    if ids := _file_name(config.get("test_ids")):
        return f"those of {ids}"
    if config.get("held_out") == "last":
        return "the last ones"
    return f"drawn by seed {manifest.seed}" if "is_split_given" in manifest.summary else ""
