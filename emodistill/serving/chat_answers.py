"""The JSON with which an OpenAI-compatible server answers, whole or in events."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emodistill import __version__
from emodistill.serving.reply_text import ChosenToken, ReplyPiece

FINGERPRINT = f"emodistill-{__version__}"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What all parts of an answer have in common.

    Attributes:
      number: the answer's id.
      emotion: of a negotiator's answer; None stands for a turn without an emotion block.
      negotiated: what a negotiator has read; None where a bare student answers.
    """

    number: str
    created: int
    model: str
    wants_logprobs: bool = False
    emotion: str | None = None
    negotiated: Mapping[str, Any] | None = field(default=None)

    def whole(self, text: str, tokens: Sequence[ChosenToken], reason: str, usage: Any) -> Any:
        """An answer in one piece."""
        choice = {
            "index": 0,
            "message": {**self._opening(), "content": text, "refusal": None},
            "logprobs": self._logprobs(tokens),
            "finish_reason": reason,
        }
        return self._named("chat.completion") | {"choices": [choice], "usage": usage}

    def first(self) -> Any:
        """The chunk that opens a stream."""
        return self._chunk({**self._opening(), "content": ""}) | self._extension()

    def next(self, piece: ReplyPiece) -> Any:
        """The chunk of a piece of text."""
        return self._chunk({"content": piece.text}, logprobs=self._logprobs(piece.tokens))

    def last(self, reason: str) -> Any:
        """The chunk that says why the reply has ended."""
        return self._chunk({}, reason=reason)

    def usage(self, usage: Any) -> Any:
        """The chunk behind it, where usage is asked for."""
        return self._named("chat.completion.chunk") | {"choices": [], "usage": usage}

    def _opening(self) -> dict[str, Any]:
        emotion = {} if self.negotiated is None else {"emotion": self.emotion}
        return {"role": "assistant"} | emotion

    def _extension(self) -> dict[str, Any]:
        return {} if self.negotiated is None else {"emodistill": self.negotiated}

    def _named(self, kind: str) -> dict[str, Any]:
        head = {"id": self.number, "object": kind, "created": self.created, "model": self.model}
        extension = self._extension() if kind == "chat.completion" else {}
        return head | {"system_fingerprint": FINGERPRINT} | extension

    def _chunk(self, delta: Any, *, logprobs: Any = None, reason: str | None = None) -> Any:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._named("chat.completion.chunk") | {"choices": [choice]}

    def _logprobs(self, tokens: Sequence[ChosenToken]) -> Any:
        if not self.wants_logprobs:
            return None
        return {"content": [_token(token) for token in tokens], "refusal": None}


def _token(token: ChosenToken) -> dict[str, Any]:
    likeliest = [_scored(*one) for one in token.likeliest]
    return _scored(token.content, token.logprob) | {"top_logprobs": likeliest}


def _scored(content: bytes, logprob: float) -> dict[str, Any]:
    text = content.decode("utf-8", errors="replace")
    return {"token": text, "logprob": logprob, "bytes": [*content]}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """What a request took."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"
