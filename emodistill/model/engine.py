"""Generation as an engine: requests join and leave between the steps of one decoding program.

Each request has a slot while it is served. Its prompt enters in chunks, which it shares with other
prompts; what an earlier prompt began with as well is not computed again but copied from the kept
blocks (`kv_cache`). All slots then decode together. Shapes are fixed and rows don't mix, so that a
request's tokens depend on the request alone: not on its neighbours, its slot, the order, or on what
was kept.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from flax import nnx

from emodistill.errors import InputError
from emodistill.model import decoding, kv_cache
from emodistill.model.config import Qwen2Config
from emodistill.model.generation_requests import (
    Generated,
    GenerationRequest,
    NewTokens,
    TokenLogprobs,
)
from emodistill.model.kv_cache import BLOCK
from emodistill.model.programs import num_programs
from emodistill.model.qwen2 import Qwen2
from emodistill.model.sampling import Sampling

DEFAULT_SLOTS = 16
"""Rows of the decoding program: a multiple of what processors add at once. A step costs little more
with many of them than with one, since all of them share one reading of the weights."""
DEFAULT_KEPT_TOKENS = 16_384
"""Tokens of kept prefixes: 0.75 GB of a model of 135 million parameters, 0.9 GB of a 7B one."""
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
    programs: int = 0
    """Programs that were compiled for this engine; of two alike, the second finds all of them."""


@dataclasses.dataclass(slots=True, eq=False)
class _Served:
    """A request in its slot."""

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


class Engine:
    """Continues prompts with one model. Not thread-safe: one thread at a time uses it.

    The model's weights are taken as they are when the engine is made.

    Args:
      num_slots: how many requests are served at once, `DEFAULT_SLOTS` without it; the others wait.
      max_tokens: most tokens of a prompt and its continuation, for which slots are made. Without it
        they grow, up to the model's positions, as requests need it; each time they double, and
        programs for the new length are compiled.
      max_kept_tokens: bounds the kept prefixes; 0 keeps nothing.

    Raises:
      InputError: an argument is out of range.
    """

    def __init__(
        self,
        model: Qwen2,
        *,
        num_slots: int | None = None,
        max_tokens: int | None = None,
        max_kept_tokens: int = DEFAULT_KEPT_TOKENS,
    ) -> None:
        num_slots = DEFAULT_SLOTS if num_slots is None else num_slots
        if num_slots < 1:
            raise InputError(f"num_slots={num_slots} must be at least 1.")
        if max_kept_tokens < 0:
            raise InputError(f"max_kept_tokens={max_kept_tokens} must be 0 or above.")
        config = model.config
        self.config: Qwen2Config = config
        self.max_tokens = config.max_positions if max_tokens is None else max_tokens
        if not 1 < self.max_tokens <= config.max_positions:
            raise InputError(
                f"max_tokens={max_tokens} must lie between 2 and the model's "
                f"{config.max_positions} positions."
            )
        self.counters = Counters()
        self._mesh = model.mesh
        self._graphdef, self._state = nnx.split(model)
        # Slots that grow begin with the least length there is.
        length = kv_cache.slot_length(1 if max_tokens is None else max_tokens)
        self._slots = kv_cache.empty_slots(config, num_slots, length, model.dtype, model.mesh)
        num_blocks = max_kept_tokens // BLOCK
        self._blocks = kv_cache.empty_blocks(config, max(1, num_blocks), model.dtype, model.mesh)
        self._kept = kv_cache.KeptPrefixes(num_blocks)
        self._handles = itertools.count()
        self._waiting: deque[_Served] = deque()
        self._served: list[_Served | None] = [None] * num_slots
        self._is_put_off = False
        self._is_stop_BV = np.zeros((num_slots, config.vocab_size), bool)
        self._is_stop_on_device = jax.device_put(self._is_stop_BV.copy())
        self._stops: list[frozenset[int]] = [frozenset()] * num_slots

    @property
    def num_unfinished(self) -> int:
        """Requests that wait or are served."""
        return len(self._waiting) + sum(one is not None for one in self._served)

    def add(self, request: GenerationRequest) -> int:
        """Take a request, which joins when a slot is free.

        Returns: its handle.

        Raises:
          InputError: a field is out of range, or the prompt is empty, holds an unknown token id or
            has no room.
        """
        request.check(self.config, self.max_tokens)
        handle = next(self._handles)
        hashes = kv_cache.block_hashes(request.ids[:-1])
        self._waiting.append(_Served(handle, request, hashes))
        return handle

    def cancel(self, handle: int) -> None:
        """Forget a request; one that has ended is forgotten already."""
        self._waiting = deque(one for one in self._waiting if one.handle != handle)
        self._served = [
            None if one is not None and one.handle == handle else one for one in self._served
        ]

    def step(self) -> list[NewTokens]:
        """Let requests join, then make up to `decoding.MAX_STEPS` tokens for each that decodes.

        Returns: what each of these got; empty where no request is left.
        """
        before = num_programs()
        self._join()
        for _ in range(MAX_CHUNKS):
            self._load()
            if not self._prefill():
                break
        progress = self._decode()
        self.counters.programs += num_programs() - before
        return progress

    def generate(self, requests: Iterable[GenerationRequest]) -> list[Generated]:
        """Serve requests to their ends, beside those that are served already.

        Raises:
          InputError: as `add`; then none of them is taken.
        """
        requests = list(requests)
        for i, request in enumerate(requests):
            request.check(self.config, self.max_tokens, f"prompts[{i}]")
        handles = [self.add(request) for request in requests]
        found: dict[int, Generated] = {}
        while not found.keys() >= set(handles):
            found |= {one.handle: one.generated for one in self.step() if one.generated is not None}
        return [found[handle] for handle in handles]

    def _join(self) -> None:
        for slot, occupant in enumerate(self._served):
            if occupant is not None or not self._waiting:
                continue
            self._served[slot] = one = self._waiting.popleft()
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
                self._slots = kv_cache.grown(self._slots, length, self._mesh)

    def _entering(self) -> list[tuple[int, _Served]]:
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
        for some in kv_cache.Copies.of(copies):
            self._slots = kv_cache.load_blocks(self._slots, self._blocks, some, self._mesh)

    def _prefill(self) -> bool:
        """Compute a chunk; False where nothing is left to enter, or is put off."""
        num_pieces = CHUNK // BLOCK
        chosen: list[tuple[int, _Served]] = []
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
            self.counters.prefilled_tokens += end - start
            if end == start + BLOCK and self._kept.capacity:
                name = one.hashes[start // BLOCK]
                if name not in self._kept:
                    copies.append((self._kept.put(name), slot, start))
        pieces = decoding.Pieces(tokens_GP, slots_G, starts_G)
        self._slots = decoding.prefill(self._graphdef, self._state, self._slots, pieces)
        for some in kv_cache.Copies.of(copies):
            self._blocks = kv_cache.keep_blocks(self._slots, self._blocks, some, self._mesh)
        self.counters.chunks += 1
        return True

    def _decode(self) -> list[NewTokens]:
        rows = [(i, one) for i, one in enumerate(self._served) if one and one.is_decoding]
        if not rows:
            return []
        integers = np.zeros((4, len(self._served)), np.int32)
        seeds_B = np.zeros(len(self._served), np.uint32)
        temperatures_B, top_ps_B = np.zeros((2, len(self._served)), np.float32)
        for i, one in rows:
            request = one.request
            if not one.ids:
                self._begin(one)
            latest = one.ids[-1] if one.ids else request.ids[-1]
            position = one.num_prefilled + len(one.ids)
            integers[:, i] = latest, position, len(one.ids), request.max_new_tokens
            seeds_B[i] = request.seed & 0xFFFFFFFF
            temperatures_B[i], top_ps_B[i] = request.temperature, request.top_p
        sampling = Sampling(seeds_B, temperatures_B, top_ps_B)
        asked = [one.request.num_logprobs for _, one in rows]
        decoded, self._slots = decoding.decode(
            self._graphdef,
            self._state,
            self._slots,
            decoding.DecodingRows(
                *integers,
                sampling=sampling,
                is_stop_BV=self._is_stop_on_device,
                wants_logprobs=any(number is not None for number in asked),
                wants_likeliest=any(asked),
            ),
        )
        decoded = jax.device_get(decoded)
        self.counters.steps += int(decoded.num_steps)
        return [self._progress(i, one, decoded) for i, one in rows]

    def _begin(self, one: _Served) -> None:
        """A prompt has entered: the whole of it is now the latest use of its blocks."""
        self._kept.find(one.hashes)
        self.counters.prompt_tokens += len(one.request.ids)

    def _progress(self, slot: int, one: _Served, decoded: decoding.Decoded) -> NewTokens:
        request = one.request
        tokens: list[int] = decoded.tokens_UB[: decoded.num_steps, slot].tolist()
        logprobs = None
        if request.num_logprobs is not None:
            logprobs = decoded.logprobs_of(slot, request.num_logprobs)
        one.ids += tokens
        one.logprobs += logprobs or []
        self.counters.generated_tokens += len(tokens)
        generated = None
        if one.ids[-1] in request.stop_ids or len(one.ids) >= request.max_new_tokens:
            reason = "stop" if one.ids[-1] in request.stop_ids else "length"
            generated = Generated(one.ids, None if logprobs is None else one.logprobs, reason)
            self._served[slot] = None
        return NewTokens(one.handle, tokens, logprobs, generated)


def generate(
    model: Qwen2,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    seeds: Sequence[int],
    eos_ids: Iterable[int],
    top_p: float = 1.0,
    num_slots: int | None = None,
) -> list[list[int]]:
    """Continue each prompt, in an engine that lives as long as the call (see `engine.Engine`).

    Programs are kept: training the model or changing its adapter's values needs no new ones, and
    models of one architecture share theirs.

    Args:
      max_new_tokens: most tokens per continuation.
      temperature: of the sampling; 0 takes the likeliest token.
      seeds: one per prompt; the same prompt and seed give the same tokens.
      eos_ids: tokens that end a continuation.
      top_p: draw from the likeliest tokens that reach this probability together.
      num_slots: how many prompts are continued at once; the engine's own number without it.

    Returns: new token ids of each prompt, in order; the last one is in `eos_ids` unless the limit
      was reached.

    Raises:
      InputError: an argument is out of range, or a prompt is empty, holds an unknown token id or
        does not fit the model's positions.
    """
    if len(seeds) != len(prompts):
        raise InputError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one each.")
    request = functools.partial(
        GenerationRequest,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        stop_ids=frozenset(eos_ids),
    )
    requests = [request(ids, seed=seed) for ids, seed in zip(prompts, seeds, strict=True)]
    engine = Engine(model, num_slots=num_slots)
    return [generated.ids for generated in engine.generate(requests)]
