"""Stage 5: what the methods are worth on held-out scenarios."""

from __future__ import annotations

import asyncio
from typing import Any

from emodistill.configs import EvaluateConfig
from emodistill.errors import InputError, StoppedError
from emodistill.logs import kept_log
from emodistill.offline.run_files import CONFIG, SCENARIOS
from emodistill.runs import finish_stage, stage_dir
from emodistill.stages.apis import model_name, offer_model, offer_reader, open_client
from emodistill.stages.files import LOG, Made, announce, cell, model_hashes, say, write_config
from emodistill.stages.matches import begin_matches, entrant, held_out


def evaluate(config: EvaluateConfig, base: EvaluateConfig | None = None) -> Made:
    """Stage 5: play a method on the held-out scenarios."""
    from emodistill.agents import get_method
    from emodistill.evaluation.matches import run_matches
    from emodistill.evaluation.players import Player, Speakers
    from emodistill.prompts import load_pack

    announce(config, f"evaluate {config.method}")
    method = get_method(config.method)
    counterparty = model_name(config, "counterparty", config.counterparty)
    reader = offer_model(config)
    focal = None if method.writer == "student" else model_name(config, "focal", config.model)
    if method.emotion == "oracle" and not config.is_simulated:
        raise InputError("--method oracle knows the simulator's hidden truth; it has no provider.")
    pack = load_pack(config.prompt_pack)
    player, files = entrant(config, focal)
    scenarios = stage_dir(config.run, config.domain, "sweep") / SCENARIOS
    directory = stage_dir(
        config.run, config.domain, "eval", f"{config.method}@{counterparty}".replace("/", "-")
    )
    name = cell(config, base, without=("method", "counterparty", "num_seeds", "num_scenarios"))
    begun = begin_matches(
        config,
        stage="evaluate",
        directory=directory,
        name=name,
        identity={"model": focal, "counterparty": counterparty},
        inputs=[scenarios, *files],
        student_hashes=model_hashes(config.student) if focal is None else {},
        reader=reader,
        pack=pack,
    )
    config, path = begun.config, begun.path
    made = Made(path, f"python scripts/report.py --run {config.run}")
    if begun.manifest.is_finished:
        say(f"evaluate {config.method}: finished before, dialogues in {path}")
        return made
    write_config(directory / f"{name}.{CONFIG}", "evaluate", config, base)

    async def work() -> Any:
        async with open_client(config) as client, Speakers(config, client) as speakers:
            return await run_matches(
                config,
                label=f"evaluate {config.method}",
                scenarios=held_out(scenarios, config.split),
                path=path,
                client=client,
                pack=pack,
                focal=player,
                counterparty=Player(
                    language_model=counterparty, temperature=config.counterparty_temperature
                ),
                speakers=speakers,
                reader=offer_reader(client, reader),
            )

    with kept_log(directory / LOG):
        result = asyncio.run(work())
    if not result.is_complete:
        raise StoppedError(f"evaluate {config.method}: {result.summary}")
    finish_stage(
        directory,
        cost_usd=result.cost_usd,
        summary={"text": result.summary},
        name=begun.manifest_name,
    )
    say(f"evaluate {config.method}: {result.summary}")
    return made
