"""Pairs of emotions, matches with a selector and shifted states, counted by hand."""

import math

import msgspec
import numpy as np
import pytest
from builders import dialogue

from emodistill.errors import InputError
from emodistill.evaluation.sequences import match_rates, state_shift, top_sequences


def spoken(name, final_value, *emotions, **kwargs):
    return dialogue(name, final_value, num_turns=2 * len(emotions), emotions=emotions, **kwargs)


ROWS = [
    spoken("a", 30.0, "fear", "anger"),  # savings 1
    spoken("b", 90.0, "fear", "anger", "fear", "anger"),  # longer: counts for nothing
    spoken("c", 60.0, "fear", "anger"),  # 0.5
    spoken("d", 60.0, "fear", "anger"),  # 0.5
    spoken("e", None, "joy", "joy"),
    spoken("f", 30.0, "joy", "joy"),  # 1
    spoken("g", 40.0, "joy", "joy", None, "fear"),  # longer
    spoken("h", None, "joy", "joy"),
    spoken("i", 30.0, "joy", None),  # a turn without an emotion
    spoken("j", 30.0, "joy"),  # shorter
]


def test_two_step_dialogues_alone_make_sequences():
    joy, fear = top_sequences(ROWS).itertuples()
    assert [(row.first, row.second) for row in (joy, fear)] == [("joy", "joy"), ("fear", "anger")]
    assert (joy.num_dialogues, joy.num_accepted, joy.outcomes) == (3, 1, 1.0)
    assert joy.utility == pytest.approx(1 / 3)
    assert (fear.num_dialogues, fear.num_accepted) == (3, 3)
    assert fear.utility == fear.outcomes == pytest.approx(2 / 3)
    _, fear = top_sequences(ROWS, average="median").itertuples()
    assert fear.outcomes == 0.5


def test_sequences_rank_by_savings_then_number_then_vocabulary():
    rarer = [
        spoken("k", 30.0, "anger", "fear"),
        spoken("l", 30.0, "anger", "anger"),
        spoken("m", None, "grief", "fear"),  # never closes
    ]
    found = top_sequences([*ROWS, *rarer], min_dialogues=1)
    assert [(row.first, row.second, row.num_dialogues) for row in found.itertuples()] == [
        ("joy", "joy", 3),
        ("anger", "anger", 1),
        ("anger", "fear", 1),
        ("fear", "anger", 3),
        ("grief", "fear", 1),
    ]
    assert math.isnan(found.outcomes.iloc[-1]) and found.utility.iloc[-1] == 0.0
    assert top_sequences([]).empty


def test_match_rates_by_hand():
    rows = [
        spoken("a", 30.0, "fear", "anger"),
        spoken("b", None, "fear", "joy", scenario_id="debt_002"),
        spoken("c", 90.0, "fear", None, scenario_id="debt_002"),
        spoken("d", 30.0, "joy", "joy"),
    ]
    scores = {("a", 0): 9, ("a", 2): 10, ("b", 0): 1, ("b", 2): 2, ("c", 0): 3, ("c", 2): 3}
    scores |= {("d", 0): 4, ("d", 2): 5}
    seen = []

    def choose(state):
        seen.append(state)
        return "anger" if state.emotions else "fear"

    found = {
        row["group"]: (row["num_matches"], row["num_turns"])
        for row in match_rates(rows, scores, choose, n_resamples=200)
    }
    assert found == {
        "all": (4, 7),
        "kept": (2, 2),  # of 8 scored turns the best two, both of a
        "accepted": (3, 5),
        "breakdown": (1, 2),
        "ongoing": (0, 0),
    }
    # The states are those before the turn: no offer or emotion of its own.
    assert [len(state.emotions) for state in seen] == [0, 1, 0, 1, 0, 0, 1]
    assert seen[1].emotions == ("fear",)


def test_match_rates_carry_their_interval():
    rows = [
        spoken(f"{i}/{run}", 30.0, "fear" if i else "joy", scenario_id=f"debt_{i:03d}")
        for i in range(2)
        for run in range(3)
    ]
    everything, *_, ongoing = match_rates(rows, {}, lambda state: "fear", n_resamples=500)
    # Two scenarios, each unanimous.
    rate = "rate", "interval_low", "interval_high"
    assert [everything[name] for name in rate] == [50.0, 0.0, 100.0]
    assert ongoing["group"] == "ongoing" and np.isnan([ongoing[name] for name in rate]).all()


def test_the_same_states_have_not_shifted():
    assert (state_shift(ROWS, ROWS[::-1]).distance == 0).all()


def test_state_shift_by_hand():
    sweep = [spoken("a", 30.0, "fear", "anger"), spoken("b", 30.0, "joy", "anger")]
    played = [spoken("c", 30.0, "fear", "anger"), spoken("d", 30.0, "fear", "anger")]
    first, *others = state_shift(sweep, played).itertuples(index=False)
    found = {row.feature: row for row in (first, *others)}
    # Before the second turn, joy is half of the sweep's last emotions, and never one here.
    assert found["last_emotion=joy"][1:] == (0.25, 0.25, 0.0)
    assert found["last_emotion=fear"][1:] == (0.25, 0.25, 0.5)
    assert found["progress"].distance == 0
    assert first.distance == max(row.distance for row in found.values())


def test_state_shift_needs_turns():
    silent = [msgspec.structs.replace(ROWS[0], turns=())]
    with pytest.raises(InputError, match="evaluation: 1 dialogues without a focal turn"):
        state_shift(ROWS, silent)
