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
EMOTION_INDEX: dict[str, int] = {label: index for index, label in enumerate(EMOTIONS)}
