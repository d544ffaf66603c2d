"""Checkpoints of a training run (orbax): LoRA, optimiser state, step, place in the data, metrics.

A checkpoint is copied to the host, then written while training goes on; it appears under its
final name only once it is whole, and is checked against its own checksums when it is read. Arrays
come back on whatever mesh the run has now. No step draws random numbers: the order of the data
follows from seed and step, both of which are kept and compared.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import jax
import orbax.checkpoint as ocp

from emodistill.errors import InputError, StaleInputError
from emodistill.files import canonical_json
from emodistill.model.fingerprint import bit_checksums

Result = TypeVar("Result")

RECORD = ("made_from", "checksums", "data")
"""What a checkpoint's record holds, each an object."""


class Restored(NamedTuple):
    """What a run goes on from."""

    state: Any
    data: Mapping[str, Any]
    """The place in the data, as `save` was given it; empty at the start."""


class Checkpoints:
    """The checkpoints in `directory` of the run that `identity` (JSON values) describes.

    Args:
      keep: how many of the newest stay.
      keep_every: the checkpoints of every this many steps stay as well.
    """

    def __init__(
        self,
        directory: Path,
        identity: Mapping[str, Any],
        *,
        keep: int = 2,
        keep_every: int | None = None,
    ) -> None:
        logging.getLogger("absl").setLevel(logging.WARNING)
        self.directory = directory
        self._identity = json.loads(canonical_json(identity))
        self._manager = ocp.CheckpointManager(
            directory.resolve(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
            ),
            item_names=("state", "record"),
        )

    @property
    def newest(self) -> int | None:
        """The step of the newest whole checkpoint, None without one."""
        self._writing(self._manager.wait_until_finished)
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Any,
        *,
        data: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Begin to write the state after `step` steps; `state` may be donated once this returns.

        Args:
          data: where in the data the next step begins, JSON values.
          metrics: of the step.

        Raises:
          InputError: this checkpoint, or the one before, could not be written.
        """
        arrays = _arrays(state)
        record = {
            "made_from": self._identity | {"arrays": _shapes(arrays)},
            "checksums": bit_checksums(arrays),
            "data": dict(data or {}),
            "metrics": dict(metrics or {}),
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record)
        )
        self._writing(lambda: self._manager.save(step, args=args))

    def restore(self, state: Any) -> Restored:
        """The newest checkpoint in the form (and on the devices) of `state`; `state` without one.

        Raises:
          StaleInputError: the checkpoint was made with another setting, from other data or for
            another shape; the message names the first difference.
          InputError: it is damaged, or no checkpoint of this program.
        """
        step = self.newest
        if step is None:
            return Restored(state, {})
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        record = self._reading(step, lambda: self._manager.restore(step, args=args)["record"])
        parts = [record.get(name) for name in RECORD] if isinstance(record, dict) else []
        if not parts or not all(isinstance(part, dict) for part in parts):
            raise self._unreadable(step, "it has no record of what it was made from")
        arrays = _arrays(state)
        self._compare(record["made_from"], self._identity | {"arrays": _shapes(arrays)}, step)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(arrays))
        found = self._reading(step, lambda: self._manager.restore(step, args=args)["state"])
        for name, checksum in bit_checksums(found).items():
            if checksum != record["checksums"].get(name):
                raise self._unreadable(step, f"{name} is not what was written")
        leaves = [found[name] for name in arrays]
        return Restored(jax.tree.unflatten(jax.tree.structure(state), leaves), record["data"])

    def _writing(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as error:  # orbax and its storage have no common error
            raise InputError(
                f"{self.directory}: a checkpoint could not be written ({_first_line(error)}). Free "
                "space or rights, then start again; it goes on from "
                f"{self._name(self._manager.latest_step())}."
            ) from None

    def _reading(self, step: int, read: Callable[[], Result]) -> Result:
        try:
            return read()
        except Exception as error:  # as above
            raise self._unreadable(step, _first_line(error)) from None

    def _unreadable(self, step: int, reason: str) -> InputError:
        older = [other for other in self._manager.all_steps() if other < step]
        rest = self._name(max(older, default=None))
        return InputError(
            f"{self.directory / str(step)} is damaged or no checkpoint of this program ({reason}). "
            f"Delete that folder to go on from {rest}."
        )

    @staticmethod
    def _name(step: int | None) -> str:
        return "the start" if step is None else f"the checkpoint of step {step}"

    def _compare(self, found: Mapping[str, Any], wanted: Mapping[str, Any], step: int) -> None:
        for name in sorted({*found, *wanted}):
            old, new = found.get(name), wanted.get(name)
            if old == new:
                continue
            if isinstance(old, dict) and isinstance(new, dict):
                inner = next(key for key in sorted({*old, *new}) if old.get(key) != new.get(key))
                name, old, new = f"{name}[{inner}]", old.get(inner), new.get(inner)
            raise StaleInputError(
                f"{self.directory / str(step)} was made with {name}={old!r}, now {name}={new!r}. "
                f"Delete {self.directory.parent} to train again."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._writing(self._manager.close)
        except InputError:
            if kind is None:  # else the error under way says more
                raise


def _arrays(state: Any) -> dict[str, jax.Array]:
    """The leaves by path, in the order of the tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _shapes(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in arrays.items()}


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
