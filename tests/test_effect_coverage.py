"""Whether the intervals of what emotions do hold what they should.

The scenarios of one replay are taken for all there are, so that the effects over them are known.
Replays of other scenarios are what is drawn from them, with replacement.
"""

import asyncio
import dataclasses

import msgspec
import numpy as np
import pytest

from emodistill.domains.generator import generate_scenarios
from emodistill.evaluation.turn_worth import emotion_effects, fork_outcomes, planted_agreement
from emodistill.negotiation.episode import play
from emodistill.offline.forks import arms_of, chosen_turns, fork_dialogue, fork_player, plan_forks
from emodistill.offline.sweep import plan_dialogues
from emodistill.seeding import stream
from pretraining.judge_turns import _match

NUM_SCENARIOS, NUM_TURNS, NUM_DRAWS = 80, 240, 30
MIN_TURNS = 10
"""Turns of an effect below which no interval of resampled scenarios can be right."""


def replayed():
    """The outcomes of a replay under all emotions, and the dialogues that it forks."""
    scenarios = generate_scenarios("crad", seed=100)[:NUM_SCENARIOS]
    by_id = {one.scenario_id: one for one in scenarios}

    async def played(planned, match):
        return [await play(dialogue, match) for dialogue in planned]

    match = _match(0, is_fork=False)
    recorded = asyncio.run(played(plan_dialogues(scenarios, num_seeds=3), match))
    dialogues = {one.trajectory_id: one for one in recorded}
    turns = chosen_turns(recorded, turn=None, num_turns=NUM_TURNS, seed=0)
    planned = []
    for fork in plan_forks(turns, arms_of("all"), 1):
        dialogue = dialogues[fork.turn.trajectory_id]
        scenario = by_id[dialogue.scenario_id]
        planned.append(fork_dialogue(fork, dialogue, scenario, 0, ("focal", "counterparty")))
    forks = asyncio.run(played(planned, dataclasses.replace(match, focal=fork_player(match.focal))))
    return fork_outcomes(forks), dialogues


def drawn(outcomes, dialogues, scenarios):
    """The replay of some scenarios; one that is drawn twice counts as two."""
    copies, known = {}, {}
    for number, scenario in enumerate(scenarios):
        for turn, arms in outcomes.items():
            dialogue = dialogues[turn.trajectory_id]
            if dialogue.scenario_id == scenario:
                name = f"{number}:{turn.trajectory_id}"
                copies[turn._replace(trajectory_id=name)] = arms
                known[name] = msgspec.structs.replace(dialogue, scenario_id=f"{number}")
    return copies, known


def coverage(outcomes, dialogues, *, num_scenarios=NUM_SCENARIOS, num_draws=NUM_DRAWS):
    """The shares of intervals that hold the effect over all: of utility and of success."""
    whole = emotion_effects(outcomes, dialogues, n_resamples=10)
    truth = {(one.phase, one.emotion): one for one in whole}
    names = sorted({dialogues[turn.trajectory_id].scenario_id for turn in outcomes})
    rng = stream(0, "coverage")
    held = {"utility": [], "success": []}
    for _ in range(num_draws):
        chosen = rng.choice(names, size=num_scenarios)
        for effect in emotion_effects(*drawn(outcomes, dialogues, chosen), n_resamples=500):
            if effect.num_turns < MIN_TURNS:
                continue
            for name, found in held.items():
                _, low, high = getattr(effect, name)
                mean = getattr(truth[effect.phase, effect.emotion], name).mean
                found.append(low <= mean <= high)
    return {name: float(np.mean(found)) for name, found in held.items()}


@pytest.mark.slow
def test_intervals_of_effects_hold_the_effects():
    outcomes, dialogues = replayed()
    shares = coverage(outcomes, dialogues)
    print(f"held by 95 % intervals: {shares}")
    assert 0.90 <= shares["utility"] <= 0.99 and 0.90 <= shares["success"] <= 0.99
    effects = emotion_effects(outcomes, dialogues, n_resamples=10)
    assert min(planted_agreement(effects, "crad").values()) > 0.7
