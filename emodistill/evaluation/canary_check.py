"""Asks a server for an adapter's canaries, and says whose answers they are.

Where the server states log-probs, s of them are compared with those of the adapter, a, and of the
base, b: the distances mean|s - a| and mean|s - b| against the adapter's effect mean|a - b|. With
the adapter a server is at the first end, without it at the second, and with another scale between
the two or beyond. They are compared as long as the server's greedy text is one of the two known
ones, and at the first position that is not: up to there the context is the same. Where it states
none, its texts are compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from emodistill.configs import VerifyConfig
from emodistill.errors import InputError
from emodistill.evaluation.canaries import (
    Canaries,
    Canary,
    CanaryReply,
    Score,
    mean_distance,
    read_canaries,
)
from emodistill.files import sha256_of
from emodistill.llm import (
    ChatClient,
    Completion,
    ExhaustedError,
    RefusedError,
    ScoredCompletion,
    get_provider,
)
from emodistill.llm.client import RetryPolicy
from emodistill.llm.providers import Provider
from emodistill.llm.token_scores import LOWEST, ScoredPosition, TokenScore

Kind = Literal["in use", "not in use", "other", "unknown"]

NUM_ALTERNATIVES = 5
"""That the server is asked for at each position; canaries keep as many of either model."""
QUESTIONS: Sequence[Mapping[str, Any]] = (
    {"logprobs": True, "top_logprobs": NUM_ALTERNATIVES},
    {"logprobs": True},
    {},
)
"""What a request asks for beside the text; the next one where a server refuses the one before."""
MAX_ATTEMPTS, MAX_BACKOFF_S = 3, 2.0
"""Few and quick: some servers answer a question for log-probs that they lack with an error 500."""
CONCURRENCY = 4
MIN_SCORES = 12
"""Log-probs that have to be comparable before they decide anything."""
NOISE = 0.2
"""Nats. Formats of fewer bits move log-probs by some hundredths (bfloat16) to tenths (four bits).
An adapter that changes less than that can be found, but nothing else can be told from it."""
MIN_TEXTS, MOST = 2, 0.75
"""Canaries with different texts that are needed, and the share of them that decides."""


class AdapterVerdict(NamedTuple):
    """What the answers say, and why."""

    kind: Kind
    reason: str


class Measured(NamedTuple):
    """A log-prob by the server, by the adapter and by the base, in nats."""

    server: float
    adapter: float
    base: float


class CanaryAnswer(NamedTuple):
    """What a server said to a canary; None where it would not answer."""

    canary: Canary
    reply: ScoredCompletion | None


def verify_adapter(config: VerifyConfig) -> AdapterVerdict:
    """Ask the server for the canaries in the adapter's folder (see `check_adapter`)."""
    return asyncio.run(check_adapter(config))


async def check_adapter(config: VerifyConfig, provider: Provider | None = None) -> AdapterVerdict:
    """Ask the server for the canaries in the adapter's folder.

    Args:
      provider: the server with its keys, in place of what the settings say.

    Raises:
      InputError: no canaries, another adapter than they were made for, or no usable address.
      ApiError: the server can't be reached, or has no such model.
    """
    if config.adapter is None or not config.url or not config.model:
        raise InputError(
            "--url, --model and --adapter are needed: the server's address, the name by which it "
            "serves the adapter, and the folder that scripts/export_adapter.py has made."
        )
    canaries = read_canaries(config.adapter)
    _check_weights(config.adapter, canaries)
    if provider is None:
        provider = get_provider(config.provider, base_url=config.url, flag="--url")
        if provider.read_keys():
            print(f"verify: the key in {provider.key_env} goes to {provider.base_url}.", flush=True)
    return judged(canaries, await _ask(config, provider, canaries), config.tolerance)


def judged(canaries: Canaries, answers: Sequence[CanaryAnswer], tolerance: float) -> AdapterVerdict:
    """The verdict by log-probs, or by texts where there are too few."""
    given = [(a.canary, a.reply) for a in answers if a.reply is not None]
    if 2 * len(given) < len(answers):
        return AdapterVerdict(
            "unknown", f"the server answered {len(given)} of {len(answers)} canaries only."
        )
    measured = [one for canary, reply in given for one in compared(canary, reply.scores, canaries)]
    texts = [(canary, reply.completion) for canary, reply in given]
    if len(measured) < MIN_SCORES:
        found = by_texts(texts)
        verdict = found._replace(reason=f"No log-probs that can be compared: {found.reason}")
    else:
        verdict = by_logprobs(measured, tolerance)
    if verdict.kind in ("other", "unknown"):
        verdict = verdict._replace(reason=verdict.reason + _prompt_lengths(given))
    return verdict


