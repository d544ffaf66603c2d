"""The tournament: methods play each other on the held-out scenarios, each in both seats.

    runs/<run>/<domain>/tournament/<focal>@<counterparty>.jsonl

A language model that writes in the counterparty's seat is the one that writes in the focal seat.
On the simulator it is `sim-counterparty` there unless `--counterparty` says otherwise: it answers
to the emotions that it hears and shows none, so that columns of such methods are all alike.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from emodistill.configs import EMBEDDED, EvaluateConfig, TournamentConfig
from emodistill.errors import EmodistillError, InputError, StoppedError
from emodistill.logs import kept_log
from emodistill.offline.run_files import CONFIG, SCENARIOS, by_id, played_pairs
from emodistill.runs import finish_stage, stage_dir
from emodistill.stages.apis import model_name, offer_model, offer_reader, open_client
from emodistill.stages.files import LOG, Made, announce, model_hashes, say, write_config
from emodistill.stages.matches import Begun, Entrant, begin_matches, entrant, held_out

if TYPE_CHECKING:
    from emodistill.evaluation.players import Player

Pair = tuple[str, str]
STAGE = "tournament"


class _LanguageModels(NamedTuple):
    """Who writes for methods without a student; None where there are no such methods."""

    focal: str | None
    counterparty: str | None


def check(config: TournamentConfig) -> None:
    """Refuse what can't be played before anything is made for it.

    Raises:
      InputError: a method, model, prompt pack or student that isn't there.
    """
    from emodistill.agents import get_method
    from emodistill.prompts import load_pack

    methods = [get_method(name) for name in config.methods]
    if any(method.emotion == "oracle" for method in methods):
        raise InputError(
            "--methods oracle: it knows who sits in the counterparty's seat and can't sit there "
            "itself; see what it reaches with evaluate.py --method oracle."
        )
    _language_models(config)
    offer_model(config)
    load_pack(config.prompt_pack)
    _student_hashes(config)


def tournament(config: TournamentConfig, evaluations: Sequence[EvaluateConfig]) -> Made:
    """Play the pairs that are not finished; `evaluations` has the settings of each method.

    Raises:
      StoppedError: stopped by the user or the ceiling on costs.
      EmodistillError: pairs have failed; the others are played.
    """
    announce(config, STAGE)
    directory = stage_dir(config.run, config.domain, STAGE)
    pairings, failed = _begin(config, evaluations, directory)
    todo = {pair: one for pair, one in pairings.items() if not one.begun.manifest.is_finished}
    if todo:
        spent_usd = sum(one.begun.manifest.cost_usd for one in pairings.values())
        write_config(directory / CONFIG, STAGE, config)
        with kept_log(directory / LOG):
            failed += asyncio.run(_play(config, todo, spent_usd))
    say(f"\n{_matrix(config)}\n")
    if failed:
        raise EmodistillError(
            f"{len(failed)} of {len(_pairs(config))} pairs failed, for the reasons above: "
            f"{', '.join(map(_stem, failed))}. Start again to try them again."
        )
    return Made(directory, f"python scripts/report.py --run {config.run}")


class _Pairing(NamedTuple):
    focal: Player
    counterparty: Player
    begun: Begun[TournamentConfig]


def _begin(
    config: TournamentConfig, evaluations: Sequence[EvaluateConfig], directory: Path
) -> tuple[dict[Pair, _Pairing], list[Pair]]:
    """The pairs as they were left, and those whose files can't be gone on with."""
    from emodistill.prompts import load_pack

    student_hashes = _student_hashes(config)
    if student_hashes and config.student == EMBEDDED:
        from emodistill.evaluation.tournament import EMBEDDED_OPPOSITE

        say(f"{STAGE}: {EMBEDDED_OPPOSITE}")
    models, reader = _language_models(config), offer_model(config)
    pack = load_pack(config.prompt_pack)
    focal = {one.method: entrant(one, models.focal) for one in evaluations}
    counterparty = {
        name: _opposite(config, one, models.counterparty) for name, one in focal.items()
    }
    cells = [name for name in config.identity() if name.endswith("_cell")]  # only those played
    found: dict[Pair, _Pairing] = {}
    failed: list[Pair] = []
    for pair in _pairs(config):
        seats = {"focal": focal[pair[0]], "counterparty": counterparty[pair[1]]}
        has_student = any(one.player.language_model is None for one in seats.values())
        files = [path for one in seats.values() for path in one.inputs]
        try:
            begun = begin_matches(
                config,
                stage=STAGE,
                directory=directory,
                name=_stem(pair),
                identity={seat: _identity(one.player) for seat, one in seats.items()},
                without=["methods", "model", *cells],
                inputs=[_scenarios(config), *files],
                student_hashes=student_hashes if has_student else {},
                reader=reader,
                pack=pack,
            )
        except EmodistillError as error:
            failed.append(pair)
            say(f"{_name(pair)}: failed: {error}")
            continue
        found[pair] = _Pairing(seats["focal"].player, seats["counterparty"].player, begun)
        if begun.manifest.is_finished:
            say(f"{_name(pair)}: finished before, dialogues in {begun.path}")
    return found, failed


