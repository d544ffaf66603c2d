"""Forks of the sweep's dialogues: what a turn, or another emotion in its place, is worth.

replay/<who plays on>@<counterparty>/<cell>.jsonl         the forks, one dialogue a line
                                    /<cell>.worths.jsonl  what each turn is worth
                                    /<cell>.effects.json  or what each emotion does
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emodistill.configs import AUTO, JPOConfig, JudgeConfig, ReplayConfig, require
from emodistill.errors import InputError
from emodistill.evaluation.methods import get_method
from emodistill.evaluation.players import PlayerPool, PlayerSpec, writing_temperature
from emodistill.evaluation.turn_worth import (
    as_scores,
    effects_text,
    emotion_effects,
    fork_outcomes,
    turn_worths,
    worth_provider,
    worth_text,
)
from emodistill.files import write_json
from emodistill.jsonl import JsonlAppender
from emodistill.llm.endpoints import ModelEndpoint
from emodistill.negotiation.episode import Match, PlannedDialogue, turn_cap
from emodistill.offline.forks import (
    Fork,
    RoleCalls,
    TurnKey,
    arms_of,
    chosen_turns,
    expected_calls,
    fork_dialogue,
    fork_player,
    plan_forks,
    refuse_other_players,
)
from emodistill.offline.judging import judge_path
from emodistill.offline.rewards import SweepData
from emodistill.offline.run_files import (
    SCENARIOS,
    TRAJECTORIES,
    read_sweep,
    recorded_run,
    sweep_seed,
)
from emodistill.offline.store import read_judgements, read_trajectories, write_records
from emodistill.offline.sweep import failures_path, play_all
from emodistill.prompts import load_pack
from emodistill.records import Judgement, Role
from emodistill.runs import Job, Result, input_hashes
from emodistill.settings import Cell
from emodistill.stages.evaluation import (
    is_emotion_free,
    match_needs,
    player_spec,
    reads_emotions,
    writing_models,
)
from emodistill.stages.inputs import model_hashes
from emodistill.stages.judge_validation import plain_rows
from emodistill.stages.language_models import (
    SIMULATOR,
    emotion_reader,
    named_models,
    offer_reader,
    open_clients,
    reader_of,
)
from emodistill.stages.model_check import TYPICAL, TypicalCalls, check_models
from emodistill.stages.stage import Requirement, Stage, command, named_file, next_command
from emodistill.untrusted import file_name


class _ReplayDetails(NamedTuple):
    focal: PlayerSpec
    counterparty: PlayerSpec
    reader: ModelEndpoint | None
    sweep: SweepData
    seed: int
    """The sweep's."""
    turns: list[TurnKey]


def _needs(config: ReplayConfig) -> Sequence[Requirement]:
    arms_of(config.emotions)
    is_student = get_method(config.method).writer == "student"
    require(
        config.as_sweep is None,
        f"--as-sweep {config.as_sweep} is for evaluate.py; forks are no dialogues to learn from.",
    )
    require(
        config.continued_by == "recorded" or is_student,
        f"--method {config.method} is played by a language model; --continue student takes one "
        "that the student plays, such as iql+sft.",
    )
    return match_needs(config)


def _job(cell: Cell) -> Job:
    config: ReplayConfig = cell.config
    home = recorded_run(config) / config.domain
    hears = reads_emotions(config)
    pack, reader = load_pack(config.prompt_pack), reader_of(config, hears=hears)
    model, opposite = writing_models(config)
    assert opposite is not None  # no method, so no student
    focal, files = player_spec(
        config, config.method, model, writing_temperature(config, config.method)
    )
    prompted = "emotion-free focal" if is_emotion_free(focal) else "focal"
    sweep = read_sweep(home, pack, prompted=(prompted, "counterparty"))
    turns = chosen_turns(
        sweep.trajectories, turn=config.turn, num_turns=config.num_turns, seed=config.seed
    )
    counterparty = PlayerSpec(language_model=opposite, temperature=config.counterparty_temperature)
    _check_as_recorded(config, sweep, turns, focal, counterparty)
    if config.scores is not None:
        _check_scores_file(config, config.scores, turns)
    inputs = input_hashes([home / TRAJECTORIES, home / SCENARIOS, *files], config.run)
    if get_method(config.method).writer == "student" and config.student_url is None:
        inputs |= model_hashes(config.student)
    who = _who(config)
    directory = config.run / config.domain / "replay" / f"{who}@{file_name(opposite.name)}"
    output = directory / f"{cell.name}.jsonl"
    seed = sweep_seed(home)
    models = {"focal": model and model.name, "counterparty": opposite.name}
    return Job(
        cell=cell,
        name="replay",
        directory=directory,
        output=output,
        path=output,
        inputs=inputs | {"prompt pack": pack.sha256},
        identity=config.identity() | models | {"sweep_seed": seed},
        manifest=f"{cell.name}.manifest.json",
        config_file=f"{cell.name}.config.yaml",
        growing=("num_turns", "continuations"),
        leftovers=(failures_path(output),),
        is_repeated=config.scores is not None,
        details=_ReplayDetails(focal, counterparty, reader, sweep, seed, turns),
    )


