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
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from emodistill.domains.scenario import Scenario
from emodistill.errors import ApiError, InputError, StaleInputError
from emodistill.jsonl import JsonlAppender
from emodistill.llm.client import ChatClient, Completion, RefusedError
from emodistill.offline.budget import Budget, Ledger, Stopped
from emodistill.offline.store import read_judgements
from emodistill.offline.workers import run_bounded
from emodistill.progress import Progress, progress
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
    stopped: Stopped | None
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
    subjects = _subjects(trajectories, scenarios)
    items = judge_items(trajectories, level=level, repeats=repeats)
    with JsonlAppender(path) as lines, Ledger(path, client) as ledger:
        earlier = read_judgements(path)
        _check_file(earlier, path, judge, pack)
        standing = _Standing()
        for line in earlier:
            if not (retry_unanswered and _is_unanswered(line)):
                standing.take(line)
        todo = [item for item in items if standing.is_open(item)]
        costs_usd = [line.cost_usd for line in earlier]
        budget = Budget(
            max_cost_usd, client=client, ledger=ledger, models=[judge], before_usd=costs_usd
        )
        unit = "turns" if level == "turn" else "dialogues"
        bar = progress("judge", total=len(items), unit=unit, done=len(items) - len(todo))
        judging = _Judging(client, judge, pack, seed, subjects, lines, standing, budget, bar)
        with bar:
            ran_through = await run_bounded(
                todo,
                judging.score,
                concurrency=concurrency,
                on_failure=judging.give_up,
                admits=budget.admits,
                on_tick=judging.tick,
            )
    result = judging.result(items, ran_through)
    shown = ", ".join(f"{arm} {rate:.1%}" for arm, rate in result.failure_rates.items())
    bar.say(f"judge: answers without a score: {shown or 'none yet'}")
    return result


class _Standing:
    """Which items have a score, and which have failed for good, by the lines of the file."""

    def __init__(self) -> None:
        self.scored: set[JudgeItem] = set()
        self.given_up: set[JudgeItem] = set()
        self._last_failed: dict[JudgeItem, int] = {}

    def take(self, line: Judgement) -> None:
        """One more line; a score stays, whatever else the item's lines say."""
        item = JudgeItem(line.trajectory_id, line.turn_index, line.repeat)
        if line.status == "scored":
            self.scored.add(item)
            self.given_up.discard(item)
            return
        self._last_failed[item] = max(line.attempt, self._last_failed.get(item, 0))
        if line.attempt >= LAST_ATTEMPT and item not in self.scored:
            self.given_up.add(item)

    def is_open(self, item: JudgeItem) -> bool:
        return item not in self.scored and item not in self.given_up

    def next_attempt(self, item: JudgeItem) -> int:
        """Of an open item."""
        return self._last_failed.get(item, -1) + 1


@dataclass(slots=True)
class _Judging:
    """Has one item after another scored, keeps every answer, and says how far they are."""

    client: ChatClient
    judge: str
    pack: PromptPack
    seed: int
    subjects: Mapping[str, _Subject]
    lines: JsonlAppender
    standing: _Standing
    budget: Budget
    bar: Progress
    num_new: int = 0

    async def score(self, item: JudgeItem) -> None:
        messages = self.subjects[item.trajectory_id].messages(self.pack, item.turn_index)
        while self.standing.is_open(item):
            attempt = self.standing.next_attempt(item)
            with self.budget.running():
                completion = await self.client.chat(
                    messages,
                    model=self.judge,
                    temperature=0.0,
                    max_tokens=MAX_TOKENS,
                    seed=derive(self.seed, "judge", *map(str, item), attempt),
                    sticky=item.trajectory_id,
                )
            self.budget.add(completion.cost_usd)
            self._write(item, attempt, completion)
        self.bar.advance(1, self.note)

    def give_up(self, item: JudgeItem, error: ApiError) -> None:
        status = f"HTTP {error.status}" if isinstance(error, RefusedError) else "no HTTP 200"
        log.warning("%s, turn %s: %s", item.trajectory_id, item.turn_index, error)
        self._write(item, LAST_ATTEMPT, Completion(f"{NO_ANSWER}{status}]", 0, 0, 0.0, 0.0))
        self.bar.advance(1, self.note)

    def tick(self) -> None:
        self.bar.tick(self.note)

    @property
    def note(self) -> str:
        num_unread = len(self.standing.given_up)
        unread = f"{num_unread:,} unreadable" if num_unread else ""
        return ", ".join(filter(None, (unread, self.client.health, self.budget.note)))

    def result(self, items: Sequence[JudgeItem], ran_through: bool) -> JudgingResult:
        num_scored = sum(item in self.standing.scored for item in items)
        num_failed = sum(item in self.standing.given_up for item in items)
        return JudgingResult(
            num_items=len(items),
            num_scored=num_scored,
            num_failed=num_failed,
            num_new=self.num_new,
            failure_rates=self._failure_rates(items),
            cost_usd=self.budget.spent_usd,
            stopped=self.budget.stopped(ran_through, num_scored + num_failed == len(items)),
            path=self.lines.path,
        )

    def _failure_rates(self, items: Iterable[JudgeItem]) -> dict[str, float]:
        """Failed over judged items, per focal method."""
        num_failed: Counter[str] = Counter()
        num_judged: Counter[str] = Counter()
        for item in items:
            arm = self.subjects[item.trajectory_id].trajectory.focal.method
            num_failed[arm] += item in self.standing.given_up
            num_judged[arm] += not self.standing.is_open(item)
        return {arm: num_failed[arm] / count for arm, count in num_judged.items() if count}

    def _write(self, item: JudgeItem, attempt: int, answer: Completion) -> None:
        score = parse_score(answer.text)
        line = Judgement(
            trajectory_id=item.trajectory_id,
            turn_index=item.turn_index,
            judge=self.judge,
            repeat=item.repeat,
            attempt=attempt,
            rubric_sha256=self.pack.rubric_sha256,
            raw=answer.text,
            status="failed" if score is None else "scored",
            score=score,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            cost_usd=answer.cost_usd,
        )
        self.lines.append(line)
        self.standing.take(line)
        self.num_new += 1


class _Subject(NamedTuple):
    scenario: Scenario
    trajectory: Trajectory

    def messages(self, pack: PromptPack, turn_index: int | None) -> Sequence[Mapping[str, object]]:
        """The prompt on one turn, or on the whole dialogue."""
        scenario, played = self
        if turn_index is not None:
            return turn_judge_messages(pack, scenario, played.turns, turn_index)
        return dialogue_judge_messages(
            pack, scenario, played.turns, played.outcome, played.final_value
        )


def _subjects(
    trajectories: Sequence[Trajectory], scenarios: Sequence[Scenario]
) -> dict[str, _Subject]:
    """What is judged, by `trajectory_id`."""
    scenario_by_id = {scenario.scenario_id: scenario for scenario in scenarios}
    for trajectory in trajectories:
        if trajectory.scenario_id not in scenario_by_id:
            raise InputError(
                f"{trajectory.trajectory_id}: scenario {trajectory.scenario_id!r} is not among the "
                f"{len(scenarios)} given; scenarios.jsonl must hold those of trajectories.jsonl."
            )
    return {t.trajectory_id: _Subject(scenario_by_id[t.scenario_id], t) for t in trajectories}


def _is_unanswered(line: Judgement) -> bool:
    return line.status == "failed" and line.raw.startswith(NO_ANSWER)


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
