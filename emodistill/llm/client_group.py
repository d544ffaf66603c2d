"""The clients of a stage together: what they have used, how they are, and the money they share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence

from emodistill.llm.client import AnswerCache, ChatClient
from emodistill.llm.usage import Purse, Usage, total_usage


class ClientGroup:
    """Clients that spend out of one purse."""

    def __init__(self, clients: Iterable[ChatClient]) -> None:
        self.clients = tuple(dict.fromkeys(clients))
        self.purse = Purse(sum(client.usage.cost_usd for client in self.clients))
        for client in self.clients:
            client.purse = self.purse

    @contextlib.contextmanager
    def answered_by(self, cache: AnswerCache) -> Iterator[None]:
        """Meanwhile calls get the answers that `cache` has, and leave theirs there."""
        for client in self.clients:
            client.cache = cache
        try:
            yield
        finally:
            for client in self.clients:
                client.cache = None

    @property
    def usage(self) -> Usage:
        return total_usage(client.usage for client in self.clients)

    @property
    def health(self) -> str:
        """What a progress line should say of the APIs: trouble, calls per second, tokens so far."""
        by_server: dict[str, list[ChatClient]] = {}
        for client in self.clients:
            by_server.setdefault(client.provider.label, []).append(client)
        texts = {label: _health(clients) for label, clients in by_server.items()}
        if len(texts) == 1:
            return next(iter(texts.values()))
        return "; ".join(f"{label}: {text}" for label, text in texts.items() if text)


def _health(clients: Sequence[ChatClient]) -> str:
    parts = []
    usage = total_usage(client.usage for client in clients)
    if usage.num_retries:
        parts.append(f"{usage.num_retries:,} of {usage.num_calls:,} calls repeated")
    if cooling := sum(client.keys.num_cooling for client in clients):
        parts.append(f"{cooling} of {sum(client.keys.num_live for client in clients)} keys cooling")
    gates = [client.gate for client in clients]
    if any(gate.limit < gate.ceiling and not gate.is_ramping for gate in gates):
        parts.append(f"at most {sum(int(gate.limit) for gate in gates)} in flight")
    began_s = [client.began_s for client in clients if client.began_s is not None]
    if began_s:
        elapsed_s = max(time.monotonic() - min(began_s), 1e-3)
        parts.append(f"{usage.num_calls / elapsed_s:,.1f} calls/s")
    if num_tokens := usage.prompt_tokens + usage.completion_tokens:
        parts.append(f"{num_tokens / 1e6:.2f} M tokens")
    return ", ".join(parts)
