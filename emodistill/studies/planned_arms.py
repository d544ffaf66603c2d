"""From the settings of a study to its arms: which training each needs, and who plays whom."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emodistill.configs import TYPED_COUNTERPARTIES
from emodistill.configs.studies import (
    CounterpartyStudy,
    DoseStudy,
    EmotionFreeStudy,
    EmotionStudy,
    IQLStudy,
    KappaStudy,
    KLStudy,
    LeaderboardStudy,
    RankStudy,
    RefinementStudy,
    SignalStudy,
    StudyConfig,
    TransferStudy,
)
from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.evaluation.methods import METHODS, get_method
from emodistill.selectors.systems import SYSTEMS

FULL = "iql+sft+jpo"
SIGNALS = {
    "iql": ("outcome", "episode-judge", "turn-judge"),
    "sft": ("hybrid", "episode-judge", "turn-judge"),
    "jpo": ("outcome", "episode-judge", "turn-judge"),
}
SIGNAL_METHODS = {"iql": "iql", "sft": "iql+sft", "jpo": FULL}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedArm:
    """An arm before it is run: what it changes in training and in playing."""

    block: str
    label: str
    domain: str
    method: str | None
    """None trains only, up to the last stage of `training`."""
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Stage -> what it changes."""
    rate_factors: tuple[float, ...] = ()
    """The adapter is trained once at each of these times its learning rate; played is the
    training that keeps the checkpoint of the best utility on validation scenarios, a start last."""
    shared: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Stage -> what all arms of the study train with, so that it is in no cell's name."""
    playing: Mapping[str, Any] = field(default_factory=dict)
    """What the evaluation changes."""
    row: str = ""
    """The row of the table to which several arms belong; empty for a row of its own."""
    budget: int | None = None
    """Training dialogues of an arm that is compared by them."""
    seeds: tuple[int, ...] = ()
    """The training seeds of the row's arms, this one's included: they can share a program."""


def plan_arms(config: StudyConfig) -> list[PlannedArm]:
    """The arms of a study, in the order of its table.

    Raises:
      InputError: the grid is empty, has an arm twice, or holds no settings to be chosen.
    """
    plans = _PLANNERS[type(config)](config)
    if not plans:
        raise InputError(f"{config.study}: nothing to run; give every list at least one value.")
    names = Counter(f"{plan.domain}, {plan.block}: {plan.label}" for plan in plans)
    if twice := [name for name, count in names.items() if count > 1]:
        raise InputError(f"{config.study}: {twice[0]} is asked for twice.")
    return plans


def _signal(config: SignalStudy) -> list[PlannedArm]:
    return [
        PlannedArm(
            block=SIGNAL_METHODS[stage],
            label=signal,
            domain=config.domain,
            method=SIGNAL_METHODS[stage],
            training={stage: {"signal": signal}},
        )
        for stage in config.stages
        for signal in SIGNALS[stage]
    ]


def _jpo(config: KappaStudy | KLStudy, name: str, symbol: str) -> list[PlannedArm]:
    return [
        PlannedArm(
            block=FULL,
            label=f"{symbol} = {value:g}",
            domain=config.domain,
            method=FULL,
            training={"jpo": {name: value}},
        )
        for value in config.values
    ]


def _rank(config: RankStudy) -> list[PlannedArm]:
    return [
        PlannedArm(
            block=method,
            label=f"r = {rank}",
            domain=config.domain,
            method=method,
            training={stage: {"lora_rank": rank} for stage in stages},
        )
        for method, stages in (("iql+sft", ("sft",)), (FULL, ("sft", "jpo")))
        for rank in config.values
    ]


def _iql(config: IQLStudy) -> list[PlannedArm]:
    grid = itertools.product(config.expectiles, config.advantage_scales, config.discounts)
    return [
        PlannedArm(
            block="iql",
            label=f"τ = {expectile:g}, β = {scale:g}, γ = {discount:g}",
            domain=config.domain,
            method="iql",
            training={
                "iql": {"expectile": expectile, "advantage_scale": scale, "discount": discount}
            },
        )
        for expectile, scale, discount in grid
    ]


