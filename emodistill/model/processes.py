"""Several processes that train one model together (`jax.distributed`), all seeing the same files.

Each runs the same program on the same data and holds its part of every array. The first one alone
writes files (but for checkpoints, which all write) and talks; where what is on disk decides what
comes next, it decides for all.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from emodistill.configs import AUTO, AdapterConfig
from emodistill.errors import InputError


@contextlib.contextmanager
def joined(config: AdapterConfig) -> Iterator[None]:
    """Be one of the processes that `config` names; nothing happens where it names none.

    Standard output of all but the first goes nowhere, from here on.

    Raises:
      InputError: the others can't be found or don't answer.
    """
    if config.coordinator is None:
        yield
        return
    import jax

    address = None if config.coordinator == AUTO else config.coordinator
    try:
        jax.distributed.initialize(address, config.num_processes, config.process_id)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"coordinator={config.coordinator!r}: the processes can't meet ({error}). Give every "
            "process the first one's HOST:PORT, --num-processes and its own --process-id; "
            "`auto` knows Slurm, Open MPI and TPU pods (docs/scale.md)."
        ) from None
    if not is_first():
        sys.stdout = None  # print and rich take this for nowhere
    try:
        yield
    finally:
        jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this process writes the files and talks."""
    import jax

    return jax.process_index() == 0


def agree(decide: Callable[[], bool]) -> bool:
    """What the first process decides; the others wait for it and don't call `decide`."""
    import jax

    if jax.process_count() == 1:
        return decide()
    from jax.experimental import multihost_utils

    own = np.asarray(decide() if is_first() else False)
    return bool(multihost_utils.broadcast_one_to_all(own))


def to_host(array: Any) -> np.ndarray:
    """The whole of a jax.Array, in every process, whichever devices hold its parts."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
