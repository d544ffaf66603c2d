"""The end of the page: what the figures rest on, counted from the records and the manifests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

import pandas as pd

from emodistill.evaluation.metrics import num_otherwise_under, num_unread_offers
from emodistill.offline.readability import offer_shares
from emodistill.records import Judgement
from emodistill.reports.results import models
from emodistill.reports.run_data import RunData
from emodistill.runs import MANIFEST, Manifest, read_manifest


def stage_manifests(run_dir: Path) -> Iterator[tuple[str, Manifest]]:
    """The manifests of a run with their paths in it, by folder."""
    for path in sorted(run_dir.rglob(f"*{MANIFEST}")):
        manifest = read_manifest(path.parent, path.name)
        if manifest is not None:
            part = path.name.removesuffix(MANIFEST).strip(".")
            yield (path.parent.relative_to(run_dir) / part).as_posix(), manifest


def run_facts(data: RunData) -> Iterator[tuple[str, str]]:
    """Name and text of each fact: counts, unread offers, failures, cost, the bootstrap."""
    swept, played = data.played_in("sweep"), data.played_in("evaluation")
    judged = [judgement for of_domain in data.judgements.values() for judgement in of_domain]
    if len(swept):
        yield "Sweep", _dialogues(swept)
        yield "Offers read in the sweep", _unread(swept)
    if judged:
        yield "Judge", _judging(judged)
    if len(played):
        yield "Evaluation", _dialogues(played)
        yield "Offers read in the evaluation", _unread(played)
        other = "upstream" if _values(played, "agreement_rule") == ["stand"] else "stand"
        num_other = num_otherwise_under(list(played.dialogue), other)
        text = f"{num_other:,} of {len(played):,} dialogues"
        yield f"Ended otherwise under --agreement {other}", text
        if data.num_failed:
            text = (
                f"{data.num_failed:,}, refused by a server or never answered; in none of the tables"
            )
            yield "Dialogues of the evaluation that failed", text
        yield "Evaluation seeds", _ranges(sorted(played.seed.unique()))
    both = pd.concat([swept, played])
    if len(both):
        packs = {pack[:12] for pack in _values(both, "prompt_pack_sha256")}
        yield "Prompt pack", ", ".join(sorted(packs))
        yield "Agreement rule", ", ".join(_values(both, "agreement_rule"))
    cost_usd = sum(item.cost_usd for item in (*both.dialogue, *judged))
    yield "Cost of these dialogues and scores", f"{cost_usd:.2f} USD"
    num_resamples, seed = data.resampling
    yield "Bootstrap", f"{num_resamples:,} resamples, seed {seed}"


def _values(frame: pd.DataFrame, name: str) -> list[str]:
    """What the records hold under a name, sorted."""
    return sorted({getattr(dialogue, name) for dialogue in frame.dialogue})


def _dialogues(frame: pd.DataFrame) -> str:
    """How many dialogues on how many scenarios, and who played them."""
    num_scenarios = len(frame[["domain", "scenario_id"]].drop_duplicates())
    focal, counterparty = models(frame)
    return (
        f"{len(frame):,} dialogues on {num_scenarios:,} scenarios; {focal} against {counterparty}"
    )


def _unread(frame: pd.DataFrame) -> str:
    num_unread, num_turns = sum(map(num_unread_offers, frame.dialogue)), frame.rounds.sum()
    return (
        f"{offer_shares(frame.dialogue).text}. At most {num_unread:,} of {num_turns:,} turns "
        f"({100 * num_unread / num_turns:.1f} %) were missed: they name a "
        "figure and yield no offer"
    )


def _judging(judgements: Sequence[Judgement]) -> str:
    item = attrgetter("trajectory_id", "turn_index", "judge", "repeat")
    num_items = len({*map(item, judgements)})
    num_failed = num_items - len({item(j) for j in judgements if j.status == "scored"})
    judges = ", ".join(sorted({j.judge for j in judgements}))
    return (
        f"{judges}: {num_items:,} items, {num_failed:,} without a readable score "
        f"({100 * num_failed / num_items:.1f} %)"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """`0–4, 7` for 0, 1, 2, 3, 4, 7."""
    ends = [i for i, (a, b) in enumerate(pairwise(numbers), start=1) if b != a + 1]
    runs = [numbers[a:b] for a, b in pairwise([0, *ends, len(numbers)])]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
