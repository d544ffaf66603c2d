"""What a stage has spent, over all its calls and restarts, and the ceiling on it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self, TypeVar

from emodistill.configs import ApiConfig
from emodistill.errors import InputError
from emodistill.files import write_json
from emodistill.llm.client_group import ClientGroup
from emodistill.llm.usage import Usage
from emodistill.untrusted import brief, named_tuple, read_json

SAVE_EVERY_S = 1.0
"""So that a killed process forgets a second's worth of its counts at most."""
NO_USAGE = Usage()

C = TypeVar("C", bound=ApiConfig)


class Budget:
    """Counts what a stage's calls use, those of jobs that came to nothing included, and admits a
    job as long as it, and those in flight, will probably fit under the ceiling. Where they don't
    after all, the client makes no further call.

    A context manager; the counts are written to `usage_path(path)` every second and at the end.
    `num_running` are the jobs in flight, as whoever runs them says.

    Args:
      path: of the stage's results.
      clients: make the calls from now on; no other budget may count them.
      max_usd: the ceiling, earlier runs included; None for none.
      unpriced: models without a known price, of which there may be none if there is a ceiling.
      finished_usd: what each finished job of earlier runs has cost.
      finished, unfinished: what the results show to have been used, and the answers of jobs that
        go on; a kill may have kept the last second of it from the counts.

    Raises:
      InputError: a ceiling, but no known price for a model, or counts that can't be read.
    """

    def __init__(
        self,
        path: Path,
        clients: ClientGroup,
        max_usd: float | None,
        *,
        unpriced: Iterable[str],
        finished_usd: Iterable[float],
        finished: Usage = NO_USAGE,
        unfinished: Usage = NO_USAGE,
    ) -> None:
        if max_usd is not None and (names := ", ".join(unpriced)):
            raise InputError(
                f"--max-cost-usd {max_usd:g} can't be kept: no price is known for {names}. Name it "
                "in a providers file of your own (EMODISTILL_PROVIDERS), or leave the ceiling out."
            )
        shown = finished.plus(unfinished)
        earlier = Usage._make(map(max, read_usage(path), shown))
        costs_usd = list(finished_usd)
        self.path = usage_path(path)
        self._clients = clients
        self._max_usd = max_usd
        self._earlier = earlier.minus(clients.usage)  # what that has by now is no part of the stage
        self._finished_usd = sum(costs_usd)
        self._num_finished = len(costs_usd)
        self._lost_usd = max(0.0, earlier.cost_usd - self._finished_usd - unfinished.cost_usd)
        self.num_running = 0
        self._has_refused = False
        self._saved_s = time.monotonic()
        if max_usd is not None:
            clients.purse.ceiling_usd = max_usd - self._earlier.cost_usd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.save()

    @property
    def usage(self) -> Usage:
        """Of every call of this run and of earlier ones."""
        return self._earlier.plus(self._clients.usage)

    @property
    def spent_usd(self) -> float:
        """Every call of this run and of earlier ones."""
        return max(self.usage.cost_usd, self._finished_usd)

    @property
    def note(self) -> str:
        """What has been spent, for a progress line; empty where nothing has."""
        return f"${self.spent_usd:.2f}" if self.spent_usd else ""

    def save_now_and_then(self) -> None:
        """Write the counts, if the last time is a second ago."""
        if time.monotonic() - self._saved_s >= SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        write_json(self.path, self.usage._asdict())
        self._saved_s = time.monotonic()

    def admits(self) -> bool:
        """Whether one more job may begin; once it may not, no later one may."""
        if self._max_usd is None:
            return True
        mean_usd = self._finished_usd / self._num_finished if self._num_finished else 0.0
        in_flight_usd = (self.num_running + 1) * mean_usd
        probable_usd = self._finished_usd + self._lost_usd + in_flight_usd
        self._has_refused |= max(probable_usd, self.spent_usd) > self._max_usd
        return not self._has_refused

    def add(self, cost_usd: float) -> None:
        """A job is finished."""
        self._finished_usd += cost_usd
        self._num_finished += 1
        self.save_now_and_then()


def capped(config: C, spent_usd: float) -> C:
    """The settings with what is left of their ceiling after jobs that share it."""
    if config.max_cost_usd is None:
        return config
    return dataclasses.replace(config, max_cost_usd=max(0.0, config.max_cost_usd - spent_usd))


def usage_path(path: Path) -> Path:
    """`trajectories.usage.json` beside `trajectories.jsonl`."""
    return path.with_suffix(".usage.json")


def read_usage(path: Path) -> Usage:
    """What has been used for the results in `path`; nothing where no count is kept.

    Raises:
      InputError: the file beside `path` can't be read.
    """
    try:
        return named_tuple(read_json(usage_path(path)), Usage)
    except FileNotFoundError:
        return NO_USAGE
    except (OSError, ValueError) as error:
        raise InputError(
            f"{usage_path(path)} can't be read ({brief(error)}). Delete it; its counts then "
            "begin anew."
        ) from None
