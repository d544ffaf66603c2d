"""The simulator's own ear as a reader of emotions: no call, no cost."""

from __future__ import annotations

from emodistill.negotiation.hearing import Heard
from emodistill.simulator.reader import heard_emotion


class SimulatedEmotionReader:
    """Hears an utterance as `sim-reader` does, without its bad answers."""

    async def hear(self, text: str, *, dialogue_id: str, seed: int) -> Heard:
        return Heard(heard_emotion(text))
