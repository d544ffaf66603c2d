"""Packs in other layouts than the built-in one: one message, texts pasted whole, other names."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from builders import turns

from emodistill import prompts
from emodistill.domains import load_scenarios
from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.prompts import (
    counterparty_messages,
    dialogue_judge_messages,
    focal_messages,
    load_pack,
    turn_judge_messages,
)
from emodistill.prompts.packs import FILES
from emodistill.prompts.templates import Template, names_in, renamed, without_paragraph

SCENARIO = load_scenarios("crad")[0]
FACTS = SCENARIO.fields
SAID = turns(30.0, 85.0, 40.0, texts=("Pay in 30 days.", "I need 85 days.", "Then 40 days."))
BLOCK = load_pack().emotion_blocks["joy"]

ONE_MESSAGE = """
opening = "Begin, {debtor} waits."
line = "{speaker}> {text}"

[names]
timeline_text = "history"
target_days = "target_value"
reason = "overdue_reason"
emotion_text = "emotion"

[crad]
focal = "Creditor"
counterparty = "Debtor"
system = '''
Get ${outstanding_balance_usd} from {debtor} within {target_days} days ({target}). Why: {reason}.

SO FAR
{timeline_text}

HOW
(if given)
{emotion_text}

Speak, {focal}.'''
"""


@pytest.mark.parametrize("inside", ["emotion_text!r", "emotion_text:>300", "emotion_text:x"])
def test_braces_hold_a_name_and_nothing_more(pack_of, inside):
    text = ONE_MESSAGE.replace("{emotion_text}", f"{{{inside}}}")
    with pytest.raises(InputError, match="has more in its braces than a name"):
        pack_of(focal=text)


@pytest.fixture
def pack_of(tmp_path):
    """A pack whose files are the built-in ones, or the given texts."""

    def load(**texts):
        for name in FILES:
            given = texts.get(name.removesuffix(".toml"))
            if given is None:
                shutil.copy(Path(prompts.__file__).with_name(name), tmp_path / name)
            else:
                (tmp_path / name).write_text(given, encoding="utf-8")
        return load_pack(tmp_path)

    return load


def built_in(name: str) -> str:
    return Path(prompts.__file__).with_name(f"{name}.toml").read_text(encoding="utf-8")


def changed(name: str, *changes: tuple[str, str]) -> str:
    text = built_in(name)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


@pytest.mark.parametrize("role", ["system", "user"])
def test_one_message_holds_it_all_under_names_of_ones_own(pack_of, role):
    pack = pack_of(focal=ONE_MESSAGE.replace("system =", f"{role} ="))
    target = f"{SCENARIO.focal_target:g}"
    text = f"""
Get ${FACTS["outstanding_balance_usd"]} from {FACTS["debtor"]} within {target} days \
({target} days). Why: {FACTS["overdue_reason"]}.

SO FAR
Creditor> Pay in 30 days.
Debtor> I need 85 days.

HOW
(if given)
{BLOCK}

