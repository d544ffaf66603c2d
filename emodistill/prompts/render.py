"""Records -> chat messages, by a prompt pack (paper, Appendix P; the built-in texts are our own).

The built-in focal prompt has five blocks in a fixed order: rules, role and context form the
system message; history, emotion and the cue the user message. All of a dialogue's turns therefore
share what precedes the emotion. Other packs lay the parts out as they like. Scenario fields and
utterances enter as data: nothing in them is expanded again, each stays in one line, and none can
close the fence around it (`<utterance>`).
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from emodistill.domains.registry import format_number, format_value, get_domain
from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS, NEUTRAL
from emodistill.errors import InputError
from emodistill.prompts.packs import BLOCKS, BUILT_IN, CASE_BLOCKS, MESSAGES, PromptPack
from emodistill.prompts.templates import (
    Template,
    as_data,
    check_known,
    fill,
    names_in,
    without_paragraph,
)
from emodistill.records import Outcome, Turn

_READING = BUILT_IN / "reading.toml"
_HEARING = BUILT_IN / "hearing.toml"

Message = dict[str, str]
"""One chat message in the OpenAI wire format: `{"role": …, "content": …}`."""


def focal_messages(
    pack: PromptPack, scenario: Scenario, turns: Sequence[Turn], emotion: str | None
) -> list[Message]:
    """The focal agent's prompt for its next turn; `emotion=None` leaves the block out.

    The block is the paragraph with {emotion}, with the blank lines around it.

    Raises:
      InputError: the pack lacks the domain or names what the scenario lacks, or without an emotion
        something else would go with its paragraph.
    """
    figures = _figures("target", scenario.domain, scenario.focal_target)
    return _player_messages(pack, "focal.toml", scenario, turns, figures, emotion)


def counterparty_messages(
    pack: PromptPack, scenario: Scenario, turns: Sequence[Turn], emotion: str | None = NEUTRAL
) -> list[Message]:
    """The counterparty's prompt for its next turn, likewise."""
    figures = _figures("anchor", scenario.domain, scenario.counterparty_anchor)
    return _player_messages(pack, "counterparty.toml", scenario, turns, figures, emotion)


def reading_messages(domain: str, utterance: str, heard: str | None = None) -> list[Message]:
    """The prompt for a language model that reads offer and act of an utterance.

    Args:
      heard: what the other side said last; None where the talks begin.
    """
    texts, game = _instrument(_READING), get_domain(domain)
    values = {
        "quantity": game.quantity,
        "example": texts["examples"][game.unit],
        "heard": texts["nothing_heard"] if heard is None else as_data(heard),
        "utterance": as_data(utterance),
    }
    templates = {role: Template(f"reading.toml: {role}", texts[role]) for role in MESSAGES}
    return _chat(templates, values)


def reading_prompt_sha256() -> str:
    """The hash of the reader's prompt, for manifests."""
    return hashlib.sha256(_READING.read_bytes()).hexdigest()


def hearing_messages(utterance: str) -> list[Message]:
    """The prompt for a language model that names the emotion of an utterance."""
    texts = _instrument(_HEARING)
    values = {"labels": ", ".join(EMOTIONS), "utterance": as_data(utterance)}
    templates = {role: Template(f"hearing.toml: {role}", texts[role]) for role in MESSAGES}
    return _chat(templates, values)


def hearing_prompt_sha256() -> str:
    """The hash of the prompt for emotions, for manifests."""
    return hashlib.sha256(_HEARING.read_bytes()).hexdigest()


