"""Dialogues and samples of chosen lengths for tests of batches and of training."""

import numpy as np
from builders import trajectory, turns

from emodistill.batches import Example
from emodistill.domains import load_scenarios
from emodistill.prompts import load_pack
from emodistill.records import FocalPlayer
from emodistill.seeding import stream

PACK = load_pack()
SCENARIO = load_scenarios("crad")[0]


def dialogue(num_turns=6, scenario=SCENARIO, number=0):
    offers = [20.0 + i for i in range(num_turns)]
    texts = [f"Turn {i}: let us say {20 + i} days." for i in range(num_turns)]
    return trajectory(
        f"crad/{scenario.scenario_id}/seed_{number:04d}",
        turns(*offers, emotions=("anger",), texts=texts),
        scenario_id=scenario.scenario_id,
        seed=number,
        split="train",
        focal_target=scenario.focal_target,
        counterparty_anchor=scenario.counterparty_anchor,
        unit=scenario.unit,
        focal=FocalPlayer(method="sweep", model="m", temperature=0.7),
        prompt_pack_sha256=PACK.sha256,
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