async def _play(
    config: TournamentConfig, todo: Mapping[Pair, _Pairing], spent_usd: float
) -> list[Pair]:
    """Play the pairs one after the other; those that have failed."""
    from emodistill.evaluation.matches import run_matches
    from emodistill.evaluation.players import Speakers
    from emodistill.prompts import load_pack

    scenarios, pack = held_out(_scenarios(config), config.split), load_pack(config.prompt_pack)
    failed: list[Pair] = []
    async with open_client(config) as client, Speakers(config, client) as speakers:
        reader = offer_model(config)
        for pair, (focal, counterparty, begun) in todo.items():
            try:
                result = await run_matches(
                    _within_budget(begun.config, spent_usd),
                    label=_name(pair),
                    scenarios=scenarios,
                    path=begun.path,
                    client=client,
                    pack=pack,
                    focal=focal,
                    counterparty=counterparty,
                    speakers=speakers,
                    reader=offer_reader(client, reader),
                )
            except EmodistillError as error:
                failed.append(pair)
                say(f"{_name(pair)}: failed: {error}")
                continue
            if not result.is_complete:
                raise StoppedError(f"{_name(pair)}: {result.summary}")
            spent_usd += result.cost_usd
            finish_stage(
                begun.path.parent,
                cost_usd=result.cost_usd,
                summary={"text": result.summary},
                name=begun.manifest_name,
            )
            say(f"{_name(pair)}: {_result(begun.path)}; {result.summary}")
    return failed


def _language_models(config: TournamentConfig) -> _LanguageModels:
    from emodistill.agents import get_method

    if all(get_method(name).writer == "student" for name in config.methods):
        return _LanguageModels(None, None)
    focal = model_name(config, "focal", config.model)
    if config.counterparty is None and not config.is_simulated:
        return _LanguageModels(focal, focal)
    return _LanguageModels(focal, model_name(config, "counterparty", config.counterparty))


def _student_hashes(config: TournamentConfig) -> dict[str, str]:
    from emodistill.agents import get_method

    has_student = any(get_method(name).writer == "student" for name in config.methods)
    return model_hashes(config.student) if has_student else {}


def _opposite(config: TournamentConfig, one: Entrant, language_model: str | None) -> Entrant:
    """The same entrant in the counterparty's seat."""
    if one.player.language_model is None:
        return one
    temperature = config.counterparty_temperature
    player = dataclasses.replace(one.player, language_model=language_model, temperature=temperature)
    return Entrant(player, one.inputs)


def _identity(player: Player) -> dict[str, object]:
    return {"method": player.method, "model": player.language_model, "cells": dict(player.cells)}


def _within_budget(config: TournamentConfig, spent_usd: float) -> TournamentConfig:
    """With what the pairs before have left of the ceiling, which is the whole tournament's."""
    if config.max_cost_usd is None:
        return config
    return dataclasses.replace(config, max_cost_usd=config.max_cost_usd - spent_usd)


def _scenarios(config: TournamentConfig) -> Path:
    return stage_dir(config.run, config.domain, "sweep") / SCENARIOS


def _pairs(config: TournamentConfig) -> list[Pair]:
    """(focal, counterparty), row by row."""
    return list(itertools.product(config.methods, config.methods))


def _stem(pair: Pair) -> str:
    return "@".join(pair)


def _name(pair: Pair) -> str:
    return f"{STAGE} {_stem(pair)}"


def _result(path: Path) -> str:
    """What has come of a pair, in a few words."""
    from emodistill.evaluation.tournament import cell_text, tournament_matrix
    from emodistill.offline.store import read_trajectories

    pair = ("", "")
    return cell_text(tournament_matrix({pair: read_trajectories(path)})[pair])


def _matrix(config: TournamentConfig) -> str:
    from emodistill.evaluation.tournament import matrix_text, tournament_matrix
    from emodistill.offline.store import read_trajectories

    finished = played_pairs(config.run, config.domain)
    wanted = [pair for pair in _pairs(config) if pair in finished]
    dialogues = {pair: by_id(read_trajectories(finished[pair])) for pair in wanted}
    return matrix_text(tournament_matrix(dialogues), config.methods)
