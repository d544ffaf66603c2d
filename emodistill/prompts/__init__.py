"""Prompt packs and how records become chat messages."""

from emodistill.prompts.render import (
    Message,
    PromptPack,
    counterparty_messages,
    dialogue_judge_messages,
    focal_messages,
    load_pack,
    turn_judge_messages,
)

__all__ = [
    "Message",
    "PromptPack",
    "counterparty_messages",
    "dialogue_judge_messages",
    "focal_messages",
    "load_pack",
    "turn_judge_messages",
]
