"""What a stage has spent, over all its calls and restarts, and the ceiling on it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Self

from emodistill.errors import InputError
from emodistill.files import write_json
from emodistill.llm.client import ChatClient, Usage

SAVE_EVERY_S = 1.0

Stopped = Literal["interrupted", "cost"]


class Ledger:
    """Counts what a stage's calls have used, those of dialogues that came to nothing included.

    It is written every second and at the end, so that a killed process forgets a second's worth
    at most. A context manager.

    Args:
      path: of the stage's results; the counts stand beside it (`usage_path`).
      client: makes the calls from now on; no other ledger may count them.
    """

    def __init__(self, path: Path, client: ChatClient) -> None:
        self.path = usage_path(path)
        self.before = read_usage(path)
        self._client = client
        self._at_start = client.usage
        self._saved_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.save()

    def at_least(self, found: Usage) -> None:
        """What the results show was used before; a kill may have cost the ledger a second."""
        self.before = Usage._make(max(pair) for pair in zip(self.before, found, strict=True))

    @property
    def total(self) -> Usage:
        """Over all runs of the stage."""
        parts = zip(self.before, self._at_start, self._client.usage, strict=True)
        return Usage._make(before + now - start for before, start, now in parts)

    def tick(self) -> None:
        """Write, if the last time is a second ago."""
        if time.monotonic() - self._saved_s >= SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        write_json(self.path, self.total._asdict())
        self._saved_s = time.monotonic()


def usage_path(path: Path) -> Path:
    """`trajectories.usage.json` beside `trajectories.jsonl`."""
    return path.with_suffix(".usage.json")


def read_usage(path: Path) -> Usage:
    """What has been used for the results in `path`; nothing where no count is kept.

    Raises:
      InputError: the file beside `path` can't be read.
    """
    try:
        return Usage(**json.loads(usage_path(path).read_text()))
    except FileNotFoundError:
        return Usage()
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{usage_path(path)} can't be read ({error}). Delete it; its counts then begin anew."
        ) from None


class Budget:
    """Admits a job as long as it, and those in flight, will probably fit under the ceiling; where
    they don't after all, the client makes no further call.

    Args:
      max_usd: None for no ceiling.
      ledger: knows what has been spent.
      before_usd: what each finished job of earlier runs has cost.
      unfinished_usd: what jobs that go on have cost already.
      models: whose prices must be known, if there is a ceiling.

    Raises:
      InputError: a ceiling, but no known price for a model.
    """

    def __init__(
        self,
        max_usd: float | None,
        *,
        client: ChatClient,
        ledger: Ledger,
        models: Iterable[str],
        before_usd: Iterable[float] = (),
        unfinished_usd: float = 0.0,
    ) -> None:
        self.max_usd = max_usd
        self._refused = False
        self._ledger = ledger
        costs = list(before_usd)
        self._done_usd = sum(costs)
        self._lost_usd = max(0.0, ledger.before.cost_usd - self._done_usd - unfinished_usd)
        self._num_done = len(costs)
        self._num_running = 0
        if max_usd is not None:
            client.ceiling_usd = client.spent_usd + max_usd - ledger.before.cost_usd
            for model in models:
                if client.provider.price(model) is None:
                    raise InputError(
                        f"--max-cost-usd {max_usd:g} can't be kept: no price is known for {model} "
                        f"at {client.provider.name}. Name it in a providers file of your own "
                        "(EMODISTILL_PROVIDERS), or leave the ceiling out."
                    )

    @property
    def spent_usd(self) -> float:
        """Every call of this run and of earlier ones."""
        return max(self._ledger.total.cost_usd, self._done_usd)

    @property
    def is_spent(self) -> bool:
        """Whether a job was refused, or a call for one, since the ceiling is reached."""
        return self._refused or (self.max_usd is not None and self.spent_usd >= self.max_usd)

    @property
    def note(self) -> str:
        """What has been spent, for a progress line; empty where nothing has."""
        return f"${self.spent_usd:.2f}" if self.spent_usd else ""

    def stopped(self, ran_through: bool, is_complete: bool) -> Stopped | None:
        """Why the jobs have come to an end, if not by being done."""
        if not ran_through:
            return "interrupted"
        return "cost" if self.is_spent and not is_complete else None

    def admits(self) -> bool:
        """Whether one more job may begin; once False, `is_spent` says so."""
        if self.max_usd is None:
            return True
        mean_usd = self._done_usd / self._num_done if self._num_done else 0.0
        in_flight_usd = (self._num_running + 1) * mean_usd
        probable_usd = self._done_usd + self._lost_usd + in_flight_usd
        if max(probable_usd, self.spent_usd) > self.max_usd:
            self._refused = True
        return not self._refused

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around a job in flight."""
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1

    def add(self, cost_usd: float) -> None:
        """A job is finished."""
        self._done_usd += cost_usd
        self._num_done += 1
        self._ledger.tick()
