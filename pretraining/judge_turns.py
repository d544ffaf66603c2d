"""Turns whose worth is known, on scenarios that no experiment uses: what the judge is fitted to.

    <out>/settings.json              what decides the contents of all the other files
         /<domain>.dialogues.jsonl   dialogues of the simulated teacher under random emotions
         /<domain>.worths-<n>.jsonl  what some of their turns are worth, the same teacher going on

The teacher is the average player: what the sweep records, and what the embedded student was
pretrained on. No trained student has a part in it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from emodistill.domains import DOMAINS, Scenario
from emodistill.domains.generator import generate_scenarios
from emodistill.errors import InputError, refuse
from emodistill.evaluation.turn_worth import fork_outcomes, turn_worths
from emodistill.files import write_json
from emodistill.negotiation.episode import Match, PlannedDialogue, Player, play
from emodistill.offline.forks import (
    TurnKey,
    arms_of,
    chosen_turns,
    fork_dialogue,
    fork_player,
    plan_forks,
)
from emodistill.offline.store import read_records, read_trajectories, write_records
from emodistill.offline.sweep import plan_dialogues
from emodistill.prompts import load_pack
from emodistill.records import Role, Trajectory, TurnWorth
from emodistill.seeding import stream
from emodistill.selectors import RandomSelector
from emodistill.simulator.writer import SimulatedWriter
from emodistill.untrusted import brief, read_typed
from pretraining.config import JudgeFitConfig

PART = 50
"""Turns of a part, some minutes of one core: what a stop loses at most."""
SETTINGS = ("seed", "num_seeds", "num_turns", "continuations")
"""The settings that decide what the files of a folder hold."""


class _SomeTurns(NamedTuple):
    """Some of a domain's turns, which one process forks."""

    domain: str
    number: int


def make_turns(config: JudgeFitConfig) -> None:
    """Play the dialogues and the forks of all domains that `config.out` lacks.

    Raises:
      InputError: what is there was made under other settings, or nothing says under which.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    _keep_settings(config)
    parts = [
        _SomeTurns(domain, number)
        for number in range(-(-config.num_turns // PART))
        for domain in DOMAINS
    ]
    missing = [part for part in parts if not _worths_file(config.out, part).is_file()]
    with ProcessPoolExecutor(config.num_processes) as pool:
        list(pool.map(functools.partial(_play_domain, config), DOMAINS))
        for part in pool.map(functools.partial(_fork_part, config), missing):
            print(f"{part.domain}, part {part.number}: done", flush=True)


def _keep_settings(config: JudgeFitConfig) -> None:
    """Write the settings beside the files, or refuse files that were made under other ones."""
    path = config.out / "settings.json"
    advice = f"Take another --out, or delete the files in {config.out}."
    now = {name: getattr(config, name) for name in SETTINGS}
    try:
        then = read_typed(path, dict[str, int], advice)
    except FileNotFoundError:
        if made := next(config.out.glob("*.jsonl"), None):
            raise InputError(
                f"{made} is there, but {path}, which says under which settings it was made, is "
                f"missing. {advice}"
            ) from None
        write_json(path, now)
        return
    refuse(
        [
            f"{name}={value}, but the files there were made under {brief(then.get(name))} ({path})."
            for name, value in now.items()
            if then.get(name) != value
        ],
        f"Give the same settings to resume. {advice}",
    )


def read_turns(out: Path, domain: str) -> tuple[list[Trajectory], list[TurnWorth]]:
    """The dialogues of a domain, and the worths of their turns that are there."""
    worths = [
        worth
        for path in sorted(out.glob(f"{domain}.worths-*.jsonl"))
        for worth, _ in read_records(path, TurnWorth)
    ]
    return read_trajectories(_dialogues_file(out, domain)), worths


def _dialogues_file(out: Path, domain: str) -> Path:
    return out / f"{domain}.dialogues.jsonl"


def _worths_file(out: Path, part: _SomeTurns) -> Path:
    return out / f"{part.domain}.worths-{part.number:02d}.jsonl"


def unused_scenarios(domain: str, seed: int) -> list[Scenario]:
    """Generated scenarios of another seed, without those that the built-in ones have too."""
    built_in = {tuple(s.fields.values()) for s in generate_scenarios(domain)}
    scenarios = generate_scenarios(domain, seed=seed)
    return [s for s in scenarios if tuple(s.fields.values()) not in built_in]


def _play_domain(config: JudgeFitConfig, domain: str) -> None:
    path = _dialogues_file(config.out, domain)
    if not path.is_file():
        planned = plan_dialogues(unused_scenarios(domain, config.seed), num_seeds=config.num_seeds)
        write_records(path, _played(planned, _match(config.seed, is_fork=False)))


def _fork_part(config: JudgeFitConfig, part: _SomeTurns) -> _SomeTurns:
    dialogues = read_trajectories(_dialogues_file(config.out, part.domain))
    scenarios = unused_scenarios(part.domain, config.seed)
    turns = chosen_turns(dialogues, turn=None, num_turns=config.num_turns, seed=config.seed)
    turns = turns[part.number * PART :][:PART]
    worths = fork_worths(turns, dialogues, scenarios, config.continuations, config.seed)
    write_records(_worths_file(config.out, part), worths)
    return part


def fork_worths(
    turns: Sequence[TurnKey],
    dialogues: Sequence[Trajectory],
    scenarios: Sequence[Scenario],
    continuations: int,
    seed: int,
) -> list[TurnWorth]:
    """What turns are worth, the teacher going on."""
    recorded = {t.trajectory_id: t for t in dialogues}
    of_id = {s.scenario_id: s for s in scenarios}
    planned = []
    for fork in plan_forks(turns, arms_of(None), continuations):
        dialogue = recorded[fork.turn.trajectory_id]
        roles: tuple[Role, Role] = ("focal", "counterparty")
        planned.append(fork_dialogue(fork, dialogue, of_id[dialogue.scenario_id], seed, roles))
    forks = _played(planned, _match(seed, is_fork=True))
    return turn_worths(fork_outcomes(forks), "recorded")


def _match(seed: int, *, is_fork: bool) -> Match:
    selector = RandomSelector()

    def choose_for(dialogue: PlannedDialogue):
        rng = stream(seed, "judge-turns", dialogue.trajectory_id)
        return functools.partial(selector.choose, rng=rng)

    teacher = Player(writer=SimulatedWriter("sim-teacher"), choose_for=choose_for, method="random")
    return Match(
        focal=fork_player(teacher) if is_fork else teacher,
        counterparty=Player(writer=SimulatedWriter("sim-counterparty")),
        pack=load_pack(),
        seed=seed,
    )


def _played(planned: Iterable[PlannedDialogue], match: Match) -> list[Trajectory]:
    async def play_each() -> list[Trajectory]:
        return [await play(dialogue, match) for dialogue in planned]

    return asyncio.run(play_each())
