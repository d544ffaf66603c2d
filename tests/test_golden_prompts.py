"""The built-in prompts, and what the simulated models answer to them, to the byte.

The embedded student was pretrained on both. `golden/prompts.json` holds a hash for each; a change
that is meant is recorded anew by `python tests/test_golden_prompts.py`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from simulated_talks import PACK, SCENARIOS, dialogue, turns_of

from emodistill.domains import DOMAINS
from emodistill.prompts import (
    counterparty_messages,
    dialogue_judge_messages,
    focal_messages,
    turn_judge_messages,
)
from emodistill.simulator.server import complete

GOLDEN = Path(__file__).with_name("golden") / "prompts.json"
TURNS = turns_of("I need 20 days.", "I can pay in 90 days.", "My figure is 30 days.", "No.")


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def prompt_hashes(domain: str) -> dict[str, str]:
    """Of the prompts of ten scenarios, by who is prompted and with what."""
    scenarios = SCENARIOS[domain][:10]
    prompts = {
        "focal, opening": lambda s: focal_messages(PACK, s, [], "joy"),
        "focal, later": lambda s: focal_messages(PACK, s, TURNS, "remorse"),
        "focal, no emotion": lambda s: focal_messages(PACK, s, TURNS, None),
        "focal, opening, no emotion": lambda s: focal_messages(PACK, s, [], None),
        "counterparty": lambda s: counterparty_messages(PACK, s, TURNS[:3]),
        "counterparty, nothing said": lambda s: counterparty_messages(PACK, s, []),
        "counterparty, emotion": lambda s: counterparty_messages(PACK, s, TURNS[:1], "anger"),
        "counterparty, no emotion": lambda s: counterparty_messages(PACK, s, TURNS[:1], None),
        "judge, opening": lambda s: turn_judge_messages(PACK, s, TURNS, 0),
        "judge, later": lambda s: turn_judge_messages(PACK, s, TURNS, 2),
        "judge, agreement": lambda s: dialogue_judge_messages(PACK, s, TURNS, "accepted", 2.5),
        "judge, breakdown": lambda s: dialogue_judge_messages(PACK, s, TURNS, "breakdown", None),
    }
    return {f"{domain}, {name}": digest([of(s) for s in scenarios]) for name, of in prompts.items()}


def answer_hashes(domain: str) -> dict[str, str]:
    """Of simulated dialogues, and of the simulated judge's answers about them."""
    hashes = {}
    for kind in ("random", "oracle"):
        said, scores = [], []
        for number in range(6):
            played, scenario = dialogue(domain, number, kind), SCENARIOS[domain][number]
            ending = played.outcome, played.final_value
            said.append([[turn.emotion, turn.text] for turn in played.turns] + [list(ending)])
            asked = [
                turn_judge_messages(PACK, scenario, played.turns, turn.index)
                for turn in played.focal_turns
            ] + [dialogue_judge_messages(PACK, scenario, played.turns, *ending)]
            scores += [complete("sim-judge", messages, seed=number) for messages in asked]
        hashes[f"{domain}, {kind} dialogues"] = digest(said)
        hashes[f"{domain}, judged {kind} dialogues"] = digest(scores)
    silent = [
        complete("sim-teacher", focal_messages(PACK, scenario, TURNS, None), seed=seed)
        for seed, scenario in enumerate(SCENARIOS[domain][:10])
    ]
    return hashes | {f"{domain}, teacher without an emotion": digest(silent)}


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("of", [prompt_hashes, answer_hashes])
def test_built_in_prompts_and_the_answers_to_them_stay_as_they_are(domain, of):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = of(domain)
    assert found == {name: golden[name] for name in found}


if __name__ == "__main__":
    recorded = {
        name: value
        for domain in DOMAINS
        for name, value in (prompt_hashes(domain) | answer_hashes(domain)).items()
    }
    GOLDEN.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
