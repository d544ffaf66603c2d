"""Checks of recorded data that somebody else may have made: does it say what training will assume?

`records` checks each line for itself. Here dialogues meet their scenarios and their domain, and
scores their dialogues. Everything that is wrong is told at once, by line and field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from emodistill.domains import Scenario, get_domain
from emodistill.domains.registry import DOMAINS
from emodistill.domains.scenario import scenario_problems
from emodistill.emotions import NEUTRAL
from emodistill.errors import InputError, refuse
from emodistill.negotiation.mediator import RULES
from emodistill.offline.judging import judge_path
from emodistill.prompts import (
    PromptPack,
    counterparty_messages,
    dialogue_judge_messages,
    focal_messages,
    turn_judge_messages,
)
from emodistill.records import Judgement, Record, Trajectory, Turn

T = TypeVar("T", bound=Record)
Located = Sequence[tuple[T, str]]
"""Records, each with where it is (`trajectories.jsonl:12`)."""

Prompted = Literal[
    "focal", "counterparty", "judge", "emotion-free focal", "emotion-free counterparty"
]
_OPENING = Turn(index=0, speaker="focal", emotion=NEUTRAL, text="", offer=None)
_PROMPTS: Mapping[Prompted, Sequence[Callable[[PromptPack, Scenario], object]]] = {
    "focal": [lambda pack, scenario: focal_messages(pack, scenario, (), NEUTRAL)],
    "counterparty": [lambda pack, scenario: counterparty_messages(pack, scenario, ())],
    "judge": [
        lambda pack, scenario: turn_judge_messages(pack, scenario, (_OPENING,), 0),
        lambda pack, scenario: dialogue_judge_messages(pack, scenario, (), "breakdown", None),
    ],
    "emotion-free focal": [lambda pack, scenario: focal_messages(pack, scenario, (), None)],
    "emotion-free counterparty": [
        lambda pack, scenario: counterparty_messages(pack, scenario, (), None)
    ],
}

FIELDS = "docs/data.md says what each field holds."
_OF_SCENARIO = ("domain", "split", "focal_target", "counterparty_anchor", "unit")
_COUNTS = ("prompt_tokens", "completion_tokens")


def check_dialogues(
    domain: str, trajectories: Located[Trajectory], scenarios: Located[Scenario]
) -> None:
    """Refuse dialogues and scenarios that do not fit the domain or each other.

    Raises:
      InputError: with all lines that do not.
    """
    spec = get_domain(domain)
    by_id = {scenario.scenario_id: scenario for scenario, _ in scenarios}
    problems = [
        f"{where}: {problem}"
        for scenario, where in scenarios
        for problem in scenario_problems(scenario, spec)
    ]
    for trajectory, where in trajectories:
        scenario = by_id.get(trajectory.scenario_id)
        if scenario is None:
            problems.append(
                f"{where}: scenario {trajectory.scenario_id!r} is not among the {len(by_id):,} of "
                "scenarios.jsonl."
            )
        found = trajectory_problems(trajectory, scenario)
        problems += [f"{where}: {problem}" for problem in found]
    refuse(problems, FIELDS)


def trajectory_problems(trajectory: Trajectory, scenario: Scenario | None) -> Iterator[str]:
    """What a dialogue says that can't be, or that its scenario says otherwise, by field."""
    if scenario is not None:
        for name in _OF_SCENARIO:
            ours, theirs = getattr(trajectory, name), getattr(scenario, name)
            if ours != theirs:
                yield f"{name}={ours!r}, but the scenario {scenario.scenario_id!r} has {theirs!r}."
    if trajectory.agreement_rule not in RULES:
        yield f"agreement_rule={trajectory.agreement_rule!r} is none of {', '.join(RULES)}."
    measured = {
        "cost_usd": trajectory.cost_usd,
        "focal.temperature": trajectory.focal.temperature,
        "counterparty.temperature": trajectory.counterparty.temperature,
        **{f"usage.{name}": value for name, value in trajectory.usage.to_json().items()},
    }
    for turn in trajectory.turns:
        where = f"turns[{turn.index}]"
        measured |= {f"{where}.{name}": getattr(turn, name) for name in (*_COUNTS, "latency_s")}
        if turn.offer is not None and not math.isfinite(turn.offer):
            yield f"{where}.offer={turn.offer} is no finite number; null says that there is none."
    yield from _not_measured(measured)
    roles = ("focal", "counterparty")
    if wrong := [turn for turn in trajectory.turns if turn.speaker != roles[turn.index % 2]]:
        yield (
            f"turns[{wrong[0].index}].speaker={wrong[0].speaker!r}: the focal agent opens, and the "
            "two take turns. Join what one says twice running; leave out what precedes its opening."
        )
    elif trajectory.final_value is not None:
        yield from _wrong_end(trajectory, trajectory.final_value)


