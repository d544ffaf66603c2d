"""Stage 2: a language model scores focal turns, or whole dialogues, from 1 to 10 (Appendix P).

    judge/<judge>.jsonl        one call a line, appended, never edited

Items are asked for one by one, so many at once, or by file batches (`batch_judging`).
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
from typing import Any, Literal

from emodistill.configs import JudgeConfig
from emodistill.domains.scenario import Scenario
from emodistill.errors import ApiError, InputError, StaleInputError
from emodistill.jsonl import JsonlAppender
from emodistill.llm.batches import BatchClient
from emodistill.llm.client import ChatClient, RefusedError
from emodistill.llm.client_group import ClientGroup
from emodistill.llm.usage import Completion
from emodistill.offline.batch_judging import BatchJudging, refuse_open_batch
from emodistill.offline.budget import Budget
from emodistill.offline.judge_items import (
    LAST_ATTEMPT,
    NO_ANSWER,
    JudgeAttempts,
    JudgeItem,
    JudgeJob,
)
from emodistill.offline.store import read_judgements
from emodistill.offline.workers import JobsResult, StopReason, run_jobs
from emodistill.progress import Progress
from emodistill.prompts import Message, PromptPack, dialogue_judge_messages, turn_judge_messages
from emodistill.records import Judgement, Trajectory
from emodistill.seeding import derive
from emodistill.untrusted import file_name

log = logging.getLogger("emodistill.offline")

Level = Literal["turn", "dialogue"]
ScoreKey = tuple[str, int | None]

_EMPHASIS = re.compile(r"(?<![^\W_])[*_]+(?=\S)|(?<=\S)[*_]+(?![^\W_])")
_SCORE = re.compile(r"(?im)^[ \t]*SCORE[ \t]*:\s*(?P<figure>[^\n]*)")
_LONE = re.compile(r"\s*(\d{1,2})[ \t\r]*(?:\n|$)")
_OF_TEN = re.compile(r"(?i)\s*\(?(?:/|out of|of)\s*(?:10|ten)\b(?![.,/]\d)\)?")
# What makes the digits before it another number than they look, or one of several.
_GOES_ON = re.compile(
    r"(?i)\w|\s*(?:[/%*^+~]|[-–—−→,.]\d|[-–—−→,]\s*\d|[\d½¼¾]|\(?(?:out )?of\b)"
    r"|\s+(?:to|or|and|over)\s+\d"
)


def parse_score(text: str, *, is_cut: bool = False) -> int | None:
    """The score in a judge's answer, 1 to 10; None where there is none to be had.

    `SCORE: n` at the start of a line, else an integer that is the whole answer or its whole first
    line; Markdown emphasis is ignored. A score may be given out of 10 ("7/10", "7 out of 10"), and
    of nothing else. No other number in the text is ever taken for a score, nor is any where two
    contradict each other, as when the judge quotes one out of what it read.

    Args:
      is_cut: the answer reached its limit on tokens, so that a score at its very end may lack its
        last digit ("SCORE: 1") or what it is out of, and is none.
    """
    plain = _EMPHASIS.sub("", text)
    figures = [(match["figure"], match.end()) for match in _SCORE.finditer(plain)]
    if not figures and (lone := _LONE.match(plain)):
        figures = [(lone[1], lone.end(1))]
    scores = {_score(figure, is_cut and end == len(plain)) for figure, end in figures}
    return scores.pop() if len(scores) == 1 else None


def _score(figure: str, is_open: bool) -> int | None:
    """The score that a line gives; one that `is_open` may go on behind its end."""
    if (digits := re.match(r"\d{1,2}(?!\d)", figure)) is None:
        return None
    rest = figure[digits.end() :]
    if of_ten := _OF_TEN.match(rest):
        rest = rest[of_ten.end() :]
    is_other = _GOES_ON.match(rest) or (is_open and len(rest.split()) < 2)
    is_disputed = any(again != digits[0] for again in re.findall(r"(?i)SCORE:\s*(\d+)", rest))
    score = int(digits[0])
    return score if 1 <= score <= 10 and not (is_other or is_disputed) else None


def judge_path(directory: Path, judge: str) -> Path:
    """`judge/<judge>.jsonl`; characters that no file name should have become dashes."""
    return directory / f"{file_name(judge) or 'judge'}.jsonl"


def scores_by_turn(judgements: Iterable[Judgement], repeat: int = 0) -> dict[ScoreKey, int]:
    """`{(trajectory_id, turn_index or None): score}`; the last scored line counts."""
    return {
        (judgement.trajectory_id, judgement.turn_index): judgement.score
        for judgement in judgements
        if judgement.repeat == repeat and judgement.score is not None
    }


def repeated_scores(judgements: Iterable[Judgement]) -> dict[ScoreKey, list[int]]:
    """All scores of the items that have more than one; the last scored line of a repeat counts."""
    by_item: dict[ScoreKey, dict[int, int]] = {}
    for line in judgements:
        if line.score is not None:
            scores = by_item.setdefault((line.trajectory_id, line.turn_index), {})
            scores[line.repeat] = line.score
    return {item: list(scores.values()) for item, scores in by_item.items() if len(scores) > 1}


def num_items_left(config: JudgeConfig, trajectories: Sequence[Trajectory], path: Path) -> int:
    """How many items `run_judging` would ask for; a torn last line of the file is cut off."""
    earlier: list[Judgement] = []
    if path.is_file():
        with JsonlAppender(path):
            earlier = read_judgements(path)
    attempts = _earlier_attempts(config, earlier)
    return sum(map(attempts.are_left, _planned_items(config, trajectories)))


def _planned_items(config: JudgeConfig, trajectories: Sequence[Trajectory]) -> list[JudgeItem]:
    """What is to be scored in the end: all first scores, then all second ones."""
    is_by_turn = config.level == "turn"
    first = [
        JudgeItem(trajectory.trajectory_id, index, 0)
        for trajectory in trajectories
        for index in ([turn.index for turn in trajectory.focal_turns] if is_by_turn else [None])
    ]
    again = [item for item in first if _is_repeated(config, item)] if config.repeats > 1 else []
    return first + [
        item._replace(repeat=repeat) for repeat in range(1, config.repeats) for item in again
    ]


def _is_repeated(config: JudgeConfig, item: JudgeItem) -> bool:
    """Whether an item is among the `repeat_share`; a larger share holds a smaller one's."""
    drawn = derive(config.seed, "repeat-share", item.trajectory_id, str(item.turn_index))
    return drawn % 2**20 < config.repeat_share * 2**20


