"""Six dialogues for a judge, and how many of their turns it scores."""

from emodistill.domains import load_scenarios
from emodistill.prompts import load_pack
from emodistill.records import CounterpartyPlayer, FocalPlayer, Trajectory, Turn

SCENARIOS = load_scenarios("crad")[:3]
PACK = load_pack()


def dialogue(scenario, number, method="sweep"):
    turns = tuple(
        Turn(
            index=i,
            speaker=("focal", "counterparty")[i % 2],
            emotion="joy" if i % 2 == 0 else None,
            text=f"utterance {i} of {scenario.scenario_id} in {method} {number}",
            offer=None,
        )
        for i in range(4)
    )
    return Trajectory(
        trajectory_id=f"crad/{scenario.scenario_id}/{method}_{number}",
        domain="crad",
        scenario_id=scenario.scenario_id,
        seed=number,
        split="train",
        focal_target=scenario.focal_target,
        counterparty_anchor=scenario.counterparty_anchor,
        unit="days",
        focal=FocalPlayer(method=method, model="m", temperature=0.7),
        counterparty=CounterpartyPlayer(model="c", temperature=0.7),
        prompt_pack_sha256=PACK.sha256,
        agreement_rule="stand",
        turns=turns,
        outcome="ongoing",
        final_value=None,
    )


DIALOGUES = [dialogue(scenario, number) for number in range(2) for scenario in SCENARIOS]
NUM_TURNS = 2 * len(DIALOGUES)
