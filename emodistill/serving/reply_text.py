"""Tokens to text as they come, so that what is streamed adds up to what would be sent whole.

A character may be spread over tokens, and a stop text over characters: what can't be told yet is
held back.
"""

from __future__ import annotations

import codecs
import functools
import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from emodistill.model import stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from emodistill.model import TokenLogprobs

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class ChosenToken(NamedTuple):
    """A token of a reply; log-probs are at temperature 1."""

    content: bytes
    logprob: float
    likeliest: Sequence[tuple[bytes, float]] = ()
    """The likeliest tokens in its place, where they are wanted."""


class ReplyPiece(NamedTuple):
    """What has come of a reply since the piece before."""

    text: str
    tokens: Sequence[ChosenToken]
    """Empty where nobody wants their log-probabilities."""


class TokenTexts:
    """The bytes that each token of a tokenizer stands for."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.stops = frozenset(stop_ids(tokenizer))
        self._control = self.stops | {*tokenizer.added_tokens_decoder}
        decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
        self.is_byte_level = "ByteLevel" in json.dumps(decoder)
        """If not, a space is a character of the token, and the first one of a text is left out."""
        self._bytes: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """Nothing for control tokens, which are no text."""
        if token in self._control:
            return b""
        if token not in self._bytes:
            self._bytes[token] = self._look_up(token)
        return self._bytes[token]

    def name_of(self, token: int) -> bytes:
        """Its bytes, or what a control token is called."""
        if content := self.bytes_of(token):
            return content
        name: Any = self._tokenizer.convert_ids_to_tokens(token)
        return str(name or "").encode()

    def _look_up(self, token: int) -> bytes:
        name: Any = self._tokenizer.convert_ids_to_tokens(token)
        if name is None:  # more logits than tokens, as Qwen's checkpoints have
            return b""
        if self.is_byte_level:
            table = _byte_table()
            return bytes(table[char] for char in name if char in table)
        if byte := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(byte[1], 16)])
        return name.replace("▁", " ").encode()


class ReplyReader:
    """Reads one reply, token by token, up to the first of `stops`."""

    def __init__(self, texts: TokenTexts, stops: Sequence[str] = ()) -> None:
        self._texts = texts
        self._stops = stops
        self._held_back = max(map(len, stops), default=1) - 1
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._num_shown = 0
        self._unshown: list[tuple[int, ChosenToken]] = []
        self._is_at_start = not texts.is_byte_level
        self.num_tokens = 0
        """Tokens up to the stop, the control token that ended the reply among them."""
        self.is_stopped = False

    def read(self, ids: Iterable[int], logprobs: Iterable[TokenLogprobs] | None) -> ReplyPiece:
        """The text that is certain after some more tokens."""
        known = None if logprobs is None else iter(logprobs)
        for token in ids:
            if self.is_stopped:
                break
            self.num_tokens += 1
            scored = None if known is None else next(known)
            content = self._texts.bytes_of(token)
            if not content:
                continue
            start = len(self._text)
            if scored is not None:
                likeliest = [(self._texts.name_of(i), logp) for i, logp in scored.likeliest]
                self._unshown.append((start, ChosenToken(content, scored.chosen, likeliest)))
            if self._is_at_start:
                content, self._is_at_start = content.removeprefix(b" "), False
            self._text += self._decoder.decode(content)
            self._find_stop(start)
        return self._shown(len(self._text) - (0 if self.is_stopped else self._held_back))

    def finish(self) -> ReplyPiece:
        """The rest, after the last token."""
        if not self.is_stopped:
            start = len(self._text)
            self._text += self._decoder.decode(b"", final=True)
            self._find_stop(start)
        piece = self._shown(len(self._text))
        if self.is_stopped:
            return piece
        rest = [token for _, token in self._unshown]
        self._unshown.clear()
        return ReplyPiece(piece.text, [*piece.tokens, *rest])

    def _find_stop(self, start: int) -> None:
        begin = max(0, start - self._held_back)
        found = [self._text.find(stop, begin) for stop in self._stops]
        places = [place for place in found if place >= 0]
        if places:
            self._text = self._text[: min(places)]
            self.is_stopped = True

    def _shown(self, end: int) -> ReplyPiece:
        end = max(end, self._num_shown)
        text, self._num_shown = self._text[self._num_shown : end], end
        tokens = [token for start, token in self._unshown if start < end]
        self._unshown = [(start, token) for start, token in self._unshown if start >= end]
        return ReplyPiece(text, tokens)


@functools.cache
def _byte_table() -> dict[str, int]:
    """Character -> byte, as byte-level tokenizers write the bytes that can't be printed."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): b for i, b in enumerate(rest)}
