"""Forks of recorded turns: the same opponent and other luck, what is planned, what it will take."""

import functools

import numpy as np
import pytest
from simulated_talks import PACK, SCENARIOS, dialogues

from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.evaluation.bootstrap import Interval
from emodistill.evaluation.turn_worth import (
    EmotionEffect,
    ForkOutcome,
    effects_text,
    emotion_effects,
    fork_outcomes,
    phase_of_turn,
    planted_agreement,
    turn_worths,
)
from emodistill.offline.forks import (
    ANEW,
    SAID,
    Fork,
    TurnKey,
    arms_of,
    chosen_turns,
    expected_calls,
    fork_dialogue,
    plan_forks,
    refuse_other_players,
)
from emodistill.prompts import counterparty_messages, focal_messages
from emodistill.seeding import stream
from emodistill.simulator.forked_seeds import ForkedSeed, forked_seed, read_seed
from emodistill.simulator.server import complete


@functools.cache
def talks():
    return dialogues("crad", num=12)


def test_a_seed_without_a_fork_is_its_own():
    for seed in (0, 7, (1 << 31) - 1, -3, 1 << 31):  # the last: a number too small for a stream
        assert read_seed(seed) == ForkedSeed(seed)
        assert read_seed(seed).at(5) == seed
    assert read_seed(forked_seed(7, 3, 12)) == (7, 3, 12)
    for wrong in ((-1, 1, 1), (1 << 31, 1, 1), (0, 1 << 10, 1), (0, 1, 0)):
        with pytest.raises(InputError, match="a fork's seed needs"):
            forked_seed(*wrong)


def test_before_the_fork_everything_is_as_it_was_and_after_it_the_luck_is_new():
    """The opponent stays who it is: its replies differ no more than those of one type do."""
    dialogue = next(t for t in talks() if len(t.turns) >= 8)
    scenario = next(s for s in SCENARIOS["crad"] if s.scenario_id == dialogue.scenario_id)

    def replies(index, seeds):
        messages = counterparty_messages(PACK, scenario, dialogue.turns[:index], "neutral")
        return [complete("sim-counterparty", messages, seed=seed)[0] for seed in seeds]

    forks = [forked_seed(99, 3, number) for number in range(1, 31)]
    assert set(replies(1, forks)) == set(replies(1, [99]))
    assert set(replies(3, forks)) == set(replies(3, [99]))
    assert len(set(replies(5, forks))) > 5  # after the third focal turn


def test_forks_of_one_number_share_the_speakers_luck_whatever_was_said():
    scenario, dialogue = SCENARIOS["crad"][0], talks()[0]
    seeds = [forked_seed(1, 2, number) for number in range(1, 40)]
    texts = []
    for emotion in ("anger", "caring"):
        messages = focal_messages(PACK, scenario, dialogue.turns[:2], emotion)
        texts.append([complete("sim-teacher", messages, seed=seed)[0] for seed in seeds])
    digits = [["".join(c for c in text if c.isdigit()) for text in one] for one in texts]
    assert digits[0] == digits[1] and len(set(digits[0])) > 10
    assert np.mean([a != b for a, b in zip(*texts, strict=True)]) > 0.5


def test_the_plan_pairs_all_arms_before_it_repeats_them():
    turns = [TurnKey("crad/a/seed_0000", 2), TurnKey("crad/b/seed_0001", 0)]
    forks = plan_forks(turns, arms_of(None), 2)
    names = [fork.name for fork in forks]
    assert names[:3] == [
        "crad/a/seed_0000#2/said/001",
        "crad/a/seed_0000#2/anew/001",
        "crad/b/seed_0001#0/said/001",
    ]
    assert len(set(names)) == 8 and [Fork.parse(name) for name in names] == forks
    with pytest.raises(InputError, match="names no fork"):
        Fork.parse("crad/a/seed_0000")


def test_the_choice_of_arms_and_turns():
    assert arms_of("all") == EMOTIONS
    assert arms_of("fear, anger") == ("anger", "fear", "neutral")
    with pytest.raises(InputError, match="unknown: 'rage'"):
        arms_of("anger,rage")
    choose = {"turn": None, "seed": 3}
    some = chosen_turns(talks(), num_turns=5, **choose)
    assert chosen_turns(talks()[::-1], num_turns=9, **choose)[:5] == some
    one = str(some[0])
    assert chosen_turns(talks(), turn=one, num_turns=5, seed=0) == [some[0]]
    for wrong, why in (("crad/0", "must be TRAJECTORY_ID#INDEX"), ("crad/99#0", "no such dial")):
        with pytest.raises(InputError, match=why):
            chosen_turns(talks(), turn=wrong, num_turns=5, seed=0)
    with pytest.raises(InputError, match="no focal turn of that number"):
        chosen_turns(talks(), turn="crad/0#1", num_turns=5, seed=0)


def test_a_fork_keeps_what_was_heard_and_seeds_of_real_models_are_others():
    dialogue, scenario = talks()[1], SCENARIOS["crad"][1]
    said, anew = (Fork(TurnKey("crad/1", 2), arm, 4) for arm in (SAID, ANEW))
    simulated = fork_dialogue(said, dialogue, scenario, 0, ["focal", "counterparty"])
    assert simulated.heard == dialogue.turns[:3]
    assert [read_seed(seed)[1:] for seed in simulated.seeds.values()] == [(2, 4), (2, 4)]
    real = fork_dialogue(anew, dialogue, scenario, 0, [])
    assert real.heard == dialogue.turns[:2]
    assert max(real.seeds.values()) < 1 << 31  # what providers take
    other = fork_dialogue(anew._replace(number=5), dialogue, scenario, 0, [])
    assert not set(real.seeds.values()) & set(other.seeds.values())


