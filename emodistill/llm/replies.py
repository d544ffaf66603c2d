"""What a server's answer says: the body of a chat completion, read by allow-list.

A model's thoughts are no speech: whatever a server leaves of them in the content is cut off here,
before anything reads the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from emodistill.llm.token_scores import ScoredPosition, read_token_scores
from emodistill.untrusted import count, parse_json, printable

FinishReason = Literal["stop", "length"]
"""Whether an answer is whole, or was cut at a limit of its length."""

CUT = ("length", "max_tokens", "max_length", "model_length")
"""Finish reasons of answers that ran into their limit, by the words of several providers."""
FILTERED = (
    *("content_filter", "safety", "sensitive", "recitation", "blocklist", "prohibited_content"),
    *("spii", "refusal"),
)
"""Those of answers that a filter withholds."""
BROKEN = ("error", "abort", "insufficient_system_resource")
"""Those of answers that the server has given up; every other one, and none, is an answer's own
end."""

KIND_OF_STATUS = {
    401: "dead",
    402: "dead",
    403: "forbidden",
    404: "misplaced",
    405: "misplaced",
    408: "broken",
    429: "limited",
    498: "broken",  # Groq's flex tier has no room
}
"""What goes wrong, by HTTP status; all others go by their first digit."""
STATUS_OF_CODE = {
    **dict.fromkeys(("invalid_request_error", "context_length_exceeded", "content_filter"), 400),
    "data_inspection_failed": 400,
    **dict.fromkeys(("invalid_api_key", "authentication_error"), 401),
    **dict.fromkeys(("insufficient_quota", "insufficient_balance", "billing_error"), 402),
    "permission_error": 403,
    **dict.fromkeys(("model_not_found", "not_found_error"), 404),
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error"), 429),
    **dict.fromkeys(("api_error", "server_error"), 500),
    "overloaded_error": 503,
}
"""For errors that come without a status of their own, inside an HTTP 200."""
MAX_TOKENS = 10_000_000
"""More than any model takes in or gives; what a server states beyond it is no count of tokens."""

MAX_USD = 100.0
"""No call costs more; what a server states beyond it is no bill."""

_NAMES = (
    r"(?:\w{1,20}[:_])?(?:think|thinking|thoughts?|reason|reasoning|analysis|reflection|scratchpad)"
)
_MARKS = re.compile(
    rf"(?i)(?P<opening><{_NAMES}(?:\s[^<>]{{0,60}})?>|\[THINK\]|<\|begin_of_thought\|>|◁think▷"
    r"|<\|START_THINKING\|>|<\|channel\|>(?:analysis|commentary)[^<]{0,60}<\|message\|>)"
    rf"|</{_NAMES}\s{{0,9}}>|\[/THINK\]|<\|end_of_thought\|>|◁/think▷|<\|END_THINKING\|>"
    r"|<\|channel\|>final<\|message\|>"
)
_ANSWER_MARKS = re.compile(
    r"(?i)</?(?:answer|response)>|<\|(?:begin|end)_of_solution\|>|<\|(?:START|END)_RESPONSE\|>"
)
"""What some models put around what they say aloud."""


class ServerError(NamedTuple):
    """An error that a server states in the body: a status, where there is one, code and words."""

    status: int
    code: str
    message: str


class StatedUsage(NamedTuple):
    """What a server states of the tokens of a call; None where it states nothing usable."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """Thoughts included."""
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = None


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
    """The error that the body of an HTTP 200 states."""
    usage: StatedUsage = StatedUsage()
    """What that body states of tokens."""
    is_within_200: bool = False
    """Whether an HTTP 200 had begun."""

    @property
    def is_of_limits(self) -> bool:
        """Whether the server asks for fewer calls, or for none for a while."""
        return self.kind == "limited" or bool(self.retry_after_s)


class Reply(NamedTuple):
    """What a model said, and what its server states of the call."""

    text: str
    """Without thoughts."""
    finish_reason: FinishReason
    is_filtered: bool
    usage: StatedUsage
    num_written: int
    """Characters of all that the model wrote, its thoughts included."""
    is_thinking: bool
    """Whether thoughts were cut off the text."""
    is_in_parts: bool
    """Whether the content came as a list of parts."""
    is_only_thought: bool
    """Whether something was written, and none of it was said."""
    scores: tuple[ScoredPosition, ...] = ()
    """Log-probs of its tokens, thoughts included, where the server states them."""


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
      FaultError: there is none; with what the body states of an error and of tokens.
    """
    try:
        answer = parse_json(content)
    except ValueError as error:
        detail = f"broken JSON, {len(content)} bytes ({printable(str(error))})"
        raise FaultError("cut", detail) from None
    usage = _stated_usage(answer)
    try:
        return _reply(answer, usage)
    except FaultError as fault:
        fault.usage = usage
        raise


