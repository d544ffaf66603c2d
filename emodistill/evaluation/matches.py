"""Held-out scenarios, played (paper, Appendix E.3): by a method, or by two against each other.

All methods meet the same counterparties: a dialogue's id, and with it each seat's seed, depends on
scenario and number alone, so that methods can be compared in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emodistill.configs import MatchConfig
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.evaluation.players import Player, Speakers, choices
from emodistill.llm.client import ChatClient
from emodistill.negotiation.readers import PATTERNS, OfferReader
from emodistill.offline.sweep import SweepResult, plan_dialogues, play_all
from emodistill.prompts import PromptPack


async def run_matches(
    config: MatchConfig,
    *,
    label: str,
    scenarios: Sequence[Scenario],
    path: Path,
    client: ChatClient,
    pack: PromptPack,
    focal: Player,
    counterparty: Player,
    speakers: Speakers,
    reader: OfferReader = PATTERNS,
) -> SweepResult:
    """Play the dialogues of two players that `path` lacks.

    Args:
      label: names the job on the progress line.
      scenarios: the held-out ones, in order.
      focal: has a method.
      speakers: open.

    Raises:
      InputError: no held-out scenario, or a selector or adapter that can't be used.
      ApiError: as the sweep.
    """
    if not scenarios:
        raise InputError("no scenario has split='test'; sweep with --num-test 20.")
    assert focal.method is not None
    choose_counterparty_for = None
    if counterparty.method is not None:
        stream_name = "counterparty-emotions"
        choose_counterparty_for = choices(
            config, counterparty, pack, opposite=focal, stream_name=stream_name
        )
    return await play_all(
        plan_dialogues(scenarios[: config.num_scenarios], num_seeds=config.num_seeds),
        path=path,
        label=label,
        client=client,
        focal=await speakers.speaker(focal),
        counterparty=await speakers.speaker(counterparty),
        choose_for=choices(
            config, focal, pack, opposite=counterparty, stream_name="evaluate-emotions"
        ),
        pack=pack,
        method=focal.method,
        cells=focal.cells,
        choose_counterparty_for=choose_counterparty_for,
        counterparty_method=counterparty.method,
        counterparty_cells=counterparty.cells,
        seed=config.seed,
        max_turns=config.max_turns,
        agreement=config.agreement,
        concurrency=config.concurrency,
        max_cost_usd=config.max_cost_usd,
        silence_ends=True,
        reader=reader,
    )
