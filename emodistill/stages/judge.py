"""Stage 2: a judge's scores of the sweep, or of the dialogues of a match."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emodistill.configs import IQLConfig, JudgeConfig, SFTConfig, require
from emodistill.errors import InputError, StaleInputError, StoppedError
from emodistill.files import write_json
from emodistill.llm.endpoints import ModelEndpoint
from emodistill.logs import STAGE_LOG, log_to_file
from emodistill.offline.agreement import compare_scores, repeat_spread
from emodistill.offline.judging import judge_path, num_items_left, run_judging, scores_by_turn
from emodistill.offline.rewards import ENDINGS, Scores, SweepData
from emodistill.offline.run_files import SCENARIOS, TRAJECTORIES, judge_file, read_sweep
from emodistill.offline.store import read_judgements, read_scenarios, read_trajectories
from emodistill.offline.workers import JobsResult
from emodistill.prompts import load_pack
from emodistill.runs import Job, Manifest, Result, input_hashes, read_manifest
from emodistill.settings import Cell
from emodistill.stages.language_models import (
    endpoint_of,
    named_models,
    open_clients,
    usual_provider,
)
from emodistill.stages.model_check import check_models
from emodistill.stages.stage import (
    Requirement,
    Stage,
    command,
    follow_up,
    named_file,
    next_command,
)
from emodistill.untrusted import refuse_links, setting_of


class _JudgeDetails(NamedTuple):
    judge: ModelEndpoint
    sweep: SweepData


def scores_needed(config: Any) -> Sequence[Requirement]:
    """The scores that a stage learns from: none where its signal is how dialogues ended, unless
    they say which turns it takes."""
    if config.signal in ENDINGS and getattr(config, "data", "all") == "all":
        return []
    level = "dialogue" if config.signal == "episode-judge" else "turn"
    named = {} if config.judge is None else {"judge": config.judge}
    return [Requirement("judge", {"level": level, **named})]


def _needs(config: JudgeConfig) -> Sequence[Requirement]:
    require(
        config.data_from is None,
        f"--data-from {config.data_from} is for --validate; to judge that run's sweep, name it by "
        "--run.",
    )
    if usual_provider(config) is None:  # early, since a missing sweep would be made next
        endpoint_of(config, "judge")
    load_pack(config.prompt_pack)
    return [Requirement("sweep")]


def _job(cell: Cell) -> Job:
    config: JudgeConfig = cell.config
    judge = endpoint_of(config, "judge")
    pack = load_pack(config.prompt_pack)
    home = config.run / config.domain
    path = judge_path(home / "judge", judge.name)
    manifest = f"{path.stem}.{config.level}.manifest.json"  # each level of judging has one
    existing = read_manifest(path.parent, manifest) if path.is_file() else None
    sweep = read_sweep(home, pack, prompted=("judge",))
    judged = _judged_part(home / TRAJECTORIES, existing)
    num_dialogues = len(sweep.trajectories)
    return Job(
        cell=cell,
        name="judge",
        directory=path.parent,
        output=path,
        path=path,
        inputs={"rubric": pack.rubric_sha256, **input_hashes([home / SCENARIOS], config.run)},
        identity=config.identity() | {"judge": judge.name, "num_dialogues": num_dialogues} | judged,
        growing=(
            "repeats",
            "repeat_share",
            "judge_max_tokens",
            "num_dialogues",
            "dialogues_bytes",
            "dialogues_sha256",
        ),
        is_repeated=config.retry_unanswered,
        manifest=manifest,
        config_file=f"{path.stem}.{config.level}.config.yaml",
        details=_JudgeDetails(judge, sweep),
    )


def _judged_part(path: Path, existing: Manifest | None) -> dict[str, Any]:
    """What is judged: the dialogues' bytes and their hash.

    The file only ever grows, so what was judged before must still be how it begins.

    Raises:
      StaleInputError: it begins otherwise; scores would be joined to other utterances.
    """
    size, before = 0, ""
    if existing is not None:
        size = setting_of(existing.stage, existing.config, "dialogues_bytes", int)
        before = setting_of(existing.stage, existing.config, "dialogues_sha256", str)
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(size))
        if size and digest.hexdigest() != before:
            raise StaleInputError(
                f"{path} no longer begins with the dialogues that were judged before. Delete the "
                "scores beside it to judge anew, or use another --run."
            )
        rest = file.read()
    digest.update(rest)
    return {"dialogues_bytes": size + len(rest), "dialogues_sha256": digest.hexdigest()}


def score_sweep(job: Job, only: Container[str] | None = None) -> Result:
    """Score what the sweep has and the judge has not seen, or the dialogues of some ids."""
    config, (judge, sweep) = job.cell.config, job.details
    trajectories = sweep.trajectories
    chosen = [t for t in trajectories if only is None or t.trajectory_id in only]
    judging = _score(config, judge, sweep._replace(trajectories=chosen), job.output)
    summary: dict[str, Any] = {
        "failure_rates": dict(judging.failure_rates),
        "unusual_answers": judging.usage.unusual,
        "language_models": named_models({"judge": judge}),
    }
    if config.repeats > 1 and only is None:
        ids = {trajectory.trajectory_id for trajectory in trajectories}
        is_whole = config.level == "dialogue"
        spread = repeat_spread(
            line
            for line in read_judgements(job.output)
            if (line.turn_index is None) == is_whole and line.trajectory_id in ids
        )
        summary["repeats"] = dataclasses.asdict(spread)
        print(
            f"judge: {spread.num_items:,} items scored more than once; variance of an item's "
            f"scores {spread.variance:.2f}, reliability {spread.reliability:.2f}."
        )
    return Result(
        judging.summary,
        judging.cost_usd,
        summary,
        is_complete=judging.is_complete,
        is_part=only is not None,
    )


def _score(config: JudgeConfig, judge: ModelEndpoint, sweep: SweepData, path: Path) -> JobsResult:
    share = judge.provider.batch_share(judge.model)

    async def work() -> JobsResult:
        async with open_clients(config, "judge", [judge]) as client_of:
            await check_models(
                config,
                "judge",
                client_of,
                {"judge": judge},
                num_jobs=num_items_left(config, sweep.trajectories, path),
                unit="scores",
                price_share=share if config.batch and share is not None else 1.0,
            )
            judged = await run_judging(
                dataclasses.replace(config, judge=judge.name),
                sweep.trajectories,
                sweep.scenarios,
                path=path,
                client=client_of(judge),
                model=judge.model,
                pack=sweep.pack,
            )
        judged.check(
            "see what the judge has answered there, then start again with --retry-unanswered, or "
            "delete that file to ask for everything anew"
        )
        return judged

    return asyncio.run(work())


def judge_matches(config: JudgeConfig, dialogues: Path, directory: Path, scenarios: Path) -> Path:
    """Score the focal turns of dialogues that were played in a match; the judge's file.

    What is scored there is not asked again.

    Args:
      directory: where the judge's file goes.
      scenarios: the file of those that were played.

    Raises:
      StoppedError: stopped before the end.
    """
    judge = endpoint_of(config, "judge")
    path = judge_path(directory, judge.name)
    refuse_links(directory, config.run)
    played = SweepData(
        read_trajectories(dialogues),
        read_scenarios(scenarios),
        scores={},
        pack=load_pack(config.prompt_pack),
    )
    with log_to_file(directory / STAGE_LOG):
        judging = _score(config, judge, played, path)
    if not judging.is_complete:
        raise StoppedError(f"judge: {judging.summary}")
    print(f"judge: {judging.summary}", flush=True)
    return path


def compare_judges(config: JudgeConfig) -> Path:
    """Compare the scores of `config.judge` with those of `config.compare`; a JSON file of it.

    Raises:
      InputError: a judge has scored nothing here, or both have no item in common.
    """
    directory = config.run / config.domain / "judge"
    first, second = (judge_file(directory, name) for name in (config.judge, config.compare))
    for path in (first, second):
        if not path.is_file():
            raise InputError(f"{path} is missing; have that judge score the sweep first.")
    if first == second:
        raise InputError(f"--judge and --compare are both {first.stem}; name two judges.")
    trajectories = read_trajectories(config.run / config.domain / TRAJECTORIES)
    is_whole = config.level == "dialogue"

    def of_level(path: Path) -> Scores:
        scores = scores_by_turn(read_judgements(path))
        return {key: s for key, s in scores.items() if (key[1] is None) == is_whole}

    scenarios = {t.trajectory_id: t.scenario_id for t in trajectories}
    agreement = compare_scores(of_level(first), of_level(second), scenarios)
    out = first.with_name(f"{first.stem}-vs-{second.stem}.{config.level}.json")
    write_json(out, dataclasses.asdict(agreement) | {"counts": agreement.counts.tolist()})
    print(f"{first.stem} and {second.stem}: {agreement.text}")
    print(f"judge: comparison in {out}")
    return out


def _is_there(home: Path, need: Requirement) -> bool:
    path = judge_file(home / "judge", need.shared.get("judge"))
    if not path.is_file():
        return False
    manifest = read_manifest(path.parent, f"{path.stem}.{need.shared['level']}.manifest.json")
    if manifest is None:  # the user's own file, unless another level of judging has made it
        return not any(path.parent.glob(f"{path.stem}.*.manifest.json"))
    dialogues = home / TRAJECTORIES
    size = dialogues.stat().st_size if dialogues.is_file() else 0
    return (
        manifest.status == "finished"
        and setting_of(manifest.stage, manifest.config, "dialogues_bytes", int) == size
    )


def _training(cell: Cell) -> str:
    """The commands that learn from the scores."""
    config = cell.config
    if config.level == "dialogue":  # which the default signals leave alone
        signal = {"signal": "episode-judge"}
        selector = next_command("train_iql", IQLConfig, cell, **signal)
        return f"{selector}; {next_command('train_sft', SFTConfig, cell, **signal)}"
    selector = follow_up(IQLConfig, cell)
    if selector.signal in ENDINGS:  # no judge has a say in it
        selector = dataclasses.replace(selector, judge=None)
    file = named_file(cell)
    return f"{command('train_iql', selector, file)}; {next_command('train_sft', SFTConfig, cell)}"


JUDGE = Stage(
    config=JudgeConfig,
    script="judge",
    is_data=True,
    needs=_needs,
    job=_job,
    run=score_sweep,
    followed_by=_training,
    is_there=_is_there,
)
