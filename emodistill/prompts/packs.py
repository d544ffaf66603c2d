"""Prompt packs: four TOML files, read and checked (docs/prompts.md).

A pack lays the parts of a prompt out as it likes, in one message or two. What can be known to be
wrong without a scenario is refused when the pack is loaded.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from emodistill.domains.registry import DOMAINS, get_domain
from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError, refuse
from emodistill.prompts.templates import (
    Template,
    as_data,
    check_known,
    fill,
    names_in,
    parsed,
    renamed,
)
from emodistill.untrusted import brief, parse_toml, read_bytes, shown

BUILT_IN = Path(__file__).parent
FILES = ("focal.toml", "counterparty.toml", "judge.toml", "emotions.toml")

MESSAGES = ("system", "user")
BLOCKS = ("rules", "role", "context", "cue")
"""Texts of a player's section (the cue: or of the file) that messages name."""
CASE_BLOCKS = ("case", "direction")
"""The same of the judge's sections."""
LEVELS = ("turn", "dialogue")
FIGURES = {
    "focal.toml": ("target", "target_value"),
    "counterparty.toml": ("anchor", "anchor_value"),
    "judge.toml": ("target", "target_value"),
}
"""What each is shown of the game's figures: nobody sees the other side's."""
_LABELS = ("focal", "counterparty")
_PARTS = {
    "focal.toml": (*BLOCKS, "history", "emotion"),
    "counterparty.toml": (*BLOCKS, "history", "emotion"),
    "judge.toml": (*CASE_BLOCKS, "history", "utterance", "ending"),
}
_OF_FILE = (*MESSAGES, "cue", "line", "opening")
OUTCOMES = ("accepted", "breakdown", "ongoing")
_MARK = re.compile(r"\bPASTE:[^\n]*")


class _Located(NamedTuple):
    where: str
    key: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPack:
    """The texts of all four prompt families and the hashes that manifests record.

    Placeholders have our names throughout; what a pack calls them (`[names]`) is resolved.
    """

    focal: Mapping[str, Any]
    counterparty: Mapping[str, Any]
    judge: Mapping[str, Any]
    emotion_blocks: Mapping[str, str]
    sha256: str
    rubric_sha256: str


def load_pack(directory: Path | None = None) -> PromptPack:
    """The built-in pack, or the one in `directory` (the same four file names).

    Raises:
      InputError: a file is missing or is no TOML; a text that is needed is missing, or one is there
        that nothing reads; a text still has a mark where something is to be pasted; braces are
        stray; `[names]` maps to nothing, or hides a name; the messages lack the talks, or the
        emotion. All that is wrong with the texts is named, by file and section. A placeholder that
        a scenario might fill is an error where it is filled.
    """
    directory = directory or BUILT_IN
    raw: list[bytes] = []
    for name in FILES:
        try:
            raw.append(read_bytes(directory / name))
        except OSError as error:
            raise InputError(
                f"prompt pack {directory}: can't read {name} ({error.strerror}). A pack has the "
                f"files {', '.join(FILES)}."
            ) from None
        except ValueError as error:
            raise InputError(f"{directory / name}: not valid TOML: {brief(error)}.") from None
    return _pack_of(directory, *raw)


@functools.lru_cache(maxsize=4)  # a run reads its pack once for every stage and every check
def _pack_of(directory: Path, *raw_files: bytes) -> PromptPack:
    """The pack whose `FILES` hold these bytes; `directory` is what errors name."""
    raw = dict(zip(FILES, raw_files, strict=True))
    files: dict[str, dict[str, Any]] = {}
    for name in FILES:
        try:
            files[name] = parse_toml(raw[name])
        except ValueError as error:
            raise InputError(f"{directory / name}: not valid TOML: {brief(error)}.") from None
    where = {name: str(directory / name) for name in FILES}
    texts = {name: list(_texts(files[name], where[name])) for name in FILES}
    refuse(
        [mark for found in texts.values() for mark in _marks(found)],
        "Put the text itself in the place of each such mark.",
    )
    refuse([problem for name in FIGURES for problem in _stray_braces(texts[name])])
    names = {name: files[name].pop("names", {}) for name in FIGURES}
    refuse([p for name in FIGURES for p in _name_problems(names[name], name, where[name])])
    files |= {name: _with_our_names(files[name], names[name]) for name in FIGURES}
    problems: list[str] = []
    for name in ("focal.toml", "counterparty.toml"):
        problems += _player_problems(files[name], name, where[name])
    problems += _judge_problems(files["judge.toml"], where["judge.toml"])
    problems += _emotion_problems(files["emotions.toml"], where["emotions.toml"])
    refuse(list(dict.fromkeys(problems)), "docs/prompts.md says what a pack holds.")
    return PromptPack(
        **{family: files[f"{family}.toml"] for family in ("focal", "counterparty", "judge")},
        emotion_blocks=_emotion_blocks(files["emotions.toml"], where["emotions.toml"]),
        sha256=hashlib.sha256(b"\0".join(raw[name] for name in FILES)).hexdigest(),
        rubric_sha256=hashlib.sha256(raw["judge.toml"]).hexdigest(),
    )


