"""What a turn, or an emotion at that turn, is worth: differences between forks of one turn.

    worth(u) = Q(s, u) − V(s)

Q is the mean utility (or success) of the dialogues that go on after the utterance u, V that of the
dialogues in which the same player says something else instead. Forks of one number share their
luck, so that means are over paired differences.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from emodistill.emotions import EMOTIONS, NEUTRAL
from emodistill.evaluation.bootstrap import CONFIDENCE, Interval, clustered_ci
from emodistill.negotiation.states import DialogueState
from emodistill.offline.forks import ANEW, SAID, Fork, TurnKey
from emodistill.offline.rewards import dialogue_utility
from emodistill.records import Judgement, Trajectory, TurnWorth
from emodistill.simulator.response_model import Phase, emotional_effect, phase_of

SCORE_STEP = 0.05
"""Utility that makes a point of difference where worths are written as scores: a turn's worth
varies by 0.12 to 0.17, so that most of them keep within 1 and 10."""

MIN_RANKED = 5
"""Emotions below which their rank correlation with the planted effects is mostly chance."""


class ForkOutcome(NamedTuple):
    utility: float
    success: float


Outcomes = Mapping[TurnKey, Mapping[str, Mapping[int, ForkOutcome]]]
"""Turn -> arm -> number -> how the fork ended."""


def fork_outcomes(forks: Iterable[Trajectory]) -> Outcomes:
    """How the dialogues of a replay ended, by turn, arm and number."""
    found: dict[TurnKey, dict[str, dict[int, ForkOutcome]]] = defaultdict(dict)
    for trajectory in forks:
        fork = Fork.parse(trajectory.trajectory_id)
        ended = ForkOutcome(dialogue_utility(trajectory), float(trajectory.outcome == "accepted"))
        found[fork.turn].setdefault(fork.arm, {})[fork.number] = ended
    return found


def turn_worths(outcomes: Outcomes, continued_by: str) -> list[TurnWorth]:
    """The worth of each turn that was forked as it was said and anew, in the order of turns."""
    worths = []
    for turn in sorted(outcomes):
        pairs = paired(outcomes[turn], SAID, ANEW)
        if not len(pairs):
            continue
        errors: list[float | None] = [None, None]
        if len(pairs) > 1:
            errors = (pairs.std(axis=0, ddof=1) / math.sqrt(len(pairs))).tolist()
        utility, success = pairs.mean(axis=0).tolist()
        worths.append(
            TurnWorth(
                **turn._asdict(),
                continued_by=continued_by,
                num_pairs=len(pairs),
                utility=utility,
                utility_error=errors[0],
                success=success,
                success_error=errors[1],
            )
        )
    return worths


def paired(arms: Mapping[str, Mapping[int, ForkOutcome]], arm: str, base: str) -> np.ndarray:
    """[pairs, 2] differences of utility and of success between two arms, by number."""
    ours, theirs = arms.get(arm, {}), arms.get(base, {})
    shared = sorted(ours.keys() & theirs.keys())
    return np.array([np.subtract(ours[n], theirs[n]) for n in shared], float).reshape(-1, 2)


def worth_interval(worth: TurnWorth, name: str) -> Interval:
    """The worth of a single turn with Student's interval over its pairs.

    Args:
      name: `utility` or `success`.
    """
    mean, error = getattr(worth, name), getattr(worth, f"{name}_error")
    if error is None:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.isf((1.0 - CONFIDENCE) / 2.0, worth.num_pairs - 1)) * error
    return Interval(mean, mean - half, mean + half)


def worth_text(worths: Sequence[TurnWorth]) -> str:
    """For the terminal: one turn with its intervals, or how far turns lie apart."""
    if len(worths) == 1:
        (worth,) = worths
        shown = [_points(name, worth_interval(worth, name)) for name in ("utility", "success")]
        who = TurnKey(worth.trajectory_id, worth.turn_index)
        return f"{who} is worth {shown[0]} and {shown[1]} ({worth.num_pairs} pairs of forks)"
    spread = {
        name: (np.std([getattr(w, name) for w in worths]), worth_reliability(worths, name))
        for name in ("utility", "success")
    }
    parts = [
        f"{100 * deviation:.1f} points of {name} (reliability {reliability:.2f})"
        for name, (deviation, reliability) in spread.items()
    ]
    return f"the worth of {len(worths):,} turns varies by {' and '.join(parts)}"


def _points(name: str, interval: Interval) -> str:
    mean, low, high = (100 * value for value in interval)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}] points of {name}"


def worth_reliability(worths: Sequence[TurnWorth], name: str) -> float:
    """The share of the variance of worths that is about the turns, not about the forks' luck.

    NaN where it can't be told.
    """
    errors = [error for w in worths if (error := getattr(w, f"{name}_error")) is not None]
    values = np.array([getattr(worth, name) for worth in worths])
    variance = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    if not errors or variance <= 0:
        return math.nan
    return max(0.0, 1.0 - float(np.mean(np.square(errors))) / variance)


def worth_provider(continued_by: str) -> str:
    """Who is said to have served scores that are worths; it says who played on."""
    return f"replay:{continued_by}"


def as_scores(worths: Iterable[TurnWorth], judge: str, rubric: str) -> list[Judgement]:
    """Worths as the lines of a judge: 5.5 and a point for every 5 points of utility, 1 to 10."""
    return [
        Judgement(
            trajectory_id=worth.trajectory_id,
            turn_index=worth.turn_index,
            judge=judge,
            provider=worth_provider(worth.continued_by),
            repeat=0,
            attempt=0,
            rubric_sha256=rubric,
            raw=f"{worth.utility:+.4f}",
            status="scored",
            score=int(np.clip(round(5.5 + worth.utility / SCORE_STEP), 1, 10)),
        )
        for worth in worths
    ]


def phase_of_turn(dialogue: Trajectory, turn_index: int) -> Phase:
    """The phase of the talks in which a focal turn is spoken, by what stands before it."""
    state = DialogueState.from_turns(dialogue, dialogue.turns[:turn_index], max_turns=1)
    theirs = _last(state.counterparty_offers, dialogue.counterparty_anchor)
    ours = _last(state.focal_offers, dialogue.focal_target)
    span = dialogue.focal_target - dialogue.counterparty_anchor
    return phase_of(len(state.focal_offers) + 1, (ours - theirs) / span if span else 0.0)


def _last(offers: Sequence[float | None], start: float) -> float:
    return next((offer for offer in reversed(offers) if offer is not None), start)


class EmotionEffect(NamedTuple):
    """What an emotion does at a turn, in place of neutral: points of utility and of success."""

    phase: Phase
    emotion: str
    num_turns: int
    utility: Interval
    success: Interval


def emotion_effects(
    outcomes: Outcomes, dialogues: Mapping[str, Trajectory], n_resamples: int = 10_000
) -> list[EmotionEffect]:
    """Effects by phase and emotion, best utility first within a phase; clustered by scenario."""
    differences: dict[tuple[Phase, str], list[tuple[str, np.ndarray]]] = defaultdict(list)
    for turn, arms in outcomes.items():
        dialogue = dialogues[turn.trajectory_id]
        phase = phase_of_turn(dialogue, turn.turn_index)
        for emotion in EMOTIONS:
            pairs = paired(arms, emotion, NEUTRAL)
            if emotion != NEUTRAL and len(pairs):
                mean = 100 * pairs.mean(axis=0)
                differences[phase, emotion].append((dialogue.scenario_id, mean))
    effects = []
    for (phase, emotion), found in differences.items():
        scenarios = [scenario for scenario, _ in found]
        columns = np.array([mean for _, mean in found]).T
        utility, success = (clustered_ci(column, scenarios, n_resamples) for column in columns)
        effects.append(EmotionEffect(phase, emotion, len(found), utility, success))
    order: Sequence[Phase] = ("opening", "middle", "closing")
    return sorted(effects, key=lambda e: (order.index(e.phase), -e.utility.mean, e.emotion))


def effects_text(effects: Sequence[EmotionEffect], domain: str, *, is_planted: bool) -> str:
    """A table for the terminal.

    Args:
      is_planted: whether the simulator played, so that its weights stand beside what was found.
    """
    head = f"{'phase':8} {'emotion':15} {'turns':>5} {'utility':>23} {'success':>23}"
    lines = [head + ("  planted" if is_planted else "")]
    for effect in effects:
        shown = [_interval_text(one) for one in (effect.utility, effect.success)]
        line = f"{effect.phase:8} {effect.emotion:15} {effect.num_turns:>5} {' '.join(shown)}"
        if is_planted:
            line += f" {planted_effect(domain, effect):+8.2f}"
        lines.append(line)
    agreement = planted_agreement(effects, domain) if is_planted else {}
    lines += [
        f"{phase}: rank correlation of utility with what is planted {found:.2f}"
        for phase, found in agreement.items()
    ]
    return "\n".join(lines)


def planted_agreement(effects: Sequence[EmotionEffect], domain: str) -> dict[Phase, float]:
    """By phase, the rank correlation over emotions of effects on utility with the planted ones.

    Phases with fewer than `MIN_RANKED` emotions are left out.
    """
    found: dict[Phase, float] = {}
    for phase in dict.fromkeys(effect.phase for effect in effects):
        own = [effect for effect in effects if effect.phase == phase]
        if len(own) < MIN_RANKED:
            continue
        planted = [planted_effect(domain, effect) for effect in own]
        means = [effect.utility.mean for effect in own]
        found[phase] = float(stats.spearmanr(planted, means).statistic)
    return found


def _interval_text(interval: Interval) -> str:
    return f"{interval.mean:+6.1f} [{interval.low:+6.1f}, {interval.high:+6.1f}]"


def planted_effect(domain: str, effect: EmotionEffect) -> float:
    """E of the average counterparty for the emotion, clearly expressed (`response.toml`)."""
    return emotional_effect(domain, effect.phase, None, effect.emotion, 1.0, 0)
