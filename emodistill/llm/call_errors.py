"""How a call ends that gets no answer, in the words that a user sees."""

from __future__ import annotations

from emodistill.errors import ApiError, EmodistillError
from emodistill.llm.replies import FaultError

FINAL_KINDS = ("refused", "filtered", "forbidden", "misplaced", "thinking")
"""Faults after which the same call is not tried again."""

_ADVICE = {
    "unreachable": "Check that the server runs and that the base URL is right.",
    "foreign": (
        "A web page answers there, no API: check the base URL, which usually ends in /v1, and "
        "whether a proxy or a login page is in between."
    ),
    "alien": (
        "Something answers there, but not as an OpenAI-compatible API: check the base URL, "
        "which usually ends in /v1."
    ),
    "cut": "Check the network or proxy between here and there, then start again.",
    "silent": "Lower --concurrency, or give the server more time.",
    "limited": (
        "Lower --concurrency, or add keys (of one account separated by commas, accounts by "
        "semicolons)."
    ),
    "broken": "The server is in trouble; start again later, finished work is kept.",
    "forbidden": "Check that the account and its keys may use this model.",
    "misplaced": "Check the model's name and the base URL, which usually ends in /v1.",
    "thinking": (
        "Switch its thinking off in a file that EMODISTILL_PROVIDERS names, by thinking_off in a "
        "profile of the model: { enable_thinking = false } (DashScope), { reasoning_effort = "
        '"none" } (OpenAI, Ollama, LM Studio), { thinking = { type = "disabled" } } (DeepSeek), '
        "{ chat_template_kwargs = { enable_thinking = false } } (vLLM, SGLang). Or give it room, "
        "which is billed: thinking_tokens there, or --max-reply-tokens, --judge-max-tokens and "
        "--reader-max-tokens."
    ),
}


class RefusedError(ApiError):
    """The server refused this request for good (a 400); other requests may well pass."""

    def __init__(self, message: str, status: int = 0) -> None:  # 0 until it is unpickled
        super().__init__(message)
        self.status = status


class CeilingError(EmodistillError):
    """The money that may be spent is spent; nothing was asked."""


class ExhaustedError(ApiError):
    """All attempts at this request met trouble; later ones may pass."""


def final_error(fault: FaultError, *, url: str, model: str, has_answered: bool) -> ApiError:
    """What the last fault of a call means to the user.

    Args:
      has_answered: whether the model has given answers that could be used.
    """
    is_refused = fault.kind in ("refused", "filtered")
    if is_refused or (fault.kind in ("forbidden", "thinking") and has_answered):
        advice = f". {_ADVICE['thinking']}" if fault.kind == "thinking" else ""
        message = f"{url} refused a request to {model}: {fault.detail}{advice}"
        return RefusedError(message, fault.status)
    tried = f" after {fault.attempt} attempts" if fault.attempt > 1 else ""
    message = (
        f"{url} gave no usable answer for model {model}{tried}: {fault.detail}. "
        f"{_ADVICE[fault.kind]}"
    )
    is_alien = fault.kind in ("alien", "foreign") and not has_answered
    if is_alien or fault.kind in ("forbidden", "misplaced", "unreachable", "thinking"):
        return ApiError(message)
    return ExhaustedError(message)


def recorded_error(message: str, status: int | None) -> ApiError:
    """The error of a recorded call; it has a status where the server has refused it."""
    return ExhaustedError(message) if status is None else RefusedError(message, status)
