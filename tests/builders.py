"""Records for tests: each is complete, and a test names only the fields that it is about.

    turns(30.0, 85.0, None, 60.0, emotions=("fear", "joy"))  the players alternate, focal first
    trajectory("a", turns(30.0, 60.0), final_value=60.0)     accepted; without a value a breakdown
    dialogue("a", 60.0, emotions=("fear", "joy"))            the same where offers do not matter
    negotiation(number=2, share=0.5)                         both move, half of the gap is won
    judgement("a", 2, 7)                                     a score of 7; None is a failed call
    SCENARIO, TRAJECTORY, JUDGEMENT                          one of each with every field set

All play `SCENARIO`: CRAD, days, target 30, anchor 90.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS
from emodistill.records import (
    CounterpartyPlayer,
    DialogueUsage,
    FocalPlayer,
    Judgement,
    Trajectory,
    Turn,
)
from emodistill.seeding import stream

SCENARIO = Scenario(
    scenario_id="debt_001",
    domain="crad",
    split="test",
    focal_target=30.0,
    counterparty_anchor=90.0,
    unit="days",
    fields={"creditor": "Miller & Söhne", "days_overdue": 12},
)


def turns(
    *offers: float | None, emotions: Sequence[str | None] = (None,), texts: Sequence[str] = ("",)
) -> tuple[Turn, ...]:
    """A turn for each offer, the focal player first.

    Args:
      emotions: of the focal turns, again from the start where there are too few.
      texts: of all turns, likewise.
    """
    return tuple(
        Turn(
            index=i,
            speaker="counterparty" if i % 2 else "focal",
            emotion=None if i % 2 else emotions[i // 2 % len(emotions)],
            text=texts[i % len(texts)],
            offer=offer,
        )
        for i, offer in enumerate(offers)
    )


def trajectory(
    name: str, turns: Sequence[Turn] = (), *, final_value: float | None = None, **fields: Any
) -> Trajectory:
    """A dialogue of the method `iql`; `fields` replace any field of the record."""
    record: dict[str, Any] = {
        "trajectory_id": name,
        "domain": SCENARIO.domain,
        "scenario_id": SCENARIO.scenario_id,
        "seed": 0,
        "split": "test",
        "focal_target": SCENARIO.focal_target,
        "counterparty_anchor": SCENARIO.counterparty_anchor,
        "unit": SCENARIO.unit,
        "focal": FocalPlayer(method="iql", model="m", temperature=0.7),
        "counterparty": CounterpartyPlayer(model="m", temperature=0.7),
        "prompt_pack_sha256": "0",
        "agreement_rule": "stand",
        "turns": tuple(turns),
        "outcome": "breakdown" if final_value is None else "accepted",
        "final_value": final_value,
    }
    return Trajectory(**record | fields)


def dialogue(
    name: str,
    final_value: float | None,
    *,
    num_turns: int = 4,
    emotions: Sequence[str | None] = (None,),
    **fields: Any,
) -> Trajectory:
    """A dialogue that is about its end and its emotions; every fourth focal turn offers 40."""
    offers = [None if i % 8 else 40.0 for i in range(num_turns)]
    texts = ("40 days", *["no thanks"] * 3)
    said = turns(*offers, emotions=emotions, texts=texts)
    return trajectory(name, said, final_value=final_value, **fields)


def negotiation(
    *, number: int = 1, seed: int = 0, share: float | None = 0.5, num_turns: int = 4
) -> Trajectory:
    """Both players move towards each other, under random emotions, until the last turn accepts.

    Args:
      number: of the scenario.
      share: of the gap that the focal player wins; None ends the dialogue without a deal.
    """
    target, anchor = SCENARIO.focal_target, SCENARIO.counterparty_anchor
    scenario_id = f"debt_{number:03d}"
    end = 0.5 if share is None else share
    offers: list[float | None] = []
    for i in range(num_turns):
        progress = i / (num_turns - 1)
        won = end * progress if i % 2 else 1 - (1 - end) * progress
        offers.append(anchor + (target - anchor) * won)
    texts = [f"I have weighed {i}, and {offer:g} days it is." for i, offer in enumerate(offers)]
    if share is not None:
        offers[-1], texts[-1] = None, "Agreed."
    rng = stream(seed, "builders", scenario_id)
    emotions = [EMOTIONS[rng.integers(len(EMOTIONS))] for _ in range(num_turns)]
    return trajectory(
        f"crad/{scenario_id}/seed_{seed:04d}",
        turns(*offers, emotions=emotions, texts=texts),
        scenario_id=scenario_id,
        seed=seed,
        final_value=None if share is None else anchor + (target - anchor) * share,
    )


def judgement(name: str, turn_index: int | None, score: int | None, **fields: Any) -> Judgement:
    """A judge's call; `fields` replace any field of the record."""
    record: dict[str, Any] = {
        "trajectory_id": name,
        "turn_index": turn_index,
        "judge": "sim-judge",
        "repeat": 0,
        "attempt": 0,
        "rubric_sha256": "cd",
        "raw": "hm" if score is None else f"SCORE: {score}",
        "status": "failed" if score is None else "scored",
        "score": score,
    }
    return Judgement(**record | fields)


TRAJECTORY = trajectory(
    "crad/debt_001/seed_0007",
    (
        Turn(index=0, speaker="focal", emotion="joy", text="30 days?", offer=30.0, latency_s=0.5),
        Turn(index=1, speaker="counterparty", emotion=None, text="Hm.", offer=None),
    ),
    final_value=30.0,
    seed=7,
    split="train",
    focal=FocalPlayer(method="iql", model="m", temperature=0.7, cells={"iql": "default"}),
    counterparty=CounterpartyPlayer(model="c", temperature=0.0),
    prompt_pack_sha256="ab",
    usage=DialogueUsage(calls=2, prompt_tokens=10, completion_tokens=5),
    cost_usd=0.25,
)
JUDGEMENT = judgement(TRAJECTORY.trajectory_id, None, 8)
