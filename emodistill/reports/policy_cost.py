"""A step of JPO beside one that would negotiate and judge anew (paper, Appendix G).

T_onpol = b (negotiation + turns × judging) / c   (Eq. 33)

with b samples a step and c negotiations at once. The turns are those that are judged: the focal
side's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emodistill.domains import DOMAINS
from emodistill.llm.client import Usage
from emodistill.offline.budget import read_usage
from emodistill.offline.judging import judge_path
from emodistill.records import Trajectory
from emodistill.reports import paper
from emodistill.reports.run_data import RunData, notes
from emodistill.reports.table import Block, Column, Table
from emodistill.reports.tables import TITLES, order_of
from emodistill.runs import read_manifest

STEP_S = "time/step_s"

NOTE = (
    "Offline step: median over the steps of JPO's default cell, so that compilation plays no part. "
    "Negotiation and judging: what the sweep's turns and the judge's answers took to come, at as "
    "many calls at once as there were and without pauses for retries or rate limits; means over "
    "dialogues and over answers (on turns, and on whole dialogues where they were judged). "
    "On-policy step: samples × (negotiation + judged turns × judging) / dialogues at once "
    "(Eq. 33), the sweep's dialogues standing for those of the policy; ratio: on-policy over "
    "offline. N/A: the files do not tell."
)
NOTE_PAPER = (
    "Columns of the *paper*: EmoDistill, arXiv:2605.26785, its estimate for Qwen2.5-7B on one A100 "
    "and Qwen3.5-Plus, all domains alike."
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicyCost:
    """What Eq. 33 is made from, NaN where it is not known; seconds are means but for the step's."""

    offline_step_s: float
    negotiation_s: float
    judging_s: float
    num_turns: float
    """Of both sides, a dialogue."""
    num_judged_turns: float
    batch_size: float
    concurrency: float

    @property
    def on_policy_step_s(self) -> float:
        """Of negotiating and judging what one step learns from (Eq. 33)."""
        sample_s = self.negotiation_s + self.num_judged_turns * self.judging_s
        return self.batch_size * sample_s / self.concurrency

    @property
    def ratio(self) -> float:
        return self.on_policy_step_s / self.offline_step_s


def policy_cost(
    step_s: np.ndarray,
    dialogues: Sequence[Trajectory],
    judging: Usage,
    *,
    batch_size: float,
    concurrency: float,
) -> PolicyCost:
    """What a run has measured.

    Args:
      step_s: seconds of each step of JPO.
      dialogues: of the sweep, at least one.
      judging: what the judge's calls used.
    """
    num_answers = judging.num_calls - judging.num_retries
    talk_s = sum(turn.latency_s for t in dialogues for turn in t.turns)
    return PolicyCost(
        offline_step_s=float(np.median(step_s)),
        negotiation_s=talk_s / len(dialogues) if talk_s else math.nan,
        judging_s=judging.latency_s / num_answers if judging.latency_s else math.nan,
        num_turns=float(np.mean([len(t.turns) for t in dialogues])),
        num_judged_turns=float(np.mean([len(t.focal_turns) for t in dialogues])),
        batch_size=batch_size,
        concurrency=concurrency,
    )


def policy_cost_table(data: RunData) -> Table | None:
    """Offline and on-policy steps, a row a domain whose sweep JPO has learned from."""
    step_s = {
        curve.domain: curve.metrics[STEP_S][1]
        for curve in data.curves
        if curve.stage == "jpo" and curve.cell == "default" and STEP_S in curve.metrics
    }
    swept = sorted((d for d, found in data.trajectories.items() if found), key=order_of(DOMAINS))
    domains = [domain for domain in swept if domain in step_s]
    if not domains:
        return None
    settings = {domain: _settings(data, domain) for domain in domains}
    rows = []
    for domain in domains:
        found = policy_cost(
            step_s[domain],
            data.trajectories[domain],
            _judging(data, domain),
            batch_size=settings[domain].get("batch_size", math.nan),
            concurrency=data.concurrency.get(domain, math.nan),
        )
        cells = (
            TITLES[domain],
            found.offline_step_s,
            found.negotiation_s,
            found.judging_s,
            found.num_turns,
            found.num_judged_turns,
            found.batch_size,
            found.concurrency,
            found.on_policy_step_s,
            found.ratio,
        )
        rows.append((*cells, *paper.tables()["policy-cost"]["all"]["jpo"]))
    judges = {j.judge for domain in domains for j in data.judgements.get(domain, ())}
    students = {str(found["model"]) for found in settings.values() if "model" in found}
    sides = (("Judge", judges), ("Student", students))
    named = " ".join(f"{side}: {', '.join(sorted(found))}." for side, found in sides if found)
    played = (t for domain in domains for t in data.trajectories[domain])
    missing = [f"JPO of {TITLES[domain]}" for domain in swept if domain not in step_s]
    return Table(
        name="policy-cost",
        title="Offline and on-policy steps",
        columns=POLICY_COST_COLUMNS,
        blocks=(Block(title="", rows=tuple(rows)),),
        notes=(NOTE, *([named] if named else ()), *notes(data, played, missing), NOTE_PAPER),
    )


def _settings(data: RunData, domain: str) -> Mapping[str, Any]:
    """What JPO was trained with; nothing where no manifest tells."""
    manifest = read_manifest(data.run_dir / domain / "jpo" / "default")
    return {} if manifest is None else manifest.config


def _judging(data: RunData, domain: str) -> Usage:
    judgements = data.judgements.get(domain, ())
    if not judgements:
        return Usage()
    directory = data.run_dir / domain / "judge"
    return read_usage(judge_path(directory, judgements[0].judge))


_MEASURED = (
    Column(key="offline_step_s", title="offline step s", digits=2),
    Column(key="negotiation_s", title="negotiation s", digits=2),
    Column(key="judging_s", title="judging a turn s", digits=3),
)
_DERIVED = (
    Column(key="num_judged_turns", title="judged turns"),
    Column(key="batch_size", title="samples"),
    Column(key="concurrency", title="at once"),
    Column(key="on_policy_step_s", title="on-policy step s", digits=2),
    Column(key="ratio", title="ratio"),
)
POLICY_COST_COLUMNS = (
    Column(key="domain", title="domain"),
    *_MEASURED,
    Column(key="num_turns", title="turns"),
    *_DERIVED,
    *(
        dataclasses.replace(column, key=f"paper_{column.key}", group="paper")
        for column in (*_MEASURED, *_DERIVED)
    ),
)
