"""The game: reading offers, judging agreement, a selector's view of it, playing a dialogue."""

from emodistill.negotiation.mediator import Verdict, mediate
from emodistill.negotiation.offers import read_offer
from emodistill.negotiation.states import DialogueState, features

__all__ = ["DialogueState", "Verdict", "features", "mediate", "read_offer"]