def _earlier_attempts(config: JudgeConfig, earlier: Iterable[Judgement]) -> JudgeAttempts:
    """What the lines of the file say, without those that are to be asked for again."""
    return JudgeAttempts(
        line
        for line in earlier
        if line.status == "scored"
        or not (config.retry_unanswered and line.raw.startswith(NO_ANSWER))
    )


async def run_judging(
    config: JudgeConfig,
    trajectories: Sequence[Trajectory],
    scenarios: Sequence[Scenario],
    *,
    path: Path,
    client: ChatClient,
    pack: PromptPack,
    model: str | None = None,
) -> JobsResult:
    """Score every item that `path` doesn't hold yet, at temperature 0.

    Both levels share the file. An item is done with a scored line, or once both attempts failed.
    The API seed of a call derives from the configuration's seed, the item and the attempt.

    Args:
      config: a judge that it does not name is the default of the client's provider.
      path: see `judge_path`.
      model: what the client's server calls the judge, if not by its name.

    Raises:
      ApiError: the API can't work as it is set up, or failure follows failure.
      InputError: a dialogue's scenario is missing, `path` holds another judge's lines, or a batch
        is under way for it and none is asked for.
      StaleInputError: `path` was begun with another rubric.
    """
    judge = config.judge or client.provider.default_model("judge")
    dialogues = {trajectory.trajectory_id: trajectory for trajectory in trajectories}
    scenario_of = scenarios_by_dialogue(trajectories, scenarios)
    items = _planned_items(config, trajectories)
    clients = ClientGroup([client])
    with JsonlAppender(path) as file:
        earlier = read_judgements(path)
        _check_file(earlier, path, judge, pack)
        attempts = _earlier_attempts(config, earlier)
        pending = [item for item in items if attempts.are_left(item)]
        budget = Budget(
            path,
            clients,
            config.max_cost_usd,
            unpriced=[] if client.provider.is_priced(model or judge) else [judge],
            finished_usd=[line.cost_usd for line in earlier],
        )
        lines = _NewLines(file, attempts, judge, client.provider.label, pack.rubric_sha256)

        def request(item: JudgeItem) -> dict[str, Any]:
            attempt = attempts.num_failed[item]
            scenario, dialogue = scenario_of[item.trajectory_id], dialogues[item.trajectory_id]
            return {
                "messages": _messages(pack, scenario, dialogue, item.turn_index),
                "model": model or judge,
                "temperature": 0.0,
                "max_tokens": config.judge_max_tokens << attempt,  # it may have been cut
                "seed": derive(config.seed, "judge", *map(str, item), attempt),
            }

        job = JudgeJob(pending, attempts, request, lines.keep, lines.give_up)
        unit = "turns" if config.level == "turn" else "dialogues"
        bar = Progress("judge", total=len(items), unit=unit, done=len(items) - len(pending))
        if config.batch:
            batches = BatchClient(client, model or judge)
            stopped = await BatchJudging(job, config, path, batches).run(budget, bar)
        else:
            refuse_open_batch(path)
            stopped = await _ask_one_by_one(job, config, clients, budget, bar)
    result = lines.result(items, dialogues, budget, stopped)
    shown = ", ".join(f"{arm} {rate:.1%}" for arm, rate in result.failure_rates.items())
    bar.say(f"judge: answers without a score: {shown or 'none yet'}")
    return result


