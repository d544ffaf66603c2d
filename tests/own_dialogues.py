"""A user's own dialogue, of the first built-in scenario."""

from builders import trajectory, turns

from emodistill.domains import load_scenarios

ONE = load_scenarios("crad")[0]
ID = "crad/own/seed_0000"


def own(scenario=ONE, **fields):
    """A dialogue of `scenario`, agreed at its counterparty's last offer."""
    said = turns(scenario.focal_target, scenario.counterparty_anchor, None, texts=("a", "b", "Yes"))
    shared = ("scenario_id", "focal_target", "counterparty_anchor", "unit", "split", "domain")
    known = {name: getattr(scenario, name) for name in shared}
    end = {"final_value": scenario.counterparty_anchor}
    return trajectory(fields.pop("name", ID), fields.pop("turns", said), **known | end | fields)
