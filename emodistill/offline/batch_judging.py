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
from collections.abc import Iterable, Sequence
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
    LostBatchError,
    SubmittedBatch,
    request_line,
)
from emodistill.llm.billing import Call
from emodistill.llm.call_errors import ExhaustedError, RefusedError, final_error
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
        self._num_answered = 0
        is_by_turn = config.level == "turn"
        self._has_earlier = any(
            (item.turn_index is not None) == is_by_turn for item in job.attempts.answered
        )

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

        try:
            with budget, bar:
                ran_through = await run_bounded(
                    [None], work, concurrency=1, on_failure=fail, on_tick=tick
                )
        except LostBatchError as error:
            raise ApiError(f"{error} {self._on_loss()}") from None
        except ExhaustedError as error:
            raise ExhaustedError(
                f"{error} Start again later: a batch that is under way goes on there, and nothing "
                "is asked twice."
            ) from None
        if not ran_through:
            return "interrupted"
        return "cost" if is_spent else None

    def _on_loss(self) -> str:
        """What to do about a batch that the provider knows nothing of."""
        where = batch_path(self._path)
        batch = _open_batch(self._path)
        if batch is None or batch.batch_id is None:
            return (
                "It has no file batches, or knows nothing of the file of requests that was sent "
                f"up. Delete {where} to ask for its items anew, without --batch one by one; or "
                "use the keys that it was sent with."
            )
        return (
            f"It no longer knows batch {batch.batch_id}. Delete {where} to pay for its items "
            "again; or use the keys it was made with."
        )

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
        num_before = self._num_answered
        none_answered, misplaced = await self._read(state, budget, bar)
        batch_path(self._path).unlink(missing_ok=True)
        if none_answered is not None:
            raise none_answered
        named = f"{self._batches.url}: batch {batch.batch_id}"
        if state.state == "failed":
            raise ApiError(
                f"{named} was refused: {state.problems or 'no reason given'}. Nothing of it is "
                "billed. Where too much was waiting there, lower --batch-size."
            )
        if state.state == "cancelled":
            raise ApiError(f"{named} was cancelled there. Start again to ask for what is left.")
        if misplaced and self._num_answered == num_before:
            raise ApiError(
                f"{named} got no answer: {misplaced}. Check the judge's name, the key and its "
                "account's balance."
            )

    async def _read(
        self, state: BatchState, budget: Budget, bar: Progress
    ) -> tuple[ApiError | None, str]:
        """Write the results of a batch down, each as it is read, so that one that is interrupted
        goes on where it was.

        Refusals wait until something has been answered, in this batch or before: until then all of
        them may be a setting's fault. What has no text waits with them, since it is in the books
        once it is looked into, and must not be looked into twice.

        Returns:
          What is wrong with all requests, so that no item is given up; and the first error that is
          of a setting rather than of a request.
        """
        names = {self._name(item): item for item in self._left}
        waiting: list[tuple[JudgeItem, BatchLine]] = []
        lost: list[tuple[JudgeItem, BatchLine]] = []
        async for line in self._batches.read(state):
            if (item := names.pop(line.custom_id, None)) is None:
                continue  # no line of ours, or one that was read before a kill
            if line.fault is not None and line.fault.kind not in ("refused", "forbidden"):
                lost.append((item, line))
                continue
            waiting.append((item, line))
            if line.has_text or self._has_answered:
                self._give_up(self._keep(waiting, budget, bar), bar)
                waiting.clear()
        faults = self._keep(waiting, budget, bar)
        none_answered = None if self._has_answered else self._why_none(faults)
        if none_answered is None:
            self._give_up(faults, bar)
        misplaced = ""
        for item, fault in self._keep(lost, budget, bar):
            if fault.kind in ("dead", "misplaced"):
                misplaced = misplaced or fault.detail
            log.debug("%s, turn %s: %s", item.trajectory_id, item.turn_index, fault.detail)
        return none_answered, misplaced

    @property
    def _has_answered(self) -> bool:
        """Whether the judge has answered, readably or not, in this run or an earlier one."""
        return self._num_answered > 0 or self._has_earlier

    def _keep(
        self, lines: Iterable[tuple[JudgeItem, BatchLine]], budget: Budget, bar: Progress
    ) -> list[tuple[JudgeItem, FaultError]]:
        """Write down those results that are answers; what the others are."""
        taken = [(item, self._take(item, line, budget, bar)) for item, line in lines]
        return [(item, fault) for item, fault in taken if fault is not None]

    def _take(
        self, item: JudgeItem, line: BatchLine, budget: Budget, bar: Progress
    ) -> FaultError | None:
        """Count a result in the books, and write its answer down; why there is none."""
        if line.fault is not None and not line.is_billed:
            return line.fault
        try:
            completion = self._client.answered(self._call(item), line.content)
        except FaultError as fault:
            return fault.with_traceback(None)
        budget.add(completion.cost_usd)
        self._job.keep(item, completion)
        self._num_answered += 1
        is_over = not self._job.attempts.are_left(item)
        bar.advance(is_over, ", ".join(filter(None, (self._job.note, budget.note))))
        return None

    def _give_up(self, faults: Iterable[tuple[JudgeItem, FaultError]], bar: Progress) -> None:
        """Leave items without a score whose requests are not to be repeated."""
        for item, fault in faults:
            self._job.give_up(item, self._error(item, fault, has_answered=True))
            bar.advance(1)

    def _why_none(self, faults: Sequence[tuple[JudgeItem, FaultError]]) -> ApiError | None:
        """What these faults mean where nothing was ever answered; None where each is of its own
        request."""
        error = None
        for item, fault in faults:
            error = self._error(item, fault, has_answered=False)
            if not isinstance(error, RefusedError):
                return error
        if len(faults) < NUM_FAILURES_IN_A_ROW:
            return None
        return ApiError(
            f"all {len(faults):,} requests of a batch were refused; none is given up for it. "
            f"The last: {error}"
        )

    def _error(self, item: JudgeItem, fault: FaultError, *, has_answered: bool) -> ApiError:
        model = self._job.request(item)["model"]
        return final_error(fault, url=self._batches.url, model=model, has_answered=has_answered)


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
