"""Stages 1 and 2: dialogues and their scores, both from language models behind an API."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from emodistill.configs import ApiConfig, JudgeConfig, PlanConfig, SweepConfig
from emodistill.errors import InputError, StaleInputError, StoppedError
from emodistill.logs import kept_log
from emodistill.offline.run_files import CONFIG, SCENARIOS, TRAJECTORIES, by_id, judge_file
from emodistill.runs import (
    Manifest,
    begin_stage,
    file_sha256,
    finish_stage,
    input_hashes,
    read_manifest,
    stage_dir,
    write_json,
)
from emodistill.stages.apis import model_name, offer_model, offer_reader, open_client
from emodistill.stages.files import (
    LOG,
    Made,
    announce,
    command,
    covers,
    judge_manifest,
    read_scores,
    read_sweep,
    say,
    write_config,
)

if TYPE_CHECKING:
    from emodistill.domains.scenario import Scenario
    from emodistill.offline.judging import JudgingResult
    from emodistill.offline.rewards import Scores
    from emodistill.prompts import PromptPack
    from emodistill.records import Trajectory

C = TypeVar("C", bound=ApiConfig)


def sweep(config: SweepConfig) -> Made:
    """Stage 1: play the sweep's dialogues, or those that are still missing."""
    announce(config, "sweep")
    made = _sweep(config)
    if config.parquet:
        from emodistill.offline.parquet import write_parquet

        out = made.path.with_suffix(".parquet")
        write_parquet(read_sweep(config.run, config.domain)[0], out)
        say(f"sweep: the same dialogues in {out}")
    return made


def _sweep(config: SweepConfig, num_dialogues: int | None = None) -> Made:
    """All dialogues, or only the first so many, which leaves the stage unfinished."""
    from emodistill.domains import load_scenarios, split_scenarios
    from emodistill.offline.sweep import failures_path, run_sweep
    from emodistill.prompts import load_pack, offer_prompt_sha256

    focal = model_name(config, "focal", config.model)
    counterparty = model_name(config, "counterparty", config.counterparty)
    reader = offer_model(config)
    pack = load_pack(config.prompt_pack)
    loaded = load_scenarios(config.domain, config.scenarios, strict=config.strict)
    split = split_scenarios(loaded, config.num_test, config.num_validation, config.seed)
    directory = stage_dir(config.run, config.domain, "sweep")
    inputs = {"prompt pack": pack.sha256}
    if reader is not None:
        inputs["offer reader's prompt"] = offer_prompt_sha256()
    if config.scenarios is not None:
        inputs[str(config.scenarios)] = file_sha256(config.scenarios)
    found = read_manifest(directory)
    if found is not None and covers(found, config):
        config = dataclasses.replace(
            config,
            num_seeds=found.config["num_seeds"],
            num_scenarios=found.config["num_scenarios"],
        )
    manifest = begin_stage(
        directory,
        stage="sweep",
        config=config.identity() | {"model": focal, "counterparty": counterparty, "reader": reader},
        seed=config.seed,
        inputs=inputs,
        growing=("num_seeds", "num_scenarios"),
        output=directory / TRAJECTORIES,
        leftovers=(directory / SCENARIOS, failures_path(directory / TRAJECTORIES)),
    )
    made = Made(directory / TRAJECTORIES, command("judge", config))
    if manifest.is_finished:
        say(f"sweep: finished before, {manifest.summary.get('text', '')}")
        return made
    write_config(directory / CONFIG, "sweep", config)

    async def work() -> Any:
        async with open_client(config) as client:
            return await run_sweep(
                split.all(),
                out_dir=directory,
                client=client,
                pack=pack,
                focal_model=focal,
                counterparty_model=counterparty,
                focal_temperature=config.focal_temperature,
                counterparty_temperature=config.counterparty_temperature,
                max_reply_tokens=config.max_reply_tokens,
                num_seeds=config.num_seeds,
                num_scenarios=config.num_scenarios,
                num_dialogues=num_dialogues,
                seed=config.seed,
                max_turns=config.max_turns,
                agreement=config.agreement,
                concurrency=config.concurrency,
                max_cost_usd=config.max_cost_usd,
                reader=offer_reader(client, reader),
            )

    with kept_log(directory / LOG):
        result = asyncio.run(work())
    if not result.is_complete:
        raise StoppedError(f"sweep: {result.summary}")
    if num_dialogues is not None:
        return made
    finish_stage(directory, cost_usd=result.cost_usd, summary={"text": result.summary})
    say(f"sweep: {result.summary}")
    return made


