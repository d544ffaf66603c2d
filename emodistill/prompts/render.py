"""Records -> chat messages, by a pack of four TOML files (paper, Appendix P; our own wording).

The focal prompt has five blocks in a fixed order: rules, role and context form the system
message; history, emotion and the cue the user message. All of a dialogue's turns therefore share
what precedes the emotion. Scenario fields and utterances enter as data: nothing in them is
expanded again, each stays in one line, and none can close the fence around it (`<utterance>`).
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

from emodistill.domains.registry import DOMAINS, format_value, get_domain
from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS, NEUTRAL
from emodistill.errors import InputError
from emodistill.records import Outcome, Turn
from emodistill.untrusted import brief, one_line, parse_toml, read_bytes

_BUILT_IN = Path(__file__).parent
_OFFERS = _BUILT_IN / "offers.toml"
_BLOCKS = ("rules", "role", "context")
FILES = ("focal.toml", "counterparty.toml", "judge.toml", "emotions.toml")

_FENCE = re.compile(r"(?i)<(?=\s*/?\s*(?:case|talks|utterance)\b)")

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
        template has stray braces; the message names the file and the text. A placeholder that
        nothing is known about is an error where it is filled.
    """
    directory = directory or _BUILT_IN
    raw: dict[str, bytes] = {}
    parsed: dict[str, dict[str, Any]] = {}
    for name in FILES:
        path = directory / name
        try:
            raw[name] = read_bytes(path)
            parsed[name] = parse_toml(raw[name])
        except OSError as error:
            raise InputError(
                f"prompt pack {directory}: can't read {name} ({error.strerror}). A pack has the "
                f"files {', '.join(FILES)}."
            ) from None
        except ValueError as error:
            raise InputError(f"{path}: not valid TOML: {brief(error)}.") from None
        built_in = tomllib.loads((_BUILT_IN / name).read_text(encoding="utf-8"))
        _check_texts(parsed[name], built_in, path, str(path))
    emotions, path = parsed["emotions.toml"], directory / "emotions.toml"
    fillings = _table(emotions, "fillings", path)
    if missing := [label for label in EMOTIONS if label not in fillings]:
        raise InputError(f"{path}: no filling for {', '.join(missing)}.")
    return PromptPack(
        **{family: parsed[f"{family}.toml"] for family in ("focal", "counterparty", "judge")},
        emotion_blocks={
            label: _expand(emotions["template"], _table(fillings, label, path), f"{path} [{label}]")
            for label in EMOTIONS
        },
        sha256=hashlib.sha256(b"\0".join(raw[name] for name in FILES)).hexdigest(),
        rubric_sha256=hashlib.sha256(raw["judge.toml"]).hexdigest(),
    )


def _check_texts(
    texts: Mapping[str, Any], model: Mapping[str, Any], path: Path, where: str
) -> None:
    """Refuse texts that lack one of the built-in pack's, or whose braces don't match.

    A pack may leave domains out that it is not used for, and say of emotions what it wants.
    """
    for key, value in model.items():
        if isinstance(value, str):
            if not isinstance(texts.get(key), str):
                raise InputError(f"{where}: `{key}` must be there, and be a text.")
            try:
                _parsed(texts[key])
            except ValueError as error:
                raise InputError(
                    f"{where}: {key}: {error}; write {{{{ and }}}} for plain braces."
                ) from None
        elif key != "fillings" and (key in texts or key not in DOMAINS):
            _check_texts(_table(texts, key, path), value, path, f"{path} [{key}]")


