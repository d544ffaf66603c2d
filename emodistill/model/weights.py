"""Checkpoints in Hugging Face layout: safetensors in, safetensors out.

Parameter names map mechanically: `model.layers.3.self_attn.q_proj.weight` is slice 3 of
`layers.self_attn.q_proj.weight`. Only JSON and safetensors are read; nothing is unpickled.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from emodistill import runs
from emodistill.errors import InputError
from emodistill.model.config import Qwen2Config
from emodistill.model.qwen2 import ParamPath, Qwen2, flat_state
from emodistill.model.sharding import param_sharding

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 4 * 10**9

_READABLE_DTYPES = ("F32", "F16", "BF16")
_FOREIGN_FORMATS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.ckpt", "*.msgpack", "*.h5")


def load_qwen2(
    path: Path | str, mesh: Mesh | None = None, dtype: Any = jnp.bfloat16, *, remat: bool = False
) -> Qwen2:
    """Load a checkpoint folder (config.json and one or many .safetensors files).

    One parameter is read at a time, and of it only what a device holds, straight from the
    memory-mapped files.

    Args:
      mesh: spread the parameters over its axes `fsdp` and `tensor` (see `sharding`); one device
        without it.
      dtype: of the weights in memory; bfloat16 on accelerators, float32 on CPUs.

    Raises:
      InputError: something is missing, truncated, of a wrong shape, unexpected or of another
        format; the message names the file and the tensor.
    """
    folder = Path(path)
    config = Qwen2Config.from_pretrained(folder)
    shapes = nnx.eval_shape(lambda: Qwen2(config, key=jax.random.key(0), dtype=dtype, remat=remat))
    graphdef, state = nnx.split(shapes)
    leaves = flat_state(state)
    with ExitStack() as stack:
        files = _open_files(folder, stack)
        _check_tensors(folder, files, _expected_shapes(config, leaves))
        arrays = [
            (place, leaf.replace(_read_param(place, leaf.shape, config, files, mesh, dtype)))
            for place, leaf in leaves.items()
        ]
    return nnx.merge(graphdef, nnx.from_flat_state(arrays))


def save_qwen2(model: Qwen2, path: Path | str, extra_files: Iterable[Path | str] = ()) -> None:
    """Write `model`'s base weights (no LoRA) as a checkpoint folder in Hugging Face layout.

    `extra_files` (tokenizer, generation config) are copied beside. Files over 4 GB are split.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(model))
    names = [
        SINGLE_FILE if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        for i in range(1, len(shards) + 1)
    ]
    for name, places in zip(names, shards, strict=True):
        tensors = {
            hf_name: np.asarray(leaf if layer is None else leaf[layer])
            for hf_name, leaf, layer in places
        }
        runs.write_tensors(folder / name, tensors, {"format": "pt"})
    if len(shards) > 1:
        weight_map = {
            hf_name: name
            for name, places in zip(names, shards, strict=True)
            for hf_name, _, _ in places
        }
        total = sum(_num_bytes(leaf, layer) for places in shards for _, leaf, layer in places)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        runs.write_json(folder / INDEX_FILE, index)
    for source in extra_files:
        shutil.copyfile(source, folder / Path(source).name)
    runs.write_json(folder / "config.json", model.config.to_hf(dtype=jnp.dtype(model.dtype).name))


def hf_name(place: ParamPath, layer: int | None = None) -> str:
    """Hugging Face's name of the parameter at `place` (of one layer, where it is stacked)."""
    if place[0] == "lm_head":
        return ".".join(place)
    if place[0] == "layers":
        return ".".join(("model", "layers", str(layer), *place[1:]))
    return ".".join(("model", *place))


def _tensors(config: Qwen2Config, place: ParamPath) -> list[tuple[str, int | None]]:
    if place[0] != "layers":
        return [(hf_name(place), None)]
    return [(hf_name(place, layer), layer) for layer in range(config.num_layers)]


def _expected_shapes(
    config: Qwen2Config, leaves: Mapping[ParamPath, Any]
) -> dict[str, tuple[int, ...]]:
    return {
        name: leaf.shape if layer is None else leaf.shape[1:]
        for place, leaf in leaves.items()
        for name, layer in _tensors(config, place)
    }


