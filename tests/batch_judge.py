"""A judge by file batches, for the tests of it and for the processes that they kill."""

import asyncio

from items_to_judge import DIALOGUES, PACK, SCENARIOS

from emodistill.configs import JudgeConfig
from emodistill.llm import ChatClient, Price, Provider
from emodistill.offline.judging import run_judging

PRICE = Price(1e3, 2e3)
USD = (10 * 1e3 + 5 * 2e3) / 1e6
"""Of one answer of the server's, at the full price."""


def judge(path, url, *, share=0.5, accounts=(), limits=None, **settings):
    """Run the judge at a server of batches, in this process."""
    config = JudgeConfig(**({"judge": "a-judge", "batch": True} | settings))
    price = {"input": PRICE.input, "output": PRICE.output, "batch": share}
    profile = {"price": price, "limits": limits or {}}
    provider = Provider(name="test", base_url=url, key="none", profiles=[("*", profile)])

    async def main():
        async with ChatClient(provider, accounts) as client:
            return await run_judging(
                config, DIALOGUES, SCENARIOS, path=path, client=client, pack=PACK
            )

    return asyncio.run(main())
