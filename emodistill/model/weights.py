"""Checkpoints in Hugging Face layout: safetensors in, safetensors out.

Parameter names map mechanically: `model.layers.3.self_attn.q_proj.weight` is slice 3 of
`layers.self_attn.q_proj.weight`. Only JSON and safetensors are read; nothing is unpickled.
"""

from __future__ import annotations

import functools
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from flax import nnx
from huggingface_hub import split_state_dict_into_shards_factory
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from emodistill.configs import AttentionForm, Quantization, Remat
from emodistill.errors import InputError
from emodistill.files import write_json
from emodistill.model.config import ParamPath, Qwen2Config
from emodistill.model.fingerprint import fingerprint_of_sums, rounded_sums
from emodistill.model.quantization import is_quantizable, quantized
from emodistill.model.qwen2 import Qwen2
from emodistill.model.sharding import param_sharding
from emodistill.tensor_files import write_tensors
from emodistill.untrusted import brief, read_typed, shown

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 4 * 10**9
"""As large as the files of Hugging Face's own checkpoints."""
MAX_GROUP_BYTES = 2**28
"""Bytes of a stacked parameter that are read at once: little beside the largest shard of a 7B
model, and enough for the disk."""

TIED_ROWS = 8_192
"""Of an embedding and its head that are compared at once."""

_READABLE_DTYPES = ("F32", "F16", "BF16")
_FOREIGN_FORMATS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.ckpt", "*.msgpack", "*.h5")


def load_qwen2(
    path: Path | str,
    mesh: Mesh | None = None,
    dtype: Any = jnp.bfloat16,
    *,
    remat: Remat = "none",
    quantize: Quantization | None = None,
    attention: AttentionForm | None = None,
) -> Qwen2:
    """Load a checkpoint folder (config.json and one or many .safetensors files).

    A few layers of one parameter are read at a time, and of them only what this process's devices
    hold, straight from the memory-mapped files: beside the model itself the host holds little
    more than the largest of its tensors (`bench.py load`).

    Args:
      mesh: spread the parameters over its axes `fsdp` and `tensor` (see `sharding`); one device
        without it.
      dtype: of the weights in memory; bfloat16 on accelerators, float32 on CPUs.
      remat: what the backward pass computes again (see `Qwen2`).
      quantize: hold the projections of all layers in 8 or 4 bits (see `quantization`).
      attention: `xla` or `pallas` (see `attention_forms`); the faster one without it.

    Raises:
      InputError: something is missing, truncated, of a wrong shape, unexpected or of another
        format; the message names the file and the tensor.
    """
    folder = Path(path)
    config = Qwen2Config.from_pretrained(folder)
    abstract = nnx.eval_shape(
        lambda: Qwen2(
            config,
            key=jax.random.key(0),
            dtype=dtype,
            remat=remat,
            mesh=mesh,
            attention=attention,
        )
    )
    graphdef, state = nnx.split(abstract)
    leaves = dict(nnx.to_flat_state(state))
    values: list[tuple[ParamPath, Any]] = []
    sums: dict[ParamPath, list[np.ndarray]] = defaultdict(list)
    with ExitStack() as stack:
        files = _open_files(folder, stack)
        shapes = {
            name: leaf.shape if layer is None else leaf.shape[1:]
            for param_path, leaf in leaves.items()
            for name, layer in _tensors(param_path, leaf.shape).items()
        }
        _check_tensors(folder, files, shapes)
        for param_path, leaf in leaves.items():
            whole = None
            for first, part in _read_groups(param_path, leaf.shape, files, mesh, dtype):
                layers: Any = part
                if quantize is not None:
                    # The fingerprint is that of the file's weights.
                    sums[param_path].append(rounded_sums(part, first))
                    if is_quantizable(param_path):
                        layers = quantized(part, quantize)
                whole = _filled(whole, layers, first, param_path, leaf.shape, mesh)
            values.append((param_path, leaf.replace(whole)))
    model = nnx.merge(graphdef, nnx.from_flat_state(values))
    if quantize is not None:
        model.quantization = quantize
        model.fingerprint = fingerprint_of_sums(
            config, {name: (leaf.shape, sums[name]) for name, leaf in leaves.items()}
        )
    return model


