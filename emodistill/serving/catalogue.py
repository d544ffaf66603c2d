"""Which models are served, by name: the base student, adapters, and methods of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from emodistill.configs import DEFAULT_RUN, DEFAULT_SELECTOR, ServeConfig, home_expanded
from emodistill.emotions import NEUTRAL
from emodistill.errors import InputError
from emodistill.evaluation.methods import (
    BASE_NAME,
    METHODS,
    RELATIVES,
    Method,
    TrainedAdapter,
    get_method,
    trained_cells,
)
from emodistill.model.adapters import CONFIG_FILE
from emodistill.offline.run_files import turn_limit
from emodistill.prompts import PromptPack, load_pack
from emodistill.selectors import FixedSelector, IQLSelector, Selector
from emodistill.selectors.systems import is_trained_for, load_trained, system_of, trained_setup
from emodistill.serving.negotiator import Negotiator
from emodistill.serving.refusals import ChatRefusedError
from emodistill.untrusted import shown

log = logging.getLogger("emodistill.serving")

MAX_NAME = 100


@dataclass(frozen=True, eq=False, slots=True)
class Adapter:
    """What is served under a name: a folder in PEFT's layout, or the base where there is none."""

    name: str
    folder: Path | None = None
    belongs_to_run: bool = False
    """Whether methods may play it; such an adapter is not dropped at a client's word."""

    def __str__(self) -> str:
        return self.name


class ServedModel(NamedTuple):
    """What a model's name stands for; without a negotiator, the bare student."""

    adapter: Adapter
    negotiator: Negotiator | None


