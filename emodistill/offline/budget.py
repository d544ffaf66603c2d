"""A ceiling on what a stage may cost, over all its calls and restarts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from emodistill.errors import InputError
from emodistill.llm.client import ChatClient


class Budget:
    """Admits a job as long as it, and those in flight, will probably fit under the ceiling.

    Args:
      max_usd: None for no ceiling.
      before_usd: what each finished job of earlier runs has cost.
      models: whose prices must be known, if there is a ceiling.

    Raises:
      InputError: a ceiling, but no known price for a model.
    """

    def __init__(
        self,
        max_usd: float | None,
        *,
        client: ChatClient,
        models: Iterable[str],
        before_usd: Iterable[float] = (),
    ) -> None:
        self.max_usd = max_usd
        self.is_spent = False
        self._client = client
        costs = list(before_usd)
        self._done_usd = sum(costs)
        self._num_done = len(costs)
        self._num_running = 0
        self._offset_usd = self._done_usd - client.spent_usd
        if max_usd is not None:
            for model in models:
                if client.provider.price(model) is None:
                    raise InputError(
                        f"--max-cost-usd {max_usd:g} can't be kept: no price is known for {model} "
                        f"at {client.provider.name}. Name it in a providers file of your own "
                        "(EMODISTILL_PROVIDERS), or leave the ceiling out."
                    )

    @property
    def spent_usd(self) -> float:
        """Finished jobs of earlier runs and every call of this one."""
        return self._offset_usd + self._client.spent_usd

    def admits(self) -> bool:
        """Whether one more job may begin; once False, `is_spent` says so."""
        if self.max_usd is None:
            return True
        mean_usd = self._done_usd / self._num_done if self._num_done else 0.0
        probable_usd = self._done_usd + (self._num_running + 1) * mean_usd
        if max(probable_usd, self.spent_usd) > self.max_usd:
            self.is_spent = True
        return not self.is_spent

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
