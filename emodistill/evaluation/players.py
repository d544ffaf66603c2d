"""Who plays held-out scenarios (paper, Appendix E.3): a method with its cells, or a bare model.

Both roles are filled in the same way. A selector in the counterparty's role sees its own side as
the focal one (`negotiation.states`), so that target, anchor and gap are where it learned them; its
first state is no opening, which it has never met, but the reply to one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from emodistill import model as models  # opens without jax, which API models do without
from emodistill.configs import EMBEDDED, EMBEDDED_TEMPERATURE, TEMPERATURE, MatchConfig
from emodistill.domains.scenario import Scenario
from emodistill.emotions import EKMAN, NEUTRAL
from emodistill.evaluation.methods import TrainedAdapter, get_method, system_in
from emodistill.evaluation.served_student import ServedStudents
from emodistill.evaluation.student_writer import StudentWriter
from emodistill.llm.client import ChatClient
from emodistill.llm.endpoints import ModelEndpoint
from emodistill.model import EngineWorker
from emodistill.negotiation.episode import ChooseEmotion, Match, PlannedDialogue, Player, turn_cap
from emodistill.negotiation.hearing import EmotionReader
from emodistill.negotiation.readers import LlmReader
from emodistill.negotiation.writers import ApiWriter, Writer
from emodistill.offline.sweep import plan_dialogues, play_all
from emodistill.offline.workers import JobsResult
from emodistill.prompts import PromptPack
from emodistill.records import Role, StudentServer
from emodistill.seeding import stream
from emodistill.selectors import FixedSelector, IQLSelector, RandomSelector, Selector
from emodistill.selectors.oracle import OracleSelector
from emodistill.selectors.systems import load_trained, system_of
from emodistill.simulator.writer import SimulatedWriter

if TYPE_CHECKING:
    from emodistill.model import Engine
    from emodistill.train.student import Student

EMOTION_STREAMS: Mapping[Role, str] = {
    "focal": "evaluate-emotions",
    "counterparty": "counterparty-emotions",
}
"""Random streams of the emotions: the two players of a dialogue draw differently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayerSpec:
    """What a player is made from.

    Attributes:
      method: None for a bare language model, which is neutral.
      emotion: what the method `fixed` expresses.
      language_model: who writes; None for the student.
      cells: stage -> cell, as the records name them.
      selector_dir, adapter: what stages 3 and 4 have trained, where the method uses it.
    """

    method: str | None = None
    emotion: str | None = None
    language_model: ModelEndpoint | None = None
    temperature: float = TEMPERATURE
    cells: Mapping[str, str] = field(default_factory=dict)
    selector_dir: Path | None = None
    adapter: TrainedAdapter | None = None


def writing_temperature(config: MatchConfig, method: str) -> float:
    """The sampling temperature of whoever writes for a method in the focal role."""
    if config.focal_temperature is not None:
        return config.focal_temperature
    is_student = get_method(method).writer == "student" and config.student_url is None
    return EMBEDDED_TEMPERATURE if is_student and config.student == EMBEDDED else TEMPERATURE


