"""Stage 5, and the pairs of a tournament: methods play the held-out scenarios."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emodistill.configs import EvaluateConfig, JudgeConfig, PairConfig, ReportConfig
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.evaluation.canaries import CANARIES_FILE
from emodistill.evaluation.methods import (
    METHODS,
    SELECTOR_FILES,
    Method,
    TrainedAdapter,
    get_method,
    system_in,
    trained_cells,
)
from emodistill.evaluation.players import PlayerPool, PlayerSpec, writing_temperature
from emodistill.evaluation.served_student import exported_dir
from emodistill.files import write_json
from emodistill.jsonl import num_lines
from emodistill.llm.endpoints import ModelEndpoint
from emodistill.offline.data_checks import check_prompts
from emodistill.offline.run_files import (
    PLAYED_FROM,
    SCENARIOS,
    TRAJECTORIES,
    recorded_run,
    write_as_sweep,
)
from emodistill.offline.store import locate_scenarios, read_trajectories
from emodistill.offline.sweep import failures_path
from emodistill.prompts import PromptPack, load_pack
from emodistill.runs import Job, Result, input_hashes, read_manifest
from emodistill.selectors.systems import system_of
from emodistill.settings import Cell
from emodistill.stages.inputs import grown, model_hashes
from emodistill.stages.language_models import (
    emotion_reader,
    endpoint_of,
    named_models,
    offer_reader,
    open_clients,
    reader_inputs,
    reader_of,
)
from emodistill.stages.model_check import check_models
from emodistill.stages.runner import STAGES
from emodistill.stages.stage import Requirement, Stage, next_command
from emodistill.untrusted import file_name


class _MatchDetails(NamedTuple):
    focal: PlayerSpec
    counterparty: PlayerSpec
    reader: ModelEndpoint | None
    pack: PromptPack


def _method_names(config: EvaluateConfig) -> list[str]:
    return [config.method, *([config.opponent] if isinstance(config, PairConfig) else [])]


def reads_emotions(config: EvaluateConfig) -> bool:
    """Whether a player looks at the other side's emotions, so that somebody has to hear them."""
    systems = [system_in(name) for name in _method_names(config)]
    return any(system_of(system).reads_emotions for system in systems if system is not None)


def writing_models(config: EvaluateConfig) -> tuple[ModelEndpoint | None, ModelEndpoint | None]:
    """Who writes in the focal and in the counterparty's role; None where a student does."""
    writers = [get_method(name).writer for name in _method_names(config)]
    model = None
    if "llm" in writers or config.focal is not None:
        model = endpoint_of(config, "focal")
    focal = model if writers[0] == "llm" else None
    if writers[1:] == ["student"]:
        return focal, None
    if writers[1:] and config.counterparty is None and not config.is_simulated:
        return focal, model  # a real language model plays both roles of a tournament
    return focal, endpoint_of(config, "counterparty")


def trainings_of(
    config: EvaluateConfig, method: Method, changed: Mapping[str, Mapping[str, Any]] = {}
) -> dict[str, Requirement]:
    """Stage -> the cell that `method` plays or that its adapter goes on from, in their order.

    Args:
      changed: stage -> settings that a study changes in its training.
    """
    needed: dict[str, Requirement] = {}
    for stage, (cell, changes) in trained_cells(method, config.cells, changed).items():
        is_selector_here = stage == method.selector_stage and config.selector == "target"
        domain = None if is_selector_here else config.trained_on
        needed[stage] = Requirement(
            stage,
            changes=changes,
            cell=cell,
            domain=domain or config.domain,
        )
    return needed


def match_needs(config: EvaluateConfig) -> Sequence[Requirement]:
    load_pack(config.prompt_pack)
    reader_of(config, hears=reads_emotions(config))
    writing_models(config)
    needs = [Requirement("sweep")]
    for name in _method_names(config):
        method = get_method(name)
        if method.writer == "student" and config.student_url is None:
            model_hashes(config.student)
        trained, adapter = trainings_of(config, method), method.adapter
        if adapter is not None and adapter not in STAGES:
            # A stage of the user's own: nothing can train it here, so its folder has to exist.
            folder = _folder(config, trained[adapter])
            if not folder.is_dir():
                raise InputError(
                    f"--method {name} is not known; use one of {', '.join(METHODS)}, or "
                    f"train {folder} first."
                )
        # A cell named by --cells has to exist, with whatever its adapter goes on from, and what a
        # server plays has been trained, and exported, before it was served.
        is_there = (
            adapter in config.cells or adapter not in STAGES or config.student_url is not None
        )
        needs += [
            need
            for stage, need in trained.items()
            if stage not in config.cells and (stage == method.selector_stage or not is_there)
        ]
    return needs


