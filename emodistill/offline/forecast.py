"""What a sweep and its judging will take, judged by a few of its dialogues."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emodistill.errors import InputError
from emodistill.llm.keys import Limits
from emodistill.llm.usage import Usage, total_usage
from emodistill.records import Judgement, Trajectory

MIN_PILOT = 2
"""Below that, nothing is known of how dialogues differ."""


class Need(NamedTuple):
    """What a stage will use. `hours` is what its slowest bound allows: latency, or key limits."""

    stage: str
    num_calls: float
    prompt_tokens: float
    completion_tokens: float
    cost_usd: float
    hours: float


class Allowed(NamedTuple):
    """The limits of a model that takes some of a stage's calls."""

    stage: str
    share: float
    """Of the stage's calls, and of their tokens."""
    limits: Limits
    num_allowances: int
    """How many times over: one for each key, or for each account."""

    def hours(self, num_calls: float, num_tokens: float) -> float:
        """How long so many calls of the stage take at least."""
        limits = self.limits
        bounds = (
            (num_calls / 3600, limits.requests_per_second),
            (num_calls / 60, limits.requests_per_minute),
            (num_tokens / 60, limits.tokens_per_minute),
        )
        times = [amount / rate for amount, rate in bounds if rate is not None]
        return self.share * max(times, default=0.0) / self.num_allowances


class Forecast(NamedTuple):
    """For `num_dialogues` dialogues; `error` is two standard errors of the calls, relative."""

    num_dialogues: int
    num_pilot: int
    sweep: Need
    judge: Need
    error: float
    batch_usd: float | None = None
    """What the judging costs by file batch, where the provider takes them."""

    @property
    def text(self) -> str:
        """A table for the terminal."""
        total = Need(
            "total",
            *(a + b for a, b in zip(self.sweep[1:], self.judge[1:], strict=True)),
        )
        lines = [f"{'':8}{'calls':>12}{'prompt':>12}{'completion':>12}{'USD':>10}{'hours':>8}"]
        for need in (self.sweep, self.judge, total):
            lines.append(
                f"{need.stage:8}{need.num_calls:>12,.0f}{_tokens(need.prompt_tokens):>12}"
                f"{_tokens(need.completion_tokens):>12}{need.cost_usd:>10,.2f}{need.hours:>8.2f}"
            )
        lines.append(
            f"for {self.num_dialogues:,} dialogues, from a pilot of {self.num_pilot}; "
            f"give or take {self.error:.0%}."
        )
        if self.batch_usd is not None:
            lines.append(
                f"judge.py --batch would cost {self.batch_usd:,.2f} instead of "
                f"{self.judge.cost_usd:,.2f}, and take up to a day a batch."
            )
        return "\n".join(lines)


def forecast(
    pilot: Sequence[Trajectory],
    judgements: Sequence[Judgement],
    *,
    num_dialogues: int,
    concurrency: int,
    allowed: Sequence[Allowed] = (),
    batch_share: float | None = None,
) -> Forecast:
    """Scale a pilot up; a judge call is taken to last as long as the mean call of the pilot.

    Args:
      judgements: among them those of the pilot's turns, failed and repeated calls included.
      allowed: what each model may be asked.
      batch_share: what is left of the judge's price by file batch.

    Raises:
      InputError: the pilot is too small to know anything.
    """
    if len(pilot) < MIN_PILOT:
        raise InputError(f"a pilot of {len(pilot)} dialogues says nothing; --pilot 160 is plenty.")
    scale = num_dialogues / len(pilot)
    ids = {t.trajectory_id for t in pilot}
    judgements = [
        j
        for j in judgements
        if j.trajectory_id in ids and j.turn_index is not None and j.repeat == 0
    ]
    turns = [turn for t in pilot for turn in t.turns]
    mean_latency_s = float(np.mean([turn.latency_s for turn in turns]))
    played = [
        Usage(
            num_calls=t.usage.calls,
            prompt_tokens=t.usage.prompt_tokens,
            completion_tokens=t.usage.completion_tokens,
            cost_usd=t.cost_usd,
            latency_s=sum(turn.latency_s for turn in t.turns),
        )
        for t in pilot
    ]
    judged = [
        Usage(1, 0, j.prompt_tokens, j.completion_tokens, j.cost_usd, mean_latency_s)
        for j in judgements
    ]

    def need(stage: str, usages: Sequence[Usage]) -> Need:
        calls, _, prompt, completion, usd, busy_s, *_ = total_usage(usages)
        limited_h = [one.hours(calls, prompt + completion) for one in allowed if one.stage == stage]
        hours = max(busy_s / concurrency / 3600, *limited_h, 0.0)
        return Need(stage, *(scale * value for value in (calls, prompt, completion, usd, hours)))

    num_turns = np.array([len(t.turns) for t in pilot], float)
    spread = float(num_turns.std(ddof=1) / num_turns.mean())
    judging = need("judge", judged)
    return Forecast(
        num_dialogues,
        len(pilot),
        need("sweep", played),
        judging,
        2 * spread / math.sqrt(len(pilot)),
        None if batch_share is None else batch_share * judging.cost_usd,
    )


def _tokens(count: float) -> str:
    return f"{count / 1e6:,.2f} M"