class PlayerPool:
    """Makes players from their specs, and loads what they share once. An async context manager.

    There is one student's base, whatever the number of adapters, and players of one adapter share
    an engine, whichever role they play. Where the settings name a server that plays the student,
    nothing is loaded here.

    Args:
      client_of: the clients of the language models, open.
      loaded: students by name, filled at first use; pools that share it share their weights.
      emotion_reader: hears the other side for the methods that look at its emotions.
    """

    def __init__(
        self,
        config: MatchConfig,
        client_of: Callable[[ModelEndpoint], ChatClient],
        pack: PromptPack,
        loaded: dict[str, Student] | None = None,
        *,
        emotion_reader: EmotionReader | None = None,
    ) -> None:
        self.config = config
        self.client_of = client_of
        self.pack = pack
        self._emotion_reader = emotion_reader
        self._loaded = {} if loaded is None else loaded
        self._worker = EngineWorker(self._make_engine)
        self._served = None if config.student_url is None else ServedStudents(config)

    async def __aenter__(self) -> Self:
        await (self._served or self._worker).__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await (self._served or self._worker).__aexit__(*exc_info)

    async def play(
        self,
        focal: PlayerSpec,
        counterparty: PlayerSpec,
        scenarios: Sequence[Scenario],
        *,
        path: Path,
        label: str,
        reader: LlmReader | None,
    ) -> JobsResult:
        """Play the dialogues of two players that `path` lacks, on held-out scenarios.

        All methods meet the same counterparties: a dialogue's id, and with it each player's seed,
        depends on scenario and number alone, so that methods can be compared in pairs.

        Args:
          focal: has a method.
          label: names the job on the progress line.

        Raises:
          InputError: a selector or adapter that can't be used.
          ApiError: as the sweep.
        """
        config = self.config
        return await play_all(
            plan_dialogues(scenarios[: config.num_scenarios], num_seeds=config.num_seeds),
            await self.match(focal, counterparty, reader),
            config,
            path=path,
            label=label,
        )

    async def match(
        self, focal: PlayerSpec, counterparty: PlayerSpec, reader: LlmReader | None
    ) -> Match:
        """Two players and the rules of the settings.

        Raises:
          InputError: as `player`.
        """
        config = self.config
        return Match(
            focal=await self.player(focal, "focal", opponent=counterparty),
            counterparty=await self.player(counterparty, "counterparty", opponent=focal),
            pack=self.pack,
            seed=config.seed,
            max_turns=turn_cap(config.max_turns, config.count_turns),
            agreement=config.agreement,
            silence_ends=True,
            reader=reader,
        )

    async def player(self, spec: PlayerSpec, role: Role, *, opponent: PlayerSpec) -> Player:
        """The player of a spec in a role; only the oracle looks at the opponent.

        Raises:
          InputError: a checkpoint, a selector or an adapter that can't be used.
        """
        writer, server = await self._writer(spec)
        system = None if spec.method is None else system_in(spec.method)
        hears = system is not None and system_of(system).reads_emotions
        return Player(
            choose_for=self._choose_for(spec, role, opponent),
            writer=writer,
            method=spec.method,
            emotion_reader=self._emotion_reader if hears else None,
            cells=spec.cells,
            server=server,
        )

    def _choose_for(
        self, spec: PlayerSpec, role: Role, opponent: PlayerSpec
    ) -> Callable[[PlannedDialogue], ChooseEmotion] | None:
        if spec.method is None:
            return None
        config, kind = self.config, get_method(spec.method).selector
        shared: Selector | None = None  # the oracle alone differs from dialogue to dialogue
        if kind == "iql":
            assert spec.selector_dir is not None
            shared = IQLSelector.load(spec.selector_dir, policy=config.policy, greedy=config.greedy)
        elif kind == "trained":
            assert spec.selector_dir is not None
            shared = load_trained(spec.selector_dir, system_in(spec.method))
        elif kind == "random":
            shared = RandomSelector()
        elif kind == "random-7":
            shared = RandomSelector(EKMAN)
        elif kind != "oracle":
            fixed = {"neutral": NEUTRAL, "none": None, "fixed": spec.emotion}
            shared = FixedSelector(fixed[kind])

        def choose_for(dialogue: PlannedDialogue) -> ChooseEmotion:
            selector = shared or OracleSelector(
                self.pack,
                dialogue.scenario,
                config.seed,
                dialogue.trajectory_id,
                counterparty=opponent.language_model and opponent.language_model.model,
            )
            rng = stream(config.seed, EMOTION_STREAMS[role], dialogue.trajectory_id)
            return functools.partial(selector.choose, rng=rng)

        return choose_for

    async def _writer(self, spec: PlayerSpec) -> tuple[Writer, StudentServer | None]:
        max_reply_tokens = self.config.max_reply_tokens
        if (endpoint := spec.language_model) is not None:
            if self.config.in_process:
                writer = SimulatedWriter(endpoint.model, spec.temperature, max_reply_tokens)
                return writer, None
            client = self.client_of(endpoint)
            return ApiWriter(client, endpoint.model, spec.temperature, max_reply_tokens), None
        if self._served is not None:
            return await self._served.writer(spec.adapter, spec.temperature)
        await self._worker.load(spec.adapter)
        model, tokenizer = self._loaded[self.config.student]
        writer = StudentWriter(
            self._worker,
            spec.adapter,
            tokenizer,
            model=self.config.student,
            temperature=spec.temperature,
            max_reply_tokens=max_reply_tokens,
            max_prompt_tokens=model.config.max_positions - max_reply_tokens,
        )
        return writer, None

    def _make_engine(self, adapter: TrainedAdapter | None) -> Engine:
        """In the thread of the engines."""
        from emodistill.train.student import load_student  # jax, which API models do without

        name = self.config.student
        if name not in self._loaded:
            self._loaded[name] = load_student(name, quantize=self.config.quantize)
        model = self._loaded[name].model
        played = model if adapter is None else models.adapted(model, adapter.folder)
        return models.Engine(played)
