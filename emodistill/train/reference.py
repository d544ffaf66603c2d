"""Log-probs of the reference policy, computed once and stored for all runs with the same reference.

The file's name is a hash of all that the values depend on: base model, adapter, chat template,
the samples' token ids, which samples share a row, dtype, kind of device. κ and λ_KL are not among
them, so a whole ablation shares one file.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from emodistill.batches import Batch, PackedBatches
from emodistill.errors import InputError
from emodistill.files import canonical_json
from emodistill.model import Qwen2, agree, is_first, sharding
from emodistill.progress import Progress
from emodistill.tensor_files import write_tensors
from emodistill.train.loop import STEPS_AHEAD
from emodistill.train.prefetch import prefetched
from emodistill.train.trainer import response_logprobs

ARRAY = "ref_logp"


class ReferenceFile(NamedTuple):
    """Where the log-probs of a reference are kept."""

    path: Path
    facts: Mapping[str, Any]
    """All that the values depend on."""

    @property
    def key(self) -> str:
        """The hash of the facts, which is also the file's name."""
        return self.path.stem


def reference_file(
    model: Qwen2, batches: PackedBatches, *, directory: Path, made_from: Mapping[str, str]
) -> ReferenceFile:
    """The file for `model` as it is now and the rows of `batches`; it need not be there.

    Args:
      made_from: hashes of what the values depend on beside shapes, dtype and device.
    """
    facts = {
        **made_from,
        **batches.identity,
        "dtype": str(jnp.dtype(model.dtype)),
        "quantization": str(model.quantization),
        "backend": jax.default_backend(),
        "attention": model.attention,
    }
    key = hashlib.sha256(canonical_json(facts).encode()).hexdigest()
    return ReferenceFile(directory / f"{key}.safetensors", facts)


def reference_logprobs(
    model: Qwen2, batches: PackedBatches, *, directory: Path, made_from: Mapping[str, str]
) -> np.ndarray:
    """log π of every sample's reply under `model` as it is now, read from `directory` if stored.

    Samples stand in the rows in which training sees them. A file that can't be read, or does not
    hold what its name says, is written anew.

    Returns: float32 [N, U], zeros after a reply's end.

    Args:
      made_from: as for `reference_file`.

    Raises:
      InputError: not all processes can read the file.
    """
    file = reference_file(model, batches, directory=directory, made_from=made_from)
    stored = stored_logprobs(file, batches)
    if not agree(lambda: stored is not None):
        logp_NU = computed_logprobs(model, batches, batches.each_batch(), len(batches.examples))
        if is_first():
            metadata = {"key": file.key, "made_from": canonical_json(file.facts)}
            write_tensors(file.path, {ARRAY: logp_NU}, metadata)
        return logp_NU
    if stored is None:
        raise InputError(f"{file.path} can't be read here; all processes must see the same files.")
    return stored


def stored_logprobs(file: ReferenceFile, batches: PackedBatches) -> np.ndarray | None:
    """What the file holds for `batches`; None where it is missing or not what its name says."""
    return _read(file.path, file.key, (len(batches.examples), batches.num_reply_tokens))


def _read(path: Path, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            logp_NU = file.get_tensor(ARRAY)
    except (SafetensorError, OSError):
        return None
    is_whole = logp_NU.shape == shape and logp_NU.dtype == np.float32
    return logp_NU if is_whole and np.isfinite(logp_NU).all() else None


def computed_logprobs(
    model: Qwen2,
    batches: PackedBatches,
    rows: Iterable[tuple[list[int], Batch]],
    num_samples: int,
) -> np.ndarray:
    """log π under `model` of the samples in `rows`, float32 [N, U]; zeros for all others.

    Args:
      rows: micro-batches of `batches`, each with its samples along S, as `each_batch` has them.
      num_samples: how many they are together.
    """
    graphdef, state = nnx.split(model)

    def dispatched(row: tuple[list[int], Batch]) -> tuple[list[int], jax.Array]:
        numbers, batch = row
        return numbers, _logprobs(graphdef, state, sharding.put_batch(batch, model.mesh))

    logp_NU = np.zeros((len(batches.examples), batches.num_reply_tokens), np.float32)
    with Progress("reference", total=num_samples, unit="samples", is_shown=is_first()) as bar:
        # Reading a result waits for the device, which must have the next micro-batches by then.
        for numbers, logp_SU in prefetched(dispatched, rows, ahead=STEPS_AHEAD):
            logp_NU[numbers] = np.asarray(logp_SU)[: len(numbers)]
            bar.advance(len(numbers))
    return logp_NU


@functools.partial(jax.jit, static_argnums=0)
def _logprobs(graphdef: nnx.GraphDef, state: nnx.State, batch: Batch) -> jax.Array:
    model = nnx.merge(graphdef, state)
    logp_SU = response_logprobs(model, batch)
    return sharding.everywhere(jnp.where(batch.mask_SU, logp_SU, 0.0), model.mesh)
