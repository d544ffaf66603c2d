"""Small dialogues for tests that work figures out by hand."""

from emodistill.records import CounterParty, FocalParty, Trajectory, Turn


def dialogue(
    name, final_value, *, num_turns=4, outcome=None, scenario_id="debt_001", seed=0, emotions=()
):
    """A dialogue from 30 (the focal target) to 90 that ends at `final_value`, None for a failure.

    Every second focal turn names 40 days, and every fourth one offers them.
    """
    turns = tuple(
        Turn(
            index=i,
            speaker="focal" if i % 2 == 0 else "counterparty",
            emotion=emotions[i // 2] if i % 2 == 0 and emotions else None,
            text="40 days" if i % 4 == 0 else "no thanks",
            offer=40.0 if i % 8 == 0 else None,
        )
        for i in range(num_turns)
    )
    return Trajectory(
        trajectory_id=name,
        domain="crad",
        scenario_id=scenario_id,
        seed=seed,
        split="test",
        focal_target=30.0,
        counterparty_anchor=90.0,
        unit="days",
        focal=FocalParty(method="iql", model="m", temperature=0.7),
        counterparty=CounterParty(model="m", temperature=0.7),
        prompt_pack_sha256="0",
        agreement_rule="stand",
        turns=turns,
        outcome=outcome or ("breakdown" if final_value is None else "accepted"),
        final_value=final_value,
    )
