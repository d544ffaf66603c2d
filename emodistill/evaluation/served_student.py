"""A student that a server plays; its adapter is looked for before the first dialogue."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from emodistill.configs import MatchConfig, VerifyConfig
from emodistill.errors import InputError
from emodistill.evaluation.canaries import CANARIES_FILE, export_dir, read_canaries
from emodistill.evaluation.canary_check import check_adapter
from emodistill.evaluation.methods import BASE_NAME, TrainedAdapter
from emodistill.files import sha256_of
from emodistill.llm.client import ChatClient, RetryPolicy
from emodistill.llm.providers import get_provider
from emodistill.negotiation.writers import ApiWriter
from emodistill.operating_system import num_connections
from emodistill.records import StudentServer

FORMS = ("peft", "gguf", "merged")
"""Forms that an adapter may have been exported in; their canaries say the same."""


def exported_dir(adapter: TrainedAdapter) -> Path:
    """Where the canaries of an adapter are.

    Raises:
      InputError: it was not exported.
    """
    home, stage, cell = adapter
    folders = [export_dir(home, f"{stage}-{cell}", form) for form in FORMS]
    for folder in folders:
        if (folder / CANARIES_FILE).is_file():
            return folder
    raise InputError(
        f"{folders[0]} is missing: whether a server has an adapter in use is told by its canaries. "
        f"python scripts/export_adapter.py --run {home.parent} --domain {home.name} --stage "
        f"{stage} --cell {cell} writes it; serve it from there, then start again."
    )


class ServedStudents:
    """Writers of a server that plays the student. An async context manager.

    Args:
      config: names the server (`student_url`) and what it calls the student.
    """

    def __init__(self, config: MatchConfig) -> None:
        assert config.student_url is not None
        self._config = config
        provider = get_provider(None, base_url=config.student_url, flag="--student-url")
        self.url = provider.base_url
        self._client = ChatClient(
            provider,
            max_in_flight=min(config.concurrency, num_connections()),
            retry=RetryPolicy(timeout_s=config.timeout_s),
        )
        self._checked: dict[str, tuple[TrainedAdapter | None, StudentServer]] = {}

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.__aexit__(*exc_info)

    async def writer(
        self, adapter: TrainedAdapter | None, temperature: float
    ) -> tuple[ApiWriter, StudentServer]:
        """Who writes with an adapter, None for the base, and what the record says of it.

        Raises:
          InputError: the adapter was not exported, or the server's answers are not its own.
          ApiError: the server can't be reached, or has no such model.
        """
        config = self._config
        name = config.student_model or ""
        name = name.replace("{adapter}", BASE_NAME if adapter is None else adapter.name)
        name = name.replace("{domain}", config.domain if adapter is None else adapter.home.name)
        if name not in self._checked:
            self._checked[name] = adapter, await self._check(adapter, name)
        known, server = self._checked[name]
        if known != adapter:
            raise InputError(
                f"--student-model {config.student_model} would play two adapters under one "
                "name; put {adapter} into it, for what each is called."
            )
        return ApiWriter(self._client, name, temperature, config.max_reply_tokens), server

    async def _check(self, adapter: TrainedAdapter | None, name: str) -> StudentServer:
        if adapter is None:
            return StudentServer(url=self.url, adapter="none")
        config = self._config
        folder = exported_dir(adapter)
        exported, (_, weights) = read_canaries(folder), adapter.files
        if exported.weights_sha256 not in (None, sha256_of(weights)):
            raise InputError(
                f"{folder} is not the adapter in {weights}; export that one again, and serve it."
            )
        verdict = await check_adapter(
            VerifyConfig(url=self.url, model=name, adapter=folder, timeout_s=config.timeout_s)
        )
        if verdict.kind == "in use" or (verdict.kind == "unknown" and config.allow_unverified):
            print(f"{name} at {self.url}: adapter {verdict.kind}; {verdict.reason}", flush=True)
            return StudentServer(url=self.url, adapter=verdict.kind)
        advice = "serve it as docs/serving.md says"
        if verdict.kind == "unknown":
            advice = "--allow-unverified plays it all the same"
        raise InputError(
            f"{name} at {self.url}: the adapter in {folder} is {verdict.kind}; {verdict.reason} "
            f"Nothing was played; {advice}."
        )
