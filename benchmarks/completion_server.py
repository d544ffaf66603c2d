"""A server of the benchmark `generate` that continues token ids, as llama.cpp's does.

Start it on the checkpoint that is meant, with as many slots as there are dialogues:

    llama-server -m SmolLM2-135M-Instruct.Q4_1.gguf -np 20 -c 24000 --port 8080
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import aiohttp

from benchmarks.workload import Turn
from emodistill.errors import InputError


def seconds_on_server(url: str, dialogues: Sequence[Sequence[Turn]]) -> float:
    """Seconds until a server has played all dialogues; each goes on as soon as its reply is there.

    Raises:
      InputError: nobody answers, or not with as many tokens as were asked for.
    """
    start = time.perf_counter()
    try:
        asyncio.run(_play(url.rstrip("/"), dialogues))
    except aiohttp.ClientError as error:
        raise InputError(f"--server-url {url}: {error or type(error).__name__}.") from None
    return time.perf_counter() - start


async def _play(url: str, dialogues: Sequence[Sequence[Turn]]) -> None:
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def play(turns: Sequence[Turn]) -> None:
            for prompt, length in turns:
                body: dict[str, Any] = {
                    "prompt": prompt.tolist(),
                    "n_predict": length,
                    "temperature": 0,
                    "ignore_eos": True,  # replies have the lengths that the workload gives
                    "cache_prompt": True,
                }
                async with session.post(f"{url}/completion", json=body) as response:
                    answer = await response.json(content_type=None)
                if response.status != 200 or answer.get("tokens_predicted") != length:
                    raise InputError(
                        f"--server-url {url}: HTTP {response.status} to a request for {length} "
                        f"tokens: {str(answer)[:200]}. It must be a llama.cpp server whose slots "
                        f"have room for {len(prompt) + length} tokens."
                    )

        await asyncio.gather(*(play(turns) for turns in dialogues))
