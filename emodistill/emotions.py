"""The action vocabulary: the 28 GoEmotions labels (Demszky et al., 2020; paper §3.1)."""

EMOTIONS: tuple[str, ...] = (
    "admiration",
    "amusement",
    "anger",
    "annoyance",
    "approval",
    "caring",
    "confusion",
    "curiosity",
    "desire",
    "disappointment",
    "disapproval",
    "disgust",
    "embarrassment",
    "excitement",
    "fear",
    "gratitude",
    "grief",
    "joy",
    "love",
    "nervousness",
    "optimism",
    "pride",
    "realization",
    "relief",
    "remorse",
    "sadness",
    "surprise",
    "neutral",
)
"""Alphabetical, with `neutral` last; the position is the action's index."""

NEUTRAL = "neutral"
EKMAN = ("joy", "sadness", "anger", "fear", "surprise", "disgust", NEUTRAL)
"""Ekman's six and neutral, which are labels of GoEmotions themselves: the choice of systems with
seven emotions, in the order of their published tables."""
EMOTION_INDEX: dict[str, int] = {label: index for index, label in enumerate(EMOTIONS)}
EMOTION_SETS: dict[str, tuple[str, ...]] = {"all": EMOTIONS, "ekman": EKMAN}
"""What a selector may choose from, by the name of the setting's value."""
