"""Checkpoints of a training run (orbax): LoRA, optimiser state, step, cursor in the data, metrics.

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
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp
from safetensors import SafetensorError
from safetensors.numpy import load_file

from emodistill.errors import InputError, StaleInputError
from emodistill.files import canonical_json
from emodistill.model.fingerprint import bit_checksums
from emodistill.model.processes import is_first, to_host
from emodistill.model.sharding import put_like
from emodistill.tensor_files import write_tensors


class Restored(NamedTuple):
    """What a run goes on from."""

    state: Any
    cursor: Mapping[str, Any]
    """The cursor that `save` was given; empty at the start."""


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
        keep: int,
        keep_every: int | None,
    ) -> None:
        logging.getLogger("absl").setLevel(logging.WARNING)  # orbax tells of every file
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
        self._write(self._manager.wait_until_finished)
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Any,
        *,
        cursor: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Begin to write the state after `step` steps; `state` may be donated once this returns.

        Args:
          cursor: where in the data the next step begins, JSON values.
          metrics: of the step.

        Raises:
          InputError: this checkpoint, or the one before, could not be written.
        """
        arrays = _arrays(state)
        record = {
            "made_from": self._identity | {"arrays": _shapes(arrays)},
            "checksums": bit_checksums(arrays),
            "data": dict(cursor),
            "metrics": dict(metrics),
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record)
        )
        self._write(lambda: self._manager.save(step, args=args))

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
        record = self._read(step, record=ocp.args.JsonRestore())
        parts = ("made_from", "checksums", "data")
        if not isinstance(record, dict) or not all(isinstance(record.get(p), dict) for p in parts):
            raise self._unreadable(step, "it has no record of what it was made from")
        arrays = _arrays(state)
        self._compare(record["made_from"], self._identity | {"arrays": _shapes(arrays)}, step)
        restored = self._read(step, state=ocp.args.StandardRestore(arrays))
        for name, checksum in bit_checksums(restored).items():
            if checksum != record["checksums"].get(name):
                raise self._unreadable(step, f"{name} is not what was written")
        leaves = [restored[name] for name in arrays]
        return Restored(jax.tree.unflatten(jax.tree.structure(state), leaves), record["data"])

    def _write(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as error:  # orbax and its storage have no common error
            raise InputError(
                f"{self.directory}: a checkpoint could not be written ({_first_line(error)}). Free "
                "space or rights, then start again; it goes on from "
                f"{_checkpoint_name(self._manager.latest_step())}."
            ) from None

    def _read(self, step: int, **item: Any) -> Any:
        """One item of the checkpoint, by the arguments that orbax restores it with."""
        try:
            (name,) = item
            return self._manager.restore(step, args=ocp.args.Composite(**item))[name]
        except Exception as error:  # as above
            raise self._unreadable(step, _first_line(error)) from None

    def _unreadable(self, step: int, reason: str) -> InputError:
        older = [other for other in self._manager.all_steps() if other < step]
        return InputError(
            f"{self.directory / str(step)} is damaged or no checkpoint of this program ({reason}). "
            f"Delete that folder to go on from {_checkpoint_name(max(older, default=None))}."
        )

    def _compare(self, old: Mapping[str, Any], new: Mapping[str, Any], step: int) -> None:
        """Refuse the first setting that differs, within objects by its key."""
        for name in sorted({*old, *new}):
            before, now = old.get(name), new.get(name)
            if isinstance(before, dict) and isinstance(now, dict):
                keys = (key for key in sorted({*before, *now}) if before.get(key) != now.get(key))
                for key in keys:
                    name, before, now = f"{name}[{key}]", before.get(key), now.get(key)
                    break
            if before != now:
                raise StaleInputError(
                    f"{self.directory / str(step)} was made with {name}={before!r}, now "
                    f"{name}={now!r}. Delete {self.directory.parent} to train again."
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._write(self._manager.close)
        except InputError:
            if kind is None:  # else the error under way says more
                raise


def save_opt_state(path: Path, opt_state: Any) -> None:
    """Write the optimiser's state, for a later training to go on with; the first process does."""
    tensors = {name: to_host(leaf) for name, leaf in _arrays(opt_state).items()}
    if is_first():
        write_tensors(path, tensors)


def load_opt_state(path: Path, like: Any) -> Any:
    """What `save_opt_state` has written, in the form and on the devices of `like`.

    Raises:
      InputError: the file is missing, torn, or of another optimiser or adapter.
    """
    arrays, advice = _arrays(like), f"Delete {path.parent} to make that round again."
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} can't be read ({_first_line(error)}). {advice}") from None
    if _shapes(tensors) != _shapes(arrays):
        raise InputError(f"{path} is the state of another optimiser or adapter. {advice}")
    leaves = [put_like(tensors[name], leaf) for name, leaf in arrays.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _arrays(state: Any) -> dict[str, jax.Array]:
    """The leaves by path, in the order of the tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _shapes(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in arrays.items()}


def _checkpoint_name(step: int | None) -> str:
    return "the start" if step is None else f"the checkpoint of step {step}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