def _transfer(config: TransferStudy) -> list[PlannedArm]:
    plans = []
    for target in config.targets:
        plans += [
            PlannedArm(block=target, label=method, domain=target, method=method)
            for method in ("vanilla-llm", "iql")
        ]
        for source in config.sources:
            playing = {} if source == target else {"trained_on": source}
            if playing and config.selector == "target":
                playing["selector"] = "target"
            plans.append(
                PlannedArm(
                    block=target,
                    label=f"{FULL} of {source}"
                    + (", own selector" if "selector" in playing else ""),
                    domain=target,
                    method=FULL,
                    playing=playing,
                )
            )
    return plans


def _counterparty(config: CounterpartyStudy) -> list[PlannedArm]:
    if not config.counterparties and not config.is_simulated:
        raise InputError("name the language models to negotiate with by --counterparties.")
    return [
        PlannedArm(
            block=opposite,
            label=method,
            domain=config.domain,
            method=method,
            playing={"counterparty": opposite},
        )
        for opposite in config.counterparties or TYPED_COUNTERPARTIES
        for method in config.methods
    ]


def _by_domain(config: EmotionFreeStudy | RefinementStudy) -> list[PlannedArm]:
    return [
        PlannedArm(block=domain, label=method, domain=domain, method=method)
        for domain in config.targets
        for method in config.methods
    ]


def _emotion_free(config: EmotionFreeStudy) -> list[PlannedArm]:
    plans = _by_domain(config)
    free = {"emotion_free": True}
    if config.long_epochs:
        plans += [
            PlannedArm(
                block=domain,
                label=f"free-sft+jpo, {config.long_epochs} epochs",
                domain=domain,
                method=None,
                training={"sft": free, "jpo": free | {"num_epochs": config.long_epochs}},
            )
            for domain in config.long_domains
        ]
    return plans


def _dose(config: DoseStudy) -> list[PlannedArm]:
    def arm(method: str, block: str, label: str, **settings: Any) -> PlannedArm:
        return PlannedArm(method=method, block=block, label=label, domain=config.domain, **settings)

    def jpo(kappa: float, ratio: str, judge: str | None) -> dict[str, Any]:
        return {"judge": judge, "kappa": kappa, "ratio": ratio, "select": "best"}

    arms = []
    if "jpo" in config.learners:
        arms.append(arm("iql+sft", "iql+sft", "iql+sft"))
        for kappa, ratio, judge in itertools.product(config.kappas, config.ratios, config.judges):
            block = f"{FULL}, κ = {kappa:g}, {ratio}"
            training = {"jpo": jpo(kappa, ratio, judge)}
            arms.append(
                arm(FULL, block, judge, training=training, rate_factors=config.rate_factors)
            )
        if config.own_seeds:
            own = jpo(config.kappas[0], config.ratios[0], config.judge) | {"turns": "own"}
            arms.append(
                arm(
                    FULL,
                    f"{FULL}, own dialogues",
                    f"{config.judge}, {config.own_seeds} own dialogues a scenario",
                    training={"jpo": own},
                    shared={"jpo": {"own_seeds": config.own_seeds}},
                    rate_factors=config.rate_factors,
                )
            )
    if "iql" in config.learners:
        arms.append(arm("random", "random", "random"))
        for judge in config.judges:
            training = {"iql": {"judge": judge, "signal": "turn-judge"}}
            arms.append(arm("iql", "iql", judge, training=training))
    return arms


def _emotions(config: EmotionStudy) -> list[PlannedArm]:
    return [
        PlannedArm(
            block=config.domain,
            label=emotion,
            domain=config.domain,
            method="fixed",
            playing={"emotion": emotion},
        )
        for emotion in EMOTIONS
    ]