def _texts(parsed_file: Mapping[str, Any], where: str, section: str = "") -> Iterator[_Located]:
    """All texts of a file, those of its sections included."""
    for key, value in parsed_file.items():
        if isinstance(value, str):
            yield _Located(f"{where} [{section}]" if section else where, key, value)
        elif isinstance(value, Mapping):
            is_filling = section == "fillings"  # all of them are named together
            inner = f"{section}.{key}" if section and not is_filling else section or key
            yield from _texts(value, where, inner)


def _marks(texts: Iterable[_Located]) -> list[str]:
    """The marks where something is still to be pasted, a line for each section."""
    marks: dict[str, list[str]] = {}
    for where, _, text in texts:
        if found := _MARK.findall(text):
            marks.setdefault(where, []).extend(mark.strip() for mark in found)
    return [f"{where}: {'; '.join(found)}." for where, found in marks.items()]


def _stray_braces(texts: Iterable[_Located]) -> Iterator[str]:
    for where, key, text in texts:
        try:
            parsed(text)
        except ValueError as error:
            yield f"{where}: {key}: {error}; write {{{{ and }}}} for plain braces."


def _name_problems(names: Any, file: str, where: str) -> Iterator[str]:
    """What is wrong with [names]: it may give what is known here more names, and hide none."""
    if not isinstance(names, Mapping):
        yield f'{where}: [names] must be a section of `their_name = "our_name"` lines.'
        return
    fields = {field for domain in DOMAINS for field in get_domain(domain).fields}
    known = {*_LABELS, *FIGURES[file], *_PARTS[file], *fields}
    for theirs, ours in names.items():
        if theirs in known:
            yield f"{where} [names]: {theirs} is a name already, which this would hide."
        if not isinstance(ours, str) or ours not in known:
            yield (
                f"{where} [names]: {theirs} = {shown(ours)}: nothing is known as that; there is "
                f"{', '.join(sorted(known))}."
            )