def _who(config: ReplayConfig) -> str:
    """Who plays on, as files and tables say it."""
    return config.continued_by if config.continued_by == "recorded" else config.method


def _check_as_recorded(
    config: ReplayConfig,
    sweep: SweepData,
    turns: Sequence[TurnKey],
    focal: PlayerSpec,
    counterparty: PlayerSpec,
) -> None:
    """Refuse players and rules that are not the sweep's."""
    played: dict[str, Any] = {"agreement": config.agreement}
    roles = {"counterparty": counterparty}
    if config.continued_by == "recorded":
        roles["focal"] = focal
    for role, player in roles.items():
        assert player.language_model is not None  # no method of a student
        played |= {role: player.language_model.model, f"{role}-temperature": player.temperature}
    refuse_other_players(sweep.trajectories, turns, played)
    cap = turn_cap(config.max_turns, config.count_turns)
    require(
        cap == sweep.limit.cap,
        f"the sweep's dialogues could have {sweep.limit.cap} turns and forks {cap}; say "
        "--max-turns and --count-turns as the sweep did.",
    )


def _scores_path(config: ReplayConfig, judge: str) -> Path:
    return judge_path(recorded_run(config) / config.domain / "judge", judge)


def _check_scores_file(config: ReplayConfig, judge: str, turns: Sequence[TurnKey]) -> None:
    """Refuse to replace scores that this replay doesn't give again."""
    path = _scores_path(config, judge)
    earlier = read_judgements(path) if path.is_file() else []
    found = None
    if any(not line.provider.startswith(worth_provider("")) for line in earlier):
        found = "a judge's own scores"
    elif any(line.provider != worth_provider(_who(config)) for line in earlier):
        found = f"worths of turns after which {earlier[0].provider.partition(':')[2]} played on"
    elif {(line.trajectory_id, line.turn_index) for line in earlier} - set(turns):
        found = "worths of other turns"
    if found is not None:
        raise InputError(f"--scores {judge}: {path} holds {found}; take another name.")


def play_forks(job: Job) -> Result:
    """Play the forks that are missing, and say what they show."""
    config, details = job.cell.config, job.details
    forks = plan_forks(details.turns, arms_of(config.emotions), config.continuations)
    missing = _missing(forks, job.output)
    typical = _forecast(missing, details)
    endpoints = {
        "focal": details.focal.language_model,
        "counterparty": details.counterparty.language_model,
        "reader": details.reader,
    }

    async def work() -> Result:
        async with (
            open_clients(config, job.name, endpoints.values()) as client_of,
            PlayerPool(
                config,
                client_of,
                details.sweep.pack,
                emotion_reader=emotion_reader(client_of, details.reader, config),
            ) as pool,
        ):
            await check_models(
                config,
                job.name,
                client_of,
                endpoints,
                num_jobs=len(missing),
                unit="forks",
                typical=typical,
            )
            focal = await pool.player(details.focal, "focal", opponent=details.counterparty)
            match = Match(
                focal=fork_player(focal),
                counterparty=await pool.player(
                    details.counterparty, "counterparty", opponent=details.focal
                ),
                pack=details.sweep.pack,
                seed=details.seed,
                max_turns=turn_cap(config.max_turns, config.count_turns),
                agreement=config.agreement,
                silence_ends=True,
                reader=offer_reader(client_of, details.reader, config),
            )
            planned = _planned(forks, details, endpoints)
            played = await play_all(planned, match, config, path=job.output, label=job.name)
        played.check("see why, and start again")
        found = _findings(job, {fork.name for fork in forks}) if played.is_complete else {}
        return Result(
            played.summary,
            played.cost_usd,
            {"language_models": named_models(endpoints), **found},
            is_complete=played.is_complete,
        )

    return asyncio.run(work())


