"""The methods that can be evaluated (paper, Table 7): who picks the emotion, and who writes.

Free of jax, so that a command line can be checked against the names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from emodistill.configs import DEFAULT_CELL, DEFAULT_SELECTOR, SelectorMethod
from emodistill.errors import InputError
from emodistill.settings import cell_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What a method's name stands for."""

    writer: Literal["llm", "student"]
    selector: Literal["none", "neutral", "random", "random-7", "fixed", "iql", "trained", "oracle"]
    """Who picks the emotions; under `none` prompts have no emotion block. `iql` has learned from a
    sweep (`IQLConfig`), what is `trained` from dialogues of its own (`SelectorConfig`)."""
    adapter: str | None = None
    """The stage that trained the student's adapter (sft, jpo, …); None is the base model."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Stage -> what its training changes for this method: a cell of its own."""

    @property
    def selector_stage(self) -> str | None:
        """The stage that has trained its selector; None where nothing was trained for it."""
        return SELECTOR_STAGES.get(self.selector)

    @property
    def stages(self) -> tuple[str, ...]:
        """The training stages that it needs, each before those that go on from it."""
        stages = [] if self.selector_stage is None else [self.selector_stage]
        if self.adapter is not None:
            starts_from_base = self.settings.get(self.adapter, {}).get("reference") == "base"
            if self.adapter != "sft" and not starts_from_base:
                stages.append("sft")
            stages.append(self.adapter)
        return tuple(stages)


SELECTOR_STAGES = {"iql": "iql", "trained": "selector"}
"""`Method.selector` -> the stage that trains it."""


class TrainedCell(NamedTuple):
    """A cell that a method plays or that its adapter goes on from."""

    cell: str
    changes: Mapping[str, Any]
    """What its training changes."""


SELECTOR_FILES = ("selector.json", "selector.safetensors")
"""What a selector is made of, in the folder of its cell."""
BASE_NAME = "student"
"""What a server calls the student without an adapter."""


class TrainedAdapter(NamedTuple):
    """An adapter of a run, by where it was trained."""

    home: Path
    """The folder of its domain in the run."""
    stage: str
    cell: str

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path:
        """In PEFT's layout."""
        return self.home / self.stage / self.cell / "adapter"

    @property
    def files(self) -> list[Path]:
        return [self.folder / "adapter_config.json", self.folder / "adapter_model.safetensors"]

    @property
    def name(self) -> str:
        """`jpo` for the default cell, `jpo:kappa=0.5-e21b` for another one."""
        return self.stage if self.cell == DEFAULT_CELL else f"{self.stage}:{self.cell}"


def trained_cells(
    method: Method,
    named: Mapping[str, str],
    changed: Mapping[str, Mapping[str, Any]] = {},
) -> dict[str, TrainedCell]:
    """Stage -> its cell, for all that a method is made of, in their order.

    Args:
      named: stage -> the cell to take in place of the method's own.
      changed: stage -> settings that a study changes in its training.
    """
    found: dict[str, TrainedCell] = {}
    for stage in dict.fromkeys((*method.stages, *changed)):
        changes = {**method.settings.get(stage, {}), **changed.get(stage, {})}
        if "sft" in found and found["sft"].changes:
            changes["sft_cell"] = found["sft"].cell
        own = cell_name(changes) if changes else DEFAULT_CELL
        found[stage] = TrainedCell(named.get(stage, own), changes)
    return found


_llm = functools.partial(Method, writer="llm")
_student = functools.partial(Method, writer="student")
_FREE = {"emotion_free": True}
_BASE = {"reference": "base"}
RELATIVES: tuple[SelectorMethod, ...] = get_args(SelectorMethod)
"""Systems of related work, as they are repaired and as they were published."""


def _relative(name: str) -> Mapping[str, Mapping[str, Any]]:
    """What the training of its selector changes; the default cell is that of the default method."""
    return {} if name == DEFAULT_SELECTOR else {"selector": {"method": name}}


METHODS: Mapping[str, Method] = {
    "vanilla-slm": _student(selector="neutral"),
    "vanilla-llm": _llm(selector="neutral"),
    "neutral": _llm(selector="neutral"),
    "random": _llm(selector="random"),
    "random-7": _llm(selector="random-7"),
    "iql": _llm(selector="iql"),
    "iql-7": _llm(selector="iql", settings={"iql": {"emotions": "ekman"}}),
    "cloning": _llm(selector="iql", settings={"iql": {"learner": "cloning"}}),
    "cql": _llm(selector="iql", settings={"iql": {"learner": "cql"}}),
    "dqn": _llm(selector="iql", settings={"iql": {"learner": "dqn"}}),
    "bandit": _llm(selector="iql", settings={"iql": {"learner": "bandit"}}),
    "best-fixed": _llm(selector="iql", settings={"iql": {"learner": "best-fixed"}}),
    "iql+sft": _student(selector="iql", adapter="sft"),
    "iql+jpo": _student(selector="iql", adapter="jpo", settings={"jpo": _BASE}),
    "iql+sft+jpo": _student(selector="iql", adapter="jpo"),
    "iql+sft+jpo-stripped": _student(selector="none", adapter="jpo"),
    "iql+sft+alol": _student(selector="iql", adapter="alol"),
    "iql+sft+dpo": _student(selector="iql", adapter="dpo"),
    "iql+sft+grpo": _student(selector="iql", adapter="grpo"),
    "iql+sft+ppo": _student(selector="iql", adapter="ppo"),
    "vanilla-slm-free": _student(selector="none"),
    "free-sft": _student(selector="none", adapter="sft", settings={"sft": _FREE}),
    "free-jpo": _student(selector="none", adapter="jpo", settings={"jpo": _FREE | _BASE}),
    "free-sft+jpo": _student(selector="none", adapter="jpo", settings={"sft": _FREE, "jpo": _FREE}),
    "fixed": _llm(selector="fixed"),
    **{name: _llm(selector="trained", settings=_relative(name)) for name in RELATIVES},
    "oracle": _llm(selector="oracle"),
}
"""Those with a name of their own; `get_method` knows more."""


def get_method(name: str) -> Method:
    """The method of that name: one of METHODS, or `<method>+sft` and `<method>+sft+<stage>` for a
    selector that was trained (`iql`, `cql`, `evoemo`, …) before a student.

    Whether such a stage has trained an adapter is seen when the adapter is looked for.

    Raises:
      InputError: there is none; the message lists them.
    """
    if name in METHODS:
        return METHODS[name]
    chooser, _, adapters = name.partition("+")
    alone = METHODS.get(chooser)
    is_student = re.fullmatch(r"sft(\+[a-z][a-z0-9_-]*)?", adapters)
    if alone is not None and alone.selector_stage is not None and is_student:
        adapter = adapters.rpartition("+")[2]
        return _student(selector=alone.selector, adapter=adapter, settings=alone.settings)
    raise InputError(f"--method {name} is not known; use one of {', '.join(METHODS)}.")


def system_in(name: str) -> str | None:
    """The system of related work that picks a method's emotions, None for other methods."""
    system = name.partition("+")[0]
    return system if system in RELATIVES else None
