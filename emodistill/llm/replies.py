"""What a server's answer says: the body of a chat completion, read by allow-list.

A model's thoughts are no speech: whatever a server leaves of them in the content is cut off here,
before anything reads the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from emodistill.untrusted import count, parse_json, printable

FinishReason = Literal["stop", "length"]
"""Whether an answer is whole, or was cut at a limit of its length."""

CUT = ("length", "max_tokens", "max_length", "model_length")
FILTERED = (
    *("content_filter", "safety", "sensitive", "recitation", "blocklist", "prohibited_content"),
    *("spii", "refusal"),
)
BROKEN = ("error", "abort", "insufficient_system_resource")
"""Finish reasons of answers that are cut, withheld, and no answers at all, by the words of several
providers; every other one, and none, is an answer's own end."""

KIND_OF_STATUS = {
    401: "dead",
    402: "dead",
    403: "forbidden",
    404: "misplaced",
    405: "misplaced",
    408: "broken",
    429: "limited",
}
"""What goes wrong, by HTTP status; all others go by their first digit."""
STATUS_OF_CODE = {
    "invalid_api_key": 401,
    "insufficient_quota": 402,
    "rate_limit_exceeded": 429,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "content_filter": 400,
    "model_not_found": 404,
}
"""For errors that come without a status of their own, inside an HTTP 200."""

_NAMES = "(?:seed:)?(?:think|thinking|thoughts?|reasoning|analysis|reflection)"
_MARKS = re.compile(
    rf"(?i)(?P<opening><{_NAMES}>|\[THINK\]|<\|begin_of_thought\|>|◁think▷"
    r"|<\|channel\|>(?:analysis|commentary)[^<]{0,60}<\|message\|>)"
    rf"|</{_NAMES}>|\[/THINK\]|<\|end_of_thought\|>|◁/think▷|<\|channel\|>final<\|message\|>"
)


class ServerError(NamedTuple):
    """An error that a server states in the body: a status, where there is one, code and words."""

    status: int
    code: str
    message: str


@dataclass(eq=False)  # errors are hashed by identity
class FaultError(Exception):
    """What went wrong with an attempt at a call."""

    kind: str
    detail: str
    status: int = 0
    retry_after_s: float | None = None
    attempt: int = 0
    """Which attempt at its request it ended, from 1."""
    stated: ServerError | None = None
    """What the body of an HTTP 200 states."""


class Reply(NamedTuple):
    """What a model said, and what its server states of the call; None where it states nothing."""

    text: str
    """Without thoughts."""
    finish_reason: FinishReason
    is_filtered: bool
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int
    num_written: int
    """Characters of all that the model wrote, its thoughts included."""
    is_thinking: bool
    """Whether thoughts were cut off the text."""
    is_in_parts: bool
    """Whether the content came as a list of parts."""


def spoken(text: str) -> str:
    """What is said aloud: `text` without thoughts.

    What precedes a closing mark that nothing has opened was thought as well, since templates often
    open for the model; what nobody has closed is thought to the end.
    """
    parts: list[str] = []
    position = 0
    is_thinking = False
    for mark in _MARKS.finditer(text):
        is_opening = mark["opening"] is not None
        if not is_thinking and is_opening:
            parts.append(text[position : mark.start()])
        elif not is_thinking:
            parts.clear()
        is_thinking = is_opening
        position = mark.end()
    if not is_thinking:
        parts.append(text[position:])
    return "".join(parts)


def read_reply(content: bytes) -> Reply:
    """The model's reply in the body of an HTTP 200.

    Raises:
      FaultError: there is none; with what the body states, where it states an error.
    """
    try:
        answer = parse_json(content)
    except ValueError as error:
        detail = f"broken JSON, {len(content)} bytes ({printable(str(error))})"
        raise FaultError("cut", detail) from None
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if (error := server_error(answer) or server_error(choice)) is not None:
        raise FaultError("broken", "HTTP 200 with an error in it", stated=error)
    if isinstance(answer, dict) and "choices" in answer and not choices:
        raise FaultError("broken", "an answer without any choice")
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise FaultError("alien", "JSON without choices[0].message")
    reason = str(choice.get("finish_reason")).lower()
    if reason in BROKEN:
        raise FaultError("broken", f"an answer that broke off (finish_reason {reason!r})")
    written = _text(message.get("content"))
    text = spoken(written)
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    usage = answer.get("usage")
    stated: Mapping[str, Any] = usage if isinstance(usage, dict) else {}
    return Reply(
        text=printable(text),
        finish_reason="length" if reason in CUT else "stop",
        is_filtered=reason in FILTERED or (not text.strip() and bool(message.get("refusal"))),
        # No prompt has no tokens, and no text has none: a zero there is no figure.
        prompt_tokens=count(stated.get("prompt_tokens")) or None,
        completion_tokens=count(stated.get("completion_tokens")) or (None if written else 0),
        cached_tokens=_cached_tokens(stated),
        num_written=len(written) + (len(thoughts) if isinstance(thoughts, str) else 0),
        is_thinking=text != written,
        is_in_parts=isinstance(message.get("content"), list),
    )


def server_error(value: Any) -> ServerError | None:
    """What a JSON value states under `error`: an object, or words; None where it states none."""
    error = value.get("error") if isinstance(value, dict) else None
    if not error:
        return None
    if not isinstance(error, dict):
        return ServerError(0, "", str(error))
    code = error.get("code") or error.get("type") or ""
    named = str(code)
    status = int(named) if named.isdecimal() and len(named) == 3 else STATUS_OF_CODE.get(named, 0)
    return ServerError(status, named, str(error.get("message") or named))


def kind_of(status: int) -> str:
    """What an HTTP status means for a call, see `client`; trouble where there is none."""
    by_digit = {3: "misplaced", 4: "refused"}.get(status // 100, "broken")
    return KIND_OF_STATUS.get(status, by_digit)


def _text(content: Any) -> str:
    """The content of a message: text, or the text among its parts."""
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, str | dict)]
        texts = [
            part if isinstance(part, str) else part.get("text")
            for part in parts
            if isinstance(part, str) or part.get("type", "text") in ("text", "output_text")
        ]
        return "".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str):
        raise FaultError("alien", "JSON whose message content is no text")
    return content


def _cached_tokens(usage: Mapping[str, Any]) -> int:
    """Prompt tokens out of the provider's cache, by OpenAI's or DeepSeek's name for them."""
    details = usage.get("prompt_tokens_details")
    stated = details.get("cached_tokens") if isinstance(details, dict) else None
    stated = usage.get("prompt_cache_hit_tokens") if stated is None else stated
    return count(stated) or 0