def _reply(answer: Any, usage: StatedUsage) -> Reply:
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
    text = _ANSWER_MARKS.sub("", spoken(written))
    num_written = sum(_num_chars(part) for name, part in message.items() if name != "role")
    is_empty = num_written == usage.reasoning_tokens == 0
    if is_empty and reason not in CUT and usage.completion_tokens is None:
        usage = usage._replace(completion_tokens=0)
    return Reply(
        text=printable(text),
        finish_reason="length" if reason in CUT else "stop",
        is_filtered=reason in FILTERED or (not text.strip() and bool(message.get("refusal"))),
        usage=usage,
        num_written=num_written,
        is_thinking=spoken(written) != written,
        is_in_parts=isinstance(message.get("content"), list),
        is_only_thought=not text.strip() and (num_written > 0 or usage.reasoning_tokens > 0),
        scores=read_token_scores(choice),
    )


def server_error(value: Any) -> ServerError | None:
    """What a JSON value states under `error`: an object, or words; None where it states none."""
    error = value.get("error") if isinstance(value, dict) else None
    if not error:
        return None
    if not isinstance(error, dict):
        return ServerError(0, "", str(error))
    names = [str(error[name]) for name in ("code", "type", "status") if error.get(name)]
    known = [int(n) if n.isdecimal() and len(n) == 3 else STATUS_OF_CODE.get(n, 0) for n in names]
    code = names[0] if names else ""
    return ServerError(next(filter(None, known), 0), code, str(error.get("message") or code))


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


def _num_chars(part: Any) -> int:
    """Characters of all texts in a part of a message, its thoughts included."""
    if isinstance(part, str):
        return len(part)
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return sum(map(_num_chars, parts))


def _stated_usage(answer: Any) -> StatedUsage:
    """No prompt has no tokens, and what takes no tokens is not written: a zero is no figure."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    stated: Mapping[str, Any] = usage if isinstance(usage, dict) else {}
    prompt, completion, total = (
        n if n is not None and 0 < n <= MAX_TOKENS else None
        for n in map(count, map(stated.get, ("prompt_tokens", "completion_tokens", "total_tokens")))
    )
    details = stated.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    cached = count(details.get("cached_tokens"))
    cached = count(stated.get("prompt_cache_hit_tokens")) if cached is None else cached  # DeepSeek
    thoughts = stated.get("completion_tokens_details")
    reasoning = count(thoughts.get("reasoning_tokens")) if isinstance(thoughts, dict) else None
    reasoning = reasoning if reasoning is not None and reasoning <= MAX_TOKENS else 0
    # Some servers count thoughts apart from the answer, and bill them all the same. The total shows
    # it, and without one, that there are more thoughts than tokens.
    if prompt and total and total > prompt + (completion or 0):
        reasoning = max(reasoning, total - prompt - (completion or 0))
        completion = total - prompt
    elif completion and total is None and reasoning > completion:
        completion += reasoning
    cost = stated.get("cost")
    is_cost = isinstance(cost, int | float) and not isinstance(cost, bool) and 0 <= cost <= MAX_USD
    return StatedUsage(
        prompt,
        completion,
        cached or 0,
        count(details.get("cache_write_tokens")) or 0,
        reasoning,
        float(cost) if is_cost else None,
    )
