"""What every stage's settings are made of: bounds, two kinds of defaults, and the shared fields."""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, Union, dataclass_transform

from emodistill.errors import InputError

DomainName = Literal["crad", "disaster", "hospital", "student"]
AgreementRule = Literal["stand", "upstream"]
OfferReaderKind = Literal["pattern", "llm"]
Split = Literal["test", "validation"]
AnySplit = Literal["test", "validation", "train"]
Quantization = Literal["int8", "nf4"]

EMBEDDED = "embedded"
"""The name of the student that ships in the package."""
AUTO = "auto"
"""A setting that is left to a rule: the student's own value, or the cluster's own address."""
DEFAULT_RUN = Path("runs/default")

SIMULATED_MODELS = {
    "focal": "sim-teacher",
    "counterparty": "sim-counterparty",
    "judge": "sim-judge",
    "reader": "sim-reader",
}
"""The simulator's model for each part that a language model plays."""
TYPED_COUNTERPARTIES = {
    "sim-proud": "proud",
    "sim-anxious": "anxious",
    "sim-practical": "practical",
}
"""Simulated counterparties that are all of one type, which `sim-counterparty` draws by lot."""
JUDGE_VALIDITY = 0.5
"""Of `sim-judge`: as GPT-4's rank correlation with human scores (0.514, arXiv 2303.16634)."""
JUDGE_VALIDITIES = {
    "sim-judge": JUDGE_VALIDITY,
    **{f"sim-judge-{tenth / 10:g}": tenth / 10 for tenth in range(5)},
}
"""Simulated judges by how their scores go with what turns are worth: `sim-judge-0` is blind."""
JUDGE_TASTES = {f"sim-judge-{taste}": taste for taste in ("length", "threats", "echoes")}
"""Simulated judges that like a habit of speech and nothing else: what a policy that pleases its
judge can be taught with, to see whether `--watch` notices."""
TRUTH = "truth"
"""The judge whose scores are worths of turns (`replay.py --scores truth`)."""
SIMULATED = tuple(
    dict.fromkeys(
        (*SIMULATED_MODELS.values(), *TYPED_COUNTERPARTIES, *JUDGE_VALIDITIES, *JUDGE_TASTES)
    )
)
"""Every model that the simulator serves."""

T = TypeVar("T")
if TYPE_CHECKING:
    ByStudent = Union[T, T]  # noqa: UP007  (a configuration that exists holds a T)
else:
    ByStudent = Union[T, Literal["auto"]]  # noqa: UP007  (`|` makes no generic alias)
"""The type of a setting whose default depends on the student (see `setting`)."""


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,)
)
def configuration(cls: type[T]) -> type[T]:
    """Makes a class of settings: a dataclass that is frozen, has slots and takes keywords only."""
    return dataclasses.dataclass(frozen=True, slots=True, kw_only=True)(cls)


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,)
)
def combinable(cls: type[T]) -> type[T]:
    """The same without slots, for settings that a stage has beside those of another parent.

    Python refuses a class two parents that both have slots of their own.
    """
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def setting(
    default: Any,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    hint: str = "",
    embedded: Any = dataclasses.MISSING,
    operational: bool = False,
    is_path: bool = False,
    none: str = "None",
) -> Any:
    """A field of a configuration, with what its value must satisfy.

    Args:
      ge, gt, le, lt: bounds, as in `>=`, `>`, `<=` and `<`.
      hint: what the error message adds.
      embedded: the default for the embedded student. The field then holds `auto` until the
        configuration is built, so that the student decides, whichever flag or file named it.
      operational: the setting changes speed or storage, never results. It stays out of manifests
        and cell names.
      is_path: a string that may name a folder, as a student's does.
      none: the word that stands for None on a command line.
    """
    bounds = {operator.ge: ge, operator.gt: gt, operator.le: le, operator.lt: lt}
    metadata: dict[str, Any] = {
        "bounds": {compare: bound for compare, bound in bounds.items() if bound is not None},
        "hint": hint,
        "operational": operational,
        "is_path": is_path,
        "none": none,
    }
    if embedded is not dataclasses.MISSING:
        metadata["by_student"] = {True: embedded, False: default}
        default = AUTO
    return dataclasses.field(default=default, metadata=metadata)


def home_expanded(name: str, path: str) -> str:
    """`path` with a leading `~` or `~user` as the folder that it stands for.

    Raises:
      InputError: there is no such user, or the locale can't name the path.
    """
    try:
        expanded = os.path.expanduser(path)  # noqa: PTH111  (Path drops a leading ./)
        os.fsencode(expanded)
        expanded.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{name}={path!r} is no text in this locale's encoding "
            f"({sys.getfilesystemencoding()}). Set LC_ALL=C.UTF-8, or rename it."
        ) from None
    if path.startswith("~") and expanded == path:
        raise InputError(f"{name}={path}: there is no such user; write the path in full.")
    return expanded


