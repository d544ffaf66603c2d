"""In place of JPO, on-policy: rounds of playing, judging and learning (GRPO, PPO).

    <stage>/<cell>/rounds.jsonl      a finished round a line (`offline.rounds`)
    <stage>/<cell>/rounds/0001/      its dialogues, its scores, the adapter learnt from them
    <stage>/<cell>/adapter/          the last round's

Every round may be killed at any point and goes on: dialogues and scores are kept one by one, the
optimiser by its checkpoints. All draws are named by seed, round and dialogue, so that a run that
was killed ends with the adapters of one that was not.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from emodistill.configs import (
    DEFAULT_CELL,
    EMBEDDED,
    EvaluateConfig,
    GRPOConfig,
    OnPolicyConfig,
    PPOConfig,
)
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError, StoppedError
from emodistill.evaluation.methods import TrainedAdapter
from emodistill.evaluation.players import PlayerPool, PlayerSpec, writing_temperature
from emodistill.files import replacing
from emodistill.llm.endpoints import ModelEndpoint
from emodistill.negotiation.episode import turn_cap
from emodistill.offline.budget import capped
from emodistill.offline.data_checks import check_prompts
from emodistill.offline.judging import judge_path, run_judging
from emodistill.offline.rewards import SweepData, TurnLimit
from emodistill.offline.rounds import (
    ROUNDS,
    PlayedRound,
    Round,
    counts,
    phase_seconds,
    reached_limit,
    read_rounds,
    round_dir,
    timed,
    total_spent,
)
from emodistill.offline.run_files import SCENARIOS, recorded_run
from emodistill.offline.store import (
    locate_scenarios,
    read_judgements,
    read_trajectories,
    write_records,
)
from emodistill.offline.sweep import failures_path, plan_dialogues, play_all
from emodistill.offline.workers import JobsResult
from emodistill.prompts import PromptPack, load_pack, reading_prompt_sha256
from emodistill.runs import Job, Result, input_hashes
from emodistill.seeding import derive, stream
from emodistill.settings import Cell
from emodistill.stages.inputs import model_hashes
from emodistill.stages.language_models import (
    ClientOf,
    endpoint_of,
    named_models,
    offer_reader,
    open_clients,
    reader_of,
)
from emodistill.stages.model_check import TYPICAL, check_models
from emodistill.stages.stage import Requirement, Stage, next_command
from emodistill.stages.training import SFT, check_snapshot


class _OnPolicyDetails(NamedTuple):
    counterparty: ModelEndpoint
    reader: ModelEndpoint | None
    judge: ModelEndpoint | None
    """None where the reward is the dialogue's own."""
    pack: PromptPack
    scenarios: Sequence[Scenario]
    """All of the run."""
    selector_dir: Path
    sft_adapter: TrainedAdapter

    @property
    def endpoints(self) -> dict[str, ModelEndpoint | None]:
        return {
            "counterparty": self.counterparty,
            "reader": self.reader,
            "judge": self.judge,
        }


def _needs(config: OnPolicyConfig) -> Sequence[Requirement]:
    config.check_devices()
    model_hashes(config.model)
    load_pack(config.prompt_pack)
    endpoint_of(config, "counterparty")
    reader_of(config)
    _judge_of(config)
    cells = {"iql": config.iql_cell, "sft": config.sft_cell}
    # Other cells than the default one are the user's own, and nothing makes them unasked.
    made = [Requirement(stage) for stage, cell in cells.items() if cell == DEFAULT_CELL]
    return [Requirement("sweep"), *made]


def _judge_of(config: OnPolicyConfig) -> ModelEndpoint | None:
    return endpoint_of(config, "judge") if config.signal == "turn-judge" else None


def _job(cell: Cell) -> Job:
    config: OnPolicyConfig = cell.config
    home = config.run / config.domain
    directory = home / config.stage / cell.name
    sft_adapter = TrainedAdapter(home, "sft", config.sft_cell)
    check_snapshot(cell, sft_adapter.folder.parent)
    selector_dir = home / "iql" / config.iql_cell
    scenarios = recorded_run(config) / config.domain / SCENARIOS
    located = locate_scenarios(scenarios)
    pack = load_pack(config.prompt_pack)
    details = _OnPolicyDetails(
        counterparty=endpoint_of(config, "counterparty"),
        reader=reader_of(config),
        judge=_judge_of(config),
        pack=pack,
        scenarios=[scenario for scenario, _ in located],
        selector_dir=selector_dir,
        sft_adapter=sft_adapter,
    )
    round_scenarios(details.scenarios, config, 1)  # refuses too few, before anything is made
    judged = ("judge",) if details.judge is not None else ()
    check_prompts(pack, located, ("focal", "counterparty", *judged))
    files = [selector_dir / name for name in ("selector.json", "selector.safetensors")]
    hashes = {"prompt pack": pack.sha256} | model_hashes(config.model)
    if details.judge is not None:
        hashes["rubric"] = pack.rubric_sha256
    if details.reader is not None:
        hashes["reader's prompt"] = reading_prompt_sha256()
    models = {role: endpoint and endpoint.name for role, endpoint in details.endpoints.items()}
    output = _dialogues(round_dir(directory, 1))
    return Job(
        cell=cell,
        name=config.stage,
        directory=directory,
        output=output,
        path=directory / "adapter",
        inputs=hashes | input_hashes([scenarios, *files, *sft_adapter.files], config.run),
        identity=config.identity() | models,
        growing=config.growing,
        leftovers=(failures_path(output),),
        details=details,
    )