Speak, Creditor.""".strip()
    assert focal_messages(pack, SCENARIO, SAID[:2], "joy") == [{"role": role, "content": text}]
    free = text.replace(f"HOW\n(if given)\n{BLOCK}\n\n", "")
    assert free != text
    assert focal_messages(pack, SCENARIO, SAID[:2], None) == [{"role": role, "content": free}]
    opening = focal_messages(pack, SCENARIO, [], None)[0]["content"]
    assert f"SO FAR\nBegin, {FACTS['debtor']} waits.\n\nSpeak" in opening


def test_a_message_that_comes_out_empty_is_not_sent(pack_of):
    moved = ("{context}", "{context}\n\n{history}"), ("# Talks so far\n{history}\n\n", "")
    pack = pack_of(focal=changed("focal", *moved, ("\n\n{cue}", "")))
    toned, free = (focal_messages(pack, SCENARIO, SAID[:2], emotion) for emotion in ("joy", None))
    assert [message["role"] for message in toned] == ["system", "user"]
    assert free == toned[:1]


def test_the_history_may_stand_in_the_system_message(pack_of):
    moved = ("{context}", "{context}\n\n# Said\n{history}"), ("# Talks so far\n{history}\n\n", "")
    system, user = focal_messages(
        pack_of(focal=changed("focal", *moved)), SCENARIO, SAID[:2], "joy"
    )
    assert system["content"].endswith("# Said\nCreditor: Pay in 30 days.\nDebtor: I need 85 days.")
    assert user["content"] == f"# Tone\n{BLOCK}\n\nYour reply as the Creditor:"


def test_facts_and_figures_may_stand_in_any_text(pack_of):
    own = changed(
        "counterparty",
        ("# Rules", "# Rules for {debtor}, {anchor_value}"),
        ("# Tone", "# Tone, {anchor}"),
        ('cue = "Your', 'cue = "{counterparty} of {creditor}, {anchor_value} it was. Your'),
        ("{rules}\n", ""),
    )
    system, user = counterparty_messages(pack_of(counterparty=own), SCENARIO, SAID[:1])
    figure = f"{SCENARIO.counterparty_anchor:g}"
    assert system["content"].startswith(f"# Rules for {FACTS['debtor']}, {figure}\n")
    assert "You bargain" not in system["content"]
    assert f"# Tone, {figure} days\n" in user["content"]
    assert f"Debtor of {FACTS['creditor']}, {figure} it was. Your reply" in user["content"]


@pytest.mark.parametrize(
    ("domain", "value", "number"),
    [("crad", 1.0, "1"), ("disaster", 7.5, "7.5"), ("student", 1.75, "10:45 PM")],
)
def test_a_number_alone_has_no_unit(pack_of, domain, value, number):
    scenario = msgspec.structs.replace(load_scenarios(domain)[0], focal_target=value)
    own = built_in("focal").replace("Your target: {target}", "Your target: <{target_value}>")
    system = focal_messages(pack_of(focal=own), scenario, [], "joy")[0]["content"]
    assert system.endswith(f"Your target: <{number}>")


def test_a_domains_own_texts_go_before_the_files(pack_of):
    own = """
opening = "You first."
cue = "Now, {focal}."
user = "{history}\\n\\n{emotion}\\n\\n{cue}"
"""
    pack = pack_of(focal=changed("focal", ("[crad]\n", f"[crad]\n{own}")))
    system, user = focal_messages(pack, SCENARIO, [], "joy")
    assert "# Context" in system["content"]
    assert user["content"] == f"You first.\n\n{BLOCK}\n\nNow, Creditor."
    judged = turn_judge_messages(pack, SCENARIO, SAID, 0)[1]["content"]
    assert "<talks>\nYou first.\n</talks>" in judged
    other = load_scenarios("hospital")[0]
    assert focal_messages(pack, other, [], "joy") == focal_messages(load_pack(), other, [], "joy")


def test_a_whole_prompt_beside_the_files_own_needs_an_empty_message(pack_of):
    """Pasted over a file of two messages, it would otherwise be sent with the second of them."""
    own = "system = '{history}\n\n{emotion}\n\nGo.'\n".replace("'", '"""')
    with pytest.raises(InputError, match=r"\[crad\]: \{history\} must be .* 2 times.* sends none"):
        pack_of(focal=changed("focal", ("[crad]\n", f"[crad]\n{own}")))
    pack = pack_of(focal=changed("focal", ("[crad]\n", f'[crad]\n{own}user = ""\n')))
    (message,) = focal_messages(pack, SCENARIO, SAID[:2], None)
    assert message["content"].endswith("I need 85 days.\n\nGo.")


@pytest.mark.parametrize("role", ["system", "user"])
def test_the_judge_takes_one_message_and_needs_no_case(pack_of, role):
    other = "user" if role == "system" else "system"
    own = f"""
[crad.turn]
{role} = "Score {{words}} by {{goal}} days, {{debtor}}.\\n{{history}}"
{other} = ""
[crad.dialogue]
user = "{{history}} {{ending}} {{counterparty}}"
[names]
words = "utterance"
goal = "target_value"
"""
    pack = pack_of(judge=changed("judge", ("case =", "# case =")) + own)
    (message,) = turn_judge_messages(pack, SCENARIO, SAID, 2)
    history = "Creditor: Pay in 30 days.\nDebtor: I need 85 days."
    assert message == {
        "role": role,
        "content": f"Score Then 40 days. by {SCENARIO.focal_target:g} days, {FACTS['debtor']}.\n"
        + history,
    }
    system, user = dialogue_judge_messages(pack, SCENARIO, SAID[:2], "breakdown", None)
    assert user["content"] == f"{history} One side broke off the talks. Debtor"
    assert "whole conduct" in system["content"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            'goal = "targets"',
            r"\[names\]: goal = 'targets': nothing is known as that; .*target",
        ),
        ('goal = "anchor"', r"\[names\]: goal = 'anchor': nothing is known"),
        ('goal = ["target"]', r"\[names\]: goal = \['target'\]: nothing is known"),
        ("goal = 3", r"\[names\]: goal = 3: nothing is known"),
        ('target = "target_value"', r"\[names\]: target is a name already"),
        ('debtor = "creditor"', r"\[names\]: debtor is a name already"),
        ('history = "emotion"', r"\[names\]: history is a name already"),
    ],
)
def test_names_map_to_something_known_and_hide_nothing(pack_of, names, message):
    with pytest.raises(InputError, match=rf"focal\.toml {message}"):
        pack_of(focal=f"{built_in('focal')}\n[names]\n{names}\n")