def test_other_players_than_the_recorded_ones_are_refused():
    turns = [TurnKey("crad/1", 0)]
    refuse_other_players(talks(), turns, {"focal": "sim-teacher", "agreement": "stand"})
    with pytest.raises(InputError, match="focal sim-teacher, not gpt; say --focal"):
        refuse_other_players(talks(), turns, {"focal": "gpt"})


def test_the_forecast_is_what_dialogues_took_from_there_on():
    forks = [Fork(TurnKey("crad/0", 0), SAID, 1), Fork(TurnKey("crad/0", 0), ANEW, 1)]
    calls = expected_calls(forks, talks())
    num_focal = np.mean([len(t.focal_turns) for t in talks()])
    assert calls["focal"].num_calls == pytest.approx(2 * num_focal - 1)
    num_theirs = np.mean([len(t.turns) - len(t.focal_turns) for t in talks()])
    assert calls["counterparty"].num_calls == pytest.approx(2 * num_theirs)
    tokens = np.mean([sum(turn.prompt_tokens for turn in t.focal_turns) for t in talks()])
    opening = np.mean([t.turns[0].prompt_tokens for t in talks()])
    assert calls["focal"].prompt_tokens == pytest.approx(2 * tokens - opening)


def test_dialogues_that_ended_before_a_turn_forecast_nothing_of_it():
    talks = dialogues("crad", num=60)
    longest = max(talks, key=lambda t: len(t.turns))
    index = next(n for t in talks if (n := len(t.turns)) < len(longest.turns) and n % 2 == 0)
    late = expected_calls([Fork(TurnKey(longest.trajectory_id, index), ANEW, 1)], talks)
    have_it = [t for t in talks if len(t.turns) > index]
    num_focal = np.mean([sum(turn.index >= index for turn in t.focal_turns) for t in have_it])
    assert late["focal"].num_calls == pytest.approx(num_focal)


def test_few_emotions_are_not_ranked_against_what_is_planted():
    nothing = Interval(0.0, 0.0, 0.0)
    effects = [
        EmotionEffect("opening", emotion, 9, Interval(float(rank), 0.0, 9.0), nothing)
        for rank, emotion in enumerate(("anger", "caring", "fear", "joy", "pride"))
    ]
    assert planted_agreement(effects[:4], "crad") == {}
    assert "rank correlation" not in effects_text(effects[:4], "crad", is_planted=True)
    assert planted_agreement(effects, "crad").keys() == {"opening"}


def test_worths_are_means_of_paired_differences():
    def outcome(utility):
        return (utility, float(utility > 0))

    turn = TurnKey("crad/0", 2)
    arms = {
        SAID: {1: outcome(0.6), 2: outcome(0.0), 3: outcome(0.4)},
        ANEW: {1: outcome(0.2), 2: outcome(0.2), 4: outcome(0.9)},
    }
    (worth,) = turn_worths({turn: arms}, "recorded")
    assert (worth.num_pairs, worth.utility, worth.success) == pytest.approx((2, 0.1, -0.5))
    assert worth.utility_error == pytest.approx(np.std([0.4, -0.2], ddof=1) / np.sqrt(2))
    assert fork_outcomes([]) == {}


def test_phases_are_those_of_what_stands_before_a_turn():
    phases = [phase_of_turn(t, turn.index) for t in talks() for turn in t.focal_turns[:2]]
    assert phases.count("opening") > len(phases) / 2
    late = [phase_of_turn(t, t.focal_turns[-1].index) for t in talks() if len(t.focal_turns) > 4]
    assert "closing" in late and "opening" not in late


def test_effects_of_emotions_are_covered_as_often_as_they_should_be():
    """Planted for every emotion and phase, in scenarios that differ, with 95 % intervals."""
    rng, order = stream(0, "effects"), ("opening", "middle", "closing")
    planted = {(phase, e): rng.normal(0.0, 0.05) for phase in order for e in EMOTIONS}
    turns, outcomes = {}, {}
    for trajectory in dialogues("crad", num=30):
        scenario = dict(zip(EMOTIONS, rng.normal(0.0, 0.03, len(EMOTIONS)), strict=True))
        for turn in trajectory.focal_turns[:6]:
            key = TurnKey(trajectory.trajectory_id, turn.index)
            phase = phase_of_turn(trajectory, turn.index)
            turns[key] = phase
            luck = rng.normal(0.0, 0.1, 4)
            outcomes[key] = {
                emotion: {
                    number: ForkOutcome(
                        luck[number]
                        + (emotion != "neutral") * (planted[phase, emotion] + scenario[emotion])
                        + rng.normal(0.0, 0.05),
                        1.0,
                    )
                    for number in range(4)
                }
                for emotion in EMOTIONS
            }
    effects = emotion_effects(
        outcomes, {t.trajectory_id: t for t in dialogues("crad", num=30)}, n_resamples=800
    )
    assert len(effects) == 27 * len(set(turns.values()))
    covered = [
        effect.utility.low <= 100 * planted[effect.phase, effect.emotion] <= effect.utility.high
        for effect in effects
    ]
    assert 0.9 <= np.mean(covered) <= 0.99
    assert all(effect.success == (0, 0, 0) for effect in effects)