@cache
def _instrument(path: Path) -> Mapping[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def turn_judge_messages(
    pack: PromptPack, scenario: Scenario, turns: Sequence[Turn], turn_index: int
) -> list[Message]:
    """The judge's prompt for the focal turn `turns[turn_index]`, with the history before it."""
    turn = turns[turn_index]
    if turn.speaker != "focal":
        raise InputError(f"turn {turn_index} is the counterparty's; the judge scores focal turns.")
    judged = {"utterance": as_data(turn.text)}
    return _judge_messages(pack, scenario, "turn", turns[:turn_index], judged)


def dialogue_judge_messages(
    pack: PromptPack,
    scenario: Scenario,
    turns: Sequence[Turn],
    outcome: Outcome,
    final_value: float | None,
) -> list[Message]:
    """The judge's prompt for a whole dialogue and how it ended."""
    value = "" if final_value is None else format_value(scenario.domain, final_value)
    ending = Template("judge.toml [ending]", pack.judge["ending"][outcome])
    judged = {"ending": fill(ending, {"value": value})}
    return _judge_messages(pack, scenario, "dialogue", turns, judged)


def _judge_messages(
    pack: PromptPack,
    scenario: Scenario,
    level: str,
    turns: Sequence[Turn],
    judged: Mapping[str, str],
) -> list[Message]:
    domain = scenario.domain
    section = _section(pack.judge, scenario, "judge.toml")
    of_talks = _texts(pack.focal, "focal.toml", scenario)
    labels = _labels(of_talks)
    figures = _figures("target", domain, scenario.focal_target)
    known = {**_facts(scenario), **figures, **labels}
    own = section.get(level, {})
    messages = {
        role: Template(f"judge.toml [{f'{domain}.' if role in own else ''}{level}]: {role}", text)
        for role in MESSAGES
        if (text := {**pack.judge[level], **own}.get(role))
    }
    blocks = {
        name: Template(f"judge.toml [{domain}]: {name}", section[name])
        for name in _used(CASE_BLOCKS, messages)
    }
    parts = {"history": _history(of_talks, turns, known, is_focal=True), **judged}
    check_known(
        [(block, known) for block in blocks.values()]
        + [(message, {*known, *blocks, *parts}) for message in messages.values()]
    )
    values = {**known, **parts, **{name: fill(block, known) for name, block in blocks.items()}}
    # The built-in rubric speaks of "the creditor", while labels of lines have a capital letter.
    lowered = {**values, "focal": labels["focal"].lower()}
    return [
        message
        for role, template in messages.items()
        for message in _chat({role: template}, lowered if role == "system" else values)
    ]


def _player_messages(
    pack: PromptPack,
    file: str,
    scenario: Scenario,
    turns: Sequence[Turn],
    figures: Mapping[str, str],
    emotion: str | None,
) -> list[Message]:
    """A player's prompt: what it is shown of the game, the talks and its block of emotion."""
    texts = _texts(getattr(pack, file.removesuffix(".toml")), file, scenario)
    messages = {role: texts[role] for role in MESSAGES if role in texts and texts[role].text}
    if emotion is None:
        messages = {
            role: without_paragraph(template, "emotion") for role, template in messages.items()
        }
    known = {**_facts(scenario), **figures, **_labels(texts)}
    blocks = {name: texts[name] for name in _used(BLOCKS, messages)}
    parts = {
        "history": "",
        "emotion": "" if emotion is None else pack.emotion_blocks[emotion],
    }
    check_known(
        [(block, known) for block in blocks.values()]
        + [(message, {*known, *blocks, *parts}) for message in messages.values()]
    )
    parts["history"] = _history(texts, turns, known, is_focal=file == "focal.toml")
    filled = {name: fill(block, known) for name, block in blocks.items()}
    # The cue is the end of a message, the other blocks are set into lines of the template.
    filled = {name: text if name == "cue" else text.strip() for name, text in filled.items()}
    return _chat(messages, {**known, **filled, **parts})


def _chat(templates: Mapping[str, Template], values: Mapping[str, str]) -> list[Message]:
    """The messages, each filled with the values; one that is empty is not sent."""
    filled = ((role, fill(template, values).strip()) for role, template in templates.items())
    return [{"role": role, "content": content} for role, content in filled if content]


def _texts(texts: Mapping[str, Any], file: str, scenario: Scenario) -> dict[str, Template]:
    """The texts of a player's file for a domain, whose own go before the file's."""
    section = _section(texts, scenario, file)
    found = {
        key: Template(f"{file}: {key}", text)
        for key, text in texts.items()
        if isinstance(text, str)
    }
    return found | {
        key: Template(f"{file} [{scenario.domain}]: {key}", text) for key, text in section.items()
    }


def _used(names: Iterable[str], messages: Mapping[str, Template]) -> list[str]:
    used = {name for template in messages.values() for name in names_in(template.text)}
    return [name for name in names if name in used]


def _section(texts: Mapping[str, Any], scenario: Scenario, file: str) -> Mapping[str, Any]:
    if scenario.domain not in texts:
        raise InputError(f"{file} has no section [{scenario.domain}].")
    return texts[scenario.domain]


def _labels(texts: Mapping[str, Template]) -> dict[str, str]:
    return {role: texts[role].text for role in ("focal", "counterparty")}


def _figures(name: str, domain: str, value: float) -> dict[str, str]:
    """A figure of the game as people say it, and as a number alone."""
    return {name: format_value(domain, value), f"{name}_value": format_number(domain, value)}


def _facts(scenario: Scenario) -> dict[str, str]:
    return {name: as_data(str(value)) for name, value in scenario.fields.items()}


def _history(
    texts: Mapping[str, Template],
    turns: Sequence[Turn],
    known: Mapping[str, str],
    *,
    is_focal: bool,
) -> str:
    if not turns:  # only the focal side opens
        return fill(texts["opening"], known) if is_focal else ""
    lines = ({"speaker": texts[turn.speaker].text, "text": as_data(turn.text)} for turn in turns)
    return "\n".join(fill(texts["line"], line) for line in lines)