def _table(parsed: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    if not isinstance(parsed.get(key), Mapping):
        raise InputError(f"{path}: the section [{key}] must be there, with `name = value` lines.")
    return parsed[key]


def focal_messages(
    pack: PromptPack, scenario: Scenario, turns: Sequence[Turn], emotion: str | None
) -> list[Message]:
    """The focal agent's prompt for its next turn; `emotion=None` leaves the block out."""
    block = ""
    if emotion is not None:
        tone = {"emotion": pack.emotion_blocks[emotion]}
        block = _fill(pack.focal, "emotion", tone, "focal.toml")
    shown = {"target": format_value(scenario.domain, scenario.focal_target)}
    return _player_messages(pack.focal, "focal.toml", scenario, turns, shown, block)


def counterparty_messages(
    pack: PromptPack, scenario: Scenario, turns: Sequence[Turn], emotion: str | None = NEUTRAL
) -> list[Message]:
    """The counterparty's prompt for its next turn; `emotion=None` leaves the block out.

    Packs have no text of its own around this block: it is the paragraph of `user` with {emotion}.
    """
    texts, block = pack.counterparty, ""
    if emotion is None:
        texts = {**texts, "user": _without_emotion(texts["user"])}
    else:
        block = pack.emotion_blocks[emotion]
    shown = {"anchor": format_value(scenario.domain, scenario.counterparty_anchor)}
    return _player_messages(texts, "counterparty.toml", scenario, turns, shown, block)


def _without_emotion(template: str) -> str:
    """The template without the paragraph that holds {emotion} and nothing else to fill in."""
    paragraphs = template.split("\n\n")
    others = (p for p in paragraphs if {name for _, name in _parsed(p) if name} != {"emotion"})
    return "\n\n".join(others)


def offer_messages(domain: str, utterance: str) -> list[Message]:
    """The prompt for a language model that reads the offer out of an utterance."""
    texts, game = _offer_texts(), get_domain(domain)
    values = {"quantity": game.quantity, "example": texts["examples"][game.unit]}
    return _chat(texts, values, values | {"utterance": _data(utterance)}, "offers.toml")


def offer_prompt_sha256() -> str:
    """The hash of the offer reader's prompt, for manifests."""
    return hashlib.sha256(_OFFERS.read_bytes()).hexdigest()


@cache
def _offer_texts() -> Mapping[str, Any]:
    return tomllib.loads(_OFFERS.read_text(encoding="utf-8"))


def turn_judge_messages(
    pack: PromptPack, scenario: Scenario, turns: Sequence[Turn], turn_index: int
) -> list[Message]:
    """The judge's prompt for the focal turn `turns[turn_index]`, with the history before it."""
    turn = turns[turn_index]
    if turn.speaker != "focal":
        raise InputError(f"turn {turn_index} is the counterparty's; the judge scores focal turns.")
    judged = {"utterance": _data(turn.text)}
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
    ending = _expand(pack.judge["ending"][outcome], {"value": value}, "judge.toml [ending]")
    return _judge_messages(pack, scenario, "dialogue", turns, {"ending": ending})


def _judge_messages(
    pack: PromptPack,
    scenario: Scenario,
    level: str,
    turns: Sequence[Turn],
    judged: Mapping[str, str],
) -> list[Message]:
    case = _domain(pack.judge, scenario, "judge.toml")
    roles = _domain(pack.focal, scenario, "focal.toml")
    target = {"target": format_value(scenario.domain, scenario.focal_target)}
    where = f"judge.toml [{scenario.domain}]"
    user = {
        "case": _expand(case["case"], {**_facts(scenario), **target}, where),
        **target,
        "focal": roles["focal"],
        "history": _history(pack.focal, roles, turns, "focal.toml"),
        **judged,
    }
    system = {"focal": roles["focal"].lower(), "direction": case["direction"]}
    return _chat(pack.judge[level], system, user, f"judge.toml [{level}]")


def _player_messages(
    texts: Mapping[str, Any],
    file: str,
    scenario: Scenario,
    turns: Sequence[Turn],
    shown: Mapping[str, str],
    emotion: str,
) -> list[Message]:
    """A player's prompt: what it is shown of the game, the talks and its block of emotion."""
    domain = _domain(texts, scenario, file)
    facts = {**_facts(scenario), **shown}
    user = {
        "history": _history(texts, domain, turns, file),
        "emotion": emotion,
        "cue": _fill(texts, "cue", domain, file),
    }
    system = {name: _fill(domain, name, facts, file).strip() for name in _BLOCKS}
    return _chat(texts, system, user, file)


def _chat(
    texts: Mapping[str, Any], system: Mapping[str, Any], user: Mapping[str, Any], where: str
) -> list[Message]:
    """The templates `system` and `user` of `texts`, each filled with its values."""
    return [
        {"role": role, "content": _fill(texts, role, values, where).strip()}
        for role, values in (("system", system), ("user", user))
    ]


def _domain(texts: Mapping[str, Any], scenario: Scenario, file: str) -> Mapping[str, str]:
    if scenario.domain not in texts:
        raise InputError(f"{file} has no section [{scenario.domain}].")
    return texts[scenario.domain]


def _facts(scenario: Scenario) -> dict[str, str]:
    return {name: _data(str(value)) for name, value in scenario.fields.items()}


def _data(text: str) -> str:
    """A text from outside as prompts hold it: in one line, and with no tag of a fence."""
    return _FENCE.sub("‹", one_line(text))


def _history(
    texts: Mapping[str, Any], domain: Mapping[str, str], turns: Sequence[Turn], file: str
) -> str:
    if not turns:  # only the focal side opens
        return _fill(texts, "opening", domain, file) if file == "focal.toml" else ""
    lines = ({"speaker": domain[turn.speaker], "text": _data(turn.text)} for turn in turns)
    return "\n".join(_fill(texts, "line", line, file) for line in lines)


@cache
def _parsed(template: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((text, name) for text, name, _, _ in Formatter().parse(template))


def _fill(texts: Mapping[str, Any], key: str, values: Mapping[str, Any], file: str) -> str:
    return _expand(texts[key], values, f"{file}: {key}")


def _expand(template: str, values: Mapping[str, Any], where: str) -> str:
    """Replace each `{name}` once; what is filled in is data and is not looked at again.

    Templates keep to this subset of `str.format` (no attributes, no format specifications, let
    alone a template language): packs are hashed into every record, so that another syntax would be
    another experiment.
    """
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
