"""HTTP, apart from what the messages say: bodies within bounds, proxies, pauses asked for."""

from __future__ import annotations

import math
import urllib.request
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp

from emodistill.llm.providers import is_loopback
from emodistill.llm.replies import FaultError

MAX_ANSWER_BYTES = 4 << 20
"""Far above the longest chain of thought with its log-probs."""


class HttpAnswer(NamedTuple):
    """Whatever came back."""

    status: int
    headers: Mapping[str, str]
    content: bytes


async def post(
    session: aiohttp.ClientSession, url: str, data: bytes, headers: Mapping[str, str]
) -> HttpAnswer:
    """The answer to a body, unpacked; empty where only the status could be read.

    Raises:
      FaultError: there is none.
    """
    status = 0
    try:
        async with session.post(url, data=data, headers=headers, allow_redirects=False) as response:
            status = response.status
            try:
                content = await read_body(response)
            except (FaultError, aiohttp.ClientPayloadError):
                if status == 200:
                    raise
                content = b""  # the status says what is wrong
        return HttpAnswer(status, response.headers, content)
    except aiohttp.ConnectionTimeoutError:
        fault = FaultError("unreachable", "no connection in time")
    except TimeoutError:
        fault = FaultError("silent", f"no answer within {session.timeout.total:g} s")
    except (aiohttp.ClientConnectorError, aiohttp.ClientOSError) as error:
        reason = str(error.strerror or type(error).__name__)
        fault = FaultError("unreachable", f"no connection ({reason})")
    except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
        fault = FaultError("cut", "the connection broke off before the answer was complete")
    except aiohttp.ClientError as error:
        fault = FaultError("cut", f"no valid HTTP answer ({type(error).__name__})")
    except FaultError as error:
        fault = error
    fault.is_within_200 = status == 200
    raise fault


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
