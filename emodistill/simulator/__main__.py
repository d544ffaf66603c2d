"""A simulator that belongs to the process that started it and ends with it."""

import asyncio
import sys

from emodistill.simulator.server import serving


async def serve_until_stdin_closes() -> None:
    """The other end of the standard input closes however the process that holds it ends."""
    async with serving("127.0.0.1", 0) as url:
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(serve_until_stdin_closes())