def _missing(forks: Sequence[Fork], output: Path) -> list[Fork]:
    """The forks that the file lacks; it may hold forks of a larger plan too."""
    if not output.is_file():
        return list(forks)
    with JsonlAppender(output):  # cuts a torn last line off
        played = {trajectory.trajectory_id for trajectory in read_trajectories(output)}
    return [fork for fork in forks if fork.name not in played]


def _planned(
    forks: Sequence[Fork], details: _ReplayDetails, endpoints: Mapping[str, ModelEndpoint | None]
) -> list[PlannedDialogue]:
    dialogues = {t.trajectory_id: t for t in details.sweep.trajectories}
    scenarios = {s.scenario_id: s for s in details.sweep.scenarios}
    roles: tuple[Role, Role] = ("focal", "counterparty")
    simulated = [
        role
        for role in roles
        if (endpoint := endpoints[role]) is not None and endpoint.provider.name == SIMULATOR
    ]
    planned = []
    for fork in forks:
        dialogue = dialogues[fork.turn.trajectory_id]
        scenario = scenarios[dialogue.scenario_id]
        planned.append(fork_dialogue(fork, dialogue, scenario, details.seed, simulated))
    return planned


def _forecast(forks: Sequence[Fork], details: _ReplayDetails) -> dict[str, TypicalCalls]:
    """The calls of each role for one fork; says what all of them will take.

    Args:
      forks: those that are still to be played.
    """
    expected = expected_calls(forks, details.sweep.trajectories)
    calls = {role: expected[role] for role in ("focal", "counterparty")}
    if details.focal.language_model is None:
        calls["focal"] = RoleCalls()  # the student writes here
    if details.reader is not None:
        num_read = sum(expected[role].num_calls for role in expected)
        _, *tokens = TYPICAL["reader"]
        calls["reader"] = RoleCalls(num_read, *(num_read * count for count in tokens))
    total = RoleCalls()
    for one in calls.values():
        total = total.plus(one)
    num_turns = len({fork.turn for fork in forks})
    print(
        f"replay: {len(forks):,} forks of {num_turns:,} turns to play, about "
        f"{total.num_calls:,.0f} calls with {total.prompt_tokens:,.0f} prompt and "
        f"{total.completion_tokens:,.0f} completion tokens.",
        flush=True,
    )
    return {
        role: TypicalCalls(
            one.num_calls / max(1, len(forks)),
            round(one.prompt_tokens / max(1.0, one.num_calls)),
            round(one.completion_tokens / max(1.0, one.num_calls)),
        )
        for role, one in calls.items()
    }


def _findings(job: Job, names: set[str]) -> dict[str, Any]:
    """What the forks show, in a file and for the manifest; says it."""
    config, details = job.cell.config, job.details
    forks = [t for t in read_trajectories(job.output) if t.trajectory_id in names]
    outcomes = fork_outcomes(forks)
    if config.emotions is not None:
        dialogues = {t.trajectory_id: t for t in details.sweep.trajectories}
        effects = emotion_effects(outcomes, dialogues)
        write_json(job.output.with_suffix(".effects.json"), plain_rows(effects))
        print(effects_text(effects, config.domain, is_planted=config.is_simulated), flush=True)
        return {}
    worths = turn_worths(outcomes, _who(config))
    write_records(worths_path(job.output), worths)
    print(f"replay: {worth_text(worths)}.", flush=True)
    if config.scores is not None:
        _write_scores(
            job, config.scores, as_scores(worths, config.scores, details.sweep.pack.rubric_sha256)
        )
    return {"num_turns": len(worths)}


def worths_path(forks: Path) -> Path:
    """Where the worths of a replay are."""
    return forks.with_suffix(".worths.jsonl")


def _write_scores(job: Job, judge: str, lines: Sequence[Judgement]) -> None:
    """Worths as a judge's file, to train on; `_check_scores_file` has looked at what is there."""
    path = _scores_path(job.cell.config, judge)
    write_records(path, lines)
    print(f"replay: worths as scores in {path}; train on them with --judge {judge}.", flush=True)


def _validation(cell: Cell) -> str:
    """The command that goes on from worths; after effects of emotions, one that finds worths."""
    config = cell.config
    if config.emotions is not None:
        worths = dataclasses.replace(
            config, emotions=None, turn=None, continued_by="recorded", method=AUTO
        )
        return command("replay", worths, named_file(cell))
    if config.scores is not None:
        return next_command("train_jpo", JPOConfig, cell, judge=config.scores)
    return next_command("judge", JudgeConfig, cell, validate=True)


REPLAY = Stage(
    config=ReplayConfig,
    script="replay",
    needs=_needs,
    job=_job,
    run=play_forks,
    followed_by=_validation,
)