def _wrong_end(trajectory: Trajectory, final_value: float) -> Iterator[str]:
    """A value that neither side has offered last; under `upstream`, their rounded mean is one."""
    if trajectory.domain not in DOMAINS:
        return
    spec = get_domain(trajectory.domain)
    offers = {turn.speaker: turn.offer for turn in trajectory.turns if turn.offer is not None}
    ends = [*offers.values()]
    if trajectory.agreement_rule == "upstream" and len(ends) == 2:
        ends.append(float(round(sum(ends) / 2)))
    low, high = spec.range
    if not ends and not low <= final_value <= high:
        yield f"final_value={final_value:g} must lie between {low:g} and {high:g} {spec.unit}."
    elif ends and not any(abs(final_value - end) <= spec.tolerance + 1e-6 for end in ends):
        shown = " or ".join(dict.fromkeys(f"{end:g}" for end in ends))
        yield (
            f"final_value={final_value:g} is not what was offered last ({shown}). Give the turn "
            "that names the agreed figure that `offer`."
        )


def check_scores(
    judgements: Located[Judgement], trajectories: Sequence[Trajectory], path: Path | None = None
) -> None:
    """Refuse scores that are not of these dialogues' focal turns, or not of one judge.

    Args:
      path: the judge's file, which is named after it; None for scores that have none yet.

    Raises:
      InputError: with all lines that are not.
    """
    by_id = {trajectory.trajectory_id: trajectory for trajectory in trajectories}
    problems: list[str] = []
    first: Judgement | None = judgements[0][0] if judgements else None
    for judgement, where in judgements:
        problems += [f"{where}: {problem}" for problem in _score_problems(judgement, by_id)]
        if path is None or first is None:
            continue
        own_path = judge_path(path.parent, judgement.judge)
        if own_path != path:
            problems.append(
                f"{where}: judge={judgement.judge!r} in {path.name}; each judge has a file of its "
                f"own, here {own_path.name}."
            )
        elif judgement.judge != first.judge:
            problems.append(f"{where}: judge={judgement.judge!r}, and {first.judge!r} before it.")
        elif judgement.rubric_sha256 != first.rubric_sha256:
            problems.append(
                f"{where}: rubric_sha256={judgement.rubric_sha256[:12]!r}, and "
                f"{first.rubric_sha256[:12]!r} before it; scores under two rubrics don't compare."
            )
    refuse(problems, FIELDS)


def _score_problems(judgement: Judgement, by_id: Mapping[str, Trajectory]) -> Iterator[str]:
    name, index = judgement.trajectory_id, judgement.turn_index
    trajectory = by_id.get(name)
    if trajectory is None:
        yield f"trajectory_id={name!r} is none of the {len(by_id):,} dialogues of this run's sweep."
    elif index is not None:
        speakers = [turn.speaker for turn in trajectory.turns]
        if not 0 <= index < len(speakers):
            yield f"turn_index={index}, and {name!r} has turns 0 to {len(speakers) - 1}."
        elif speakers[index] != "focal":
            yield f"turn_index={index} is the counterparty's in {name!r}; focal turns are scored."
    yield from _not_measured(
        {field: getattr(judgement, field) for field in ("repeat", "attempt", "cost_usd", *_COUNTS)}
    )


def _not_measured(values: Mapping[str, float]) -> Iterator[str]:
    """Counts, seconds, temperatures and money that are negative or not finite."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            yield f"{name}={value} must be a finite number, 0 or more."


def check_prompts(
    pack: PromptPack, scenarios: Located[Scenario], prompted: Collection[Prompted]
) -> None:
    """Refuse scenarios whose `fields` lack what the pack's prompts are filled with.

    Args:
      prompted: who will be prompted with them, and whether without an emotion.

    Raises:
      InputError: with all lines of such scenarios and all names that they lack, a pack without the
        domain, or one whose emotion block can't be left out.
    """
    problems: dict[str, str] = {}
    for scenario, where in scenarios:
        found = []
        for render in (render for who in _PROMPTS if who in prompted for render in _PROMPTS[who]):
            try:
                render(pack, scenario)
            except InputError as error:
                found.append(str(error))
        if found:
            problems[where] = " ".join(dict.fromkeys(found))
    if 1 < len(problems) == len(scenarios) and len(set(problems.values())) == 1:
        # It is the pack, or a field that the whole file lacks.
        problems = {f"all {len(scenarios):,} scenarios": problems.popitem()[1]}
    lines = [f"{where}: `fields`: {problem}" for where, problem in problems.items()]
    refuse(lines, "Give `fields` what the prompts name, or use a --prompt-pack that fits.")
