"""Who takes a seat: a method with what was trained for it, as a chooser of emotions and a speaker.

Both seats are filled in the same way. In the counterparty's, `negotiation.episode` mirrors what the
selector sees, so that a selector trained in the focal seat finds target, anchor and gap where it
learned them; its first state is no opening, which it has never met, but the reply to one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from emodistill.agents import StudentSpeaker, get_method
from emodistill.configs import EMBEDDED, EMBEDDED_TEMPERATURE, TEMPERATURE, MatchConfig
from emodistill.emotions import NEUTRAL
from emodistill.llm.client import ChatClient
from emodistill.negotiation.episode import ChooseEmotion, PlannedDialogue
from emodistill.negotiation.speakers import ApiSpeaker, Speaker
from emodistill.negotiation.states import DialogueState
from emodistill.prompts import PromptPack
from emodistill.seeding import stream
from emodistill.selectors import FixedSelector, IQLSelector, RandomSelector, Selector
from emodistill.selectors.oracle import OracleSelector

if TYPE_CHECKING:
    from emodistill.train.student import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """A method and what it is played with.

    Attributes:
      method: None for a mere language model, which is neutral.
      emotion: what the method `fixed` expresses.
      language_model: who writes; None for the student.
      cells: stage -> cell, as the records name them.
      selector_dir, adapter_dir: what stages 3 and 4 have trained, where the method uses it.
    """

    method: str | None = None
    emotion: str | None = None
    language_model: str | None = None
    temperature: float = TEMPERATURE
    cells: Mapping[str, str] = field(default_factory=dict)
    selector_dir: Path | None = None
    adapter_dir: Path | None = None


def writing_temperature(config: MatchConfig, method: str) -> float:
    """The sampling temperature of whoever writes for a method, in the focal seat."""
    if config.focal_temperature is not None:
        return config.focal_temperature
    is_student = get_method(method).writer == "student"
    return EMBEDDED_TEMPERATURE if is_student and config.student == EMBEDDED else TEMPERATURE


def choices(
    config: MatchConfig, player: Player, pack: PromptPack, *, opposite: Player, stream_name: str
) -> Callable[[PlannedDialogue], ChooseEmotion] | None:
    """Who picks the emotions of a dialogue; None for a player without a method.

    Args:
      opposite: who sits there, which only the oracle looks at.
      stream_name: of the dice; the two seats of a dialogue throw different ones.
    """
    if player.method is None:
        return None
    selector_for = _selectors(config, player, pack, opposite)

    def choose_for(dialogue: PlannedDialogue) -> ChooseEmotion:
        rng = stream(config.seed, stream_name, dialogue.trajectory_id)
        selector = selector_for(dialogue)

        def choose(state: DialogueState) -> str | None:
            return selector.choose(state, rng)

        return choose

    return choose_for


def _selectors(
    config: MatchConfig, player: Player, pack: PromptPack, opposite: Player
) -> Callable[[PlannedDialogue], Selector]:
    """Dialogue -> selector; one for all, but for the oracle, which knows who sits opposite."""
    assert player.method is not None
    emotion = get_method(player.method).emotion
    if emotion == "oracle":
        return lambda dialogue: OracleSelector(
            pack,
            dialogue.scenario,
            config.seed,
            dialogue.trajectory_id,
            counterparty=opposite.language_model,
        )
    selector: Selector
    if emotion == "iql":
        assert player.selector_dir is not None
        directory = player.selector_dir
        selector = IQLSelector.load(directory, policy=config.policy, greedy=config.greedy)
    elif emotion == "random":
        selector = RandomSelector()
    else:
        fixed = {"neutral": NEUTRAL, "none": None, "fixed": player.emotion}
        selector = FixedSelector(fixed[emotion])
    return lambda dialogue: selector


class Speakers:
    """Makes the speakers of players, each at its first use. An async context manager.

    The student's base is loaded once, whatever the number of adapters, and players that would write
    alike share a speaker, so that both seats are generated for in one batch.
    """

    def __init__(self, config: MatchConfig, client: ChatClient) -> None:
        self._config = config
        self._client = client
        self._student: Student | None = None
        self._students: dict[tuple[Path | None, float], StudentSpeaker] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def speaker(self, player: Player) -> Speaker:
        """The one who writes for `player`.

        Raises:
          InputError: a checkpoint or an adapter that can't be used.
        """
        max_tokens = self._config.max_reply_tokens
        if player.language_model is not None:
            return ApiSpeaker(self._client, player.language_model, player.temperature, max_tokens)
        key = (player.adapter_dir, player.temperature)
        if key not in self._students:
            speaker = self._load(player, max_tokens)
            self._students[key] = await self._stack.enter_async_context(speaker)
        return self._students[key]

    def _load(self, player: Player, max_reply_tokens: int) -> StudentSpeaker:
        from emodistill.model import Generator, adapted
        from emodistill.train.student import load_student

        if self._student is None:
            self._student = load_student(self._config.student, quantize=self._config.quantize)
        model = self._student.model
        if player.adapter_dir is not None:
            model = adapted(model, player.adapter_dir)
        return StudentSpeaker(
            Generator(model),
            self._student.tokenizer,
            model=self._config.student,
            temperature=player.temperature,
            max_reply_tokens=max_reply_tokens,
            max_prompt_tokens=model.config.max_positions - max_reply_tokens,
        )
