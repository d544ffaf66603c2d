"""Where the recorded data of a run are, and how they are read.

runs/<run>/<domain>/sweep/trajectories.jsonl, scenarios.jsonl, config.yaml, manifest.json
runs/<run>/<domain>/judge/<judge>.jsonl
runs/<run>/<domain>/tournament/<focal>@<counterparty>.jsonl
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import msgspec

from emodistill.configs import SIMULATED_MODELS, SweepConfig
from emodistill.errors import InputError
from emodistill.files import canonical_json
from emodistill.jsonl import read_lines
from emodistill.negotiation.episode import turn_cap
from emodistill.offline.data_checks import (
    Prompted,
    check_dialogues,
    check_prompts,
    check_scores,
)
from emodistill.offline.judging import Level, judge_path, repeated_scores, scores_by_turn
from emodistill.offline.rewards import USUAL_LIMIT, Scores, SweepData, TurnLimit
from emodistill.offline.store import (
    locate_scenarios,
    locate_trajectories,
    read_records,
    write_records,
)
from emodistill.prompts import PromptPack
from emodistill.records import Judgement, Trajectory
from emodistill.runs import read_manifest
from emodistill.settings import Settings
from emodistill.untrusted import read_typed, setting_of

TRAJECTORIES = "sweep/trajectories.jsonl"
SCENARIOS = "sweep/scenarios.jsonl"
OWN = "own"
"""Folder, within a run, of the runs whose dialogues the run's own students have played."""
PLAYED_FROM = "sweep/played_from.json"
"""Beside dialogues that were not swept: what they were made from, by name, as in manifests."""
DISAGREEMENTS = "sweep/disagreements.jsonl"
"""The sweep's files, within the folder of a domain."""
SUPPORT = "support.json"


class KnownValidity(msgspec.Struct):
    """What stages read of a judge's validity file."""

    line: str
    scores_sha256: str = ""
    """Of the scores that it was found on (`scores_sha256`)."""


def judge_file(directory: Path, name: str | None) -> Path:
    """The scores of a judge in `directory`: the only ones there are, unless `name` says which.

    Raises:
      InputError: there are several, and `name` is None.
    """
    if name is not None:
        return judge_path(directory, name.removeprefix("simulator:"))
    files = sorted(directory.glob("*.jsonl"))
    if len(files) > 1:
        names = ", ".join(path.stem for path in files)
        raise InputError(f"{directory} holds scores of {names}; say which with --judge.")
    return files[0] if files else judge_path(directory, SIMULATED_MODELS["judge"])


def validity_file(scores: Path) -> Path:
    """What `judge.py --validate` has found of a judge, beside its scores."""
    return scores.with_suffix(".validity.json")


def turn_limit(home: Path) -> TurnLimit:
    """How long the dialogues in a domain's folder could get; without a manifest, by default."""
    manifest = read_manifest(home / "sweep")
    if manifest is None:
        return USUAL_LIMIT
    horizon, counted = (
        setting_of(manifest.stage, manifest.config, name, kind)
        for name, kind in (("max_turns", int), ("count_turns", Literal["both", "focal"]))
    )
    return TurnLimit(horizon, turn_cap(horizon, counted))


def sweep_seed(home: Path) -> int:
    """The seed that the sweep in a domain's folder was played under; 0 without a manifest."""
    manifest = read_manifest(home / "sweep")
    return 0 if manifest is None else manifest.seed


def read_sweep(
    home: Path,
    pack: PromptPack,
    scores: Path | None = None,
    *,
    prompted: Collection[Prompted] = (),
) -> SweepData:
    """The sweep of a domain's folder and a judge's scores of it; no scores if there is no file.

    Dialogues come in the order of their ids, so that nothing depends on which finished first.

    Args:
      prompted: who will be prompted with the scenarios.

    Raises:
      InputError: dialogues, scenarios or scores that don't fit each other, the domain (the folder's
        name) or the pack.
    """
    located = locate_trajectories(home / TRAJECTORIES)
    scenarios = locate_scenarios(home / SCENARIOS)
    check_dialogues(home.name, located, scenarios)
    check_prompts(pack, scenarios, prompted)
    trajectories = [trajectory for trajectory, _ in located]
    judgements = [] if scores is None else list(read_records(scores, Judgement))
    check_scores(judgements, trajectories, scores)
    by_turn = scores_by_turn(judgement for judgement, _ in judgements)
    return SweepData(
        trajectories=sorted(trajectories, key=attrgetter("trajectory_id")),
        scenarios=[scenario for scenario, _ in scenarios],
        pack=pack,
        scores=by_turn,
        repeats=repeated_scores(judgement for judgement, _ in judgements),
        limit=turn_limit(home),
        validity=None if scores is None else validity_line(scores, by_turn),
    )