def plan(config: PlanConfig) -> Path:
    """Play and judge the sweep's first dialogues, and say what all of it will take.

    Returns:
      A JSON file of the forecast, beside the dialogues.
    """
    from emodistill.domains import load_scenarios, split_scenarios
    from emodistill.llm.providers import get_provider
    from emodistill.offline.forecast import forecast
    from emodistill.offline.store import read_judgements
    from emodistill.offline.sweep import plan_sweep

    announce(config, "plan")
    model_name(config, "judge", config.judge)
    loaded = load_scenarios(config.domain, config.scenarios, strict=config.strict)
    split = split_scenarios(loaded, config.num_test, config.num_validation, config.seed)
    planned = plan_sweep(
        split.all(), num_seeds=config.num_seeds, num_scenarios=config.num_scenarios
    )
    pilot = {dialogue.trajectory_id for dialogue in planned[: config.pilot]}
    _sweep(_part(SweepConfig, config), len(pilot))
    scores = _judge(_part(JudgeConfig, config), pilot).path
    keys: dict[str, Any] = {}
    if not config.is_simulated:
        provider = get_provider(config.provider, base_url=config.base_url)
        keys = {"limits": provider.limits, "num_keys": max(1, len(provider.read_keys()))}
    trajectories, _ = read_sweep(config.run, config.domain)
    found = forecast(
        [t for t in trajectories if t.trajectory_id in pilot],
        read_judgements(scores),
        num_dialogues=len(planned),
        concurrency=config.concurrency,
        **keys,
    )
    out = stage_dir(config.run, config.domain, "sweep") / "forecast.json"
    write_json(out, found._asdict() | {n: getattr(found, n)._asdict() for n in ("sweep", "judge")})
    say(f"plan: {config.domain}\n{found.text}")
    settings = stage_dir(config.run, config.domain, "sweep") / CONFIG
    say(f"plan: forecast in {out}; go on with python scripts/sweep.py --config {settings}")
    return out


def _part(cls: type[C], config: PlanConfig) -> C:
    """The settings of one of the stages that a plan is about."""
    names = {f.name for f in dataclasses.fields(cls)} & {f.name for f in dataclasses.fields(config)}
    return cls(**{name: getattr(config, name) for name in names})


def _judged_part(path: Path, found: Manifest | None) -> dict[str, Any]:
    """What is judged: the dialogues' bytes and their hash.

    The file only ever grows, so what was judged before must still be how it begins.

    Raises:
      StaleInputError: it begins otherwise; scores would be joined to other utterances.
    """
    size = found.config.get("dialogues_bytes", 0) if found is not None else 0
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(size))
        if found is not None and size and digest.hexdigest() != found.config["dialogues_sha256"]:
            raise StaleInputError(
                f"{path} no longer begins with the dialogues that were judged before. Delete the "
                "scores beside it to judge anew, or use another --run."
            )
        rest = file.read()
    digest.update(rest)
    return {"dialogues_bytes": size + len(rest), "dialogues_sha256": digest.hexdigest()}


def judge(config: JudgeConfig) -> Made:
    """Stage 2: score what the sweep has and the judge has not seen."""
    return _judge(config)


