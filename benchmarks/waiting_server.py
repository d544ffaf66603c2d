"""An OpenAI-compatible server that answers every request after a fixed time, in its own process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection

from emodistill.simulator.server import completion

_BODY = json.dumps(completion("m", "I can go to 40 days.", "stop", prompt_tokens=120)).encode()
_RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BODY)
) + _BODY
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


@contextlib.contextmanager
def waiting_server(latency_s: float) -> Iterator[str]:
    """The base URL of a server that runs until the block ends, or its parent process does."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(latency_s, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.close()
        process.join()


def _serve(latency_s: float, pipe: Connection) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer each request of a connection `latency_s` after its last byte.

        There is no framework, so that the server's own work stays small beside the clients'.
        """
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                length = _LENGTH.search(await reader.readuntil(b"\r\n\r\n"))
                await reader.readexactly(int(length[1]) if length else 0)
                await asyncio.sleep(latency_s)
                writer.write(_RESPONSE)

    async def serve() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=2048)
        pipe.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        await asyncio.to_thread(pipe.poll, None)  # returns once the other end is closed

    asyncio.run(serve())