def by_logprobs(measured: Sequence[Measured], tolerance: float) -> AdapterVerdict:
    """Whose log-probs the server's are.

    Args:
      tolerance: how far from an end of the way between base and adapter counts as at it, as a
        share of the adapter's effect. Off the way they may be twice as far: fewer bits of a base
        scatter log-probs, and another scale moves them along.
    """
    # Where adapter and base agree, as on most of the tokens of a fluent text, all servers do.
    telling = [m for m in measured if abs(m.adapter - m.base) > NOISE / 2]
    measured = telling if len(telling) >= MIN_SCORES else measured
    effect = mean_distance((m.adapter, m.base) for m in measured)
    to_adapter = mean_distance((m.server, m.adapter) for m in measured)
    to_base = mean_distance((m.server, m.base) for m in measured)
    found = (
        f"{len(measured)} log-probs differ by {to_adapter:.3f} nats from the adapter's and by "
        f"{to_base:.3f} from the base's, which are {effect:.3f} apart (means)."
    )
    if effect == 0:
        return AdapterVerdict("unknown", f"{found} The adapter changes nothing.")
    squares = sum((m.adapter - m.base) ** 2 for m in measured)
    share = sum((m.server - m.base) * (m.adapter - m.base) for m in measured) / squares
    if abs(share - 1) <= tolerance and to_adapter <= 2 * tolerance * effect:
        return AdapterVerdict("in use", found)
    if abs(share) <= tolerance and to_base <= 2 * tolerance * effect:
        return AdapterVerdict("not in use", f"{found} The base answers.")
    if effect < NOISE:
        return AdapterVerdict(
            "unknown",
            f"{found} The adapter's effect is within what number formats change; train it longer, "
            "or serve it in the precision of the canaries.",
        )
    return AdapterVerdict(
        "other",
        f"{found} Along the way from base to adapter they are at {share:.2f} (1 would be the "
        "adapter): another scale, such as alpha or rank typed anew, or other weights.",
    )


def by_texts(answers: Sequence[tuple[Canary, Completion]]) -> AdapterVerdict:
    """Whose greedy texts the server's are; smaller differences of scale don't show in them."""
    telling = [(c, done.text) for c, done in answers if c.adapter.text != c.base.text]
    if len(telling) < MIN_TEXTS:
        return AdapterVerdict(
            "unknown",
            f"adapter and base say the same to all but {len(telling)} of the canaries.",
        )
    whole = {name: sum(_is_same(t, getattr(c, name)) for c, t in telling) for name in _SIDES}
    leaning = {name: sum(_side(c, t) == name for c, t in telling) for name in _SIDES}
    found = (
        f"of {len(telling)} texts {whole['adapter']} are the adapter's and {whole['base']} the "
        f"base's, word for word; {leaning['adapter']} and {leaning['base']} begin like one of them "
        "beyond what both share."
    )
    needed = MOST * len(telling)
    for name, kind in _SIDES.items():
        if leaning[name] >= needed and 2 * whole[name] >= len(telling):
            return AdapterVerdict(kind, found)
    if leaning["adapter"] + leaning["base"] <= len(telling) - needed:
        return AdapterVerdict(
            "other", f"{found} Another scale, other weights, or another chat template."
        )
    return AdapterVerdict("unknown", found)


_SIDES: Mapping[str, Kind] = {"adapter": "in use", "base": "not in use"}


def _is_same(text: str, reply: CanaryReply) -> bool:
    return text.strip() == reply.text.strip()


def _side(canary: Canary, text: str) -> str | None:
    """Which of the two texts `text` goes on like where they part."""
    texts = {"adapter": canary.adapter.text.strip(), "base": canary.base.text.strip()}
    shared = _num_shared(*texts.values())
    lengths = {name: _num_shared(text.strip(), known) for name, known in texts.items()}
    name = max(lengths, key=lambda name: lengths[name])
    return name if lengths[name] > shared else None


