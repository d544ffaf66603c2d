"""Stage 5: a method plays the held-out scenarios (paper, Appendix E.3).

All methods meet the same counterparties: a dialogue's id, and with it the counterparty's seed,
depends on scenario and number alone, so that methods can be compared in pairs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from emodistill.agents import StudentSpeaker, get_method
from emodistill.configs import EMBEDDED, EMBEDDED_TEMPERATURE, TEMPERATURE, EvaluateConfig
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.llm.client import ChatClient
from emodistill.negotiation.episode import ChooseEmotion
from emodistill.negotiation.readers import PATTERNS, OfferReader
from emodistill.negotiation.speakers import ApiSpeaker, Speaker
from emodistill.negotiation.states import DialogueState
from emodistill.offline.sweep import PlannedDialogue, SweepResult, plan_dialogues, play_all
from emodistill.prompts import PromptPack
from emodistill.seeding import stream
from emodistill.selectors import FixedSelector, IQLSelector, RandomSelector, Selector
from emodistill.selectors.oracle import OracleSelector


async def run_matches(
    config: EvaluateConfig,
    *,
    scenarios: Sequence[Scenario],
    path: Path,
    client: ChatClient,
    pack: PromptPack,
    focal_model: str | None,
    counterparty_model: str,
    selector_dir: Path | None,
    adapter_dir: Path | None,
    cells: Mapping[str, str],
    reader: OfferReader = PATTERNS,
) -> SweepResult:
    """Play the dialogues of a method that `path` lacks.

    Args:
      scenarios: the held-out ones, in order.
      focal_model: the language model of methods that an LLM writes for.
      selector_dir, adapter_dir: what stages 3 and 4 have trained, where the method uses it.
      cells: stage -> cell, as the records name them.

    Raises:
      InputError: no held-out scenario, or a selector or adapter that can't be used.
      ApiError: as the sweep.
    """
    if not scenarios:
        raise InputError("no scenario has split='test'; sweep with --num-test 20.")
    planned = plan_dialogues(scenarios[: config.num_scenarios], num_seeds=config.num_seeds)
    counterparty = ApiSpeaker(
        client, counterparty_model, config.counterparty_temperature, config.max_reply_tokens
    )
    selector_for = _selectors(config, selector_dir, pack)

    def choose_for(dialogue: PlannedDialogue) -> ChooseEmotion:
        rng = stream(config.seed, "evaluate-emotions", dialogue.trajectory_id)
        selector = selector_for(dialogue)

        def choose(state: DialogueState) -> str | None:
            return selector.choose(state, rng)

        return choose

    async with _writer(config, client, focal_model, adapter_dir) as focal:
        return await play_all(
            planned,
            path=path,
            label=f"evaluate {config.method}",
            client=client,
            focal=focal,
            counterparty=counterparty,
            choose_for=choose_for,
            pack=pack,
            method=config.method,
            cells=cells,
            seed=config.seed,
            max_turns=config.max_turns,
            agreement=config.agreement,
            concurrency=config.concurrency,
            max_cost_usd=config.max_cost_usd,
            silence_ends=True,
            reader=reader,
        )


def _selectors(config: EvaluateConfig, selector_dir: Path | None, pack: PromptPack):
    """Dialogue -> selector; one for all, but for the oracle, which knows who sits opposite."""
    emotion = get_method(config.method).emotion
    if emotion == "oracle":
        return lambda dialogue: OracleSelector(
            pack, dialogue.scenario, config.seed, dialogue.trajectory_id
        )
    selector: Selector
    if emotion == "iql":
        assert selector_dir is not None
        selector = IQLSelector.load(selector_dir, policy=config.policy, greedy=config.greedy)
    else:
        selector = RandomSelector() if emotion == "random" else FixedSelector("neutral")
    return lambda dialogue: selector


def focal_temperature(config: EvaluateConfig) -> float:
    """The sampling temperature of whoever writes for the focal side."""
    if config.focal_temperature is not None:
        return config.focal_temperature
    is_student = get_method(config.method).writer == "student"
    return EMBEDDED_TEMPERATURE if is_student and config.student == EMBEDDED else TEMPERATURE


@asynccontextmanager
async def _writer(
    config: EvaluateConfig, client: ChatClient, focal_model: str | None, adapter_dir: Path | None
) -> AsyncIterator[Speaker]:
    if focal_model is not None:
        yield ApiSpeaker(client, focal_model, focal_temperature(config), config.max_reply_tokens)
        return
    from emodistill.model import Generator, load_adapter
    from emodistill.train.student import load_student

    student = load_student(config.student, quantize=config.quantize)
    if adapter_dir is not None:
        load_adapter(student.model, adapter_dir)
    room = student.model.config.max_positions - config.max_reply_tokens
    async with StudentSpeaker(
        Generator(student.model),
        student.tokenizer,
        model=config.student,
        temperature=focal_temperature(config),
        max_reply_tokens=config.max_reply_tokens,
        max_prompt_tokens=room,
    ) as speaker:
        yield speaker