def save_qwen2(model: Qwen2, path: Path | str, extra_files: Iterable[Path | str] = ()) -> None:
    """Write `model`'s base weights (no LoRA) as a checkpoint folder in Hugging Face layout.

    `extra_files` (tokenizer, generation config) are copied beside. Files over 4 GB are split.

    Raises:
      InputError: the weights are quantized, so that the real ones are not there to be written.
    """
    if model.quantization is not None:
        raise InputError(
            f"a model held in {model.quantization} can't be saved; load it without quantize."
        )
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for param_path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        array = np.asarray(leaf[...])
        for name, layer in _tensors(param_path, leaf.shape).items():
            tensors[name] = array if layer is None else array[layer]
    split = split_state_dict_into_shards_factory(
        # In the order of layers, numbers as numbers: layer 2 before layer 10.
        {name: tensors[name] for name in sorted(tensors, key=_natural_order)},
        get_storage_size=lambda array: array.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=MAX_SHARD_BYTES,
    )
    for file, names in split.filename_to_tensors.items():
        write_tensors(folder / file, {name: tensors[name] for name in names}, {"format": "pt"})
    # What was there before must not be read in place of what is written now.
    for name in {SINGLE_FILE, INDEX_FILE} - {*split.filename_to_tensors}:
        (folder / name).unlink(missing_ok=True)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / INDEX_FILE, index)
    for source in extra_files:
        shutil.copyfile(source, folder / Path(source).name)
    write_json(folder / "config.json", model.config.to_hf(dtype=jnp.dtype(model.dtype).name))


def _natural_order(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _tensors(path: ParamPath, shape: Sequence[int]) -> dict[str, int | None]:
    """Hugging Face's names of a parameter's tensors, each with its layer where it is stacked."""
    if path[0] != "layers":
        return {".".join(path if path[0] == "lm_head" else ("model", *path)): None}
    return {".".join(("model.layers", str(i), *path[1:])): i for i in range(shape[0])}


def open_safetensors(path: Path) -> Any:
    """A lazily read safetensors file, a context manager.

    Raises:
      InputError: the file is torn; names it.
    """
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} can't be read as safetensors ({error}); it is truncated or of another "
            "format, copy it again."
        ) from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder.

    Raises:
      InputError: there are none, or one is missing, or the index can't be used.
    """
    index_path = folder / INDEX_FILE
    if (folder / SINGLE_FILE).is_file():  # before an index beside it, as transformers does
        names = [SINGLE_FILE]
    elif index_path.is_file():
        names = _index_files(index_path)
    else:
        foreign = sorted(p.name for pattern in _FOREIGN_FORMATS for p in folder.glob(pattern))
        hint = f" {foreign[0]} is another format; convert it to safetensors." if foreign else ""
        raise InputError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}.{hint}")
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing, but {INDEX_FILE} lists it; copy it too.")
    return [folder / name for name in names]


def _open_files(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Open file of each tensor name."""
    files: dict[str, Any] = {}
    for path in weight_files(folder):
        file = stack.enter_context(open_safetensors(path))
        files.update(dict.fromkeys(file.keys(), file))
    return files


class _Index(msgspec.Struct):
    """What is read of an index: the file of each tensor."""

    weight_map: dict[str, str]


