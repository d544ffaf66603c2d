"""What a request is refused with, in the JSON that OpenAI's clients know."""

from __future__ import annotations

from typing import Any

_TYPES = {429: "rate_limit_error", 503: "service_unavailable", 504: "timeout"}
"""By status; all others below 500 are the request's own fault."""


class ChatRefusedError(Exception):
    """A request that gets no answer, and why.

    Attributes:
      status: the HTTP status.
      param: the field that is wrong.
      code: a word for programs.
      retry_after_s: when to ask again.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        kind = _TYPES.get(self.status, usual)
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}
