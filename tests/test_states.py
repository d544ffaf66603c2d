"""The state features: hand-computed values, invariances, bounds."""

import dataclasses

import numpy as np
import pytest

from emodistill.emotions import EMOTION_INDEX, EMOTIONS
from emodistill.errors import InputError
from emodistill.negotiation import DialogueState, features
from emodistill.negotiation.states import feature_names
from emodistill.records import Turn
from emodistill.seeding import stream

STATE = DialogueState(
    focal_target=30.0,
    counterparty_anchor=90.0,
    max_turns=20,
    focal_offers=(30.0, 36.0, None),
    counterparty_offers=(84.0, None, 72.0),
    emotions=("anger", "joy", "anger"),
)


def named(state, kind="geometry"):
    return dict(zip(feature_names(kind), features(state, kind).tolist(), strict=True))


def test_geometry_by_hand():
    got = named(STATE)
    expected = {
        "focal_concession": 0.0,  # no offer in the last turn
        "counterparty_concession": 0.2,  # 84 -> 72 over a gap of 60
        "gap": 0.6,  # 36 against 72
        "focal_position": 0.9,
        "counterparty_position": 0.3,
        "focal_speed": 0.1 / 3,
        "counterparty_speed": 0.1,
        "stalemate": 0.1,  # the focal side's last turn
        "progress": 0.3,
        "repetition": 0.4,  # anger twice, of 5
    }
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-6), name
    assert [e for e in EMOTIONS if got[f"last_emotion={e}"] == 1] == ["anger"]
    assert sum(got[f"last_emotion={e}"] for e in EMOTIONS) == 1


def test_upstream_by_hand():
    got = named(STATE, "upstream")
    expected = {
        "counterparty_concession": 0.2,
        "gap": 0.6,
        "progress": 4 / 20,
        "counterparty_offer_to_anchor": 72 / 90,
        "focal_retreat": 0.1,
        "counterparty_speed": 0.2,
        "counterparty_stalemate": 0.0,
        "deal_probability": 0.5,
        "breakdown_risk": 0.3,
        "last_emotion_index": EMOTION_INDEX["anger"] / 27,
    }
    assert got == {name: pytest.approx(value, abs=1e-6) for name, value in expected.items()}


def test_before_the_first_turn():
    start = DialogueState(focal_target=1.5, counterparty_anchor=4.5, max_turns=30)
    got = named(start)
    assert got.pop("gap") == 1
    assert got.pop("focal_position") == 1
    assert not any(got.values())


def test_no_emotion_is_no_emotion():
    state = dataclasses.replace(STATE, emotions=(None, None, None))
    got = named(state)
    assert got["repetition"] == 0
    assert not any(got[f"last_emotion={e}"] for e in EMOTIONS)


def test_emotions_have_no_order():
    """Renaming the emotion permutes the one-hot and changes nothing else."""
    other = dataclasses.replace(STATE, emotions=("relief", "joy", "relief"))
    a, b = features(STATE), features(other)
    assert np.array_equal(a[:10], b[:10])
    assert np.array_equal(np.sort(a[10:]), np.sort(b[10:]))
    assert not np.array_equal(a, b)


def test_mirrored_games_look_alike():
    def mirrored(offers):
        return tuple(None if offer is None else 120.0 - offer for offer in offers)

    mirror = dataclasses.replace(
        STATE,
        focal_target=90.0,
        counterparty_anchor=30.0,
        focal_offers=mirrored(STATE.focal_offers),
        counterparty_offers=mirrored(STATE.counterparty_offers),
    )
    assert np.allclose(features(STATE), features(mirror))


@pytest.mark.parametrize("kind", ["geometry", "upstream"])
def test_shape_type_and_bounds_hold_for_any_offers(kind):
    rng = stream(0, "states-bounds")
    odd = [None, float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 0.0, 35.0]
    for _ in range(300):
        n = int(rng.integers(0, 12))
        pick = [odd[i] for i in rng.integers(0, len(odd), size=2 * n)]
        state = DialogueState(
            focal_target=float(rng.integers(-5, 5)),
            counterparty_anchor=6.0,
            max_turns=int(rng.integers(1, 30)),
            focal_offers=tuple(pick[:n]),
            counterparty_offers=tuple(pick[n:]),
            emotions=tuple(EMOTIONS[i] for i in rng.integers(0, 28, size=n)),
        )
        vector = features(state, kind)
        assert vector.dtype == np.float32
        assert vector.shape == (len(feature_names(kind)),)
        assert np.isfinite(vector).all()
        assert np.abs(vector).max() <= 3