def data_from() -> Any:
    """The field `data_from` of a stage that reads a sweep and its scores.

    Operational: manifests name the files that were read, wherever they are.
    """
    return setting(None, operational=True)


def require(condition: bool, message: str) -> None:
    """Raise InputError with `message` unless `condition`."""
    if not condition:
        raise InputError(message)


@configuration
class Config:
    """Settings whose fields are checked against their bounds; `~` in paths is expanded."""

    stage: ClassVar[str]
    """Names the stage, and its section in a configuration file."""
    student_field: ClassVar[str | None] = None
    """The setting that names the student, where one trains or plays."""
    outside_cell: ClassVar[frozenset[str]] = frozenset({"domain", "model"})
    """Settings that are left out of the names of cells: a run has one student, and its manifests
    refuse another."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), field.metadata
            if isinstance(value, Path) or rule.get("is_path"):
                value = type(value)(home_expanded(field.name, str(value)))
                object.__setattr__(self, field.name, value)
            if value == AUTO and "by_student" in rule:
                value = rule["by_student"][getattr(self, self.student_field or "") == EMBEDDED]
                object.__setattr__(self, field.name, value)
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{field.name}={value} must be a finite number.")
            bounds = rule.get("bounds", {})
            if value is None or all(compare(value, bound) for compare, bound in bounds.items()):
                continue
            is_open = operator.gt in bounds
            low, *high = bounds.values()
            if high:
                closing = ")" if operator.lt in bounds else "]"
                allowed = f"lie in {'(' if is_open else '['}{low:g}, {high[0]:g}{closing}"
            else:
                allowed = f"be {'>' if is_open else 'at least'} {low:g}"
            hint = f"; {rule['hint']}" if rule["hint"] else ""
            raise InputError(f"{field.name}={value} must {allowed}{hint}.")

    def identity(self) -> dict[str, Any]:
        """The settings that change the result, for manifests and cell names."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.metadata.get("operational")
        }


@configuration
class ExperimentConfig(Config):
    """What every stage of a run shares."""

    run: Path = setting(DEFAULT_RUN, operational=True)
    """The folder of the experiment."""
    domain: DomainName = "crad"
    """Which of the four negotiation domains."""
    seed: int = 0
    """Names every random stream of the stage."""
    provider: str | None = setting(None, operational=True)
    """dashscope, openai, deepseek, openrouter, vllm, llamacpp, … (llm/providers.toml): who serves
    each model that is named without a server; without one, the simulator."""
    base_url: str | None = setting(None, operational=True)
    """Any OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1."""

    called: ClassVar[tuple[str, ...]] = ()
    """The settings that name language models which the stage calls."""

    @property
    def is_simulated(self) -> bool:
        """Whether no real language model was asked for."""
        given = [getattr(self, name) or () for name in self.called]
        names = [name for one in given for name in ((one,) if isinstance(one, str) else one)]
        is_usual = self.provider in (None, "simulator") and self.base_url is None
        return is_usual and all(name.removeprefix("simulator:") in SIMULATED for name in names)


def require_student_server(config: Any) -> None:
    """Whether the settings of a server that plays the student fit each other.

    Raises:
      InputError: one of the two is missing, or calls are to be recorded or replayed.
    """
    require(
        (config.student_url is None) == (config.student_model is None),
        "--student-url and --student-model go together: a server, and its name for the student.",
    )
    require(
        config.student_url is None or config.record is config.replay is None,
        "--student-url: leave out --record and --replay, which don't keep that server's answers.",
    )


@combinable
class ApiConfig(ExperimentConfig):
    """A stage that calls language models; with neither provider nor base URL, the simulator."""

    concurrency: int = setting(6, ge=1, operational=True)
    """Dialogues (or judge calls) in flight at once."""
    max_cost_usd: float | None = setting(None, ge=0, operational=True)
    """Stop cleanly once this much has been spent."""
    yes: bool = setting(False, operational=True)
    """Don't ask before money is spent; nobody is asked where there is no terminal."""
    timeout_s: float | None = setting(None, gt=0, operational=True)
    """Seconds for one attempt at a call, which is then tried again. If left out, 120, and more at
    providers that are slow for less money."""
    record: Path | None = setting(None, operational=True)
    """A folder that keeps every call."""
    replay: Path | None = setting(None, operational=True)
    """A folder made by --record, which answers every call instead of any server."""

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        require(
            self.record is None or self.replay is None,
            "--record and --replay exclude each other: a replay makes no new calls.",
        )