def _index_files(index_path: Path) -> list[str]:
    index = read_typed(index_path, _Index, "Copy the file again.")
    names = sorted(set(index.weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(
                f"{index_path} lists {shown(name)}; only .safetensors beside it are read."
            )
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
        check_dtype(folder, name, tensor)
    if "lm_head.weight" in files and "lm_head.weight" not in expected:
        _check_tied_head(folder, files)


def check_dtype(path: Path, name: str, tensor: Any) -> None:
    """Refuse a tensor of a file that is stored as no ordinary floats, such as in eight bits."""
    if tensor.get_dtype() not in _READABLE_DTYPES:
        raise InputError(
            f"{path}: {brief(name)} is stored as {tensor.get_dtype()}; "
            f"readable: {', '.join(_READABLE_DTYPES)}."
        )


def _check_tied_head(folder: Path, files: Mapping[str, Any]) -> None:
    """Refuse a head of its own beside a config.json that says that it is the embedding's."""
    names = ("lm_head.weight", "model.embed_tokens.weight")
    head, embedding = (files[name].get_slice(name) for name in names)
    check_dtype(folder, "lm_head.weight", head)
    shapes = head.get_shape(), embedding.get_shape()
    num_rows = shapes[1][0]
    ends = ((first, min(first + TIED_ROWS, num_rows)) for first in range(0, num_rows, TIED_ROWS))
    is_same = shapes[0] == shapes[1] and all(
        np.array_equal(head[first:end], embedding[first:end]) for first, end in ends
    )
    if not is_same:
        raise InputError(
            f"{folder}: lm_head.weight differs from the embedding, but config.json has "
            "tie_word_embeddings=true. Set it to false where the head is the model's own, or take "
            "the head out of the weights."
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{rest} {'is' if len(names) == 1 else 'are'}"


def _read_groups(
    path: ParamPath,
    shape: tuple[int, ...],
    files: Mapping[str, Any],
    mesh: Mesh | None,
    dtype: Any,
) -> Iterator[tuple[int, jax.Array]]:
    """The parameter with that path, a few layers at a time, each on the devices that keep it.

    Yields: the first layer, and the array of it and the next ones.
    """
    names = list(_tensors(path, shape))
    layer_bytes = math.prod(shape[1:]) * jnp.dtype(dtype).itemsize
    size = max(1, MAX_GROUP_BYTES // layer_bytes)
    for first in range(0, len(names), size):
        group = names[first : first + size]
        part = (len(group), *shape[1:]) if path[0] == "layers" else shape
        read = functools.partial(_read, files, group, part, dtype)
        yield first, _assembled(part, param_sharding(path, part, mesh), read)


def _assembled(
    shape: tuple[int, ...], sharding: jax.sharding.Sharding, read: Callable[[Any], np.ndarray]
) -> jax.Array:
    """An array of `shape` from the parts that `read` gives for an index.

    Devices that hold copies of a part share one reading of it.
    """
    parts: dict[str, np.ndarray] = {}

    def part(index: Any) -> np.ndarray:
        key = str(index)  # slices can't be hashed before Python 3.12
        if key not in parts:
            parts[key] = read(index)
        return parts[key]

    return jax.make_array_from_callback(shape, sharding, part)


def _read(
    files: Mapping[str, Any], names: Sequence[str], shape: tuple[int, ...], dtype: Any, index: Any
) -> np.ndarray:
    """What one device holds of a parameter, or of some of its layers, stacked to `shape`."""
    tensors = [files[name].get_slice(name) for name in names]
    if len(tensors[0].get_shape()) == len(shape):
        return tensors[0][index].astype(dtype, copy=False)
    # Read into the array that they become, so that nothing is held twice.
    sizes = [len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True)]
    out = np.empty(sizes, dtype)
    for i, tensor in enumerate(tensors[index[0]]):
        out[i] = tensor[index[1:]]
    return out


def _filled(
    whole: Any,
    part: Any,
    first: int,
    path: ParamPath,
    shape: tuple[int, ...],
    mesh: Mesh | None,
) -> Any:
    """The array (or quantized array) of all layers with `part` of them, from `first` on.

    It is filled group by group on its devices: to concatenate the groups would take the parameter's
    memory twice.
    """
    if part.shape == shape:
        return part
    if whole is None:
        whole = jax.tree.map(
            lambda x: jnp.zeros(
                (full := (shape[0], *x.shape[1:])),
                x.dtype,
                device=param_sharding(path, full, mesh),
            ),
            part,
        )
    return _fill(whole, part, jnp.int32(first))


@functools.partial(jax.jit, donate_argnums=0)
def _fill(whole: Any, part: Any, first: jax.Array) -> Any:
    return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, first, axis=0), whole, part
    )
