"""An upper bound on the simulator: knows the planted weights and its opponent.

Needs the response model and the counterparty's hidden type, which no learned selector sees; what a
selector falls short of it is its regret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from emodistill.configs import TYPED_COUNTERPARTIES
from emodistill.negotiation.episode import player_seed
from emodistill.prompts import counterparty_messages
from emodistill.simulator.reading import messages_text, read_sections
from emodistill.simulator.response_model import best_emotion, hidden_type, phase_of

if TYPE_CHECKING:
    from emodistill.domains.scenario import Scenario
    from emodistill.negotiation.states import DialogueState
    from emodistill.prompts import PromptPack


class OracleSelector:
    """The emotion with the largest planted effect on this dialogue's counterparty.

    Greedy, one turn ahead: it does not plan for habituation.
    """

    def __init__(
        self,
        pack: PromptPack,
        scenario: Scenario,
        seed: int,
        trajectory_id: str,
        *,
        counterparty: str | None,
    ) -> None:
        messages = counterparty_messages(pack, scenario, ())
        told = read_sections(*messages_text(messages)).scenario
        self._domain = scenario.domain
        own_seed = player_seed(seed, "counterparty", trajectory_id)
        only = TYPED_COUNTERPARTIES.get(counterparty or "")
        self._type = hidden_type(told, own_seed, only).name

    def choose(self, state: DialogueState, rng: np.random.Generator) -> str:
        focal = [offer for offer in state.focal_offers if offer is not None]
        demand, standing = (focal[0], focal[-1]) if focal else (state.focal_target,) * 2
        theirs = [offer for offer in state.counterparty_offers if offer is not None]
        reached = theirs[-1] if theirs else state.counterparty_anchor
        span = demand - state.counterparty_anchor
        gap = (standing - reached) / span if span else 0.0
        phase = phase_of(len(state.emotions) + 1, max(0.0, min(1.0, gap)))
        previous = state.emotions[-1] if state.emotions else None
        return best_emotion(self._domain, phase, self._type, previous)
