"""Whether the intervals of what emotions do hold what they should: replays against a larger one.

Eight replays of sixty turns each, on scenarios that no two of them share. The effects that one
finds are compared with the mean of the other seven, which are seven times as many turns.
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
from pretraining.judge_turns import _match

NUM_REPLAYS, NUM_SCENARIOS, NUM_TURNS = 8, 25, 60
MIN_TURNS = 10
"""Turns of an effect below which no interval of resampled scenarios can be right."""


def replayed(number):
    """The outcomes of one replay, and the dialogues that it forks."""
    generated = generate_scenarios("crad", seed=100 + number // 4)
    first = NUM_SCENARIOS * (number % 4)
    scenarios = [
        msgspec.structs.replace(one, scenario_id=f"{number}-{one.scenario_id}")
        for one in generated[first : first + NUM_SCENARIOS]
    ]
    by_id = {one.scenario_id: one for one in scenarios}

    def played(planned, is_fork):
        match = _match(number, is_fork=False)
        if is_fork:
            match = dataclasses.replace(match, focal=fork_player(match.focal))
        return asyncio.run(_all(planned, match))

    async def _all(planned, match):
        return [await play(dialogue, match) for dialogue in planned]

    dialogues = {t.trajectory_id: t for t in played(plan_dialogues(scenarios, num_seeds=4), False)}
    turns = chosen_turns(list(dialogues.values()), turn=None, num_turns=NUM_TURNS, seed=number)
    planned = []
    for fork in plan_forks(turns, arms_of("all"), 1):
        dialogue = dialogues[fork.turn.trajectory_id]
        scenario = by_id[dialogue.scenario_id]
        planned.append(fork_dialogue(fork, dialogue, scenario, number, ("focal", "counterparty")))
    return fork_outcomes(played(planned, True)), dialogues


def coverage(replays):
    """Shares of the intervals that hold the others' mean: of utility and of success, and how many.

    Args:
      replays: (outcomes, dialogues) of each.
    """
    effects = [
        {(e.phase, e.emotion): e for e in emotion_effects(*one, n_resamples=1_000)}
        for one in replays
    ]
    hits = {"utility": [], "success": []}
    for number, found in enumerate(effects):
        for key, effect in found.items():
            others = [one[key] for i, one in enumerate(effects) if i != number and key in one]
            if effect.num_turns < MIN_TURNS:
                continue
            weights = [one.num_turns for one in others]
            for name, held in hits.items():
                truth = np.average([getattr(one, name).mean for one in others], weights=weights)
                low, high = getattr(effect, name)[1:]
                held.append(low <= truth <= high)
    return {name: float(np.mean(held)) for name, held in hits.items()}, len(hits["utility"])


@pytest.mark.slow
def test_intervals_of_effects_hold_the_effects():
    replays = [replayed(number) for number in range(NUM_REPLAYS)]
    shares, num_effects = coverage(replays)
    print(f"{num_effects} effects; held: {shares}")
    assert num_effects > 300
    assert 0.90 <= shares["utility"] <= 0.99 and 0.90 <= shares["success"] <= 0.99
    everything = {k: v for outcomes, _ in replays for k, v in outcomes.items()}
    dialogues = {k: v for _, known in replays for k, v in known.items()}
    agreement = planted_agreement(emotion_effects(everything, dialogues, n_resamples=100), "crad")
    assert min(agreement.values()) > 0.8