@pytest.mark.parametrize("kind", ["geometry", "upstream"])
def test_offers_beyond_arithmetic_stay_finite(kind):
    huge = (1.7e308, -1.7e308, 1.7e308)
    state = DialogueState(
        focal_target=1.0,
        counterparty_anchor=0.0,
        max_turns=30,
        focal_offers=huge,
        counterparty_offers=huge[::-1],
        emotions=("joy", "joy", "joy"),
    )
    assert np.isfinite(features(state, kind)).all()


def test_sizes():
    assert len(feature_names("geometry")) == 38
    assert len(feature_names("upstream")) == 10


def test_from_turns_keeps_turns_without_offers():
    turns = [
        Turn(index=0, speaker="focal", emotion="fear", text="35 days.", offer=35.0),
        Turn(index=1, speaker="counterparty", emotion=None, text="Hm.", offer=None),
        Turn(index=2, speaker="focal", emotion=None, text="Well?", offer=None),
    ]
    state = DialogueState.from_turns(STATE, turns, 30)
    assert state.focal_offers == (35.0, None)
    assert state.counterparty_offers == (None,)
    assert state.emotions == ("fear", None)
    assert (state.focal_target, state.counterparty_anchor, state.max_turns) == (30.0, 90.0, 30)


def test_bad_input():
    with pytest.raises(InputError, match="'pixels' is not known; use one of geometry, upstream"):
        features(STATE, "pixels")
    with pytest.raises(InputError, match="'rage' is none of the 28"):
        dataclasses.replace(STATE, emotions=("rage",))
    with pytest.raises(InputError, match="max_turns=0"):
        dataclasses.replace(STATE, max_turns=0)


# The counterparty's role


def dialogue(*offers, emotions=EMOTIONS):
    """Turns of both sides, the focal side first, each under an emotion of its own."""
    return [
        Turn(
            index=index,
            speaker="focal" if index % 2 == 0 else "counterparty",
            emotion=emotions[index % len(emotions)],
            text="…",
            offer=offer,
        )
        for index, offer in enumerate(offers)
    ]


def test_the_counterparty_sees_its_own_side_as_the_focal_one():
    turns = dialogue(30.0, 84.0, 36.0, None, 45.0)
    state = DialogueState.from_turns(STATE, turns, 20, role="counterparty")
    assert (state.focal_target, state.counterparty_anchor) == (90.0, 30.0)
    assert state.focal_offers == (84.0, None)
    assert state.counterparty_offers == (30.0, 36.0, 45.0)
    assert state.emotions == (EMOTIONS[1], EMOTIONS[3])
    got = named(state)
    expected = {
        "focal_concession": 0.0,  # its own last turn named nothing
        "counterparty_concession": 0.15,  # 36 -> 45, toward it
        "gap": 0.65,  # 84 against 45
        "focal_position": 0.9,
        "counterparty_position": 0.25,
        "progress": 0.25,
    }
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-6), name
    assert got[f"last_emotion={EMOTIONS[3]}"] == 1


@pytest.mark.parametrize("kind", ["geometry", "upstream"])
@pytest.mark.parametrize("num_rounds", [0, 1, 4])
def test_both_roles_of_a_symmetric_dialogue_look_alike(kind, num_rounds):
    """Each side concedes alike under the same emotions; one role's gap has the other's sign."""
    game = DialogueState(focal_target=30.0, counterparty_anchor=-30.0, max_turns=20)
    steps = [(30.0 - 6 * i, -30.0 + 6 * i) for i in range(num_rounds)]
    offers = [offer for pair in steps for offer in pair]
    turns = dialogue(*offers, emotions=("joy",))
    state = DialogueState.from_turns(game, turns, 20)
    other = DialogueState.from_turns(game, turns, 20, role="counterparty")
    assert state != other
    assert np.array_equal(features(state, kind)[:3], features(other, kind)[:3])
    assert (other.focal_offers, other.emotions) == (state.counterparty_offers, state.emotions)
    if kind == "geometry":
        a, b = named(state), named(other)
        for mine, theirs in (("focal", "counterparty"), ("counterparty", "focal")):
            assert b[f"{mine}_concession"] == pytest.approx(a[f"{theirs}_concession"])
            assert b[f"{mine}_position"] == pytest.approx(1 - a[f"{theirs}_position"])
        assert np.allclose(features(state), features(other))
