"""Checkpoints of a training run (orbax): LoRA, optimiser state and step; the two newest.

The order of the data follows from the step alone, and metrics after the step are dropped when the
run goes on, so nothing else needs keeping. A checkpoint appears under its final name only once it
is whole.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import orbax.checkpoint as ocp

from emodistill.errors import StaleInputError
from emodistill.runs import canonical_json

State = TypeVar("State")
KEPT = 2


class Checkpoints:
    """The checkpoints in `directory` of the run that `identity` (JSON values) describes.

    Saving waits until the files are there: a step donates its state, so it must not be read later.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        logging.getLogger("absl").setLevel(logging.WARNING)
        self.directory = directory
        self._identity = json.loads(canonical_json(identity))
        self._manager = ocp.CheckpointManager(
            directory.resolve(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
            ),
            item_names=("state", "made_from"),
        )

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Write the state after `step` steps and drop all but the two newest checkpoints."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_arrays(state)),
                made_from=ocp.args.JsonSave(self._identity | {"arrays": _shapes(state)}),
            ),
        )

    def restore(self, state: State) -> State:
        """The newest checkpoint's state in the form of `state`, or `state` itself without one.

        Raises:
          StaleInputError: the checkpoint was made with another setting, from other data or for
            another shape; the message names the first difference.
        """
        step = self.newest
        if step is None:
            return state
        read = self._manager.restore(
            step, args=ocp.args.Composite(made_from=ocp.args.JsonRestore())
        )
        self._compare(read["made_from"], self._identity | {"arrays": _shapes(state)}, step)
        leaves = _arrays(state)
        read = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(leaves))
        )
        return jax.tree.unflatten(
            jax.tree.structure(state), [read["state"][name] for name in leaves]
        )

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

    def __exit__(self, *_: object) -> None:
        self._manager.close()


def _arrays(state: Any) -> dict[str, jax.Array]:
    """The leaves by path, in the order of the tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _shapes(state: Any) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _arrays(state).items()}
