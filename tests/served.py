"""Servers of `emodistill.serving` for tests, in a thread of this process, and what they serve.

with served(ServeConfig(port=0)) as server:
    status, answer = server.post("/chat/completions", {…})
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from emodistill.configs import ServeConfig
from emodistill.model import Qwen2, add_lora, load_qwen2, save_adapter
from emodistill.model.lora import LoRAParam, target_layers
from emodistill.negotiation.states import feature_names
from emodistill.seeding import jax_key, stream
from emodistill.serving.server import serving
from emodistill.train.selector_files import HEADS, SelectorNetworks, save_selector


class RunningServer:
    """A server's address, and requests to it."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url, self.key = url, key

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    @property
    def headers(self) -> dict[str, str]:
        key = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        return {"Content-Type": "application/json"} | key

    def ask(self, url: str, body: Any = None, headers: Any = None) -> tuple[int, Any, Any]:
        """(status, headers, body as bytes) of a GET, or of a POST where there is a body."""
        data = None if body is None else body
        if not isinstance(data, bytes | None):
            data = json.dumps(data).encode()
        request = urllib.request.Request(url, data, self.headers if headers is None else headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """(status, JSON or text) of a POST below /v1."""
        status, headers, content = self.ask(self.url + path, body)
        is_json = headers.get_content_type() == "application/json"
        return status, json.loads(content) if is_json else content.decode()

    def chat(self, **body: Any) -> Any:
        """The answer to a chat completion."""
        status, answer = self.post("/chat/completions", body)
        assert status == 200, answer
        return answer

    def text(self, **body: Any) -> str:
        """What is said in it."""
        return self.chat(**body)["choices"][0]["message"]["content"]

    def events(self, **body: Any) -> list[Any]:
        """The chunks of a streamed answer."""
        body = {"stream": True} | body
        status, headers, content = self.ask(f"{self.url}/chat/completions", body)
        assert status == 200, content
        assert headers.get_content_type() == "text/event-stream"
        *chunks, done, rest = content.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]

    def metric(self, name: str) -> float:
        """A metric by its name with its labels."""
        text = self.ask(f"{self.root}/metrics")[2].decode()
        (line,) = [line for line in text.splitlines() if line.rpartition(" ")[0] == name]
        return float(line.rpartition(" ")[2])


@contextlib.contextmanager
def served(config: ServeConfig, key: str | None = None) -> Iterator[RunningServer]:
    """Serve for the length of the block."""
    started: list[Any] = []
    is_started, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        async with serving(config) as (url, _):
            started.append(url)
            is_started.set()
            await asyncio.to_thread(stop.wait)

    def work() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # raised where the server is waited for
            started.append(error)
            is_started.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        is_started.wait()
        if isinstance(started[0], BaseException):
            raise started[0]
        yield RunningServer(started[0], key)
    finally:
        stop.set()
        thread.join()


def make_adapter(checkpoint: Path, folder: Path, *, seed: int, size: float = 0.05) -> None:
    """An adapter with random values, as training might leave it; of the form that it trains, so
    that engines find their programs."""
    model: Qwen2 = load_qwen2(checkpoint, dtype=jnp.float32)
    add_lora(model, rank=16, alpha=32, rng=jax_key(seed, "served"))
    rng = stream(seed, "served-b")
    for layer in target_layers(model).values():
        if layer.lora is not None:
            b = size * rng.standard_normal(layer.lora.b.shape)
            layer.lora.b = LoRAParam(jnp.asarray(b, jnp.float32))
    save_adapter(model, folder, "served-base")


def make_selector(folder: Path) -> None:
    """A selector with random networks that prefers some emotion in each state."""
    rng, networks = stream(0, "served-selector"), {}
    for name, outputs in HEADS.items():
        sizes = [len(feature_names()), 8, outputs]
        networks[name] = tuple(
            (3 * rng.normal(size=shape).astype(np.float32), np.zeros(shape[1], np.float32))
            for shape in itertools.pairwise(sizes)
        )
    made = SelectorNetworks(**networks, state="geometry", advantage_scale=1.0, settings={})
    save_selector(folder, made)


def make_served_run(run: Path, checkpoint: Path) -> None:
    """A run of CRAD with what serving reads of one: adapters of two stages, and a selector."""
    for seed, cell in enumerate(("sft/default", "jpo/default", "jpo/kappa=0.5-e21b")):
        make_adapter(checkpoint, run / "crad" / cell / "adapter", seed=seed)
    make_selector(run / "crad/iql/default")