def _judge(config: JudgeConfig, only: Container[str] | None = None) -> Made:
    """All dialogues, or those of some ids, which leaves the stage unfinished."""
    from emodistill.offline.agreement import repeat_spread
    from emodistill.offline.judging import judge_path
    from emodistill.offline.store import read_judgements
    from emodistill.prompts import load_pack

    announce(config, "judge")
    name = model_name(config, "judge", config.judge)
    pack = load_pack(config.prompt_pack)
    sweep_dir = stage_dir(config.run, config.domain, "sweep")
    directory = stage_dir(config.run, config.domain, "judge")
    path = judge_path(directory, name)
    trajectories, scenarios = read_sweep(config.run, config.domain)
    manifest_name = judge_manifest(path, config.level)
    found = read_manifest(directory, manifest_name) if path.is_file() else None
    judged = _judged_part(sweep_dir / TRAJECTORIES, found)
    manifest = begin_stage(
        directory,
        stage="judge",
        config=config.identity() | {"judge": name, "num_dialogues": len(trajectories)} | judged,
        seed=config.seed,
        inputs={"rubric": pack.rubric_sha256, **input_hashes([sweep_dir / SCENARIOS], config.run)},
        growing=("repeats", "num_dialogues", *judged),
        name=manifest_name,
        output=path,
    )
    made = Made(path, f"{command('train_iql', config)}; {command('train_sft', config)}")
    if manifest.is_finished and not config.retry_unanswered:
        say(f"judge: finished before, {manifest.summary.get('text', '')}")
        return made
    write_config(directory / f"{path.stem}.{config.level}.{CONFIG}", "judge", config)
    chosen = [t for t in trajectories if only is None or t.trajectory_id in only]
    result = _score(config, chosen, scenarios, path=path, judge=name, pack=pack)
    if only is not None:
        return made
    summary: dict[str, Any] = {
        "text": result.summary,
        "failure_rates": dict(result.failure_rates),
    }
    if config.repeats > 1:
        ids = {trajectory.trajectory_id for trajectory in trajectories}
        is_whole = config.level == "dialogue"
        spread = repeat_spread(
            line
            for line in read_judgements(path)
            if (line.turn_index is None) == is_whole and line.trajectory_id in ids
        )
        summary["repeats"] = dataclasses.asdict(spread)
        say(
            f"judge: {spread.num_items:,} items scored more than once; variance of an item's "
            f"scores {spread.variance:.2f}, reliability {spread.reliability:.2f}."
        )
    finish_stage(directory, cost_usd=result.cost_usd, summary=summary, name=manifest_name)
    say(f"judge: {result.summary}")
    return made


def judge_matches(config: JudgeConfig, dialogues: Path, directory: Path) -> Path:
    """Score the focal turns of dialogues that were played in a match; the judge's file.

    What is scored there is not asked again.

    Args:
      directory: where the judge's file goes.
    """
    from emodistill.offline.judging import judge_path
    from emodistill.offline.store import read_scenarios, read_trajectories
    from emodistill.prompts import load_pack

    name = model_name(config, "judge", config.judge)
    path = judge_path(directory, name)
    result = _score(
        config,
        by_id(read_trajectories(dialogues)),
        read_scenarios(stage_dir(config.run, config.domain, "sweep") / SCENARIOS),
        path=path,
        judge=name,
        pack=load_pack(config.prompt_pack),
    )
    say(f"judge: {result.summary}")
    return path


def _score(
    config: JudgeConfig,
    trajectories: Sequence[Trajectory],
    scenarios: Sequence[Scenario],
    *,
    path: Path,
    judge: str,
    pack: PromptPack,
) -> JudgingResult:
    """Score what `path` lacks of the dialogues; the log is kept beside it.

    Raises:
      StoppedError: stopped before the end.
    """
    from emodistill.offline.judging import run_judging

    async def work() -> JudgingResult:
        async with open_client(config) as client:
            return await run_judging(
                trajectories,
                scenarios,
                path=path,
                client=client,
                pack=pack,
                judge=judge,
                level=config.level,
                repeats=config.repeats,
                retry_unanswered=config.retry_unanswered,
                seed=config.seed,
                concurrency=config.concurrency,
                max_cost_usd=config.max_cost_usd,
            )

    with kept_log(path.parent / LOG):
        result = asyncio.run(work())
    if not result.is_complete:
        raise StoppedError(f"judge: {result.summary}")
    return result


def compare_judges(config: JudgeConfig) -> Path:
    """Compare the scores of `config.judge` with those of `config.compare`; a JSON file of it.

    Raises:
      InputError: a judge has scored nothing here, or both have no item in common.
    """
    from emodistill.offline.agreement import compare_scores

    assert config.compare is not None
    first = judge_file(config.run, config.domain, config.judge)
    second = judge_file(config.run, config.domain, config.compare)
    for path in (first, second):
        if not path.is_file():
            raise InputError(f"{path} is missing; have that judge score the sweep first.")
    if first == second:
        raise InputError(f"--judge and --compare are both {first.stem}; name two judges.")
    trajectories, _ = read_sweep(config.run, config.domain)
    is_whole = config.level == "dialogue"

    def of_level(path: Path) -> Scores:
        return {key: s for key, s in read_scores(path).items() if (key[1] is None) == is_whole}

    scenarios = {t.trajectory_id: t.scenario_id for t in trajectories}
    found = compare_scores(of_level(first), of_level(second), scenarios)
    out = first.with_name(f"{first.stem}-vs-{second.stem}.{config.level}.json")
    write_json(out, dataclasses.asdict(found) | {"counts": found.counts.tolist()})
    say(f"{first.stem} and {second.stem}: {found.text}")
    say(f"judge: comparison in {out}")
    return out
