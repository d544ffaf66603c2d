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
from emodistill.negotiation.episode import Match, Seat
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

    async def seat(player: Player, opposite: Player, stream_name: str) -> Seat:
        return Seat(
            choose_for=choices(config, player, pack, opposite=opposite, stream_name=stream_name),
            speaker=await speakers.speaker(player),
            method=player.method,
            cells=player.cells,
        )

    match = Match(
        focal=await seat(focal, counterparty, "evaluate-emotions"),
        counterparty=await seat(counterparty, focal, "counterparty-emotions"),
        pack=pack,
        seed=config.seed,
        max_turns=config.max_turns,
        agreement=config.agreement,
        silence_ends=True,
        reader=reader,
    )
    return await play_all(
        plan_dialogues(scenarios[: config.num_scenarios], num_seeds=config.num_seeds),
        match,
        path=path,
        label=label,
        client=client,
        concurrency=config.concurrency,
        max_cost_usd=config.max_cost_usd,
    )