FLOORS = ("random", "random-7", "neutral")
LEARNS_FROM_SWEEP = "iql"
"""The stage whose learners take their budget from the sweep."""


def _leaderboard(config: LeaderboardStudy) -> list[PlannedArm]:
    playing = {"in_process": True} if config.is_simulated else {}
    ceiling = ("oracle",) if config.is_simulated else ()
    references = config.references or (*FLOORS, *ceiling)
    untrained = [name for name, one in METHODS.items() if not one.stages and name != "fixed"]
    if trained := [name for name in references if name not in untrained]:
        raise InputError(
            f"leaderboard: --references {trained[0]} is no method that learns nothing; use some of "
            f"{', '.join(untrained)}, and name what learns by --methods."
        )
    rows: list[tuple[str, str, Mapping[str, Any]]] = [
        (method, method, {}) for method in config.methods
    ]
    if config.ablations:
        rows += [ablation for method in config.methods for ablation in _ablations(method)]
    plans = []
    for domain in config.targets:
        plans += [
            PlannedArm(block=domain, label=name, row=name, domain=domain, method=name)
            for name in references
        ]
        for budget, row in itertools.product(config.budgets, rows):
            plans += _budgeted(config, domain, *row, budget)
    return [dataclasses.replace(plan, playing=playing) for plan in plans]


def _ablations(method: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """What a method's name says of a change in its training, the method, and the change."""
    if method == "iql":
        return [("iql, own reward", method, {"signal": "outcome"})]
    if method not in SYSTEMS:
        return []
    faults = [field.name for field in dataclasses.fields(SYSTEMS[method].faults)]
    return [
        (f"{method}, own reward", method, {"reward": "own"}),
        *((f"{method}, {fault}", method, {"faults": (fault,)}) for fault in faults),
    ]


def _budgeted(
    config: LeaderboardStudy,
    domain: str,
    row: str,
    method: str,
    changes: Mapping[str, Any],
    budget: int,
) -> list[PlannedArm]:
    """A method at a budget, one arm for each training seed."""
    stage = get_method(method).selector_stage
    if stage is None or get_method(method).adapter is not None:
        learning = [name for name, one in METHODS.items() if one.stages == (one.selector_stage,)]
        raise InputError(
            f"leaderboard: --methods {method} is no selector that learns and leaves the writing to "
            f"the language model; use some of {', '.join(learning)}."
        )
    seeds = tuple(range(config.seed, config.seed + config.trainings))
    shared: dict[str, Any] = {}
    dialogues = "dialogues"
    if stage == LEARNS_FROM_SWEEP:
        dialogues = "num_dialogues"
        num_steps = max(config.min_steps, round(config.steps_per_dialogue * budget))
        shared = {
            "signal": "utility",
            "num_steps": num_steps,
            "advantage_scale": config.advantage_scale,
            "estimates_value": False,
        }
    return [
        PlannedArm(
            block=domain,
            label=f"{row}, {budget} dialogues, seed {seed}",
            domain=domain,
            method=method,
            training={stage: {**changes, dialogues: budget, "seed": seed}},
            shared={stage: shared},
            row=row,
            budget=budget,
            seeds=seeds,
        )
        for seed in seeds
    ]


_PLANNERS: Mapping[type[StudyConfig], Any] = {
    SignalStudy: _signal,
    KappaStudy: lambda config: _jpo(config, "kappa", "κ"),
    KLStudy: lambda config: _jpo(config, "kl_coef", "λ"),
    RankStudy: _rank,
    IQLStudy: _iql,
    TransferStudy: _transfer,
    CounterpartyStudy: _counterparty,
    EmotionFreeStudy: _emotion_free,
    RefinementStudy: _by_domain,
    DoseStudy: _dose,
    EmotionStudy: _emotions,
    LeaderboardStudy: _leaderboard,
}
