"""Two servers with prices and keys of their own, as providers `one` and `two`, for tests."""

import asyncio
import contextlib
import threading

from chat_server import ChatServer, fault, negotiate, ok

KEYS = {"one": "sk-secret-of-one-1111", "two": "sk-secret-of-two-2222"}


def is_check(call):
    """Whether a call is that by which a model shows that it is there."""
    return call.body["messages"][0]["content"].startswith("Reply with the one word")


@contextlib.contextmanager
def serving(*responders):
    """Servers in a thread of their own, for the length of the block."""
    started, stop = threading.Event(), None
    servers = [ChatServer(respond) for respond in responders]
    loops = []

    async def main():
        nonlocal stop
        stop = asyncio.Event()
        loops.append(asyncio.get_running_loop())
        async with contextlib.AsyncExitStack() as stack:
            for server in servers:
                await stack.enter_async_context(server)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    started.wait(10)
    try:
        yield servers
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()


def playing(name, prompt_tokens=10, completion_tokens=5):
    """A server that plays either role and scores, and wants its own key."""

    async def respond(call):
        if call.key != KEYS[name]:
            return fault(401, "not my key")
        if is_check(call):
            return ok("OK", prompt_tokens, completion_tokens)
        model = call.body["model"].partition("/")[2] or call.body["model"]
        if "judge" in model:
            return ok("SCORE: 7\nFirm.", prompt_tokens, completion_tokens)
        body = call.body | {"model": "echo-focal" if "focal" in model else "echo-counterparty"}
        return ok(negotiate(body), prompt_tokens, completion_tokens)

    return respond


@contextlib.contextmanager
def two_servers(tmp_path, monkeypatch):
    """By name; a dollar for a thousand tokens at `one`, three at `two`."""
    with serving(playing("one"), playing("two")) as servers:
        text = "".join(
            f'[{name}]\nbase_url = "{server.base_url}"\nkey_env = "{name.upper()}_KEY"\n'
            f'profiles."*" = {{ price = {{ input = {price}, output = {price} }} }}\n'
            for name, server, price in zip(KEYS, servers, (1000, 3000), strict=True)
        )
        (tmp_path / "providers.toml").write_text(text)
        monkeypatch.setenv("EMODISTILL_PROVIDERS", str(tmp_path / "providers.toml"))
        for name, key in KEYS.items():
            monkeypatch.setenv(f"{name.upper()}_KEY", key)
        yield dict(zip(KEYS, servers, strict=True))
