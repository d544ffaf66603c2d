"""Records -> chat messages, by a pack of four TOML files (paper, Appendix P; our own wording).

The focal prompt has five blocks in a fixed order: rules, role and context form the system
message; history, emotion and the cue the user message. All of a dialogue's turns therefore share
what precedes the emotion. Scenario fields enter as data: nothing in them is expanded again.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any

from emodistill.domains.registry import DOMAINS, format_value, get_domain
from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS, NEUTRAL
from emodistill.errors import InputError
from emodistill.records import Outcome, Turn

_OFFERS = resources.files("emodistill.prompts") / "offers.toml"
FILES = ("focal.toml", "counterparty.toml", "judge.toml", "emotions.toml")

_BLOCKS = ("rules", "role", "context")
_TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "focal.toml": {
        "": ("system", "user", "emotion", "opening", "cue", "line"),
        "domain": ("focal", "counterparty", *_BLOCKS),
    },
    "counterparty.toml": {
        "": ("system", "user", "cue", "line"),
        "domain": ("focal", "counterparty", *_BLOCKS),
    },
    "judge.toml": {
        "turn": ("system", "user"),
        "dialogue": ("system", "user"),
        "ending": ("accepted", "breakdown", "ongoing"),
        "domain": ("direction", "case"),
    },
    "emotions.toml": {"": ("template",)},
}
"""The texts of each file by section; a pack may leave domains out that it is not used for."""


Message = dict[str, str]
"""One chat message in the OpenAI wire format: `{"role": …, "content": …}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPack:
    """The texts of all four prompt families and the hashes that manifests record."""

    focal: Mapping[str, Any]
    counterparty: Mapping[str, Any]
    judge: Mapping[str, Any]
    emotion_blocks: Mapping[str, str]
    sha256: str
    rubric_sha256: str


def load_pack(directory: Path | None = None) -> PromptPack:
    """The built-in pack, or the one in `directory` (the same four file names).

    Raises:
      InputError: a file is missing or is no TOML, a text or an emotion's filling is missing, or a
        template has stray braces; the message names the file and the place. A placeholder that
        nothing is known about is an error where it is filled.
    """
    return _builtin_pack() if directory is None else _read_pack(directory)


@cache
def _builtin_pack() -> PromptPack:
    with resources.as_file(resources.files("emodistill.prompts")) as directory:
        return _read_pack(directory)


def _read_pack(directory: Path) -> PromptPack:
    raw: dict[str, bytes] = {}
    parsed: dict[str, dict[str, Any]] = {}
    for name in FILES:
        path = directory / name
        try:
            raw[name] = path.read_bytes()
            parsed[name] = tomllib.loads(raw[name].decode())
        except OSError as error:
            raise InputError(
                f"prompt pack {directory}: can't read {name} ({error.strerror}). A pack has the "
                f"files {', '.join(FILES)}."
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not valid TOML: {error}.") from None
        _check_texts(parsed[name], name, path)
    emotions, path = parsed["emotions.toml"], directory / "emotions.toml"
    fillings = _table(emotions, "fillings", path)
    if missing := [label for label in EMOTIONS if label not in fillings]:
        raise InputError(f"{path}: no filling for {', '.join(missing)}.")
    return PromptPack(
        focal=parsed["focal.toml"],
        counterparty=parsed["counterparty.toml"],
        judge=parsed["judge.toml"],
        emotion_blocks={
            label: _fill(emotions["template"], _table(fillings, label, path), f"{path} [{label}]")
            for label in EMOTIONS
        },
        sha256=hashlib.sha256(b"\0".join(raw[name] for name in FILES)).hexdigest(),
        rubric_sha256=hashlib.sha256(raw["judge.toml"]).hexdigest(),
    )


def _check_texts(parsed: Mapping[str, Any], name: str, path: Path) -> None:
    for section, keys in _TEMPLATES[name].items():
        for part in DOMAINS if section == "domain" else (section,):
            if section == "domain" and part not in parsed:
                continue
            where = f"{path} [{part}]" if part else str(path)
            table = _table(parsed, part, path) if part else parsed
            for key in keys:
                if not isinstance(table.get(key), str):
                    raise InputError(f"{where}: `{key}` must be there, and be a text.")
                try:
                    _parsed(table[key])
                except ValueError as error:
                    raise InputError(
                        f"{where}: {key}: {error}; write {{{{ and }}}} for plain braces."
                    ) from None


def _table(parsed: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    if not isinstance(parsed.get(key), Mapping):
        raise InputError(f"{path}: the section [{key}] must be there, with `name = value` lines.")
    return parsed[key]


def focal_messages(
    pack: PromptPack, scenario: Scenario, turns: Sequence[Turn], emotion: str | None
) -> list[Message]:
    """The focal agent's prompt for its next turn; `emotion=None` leaves the block out."""
    texts, domain = pack.focal, _domain(pack.focal, scenario, "focal.toml")
    values = _values(scenario, target=scenario.focal_target)
    block = ""
    if emotion is not None:
        tone = {"emotion": pack.emotion_blocks[emotion]}
        block = _fill(texts["emotion"], tone, "focal.toml: emotion")
    user = {
        "history": _history(texts, domain, turns, "focal.toml", empty=texts["opening"]),
        "emotion": block,
        "cue": _fill(texts["cue"], domain, "focal.toml: cue"),
    }
    system = _system(texts, domain, values, "focal.toml")
    return _chat(system, texts["user"], user, "focal.toml: user")


def counterparty_messages(
    pack: PromptPack, scenario: Scenario, turns: Sequence[Turn], emotion: str | None = NEUTRAL
) -> list[Message]:
    """The counterparty's prompt for its next turn; `emotion=None` leaves the block out.

    Packs have no text of its own around this block: it is the paragraph of `user` with {emotion}.
    """
    texts = pack.counterparty
    domain = _domain(texts, scenario, "counterparty.toml")
    values = _values(scenario, anchor=scenario.counterparty_anchor)
    user = {
        "history": _history(texts, domain, turns, "counterparty.toml", empty=""),
        "emotion": "" if emotion is None else pack.emotion_blocks[emotion],
        "cue": _fill(texts["cue"], domain, "counterparty.toml: cue"),
    }
    system = _system(texts, domain, values, "counterparty.toml")
    template = texts["user"] if emotion is not None else _without_emotion(texts["user"])
    return _chat(system, template, user, "counterparty.toml: user")


def _without_emotion(template: str) -> str:
    """The template without the paragraph that holds {emotion} and nothing else to fill in."""
    paragraphs = template.split("\n\n")
    kept = (p for p in paragraphs if {name for _, name in _parsed(p) if name} != {"emotion"})
    return "\n\n".join(kept)


def offer_messages(domain: str, utterance: str) -> list[Message]:
    """The prompt for a language model that reads the offer out of an utterance."""
    texts, game = _offer_texts(), get_domain(domain)
    values = {"quantity": game.quantity, "example": texts["examples"][game.unit]}
    where = "offers.toml"
    system = _fill(texts["system"], values, f"{where}: system")
    return _chat(system, texts["user"], values | {"utterance": utterance}, f"{where}: user")


def offer_prompt_sha256() -> str:
    """The hash of the offer reader's prompt, for manifests."""
    return hashlib.sha256(_OFFERS.read_bytes()).hexdigest()


@cache
def _offer_texts() -> Mapping[str, Any]:
    return tomllib.loads(_OFFERS.read_text())


def turn_judge_messages(
    pack: PromptPack, scenario: Scenario, turns: Sequence[Turn], turn_index: int
) -> list[Message]:
    """The judge's prompt for the focal turn `turns[turn_index]`, with the history before it."""
    turn = turns[turn_index]
    if turn.speaker != "focal":
        raise InputError(f"turn {turn_index} is the counterparty's; the judge scores focal turns.")
    extra = {"utterance": turn.text}
    return _judge_messages(pack, scenario, "turn", turns[:turn_index], extra)


def dialogue_judge_messages(
    pack: PromptPack,
    scenario: Scenario,
    turns: Sequence[Turn],
    outcome: Outcome,
    final_value: float | None,
) -> list[Message]:
    """The judge's prompt for a whole dialogue and how it ended."""
    value = "" if final_value is None else format_value(scenario.domain, final_value)
    ending = _fill(pack.judge["ending"][outcome], {"value": value}, "judge.toml [ending]")
    return _judge_messages(pack, scenario, "dialogue", turns, {"ending": ending})


def _judge_messages(
    pack: PromptPack,
    scenario: Scenario,
    level: str,
    turns: Sequence[Turn],
    extra: Mapping[str, str],
) -> list[Message]:
    rubric, case = pack.judge[level], _domain(pack.judge, scenario, "judge.toml")
    roles = _domain(pack.focal, scenario, "focal.toml")
    values = _values(scenario, target=scenario.focal_target)
    shared = {"focal": roles["focal"].lower(), "direction": case["direction"]}
    user = {
        "case": _fill(case["case"], values, f"judge.toml [{scenario.domain}]"),
        "target": values["target"],
        "focal": roles["focal"],
        "history": _history(pack.focal, roles, turns, "focal.toml", empty=pack.focal["opening"]),
        **extra,
    }
    where = f"judge.toml [{level}]"
    system = _fill(rubric["system"], shared, f"{where}: system")
    return _chat(system, rubric["user"], user, f"{where}: user")


def _system(
    texts: Mapping[str, Any], domain: Mapping[str, str], values: Mapping[str, Any], file: str
) -> str:
    blocks = {name: _fill(domain[name], values, f"{file}: {name}").strip() for name in _BLOCKS}
    return _fill(texts["system"], blocks, f"{file}: system")


def _chat(system: str, template: str, values: Mapping[str, str], where: str) -> list[Message]:
    user = _fill(template, values, where)
    return [
        {"role": "system", "content": system.strip()},
        {"role": "user", "content": user.strip()},
    ]


def _domain(texts: Mapping[str, Any], scenario: Scenario, file: str) -> Mapping[str, str]:
    if scenario.domain not in texts:
        raise InputError(f"{file} has no section [{scenario.domain}].")
    return texts[scenario.domain]


def _values(scenario: Scenario, **values: float) -> dict[str, Any]:
    shown = {name: format_value(scenario.domain, value) for name, value in values.items()}
    return {**scenario.fields, **shown}


def _history(
    texts: Mapping[str, Any],
    domain: Mapping[str, str],
    turns: Sequence[Turn],
    file: str,
    *,
    empty: str,
) -> str:
    if not turns:
        return _fill(empty, domain, f"{file}: opening")
    lines = ({"speaker": domain[turn.speaker], "text": turn.text} for turn in turns)
    return "\n".join(_fill(texts["line"], line, f"{file}: line") for line in lines)


@cache
def _parsed(template: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((text, name) for text, name, _, _ in Formatter().parse(template))


def _fill(template: str, values: Mapping[str, Any], where: str) -> str:
    """Replace `{name}` once; what is filled in is data and is not looked at again."""
    parts = []
    for text, name in _parsed(template):
        parts.append(text)
        if name is not None:
            if name not in values:
                raise InputError(
                    f"{where}: nothing is known as {{{name}}}; there is "
                    f"{', '.join(sorted(values))}."
                )
            parts.append(str(values[name]))
    return "".join(parts)
