"""The body of a chat completion: what is read of it, and what is refused.

Fields that nobody here knows are ignored, as OpenAI's own server does. Those that would change the
answer and can't be followed, such as tools or penalties, are refused unless they say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from emodistill.model import MAX_LOGPROBS
from emodistill.records import Role
from emodistill.serving.refusals import ChatRefusedError
from emodistill.untrusted import brief, parse_json, shown

MAX_MESSAGES = 1024
MAX_STOPS, MAX_STOP_CHARS = 16, 256
_NOTHING = (None, [], {}, "none", "auto")
_UNFOLLOWED: Mapping[str, Sequence[Any]] = {
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "top_k": (0, -1),
    "logit_bias": (),
    "tools": (),
    "tool_choice": (),
    "functions": (),
    "function_call": (),
    "use_beam_search": (False,),
    "echo": (False,),
    "audio": (),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "guided_json": (),
    "guided_regex": (),
    "structured_outputs": (),
    "continue_final_message": (False,),
}
"""Fields that would change the answer -> values with which they don't, beside _NOTHING."""
_WHERE = re.compile(r" - at `\$\.?([^`]*)`$")

_Count = Annotated[int, msgspec.Meta(ge=1)]


class _Part(msgspec.Struct):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class _Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]
    emotion: str | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Setting(msgspec.Struct, forbid_unknown_fields=True):
    """What a negotiator has to know beside the utterances.

    Attributes:
      scenario: as a line of scenarios.jsonl.
      role: which side the negotiator plays.
    """

    scenario: dict[str, Any]
    role: Role = "focal"


class _Body(msgspec.Struct):
    model: str
    messages: list[_Message]
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    emodistill: Setting | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenMessage:
    """A message; `emotion` is what an earlier answer said of itself."""

    role: Literal["system", "user", "assistant"]
    content: str
    emotion: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A chat completion that is asked for; None where the request leaves the choice to us."""

    model: str
    messages: tuple[GivenMessage, ...]
    temperature: float | None = None
    top_p: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None
    stops: tuple[str, ...] = ()
    is_streamed: bool = False
    includes_usage: bool = False
    num_logprobs: int | None = None
    """None for no log-probs, 0 for those of the reply's tokens, more for the likeliest ones too."""
    setting: Setting | None = None


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
      ChatRefusedError: it is none, or beyond the bounds of `untrusted`.
    """
    try:
        value = parse_json(body)
    except ValueError as error:
        raise ChatRefusedError(f"the body is no JSON that is read here: {brief(error)}.") from None
    if not isinstance(value, dict):
        raise ChatRefusedError("the body must be a JSON object.")
    return value


def converted(value: object, kind: Any, within: str = "") -> Any:
    """A JSON value as `kind`, or a refusal that names the field.

    Args:
      within: the field that holds the value.
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, UnicodeError) as error:
        text = str(error)
        found = _WHERE.search(text)
        param = ".".join(filter(None, (within, found[1] if found else "")))
        reason = brief(_WHERE.sub("", text))
        raise ChatRefusedError(
            f"{brief(param) or 'the body'}: {reason}.", param=param[:100]
        ) from None


def parse_chat(body: bytes) -> ChatRequest:
    """The request that a body holds.

    Raises:
      ChatRefusedError: a field is missing, of the wrong type or out of range, or asks for what
        is not done here.
    """
    given = parse_object(body)
    for name, neutral in _UNFOLLOWED.items():
        value = given.get(name)
        if value not in _NOTHING and value not in neutral:
            raise ChatRefusedError(
                f"{name}={shown(value)} is not done here; leave it out.",
                param=name,
                code="unsupported_value",
            )
    read: _Body = converted(given, _Body)
    if len(read.messages) > MAX_MESSAGES:
        raise ChatRefusedError(
            f"messages holds {len(read.messages)}; {MAX_MESSAGES} are read at most.",
            param="messages",
        )
    stops = [read.stop] if isinstance(read.stop, str) else read.stop or []
    if len(stops) > MAX_STOPS or not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise ChatRefusedError(
            f"stop must hold at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters.",
            param="stop",
        )
    options = read.stream_options
    if options is not None and not read.stream:
        raise ChatRefusedError("stream_options goes with stream=true.", param="stream_options")
    if read.top_logprobs is not None and not read.logprobs:
        raise ChatRefusedError("top_logprobs goes with logprobs=true.", param="top_logprobs")
    limits = [n for n in (read.max_completion_tokens, read.max_tokens) if n is not None]
    return ChatRequest(
        model=read.model,
        messages=tuple(_message(message) for message in read.messages),
        temperature=read.temperature,
        top_p=1.0 if read.top_p is None else read.top_p,
        max_tokens=min(limits, default=None),
        seed=read.seed,
        stops=tuple(stops),
        is_streamed=bool(read.stream),
        includes_usage=bool(options and options.include_usage),
        num_logprobs=(read.top_logprobs or 0) if read.logprobs else None,
        setting=read.emodistill,
    )


def _message(given: _Message) -> GivenMessage:
    parts = given.content
    text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
    role = "system" if given.role == "developer" else given.role
    return GivenMessage(role=role, content=text, emotion=given.emotion)
