"""Where each parameter lives on a mesh with (some of) the axes `data`, `fsdp` and `tensor`."""

from __future__ import annotations

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

# Layouts are [out, in] behind the layer axis: columns first split over `tensor` in the layers
# that widen (q, k, v, gate, up), rows in those that narrow (o, down), so that the pair needs one
# reduction.
_WIDENING = ("tensor", "fsdp")
_NARROWING = ("fsdp", "tensor")
_AXES = {
    "q_proj": _WIDENING,
    "k_proj": _WIDENING,
    "v_proj": _WIDENING,
    "gate_proj": _WIDENING,
    "up_proj": _WIDENING,
    "o_proj": _NARROWING,
    "down_proj": _NARROWING,
    "embed_tokens": _WIDENING,
    "lm_head": _WIDENING,
}


def param_sharding(
    path: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh | None
) -> jax.sharding.Sharding:
    """The sharding of the parameter at `path`, e.g. ("layers", "mlp", "up_proj", "weight").

    An axis that the mesh lacks, or that does not divide the dimension, leaves it whole; norms
    are replicated. Without a mesh everything lives on the first device.
    """
    if mesh is None:
        return SingleDeviceSharding(jax.local_devices()[0])
    axes: tuple[str | None, ...] = _AXES.get(path[-2], ())
    if path[-1] == "bias":
        axes = axes[:1]
    leading = (None,) * (len(shape) - len(axes))
    spec = [
        axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
        for axis, size in zip((*leading, *axes), shape, strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*spec))