def _dialogues(directory: Path) -> Path:
    return directory / "trajectories.jsonl"


def train_on_policy(job: Job) -> Result:
    """Play, judge and learn in rounds, as many as the settings allow.

    Raises:
      InputError, DivergenceError: as `train_round`.
      StoppedError: by the user or the ceiling on costs; the same command goes on.
    """
    config, details = job.cell.config, job.details
    if config.model == EMBEDDED:
        print(f"{job.name}: no --model named, so the embedded student learns.", flush=True)
    path = job.directory / ROUNDS
    rounds = read_rounds(path)[: config.num_rounds]
    _clear(job.directory, len(rounds))

    async def work() -> str | None:
        async with open_clients(config, job.name, details.endpoints.values()) as client_of:
            await _announce(job, client_of, config.num_rounds - len(rounds))
            while len(rounds) < config.num_rounds:
                limit = reached_limit(rounds, config.num_dialogues_per_round, config)
                if limit is not None:
                    return limit
                rounds.append(await _next_round(job, client_of, rounds))
                write_records(path, rounds)
                _clear(job.directory, len(rounds))
                print(f"{job.name}: {_shown(rounds[-1])}", flush=True)
        return None

    limit = asyncio.run(work())
    for source in _adapter(job, len(rounds)).files:
        with replacing(job.path / source.name) as partial:
            shutil.copyfile(source, partial)
    spent = total_spent(rounds)
    return Result(
        f"{len(rounds)} rounds, {spent.num_dialogues:,.0f} dialogues, {spent.num_calls:,.0f} "
        f"calls, {spent.seconds / 60:.1f} minutes"
        f"{'' if limit is None else f', ended by {limit}'}; adapter in {job.path}",
        spent.cost_usd,
        {
            **counts(spent),
            "num_rounds": len(rounds),
            "ended_by": limit,
            "language_models": named_models(details.endpoints),
        },
    )


async def _announce(job: Job, client_of: ClientOf, num_rounds: int) -> None:
    """Say what the rounds will cost, as far as they cost money, and ask."""
    config: OnPolicyConfig = job.cell.config
    judge = TYPICAL["judge"]._replace(num_calls=TYPICAL["focal"].num_calls)
    await check_models(
        *(config, job.name, client_of, job.details.endpoints),
        num_jobs=num_rounds * config.num_dialogues_per_round,
        unit="dialogues",
        typical={**TYPICAL, "judge": judge},
    )


async def _next_round(job: Job, client_of: ClientOf, rounds: Sequence[Round]) -> Round:
    """Play, judge and learn once more; what a round that was cut off has kept is not done again."""
    from emodistill.train.on_policy import train_round  # JAX

    config, details, number = job.cell.config, job.details, len(rounds) + 1
    directory, spoke = round_dir(job.directory, number), _adapter(job, number - 1)
    temperature = writing_temperature(config.playing(seed=0), config.method)
    played = await _collect(job, client_of, rounds, temperature)
    limit = TurnLimit(config.max_turns, turn_cap(config.max_turns, config.count_turns))
    dialogues = played.trajectories, details.scenarios, played.scores, details.pack
    # Nothing else is under way, so that the loop of events may wait for this.
    with timed(directory, "train"):
        learnt = train_round(
            dataclasses.replace(
                config.without_length(), seed=derive(config.seed, "learn-round", number)
            ),
            SweepData(*dialogues, limit=limit),
            directory=directory,
            spoke=spoke.folder,
            reference=details.sft_adapter.folder,
            temperature=temperature,
            before=round_dir(job.directory, number - 1) if rounds else None,
        )
    seconds = phase_seconds(directory)
    return Round(
        number=number,
        num_samples=learnt.adapter.num_samples,
        num_steps=learnt.adapter.num_steps,
        metrics=learnt.metrics,
        **{f"{phase}_s": seconds.get(phase, 0.0) for phase in ("play", "judge", "train")},
        **played.facts(is_judged=details.judge is not None),
    )