def _folder(config: EvaluateConfig, need: Requirement) -> Path:
    return config.run / (need.domain or config.domain) / need.stage / need.cell


def player_spec(
    config: EvaluateConfig, name: str, language_model: ModelEndpoint | None, temperature: float
) -> tuple[PlayerSpec, list[Path]]:
    """Who plays a method, and the files that it is made of."""
    method = get_method(name)
    trained = trainings_of(config, method)
    stages = method.selector_stage, method.adapter
    played = {stage: trained[stage] for stage in stages if stage in trained}
    selector = played.get(method.selector_stage or "")
    selector_dir = _folder(config, selector) if selector is not None else None
    adapter = None
    if method.adapter is not None:
        need = played[method.adapter]
        home = config.run / (need.domain or config.domain)
        adapter = TrainedAdapter(home, need.stage, need.cell)
    files: list[Path] = []
    if selector_dir is not None:
        files += [selector_dir / file for file in SELECTOR_FILES]
    if adapter is not None:
        files += adapter.files
        if config.student_url is not None:
            files.append(exported_dir(adapter) / CANARIES_FILE)
    player = PlayerSpec(
        method=name,
        emotion=config.emotion,
        language_model=language_model,
        temperature=temperature,
        cells={stage: need.cell for stage, need in played.items()},
        selector_dir=selector_dir,
        adapter=adapter,
    )
    return player, files


def _job(cell: Cell) -> Job:
    config: EvaluateConfig = cell.config
    if config.method == "oracle" and not config.is_simulated:
        raise InputError("--method oracle knows the simulator's hidden truth; it has no provider.")
    if config.as_sweep is not None:
        if config.split != "train":
            raise InputError(
                f"--as-sweep {config.as_sweep} needs --split train: nothing is learned from "
                "scenarios that are held out."
            )
        swept = config.as_sweep / config.domain / TRAJECTORIES
        if read_manifest(swept.parent) is not None:
            raise InputError(f"--as-sweep: {swept} is a sweep of its own; name another run.")
    home = config.run / config.domain
    hears = reads_emotions(config)
    pack, reader = load_pack(config.prompt_pack), reader_of(config, hears=hears)
    model, opposite = writing_models(config)
    temperature = writing_temperature(config, config.method)
    focal, files = player_spec(config, config.method, model, temperature)
    other_temperature = config.counterparty_temperature
    if isinstance(config, PairConfig):
        if opposite is None:  # a student is sampled as it is in the focal role
            other_temperature = writing_temperature(config, config.opponent)
        counterparty, more = player_spec(config, config.opponent, opposite, other_temperature)
        files += more
        # The tournament names cells for all its methods; those of others make no difference here.
        played = {*focal.cells, *counterparty.cells}
        cells = {stage: name for stage, name in config.cells.items() if stage in played}
        config = dataclasses.replace(config, cells=cells)
        directory, name = home / "tournament", f"{config.method}@{config.opponent}"
        label = f"tournament {name}"
    else:
        counterparty = PlayerSpec(language_model=opposite, temperature=other_temperature)
        assert opposite is not None  # no method, so no student
        folder = f"{config.method}@{file_name(opposite.name)}"
        directory, name = home / "eval" / folder, cell.name
        label = f"evaluate {config.method}"
    inputs = input_hashes([recorded_run(config) / config.domain / SCENARIOS, *files], config.run)
    is_played_here = config.student_url is None
    if is_played_here and any(get_method(n).writer == "student" for n in _method_names(config)):
        inputs |= model_hashes(config.student)
    inputs |= reader_inputs(config, reader, hears=hears)
    output, manifest = directory / f"{name}.jsonl", f"{name}.manifest.json"
    config = grown(config, directory, manifest)
    models = {
        role: endpoint and endpoint.name
        for role, endpoint in (("focal", model), ("counterparty", opposite), ("reader", reader))
    }
    return Job(
        cell=cell._replace(config=config),
        name=label,
        directory=directory,
        output=output,
        path=output,
        inputs=inputs | {"prompt pack": pack.sha256},
        identity=config.identity() | models,
        manifest=manifest,
        config_file=f"{name}.config.yaml",
        growing=("num_seeds", "num_scenarios"),
        leftovers=(failures_path(output),),
        is_repeated=config.as_sweep is not None,
        details=_MatchDetails(focal, counterparty, reader, pack),
    )


def unkept_job(config: EvaluateConfig, focal: PlayerSpec, *, name: str, output: Path) -> Job:
    """A match of `focal` that `play` can play and that no manifest is kept of.

    Args:
      name: what the terminal calls it.
      output: the file of its dialogues.
    """
    opposite = endpoint_of(config, "counterparty")
    counterparty = PlayerSpec(language_model=opposite, temperature=config.counterparty_temperature)
    return Job(
        cell=Cell(config),
        name=name,
        directory=output.parent,
        output=output,
        path=output,
        inputs={},
        identity={},
        details=_MatchDetails(
            focal, counterparty, reader_of(config), load_pack(config.prompt_pack)
        ),
    )


