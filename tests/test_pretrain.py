"""What the embedded student is pretrained on, and that the run is made of seeds alone."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from msgspec.structs import replace

from emodistill.domains import DOMAINS, load_scenarios
from emodistill.domains.generator import NUM_SCENARIOS
from emodistill.errors import InputError
from emodistill.model import load_qwen2
from emodistill.prompts import counterparty_messages, focal_messages, load_pack
from emodistill.records import Turn
from emodistill.seeding import stream
from emodistill.simulator.reading import last_figure, messages_text, read_brief
from emodistill.simulator.response_model import expressed
from pretraining import dialogue_rows, pretrain
from pretraining.config import PretrainConfig
from pretraining.corpus import (
    FIGURES,
    bare_pack,
    play_dialogues,
    prompted_replies,
    with_free_facts,
    with_free_figures,
)
from pretraining.dialogue_rows import PROMPT, REPLY, TokenSample, merge_samples
from pretraining.novice import WORDS, given_characters
from pretraining.pretrain import curriculum, make_embedded, new_student
from pretraining.reading_check import CHECKS, findings, unseen_scenarios
from pretraining.voice_check import COLUMNS, MOVES, Begun, begun_replies

PACK = load_pack()


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("prompt", [focal_messages, counterparty_messages])
def test_bare_prompts_still_say_the_game_the_role_and_the_figure(domain, prompt):
    scenario = load_scenarios(domain)[0]
    own = scenario.focal_target if prompt is focal_messages else scenario.counterparty_anchor
    whole, _ = messages_text(prompt(PACK, scenario, (), "joy"))
    facts = set()
    for line in range(4):
        system, user = messages_text(prompt(bare_pack(PACK, line), scenario, (), None))
        brief = read_brief(system)
        assert (brief.domain, brief.own_figure) == (domain, own)
        assert brief.role in user.lower() or prompt is counterparty_messages
        assert len(system) < 0.75 * len(whole)
        facts |= {*brief.facts}
    assert facts
    assert facts <= {*read_brief(whole).facts}


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


@pytest.fixture(scope="module")
def dialogues():
    return play_dialogues(PretrainConfig(num_dialogues=80), "full")


def said(dialogues, role):
    """(prompt, reply) of the novice."""
    return [
        (prompted.messages, text)
        for n, dialogue in enumerate(dialogues)
        for prompted in prompted_replies(dialogue, role, stream(n, "test"), 2)
        for text, is_novice in prompted.replies
        if is_novice
    ]


@pytest.mark.parametrize("role", ["focal", "counterparty"])
def test_the_novice_reads_all_that_it_names(dialogues, role):
    found = [one for messages, text in said(dialogues, role) for one in findings(messages, text)]
    assert {one.check for one in found} == {*CHECKS} - {"ended"}
    assert all(one.holds for one in found)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("You say 40 days. Would 50 days be better?", {"theirs"}),
        ("Still 52 days for me.", {"own"}),
        ("What about 120 days then?", {"between", "possible"}),
        ("The sum is $1. Deal, 61 days.", {"fact"}),
        ("You say 60 days. What about 50 days then?", set()),
    ],
)
def test_what_is_misread_is_found(text, wrong):
    talks = [(30, "Perhaps 30 days?"), (90, "I need 90 days."), (45, "Let me try 45 days.")]
    talks.append((61 if "61" in text else 60, ""))
    turns = [
        Turn(
            index=i,
            speaker="counterparty" if i % 2 else "focal",
            emotion=None,
            text=text or f"I can do {offer} days.",
            offer=offer,
            prompt_tokens=0,
            completion_tokens=0,
            latency_s=0.0,
        )
        for i, (offer, text) in enumerate(talks)
    ]
    game = replace(load_scenarios("crad")[0], focal_target=30.0, counterparty_anchor=90.0)
    found = findings(focal_messages(PACK, game, turns, "joy"), text)
    assert {one.check for one in found if not one.holds} == wrong


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_teacher_s_own_figures_are_right(domain):
    scenarios = [one for one in unseen_scenarios(4) if one.domain == domain]
    begun = [one for scenario in scenarios for one in begun_replies(scenario)]
    assert {one.move for one in begun} <= {*MOVES}
    assert len(begun) > 8
    assert all((one.move, one.verdict(one.rest)) in COLUMNS for one in begun)
    assert not any(one.verdict(one.rest) in ("back", "past") for one in begun)


@pytest.mark.parametrize(
    ("move", "verdicts"),
    [
        ("concede", ["past", "between", "back", "wrong"]),
        ("hold", ["wrong", "right", "wrong", "wrong"]),
        ("accept", ["wrong", "wrong", "wrong", "wrong"]),
    ],
)
def test_figures_in_the_teacher_s_words_are_told_apart(move, verdicts):
    begun = Begun("crad", move, "I can go to", " 40 days.", [], own=40.0, theirs=90.0)
    rests = [" 100 days. Or 50.", " 40 days.", " 39 days", " that."]
    assert [begun.verdict(rest) for rest in rests] == verdicts


def test_the_pipeline_reads_the_novice_as_the_simulator_does(dialogues):
    """Two readers of offers that have nothing in common but what they are to find."""
    for dialogue in dialogues:
        for turn in dialogue.trajectory.turns:
            assert turn.offer == last_figure(turn.text, dialogue.scenario.domain), turn.text


def test_the_novice_gives_ground_fast_and_shows_little(dialogues):
    turns = [
        turn
        for dialogue in dialogues
        for turn in dialogue.trajectory.focal_turns
        if turn.emotion not in (None, "neutral")
    ]
    texts = [(t.emotion, expressed(t.text).emotion) for t in turns if _is_novice(t.text)]
    shown = [found for _, found in texts if found is not None]
    assert 0.1 < len(shown) / len(texts) < 0.45
    assert np.mean([asked == found for asked, found in texts]) < 0.3


def _is_novice(text):
    return any(template.split("{")[0] in text for template in WORDS["concede"] + WORDS["open"])


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("So 14 days for you. What about 76 days then?", "14"),
        ("You say 12:15 AM. Would 11:00 PM be better?", "1215"),
        ("It is 315 days overdue, I know. I would keep 150 days.", "315150"),
        ("Needs: a mask and rope, it says. Let me try 9 minutes.", "a mask and rope"),
    ],
)
def test_the_prompt_decides_figures_and_facts_but_not_concessions(text, given):
    characters = given_characters(text)
    assert "".join(np.array(list(text))[characters]) == given


def test_free_facts_are_words_in_another_order():
    scenario = load_scenarios("disaster")[0]
    drawn = [with_free_facts(scenario, stream(n, "test")).fields for n in range(50)]
    assert with_free_facts(scenario, stream(3, "test")).fields == drawn[3]
    assert len({fields["disaster_type"] for fields in drawn}) == 50
    assert all(fields.keys() == scenario.fields.keys() for fields in drawn)
    ages = with_free_facts(load_scenarios("student")[0], stream(0, "test")).fields["student_age"]
    assert ages == load_scenarios("student")[0].fields["student_age"]


def row(token):
    return merge_samples([TokenSample([token, token], [token, token], [REPLY, REPLY])])


def test_replies_to_one_prompt_share_its_tokens():
    rows = merge_samples([TokenSample([5, 6], [n, 9], [REPLY, REPLY]) for n in (7, 8)])
    # The prompt's last token stands before each reply, which it has to predict.
    assert rows.tokens_BT[0].tolist() == [5, 6, 7, 9, 6, 8, 9]
    assert rows.targets_BT[0].tolist() == [6, 7, 9, 0, 8, 9, 0]
    assert rows.kinds_BT[0].tolist() == [PROMPT, REPLY, REPLY, 0, REPLY, REPLY, 0]


def test_bare_batches_grow_rare():
    config = PretrainConfig(num_steps=200, bare_share=0.4, tokens_per_step=128)
    kinds = [int(rows.tokens_BT[0, 0]) for rows in curriculum([row(1)], [row(2)], config)]
    assert len(kinds) == 200
    assert kinds == [int(r.tokens_BT[0, 0]) for r in curriculum([row(1)], [row(2)], config)]
    is_bare = np.array(kinds) == 1
    assert is_bare[:50].mean() > 0.55 > 0.25 > is_bare[-50:].mean()
    assert is_bare.mean() == pytest.approx(0.4, abs=0.08)


class StoppedError(Exception):
    pass


def test_a_small_run_repeats_itself_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "STEPS_PER_SAVE", 1)
    # Rows of one length: one program to compile.
    monkeypatch.setattr(dialogue_rows, "ROW_MULTIPLE", 2_304)

    config = PretrainConfig(
        num_dialogues=4,
        num_bare_dialogues=4,
        num_steps=3,
        bare_share=0.0,
        tokens_per_step=512,
        vocab_size=320,
        hidden_size=16,
        intermediate_size=16,
        num_layers=2,
        num_heads=2,
    )

    def run(name):
        return make_embedded(dataclasses.replace(config, out=tmp_path / name))

    def stopped(*args):
        for number, rows in enumerate(curriculum(*args)):
            if number == 1:
                raise StoppedError
            yield rows

    first = run("first")
    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(pretrain, "curriculum", stopped)
        run("again")
    again = run("again")
    files = sorted(path.name for path in first.iterdir() if path.is_file())
    assert "model.safetensors" in files
    assert [(first / f).read_bytes() for f in files] == [(again / f).read_bytes() for f in files]

    (new, trained), made = new_student(config, eos_token_id=0), load_qwen2(first)
    states = (nnx.to_flat_state(state) for state in (trained, *map(nnx.state, (new, made))))
    for (path, is_trained), (_, before), (_, after) in zip(*states, strict=True):
        changed = np.asarray(after[...] != before[...].astype(after[...].dtype))
        assert not changed[np.asarray(is_trained[...]) == 0].any(), path
    assert (made.embed_tokens.weight[...] != new.embed_tokens.weight[...]).mean() > 0.9


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokens_per_step": 0}, "tokens_per_step=1?\\d+ must be at least 128"),
        ({"vocab_size": 10}, "vocab_size=\\d+ must be at least 300"),
        ({"hidden_size": 190}, "hidden_size=190 must be an even multiple"),
        ({"num_heads": 3}, "num_heads=3 must be a multiple of num_kv_heads=2"),
    ],
)
def test_impossible_sizes(settings, words):
    with pytest.raises(InputError, match=words):
        PretrainConfig(**settings)
