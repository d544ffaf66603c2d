"""Generation as an engine: requests join and leave between the steps of one decoding program.

Each request has a slot while it is served. Its prompt enters in chunks, which it shares with other
prompts; what an earlier prompt began with as well is not computed again but copied from the kept
blocks (`kv_cache`). The slots of a group (`slot_group`) then decode together. Shapes are fixed and
rows don't mix, so that a request's tokens depend on the request alone: not on its neighbours, its
slot, the order, or on what was kept.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import jax
from flax import nnx

from emodistill.errors import InputError
from emodistill.model import kv_cache
from emodistill.model.config import Qwen2Config
from emodistill.model.decoding import Decoded
from emodistill.model.generation_form import generation_form
from emodistill.model.generation_requests import Generated, GenerationRequest, NewTokens
from emodistill.model.kv_cache import BLOCK
from emodistill.model.programs import Static
from emodistill.model.qwen2 import Qwen2
from emodistill.model.slot_group import Counters, ServedRequest, Shared, SlotGroup

DEFAULT_SLOTS = 16
"""A step costs little more with many of them than with one, since they share one reading of the
weights."""
DEFAULT_KEPT_TOKENS = 16_384
"""Tokens of kept prefixes: 0.75 GB of a model of 135 million parameters, 0.9 GB of a 7B one."""
SMALL_WEIGHTS = 32 * 2**20
"""Bytes of weights that a processor's cache holds, so that nothing is lost where several groups
read them, each for itself."""
GROUP_SLOTS = 8
"""Where there are several groups, each has at least so many slots."""
MAX_GROUPS = 4


class Engine:
    """Continues prompts with one model. Not thread-safe: one thread at a time uses it.

    The model's weights are taken as they are when the engine is made.

    On a processor, the products of a small model are too small for several cores to share. Its
    slots are then divided into groups, which are computed side by side. Their number follows from
    that of the slots and not from that of the cores: the width of a program decides about the last
    bits of what it makes.

    Args:
      num_slots: how many requests are served at once, `DEFAULT_SLOTS` without it, rounded up to a
        multiple of the number of groups; the others wait.
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
        graphdef, state = nnx.split(generation_form(model))
        is_divided = model.mesh is None and _is_small_on_cpu(state)
        num_groups = max(1, min(MAX_GROUPS, num_slots // GROUP_SLOTS)) if is_divided else 1
        # Slots that grow begin with the least length there is.
        length = kv_cache.slot_length(1 if max_tokens is None else max_tokens)
        kept = kv_cache.KeptPrefixes(config, max_kept_tokens // BLOCK, model.dtype, model.mesh)
        shared = Shared(
            graph=Static.of(graphdef),
            state=state,
            vocab_size=config.vocab_size,
            mesh=model.mesh,
            kept=kept,
            counters=self.counters,
            lock=threading.Lock(),
        )

        def group() -> SlotGroup:
            size = -(-num_slots // num_groups)
            slots = kv_cache.empty_slots(config, size, length, model.dtype, model.mesh)
            return SlotGroup(slots, shared)

        self._groups = [group() for _ in range(num_groups)]
        # XLA's client for processors runs what one thread hands it in order, one after the other.
        self._threads = ThreadPoolExecutor(num_groups, "slots") if num_groups > 1 else None
        self._running: dict[Future[Decoded | None], SlotGroup] = {}
        self._handles = itertools.count()
        self._waiting: deque[ServedRequest] = deque()

    @property
    def num_unfinished(self) -> int:
        """Requests that wait or are served."""
        return len(self._waiting) + sum(group.num_served for group in self._groups)

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
        self._waiting.append(ServedRequest(handle, request, hashes))
        return handle

    def cancel(self, handle: int) -> None:
        """Forget a request; one that has ended is forgotten already."""
        self._waiting = deque(one for one in self._waiting if one.handle != handle)
        for group in self._groups:
            group.cancel(handle)

    def step(self) -> list[NewTokens]:
        """Let requests join, and make up to `decoding.MAX_STEPS` tokens for each that decodes.

        Of several groups, those that rest are started, and the first that ends is waited for.

        Returns: what each request got that decodes in a group that has ended; nothing where no
          request is left.

        Raises: whatever a program does, such as when memory runs out. The engine is of no use then.
        """
        resting = [group for group in self._groups if group not in self._running.values()]
        while self._waiting and (free := [group for group in resting if group.has_room]):
            min(free, key=lambda group: group.num_served).add(self._waiting.popleft())
        if self._threads is None:
            (group,) = self._groups
            return group.take(group.run())
        for group in resting:
            if group.num_served:
                self._running[self._threads.submit(group.run)] = group
        ended = wait(self._running, return_when=FIRST_COMPLETED).done
        # All results before any is taken, so that what fails loses no tokens of another group.
        results = [(self._running[future], future.result()) for future in ended]
        for future in ended:
            del self._running[future]
        return [*itertools.chain.from_iterable(group.take(found) for group, found in results)]

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


def _is_small_on_cpu(state: nnx.State) -> bool:
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return jax.default_backend() == "cpu" and size <= SMALL_WEIGHTS


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
