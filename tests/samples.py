"""Dialogues and samples of chosen lengths for tests of batches and of training."""

import numpy as np

from emodistill.batches import Example
from emodistill.domains import load_scenarios
from emodistill.prompts import load_pack
from emodistill.records import CounterpartyPlayer, FocalPlayer, Trajectory, Turn
from emodistill.seeding import stream

PACK = load_pack()
SCENARIO = load_scenarios("crad")[0]


def dialogue(num_turns=6, scenario=SCENARIO, number=0):
    turns = tuple(
        Turn(
            index=i,
            speaker="focal" if i % 2 == 0 else "counterparty",
            emotion="anger" if i % 2 == 0 else None,
            text=f"Turn {i}: let us say {20 + i} days.",
            offer=20.0 + i,
        )
        for i in range(num_turns)
    )
    return Trajectory(
        trajectory_id=f"crad/{scenario.scenario_id}/seed_{number:04d}",
        domain="crad",
        scenario_id=scenario.scenario_id,
        seed=number,
        split="train",
        focal_target=scenario.focal_target,
        counterparty_anchor=scenario.counterparty_anchor,
        unit=scenario.unit,
        focal=FocalPlayer(method="sweep", model="m", temperature=0.7),
        counterparty=CounterpartyPlayer(model="m", temperature=0.7),
        prompt_pack_sha256=PACK.sha256,
        agreement_rule="stand",
        turns=turns,
        outcome="breakdown",
        final_value=None,
    )


def lengths_to_examples(lengths, seed=0):
    """Random samples of (prompt, reply) lengths; the tokens of sample i start with i."""
    rng = stream(seed, "examples")
    return [
        Example(
            sample_id=f"crad/debt_001/seed_{i:04d}#0",
            prompt_ids=np.concatenate([[i], rng.integers(1, 99, p - 1)]).astype(np.int32),
            response_ids=rng.integers(100, 199, u).astype(np.int32),
        )
        for i, (p, u) in enumerate(lengths)
    ]


def sharing_examples(number, seed=0, lone=False):
    """Samples with prompts that branch, several replies to one prompt, and duplicates."""
    rng = stream(seed, "sharing")
    prompts, examples = [[1]], []
    for i in range(number):
        prompt = prompts[rng.integers(len(prompts))] + rng.integers(1, 4, rng.integers(9)).tolist()
        prompts.append(prompt)
        reply = rng.integers(1, 4, 1 + rng.integers(8)).tolist()
        if i % 5 == 4:  # the same again, or a longer reply to the same prompt
            prompt, reply = examples[-1].prompt_ids.tolist(), examples[-1].response_ids.tolist()
            reply += [] if i % 2 else [3, 1]
        examples.append(
            Example(
                sample_id=f"traj_{i:04}#0",
                prompt_ids=np.array(prompt, np.int32),
                response_ids=np.array(reply, np.int32),
            )
        )
    return examples