def _num_shared(first: str, second: str) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def compared(
    canary: Canary, scores: Sequence[ScoredPosition], canaries: Canaries
) -> Iterator[Measured]:
    """The server's log-probs of tokens that are known, as far as their context is the same."""
    yield from _along(canary.adapter.scores, scores, 0, canaries.tokens)
    # Up to where the replies part, and there, both know the same; one list of tokens is enough.
    yield from _along(canary.base.scores, scores, canary.num_shared + 1, canaries.tokens)


def _along(
    rows: Sequence[Sequence[Score]],
    scores: Sequence[ScoredPosition],
    start: int,
    tokens: Mapping[str, tuple[str, str]],
) -> Iterator[Measured]:
    for i, (row, position) in enumerate(zip(rows, scores, strict=False)):
        seen: set[int] = set()
        for score in (position.chosen, *position.alternatives) if i >= start else ():
            known = _same_token(score, row, tokens)
            if known is None or known[0] in seen or score.logp <= LOWEST:
                continue
            seen.add(known[0])
            yield Measured(score.logp, known[1], known[2])
        if _same_token(position.chosen, row, tokens) != row[0]:
            return


def _same_token(
    score: TokenScore, row: Sequence[Score], tokens: Mapping[str, tuple[str, str]]
) -> Score | None:
    """The token of `row` that the server means; None where it is none, or may be several."""
    by_id = [known for known in row if known[0] == score.token_id]
    if by_id:
        return by_id[0]
    found = [known for known in row if score.names & _names(tokens[str(known[0])])]
    return found[0] if len(found) == 1 else None


def _names(token: tuple[str, str]) -> set[str]:
    """How servers may write a token: its text, its piece, or the piece with plain spaces."""
    text, piece = token
    plain = piece.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")
    return {text, piece, plain} - {"", "\ufffd"}


def _check_weights(folder: Path, canaries: Canaries) -> None:
    weights = folder / "adapter_model.safetensors"
    if canaries.weights_sha256 is None or not weights.is_file():
        return
    if sha256_of(weights) != canaries.weights_sha256:
        raise InputError(
            f"{weights} is not the adapter that the canaries beside it were made with; export it "
            "again with scripts/export_adapter.py."
        )


def _prompt_lengths(given: Sequence[tuple[Canary, ScoredCompletion]]) -> str:
    """What the server's own counts of tokens say about its chat template."""
    lengths = [(reply.completion.prompt_tokens, len(canary.prompt_ids)) for canary, reply in given]
    gaps = {theirs - ours for theirs, ours in lengths}
    if len(gaps) != 1 or gaps == {0}:  # estimates differ from prompt to prompt
        return ""
    return (
        f" Each prompt has {gaps.pop():+d} tokens there compared with the canaries: another chat "
        "template, or a token for the beginning of the text."
    )


async def _ask(config: VerifyConfig, provider: Provider, canaries: Canaries) -> list[CanaryAnswer]:
    policy = RetryPolicy(
        timeout_s=config.timeout_s, max_attempts=MAX_ATTEMPTS, max_backoff_s=MAX_BACKOFF_S
    )
    async with ChatClient(provider, max_in_flight=CONCURRENCY, retry=policy) as client:

        async def ask(canary: Canary, extra: Mapping[str, Any]) -> ScoredCompletion:
            return await client.scored_chat(
                canary.messages,
                model=config.model,
                max_tokens=canaries.max_reply_tokens,
                extra=extra,
            )

        async def ask_or_none(canary: Canary, extra: Mapping[str, Any]) -> ScoredCompletion | None:
            try:
                return await ask(canary, extra)
            except (RefusedError, ExhaustedError):
                return None

        first, *others = canaries.canaries
        *richer, extra = QUESTIONS
        reply = None
        for question in richer:
            if (reply := await ask_or_none(first, question)) is not None:
                extra = question
                break
        reply = reply or await ask(first, extra)
        replies = await asyncio.gather(*(ask_or_none(canary, extra) for canary in others))
    pairs = zip(canaries.canaries, (reply, *replies), strict=True)
    return [CanaryAnswer(canary, reply) for canary, reply in pairs]
