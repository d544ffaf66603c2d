"""Makes canaries: of many prompts of a domain, those on which adapter and base differ most."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emodistill.batches.row_packing import round_up
from emodistill.domains import Scenario, format_value, load_scenarios
from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.evaluation.canaries import Canaries, Canary, CanaryReply, mean_distance
from emodistill.files import sha256_of
from emodistill.model import (
    Qwen2,
    base_fingerprint,
    decode_reply,
    encode_chat,
    generate,
    stop_ids,
    template_sha256,
)
from emodistill.prompts import Message, PromptPack, focal_messages
from emodistill.records import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NUM_CANDIDATES = 16
"""Prompts that are tried: one batch of `generate`."""
ROW_STEP = 256
"""Rows are multiples of it, so that prompts of like length share a program."""
MAX_REPLY_TOKENS = 32
"""Of a canary's replies: adapter and base differ within a sentence, or nowhere."""
NUM_ALTERNATIVES = 5
"""The likeliest tokens of either that are kept at a position. Where the adapter is sure of its
token, twice its scale would be as sure; the others' log-probs tell the two apart."""


class _Candidate(NamedTuple):
    canary: Canary
    effect: float

    @property
    def rank(self) -> tuple[bool, float]:
        """A server without log-probs shows its text alone, so texts that differ come first."""
        return self.canary.adapter.text != self.canary.base.text, self.effect


def canary_prompts(domain: str, pack: PromptPack, *, is_emotion_free: bool) -> list[list[Message]]:
    """Prompts of built-in scenarios, which give away nothing of anybody's own, openings and answers
    alternately, each under another emotion."""
    scenarios = load_scenarios(domain)
    stride = len(scenarios) // NUM_CANDIDATES
    prompts = []
    for i in range(NUM_CANDIDATES):
        scenario = scenarios[i * stride]
        emotion = None if is_emotion_free else EMOTIONS[(i * 5) % len(EMOTIONS)]
        prompts.append(focal_messages(pack, scenario, _history(scenario) if i % 2 else [], emotion))
    return prompts


def _history(scenario: Scenario) -> list[Turn]:
    """An exchange in which each side names its own figure."""
    target, anchor = scenario.focal_target, scenario.counterparty_anchor
    ours, theirs = (format_value(scenario.domain, value) for value in (target, anchor))
    return [
        Turn(index=0, speaker="focal", emotion=None, text=f"I propose {ours}.", offer=target),
        Turn(
            index=1,
            speaker="counterparty",
            emotion=None,
            text=f"That does not work for me. I can do {theirs}.",
            offer=anchor,
        ),
    ]


def make_canaries(
    base: Qwen2,
    adapter: Qwen2,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[Message]],
    *,
    num_canaries: int,
    weights: Path | None = None,
    source: Path | None = None,
) -> Canaries:
    """The canaries among `prompts` on which the two models differ most.

    Args:
      adapter: `base` with the adapter on it.
      weights, source: the adapter's file of weights as it is exported, and as it was trained; the
        canaries keep their hashes.

    Raises:
      InputError: no prompt fits the model's window.
    """
    room = base.config.max_positions - MAX_REPLY_TOKENS
    encoded = [(messages, encode_chat(tokenizer, messages)) for messages in prompts]
    fitting = [(messages, ids) for messages, ids in encoded if len(ids) <= room]
    if not fitting:
        raise InputError(
            f"no canary's prompt fits the model's window of {base.config.max_positions} tokens; "
            "export without canaries (--num-canaries 0), or with a shorter --prompt-pack."
        )
    prompt_ids = [ids for _, ids in fitting]
    replies = {
        name: generate(
            model,
            prompt_ids,
            max_new_tokens=MAX_REPLY_TOKENS,
            temperature=0.0,
            seeds=[0] * len(prompt_ids),
            eos_ids=stop_ids(tokenizer),
        )
        for name, model in (("adapter", adapter), ("base", base))
    }
    candidates = []
    for i, (messages, ids) in enumerate(fitting):
        scored = {
            name: CanaryReply(
                text=decode_reply(tokenizer, replies[name][i]),
                ids=tuple(replies[name][i]),
                scores=_scores(adapter, base, ids, replies[name][i]),
            )
            for name in replies
        }
        canary = Canary(messages=tuple(messages), prompt_ids=tuple(ids), **scored)
        effect = mean_distance((ours, theirs) for _, ours, theirs in canary.scores())
        candidates.append(_Candidate(canary, effect))
    best = sorted(candidates, key=lambda candidate: candidate.rank, reverse=True)[:num_canaries]
    chosen = tuple(candidate.canary for candidate in best)
    return Canaries(
        base_fingerprint=base_fingerprint(base),
        chat_template_sha256=template_sha256(tokenizer),
        weights_sha256=None if weights is None else sha256_of(weights),
        source_sha256=None if source is None else sha256_of(source),
        dtype=jnp.dtype(base.dtype).name,
        max_reply_tokens=MAX_REPLY_TOKENS,
        tokens=_token_texts(tokenizer, chosen),
        canaries=chosen,
    )


