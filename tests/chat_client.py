"""A chat client against the server of `chat_server`, for tests."""

import asyncio

from chat_server import ChatServer

from emodistill.errors import ApiError
from emodistill.llm import ChatClient, Provider
from emodistill.llm.client import RetryPolicy

KEYS = ("sk-secret-one-AAAA1111", "sk-secret-two-BBBB2222", "sk-secret-three-CCCC3333")
MESSAGES = [{"role": "user", "content": "Hello?"}]
FAST = {"backoff_s": 0.01, "max_backoff_s": 0.02}


def accounts_of(keys):
    """Keys of one account, or accounts of several."""
    return [keys] if keys and isinstance(keys[0], str) else keys


def priced(input_usd, output_usd, cached_usd=None, *, model="*", **more):
    """The profiles of a provider that has a price for the models of a pattern."""
    price = {"input": input_usd, "output": output_usd, "cached": cached_usd} | more
    return ((model, {"price": price}),)


def run(respond, job, *, keys=KEYS[:1], max_in_flight=1_000, retry=None, profile=None, **provider):
    """Run `job(client, server)` against a server that answers by `respond`.

    Args:
      keys: of one account.
      retry: fields of the `RetryPolicy`; `provider` is those of the `Provider`, but for `profile`,
        what it says of all models.
    """

    async def main():
        async with ChatServer(respond) as server:
            known = (*priced(1.0, 2.0, model="m"), ("*", profile or {}))
            fields = {"key_env": "TEST_KEY", "profiles": known} | provider
            client = ChatClient(
                Provider(name="test", base_url=server.base_url, **fields),
                accounts_of(keys),
                max_in_flight=max_in_flight,
                retry=RetryPolicy(**({**FAST, "timeout_s": 5.0} | (retry or {}))),
            )
            async with client:
                return await job(client, server)

    return asyncio.run(main())


async def ask(client, sticky="d", model="m", **changes):
    settings = {"temperature": 0.7, "max_tokens": 160, "seed": 5} | changes
    return await client.chat(MESSAGES, model=model, sticky=sticky, **settings)


def ask_and_count(respond, **settings):
    """One question's answer, or the error that it ends in, and the calls that came in."""

    async def job(client, server):
        try:
            return await ask(client), server.calls
        except ApiError as error:
            return error, server.calls

    return run(respond, job, **settings)
