"""What the embedded student is pretrained on, and that the run is made of seeds alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from emodistill.batches.examples import Example
from emodistill.domains import DOMAINS, load_scenarios
from emodistill.domains.generator import NUM_SCENARIOS
from emodistill.errors import InputError
from emodistill.model import embedded_path, load_qwen2
from emodistill.prompts import focal_messages, load_pack
from emodistill.seeding import stream
from emodistill.simulator.reading import messages_text, read_brief
from pretraining.config import PretrainConfig
from pretraining.corpus import FIGURES, bare_pack, play_dialogues, with_free_figures
from pretraining.dialogue_rows import merge_samples
from pretraining.pretrain import curriculum, make_embedded

PACK = load_pack()


@pytest.mark.parametrize("domain", DOMAINS)
def test_bare_prompts_still_say_the_game_the_role_and_the_target(domain):
    scenario = load_scenarios(domain)[0]
    messages = focal_messages(bare_pack(PACK), scenario, (), None)
    system, user = messages_text(messages)
    brief = read_brief(system)
    assert (brief.domain, brief.own_figure) == (domain, scenario.focal_target)
    assert brief.role in user.lower()
    assert not brief.facts
    whole, _ = messages_text(focal_messages(PACK, scenario, (), "joy"))
    assert len(system) < 0.6 * len(whole)


@pytest.mark.parametrize("domain", DOMAINS)
def test_free_figures_keep_the_direction_and_use_the_whole_range(domain):
    scenario = load_scenarios(domain)[0]
    drawn = [with_free_figures(scenario, stream(n, "test")) for n in range(400)]
    assert with_free_figures(scenario, stream(3, "test")) == drawn[3]
    ends = np.array([(d.focal_target, d.counterparty_anchor) for d in drawn])
    assert (np.sign(ends[:, 0] - ends[:, 1]) == np.sign(scenario.gap)).all()
    allowed = FIGURES[scenario.unit]
    assert np.isin(ends, allowed).all()
    assert np.ptp(ends) > 0.9 * np.ptp(allowed)


def test_pretraining_stays_off_the_scenarios_of_experiments():
    dialogues = play_dialogues(PretrainConfig(num_bare_dialogues=8), "bare")
    assert {d.scenario.domain for d in dialogues} == set(DOMAINS)
    numbers = [int(d.scenario.scenario_id.rpartition("_")[2]) for d in dialogues]
    assert min(numbers) > NUM_SCENARIOS


def row(token):
    ids = np.array([token, token], np.int32)
    example = Example(sample_id="a", prompt_ids=ids, response_ids=ids)
    return merge_samples([example])


def test_bare_batches_grow_rare():
    config = PretrainConfig(num_steps=200, bare_share=0.4, tokens_per_step=128)
    kinds = [int(rows.tokens_BT[0, 0]) for rows in curriculum([row(1)], [row(2)], config)]
    assert len(kinds) == 200
    assert kinds == [int(r.tokens_BT[0, 0]) for r in curriculum([row(1)], [row(2)], config)]
    is_bare = np.array(kinds) == 1
    assert is_bare[:50].mean() > 0.55 > 0.25 > is_bare[-50:].mean()
    assert is_bare.mean() == pytest.approx(0.4, abs=0.08)


def test_a_small_run_writes_a_student_and_repeats_itself(tmp_path):
    def run(name, **settings):
        return make_embedded(
            PretrainConfig(
                out=tmp_path / name,
                num_dialogues=4,
                num_bare_dialogues=4,
                num_steps=2,
                bare_share=0.0,  # rows of one length: one program to compile
                tokens_per_step=512,
                vocab_size=320,
                hidden_size=16,
                intermediate_size=16,
                num_layers=1,
                num_heads=2,
                **settings,
            )
        )

    first, again = run("first"), run("again")
    files = sorted(path.name for path in first.iterdir())
    assert [(first / f).read_bytes() for f in files] == [(again / f).read_bytes() for f in files]
    further = run("further", start=first, seed=1)
    assert (further / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    weights = [load_qwen2(f, dtype=jnp.float32).embed_tokens.weight for f in (first, further)]
    assert not np.array_equal(weights[0], weights[1])
    np.testing.assert_allclose(weights[0], weights[1], atol=0.02)


def test_what_to_start_from_is_looked_at_first(tmp_path):
    with pytest.raises(InputError, match="nowhere is no folder"):
        make_embedded(PretrainConfig(start=tmp_path / "nowhere", out=tmp_path / "out"))
    (tmp_path / "config.json").write_text((embedded_path() / "config.json").read_text())
    with pytest.raises(InputError, match=r"tokenizer\.json is missing"):
        make_embedded(PretrainConfig(start=tmp_path, out=tmp_path / "out"))
    with pytest.raises(InputError, match="write to another folder"):
        make_embedded(PretrainConfig(start=embedded_path(), out=embedded_path()))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokens_per_step": 0}, "tokens_per_step=1?\\d+ must be at least 128"),
        ({"vocab_size": 10}, "vocab_size=\\d+ must be at least 300"),
        ({"hidden_size": 190}, "hidden_size=190 must be an even multiple"),
    ],
)
def test_impossible_sizes(settings, words):
    with pytest.raises(InputError, match=words):
        PretrainConfig(**settings)