def _with_our_names(texts: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The texts with our names for theirs; as they are where there are none of those."""
    return {
        key: renamed(value, names)
        if isinstance(value, str)
        else (_with_our_names(value, names) if isinstance(value, Mapping) else value)
        for key, value in texts.items()
    }


def _player_problems(texts: Mapping[str, Any], file: str, where: str) -> Iterator[str]:
    """What is wrong with the file of a player."""
    yield from _foreign(texts, (*_OF_FILE, *DOMAINS), where)
    for domain in [name for name in DOMAINS if isinstance(texts.get(name), Mapping)]:
        section, here = texts[domain], f"{where} [{domain}]"
        yield from _foreign(section, (*_OF_FILE, *_LABELS, *BLOCKS), here)
        merged = {**texts, **section}
        messages = [merged[key] for key in MESSAGES if merged.get(key)]
        # What only the file's own messages ask for is missing there, once for all domains.
        asking = here if any(key in section for key in MESSAGES) else where
        if not messages:
            yield f"{asking}: `system` or `user` must be there, and be a text."
        messages = [text for text in messages if isinstance(text, str)]
        used = Counter(name for text in messages for name in names_in(text))
        if messages and used["history"] != 1:
            yield (
                f"{_once(asking, 'history', used)} A domain's own `system` or `user` goes before "
                'the file\'s of that name; `user = ""` sends none.'
            )
        if messages and file == "focal.toml" and not used["emotion"]:
            yield f"{asking}: no message names {{emotion}}, so that no emotion would be asked for."
        for key in (*_LABELS, *(block for block in BLOCKS if block != "cue" and used[block])):
            if not isinstance(section.get(key), str):
                yield f"{here}: `{key}` must be there, and be a text."
        needed = ["line", *(["opening"] if file == "focal.toml" else [])]
        for key in [*needed, *(["cue"] if used["cue"] else [])]:
            if key not in merged:
                yield f"{asking}: `{key}` must be there, and be a text."
        if isinstance(merged.get("line"), str):
            place = here if "line" in section else where
            yield from _unknown(merged["line"], ("speaker", "text"), f"{place}: line")


def _judge_problems(texts: Mapping[str, Any], where: str) -> Iterator[str]:
    """What is wrong with the judge's file."""
    yield from _foreign(texts, (*LEVELS, "ending", *DOMAINS), where)
    for key in (*LEVELS, "ending"):
        if not isinstance(texts.get(key), Mapping):
            yield f"{where}: the section [{key}] must be there, with `name = value` lines."
            return
    for outcome in OUTCOMES:
        if not isinstance(ending := texts["ending"].get(outcome), str):
            yield f"{where} [ending]: `{outcome}` must be there, and be a text."
        else:
            yield from _unknown(ending, ("value",), f"{where} [ending]: {outcome}")
    for level in LEVELS:
        yield from _foreign(texts[level], MESSAGES, f"{where} [{level}]")
    for domain in [name for name in DOMAINS if isinstance(texts.get(name), Mapping)]:
        section, here = texts[domain], f"{where} [{domain}]"
        yield from _foreign(section, (*CASE_BLOCKS, *LEVELS), here)
        for level, judged in (("turn", "utterance"), ("dialogue", "history")):
            own = section.get(level, {})
            if not isinstance(own, Mapping):
                continue
            yield from _foreign(own, MESSAGES, f"{where} [{domain}.{level}]")
            merged = {**texts[level], **own}
            messages = [text for key in MESSAGES if isinstance(text := merged.get(key), str)]
            used = Counter(name for text in messages for name in names_in(text))
            asking = f"{where} [{domain}.{level}]" if own else f"{where} [{level}]"
            if used[judged] != 1:
                yield _once(asking, judged, used)
            for key in (block for block in CASE_BLOCKS if used[block]):
                if not isinstance(section.get(key), str):
                    yield f"{here}: `{key}` must be there, and be a text."


def _once(where: str, name: str, used: Mapping[str, int]) -> str:
    named = ", ".join(f"{{{other}}}" for other in used) or "nothing"
    return (
        f"{where}: {{{name}}} must be in `system` or `user` once; it is there {used[name]} times, "
        f"among {named}."
    )


def _emotion_problems(texts: Mapping[str, Any], where: str) -> Iterator[str]:
    """What is wrong with the file of emotions, but for the names in its template."""
    yield from _foreign(texts, ("template", "fillings"), where)
    if not isinstance(texts.get("template"), str):
        yield f"{where}: `template` must be there, and be a text."
    else:
        yield from _stray_braces([_Located(where, "template", texts["template"])])
    fillings = texts.get("fillings")
    if not isinstance(fillings, Mapping):
        yield f"{where}: the section [fillings] must be there, with `name = value` lines."
        return
    if missing := [label for label in EMOTIONS if label not in fillings]:
        yield f"{where}: no filling for {', '.join(missing)}."
    for label in EMOTIONS:
        if label in fillings and not isinstance(fillings[label], Mapping):
            yield f"{where}: the section [{label}] must be there, with `name = value` lines."


def _emotion_blocks(texts: Mapping[str, Any], where: str) -> dict[str, str]:
    return {
        label: as_data(
            fill(
                Template(f"{where} [{label}]", texts["template"]),
                {name: str(value) for name, value in texts["fillings"][label].items()},
            )
        )
        for label in EMOTIONS
    }


def _foreign(texts: Mapping[str, Any], expected: Sequence[str], where: str) -> Iterator[str]:
    """Keys that nothing reads, as a slip of the pen makes them, and values of the wrong type."""
    for key, value in texts.items():
        is_section = key in (*DOMAINS, *LEVELS, "ending", "fillings")
        if key not in expected:
            yield f"{where}: nothing reads `{key}`; there is {', '.join(expected)}."
        elif not isinstance(value, Mapping if is_section else str):
            what = "a section with `name = value` lines" if is_section else "a text"
            yield f"{where}: `{key}` must be there, and be {what}."


def _unknown(text: str, known: Collection[str], where: str) -> Iterator[str]:
    try:
        check_known([(Template(where, text), known)])
    except InputError as error:
        yield str(error)