class Catalogue:
    """The models by name, as they were found at the start, and what clients load and drop.

    Raises:
      InputError: a folder that the settings name is missing, a selector can't be used, or two
        models have one name.
    """

    def __init__(self, config: ServeConfig) -> None:
        home = config.run / config.domain
        if config.run != DEFAULT_RUN and not home.is_dir():
            raise InputError(f"--run {config.run}: there is no folder {home}; train there first.")
        self.base = Adapter(BASE_NAME)
        self._below = config.adapters_below and config.adapters_below.resolve()
        if self._below is not None and not self._below.is_dir():
            raise InputError(f"--adapters-below {config.adapters_below}: there is no such folder.")
        self._adapters = {BASE_NAME: self.base}
        for trained in _run_adapters(home):
            self._adapters[trained.name] = Adapter(
                trained.name, trained.folder, belongs_to_run=True
            )
        pack, self._negotiators = load_pack(config.prompt_pack), {}
        known = {BASE_NAME, *(method.adapter for method in METHODS.values())}
        stages = {name.partition(":")[0] for name in self._adapters} - known
        own = [f"iql+sft+{stage}" for stage in sorted(stages)]
        refined = sorted((stages | known) - {"sft", None, BASE_NAME})
        related = [
            "+".join((system, "sft", *adapter))
            for system in RELATIVES
            for adapter in ((), *((stage,) for stage in refined))
        ]
        for name in (*METHODS, *own, *related):
            if (made := self._negotiator(get_method(name), config, pack, home)) is not None:
                self._negotiators[name] = made
        for pair in config.adapter:
            name, _, folder = pair.partition("=")
            self._check_name(name, flag="--adapter: ")
            path = Path(home_expanded("adapter", folder))
            if not (path / CONFIG_FILE).is_file():
                raise InputError(f"--adapter {pair}: there is no {path / CONFIG_FILE}.")
            self._adapters[name] = Adapter(name, path)

    @property
    def names(self) -> list[str]:
        return [*self._adapters, *self._negotiators]

    @property
    def given(self) -> list[Adapter]:
        """The adapters that the settings name one by one."""
        return [one for one in self._adapters.values() if one.folder and not one.belongs_to_run]

    def find(self, name: str) -> ServedModel:
        """The model of that name.

        Raises:
          ChatRefusedError: there is none.
        """
        negotiator = self._negotiators.get(name)
        adapter = self._adapters.get(name if negotiator is None else negotiator.adapter)
        if adapter is None:
            raise ChatRefusedError(
                f"model {shown(name)} is not served here; GET /v1/models lists those that are.",
                status=404,
                param="model",
                code="model_not_found",
            )
        return ServedModel(adapter, negotiator)

    def locate(self, name: str, path: str) -> Adapter:
        """The adapter that a client wants to load, which is not served yet.

        Raises:
          ChatRefusedError: clients may load none, not from there, or not under that name.
        """
        if self._below is None:
            raise ChatRefusedError(
                "clients load no adapters here; start the server with --adapters-below.", status=403
            )
        try:
            self._check_name(name)
        except InputError as error:
            raise ChatRefusedError(str(error), param="lora_name") from None
        try:
            folder = (self._below / path).resolve()
            is_there = folder.is_relative_to(self._below) and (folder / CONFIG_FILE).is_file()
        except (OSError, ValueError):  # too long, or a zero byte
            folder, is_there = self._below, False
        if not is_there:  # one answer, so that nobody can ask what else lies on this machine
            raise ChatRefusedError(
                f"lora_path={shown(path)} is no adapter below the folder that was allowed.",
                param="lora_path",
            )
        return Adapter(name, folder)

    def add(self, adapter: Adapter) -> None:
        """Serve an adapter.

        Raises:
          ChatRefusedError: another one has got its name meanwhile.
        """
        if adapter.name in self.names:
            raise ChatRefusedError(f"{adapter.name} is served already.", param="lora_name")
        self._adapters[adapter.name] = adapter

    def drop(self, name: str) -> Adapter:
        """Serve an adapter no longer.

        Raises:
          ChatRefusedError: there is none of that name, or it belongs to the run.
        """
        found = self._adapters.get(name)
        if found is None:
            raise ChatRefusedError(
                f"no adapter {shown(name)} is served.", status=404, param="lora_name"
            )
        if found.folder is None or found.belongs_to_run:
            raise ChatRefusedError(
                f"{name} belongs to the run and stays; only what was loaded by itself is dropped.",
                param="lora_name",
            )
        return self._adapters.pop(name)

    def _check_name(self, name: str, flag: str = "") -> None:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
            raise InputError(f"{flag}{shown(name)} is no name; use up to {MAX_NAME} characters.")
        if name in self.names:
            raise InputError(f"{flag}{name} is served already; choose another name.")

    def _negotiator(
        self, method: Method, config: ServeConfig, pack: PromptPack, home: Path
    ) -> Negotiator | None:
        """A method of the run; None where it has no student, or isn't trained."""
        if method.writer != "student":
            return None
        trained = trained_cells(method, config.cells)
        adapter = BASE_NAME
        if method.adapter is not None:
            cell = trained[method.adapter].cell
            adapter = TrainedAdapter(home, method.adapter, cell).name
            if adapter not in self._adapters:
                return None
        selector: Selector = FixedSelector(NEUTRAL if method.selector == "neutral" else None)
        if method.selector == "iql":
            folder = home / "iql" / trained["iql"].cell
            if not folder.is_dir():
                return None
            selector = IQLSelector.load(folder, policy=config.policy, greedy=config.greedy)
        hears = False
        if method.selector == "trained":
            folder = home / "selector" / trained["selector"].cell
            system = method.settings.get("selector", {}).get("method", DEFAULT_SELECTOR)
            if not folder.is_dir() or not is_trained_for(folder, system):
                return None
            selector, hears = load_trained(folder, system), system_of(system).reads_emotions
            if hears and trained_setup(folder)[1] == "model":
                log.warning("%s is not served: a model heard emotions in its training.", folder)
                return None
        cap = turn_limit(home).cap
        return Negotiator(selector=selector, adapter=adapter, pack=pack, max_turns=cap, hears=hears)


def _run_adapters(home: Path) -> Iterator[TrainedAdapter]:
    for file in sorted(home.glob(f"*/*/adapter/{CONFIG_FILE}")):
        cell = file.parents[1]
        trained = TrainedAdapter(home, cell.parent.name, cell.name)
        if trained.name.isprintable():  # somebody else's folder may be called anything
            yield trained
