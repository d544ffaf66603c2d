"""A student that a server plays; its adapter is looked for before the first dialogue."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Self

import msgspec

from emodistill.configs import AdapterForm, MatchConfig, VerifyConfig
from emodistill.errors import InputError
from emodistill.evaluation.canaries import CANARIES_FILE, export_dir, read_canaries
from emodistill.evaluation.canary_check import AdapterVerdict, check_adapter
from emodistill.evaluation.methods import BASE_NAME, TrainedAdapter
from emodistill.files import sha256_of
from emodistill.llm.client import ChatClient, RetryPolicy
from emodistill.llm.providers import get_provider
from emodistill.negotiation.writers import ApiWriter
from emodistill.operating_system import num_connections
from emodistill.records import StudentServer

KEY_ENV = "EMODISTILL_STUDENT_API_KEY"
"""Not the variable of `--base-url`, whose key is another server's."""


def exported_dir(adapter: TrainedAdapter) -> Path:
    """Where an adapter was exported with canaries, in whatever form.

    Raises:
      InputError: it was not, or was trained anew since.
    """
    home, stage, cell = adapter
    _, weights = adapter.files
    command = (
        f"python scripts/export_adapter.py --run {home.parent} --domain {home.name} --stage "
        f"{stage} --cell {cell}"
    )
    folders = [export_dir(home, f"{stage}-{cell}", form) for form in typing.get_args(AdapterForm)]
    exported = [folder for folder in folders if (folder / CANARIES_FILE).is_file()]
    if not exported:
        raise InputError(
            f"{folders[0] / CANARIES_FILE} is missing: by an adapter's canaries it is told whether "
            f"a server has it in use. {command} writes them, with what is to be served."
        )
    trained = sha256_of(weights) if weights.is_file() else None
    for folder in exported:
        if read_canaries(folder).source_sha256 == trained:
            return folder
    raise InputError(
        f"{exported[0]} is not of the adapter in {weights}. Delete it, export the adapter again "
        f"({command}), and serve that."
    )


class ServedStudents:
    """Writers of a server that plays the student. An async context manager.

    Args:
      config: names the server (`student_url`) and what it calls the student.
    """

    def __init__(self, config: MatchConfig) -> None:
        assert config.student_url is not None
        self._config = config
        custom = get_provider(None, base_url=config.student_url, flag="--student-url")
        free = ("*", {"price": {"input": 0.0, "output": 0.0}})
        profiles = (*custom.profiles, free)  # the last one has its way
        self._provider = msgspec.structs.replace(custom, key_env=KEY_ENV, profiles=profiles)
        self.url = self._provider.base_url
        self._timeout_s = config.timeout_s or custom.timeout_s
        self._client = ChatClient(
            self._provider,
            max_in_flight=min(config.concurrency, num_connections()),
            retry=RetryPolicy(timeout_s=self._timeout_s),
        )
        self._checked: dict[str, tuple[TrainedAdapter | None, StudentServer]] = {}

    async def __aenter__(self) -> Self:
        if self._provider.read_keys():
            print(f"student: the key in {KEY_ENV} goes to {self.url}.", flush=True)
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.__aexit__(*exc_info)

    async def writer(
        self, adapter: TrainedAdapter | None, temperature: float
    ) -> tuple[ApiWriter, StudentServer]:
        """The writer for `adapter` (None: the base), and what records say of its server.

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
            return await self._check_base(name)
        folder = exported_dir(adapter)
        verdict = await self._verdict(folder, name)
        is_played = verdict.kind == "unknown" and self._config.allow_unverified
        if verdict.kind == "in use" or is_played:
            print(f"{name} at {self.url}: adapter {verdict.kind}; {verdict.reason}", flush=True)
            return StudentServer(url=self.url, adapter=verdict.kind)
        advice = "serve it as docs/serving.md says"
        if verdict.kind == "unknown":
            advice = "--allow-unverified plays it all the same"
        raise InputError(
            f"{name} at {self.url}: the adapter in {folder} is {verdict.kind}; {verdict.reason} "
            f"Nothing was played; {advice}."
        )

    async def _check_base(self, name: str) -> StudentServer:
        """The base has no canaries, but is none of the adapters that have."""
        home = self._config.run / self._config.domain
        for file in sorted((home / "export").glob(f"*/{CANARIES_FILE}")):
            folder = file.parent
            if (await self._verdict(folder, name)).kind == "in use":
                raise InputError(
                    f"{name} at {self.url} answers with the adapter in {folder}, and the base is "
                    "to play. Nothing was played; name the base with --student-model."
                )
        return StudentServer(url=self.url, adapter="none")

    async def _verdict(self, folder: Path, name: str) -> AdapterVerdict:
        asked = VerifyConfig(url=self.url, model=name, adapter=folder, timeout_s=self._timeout_s)
        return await check_adapter(asked, self._provider)
