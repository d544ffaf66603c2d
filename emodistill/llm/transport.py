"""HTTP, apart from what the messages say: bodies within bounds, proxies, pauses asked for."""

from __future__ import annotations

import math
import urllib.request
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import aiohttp

from emodistill.llm.providers import is_loopback
from emodistill.llm.replies import FaultError

MAX_ANSWER_BYTES = 4 << 20
"""Far above the longest chain of thought with its log-probs."""


async def read_body(response: aiohttp.ClientResponse) -> bytes:
    """The body of an answer, unpacked.

    Raises:
      FaultError: it is longer than MAX_ANSWER_BYTES, or packed so that it can't be read.
    """
    is_packed = response.headers.get("Content-Encoding", "identity").lower() != "identity"
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, as its header says
    content = bytearray()
    async for chunk in response.content.iter_any():
        try:
            room = MAX_ANSWER_BYTES + 1 - len(content)
            content += unpacker.decompress(chunk, room) if is_packed else chunk
        except zlib.error as error:
            raise FaultError("cut", f"a packed body that can't be read ({error})") from None
        if len(content) > MAX_ANSWER_BYTES:
            raise FaultError("cut", f"an answer of more than {MAX_ANSWER_BYTES:,} bytes")
    return bytes(content)


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for an address; none for one on this machine."""
    parts = urlsplit(url)
    if is_loopback(url) or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The pause that a server asks for, in seconds: `Retry-After` as number or HTTP date,
    or `retry-after-ms`; None where it asks for none that can be read."""
    for name, scale in (("retry-after-ms", 1e-3), ("Retry-After", 1.0)):
        try:
            pause_s = scale * float(headers.get(name, ""))
        except ValueError:
            continue
        if math.isfinite(pause_s):
            return max(0.0, pause_s)
    try:
        moment = parsedate_to_datetime(headers.get("Retry-After", ""))
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
