"""Stage 2: a language model scores focal turns, or whole dialogues, from 1 to 10 (Appendix P).

    judge/<judge>.jsonl        one call a line, appended, never edited

An answer without a readable score is `failed`: it is asked for once more, kept as it came, and
never becomes a number.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from emodistill.domains.scenario import Scenario
from emodistill.errors import ApiError, InputError, StaleInputError
from emodistill.jsonl import JsonlAppender
from emodistill.llm.client import ChatClient, RefusedError
from emodistill.offline.budget import Budget, Ledger
from emodistill.offline.store import read_judgements
from emodistill.offline.workers import run_bounded
from emodistill.progress import progress
from emodistill.prompts import PromptPack, dialogue_judge_messages, turn_judge_messages
from emodistill.records import Judgement, Trajectory
from emodistill.seeding import derive

log = logging.getLogger("emodistill.offline")

MAX_TOKENS = 64
LAST_ATTEMPT = 1
NO_ANSWER = "[no answer: "

Level = Literal["turn", "dialogue"]
ScoreKey = tuple[str, int | None]

_EMPHASIS = re.compile(r"(?<![^\W_])[*_]+(?=\S)|(?<=\S)[*_]+(?![^\W_])")
_SCORE = re.compile(r"(?i)SCORE:\s*(\d{1,2})(?!\d|[.,]\d|\s*[-–]\s*\d)")
_LONE = re.compile(r"\d{1,2}")


def parse_score(text: str) -> int | None:
    """The score in a judge's answer, 1 to 10; None where there is none to be had.

    `SCORE: n` anywhere, else an integer that is the whole answer or its whole first line;
    Markdown emphasis is ignored. No other number in the text is ever taken for a score, nor is
    any where two contradict each other, as when the judge quotes one out of what it read.
    """
    plain = _EMPHASIS.sub("", text).strip()
    if stated := set(_SCORE.findall(plain)):
        if len(stated) > 1:
            return None
        digits = stated.pop()
    else:
        first_line = plain.splitlines()[0].strip() if plain else ""
        if not _LONE.fullmatch(first_line):
            return None
        digits = first_line
    score = int(digits)
    return score if 1 <= score <= 10 else None


class JudgeItem(NamedTuple):
    """Something to be scored: a focal turn, or a dialogue (`turn_index` None), once or again."""

    trajectory_id: str
    turn_index: int | None
    repeat: int


class JudgingResult(NamedTuple):
    """Counts over everything that was asked for, earlier runs included.

    `num_new` are this run's calls; `failure_rates` is per arm, that is per focal method.
    """

    num_items: int
    num_scored: int
    num_failed: int
    num_new: int
    failure_rates: Mapping[str, float]
    cost_usd: float
    stopped: Literal["interrupted", "cost"] | None
    path: Path

    @property
    def is_complete(self) -> bool:
        return self.num_scored + self.num_failed == self.num_items

    @property
    def summary(self) -> str:
        """A line for the terminal."""
        text = f"{self.num_scored:,} of {self.num_items:,} items scored"
        if self.num_failed:
            text += f", {self.num_failed:,} left without a score"
        if self.cost_usd:
            text += f", ${self.cost_usd:.2f} spent"
        if self.stopped == "interrupted":
            text += ". Stopped as asked; what is judged is kept, start again to go on"
        elif self.stopped == "cost":
            text += ". Stopped by --max-cost-usd; raise it and start again to go on"
        return f"{text}. They are in {self.path}."


def judge_path(directory: Path, judge: str) -> Path:
    """`judge/<judge>.jsonl`; characters that no file name should have become dashes."""
    return directory / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', judge).strip('.-') or 'judge'}.jsonl"


def scores_by_turn(judgements: Iterable[Judgement], repeat: int = 0) -> dict[ScoreKey, int]:
    """`{(trajectory_id, turn_index or None): score}`; the last scored line counts."""
    return {
        (judgement.trajectory_id, judgement.turn_index): judgement.score
        for judgement in judgements
        if judgement.repeat == repeat and judgement.score is not None
    }


def judge_items(
    trajectories: Sequence[Trajectory], *, level: Level = "turn", repeats: int = 1
) -> list[JudgeItem]:
    """What there is to score, all first scores before all second ones."""
    return [
        JudgeItem(trajectory.trajectory_id, index, repeat)
        for repeat in range(repeats)
        for trajectory in trajectories
        for index in (
            [turn.index for turn in trajectory.focal_turns] if level == "turn" else [None]
        )
    ]


async def run_judging(
    trajectories: Sequence[Trajectory],
    scenarios: Sequence[Scenario],
    *,
    path: Path,
    client: ChatClient,
    pack: PromptPack,
    judge: str,
    level: Level = "turn",
    repeats: int = 1,
    retry_unanswered: bool = False,
    seed: int = 0,
    concurrency: int = 6,
    max_cost_usd: float | None = None,
) -> JudgingResult:
    """Score every item that `path` doesn't hold yet, at temperature 0 and 64 tokens.

    Both levels share the file. An item is done with a scored line, or once both attempts failed.

    Args:
      path: see `judge_path`.
      retry_unanswered: ask again where an earlier run got no answer at all.
      seed: the API seed of a call derives from it, the item and the attempt.

    Raises:
      ApiError: the API can't work as it is set up, or failure follows failure.
      InputError: a dialogue's scenario is missing, or `path` holds another judge's lines.
      StaleInputError: `path` was begun with another rubric.
    """
    by_id = {trajectory.trajectory_id: trajectory for trajectory in trajectories}
    scenario_by_id = {scenario.scenario_id: scenario for scenario in scenarios}
    for trajectory in trajectories:
        if trajectory.scenario_id not in scenario_by_id:
            raise InputError(
                f"{trajectory.trajectory_id}: scenario {trajectory.scenario_id!r} is not among the "
                f"{len(scenarios)} given; scenarios.jsonl must hold those of trajectories.jsonl."
            )
    items = judge_items(trajectories, level=level, repeats=repeats)
    with JsonlAppender(path) as lines, Ledger(path, client) as ledger:
        earlier = read_judgements(path)
        _check_file(earlier, path, judge, pack)
        scored = {_item(line) for line in earlier if line.status == "scored"}
        last_failed: dict[JudgeItem, int] = {}
        for line in earlier:
            if line.status == "failed" and not (retry_unanswered and _is_unanswered(line)):
                last_failed[_item(line)] = max(line.attempt, last_failed.get(_item(line), 0))
        given_up = {item for item, attempt in last_failed.items() if attempt >= LAST_ATTEMPT}
        given_up -= scored
        todo = [item for item in items if item not in scored and item not in given_up]
        budget = Budget(
            max_cost_usd,
            client=client,
            ledger=ledger,
            models=[judge],
            before_usd=[line.cost_usd for line in earlier],
        )
        num_new = 0

        def write(item: JudgeItem, raw: str, attempt: int, usage: tuple[int, int, float]) -> bool:
            nonlocal num_new
            score = parse_score(raw)
            lines.append(
                Judgement(
                    trajectory_id=item.trajectory_id,
                    turn_index=item.turn_index,
                    judge=judge,
                    repeat=item.repeat,
                    attempt=attempt,
                    rubric_sha256=pack.rubric_sha256,
                    raw=raw,
                    status="failed" if score is None else "scored",
                    score=score,
                    prompt_tokens=usage[0],
                    completion_tokens=usage[1],
                    cost_usd=usage[2],
                )
            )
            num_new += 1
            return score is not None

        async def judge_one(item: JudgeItem) -> None:
            trajectory = by_id[item.trajectory_id]
            messages = _messages(pack, scenario_by_id[trajectory.scenario_id], trajectory, item)
            for attempt in range(last_failed.get(item, -1) + 1, LAST_ATTEMPT + 1):
                with budget.running():
                    completion = await client.chat(
                        messages,
                        model=judge,
                        temperature=0.0,
                        max_tokens=MAX_TOKENS,
                        seed=derive(seed, "judge", *map(str, item), attempt),
                        sticky=item.trajectory_id,
                    )
                budget.add(completion.cost_usd)
                ledger.tick()
                usage = completion.prompt_tokens, completion.completion_tokens, completion.cost_usd
                if write(item, completion.text, attempt, usage):
                    scored.add(item)
                    break
                last_failed[item] = attempt
            else:
                given_up.add(item)
            advance()

        def on_failure(item: JudgeItem, error: ApiError) -> None:
            status = f"HTTP {error.status}" if isinstance(error, RefusedError) else "no HTTP 200"
            log.warning("%s, turn %s: %s", item.trajectory_id, item.turn_index, error)
            write(item, f"{NO_ANSWER}{status}]", LAST_ATTEMPT, (0, 0, 0.0))
            given_up.add(item)
            advance()

        def advance() -> None:
            bar.advance(1, note())

        def note() -> str:
            spent = f"${budget.spent_usd:.2f}" if budget.spent_usd else ""
            unread = f"{len(given_up):,} unreadable" if given_up else ""
            return ", ".join(filter(None, (unread, client.health, spent)))

        unit = "turns" if level == "turn" else "dialogues"
        with progress("judge", total=len(items), unit=unit, done=len(items) - len(todo)) as bar:
            ran_through = await run_bounded(
                todo,
                judge_one,
                concurrency=concurrency,
                on_failure=on_failure,
                admits=budget.admits,
                on_tick=lambda: bar.tick(note()),
            )
    rates = _failure_rates(items, scored, given_up, by_id)
    shown = ", ".join(f"{arm} {rate:.1%}" for arm, rate in rates.items())
    bar.say(f"judge: answers without a score: {shown or 'none yet'}")
    is_open = any(item not in scored and item not in given_up for item in items)
    stopped = "interrupted" if not ran_through else "cost" if is_open and budget.is_spent else None
    return JudgingResult(
        num_items=len(items),
        num_scored=sum(item in scored for item in items),
        num_failed=sum(item in given_up for item in items),
        num_new=num_new,
        failure_rates=rates,
        cost_usd=budget.spent_usd,
        stopped=stopped,
        path=path,
    )


def _messages(
    pack: PromptPack, scenario: Scenario, trajectory: Trajectory, item: JudgeItem
) -> Sequence[Mapping[str, object]]:
    if item.turn_index is None:
        return dialogue_judge_messages(
            pack, scenario, trajectory.turns, trajectory.outcome, trajectory.final_value
        )
    return turn_judge_messages(pack, scenario, trajectory.turns, item.turn_index)


def _is_unanswered(line: Judgement) -> bool:
    return line.status == "failed" and line.raw.startswith(NO_ANSWER)


def _item(line: Judgement) -> JudgeItem:
    return JudgeItem(line.trajectory_id, line.turn_index, line.repeat)


def _failure_rates(
    items: Iterable[JudgeItem],
    scored: set[JudgeItem],
    given_up: set[JudgeItem],
    by_id: Mapping[str, Trajectory],
) -> dict[str, float]:
    """Failed over judged items, per focal method."""
    num_failed: Counter[str] = Counter()
    num_judged: Counter[str] = Counter()
    for item in items:
        arm = by_id[item.trajectory_id].focal.method
        num_failed[arm] += item in given_up
        num_judged[arm] += item in given_up or item in scored
    return {arm: num_failed[arm] / count for arm, count in num_judged.items() if count}


def _check_file(earlier: Sequence[Judgement], path: Path, judge: str, pack: PromptPack) -> None:
    for line in earlier:
        if line.judge != judge:
            raise InputError(
                f"{path} holds scores by {line.judge!r}, not {judge!r}. Rename that file, or judge "
                "into another folder."
            )
        if line.rubric_sha256 != pack.rubric_sha256:
            raise StaleInputError(
                f"{path} was begun with another rubric ({line.rubric_sha256[:12]}…, now "
                f"{pack.rubric_sha256[:12]}…). Go back to that prompt pack, or move the file away."
            )