class PlayedMatch(NamedTuple):
    """What a match has come to."""

    result: Result
    is_agreed: bool
    """Whether the user was asked about its cost, and said yes."""


def play(job: Job, loaded: dict[str, Any] | None = None) -> PlayedMatch:
    """Play the dialogues that are still missing.

    Args:
      loaded: students that several matches share (see `PlayerPool`).
    """
    config, details = job.cell.config, job.details
    scenarios = held_out(recorded_run(config) / config.domain / SCENARIOS, config.split)
    check_prompts(
        details.pack,
        scenarios,
        (
            "emotion-free focal" if is_emotion_free(details.focal) else "focal",
            "emotion-free counterparty"
            if is_emotion_free(details.counterparty)
            else "counterparty",
        ),
    )

    endpoints = {
        "focal": details.focal.language_model,
        "counterparty": details.counterparty.language_model,
        "reader": details.reader,
    }

    called = [details.reader] if config.in_process else [*endpoints.values()]

    async def work() -> PlayedMatch:
        async with (
            open_clients(config, job.name, called) as client_of,
            PlayerPool(
                config,
                client_of,
                details.pack,
                loaded,
                emotion_reader=emotion_reader(client_of, details.reader, config),
            ) as pool,
        ):
            num_planned = config.num_seeds * len(scenarios[: config.num_scenarios])
            num_left = max(0, num_planned - num_lines(job.output))
            is_agreed = await check_models(
                config, job.name, client_of, endpoints, num_jobs=num_left, unit="dialogues"
            )
            played = await pool.play(
                details.focal,
                details.counterparty,
                [scenario for scenario, _ in scenarios],
                path=job.output,
                label=job.name,
                reader=offer_reader(client_of, details.reader, config),
            )
        played.check("see why, and start again")
        result = Result(
            played.summary,
            played.cost_usd,
            {
                "unusual_answers": played.usage.unusual,
                "language_models": named_models(endpoints),
                **played.shares,
            },
            is_complete=played.is_complete,
        )
        return PlayedMatch(result, is_agreed)

    return asyncio.run(work())


def is_emotion_free(player: PlayerSpec) -> bool:
    return player.method is not None and get_method(player.method).selector == "none"


def held_out(path: Path, split: str) -> list[tuple[Scenario, str]]:
    """The scenarios of a split, in order, with where each is.

    Raises:
      InputError: there is none.
    """
    scenarios = [located for located in locate_scenarios(path) if located[0].split == split]
    if not scenarios:
        flag = {"test": " with --num-test 20", "validation": " with --num-validation 10"}
        raise InputError(
            f"{path}: no scenario has split={split!r}. Sweep into a new --run"
            f"{flag.get(split, '')}; where "
            f"your own scenarios name their split, give it to some of them instead."
        )
    return scenarios


def _evaluate(job: Job) -> Result:
    """Play, and make a sweep of it where that is asked for."""
    config, result = job.cell.config, play(job).result
    if config.as_sweep is not None and result.is_complete:
        home = config.as_sweep / config.domain
        scenarios = recorded_run(config) / config.domain / SCENARIOS
        write_as_sweep(home, scenarios, read_trajectories(job.output))
        write_json(home / PLAYED_FROM, dict(job.inputs))
        print(f"{job.name}: the dialogues are the sweep of {config.as_sweep}, too.", flush=True)
    return result


def _is_swept(home: Path, need: Requirement) -> bool:
    """Whether so many dialogues as are to be learned from have become a sweep."""
    swept = need.shared["as_sweep"] / home.name
    if not (swept / TRAJECTORIES).is_file():
        return False
    num_scenarios = len(held_out(swept / SCENARIOS, need.changes["split"]))
    return num_lines(swept / TRAJECTORIES) >= need.shared["num_seeds"] * num_scenarios


def _next(cell: Cell) -> str:
    """The command that shows what has just been played, or has it scored."""
    if cell.config.as_sweep is not None:
        return next_command("judge", JudgeConfig, cell, run=cell.config.as_sweep)
    met = cell.config.counterparty
    usual = f"{cell.config.provider}:"
    named = {} if met is None else {"counterparty": file_name(met.removeprefix(usual))}
    return next_command("report", ReportConfig, cell, **named)


EVALUATE = Stage(
    config=EvaluateConfig,
    script="evaluate",
    needs=match_needs,
    job=_job,
    run=_evaluate,
    followed_by=_next,
    is_there=_is_swept,
)
PAIR = dataclasses.replace(EVALUATE, config=PairConfig, script="tournament")