@dataclass(slots=True)
class _NewLines:
    """The lines that a job adds to its file, one for each answer or call that was given up."""

    file: JsonlAppender
    attempts: JudgeAttempts
    judge: str
    provider: str
    rubric_sha256: str
    num_new: int = 0

    def keep(self, item: JudgeItem, answer: Completion) -> None:
        self._write(item, self.attempts.num_failed[item], answer)

    def give_up(self, item: JudgeItem, error: ApiError) -> None:
        status = "no HTTP 200"
        if isinstance(error, RefusedError):
            status = "filtered" if error.status == 200 else f"HTTP {error.status}"
        log.warning("%s, turn %s: %s", item.trajectory_id, item.turn_index, error)
        self._write(item, LAST_ATTEMPT, Completion(f"{NO_ANSWER}{status}]", 0, 0, 0.0, 0.0))

    def _write(self, item: JudgeItem, attempt: int, answer: Completion) -> None:
        score = parse_score(answer.text, is_cut=answer.finish_reason == "length")
        line = Judgement(
            **item._asdict(),
            judge=self.judge,
            provider=self.provider,
            attempt=attempt,
            rubric_sha256=self.rubric_sha256,
            raw=answer.text,
            status="failed" if score is None else "scored",
            score=score,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            cost_usd=answer.cost_usd,
        )
        self.file.append(line)
        self.attempts.add(line)
        self.num_new += 1

    def result(
        self,
        items: Sequence[JudgeItem],
        dialogues: Mapping[str, Trajectory],
        budget: Budget,
        stopped: StopReason | None,
    ) -> JobsResult:
        """What the job amounts to, `stopped` for that reason."""
        judged = [item for item in items if not self.attempts.are_left(item)]
        failed = [item for item in judged if item in self.attempts.unreadable]
        return JobsResult(
            num_planned=len(items),
            num_finished=len(judged) - len(failed),
            num_failed=len(failed),
            num_new=self.num_new,
            cost_usd=budget.spent_usd,
            usage=budget.usage,
            stopped=stopped,
            path=self.file.path,
            finished="items scored",
            failed="left without a score",
            on_interrupt="what is judged is kept, start again to go on",
            failure_rates=_failure_rates(failed, judged, dialogues),
        )


def _messages(
    pack: PromptPack, scenario: Scenario, dialogue: Trajectory, turn_index: int | None
) -> list[Message]:
    """What the judge is asked about one turn, or about the whole dialogue."""
    if turn_index is not None:
        return turn_judge_messages(pack, scenario, dialogue.turns, turn_index)
    ending = dialogue.outcome, dialogue.final_value
    return dialogue_judge_messages(pack, scenario, dialogue.turns, *ending)


def _failure_rates(
    failed: Iterable[JudgeItem], judged: Iterable[JudgeItem], dialogues: Mapping[str, Trajectory]
) -> dict[str, float]:
    """Per focal method, the share of the judged items that are left without a score."""
    num_failed, num_judged = (
        Counter(dialogues[item.trajectory_id].focal.method for item in items)
        for items in (failed, judged)
    )
    return {method: num_failed[method] / count for method, count in num_judged.items()}


async def _ask_one_by_one(
    job: JudgeJob, config: JudgeConfig, clients: ClientGroup, budget: Budget, bar: Progress
) -> StopReason | None:
    (client,) = clients.clients

    async def score_one(item: JudgeItem) -> None:
        while job.attempts.are_left(item):
            completion = await client.chat(**job.request(item), sticky=item.trajectory_id)
            budget.add(completion.cost_usd)
            job.keep(item, completion)

    return await run_jobs(
        job.items,
        score_one,
        on_failure=job.give_up,
        clients=clients,
        budget=budget,
        bar=bar,
        concurrency=config.concurrency,
        status=lambda: job.note,
    )


def scenarios_by_dialogue(
    trajectories: Sequence[Trajectory], scenarios: Sequence[Scenario]
) -> dict[str, Scenario]:
    """The scenario of each `trajectory_id`."""
    by_id = {scenario.scenario_id: scenario for scenario in scenarios}
    for trajectory in trajectories:
        if trajectory.scenario_id not in by_id:
            raise InputError(
                f"{trajectory.trajectory_id}: scenario {trajectory.scenario_id!r} is not among the "
                f"{len(scenarios)} given; scenarios.jsonl must hold those of trajectories.jsonl."
            )
    return {t.trajectory_id: by_id[t.scenario_id] for t in trajectories}


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
