"""The four negotiation domains, their scenarios, and how their values are said."""

from emodistill.domains.loading import load_scenarios, load_split
from emodistill.domains.registry import DOMAINS, Domain, format_value, get_domain
from emodistill.domains.scenario import Scenario, Split, split_scenarios

__all__ = [
    "DOMAINS",
    "Domain",
    "Scenario",
    "Split",
    "format_value",
    "get_domain",
    "load_scenarios",
    "load_split",
    "split_scenarios",
]
