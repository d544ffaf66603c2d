"""What a server's errors mean for a call, and what of its words may be shown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from emodistill.llm.replies import FaultError, Reply, ServerError, kind_of, read_reply, server_error
from emodistill.llm.transport import HttpAnswer, retry_after_s
from emodistill.untrusted import parse_json, printable

MAX_REST_S = 900.0
"""The longest rest that a key is kept for; one that is told to rest for longer is out."""
NUM_DETAIL_CHARS = 200
"""Of a server's own words in an error: a line or two of a terminal."""


class FaultReader:
    """Reads answers that are none.

    Args:
      dead_codes: codes of errors that mean an account without money.
      scrub: takes keys out of a text.
    """

    def __init__(self, dead_codes: Collection[str], scrub: Callable[[str], str]) -> None:
        self._dead_codes = dead_codes
        self._scrub = scrub

    def reply(self, answer: HttpAnswer) -> Reply:
        """The reply in an answer; an error inside an HTTP 200 is taken as if HTTP had said so.

        Raises:
          FaultError: there is no reply.
        """
        status, headers, content = answer
        if status != 200:
            try:
                error = server_error(parse_json(content))
            except ValueError:
                error = None
            raise self._stated(status, error, content, headers)
        content_type = headers.get("Content-Type", "")
        if "json" not in content_type.lower():
            kind = "foreign" if "html" in content_type.lower() else "alien"
            wrong = f"content type {content_type[:60]!r} instead of JSON"
            raise FaultError(kind, wrong, is_within_200=True)
        try:
            return read_reply(content)
        except FaultError as fault:
            told = fault
        if (error := told.stated) is not None:
            told = self._stated(error.status or 500, error, content, headers)
            told.detail = f"HTTP 200 with an error in it: {self._words(error, content)}"
            told.stated = error
        elif told.kind == "alien":
            told.detail += f": {self._words(None, content)}"
        told.is_within_200 = True
        raise told

    def shown(self, text: str) -> str:
        """A server's words as they may be shown: in a line, printable, without any key, one with
        its middle blotted out included, as OpenAI's own messages quote it."""
        words = self._scrub(printable(text)).split()
        return " ".join("…" if "***" in word else word for word in words)

    def quoted(self, text: str) -> str:
        """As `shown`, cut where there are many words."""
        words = self.shown(text)
        return words if len(words) <= NUM_DETAIL_CHARS else words[:NUM_DETAIL_CHARS] + "…"

    def _stated(
        self, status: int, error: ServerError | None, content: bytes, headers: Mapping[str, str]
    ) -> FaultError:
        detail = f"HTTP {status}"
        if words := self._words(error, content):
            detail += f": {words}"
        is_dead = error is not None and error.code in self._dead_codes
        kind = "dead" if is_dead else kind_of(status)
        pause_s = retry_after_s(headers)
        if status == 402 and pause_s is not None and not is_dead:
            kind = "limited"  # what is in flight might cost more than there is
        if kind not in ("limited", "broken"):
            pause_s = None
        if pause_s is not None and pause_s > MAX_REST_S:
            detail += f" (asks for a rest of {pause_s / 3600:,.1f} hours)"
            kind, pause_s = "dead", None
        return FaultError(kind, detail, status, pause_s)

    def _words(self, error: ServerError | None, content: bytes) -> str:
        """What the server says, in short."""
        stated = content[:4_000].decode("utf-8", "replace") if error is None else error.message
        return self.quoted(stated[:4_000])
