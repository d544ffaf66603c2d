"""The tournament: methods play each other on the held-out scenarios, each in both roles.

    runs/<run>/<domain>/tournament/<focal>@<counterparty>.jsonl

A language model that writes in the counterparty's role is the one that writes in the focal role.
On the simulator it is `sim-counterparty` there unless `--counterparty` says otherwise: it answers
to the emotions that it hears and shows none, so that columns of such methods are all alike.
"""

from __future__ import annotations

import dataclasses
import itertools

from emodistill.configs import ReportConfig, TournamentConfig
from emodistill.errors import EmodistillError, InputError, StoppedError
from emodistill.evaluation.methods import get_method
from emodistill.evaluation.tournament import cell_text, matrix_text
from emodistill.offline.run_files import played_pairs
from emodistill.offline.store import read_trajectories
from emodistill.runs import Job, Result, read_manifest
from emodistill.settings import Cell, Settings
from emodistill.stages.evaluation import play
from emodistill.stages.runner import prepare, run
from emodistill.stages.stage import Output, next_command


def tournament(config: TournamentConfig, settings: Settings | None = None) -> Output:
    """Play the pairs that are not finished.

    Raises:
      InputError: a method, model, prompt pack or student that can't be used.
      StoppedError: stopped by the user or the ceiling on costs.
      EmodistillError: pairs have failed; the others are played.
    """
    methods = {name: get_method(name) for name in config.methods}
    if any(method.selector == "oracle" for method in methods.values()):
        raise InputError(
            "--methods oracle: it knows who plays the counterparty and can't take that role "
            "itself; see what it reaches with evaluate.py --method oracle."
        )
    pairs = list(itertools.product(config.methods, config.methods))
    cells = {}
    for focal, counterparty in pairs:
        pair = config.pair(focal, counterparty)
        cells[focal, counterparty] = Cell(pair, None, settings)
        if focal == counterparty:
            prepare(cells[focal, counterparty])
    failed: list[str] = []
    played = played_pairs(config.run / config.domain)
    spent_usd, loaded = 0.0, {}  # pairs share the student's weights
    is_agreed = False

    def play_pair(job: Job) -> Result:
        nonlocal is_agreed
        match = play(job, loaded)
        is_agreed = is_agreed or match.is_agreed
        return match.result

    for pair, cell in cells.items():
        if is_agreed:  # the user is asked once
            cell = cell._replace(config=dataclasses.replace(cell.config, yes=True))
        if config.max_cost_usd is not None:
            left = dataclasses.replace(cell.config, max_cost_usd=config.max_cost_usd - spent_usd)
            cell = cell._replace(config=left)
        name = "@".join(pair)
        try:
            path = run(cell, play_pair).path
        except StoppedError:
            raise
        except EmodistillError as error:
            failed.append(name)
            print(f"tournament {name}: failed: {error}", flush=True)
            continue
        played[pair] = path
        manifest = read_manifest(path.parent, f"{name}.manifest.json")
        spent_usd += manifest.cost_usd if manifest is not None else 0.0
        print(f"tournament {name}: {cell_text(read_trajectories(path))}", flush=True)
    texts = {pair: cell_text(read_trajectories(played[pair])) for pair in pairs if pair in played}
    print(f"\n{matrix_text(texts, config.methods)}\n", flush=True)
    if failed:
        raise EmodistillError(
            f"{len(failed)} of {len(pairs)} pairs failed, for the reasons above: "
            f"{', '.join(failed)}. Start again to try them again."
        )
    directory = config.run / config.domain / "tournament"
    return Output(directory, next_command("report", ReportConfig, Cell(config, None, settings)))
