"""Selectors of related work, trained by dialogues that they play on the training scenarios.

    selector/<cell>/dialogues.jsonl                      the training's dialogues, as a sweep's are
                   /selector.json, selector.safetensors  what was learned from them

The recorded dialogues are the checkpoint: a training that was stopped learns from them again and
plays what is missing, and ends with the same files. On the simulator its models answer in this
process, as they would over HTTP.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emodistill.configs import EvaluateConfig, SelectorConfig
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.jsonl import num_lines
from emodistill.llm.endpoints import ModelEndpoint
from emodistill.negotiation.episode import ChooseEmotion, Match, PlannedDialogue, Player, turn_cap
from emodistill.negotiation.writers import Writer
from emodistill.offline.data_checks import check_prompts
from emodistill.offline.rewards import dialogue_utility
from emodistill.offline.rounds import counts, recorded_spent
from emodistill.offline.run_files import SCENARIOS, recorded_run
from emodistill.offline.store import locate_scenarios, read_trajectories
from emodistill.offline.sweep import failures_path, play_all
from emodistill.offline.turnstile import Turnstile
from emodistill.offline.workers import JobsResult
from emodistill.prompts import PromptPack, load_pack
from emodistill.records import Trajectory
from emodistill.runs import Job, Result, input_hashes
from emodistill.seeding import stream
from emodistill.selectors.learning import Learner, Setup, focal_groups, training_rng
from emodistill.selectors.seven import SEVEN
from emodistill.selectors.systems import (
    fault_names,
    make_learner,
    save_trained,
    system_of,
)
from emodistill.settings import Cell
from emodistill.simulator.writer import SimulatedWriter
from emodistill.stages.language_models import (
    api_writer,
    emotion_reader,
    endpoint_of,
    hearing_kind,
    named_models,
    offer_reader,
    open_clients,
    reader_inputs,
    reader_of,
)
from emodistill.stages.model_check import check_models
from emodistill.stages.stage import Requirement, Stage, next_command

DIALOGUES = "dialogues.jsonl"
PASSES = 3
"""Dialogues of each scenario where that is a system's budget."""


class _SelectorDetails(NamedTuple):
    focal: ModelEndpoint
    counterparty: ModelEndpoint
    reader: ModelEndpoint | None
    pack: PromptPack
    scenarios: Path


def _needs(config: SelectorConfig) -> Sequence[Requirement]:
    known = fault_names(config.method)
    if unknown := [name for name in config.faults if name not in known]:
        raise InputError(
            f"--faults {unknown[0]}: the faults of {config.system} are {', '.join(known)}."
        )
    reads = system_of(config.method).reads_emotions
    if config.emotion_reader is not None and not reads:
        raise InputError(
            f"--emotion-reader {config.emotion_reader}: {config.system} looks at its own emotions "
            "alone; leave it out."
        )
    load_pack(config.prompt_pack)
    reader_of(config, hears=reads)
    endpoint_of(config, "focal"), endpoint_of(config, "counterparty")
    return [Requirement("sweep")]


def _job(cell: Cell) -> Job:
    config: SelectorConfig = cell.config
    reads = system_of(config.method).reads_emotions
    details = _SelectorDetails(
        focal=endpoint_of(config, "focal"),
        counterparty=endpoint_of(config, "counterparty"),
        reader=reader_of(config, hears=reads),
        pack=load_pack(config.prompt_pack),
        scenarios=recorded_run(config) / config.domain / SCENARIOS,
    )
    directory = config.run / config.domain / "selector" / cell.name
    output = directory / DIALOGUES
    inputs = {"prompt pack": details.pack.sha256}
    inputs |= reader_inputs(config, details.reader, hears=reads)
    models = {
        "focal": details.focal.name,
        "counterparty": details.counterparty.name,
        "reader": details.reader and details.reader.name,
    }
    return Job(
        cell=cell,
        name=f"train {config.method}",
        directory=directory,
        output=output,
        path=directory,
        inputs=inputs | input_hashes([details.scenarios], config.run),
        identity=config.identity() | models,
        leftovers=(failures_path(output),),
        details=details,
    )


def training_scenarios(config: SelectorConfig, path: Path) -> list[tuple[Scenario, str]]:
    """The scenarios that are learned on, with where each is.

    Raises:
      InputError: there is none.
    """
    found = [located for located in locate_scenarios(path) if located[0].split == "train"]
    if not found:
        raise InputError(f"{path}: no scenario has split='train'; training needs some.")
    return found[: config.num_scenarios]


def setup_of(config: SelectorConfig, num_scenarios: int) -> Setup:
    """What the learner of these settings is made from."""
    budget = config.dialogues or system_of(config.method).dialogues or PASSES * num_scenarios
    faults = fault_names(config.method) if config.is_shipped else config.faults
    reward = "own" if config.is_shipped else config.reward
    return Setup(config.system, config.seed, budget, tuple(faults), reward, config.labels)


def plan_training(
    scenarios: Sequence[Scenario], setup: Setup, repeated_rows: int | None = None
) -> list[PlannedDialogue]:
    """The dialogues of a training: all scenarios in an order drawn by the seed, then in another, ….

    Args:
      repeated_rows: dialogues after which the first scenarios come again, in the file's order.
    """
    num = len(scenarios) if repeated_rows is None else min(repeated_rows, len(scenarios))
    planned = []
    for i in range(setup.dialogues):
        number, row = divmod(i, num)
        if row == 0:
            order = np.arange(num)
            if repeated_rows is None:
                order = stream(setup.seed, "training-scenarios", number).permutation(num)
        scenario = scenarios[int(order[row])]
        name = f"{scenario.domain}/{scenario.scenario_id}/seed_{number:04d}"
        planned.append(PlannedDialogue(scenario, number, name))
    return planned


