"""Several processes that train one model together (`jax.distributed`), all seeing the same files.

Each runs the same program on the same data and holds its part of every array. The first one alone
writes files (but for checkpoints, which all write) and talks; where what is on disk decides what
comes next, it decides for all.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from emodistill import errors
from emodistill.configs import AUTO, AdapterConfig
from emodistill.errors import EmodistillError, InputError

LEAVING_S = 30
"""How long a process waits for the others at its end: one that failed alone would wait in vain."""
MAX_MESSAGE = 4096
"""Characters of a message that other processes repeat."""


@contextlib.contextmanager
def joined(config: AdapterConfig) -> Iterator[None]:
    """Be one of the processes that `config` names; nothing happens where it names none.

    Standard output of all but the first goes nowhere, from here on. An error leaves at once: JAX
    waits for the others when the interpreter ends, after the message.

    Raises:
      InputError: the others can't be found or don't answer.
    """
    if config.coordinator is None:
        yield
        return
    import jax  # kept off --help

    address = None if config.coordinator == AUTO else config.coordinator
    try:
        jax.distributed.initialize(
            address,
            config.num_processes,
            config.process_id,
            local_device_ids=local_devices(os.environ),
            shutdown_timeout_seconds=LEAVING_S,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"coordinator={config.coordinator!r}: the processes can't meet ({error}). Give every "
            "process the first one's HOST:PORT, --num-processes and its own --process-id; "
            "`auto` knows Slurm, Open MPI and TPU pods (docs/scale.md)."
        ) from None
    if not is_first():
        sys.stdout = None  # print and rich take this for nowhere
    yield
    jax.distributed.shutdown()


def local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """What JAX is to be told of the devices of this machine that are this process's.

    Under Slurm and Open MPI, JAX gives the process of local rank n the GPU n alone, and leaves the
    others idle where there is one process a machine. An empty list means all.
    """
    if "SLURM_STEP_NUM_NODES" in environment:
        is_alone = environment["SLURM_STEP_NUM_NODES"] == environment.get("SLURM_NTASKS")
    else:
        is_alone = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    return [] if is_alone else None


def is_first() -> bool:
    """Whether this process writes the files and talks."""
    import jax  # kept off --help

    return jax.process_index() == 0


def agree(decide: Callable[[], bool]) -> bool:
    """What the first process decides; the others wait for it and don't call `decide`.

    Where `decide` raises, all raise: one that stopped alone would leave the others waiting.

    Raises:
      EmodistillError: of the same class as the error that `decide` raised in the first process, or
        of the base class if that was none of ours.
    """
    import jax.experimental.multihost_utils  # kept off --help

    if jax.process_count() == 1:
        return decide()
    outcome: dict[str, Any] = {}
    failure = None
    if is_first():
        try:
            outcome = {"is_agreed": bool(decide())}
        except Exception as error:
            failure, kind, text = error, type(error).__name__, str(error)
            if not isinstance(error, EmodistillError):
                text = f"the first process stopped: {kind}: {text}"
            outcome = {"refusal": kind, "message": text[:MAX_MESSAGE]}
    # All processes must hand over an array of one shape; JSON takes at most 12 bytes a character.
    text = json.dumps(outcome).ljust(12 * MAX_MESSAGE + 100)
    sent = np.frombuffer(text.encode(), np.uint8)
    shared = jax.experimental.multihost_utils.broadcast_one_to_all(sent)
    outcome = json.loads(np.asarray(shared).tobytes())
    if failure is not None:
        raise failure
    if "refusal" in outcome:
        raise getattr(errors, outcome["refusal"], EmodistillError)(outcome["message"])
    return outcome["is_agreed"]


def to_host(array: Any) -> np.ndarray:
    """The whole of a jax.Array, in every process, whichever devices hold its parts."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils  # kept off --help

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
