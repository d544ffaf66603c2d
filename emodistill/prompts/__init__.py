"""Prompt packs and how records become chat messages."""

from emodistill.prompts.packs import PromptPack, load_pack
from emodistill.prompts.render import (
    Message,
    counterparty_messages,
    dialogue_judge_messages,
    focal_messages,
    hearing_messages,
    hearing_prompt_sha256,
    reading_messages,
    reading_prompt_sha256,
    turn_judge_messages,
)

__all__ = [
    "Message",
    "PromptPack",
    "counterparty_messages",
    "dialogue_judge_messages",
    "focal_messages",
    "hearing_messages",
    "hearing_prompt_sha256",
    "load_pack",
    "reading_messages",
    "reading_prompt_sha256",
    "turn_judge_messages",
]
