"""A simulator that belongs to the process that started it and ends with it."""

import asyncio

from emodistill.simulator.server import serve

if __name__ == "__main__":
    asyncio.run(
        serve("127.0.0.1", 0, ready=lambda url: print(url, flush=True), until_stdin_closes=True)
    )
