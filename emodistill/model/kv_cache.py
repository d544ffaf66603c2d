"""The keys and values that generation keeps: of the slots, and of prefixes that may come again.

Each slot holds one request's tokens side by side, so that decoding reads them where they lie.
*Kept blocks* are copies of whole blocks of prompts; a later prompt that begins with the same tokens
takes them into its slot instead of computing them. A block is found by a hash of all tokens up to
its end, and holds the very numbers that computing it again would give, since the same program
computes it at the same positions.

Axes: L layers, B slots, Q kept blocks, K key/value heads, H head width, W positions of a slot,
P positions of a block.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emodistill.model import sharding
from emodistill.model.cached_attention import cache_block
from emodistill.model.config import Qwen2Config
from emodistill.model.programs import note_program

BLOCK = 16
"""Positions of a kept block. A prompt's last tokens that fill no block, and the block in which it
leaves an earlier one, are computed anew: half a block each, on average."""
COPIES = 64
"""Blocks that one call of a copying program moves at most."""


class Cache(NamedTuple):
    """Keys and values of all slots, or of all kept blocks."""

    keys: jax.Array
    """[L, B, K, H, W], or [Q, L, K, H, P] of kept blocks."""
    values: jax.Array
    """[L, B, K, W, H], or [Q, L, K, P, H]."""


def slot_length(num_tokens: int) -> int:
    """Positions of a slot with room for so many tokens.

    The last `BLOCK` of them are nobody's: rows of a program that stand for no token write there.
    """
    return -(-(num_tokens + BLOCK) // cache_block()) * cache_block()


def empty_slots(
    config: Qwen2Config, num_slots: int, length: int, dtype: Any, mesh: Mesh | None
) -> Cache:
    L, B, K, H = config.num_layers, num_slots, config.num_kv_heads, config.head_dim
    return _zeros((L, B, K, H, length), (L, B, K, length, H), dtype, mesh)


def empty_blocks(config: Qwen2Config, num_blocks: int, dtype: Any, mesh: Mesh | None) -> Cache:
    L, K, H = config.num_layers, config.num_kv_heads, config.head_dim
    return _zeros((num_blocks, L, K, H, BLOCK), (num_blocks, L, K, BLOCK, H), dtype, mesh)


def _zeros(keys: tuple[int, ...], values: tuple[int, ...], dtype: Any, mesh: Mesh | None) -> Cache:
    def place(shape: tuple[int, ...]) -> jax.Array:
        # Committed to devices like what programs return: with zeros that are not, the first program
        # would be compiled twice.
        return jnp.zeros(shape, dtype, device=sharding.cache_sharding(shape, mesh))

    return Cache(place(keys), place(values))


def constrained(cache: Cache, mesh: Mesh | None) -> Cache:
    """`cache` as it lies on the mesh, so that what a program returns takes the place of what it was
    given."""
    return Cache(*(sharding.constrain(x, mesh, sharding.CACHE) for x in cache))


@functools.partial(jax.jit, static_argnames=("length", "mesh"))
def grown(slots: Cache, length: int, mesh: Mesh | None) -> Cache:
    """`slots` with more positions."""
    note_program()
    more = length - slots.keys.shape[-1]
    keep = ((0, 0),) * 3
    more_slots = Cache(
        jnp.pad(slots.keys, (*keep, (0, 0), (0, more))),
        jnp.pad(slots.values, (*keep, (0, more), (0, 0))),
    )
    return constrained(more_slots, mesh)


class Copies(NamedTuple):
    """Which kept blocks go to, or come from, which positions of which slots."""

    blocks_C: np.ndarray
    slots_C: np.ndarray
    starts_C: np.ndarray
    count: int

    @classmethod
    def of(cls, copies: Sequence[tuple[int, int, int]]) -> Iterator[Copies]:
        """The (block, slot, start) of `copies` in calls of a fixed size."""
        for begin in range(0, len(copies), COPIES):
            some = copies[begin : begin + COPIES]
            table = np.zeros((3, COPIES), np.int32)
            table[:, : len(some)] = np.transpose(some)
            yield cls(*table, count=len(some))


@functools.partial(jax.jit, donate_argnames="slots", static_argnames="mesh")
def load_blocks(slots: Cache, blocks: Cache, copies: Copies, mesh: Mesh | None) -> Cache:
    """`slots` with kept blocks copied into them."""

    def one(i: jax.Array, slots: Cache) -> Cache:
        block, slot, start = (x[i] for x in copies[:3])
        keys_LKHP, values_LKPH = (
            jax.lax.dynamic_index_in_dim(x, block, keepdims=False) for x in blocks
        )
        return Cache(
            jax.lax.dynamic_update_slice(slots.keys, keys_LKHP[:, None], (0, slot, 0, 0, start)),
            jax.lax.dynamic_update_slice(
                slots.values, values_LKPH[:, None], (0, slot, 0, start, 0)
            ),
        )

    note_program()
    return constrained(jax.lax.fori_loop(0, copies.count, one, slots), mesh)


@functools.partial(jax.jit, donate_argnames="blocks", static_argnames="mesh")
def keep_blocks(slots: Cache, blocks: Cache, copies: Copies, mesh: Mesh | None) -> Cache:
    """`blocks` with copies of what slots hold."""
    L, _, K, H, _ = slots.keys.shape

    def one(i: jax.Array, blocks: Cache) -> Cache:
        block, slot, start = (x[i] for x in copies[:3])
        keys_LKHP = jax.lax.dynamic_slice(slots.keys, (0, slot, 0, 0, start), (L, 1, K, H, BLOCK))[
            :, 0
        ]
        values_LKPH = jax.lax.dynamic_slice(
            slots.values, (0, slot, 0, start, 0), (L, 1, K, BLOCK, H)
        )[:, 0]
        return Cache(
            jax.lax.dynamic_update_index_in_dim(blocks.keys, keys_LKHP, block, 0),
            jax.lax.dynamic_update_index_in_dim(blocks.values, values_LKPH, block, 0),
        )

    note_program()
    return constrained(jax.lax.fori_loop(0, copies.count, one, blocks), mesh)


def block_hashes(ids: Sequence[int]) -> list[bytes]:
    """A hash for each whole block of `ids`, of all tokens up to the block's end."""
    found = []
    running = hashlib.sha256()
    whole = np.asarray(ids[: len(ids) // BLOCK * BLOCK], np.int32).reshape(-1, BLOCK)
    for block in whole:
        running.update(block.tobytes())
        found.append(running.digest())
    return found


class KeptPrefixes:
    """Blocks of prompts, found by their hashes.

    The block whose last use is longest ago makes room for a new one.
    """

    def __init__(self, config: Qwen2Config, capacity: int, dtype: Any, mesh: Mesh | None) -> None:
        self.capacity = capacity
        self.blocks = empty_blocks(config, max(1, capacity), dtype, mesh)
        self._mesh = mesh
        self._free = list(range(capacity))[::-1]
        self._places: OrderedDict[bytes, int] = OrderedDict()

    def __contains__(self, name: bytes) -> bool:
        return name in self._places

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """Where the first of `hashes` are kept, as far as they all are."""
        found = [*itertools.takewhile(self._places.__contains__, hashes)]
        # The first block last: of a chain, which is of use as far as it is unbroken, the end has to
        # go first.
        for name in reversed(found):
            self._places.move_to_end(name)
        return [self._places[name] for name in found]

    def put(self, name: bytes) -> int:
        """A place for a block that is not kept yet; there must be some capacity."""
        place = self._free.pop() if self._free else self._places.popitem(last=False)[1]
        self._places[name] = place
        return place

    def load(self, slots: Cache, copies: Sequence[tuple[int, int, int]]) -> Cache:
        """`slots` with kept blocks; a copy says where the block is kept, which slot it is for, and
        where in the slot it begins."""
        for some in Copies.of(copies):
            slots = load_blocks(slots, self.blocks, some, self._mesh)
        return slots

    def keep(self, slots: Cache, copies: Sequence[tuple[int, int, int]]) -> None:
        """Keep blocks of `slots`; copies are as those of `load`."""
        for some in Copies.of(copies):
            self.blocks = keep_blocks(slots, self.blocks, some, self._mesh)
