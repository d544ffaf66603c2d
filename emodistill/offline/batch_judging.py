"""Judging by file batches: the same requests, records and attempts, at a part of the price.

    judge/<judge>.batch.json    the batch under way, until its answers are in the judge's file

Batches go up one after the other. Whoever starts again after a kill goes on with the one that is
under way: the file is kept before the batch is made of it, and found at the provider by it. Answers
are joined to items by name; what has none, or an error that another try may mend, goes into the
next batch.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from emodistill.configs import JudgeConfig
from emodistill.errors import ApiError, InputError
from emodistill.files import canonical_json, write_json
from emodistill.llm.batches import (
    MAX_FILE_BYTES,
    BatchClient,
    BatchLine,
    BatchState,
    SubmittedBatch,
    request_line,
)
from emodistill.llm.billing import Call
from emodistill.llm.call_errors import ExhaustedError, RefusedError
from emodistill.llm.replies import FaultError
from emodistill.offline.budget import Budget
from emodistill.offline.judge_items import JudgeItem, JudgeJob
from emodistill.offline.workers import NUM_FAILURES_IN_A_ROW, StopReason, run_bounded
from emodistill.progress import Progress
from emodistill.untrusted import read_typed

log = logging.getLogger("emodistill.offline")

NUM_SENDS = 3
"""Batches in which a request is sent that gets no answer; then the item is given up."""


def batch_path(path: Path) -> Path:
    """`judge/<judge>.batch.json` beside `judge/<judge>.jsonl`."""
    return path.with_suffix(".batch.json")


def refuse_open_batch(path: Path) -> None:
    """Refuse to ask one by one for what a batch has been paid to answer.

    Raises:
      InputError: a batch is under way for the scores in `path`.
    """
    if (open_batch := _open_batch(path)) is not None:
        raise InputError(
            f"{batch_path(path)}: a batch of {open_batch.num_lines:,} items is under way at "
            f"{open_batch.url}. Add --batch to fetch its scores; or delete that file to pay for "
            "them again."
        )


class BatchJudging:
    """Asks for all items of a job by file batches.

    Args:
      path: of the scores.
    """

    def __init__(
        self, job: JudgeJob, config: JudgeConfig, path: Path, batches: BatchClient
    ) -> None:
        self._job = job
        self._config = config
        self._path = path
        self._client = batches.client
        self._batches = batches
        self._num_sends: Counter[JudgeItem] = Counter()

    async def run(self, budget: Budget, bar: Progress) -> StopReason | None:
        """Ask until no item is left.

        Returns:
          Why it has ended with items undone; None where none is. A batch that is under way goes on
          at the provider.

        Raises:
          ApiError: batches can't work as things are set up, or one was refused or cancelled.
          InputError: the batch under way is of another level or provider.
        """
        is_spent = False

        async def work(_: None) -> None:
            nonlocal is_spent
            async with self._batches:
                if (batch := _open_batch(self._path)) is not None:
                    self._check(batch)
                    await self._finish(batch, budget, bar)
                while self._left and not is_spent:
                    is_spent = not await self._ask(budget, bar)

        def fail(_: None, error: ApiError) -> None:
            raise error

        def tick() -> None:
            budget.save_now_and_then()
            bar.advance(0)

        with budget, bar:
            ran_through = await run_bounded(
                [None], work, concurrency=1, on_failure=fail, on_tick=tick
            )
        if not ran_through:
            return "interrupted"
        return "cost" if is_spent else None

    @property
    def _left(self) -> list[JudgeItem]:
        return [item for item in self._job.items if self._job.attempts.are_left(item)]

    def _name(self, item: JudgeItem) -> str:
        """What the next attempt at an item is called in a batch: the same after a restart."""
        attempt = [*item, self._job.attempts.num_failed[item]]
        return hashlib.sha256(canonical_json(attempt).encode()).hexdigest()[:32]

    def _call(self, item: JudgeItem) -> Call:
        """The next attempt at an item, as it is asked."""
        call = self._client.call(**self._job.request(item), sticky=item.trajectory_id)
        return call._replace(price_share=self._batches.price_share)

    async def _ask(self, budget: Budget, bar: Progress) -> bool:
        """Have the next batch answered; whether there was money for any of it."""
        left = self._give_up_or_keep_asking()
        if not left:
            return True
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "requests.jsonl"
            sent = self._write(file, left)
            if not sent:
                return False
            file_id = await self._batches.upload(file)
        batch = SubmittedBatch(
            url=self._batches.url,
            level=self._config.level,
            num_lines=len(sent),
            input_file_id=file_id,
        )
        _keep(self._path, batch)
        self._num_sends.update(sent)
        await self._finish(batch, budget, bar)
        return True

    def _give_up_or_keep_asking(self) -> list[JudgeItem]:
        """The items that are left, after those that were sent often enough are given up."""
        for item in self._left:
            if self._num_sends[item] >= NUM_SENDS:
                error = ExhaustedError(f"no answer in {NUM_SENDS} batches at {self._batches.url}.")
                self._job.give_up(item, error)
        return self._left

    def _write(self, file: Path, left: Iterable[JudgeItem]) -> list[JudgeItem]:
        """Those of the items that fit into a batch, and under the ceiling on the cost; writes the
        file that goes up."""
        sent = []
        purse = self._client.purse
        room_usd = purse.ceiling_usd - purse.spent_usd
        with file.open("wb") as out:
            for item in left:
                call = self._call(item)
                line = request_line(self._name(item), call.data)
                if len(sent) == self._config.batch_size or out.tell() + len(line) > MAX_FILE_BYTES:
                    break
                if price := call.profile.price:
                    full_usd = price.cost_usd(call.num_prompt_tokens, call.max_tokens)
                    room_usd -= call.price_share * full_usd
                if room_usd < 0:
                    break
                out.write(line)
                sent.append(item)
        return sent

    def _check(self, batch: SubmittedBatch) -> None:
        """Refuse to take a batch for one of this job's."""
        where = batch_path(self._path)
        if batch.url != self._batches.url:
            raise InputError(
                f"{where}: a batch is under way at {batch.url}, not at {self._batches.url}. Name "
                "the provider that has it, or delete that file to pay for its items again."
            )
        if batch.level != self._config.level:
            raise InputError(
                f"{where}: a batch with --level {batch.level} is under way. Start with that level "
                "first, or delete that file to pay for its items again."
            )

    async def _finish(self, batch: SubmittedBatch, budget: Budget, bar: Progress) -> None:
        """Wait for a batch, and write its scores down.

        Raises:
          ApiError: it was refused as a whole, cancelled, or met by a wrong setting throughout.
        """
        if batch.batch_id is None:
            batch = await self._batches.make(batch)
            _keep(self._path, batch)

        def show(state: BatchState) -> None:
            done = f"batch {state.word}, {state.num_done:,} of {batch.num_lines:,} answered"
            bar.advance(0, ", ".join(filter(None, (done, self._job.note, budget.note))))

        state = await self._batches.wait(batch, show)
        names = {self._name(item): item for item in self._left}
        num_answered = 0
        refused: list[tuple[JudgeItem, RefusedError]] = []
        misplaced = ""
        async for line in self._batches.read(state):
            if (item := names.pop(line.custom_id, None)) is None:
                continue  # no line of ours, or one that was read before a kill
            if line.is_misplaced:
                misplaced = misplaced or line.words
            try:
                is_answered = self._take(item, line, budget)
            except RefusedError as error:
                refused.append((item, error))
                continue
            num_answered += is_answered
            is_over = is_answered and not self._job.attempts.are_left(item)
            bar.advance(is_over, ", ".join(filter(None, (self._job.note, budget.note))))
        is_all_refused = len(refused) >= NUM_FAILURES_IN_A_ROW and not num_answered
        for item, error in () if is_all_refused else refused:
            self._job.give_up(item, error)
            bar.advance(1)
        batch_path(self._path).unlink(missing_ok=True)
        if is_all_refused:
            raise ApiError(
                f"all {len(refused):,} requests of a batch were refused; none is given up for it. "
                f"The last: {refused[-1][1]}"
            )
        named = f"{self._batches.url}: batch {batch.batch_id}"
        if state.state == "failed":
            raise ApiError(
                f"{named} was refused: {state.problems or 'no reason given'}. Nothing of it is "
                "billed. Where too much was waiting there, lower --batch-size."
            )
        if state.state == "cancelled":
            raise ApiError(f"{named} was cancelled there. Start again to ask for what is left.")
        if misplaced and not num_answered:
            raise ApiError(f"{named} got no answer: {misplaced}. Check the judge's name and key.")

    def _take(self, item: JudgeItem, line: BatchLine, budget: Budget) -> bool:
        """Write an answer down; whether there was one.

        Raises:
          RefusedError: there never will be.
        """
        where = f"{self._batches.url} refused a request of a batch"
        if line.is_refused:
            raise RefusedError(f"{where}: {line.words}", line.status)
        detail = line.words
        if line.status == 200:
            try:
                completion = self._client.answered(self._call(item), line.content)
            except FaultError as fault:
                if fault.kind in ("refused", "filtered"):
                    raise RefusedError(f"{where}: {fault.detail}", fault.status) from None
                detail = fault.detail
            else:
                budget.add(completion.cost_usd)
                self._job.keep(item, completion)
                return True
        log.debug("%s, turn %s: %s", item.trajectory_id, item.turn_index, detail)
        return False


def _open_batch(path: Path) -> SubmittedBatch | None:
    try:
        return read_typed(
            batch_path(path),
            SubmittedBatch,
            "Delete it; what its batch was paid for is then asked for, and paid, again.",
        )
    except FileNotFoundError:
        return None


def _keep(path: Path, batch: SubmittedBatch) -> None:
    write_json(batch_path(path), msgspec.to_builtins(batch))
