"""A cheap stand-in for talks: the reward is the share of turns that express a planted emotion."""

from __future__ import annotations

from collections import Counter

from builders import SCENARIO, trajectory

from emodistill.negotiation.states import DialogueState
from emodistill.records import Trajectory, Turn
from emodistill.selectors import Selector
from emodistill.selectors.learning import Learner, Setup, focal_groups, training_rng
from emodistill.selectors.seven import SEVEN, group_of
from emodistill.selectors.systems import SYSTEMS, make_learner

NUM_TURNS = 9
LEAST, MOST = 0.2, 0.8
"""Utility where no turn and where every turn expresses the planted emotion."""


def talk(
    selector: Selector,
    name: str,
    seed: int,
    planted: str,
    heard: str = "neutral",
    range_: tuple[float, float] = (LEAST, MOST),
) -> Trajectory:
    """A dialogue that always ends in an agreement; the other side shows `heard` in every turn."""
    rng, turns, hits = training_rng(seed, name), [], 0
    for _ in range(NUM_TURNS):
        emotion = selector.choose(DialogueState.from_turns(SCENARIO, turns, 30), rng)
        hits += group_of(emotion) == SEVEN.index(planted)
        index = len(turns)
        turns += [
            Turn(index=index, speaker="focal", emotion=emotion, text="", offer=None),
            Turn(
                index=index + 1,
                speaker="counterparty",
                emotion=None,
                heard_emotion=heard,
                text="",
                offer=None,
            ),
        ]
    low, high = range_
    share = low + (high - low) * hits / NUM_TURNS
    target, anchor = SCENARIO.focal_target, SCENARIO.counterparty_anchor
    return trajectory(name, turns, final_value=anchor + share * (target - anchor))


def trained(
    system: str, planted: str, num_dialogues: int, *, seed: int = 0, **changes
) -> tuple[Learner, list[Trajectory]]:
    """A learner after so many dialogues, and these; `changes` are of the setup and the talks."""
    talks = {name: changes.pop(name) for name in ("heard", "range_") if name in changes}
    if changes.pop("shipped", False):
        changes |= {"faults": SYSTEMS[system].faults.__slots__, "reward": "own"}
    learner = make_learner(Setup(system, seed, num_dialogues, **changes))
    played: list[Trajectory] = []
    while len(played) < num_dialogues:
        block = [
            talk(learner.selector_for(i), f"{len(played) + i}", seed, planted, **talks)
            for i in range(learner.block_size)
        ]
        learner.learn(block)
        played += block
    return learner, played


def modal_emotion(played: list[Trajectory], last: int = 20) -> str:
    """What was expressed most often in the last dialogues."""
    counts = Counter(group for dialogue in played[-last:] for group in focal_groups(dialogue))
    return SEVEN[counts.most_common(1)[0][0]]