async def _collect(
    job: Job, client_of: ClientOf, rounds: Sequence[Round], temperature: float
) -> PlayedRound:
    """Play and judge what the next round lacks."""
    config: OnPolicyConfig = job.cell.config
    details, number = job.details, len(rounds) + 1
    directory, adapter = round_dir(job.directory, number), _adapter(job, number - 1)
    playing = config.playing(seed=derive(config.seed, "on-policy"))
    focal = PlayerSpec(
        method=config.method,
        temperature=temperature,
        cells={"iql": config.iql_cell, adapter.stage: adapter.cell},
        selector_dir=details.selector_dir,
        adapter=adapter,
    )
    counterparty = PlayerSpec(
        language_model=details.counterparty, temperature=config.counterparty_temperature
    )
    spent_usd = total_spent(rounds).cost_usd
    with timed(directory, "play"):
        async with PlayerPool(playing, client_of, details.pack) as pool:
            played = await play_all(
                plan_dialogues(
                    round_scenarios(details.scenarios, config, number),
                    num_seeds=config.group_size,
                    first=(number - 1) * config.group_size,
                ),
                await pool.match(
                    focal, counterparty, offer_reader(client_of, details.reader, config)
                ),
                capped(playing, spent_usd),
                path=_dialogues(directory),
                label=f"{job.name} {number}",
            )
    _check(job, played)
    trajectories = read_trajectories(_dialogues(directory))
    trajectories.sort(key=attrgetter("trajectory_id"))
    cost_usd, judgements = played.cost_usd, []
    if details.judge is not None:
        path = judge_path(directory, details.judge.name)
        with timed(directory, "judge"):
            judged = await run_judging(
                dataclasses.replace(
                    capped(config.judging(), spent_usd + cost_usd), judge=details.judge.name
                ),
                trajectories,
                details.scenarios,
                path=path,
                client=client_of(details.judge),
                model=details.judge.model,
                pack=details.pack,
            )
        _check(job, judged)
        cost_usd += judged.cost_usd
        judgements = read_judgements(path)
    return PlayedRound(trajectories, judgements, played.num_failed, cost_usd)


def round_scenarios(
    scenarios: Sequence[Scenario], config: OnPolicyConfig, number: int
) -> list[Scenario]:
    """The training scenarios of a round, drawn by the seed without putting any back.

    Raises:
      InputError: there are too few.
    """
    training = [s for s in scenarios if s.split == "train"][: config.num_scenarios]
    if len(training) < config.scenarios_per_round:
        raise InputError(
            f"--scenarios-per-round {config.scenarios_per_round}: there are {len(training)} "
            "training scenarios to play; ask for fewer."
        )
    order = stream(config.seed, "round-scenarios", number).permutation(len(training))
    return [training[i] for i in sorted(order[: config.scenarios_per_round])]


def _check(job: Job, done: JobsResult) -> None:
    """Go on only from a round that is whole."""
    if not done.is_complete:
        raise StoppedError(f"{job.name}: {done.summary}")
    done.check("see why, and start again")


def _adapter(job: Job, number: int) -> TrainedAdapter:
    """The adapter after a round; after none, SFT's."""
    if number == 0:
        return job.details.sft_adapter
    cell = round_dir(job.directory, number).relative_to(job.directory.parent)
    return TrainedAdapter(job.directory.parents[1], job.cell.config.stage, str(cell))


def _clear(directory: Path, number: int) -> None:
    """Remove what no round after `number` needs; the optimiser and the critic of the last stay."""
    for earlier in range(1, number + 1):
        for name in ("checkpoints", "reference"):
            shutil.rmtree(round_dir(directory, earlier) / name, ignore_errors=True)
        if earlier < number:
            for path in round_dir(directory, earlier).glob("*.safetensors"):
                path.unlink()


def _shown(one: Round) -> str:
    score = "" if one.mean_score is None else f", score {one.mean_score:.2f}"
    return (
        f"round {one.number}: utility {one.mean_utility:.1%}, agreements {one.success:.0%}{score}; "
        f"{one.num_samples:,} turns, {one.num_steps} steps, {one.spent.seconds:.0f} s."
    )


def _evaluation(cell: Cell) -> str:
    """The command that plays what has just been trained."""
    config: OnPolicyConfig = cell.config
    cells = {config.stage: cell.name, "iql": config.iql_cell}
    return next_command("evaluate", EvaluateConfig, cell, method=config.method, cells=cells)


GRPO = Stage(
    config=GRPOConfig,
    script="train_grpo",
    needs=_needs,
    job=_job,
    run=train_on_policy,
    followed_by=_evaluation,
    inherits=SFT.inherits,
)
PPO = dataclasses.replace(GRPO, config=PPOConfig, script="train_ppo")
