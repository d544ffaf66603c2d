"""What a sweep and its judging will take, from a pilot that the sweep goes on from."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from pathlib import Path

from emodistill.configs import JudgeConfig, PlanConfig, SweepConfig
from emodistill.files import write_json
from emodistill.llm.endpoints import ModelEndpoint
from emodistill.llm.keys import KeyPool
from emodistill.llm.providers import load_providers
from emodistill.offline.forecast import Allowed, Forecast, forecast
from emodistill.offline.run_files import TRAJECTORIES
from emodistill.offline.store import read_judgements, read_trajectories
from emodistill.offline.sweep import plan_sweep
from emodistill.settings import Cell, Settings
from emodistill.stages.judge import score_sweep
from emodistill.stages.language_models import endpoint_of, reader_of
from emodistill.stages.runner import run
from emodistill.stages.sweep import play_sweep, split_of


def plan(cell: Cell) -> Path:
    """Play and judge the sweep's first dialogues, and say what all of it will take.

    Returns:
      A JSON file of the forecast, beside the dialogues.
    """
    config: PlanConfig = cell.config
    planned = plan_sweep(
        split_of(config).split.all(), num_seeds=config.num_seeds, num_scenarios=config.num_scenarios
    )
    pilot = {dialogue.trajectory_id for dialogue in planned[: config.pilot]}
    sweep = SweepConfig(
        **{f.name: getattr(config, f.name) for f in dataclasses.fields(SweepConfig)}
    )
    # The judge's own section of the file holds, but for what the command line says.
    always = ("run", "domain", "seed", "provider", "base_url", "record", "replay")
    judge = (cell.settings or Settings()).config(
        JudgeConfig,
        **{
            f.name: getattr(config, f.name)
            for f in dataclasses.fields(JudgeConfig)
            if f.name in always or getattr(config, f.name, None) != getattr(cell.base, f.name, None)
        },
    )
    judged_by = endpoint_of(judge, "judge")  # early, before anything is played
    run(Cell(sweep), functools.partial(play_sweep, num_dialogues=len(pilot)))
    judging = functools.partial(score_sweep, only=pilot)
    scores = run(Cell(judge), judging).path
    home = config.run / config.domain
    expected = forecast(
        [t for t in read_trajectories(home / TRAJECTORIES) if t.trajectory_id in pilot],
        read_judgements(scores),
        num_dialogues=len(planned),
        concurrency=config.concurrency,
        allowed=_allowed(config, judge),
        batch_share=judged_by.provider.batch_share(judged_by.model),
    )
    out = home / "sweep/forecast.json"
    parts = {name: getattr(expected, name)._asdict() for name in ("sweep", "judge")}
    write_json(out, expected._asdict() | parts)
    print(
        "\n".join([f"plan: {config.domain}", expected.text, *other_ways(config, judge, expected)])
    )
    print(
        f"plan: forecast in {out}; go on with python scripts/sweep.py --config "
        f"{shlex.quote(str(out.with_name('config.yaml')))}"
    )
    return out


def other_ways(config: PlanConfig, judge: JudgeConfig, expected: Forecast) -> list[str]:
    """The same calls to the same models by what else their provider sells, a line for each.

    Providers of one family, such as `openai` and `openai-flex`, have the same first word. A stage
    whose calls go to several models has no line: the forecast doesn't know their tokens apart.
    """
    lines = []
    playing = [endpoint for endpoint, _ in _sweep_models(config)]
    for need, endpoints in (
        (expected.sweep, playing),
        (expected.judge, [endpoint_of(judge, "judge")]),
    ):
        if len({endpoint.key for endpoint in endpoints}) > 1:
            continue
        usual, model, _ = endpoints[0]
        for provider in load_providers().values():
            is_family = provider.name.partition("-")[0] == usual.name.partition("-")[0]
            price = provider.price(model)
            if provider.name == usual.name or not is_family or price is None:
                continue
            usd = price.cost_usd(need.prompt_tokens, need.completion_tokens)
            line = f"{need.stage} with --provider {provider.name} would cost {usd:,.2f}"
            if provider.timeout_s > usual.timeout_s:
                line += f"; an answer may take {provider.timeout_s / 60:.0f} minutes"
            if provider.key_env != usual.key_env:
                line += f"; its keys are those in {provider.key_env}"
            lines.append(f"{line}.")
    return lines


def _sweep_models(config: PlanConfig) -> list[tuple[ModelEndpoint, float]]:
    """The models that a sweep calls, each with its share of the calls.

    A reader has about as many calls as both sides have turns.
    """
    reader = reader_of(config)
    sides = [endpoint_of(config, role) for role in ("focal", "counterparty")]
    if reader is None:
        return [(side, 0.5) for side in sides]
    return [*((side, 0.25) for side in sides), (reader, 0.5)]


def _allowed(config: PlanConfig, judge: JudgeConfig) -> list[Allowed]:
    """What the models may be asked; one that has several roles takes the calls of all of them."""
    if config.replay is not None:
        return []
    shares: dict[tuple[str, str], float] = {}
    endpoints = {}
    called = [("sweep", *one) for one in _sweep_models(config)]
    for stage, endpoint, share in [*called, ("judge", endpoint_of(judge, "judge"), 1.0)]:
        name = stage, endpoint.text
        shares[name] = shares.get(name, 0.0) + share
        endpoints[name] = endpoint
    found = []
    for (stage, text), share in shares.items():
        provider, model, _ = endpoints[stage, text]
        limits = provider.profile(model).limits
        pool = KeyPool(provider.read_keys(), limits=limits)
        found.append(Allowed(stage, share, limits, pool.num_allowances))
    return found
