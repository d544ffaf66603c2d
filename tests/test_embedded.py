"""The student in the package follows its prompt: it is a negotiator, if not yet a good one."""

import asyncio

import jax.numpy as jnp
import numpy as np
import pytest

from emodistill.domains import DOMAINS
from emodistill.domains.generator import NUM_SCENARIOS, generate_scenarios
from emodistill.emotions import EMOTIONS
from emodistill.evaluation.metrics import in_bounds
from emodistill.evaluation.student_writer import StudentWriter
from emodistill.model import Engine, EngineWorker, embedded_path, load_qwen2, load_tokenizer
from emodistill.negotiation.episode import Match, PlannedDialogue, Player, play
from emodistill.prompts import load_pack
from emodistill.seeding import stream
from emodistill.simulator.response_model import expressed
from emodistill.simulator.writer import SimulatedWriter
from pretraining.corpus import NUM_PRETRAINING_SCENARIOS

NUM_DIALOGUES = 4
MAX_REPLY_TOKENS = 100


@pytest.fixture(scope="module")
def trajectories():
    """domain -> dialogues under random emotions on scenarios that the student has never seen."""
    seen = NUM_SCENARIOS + NUM_PRETRAINING_SCENARIOS
    folder, pack = embedded_path(), load_pack()
    counterparty = Player(writer=SimulatedWriter("sim-counterparty"))

    async def one(scenario, student):
        rng = stream(0, "test", scenario.scenario_id)

        def choose(state):
            return EMOTIONS[rng.integers(len(EMOTIONS))]

        match = Match(
            focal=Player(writer=student, choose_for=lambda dialogue: choose, method="vanilla-slm"),
            counterparty=counterparty,
            pack=pack,
            max_turns=7,
        )
        return await play(PlannedDialogue(scenario, 0, scenario.scenario_id), match)

    async def all_of_them():
        model = load_qwen2(folder, dtype=jnp.float32)
        async with EngineWorker(lambda _: Engine(model, num_slots=16)) as worker:
            student = StudentWriter(
                worker,
                None,
                load_tokenizer(folder),
                model="embedded",
                temperature=0.7,
                max_reply_tokens=MAX_REPLY_TOKENS,
                max_prompt_tokens=2048,
            )
            games = [
                scenario
                for domain in DOMAINS
                for scenario in generate_scenarios(domain, seen + NUM_DIALOGUES)[seen:]
            ]
            return await asyncio.gather(*(one(scenario, student) for scenario in games))

    played = asyncio.run(all_of_them())
    return {domain: [t for t in played if t.domain == domain] for domain in DOMAINS}


@pytest.mark.parametrize("domain", DOMAINS)
def test_it_opens_at_its_target(trajectories, domain):
    openings = [t.turns[0].offer == t.focal_target for t in trajectories[domain]]
    assert np.mean(openings) >= 0.75


def test_its_later_offers_lie_between_the_positions_on_the_table(trajectories):
    kept = {
        domain: np.mean([ok for t in found for ok in in_bounds(t)[1:]])
        for domain, found in trajectories.items()
    }
    assert np.mean(list(kept.values())) >= 0.7, kept
    assert min(kept.values()) >= 0.5, kept


def test_it_ends_its_turns(trajectories):
    turns = [turn for found in trajectories.values() for t in found for turn in t.focal_turns]
    assert np.mean([turn.completion_tokens < MAX_REPLY_TOKENS for turn in turns]) >= 0.99


def test_its_words_show_the_asked_emotion(trajectories):
    """A marked word of another emotion, or none, is what a reply shows that ignores its block."""
    turns = [turn for found in trajectories.values() for t in found for turn in t.focal_turns]
    shown = [expressed(turn.text).emotion == turn.emotion for turn in turns]
    assert np.mean(shown) >= 0.5