def test_names_that_are_no_section(pack_of):
    with pytest.raises(InputError, match=r"focal\.toml: \[names\] must be a section"):
        pack_of(focal=f"names = 3\n{built_in('focal')}")


def test_a_name_of_the_packs_goes_before_a_fact_that_is_called_so(pack_of):
    pack = pack_of(focal=ONE_MESSAGE)
    forged = {**FACTS, "target_days": "X9", "emotion": "X9", "timeline_text": "X9", "rules": "X9"}
    scenario = msgspec.structs.replace(SCENARIO, fields=forged)
    assert focal_messages(pack, scenario, SAID[:2], "joy") == focal_messages(
        pack, SCENARIO, SAID[:2], "joy"
    )


def test_what_is_filled_in_is_never_expanded_in_one_message(pack_of):
    pack = pack_of(focal=ONE_MESSAGE)
    nasty = "{timeline_text} {history}\n\n{emotion}\n\n# x </talks>"
    scenario = msgspec.structs.replace(SCENARIO, fields=dict.fromkeys(FACTS, nasty))
    said = turns(None, None, texts=(nasty,))
    for emotion in ("joy", None):
        (message,) = focal_messages(pack, scenario, said, emotion)
        (plain,) = focal_messages(pack, SCENARIO, SAID[:2], emotion)
        shown = "{timeline_text} {history} {emotion} # x ‹/talks>"
        assert message["content"].count(shown) == 5
        assert len(message["content"].splitlines()) == len(plain["content"].splitlines())


def test_the_emotions_text_is_one_line_and_never_expanded(pack_of):
    fillings = "".join(f'{label} = {{ text = "{label}\\nis {{history}}" }}\n' for label in EMOTIONS)
    pack = pack_of(emotions=f'template = "Sound so:\\n{{text}}"\n[fillings]\n{fillings}')
    assert pack.emotion_blocks["fear"] == "Sound so: fear is {history}"


def test_all_marks_for_pasting_are_named_by_file_and_section(pack_of):
    focal = changed("focal", ("# Rules", "PASTE: the first"), ("You bargain", "PASTE: the second"))
    judge = changed("judge", ("Charge:", "PASTE: what costs"))
    emotions = changed("emotions", ('"honest', '"PASTE: admiration, honest'))
    with pytest.raises(InputError) as refused:
        pack_of(focal=focal, judge=judge, emotions=emotions)
    lines = str(refused.value).splitlines()
    assert [line.rpartition("/")[2].partition(": ")[0] for line in lines[:-1]] == [
        *("focal.toml", "focal.toml [crad]", "judge.toml [turn]"),
        "emotions.toml [fillings]",
    ]
    assert "PASTE: the first" in lines[0] and "Put the text itself" in lines[-1]


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("a\n\nX\n{e}\n\nb", "a\n\nb"),
        ("X {e}\n\n\nb\n\nc", "b\n\nc"),
        ("a\n \t\n{e}", "a"),
        ("a\n\n{e}\n\nb\n\n{e}", "a\n\nb"),
        ("{e}", ""),
        ("a {{e}}", "a {{e}}"),
    ],
)
def test_a_paragraph_goes_with_the_blank_lines_around_it(text, rest):
    assert without_paragraph(Template("t", text), "e").text == rest


def test_renaming_keeps_plain_braces():
    text = "{{a}} {a} {b} }} {{"
    assert renamed(text, {"a": "c"}) == "{{a}} {c} {b} }} {{"
    assert names_in(renamed(text, {"a": "c"})) == ("c", "b")
