"""Is anything trained on that evaluation will be played on?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from emodistill.domains.scenario import Scenario
from emodistill.records import Trajectory
from emodistill.train.findings import Finding, some_of


def check_leaks(trajectories: Sequence[Trajectory], scenarios: Sequence[Scenario]) -> Finding:
    """Look for held-out scenarios among those of training dialogues, by id and by content.

    Two scenarios are one game where target and anchor are equal and facts differ at most in case
    and spaces.
    """
    trained = {t.scenario_id for t in trajectories if t.split == "train"}
    by_id = {scenario.scenario_id: scenario for scenario in scenarios}
    held_out = {s.scenario_id: s.split for s in scenarios if s.split != "train"}
    problems = [
        f"{name} is trained on, and held out for {held_out[name]}"
        for name in sorted(trained & held_out.keys())
    ]
    same_game = defaultdict(list)
    for name in held_out:
        same_game[_game(by_id[name])].append(name)
    for name in sorted(trained & by_id.keys() - held_out.keys()):
        problems += [
            f"{name} is trained on, and its facts, target and anchor are those of {other}, which is"
            f" held out for {held_out[other]}"
            for other in same_game[_game(by_id[name])]
        ]
    if problems:
        advice = "Correct `split` in sweep/scenarios.jsonl and sweep/trajectories.jsonl, or leave"
        text = f"{some_of(problems)}. {advice} these dialogues out."
        return Finding("leaks", text, is_problem=True)
    text = (
        f"{len(trained):,} training scenarios; none of the {len(held_out):,} held out is among "
        "them, by id or by content."
    )
    return Finding("leaks", text)


def _game(scenario: Scenario) -> tuple[object, ...]:
    facts = sorted(
        (name, " ".join(str(value).casefold().split())) for name, value in scenario.fields.items()
    )
    return float(scenario.focal_target), float(scenario.counterparty_anchor), *facts
