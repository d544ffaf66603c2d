"""The end of the page: what the figures rest on, counted from the records and the manifests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from emodistill.evaluation.metrics import num_otherwise_under, num_unread_offers
from emodistill.records import Judgement, Trajectory
from emodistill.reports.tables import Evaluations
from emodistill.runs import MANIFEST, Manifest, read_manifest


class Stage(NamedTuple):
    """A stage's manifest and its place within the run."""

    path: str
    manifest: Manifest


def stages(run_dir: Path) -> list[Stage]:
    """The manifests of a run, by folder."""
    found = []
    for path in sorted(run_dir.rglob(f"*{MANIFEST}")):
        manifest = read_manifest(path.parent, path.name)
        if manifest is not None:
            folder = path.parent.relative_to(run_dir).as_posix()
            part = path.name.removesuffix(MANIFEST).strip(".")
            found.append(Stage(f"{folder}/{part}" if part else folder, manifest))
    return found


def is_simulated(dialogues: Iterable[Trajectory]) -> bool:
    """Whether any side of any dialogue was the simulator's."""
    return any(
        model.startswith("sim-")
        for t in dialogues
        for model in (t.focal.model, t.counterparty.model)
    )


def counted(
    evaluations: Evaluations,
    sweep: Mapping[str, Sequence[Trajectory]],
    judgements: Mapping[str, Sequence[Judgement]],
    num_failed: int = 0,
) -> list[tuple[str, str]]:
    """Name and text of each fact: counts, unread offers, failures, cost.

    Args:
      num_failed: dialogues of the evaluation that never came about.
    """
    played = [t for by_method in evaluations.values() for ts in by_method.values() for t in ts]
    swept = [t for ts in sweep.values() for t in ts]
    judged = [j for js in judgements.values() for j in js]
    facts = []
    if swept:
        facts.append(("Sweep", f"{_dialogues(swept)}; {_models(swept)}"))
        facts.append(("Offers unread in the sweep", _unread(swept)))
    if judged:
        facts.append(("Judge", _judging(judged)))
    if played:
        facts.append(("Evaluation", f"{_dialogues(played)}; {_models(played)}"))
        facts.append(("Offers unread in the evaluation", _unread(played)))
        other = "upstream" if {t.agreement_rule for t in played} == {"stand"} else "stand"
        text = f"{num_otherwise_under(played, other):,} of {len(played):,} dialogues"
        facts.append((f"Ended otherwise under --agreement {other}", text))
        if num_failed:
            text = f"{num_failed:,}, refused by a server or never answered; in none of the tables"
            facts.append(("Dialogues of the evaluation that failed", text))
        seeds = sorted({t.seed for t in played})
        facts.append(("Evaluation seeds", _ranges(seeds)))
    both = [*swept, *played]
    if both:
        packs = sorted({t.prompt_pack_sha256[:12] for t in both})
        facts.append(("Prompt pack", ", ".join(packs)))
        rules = sorted({t.agreement_rule for t in both})
        facts.append(("Agreement rule", ", ".join(rules)))
    cost = sum(t.cost_usd for t in both) + sum(j.cost_usd for j in judged)
    facts.append(("Cost of these dialogues and scores", f"{cost:.2f} USD"))
    return facts


def _dialogues(dialogues: Sequence[Trajectory]) -> str:
    scenarios = {(t.domain, t.scenario_id) for t in dialogues}
    return f"{len(dialogues):,} dialogues on {len(scenarios):,} scenarios"


def _models(dialogues: Sequence[Trajectory]) -> str:
    focal = ", ".join(sorted({t.focal.model for t in dialogues}))
    other = ", ".join(sorted({t.counterparty.model for t in dialogues}))
    return f"{focal} against {other}"


def _unread(dialogues: Sequence[Trajectory]) -> str:
    num_unread = sum(map(num_unread_offers, dialogues))
    num_turns = sum(len(dialogue.turns) for dialogue in dialogues)
    share = num_unread / num_turns if num_turns else math.nan
    return (
        f"at most {num_unread:,} of {num_turns:,} turns ({100 * share:.1f} %): they name a figure "
        "and yield no offer"
    )


def _judging(judgements: Sequence[Judgement]) -> str:
    items: dict[tuple[str, int | None, str, int], bool] = {}
    for j in judgements:
        key = (j.trajectory_id, j.turn_index, j.judge, j.repeat)
        items[key] = items.get(key, False) or j.status == "scored"
    failed = sum(not is_scored for is_scored in items.values())
    judges = ", ".join(sorted({j.judge for j in judgements}))
    return (
        f"{judges}: {len(items):,} items, {failed:,} without a readable score "
        f"({100 * failed / len(items):.1f} %)"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """`0–4, 7` for 0, 1, 2, 3, 4, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
