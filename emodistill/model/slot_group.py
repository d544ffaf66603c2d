"""A group of slots: its cache, the requests that it serves, and the calls of its programs.

Groups of one engine may run in threads, side by side. What they share is used under one lock, which
is held while programs are made and handed over, and not while their results are waited for.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from emodistill.model import decoding, kv_cache
from emodistill.model.generation_requests import (
    Generated,
    GenerationRequest,
    NewTokens,
    TokenLogprobs,
)
from emodistill.model.kv_cache import BLOCK, Cache, KeptPrefixes
from emodistill.model.programs import Static, num_programs
from emodistill.model.sampling import Sampling

CHUNK = 128
"""Tokens of a chunk. On CPU larger ones are no faster (docs/notes.md), and fill less well."""
MAX_CHUNKS = 8
"""Chunks between two steps of decoding at most: those who decode wait no longer for new ones."""


@dataclasses.dataclass(slots=True)
class Counters:
    """What an engine has done so far."""

    prompt_tokens: int = 0
    """Tokens of all prompts that have begun to decode."""
    prefilled_tokens: int = 0
    """How many of them were computed; the others were kept."""
    generated_tokens: int = 0
    chunks: int = 0
    steps: int = 0
    """Of all groups together."""
    programs: int = 0
    """Programs that were compiled for this engine; of two alike, the second finds all of them."""


@dataclasses.dataclass(slots=True, eq=False)
class ServedRequest:
    """A request, from when it is taken to its last token."""

    handle: int
    request: GenerationRequest
    hashes: list[bytes]
    num_cached: int = 0
    """Tokens of the prompt that are in the slot."""
    ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)

    @property
    def num_prefilled(self) -> int:
        """Tokens that enter by chunks: all but the last."""
        return len(self.request.ids) - 1

    @property
    def is_decoding(self) -> bool:
        return self.num_cached >= self.num_prefilled


@dataclasses.dataclass(slots=True, frozen=True)
class Shared:
    """What the groups of an engine have in common."""

    graph: Static
    state: Any
    """The model's graph definition and weights."""
    vocab_size: int
    mesh: Mesh | None
    kept: KeptPrefixes
    counters: Counters
    lock: threading.Lock
    """Held by a group that changes these, or hands programs to the device: of two groups that need
    a new program at once, the second finds that of the first."""