async def train_by_playing(
    learner: Learner,
    planned: Sequence[PlannedDialogue],
    match: Match,
    config: SelectorConfig,
    *,
    path: Path,
    label: str,
) -> JobsResult:
    """Play the dialogues of a training that `path` lacks; the learner learns from all of them.

    Args:
      match: its focal player has a writer; who chooses its emotions, the learner says.

    Raises:
      ApiError, InputError: as `play_all`.
    """

    def learn(dialogues: Sequence[Trajectory | None]) -> int:
        learner.learn(dialogues)
        return learner.block_size

    names = [dialogue.trajectory_id for dialogue in planned]
    turnstile = Turnstile(names, learner.block_size, learn)

    def choose_for(dialogue: PlannedDialogue) -> ChooseEmotion:
        name = dialogue.trajectory_id
        selector = learner.selector_for(turnstile.position(name))
        return functools.partial(selector.choose, rng=training_rng(config.seed, name))

    focal = dataclasses.replace(match.focal, choose_for=choose_for, method=config.method)
    taught = dataclasses.replace(match, focal=focal, silence_ends=True)
    return await play_all(planned, taught, config, path=path, label=label, turnstile=turnstile)


def train_selector(job: Job) -> Result:
    """Play what is missing of a training, and keep what was learned."""
    config, details = job.cell.config, job.details
    located = training_scenarios(config, details.scenarios)
    check_prompts(details.pack, located, ("focal", "counterparty"))
    scenarios = [scenario for scenario, _ in located]
    setup = setup_of(config, len(scenarios))
    learner = make_learner(setup)
    planned = plan_training(scenarios, setup, learner.repeated_rows)
    played = asyncio.run(_play(job, learner, planned))
    played.check("see why, and start again")
    summary: dict[str, Any] = {}
    if played.is_complete:
        reads = system_of(config.method).reads_emotions
        save_trained(
            job.directory, setup, learner.arrays(), hearing_kind(config) if reads else "none"
        )
        summary = training_summary(list(read_trajectories(job.output)))
    models = named_models(_endpoints(details))
    return Result(
        f"{played.summary} The selector is in {job.directory}."
        if played.is_complete
        else played.summary,
        played.cost_usd,
        {"num_failed": played.num_failed, "language_models": models, **summary, **played.shares},
        is_complete=played.is_complete,
    )


def training_summary(dialogues: Sequence[Trajectory]) -> dict[str, Any]:
    """What a training has spent and come to, for its manifest."""
    last = [group for dialogue in dialogues[-20:] for group in focal_groups(dialogue)]
    return {
        "spent": counts(recorded_spent(dialogues, ())),
        "utility": float(np.mean([dialogue_utility(dialogue) for dialogue in dialogues])),
        "modal_emotion": SEVEN[Counter(last).most_common(1)[0][0]] if last else None,
    }


def _endpoints(details: _SelectorDetails) -> dict[str, ModelEndpoint | None]:
    return {
        "focal": details.focal,
        "counterparty": details.counterparty,
        "reader": details.reader,
    }


async def _play(job: Job, learner: Learner, planned: Sequence[PlannedDialogue]) -> JobsResult:
    config, details = job.cell.config, job.details
    endpoints = _endpoints(details)
    is_here = config.is_simulated and config.record is config.replay is None
    called = [details.reader] if is_here else [*endpoints.values()]
    async with open_clients(config, job.name, called) as client_of:
        num_left = max(0, len(planned) - num_lines(job.output))
        await check_models(
            config, job.name, client_of, endpoints, num_jobs=num_left, unit="dialogues"
        )
        reads = system_of(config.method).reads_emotions
        hears = emotion_reader(client_of, details.reader, config) if reads else None

        def writer(endpoint: ModelEndpoint, temperature: float) -> Writer:
            if is_here:
                return SimulatedWriter(endpoint.model, temperature, config.max_reply_tokens)
            return api_writer(client_of, endpoint, temperature, config)

        match = Match(
            focal=Player(
                writer=writer(details.focal, config.focal_temperature),
                method=config.method,
                emotion_reader=hears,
            ),
            counterparty=Player(
                writer=writer(details.counterparty, config.counterparty_temperature)
            ),
            pack=details.pack,
            seed=config.seed,
            max_turns=turn_cap(config.max_turns, config.count_turns),
            agreement=config.agreement,
            reader=offer_reader(client_of, details.reader, config),
        )
        return await train_by_playing(
            learner, planned, match, config, path=job.output, label=job.name
        )


def _evaluation(cell: Cell) -> str:
    """The command that plays what has just been trained."""
    cells = {"selector": cell.name}
    return next_command("evaluate", EvaluateConfig, cell, method=cell.config.method, cells=cells)


SELECTOR = Stage(
    config=SelectorConfig,
    script="train_selector",
    needs=_needs,
    job=_job,
    run=train_selector,
    followed_by=_evaluation,
    inherits=("focal", "counterparty", "prompt_pack"),  # of whoever asks for it to be played
)
