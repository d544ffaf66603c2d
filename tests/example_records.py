"""One record of each kind, for tests."""

from emodistill.domains.scenario import Scenario
from emodistill.records import (
    CounterpartyPlayer,
    DialogueUsage,
    FocalPlayer,
    Judgement,
    Trajectory,
    Turn,
)

SCENARIO = Scenario(
    scenario_id="debt_001",
    domain="crad",
    split="test",
    focal_target=30.0,
    counterparty_anchor=90.0,
    unit="days",
    fields={"creditor": "Miller & Söhne", "days_overdue": 12},
)
TRAJECTORY = Trajectory(
    trajectory_id="crad/debt_001/seed_0007",
    domain="crad",
    scenario_id="debt_001",
    seed=7,
    split="train",
    focal_target=30.0,
    counterparty_anchor=90.0,
    unit="days",
    focal=FocalPlayer(method="iql", model="m", temperature=0.7, cells={"iql": "default"}),
    counterparty=CounterpartyPlayer(model="c", temperature=0.0),
    prompt_pack_sha256="ab",
    agreement_rule="stand",
    turns=(
        Turn(index=0, speaker="focal", emotion="joy", text="30 days?", offer=30.0, latency_s=0.5),
        Turn(index=1, speaker="counterparty", emotion=None, text="Hm.", offer=None),
    ),
    outcome="accepted",
    final_value=30.0,
    usage=DialogueUsage(calls=2, prompt_tokens=10, completion_tokens=5),
    cost_usd=0.25,
)
JUDGEMENT = Judgement(
    trajectory_id="crad/debt_001/seed_0007",
    turn_index=None,
    judge="sim-judge",
    repeat=0,
    attempt=0,
    rubric_sha256="cd",
    raw="SCORE: 8",
    status="scored",
    score=8,
)