class SlotGroup:
    """Slots that decode in one program.

    Args:
      slots: the cache, empty.
      shared: what the groups of an engine have in common.
    """

    def __init__(self, slots: Cache, shared: Shared) -> None:
        self._slots, self._mesh = slots, shared.mesh
        self._weights = shared.graph, shared.state
        self._kept, self._counters, self._lock = shared.kept, shared.counters, shared.lock
        num_slots = slots.keys.shape[1]
        self._served: list[ServedRequest | None] = [None] * num_slots
        self._is_put_off = False
        self._is_stop_BV = np.zeros((num_slots, shared.vocab_size), bool)
        self._is_stop_on_device = jax.device_put(self._is_stop_BV.copy())
        self._stops: list[frozenset[int]] = [frozenset()] * num_slots
        self._rows: list[tuple[int, ServedRequest]] = []
        """Who decodes in the latest run."""

    @property
    def num_served(self) -> int:
        return sum(one is not None for one in self._served)

    @property
    def has_room(self) -> bool:
        return None in self._served

    def add(self, one: ServedRequest) -> None:
        """Let a request have a free slot."""
        slot = self._served.index(None)
        self._served[slot] = one
        stops = one.request.stop_ids
        # A copy of the table goes to the device only where it has changed: for a large
        # vocabulary it is megabytes.
        if stops != self._stops[slot]:
            self._is_stop_BV[slot] = False
            self._is_stop_BV[slot, list(stops)] = True
            self._stops[slot] = stops
            # A copy, since on CPU the device may keep the very memory that it is given.
            self._is_stop_on_device = jax.device_put(self._is_stop_BV.copy())
        needed = len(one.request.ids) + one.request.max_new_tokens
        length = self._slots.keys.shape[-1]
        while length < kv_cache.slot_length(needed):
            length *= 2
        if length > self._slots.keys.shape[-1]:
            before = num_programs()
            self._slots = kv_cache.grown(self._slots, length, self._mesh)
            self._counters.programs += num_programs() - before

    def cancel(self, handle: int) -> None:
        with self._lock:  # the group may run
            self._served = [
                None if one is not None and one.handle == handle else one for one in self._served
            ]

    def run(self) -> decoding.Decoded | None:
        """Let prompts enter, and slots decode. Returns: their tokens, on the host; None where no
        slot decodes yet. `take` hands them to the requests."""
        with self._lock:
            before = num_programs()
            for _ in range(MAX_CHUNKS):
                self._load()
                if not self._prefill():
                    break
            decoded = self._decode()
            self._counters.programs += num_programs() - before
        return jax.device_get(decoded)

    def take(self, decoded: decoding.Decoded | None) -> list[NewTokens]:
        """What each request got by a run; those that have ended leave."""
        if decoded is None:
            return []
        with self._lock:  # for the counters
            self._counters.steps += int(decoded.num_steps)
            # Whoever was cancelled since has left already.
            rows = [(i, one) for i, one in self._rows if self._served[i] is one]
            return [self._progress(i, one, decoded) for i, one in rows]

    def _entering(self) -> list[tuple[int, ServedRequest]]:
        """Slots whose prompts are not in them yet, the oldest first."""
        found = [(i, one) for i, one in enumerate(self._served) if one and not one.is_decoding]
        return sorted(found, key=lambda item: item[1].handle)

    def _load(self) -> None:
        """Copy into the slots what is kept of their prompts."""
        copies: list[tuple[int, int, int]] = []
        for slot, one in self._entering():
            found = self._kept.find(one.hashes)[one.num_cached // BLOCK :]
            for place in found:
                copies.append((place, slot, one.num_cached))
                one.num_cached += BLOCK
        self._slots = self._kept.load(self._slots, copies)

    def _prefill(self) -> bool:
        """Compute a chunk; False where nothing is left to enter, or is put off."""
        num_pieces = CHUNK // BLOCK
        chosen: list[tuple[int, ServedRequest]] = []
        under_way: set[bytes] = set()
        for slot, one in self._entering():
            start = one.num_cached
            while start < one.num_prefilled and len(chosen) < num_pieces:
                name = one.hashes[start // BLOCK] if start // BLOCK < len(one.hashes) else None
                # What another slot computes just now is waited for, and copied after this chunk.
                if name in under_way and self._kept.capacity:
                    break
                if name is not None:
                    under_way.add(name)
                chosen.append((slot, one))
                start += BLOCK
        if not chosen:
            return False
        # A chunk that is not full waits, once, for what the next requests bring: it costs as much
        # as a full one.
        others_decode = any(one is not None and one.is_decoding for one in self._served)
        self._is_put_off = len(chosen) < num_pieces and others_decode and not self._is_put_off
        if self._is_put_off:
            return False
        tokens_GP = np.zeros((num_pieces, BLOCK), np.int32)
        slots_G = np.zeros(num_pieces, np.int32)
        starts_G = np.full(num_pieces, self._slots.keys.shape[-1] - BLOCK, np.int32)
        copies: list[tuple[int, int, int]] = []
        for g, (slot, one) in enumerate(chosen):
            start = one.num_cached
            end = min(start + BLOCK, one.num_prefilled)
            tokens_GP[g, : end - start] = one.request.ids[start:end]
            slots_G[g], starts_G[g] = slot, start
            one.num_cached = end
            self._counters.prefilled_tokens += end - start
            if end == start + BLOCK and self._kept.capacity:
                name = one.hashes[start // BLOCK]
                if name not in self._kept:
                    copies.append((self._kept.put(name), slot, start))
        pieces = decoding.Pieces(tokens_GP, slots_G, starts_G)
        self._slots = decoding.prefill(*self._weights, self._slots, pieces)
        self._kept.keep(self._slots, copies)
        self._counters.chunks += 1
        return True

    def _decode(self) -> decoding.Decoded | None:
        self._rows = [(i, one) for i, one in enumerate(self._served) if one and one.is_decoding]
        if not self._rows:
            return None
        num_slots = len(self._served)
        integers = np.zeros((4, num_slots), np.int32)
        seeds_B = np.zeros(num_slots, np.uint32)
        temperatures_B, top_ps_B = np.zeros((2, num_slots), np.float32)
        for i, one in self._rows:
            request = one.request
            if not one.ids:
                # A prompt has entered: the whole of it is now the latest use of its blocks.
                self._kept.find(one.hashes)
                self._counters.prompt_tokens += len(request.ids)
            latest = one.ids[-1] if one.ids else request.ids[-1]
            position = one.num_prefilled + len(one.ids)
            integers[:, i] = latest, position, len(one.ids), request.max_new_tokens
            seeds_B[i] = request.seed & 0xFFFFFFFF
            temperatures_B[i], top_ps_B[i] = request.temperature, request.top_p
        asked = [one.request.num_logprobs for _, one in self._rows]
        decoded, self._slots = decoding.decode(
            *self._weights,
            self._slots,
            decoding.DecodingRows(
                *integers,
                sampling=Sampling(seeds_B, temperatures_B, top_ps_B),
                is_stop_BV=self._is_stop_on_device,
                wants_logprobs=any(number is not None for number in asked),
                wants_likeliest=any(asked),
            ),
        )
        return decoded

    def _progress(self, slot: int, one: ServedRequest, decoded: decoding.Decoded) -> NewTokens:
        request = one.request
        tokens: list[int] = decoded.tokens_UB[: decoded.num_steps, slot].tolist()
        logprobs = None
        if request.num_logprobs is not None:
            logprobs = decoded.logprobs_of(slot, request.num_logprobs)
        one.ids += tokens
        one.logprobs += logprobs or []
        self._counters.generated_tokens += len(tokens)
        generated = None
        if one.ids[-1] in request.stop_ids or len(one.ids) >= request.max_new_tokens:
            reason = "stop" if one.ids[-1] in request.stop_ids else "length"
            generated = Generated(one.ids, None if logprobs is None else one.logprobs, reason)
            self._served[slot] = None
        return NewTokens(one.handle, tokens, logprobs, generated)