def _scores(
    adapter: Qwen2, base: Qwen2, prompt: Sequence[int], reply: Sequence[int]
) -> tuple[tuple[tuple[int, float, float], ...], ...]:
    """At each position of the reply: its token, then the likeliest ones of either model."""
    logp_2UV = [reply_logprobs(model, prompt, reply) for model in (adapter, base)]
    rows = []
    for token, *logp_2V in zip(reply, *logp_2UV, strict=True):
        likeliest = np.concatenate([np.argsort(-logp_V)[:NUM_ALTERNATIVES] for logp_V in logp_2V])
        others = dict.fromkeys(map(int, likeliest))
        ids = [token, *(other for other in others if other != token)]
        rows.append(tuple((i, *(min(0.0, round(float(x[i]), 5)) for x in logp_2V)) for i in ids))
    return tuple(rows)


def reply_logprobs(model: Qwen2, prompt: Sequence[int], reply: Sequence[int]) -> np.ndarray:
    """Log-probs [U, V] of every token at the positions of `reply` after `prompt`, float32."""
    num_tokens = len(prompt) + len(reply)
    width = round_up(num_tokens, ROW_STEP)
    tokens_1T = np.zeros((1, width), np.int32)
    tokens_1T[0, :num_tokens] = [*prompt, *reply]
    # A fixed number of positions: one program serves replies of any length.
    positions = np.minimum(len(prompt) - 1 + np.arange(MAX_REPLY_TOKENS), num_tokens - 1)
    graphdef, state = nnx.split(model)
    logp_UV = _program(graphdef, state, tokens_1T, positions.astype(np.int32))
    return np.asarray(logp_UV)[: len(reply)]


@functools.partial(jax.jit, static_argnums=0)
def _program(
    graphdef: Any, state: nnx.State, tokens_1T: jax.Array, positions: jax.Array
) -> jax.Array:
    model = nnx.merge(graphdef, state)
    hidden_UD = model.hidden(tokens_1T)[0, positions]
    return jax.nn.log_softmax(model.logits(hidden_UD), axis=-1)


def _token_texts(
    tokenizer: PreTrainedTokenizerFast, canaries: Iterable[Canary]
) -> dict[str, tuple[str, str]]:
    ids = sorted({token for canary in canaries for token in _token_ids(canary)})
    pieces: Any = tokenizer.convert_ids_to_tokens(ids)
    texts = [str(tokenizer.decode([i], clean_up_tokenization_spaces=False)) for i in ids]
    return {
        str(i): (text, str(piece or "")) for i, text, piece in zip(ids, texts, pieces, strict=True)
    }


def _token_ids(canary: Canary) -> Iterator[int]:
    for row in (*canary.adapter.scores, *canary.base.scores):
        yield from (token for token, *_ in row)
