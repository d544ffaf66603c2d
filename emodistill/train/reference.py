"""Log-probs of the reference policy: computed once, stored, and used again only for the same thing.

The file's name is a hash of all that the values depend on: base model, adapter, chat template,
the samples' token ids, who shares a row with whom, dtype, kind of device. κ and λ_KL are not among
them, so a whole ablation shares one file.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from emodistill.batches import Batch, PackedBatches
from emodistill.errors import InputError
from emodistill.model import Qwen2, agree, is_first, sharding
from emodistill.progress import progress
from emodistill.runs import canonical_json, write_tensors
from emodistill.train.loop import STEPS_AHEAD
from emodistill.train.trainer import response_logprobs

ARRAY = "ref_logp"


class Reference(NamedTuple):
    """log π_ref of every sample's reply, float32 [N, U], zeros after its end."""

    logp_NU: np.ndarray
    path: Path
    is_reused: bool


def reference_logprobs(
    model: Qwen2, batches: PackedBatches, *, directory: Path, made_from: Mapping[str, str]
) -> Reference:
    """The log-probs of all samples under `model` as it is now, from `directory` if they are there.

    Samples stand in the rows in which training sees them. A file that can't be read, or does not
    hold what its name says, is made again.

    Args:
      made_from: hashes of what the values depend on beside shapes, dtype and device.
    """
    facts = {
        **made_from,
        **batches.identity,
        "dtype": str(jnp.dtype(model.dtype)),
        "quantization": str(model.quantization),
        "backend": jax.default_backend(),
    }
    key = hashlib.sha256(canonical_json(facts).encode()).hexdigest()
    path = directory / f"{key}.safetensors"
    shape = (len(batches.examples), batches.num_reply_tokens)
    if agree(lambda: _read(path, key, shape) is not None):
        found = _read(path, key, shape)
        if found is None:
            raise InputError(f"{path} can't be read here; all processes must see the same files.")
        return Reference(found, path, True)
    logp_NU = _compute(model, batches, shape)
    if is_first():
        write_tensors(path, {ARRAY: logp_NU}, {"key": key, "made_from": canonical_json(facts)})
    return Reference(logp_NU, path, False)


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


def _compute(model: Qwen2, batches: PackedBatches, shape: tuple[int, int]) -> np.ndarray:
    graphdef, state = nnx.split(model)

    @jax.jit
    def logprobs(state: nnx.State, batch: Batch) -> jax.Array:
        logp_SU = response_logprobs(nnx.merge(graphdef, state), batch)
        return sharding.everywhere(jnp.where(batch.mask_SU, logp_SU, 0.0), model.mesh)

    logp_NU = np.zeros(shape, np.float32)
    pending: deque[tuple[list[int], jax.Array]] = deque()
    with progress("reference", total=shape[0], unit="samples", is_shown=is_first()) as bar:

        def settle(num_left: int) -> None:
            while len(pending) > num_left:
                numbers, logp_SU = pending.popleft()
                logp_NU[numbers] = np.asarray(logp_SU)[: len(numbers)]
                bar.advance(len(numbers))

        for numbers, batch in batches.each_batch():
            placed = sharding.put_batch(batch, model.mesh)
            pending.append((numbers, logprobs(state, placed)))
            settle(STEPS_AHEAD)
        settle(0)
    return logp_NU
