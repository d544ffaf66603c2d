"""What a run holds, as the report reads it, and what stands below every table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from emodistill.configs import SweepConfig
from emodistill.domains.scenario import Scenario
from emodistill.evaluation.arms import Arm
from emodistill.evaluation.tournament import Pair
from emodistill.records import Judgement, Trajectory
from emodistill.reports.figures import Curve
from emodistill.reports.tables import (
    Difference,
    Evaluations,
    Resampling,
    Row,
    entries_of,
    method_rows,
    paired_differences,
)

Played = Mapping[str, Sequence[Trajectory]]
PAPER_DOMAIN = "crad"
"""Where the paper has run what it has run in one domain."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run holds; empty parts are left out of the report.

    What several parts of the report need is computed once.
    """

    run_dir: Path
    resampling: Resampling = Resampling()
    evaluations: Evaluations = field(default_factory=dict)
    judgements: Mapping[str, Sequence[Judgement]] = field(default_factory=dict)
    """domain -> judge calls on the sweep."""
    trajectories: Played = field(default_factory=dict)
    """domain -> dialogues of the sweep."""
    curves: Sequence[Curve] = ()
    support: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """domain -> the support map of its selector."""
    selectors: Mapping[str, Path] = field(default_factory=dict)
    """domain -> the folder of its trained selector."""
    max_turns: Mapping[str, int] = field(default_factory=dict)
    """domain -> the cap that the sweep was played under."""
    concurrency: Mapping[str, int] = field(default_factory=dict)
    """domain -> how many dialogues of the sweep were played at once."""
    scenarios: Mapping[str, Sequence[Scenario]] = field(default_factory=dict)
    arms: Mapping[str, Sequence[Arm]] = field(default_factory=dict)
    """study -> its arms."""
    arm_dialogues: Played = field(default_factory=dict)
    """path of an arm -> its dialogues."""
    arm_curves: Mapping[str, Curve] = field(default_factory=dict)
    """path of an arm -> its metrics."""
    emotions: Mapping[str, tuple[Sequence[Trajectory], Sequence[Judgement]]] = field(
        default_factory=dict
    )
    """domain -> dialogues under single emotions, and their judge calls; ids begin with the
    emotion."""
    tournament: Mapping[str, Mapping[Pair, Sequence[Trajectory]]] = field(default_factory=dict)
    """domain -> methods in the focal and the other seat -> dialogues."""
    unfinished: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(domain, method) of evaluations that were cut off -> the command that goes on."""
    num_failed: int = 0
    """Dialogues of stage 5 that never came about."""
    caveat: str = ""
    """What every table says about where its figures come from."""

    @cached_property
    def rows(self) -> list[Row]:
        """Table 1's."""
        return method_rows("table-1", entries_of(self.evaluations), self.resampling)

    @cached_property
    def differences(self) -> list[Difference]:
        return paired_differences(self.evaluations, self.resampling)

    def cap(self, domain: str) -> int:
        """The cap on turns that the sweep was played under, the paper's where nothing is known."""
        return self.max_turns.get(domain, SweepConfig().max_turns)


def notes(data: RunData, dialogues: Iterable[Trajectory], missing: Sequence[str]) -> list[str]:
    """What stands below a table: who played, what is missing, where the figures come from."""
    played = list(dialogues)
    lines = []
    if played:
        focal = ", ".join(sorted({t.focal.model for t in played}))
        other = ", ".join(sorted({t.counterparty.model for t in played}))
        lines.append(f"Focal side: {focal}. Counterparty: {other}.")
    if missing:
        lines.append(f"Missing: {'; '.join(missing)}.")
    if data.caveat:
        lines.append(f"**{data.caveat}**")
    return lines
