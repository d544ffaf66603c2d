"""Held-out scenarios, played (paper, Appendix E.3): by a method, or by two against each other.

All methods meet the same counterparties: a dialogue's id, and with it each player's seed, depends
on scenario and number alone, so that methods can be compared in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emodistill.configs import MatchConfig
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.evaluation.players import PlayerPool, PlayerSpec
from emodistill.negotiation.episode import Match
from emodistill.negotiation.readers import LlmReader
from emodistill.offline.sweep import SweepResult, plan_dialogues, play_all


async def run_matches(
    config: MatchConfig,
    focal: PlayerSpec,
    counterparty: PlayerSpec,
    pool: PlayerPool,
    *,
    scenarios: Sequence[Scenario],
    path: Path,
    label: str,
    reader: LlmReader | None = None,
) -> SweepResult:
    """Play the dialogues of two players that `path` lacks.

    Args:
      config: how many dialogues, by which rules, at which cost.
      focal: has a method.
      pool: open.
      scenarios: the held-out ones, in order.
      label: names the job on the progress line.

    Raises:
      InputError: no held-out scenario, or a selector or adapter that can't be used.
      ApiError: as the sweep.
    """
    if not scenarios:
        raise InputError("no scenario has split='test'; sweep with --num-test 20.")
    assert focal.method is not None
    match = Match(
        focal=await pool.player(focal, "focal", opponent=counterparty),
        counterparty=await pool.player(counterparty, "counterparty", opponent=focal),
        pack=pool.pack,
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
        client=pool.client,
        concurrency=config.concurrency,
        max_cost_usd=config.max_cost_usd,
    )