def open_safetensors(path: Path, stack: ExitStack) -> Any:
    """A lazily read safetensors file, closed with `stack`; names a torn file."""
    try:
        return stack.enter_context(safe_open(path, framework="numpy"))
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} can't be read as safetensors ({error}); it is truncated or of another "
            "format, copy it again."
        ) from None


def _open_files(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Open file of each tensor name."""
    index_path = folder / INDEX_FILE
    if index_path.is_file():
        names = _index_files(index_path)
    elif (folder / SINGLE_FILE).is_file():
        names = [SINGLE_FILE]
    else:
        foreign = sorted(p.name for pattern in _FOREIGN_FORMATS for p in folder.glob(pattern))
        hint = f" {foreign[0]} is another format; convert it to safetensors." if foreign else ""
        raise InputError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}.{hint}")
    files: dict[str, Any] = {}
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing, but {INDEX_FILE} lists it; copy it too.")
        file = open_safetensors(folder / name, stack)
        files.update(dict.fromkeys(file.keys(), file))
    return files


def _index_files(index_path: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index_path.read_text())["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index_path} has no usable weight_map ({error!r}).") from None
    for name in names:
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or not name.endswith(".safetensors")
        ):
            raise InputError(f"{index_path} lists {name!r}; only .safetensors beside it are read.")
    return names


def _check_tensors(
    folder: Path, files: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]
) -> None:
    missing = [name for name in expected if name not in files]
    if missing:
        raise InputError(
            f"{folder}: {_some(missing)} missing from the weights; the copy is incomplete or "
            "config.json belongs to another model."
        )
    # Redundant but harmless: a tied head stored twice, RoPE tables of old Llama checkpoints.
    unexpected = [
        name
        for name in files
        if name not in expected
        and name != "lm_head.weight"
        and not name.endswith("rotary_emb.inv_freq")
    ]
    if unexpected:
        raise InputError(
            f"{folder}: {_some(unexpected)} unexpected; config.json describes no such tensors."
        )
    for name, shape in expected.items():
        tensor = files[name].get_slice(name)
        if tuple(tensor.get_shape()) != tuple(shape):
            raise InputError(
                f"{folder}: {name} has shape {tensor.get_shape()}, but config.json asks for "
                f"{list(shape)}."
            )
        if tensor.get_dtype() not in _READABLE_DTYPES:
            raise InputError(
                f"{folder}: {name} is stored as {tensor.get_dtype()}; "
                f"readable: {', '.join(_READABLE_DTYPES)}."
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{rest} {'is' if len(names) == 1 else 'are'}"


def _read_param(
    place: ParamPath,
    shape: tuple[int, ...],
    config: Qwen2Config,
    files: Mapping[str, Any],
    mesh: Mesh | None,
    dtype: Any,
) -> jax.Array:
    tensors = _tensors(config, place)

    def read(index: Any) -> np.ndarray:
        """What one device holds: a slice of each of its layers."""
        if place[0] != "layers":
            name, _ = tensors[0]
            return files[name].get_slice(name)[index].astype(dtype)
        chosen = tensors[index[0]]
        sizes = [len(range(*part.indices(n))) for part, n in zip(index, shape, strict=True)]
        out = np.empty(sizes, dtype)
        for i, (name, _) in enumerate(chosen):
            out[i] = files[name].get_slice(name)[index[1:]]
        return out

    sharding = param_sharding(place, shape, mesh)
    return jax.make_array_from_callback(tuple(shape), sharding, read, dtype=dtype)


def _num_bytes(leaf: jax.Array, layer: int | None) -> int:
    return leaf.nbytes if layer is None else leaf.nbytes // leaf.shape[0]


def _shards(model: Qwen2) -> Iterator[list[tuple[str, jax.Array, int | None]]]:
    """The tensors in layer order, cut into lists of at most MAX_SHARD_BYTES."""
    leaves = flat_state(nnx.state(model, nnx.Param))
    tensors = [
        (name, leaf[...], layer)
        for place, leaf in leaves.items()
        for name, layer in _tensors(model.config, place)
    ]
    tensors.sort(
        key=lambda item: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", item[0])]
    )
    shard: list[tuple[str, jax.Array, int | None]] = []
    size = 0
    for tensor in tensors:
        num_bytes = _num_bytes(*tensor[1:])
        if shard and size + num_bytes > MAX_SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += num_bytes
    yield shard
