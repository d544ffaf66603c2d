"""Selectors: what they choose, how often, and what they refuse to read."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.negotiation.states import DialogueState, feature_names, features
from emodistill.seeding import stream
from emodistill.selectors import FixedSelector, IQLSelector, RandomSelector
from emodistill.train.selector_files import (
    ARRAYS,
    DESCRIPTION,
    HEADS,
    SelectorNetworks,
    load_selector,
    save_selector,
)

STATE = DialogueState(
    focal_target=30.0,
    counterparty_anchor=90.0,
    max_turns=30,
    focal_offers=(30.0, 35.0),
    counterparty_offers=(90.0, 75.0),
    emotions=("anger", "joy"),
)


def networks(state="geometry", seed=0, width=16):
    rng = np.random.default_rng(seed)
    made = {}
    for name, outputs in HEADS.items():
        sizes = [len(feature_names(state)), width, width, outputs]
        made[name] = tuple(
            (
                rng.normal(size=shape).astype(np.float32) / 2,
                rng.normal(size=shape[1]).astype(np.float32),
            )
            for shape in itertools.pairwise(sizes)
        )
    return SelectorNetworks(**made, state=state, advantage_scale=0.5, settings={"seed": seed})


def shares(selector, num_draws=6_000):
    rng = stream(0, "draws")
    drawn = [selector.choose(STATE, rng) for _ in range(num_draws)]
    return np.array([drawn.count(label) for label in EMOTIONS]) / num_draws


def test_fixed_and_random():
    rng = stream(0, "test")
    assert {FixedSelector("fear").choose(STATE, rng) for _ in range(5)} == {"fear"}
    assert FixedSelector(None).choose(STATE, rng) is None
    with pytest.raises(InputError, match="emotion='rage' is none of the 28 labels"):
        FixedSelector("rage")
    found = shares(RandomSelector())
    assert np.abs(found - 1 / 28).max() < 0.012
    draws = [[RandomSelector().choose(STATE, stream(7, "d")) for _ in range(3)] for _ in range(2)]
    assert draws[0] == draws[1]


@pytest.mark.parametrize("policy", ["network", "closed-form"])
def test_iql_draws_follow_the_policy(policy):
    made = networks()
    selector = IQLSelector(networks=made, policy=policy)
    expected = selector.probabilities(STATE)
    assert expected.sum() == pytest.approx(1.0)
    assert expected.max() > 0.1
    assert np.abs(shares(selector) - expected).max() < 0.03
    greedy = dataclasses.replace(selector, greedy=True)
    assert greedy.choose(STATE, stream(0, "any")) == EMOTIONS[int(expected.argmax())]


def test_the_two_policies_are_what_they_say():
    made = networks()
    x = features(STATE)

    def mlp(layers):
        hidden = x
        for kernel, bias in layers[:-1]:
            hidden = np.array([max(0.0, float(h)) for h in hidden @ kernel + bias])
        return hidden @ layers[-1][0] + layers[-1][1]

    def softmax(logits):
        weights = np.exp(np.asarray(logits, np.float64))
        return weights / weights.sum()

    np.testing.assert_allclose(
        IQLSelector(networks=made).probabilities(STATE), softmax(mlp(made.actor)), rtol=1e-4
    )
    advantages = mlp(made.critic) - mlp(made.value)
    np.testing.assert_allclose(
        IQLSelector(networks=made, policy="closed-form").probabilities(STATE),
        softmax(made.advantage_scale * advantages),
        rtol=1e-4,
    )


def test_huge_logits_stay_finite():
    made = networks()
    kernel, bias = made.actor[-1]
    loud = dataclasses.replace(made, actor=(*made.actor[:-1], (kernel * 1e6, bias)))
    probabilities = IQLSelector(networks=loud).probabilities(STATE)
    assert np.isfinite(probabilities).all()
    assert probabilities.sum() == pytest.approx(1.0)


def test_round_trip(tmp_path):
    made = networks("upstream", seed=3)
    save_selector(tmp_path / "iql", made)
    back = IQLSelector.load(tmp_path / "iql", policy="closed-form", greedy=True)
    assert (back.policy, back.greedy) == ("closed-form", True)
    assert (back.networks.state, back.networks.settings) == ("upstream", {"seed": 3})
    assert back.networks.advantage_scale == made.advantage_scale
    for name in HEADS:
        for ours, theirs in zip(getattr(made, name), getattr(back.networks, name), strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])
    assert sorted(path.name for path in (tmp_path / "iql").iterdir()) == [DESCRIPTION, ARRAYS]


def edit(folder, **changes):
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_broken_folders_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no trained selector there\. Run train_iql.py first"):
        load_selector(tmp_path)
    save_selector(tmp_path, networks())
    edit(tmp_path, schema=2)
    with pytest.raises(InputError, match="this version reads schema=1"):
        load_selector(tmp_path)
    edit(tmp_path, schema=1, emotions=["anger"])
    with pytest.raises(InputError, match="its emotions are not the 28 labels"):
        load_selector(tmp_path)
    edit(tmp_path, emotions=list(EMOTIONS), num_layers=4)
    with pytest.raises(InputError, match="value/3/kernel' is missing from the selector"):
        load_selector(tmp_path)
    edit(tmp_path, num_layers=3, num_features=11)
    with pytest.raises(InputError, match=r"value/0 has kernel \(38, 16\).* where 11 inputs arrive"):
        load_selector(tmp_path)
    save_selector(tmp_path, networks())
    torn = (tmp_path / ARRAYS).read_bytes()[:-100]
    (tmp_path / ARRAYS).write_bytes(torn)
    with pytest.raises(InputError, match=r"no readable selector|can't be read"):
        load_selector(tmp_path)
    (tmp_path / ARRAYS).unlink()
    with pytest.raises(InputError, match=r"no readable selector|can't be read"):
        load_selector(tmp_path)
    (tmp_path / DESCRIPTION).write_text("{")
    with pytest.raises(InputError, match=r"no readable selector|can't be read"):
        load_selector(tmp_path)


def test_another_number_of_outputs_or_features_is_refused(tmp_path):
    made = networks()
    kernel, bias = made.critic[-1]
    save_selector(
        tmp_path,
        dataclasses.replace(made, critic=(*made.critic[:-1], (kernel[:, :5], bias[:5]))),
    )
    with pytest.raises(InputError, match="critic gives 5 numbers, not 28"):
        load_selector(tmp_path)
    with pytest.raises(InputError, match="reads 38 features, but state='upstream' has 10"):
        IQLSelector(networks=dataclasses.replace(made, state="upstream"))
    with pytest.raises(InputError, match="policy='best' is neither"):
        IQLSelector(networks=made, policy="best")


def test_extra_arrays_do_no_harm(tmp_path):
    save_selector(tmp_path, networks())
    arrays = load_file(tmp_path / ARRAYS) | {"note": np.zeros(1, np.float32)}
    save_file(arrays, tmp_path / ARRAYS)
    assert IQLSelector.load(tmp_path).choose(STATE, stream(0, "x")) in EMOTIONS