def recorded_run(config: Any) -> Path:
    """The run whose scenarios and recorded dialogues a stage reads."""
    return getattr(config, "data_from", None) or config.run


def data_run(config: Any) -> Path:
    """The run whose dialogues and scores a stage learns from."""
    is_own = getattr(config, "turns", "recorded") == "own"  # a setting of refinements alone
    if is_own and config.reference == "sft" and not config.emotion_free:
        return config.run / OWN / config.sft_cell
    return recorded_run(config)


def write_as_sweep(home: Path, scenarios: Path, dialogues: Sequence[Trajectory]) -> None:
    """Make dialogues that were not swept the sweep of a domain's folder.

    Every scenario's first dialogue stands before anyone's second, so that with more of each the
    file begins as before, and a judge goes on where it was.

    Args:
      scenarios: the file of the scenarios that were played.

    Raises:
      InputError: other dialogues are there, or more than these.
    """
    path = home / TRAJECTORIES
    ordered = sorted(dialogues, key=attrgetter("seed", "trajectory_id"))
    known = [one for one, _ in locate_trajectories(path)] if path.is_file() else []
    if known != ordered[: len(known)]:
        raise InputError(f"{path} holds other dialogues, or more of them; name another run.")
    (home / SCENARIOS).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(scenarios, home / SCENARIOS)
    if known != ordered:
        write_records(path, ordered)


def validity_line(path: Path, scores: Scores) -> str | None:
    """What `judge.py --validate` has said of a judge, in a line; None where nobody has asked.

    Where its scores are not those that were validated, the line says that instead.

    Args:
      path: the judge's file.
      scores: what it holds.
    """
    found = validity_file(path)
    try:
        known = read_typed(found, KnownValidity, f"Delete {found}, or run judge.py --validate.")
    except FileNotFoundError:
        return None
    if scores_sha256(scores) != known.scores_sha256:
        return f"validated on other scores than {path} has now; run judge.py --validate"
    return known.line


def level_sha256(path: Path, level: Level) -> str:
    """The hash of the lines of one level in a judge's file, which holds both: more scores of the
    other one change nothing for a stage that learns from these."""
    digest = hashlib.sha256()
    for line, _ in read_lines(path):
        is_whole = not isinstance(line, dict) or line.get("turn_index") is None
        if is_whole == (level == "dialogue"):
            digest.update(canonical_json(line).encode() + b"\n")
    return digest.hexdigest()


def scores_sha256(scores: Scores) -> str:
    """The hash of a judge's scores of turns, in whatever order its file has them."""
    of_turns = [
        [name, index, score] for (name, index), score in scores.items() if index is not None
    ]
    return hashlib.sha256(canonical_json(sorted(of_turns)).encode()).hexdigest()


def sweep_concurrency(run: Path, domain: str) -> int | None:
    """How many dialogues the sweep last played at once; None where its settings aren't there."""
    path = run / domain / "sweep" / "config.yaml"
    return Settings.read(path).config(SweepConfig).concurrency if path.is_file() else None


def played_pairs(home: Path) -> dict[tuple[str, str], Path]:
    """The finished pairs of a tournament: (focal, counterparty) -> dialogues, in order of names."""
    finished: dict[tuple[str, str], Path] = {}
    for path in sorted((home / "tournament").glob("*@*.jsonl")):
        manifest = read_manifest(path.parent, f"{path.stem}.manifest.json")
        if manifest is not None and manifest.status == "finished":
            focal, _, counterparty = path.stem.partition("@")
            finished[focal, counterparty] = path
    return finished
