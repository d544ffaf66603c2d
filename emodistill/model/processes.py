"""Several processes that train one model together (`jax.distributed`), all seeing the same files.

Each runs the same program on the same data and holds its part of every array. The first one alone
writes files (but for checkpoints, which all write) and talks; where what is on disk decides what
comes next, it decides for all.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from emodistill.configs import AUTO, AdapterConfig
from emodistill.errors import EmodistillError, InputError, StaleInputError

LEAVING_S = 30
"""How long a process waits for the others at its end: one that failed alone would wait in vain."""
MESSAGE_BYTES = 4096
_REFUSALS = (InputError, StaleInputError, EmodistillError)


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
    import jax

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
    import jax

    return jax.process_index() == 0


def agree(decide: Callable[[], bool]) -> bool:
    """What the first process decides; the others wait for it and don't call `decide`.

    Where `decide` raises, all raise: one that stopped alone would leave the others waiting.

    Raises:
      InputError, StaleInputError: as `decide` did in the first process.
      EmodistillError: it raised something else there.
    """
    import jax

    if jax.process_count() == 1:
        return decide()
    from jax.experimental import multihost_utils

    is_agreed, failure, message = False, None, b""
    if is_first():
        try:
            is_agreed = decide()
        except Exception as error:
            failure, message = error, _message(error)
    # [what was decided, which refusal, its message filled up with zeros]
    own = np.zeros(2 + MESSAGE_BYTES, np.uint8)
    own[0], own[2 : 2 + len(message)] = is_agreed, np.frombuffer(message, np.uint8)
    if failure is not None:
        kinds = (kind for kind, refusal in enumerate(_REFUSALS, 1) if isinstance(failure, refusal))
        own[1] = next(kinds, len(_REFUSALS))
    found = np.asarray(multihost_utils.broadcast_one_to_all(own))
    if failure is not None:
        raise failure
    if found[1]:
        text = found[2:].tobytes().rstrip(b"\0").decode(errors="replace")
        raise _REFUSALS[found[1] - 1](text)
    return bool(found[0])


def _message(error: Exception) -> bytes:
    text = str(error)
    if not isinstance(error, EmodistillError):
        text = f"the first process stopped: {type(error).__name__}: {text}"
    return text.encode()[:MESSAGE_BYTES]


def to_host(array: Any) -> np.ndarray:
    """The whole of a jax.Array, in every process, whichever devices hold its parts."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
