"""Every table of the report as a recipe, in the paper's numbering."""

from __future__ import annotations

import dataclasses

from emodistill.configs import METHODS
from emodistill.reports import (
    cost_content,
    definition_content,
    emotion_content,
    method_content,
    paper,
    tournament_content,
    training_content,
)
from emodistill.reports.emotion_content import NUM_SHIFTS
from emodistill.reports.labels import FULLY_TRAINED
from emodistill.reports.recipe import ABOUT_RUN, Recipe
from emodistill.reports.report_table import TableColumn
from emodistill.reports.results import EFFECT_POINTS, POWER, outcome_rows

NOTE_PAPER = f"Columns of the *paper*: {paper.SOURCE}; a difference is ours less the paper's."
NOTE_METHODS = (
    "Per cent but for the rounds; outcomes are savings over successes, utility counts failures as "
    "0; in bounds is the share of focal offers that open at the target or, later, step neither "
    "back nor past the other side's; ± is the population standard deviation over dialogues. "
    "Intervals are 95 % percentile bootstrap of the utility, over dialogues and, drawing "
    "whole scenarios, clustered. Bold: best of its block, success aside."
)
NOTE_OUTCOMES = (
    "Savings over successful dialogues, per cent, with 95 % percentile bootstrap intervals, over "
    "dialogues as in the paper and, drawing whole scenarios, clustered. N/A: no success."
)


def _paper(*columns: TableColumn) -> list[TableColumn]:
    """The paper's values for some columns."""
    return [
        dataclasses.replace(column, key=f"paper_{column.key}", group="paper", best=None)
        for column in columns
    ]


def _less(*columns: TableColumn) -> list[TableColumn]:
    """Ours less the paper's for some columns."""
    changes = {"spread": None, "is_signed": True, "best": None, "group": "ours − paper"}
    return [dataclasses.replace(column, key=f"less_{column.key}", **changes) for column in columns]


METHOD = TableColumn("method")
SUCCESS = TableColumn("success", "success %")
OUTCOMES = TableColumn("outcomes", "outcomes %", spread="std", best="max")
UTILITY = TableColumn("utility", "utility %", spread="std", best="max")
ROUNDS = TableColumn("rounds", spread="std", best="min")
METHOD_COLUMNS = (
    METHOD,
    TableColumn("num_dialogues", "n"),
    SUCCESS,
    OUTCOMES,
    UTILITY,
    TableColumn("utility_ci", "95 % interval", spread="interval"),
    TableColumn("utility_clustered", "clustered", spread="interval"),
    ROUNDS,
    TableColumn("in_bounds", "in bounds %"),
    *_paper(SUCCESS, OUTCOMES, UTILITY, ROUNDS),
    *_less(SUCCESS, OUTCOMES, UTILITY, ROUNDS),
)
INTERVAL = TableColumn("interval", "95 % interval", spread="interval")
MEAN_OUTCOMES = dataclasses.replace(OUTCOMES, spread=None)
OUTCOME_COLUMNS = (
    METHOD,
    TableColumn("num_successes", "successes"),
    MEAN_OUTCOMES,
    INTERVAL,
    TableColumn("clustered", spread="interval"),
    *_paper(MEAN_OUTCOMES, INTERVAL),
    *_less(MEAN_OUTCOMES),
)
METHOD_TABLE = {"columns": METHOD_COLUMNS, "notes": (NOTE_METHODS, ABOUT_RUN, NOTE_PAPER)}
OUTCOME_TABLE = {"columns": OUTCOME_COLUMNS, "notes": (NOTE_OUTCOMES, ABOUT_RUN, NOTE_PAPER)}


def _study_table(name: str, title: str, study: str) -> Recipe:
    content = method_content.of_study(name, study)
    return Recipe(
        name=name, title=title, content=content, made_by=f"ablate.py {study}", **METHOD_TABLE
    )


def _study_outcomes(name: str, title: str, study: str) -> Recipe:
    content = method_content.of_study(name, study, outcome_rows)
    return Recipe(
        name=name, title=title, content=content, made_by=f"ablate.py {study}", **OUTCOME_TABLE
    )


FIRST = TableColumn("first", "signal, first", digits=2)
LAST = TableColumn("last", "signal, last", digits=2)
CONTROLS = (
    TableColumn("control", spread="std", digits=3),
    TableColumn("ratio", spread="std", digits=3),
    TableColumn("kl_spikes", "KL spikes"),
    TableColumn("ratio_clips", "ratio clips"),
)
RATE = TableColumn("rate", "rate %")
STEP_TIMES = (
    TableColumn("offline_step_s", "offline step s", digits=2),
    TableColumn("negotiation_s", "negotiation s", digits=2),
    TableColumn("judging_s", "judging a turn s", digits=3),
)
STEP_FACTORS = (
    TableColumn("num_judged_turns", "judged turns"),
    TableColumn("batch_size", "samples"),
    TableColumn("concurrency", "at once"),
    TableColumn("on_policy_step_s", "on-policy step s", digits=2),
    TableColumn("ratio"),
)

RECIPES = (
    Recipe(
        name="table-1",
        title="Methods by domain",
        content=method_content.all_methods,
        made_by="evaluate.py",
        **METHOD_TABLE,
    ),
    _study_table("table-2", "Training signals", "signal"),
    Recipe(
        name="table-3",
        title="Without emotions",
        content=method_content.of_methods(
            "table-3",
            method_content.FREE,
            needs=method_content.FREE_TRAINED,
            only_paper_domain=True,
        ),
        made_by="ablate.py emotion-free",
        **METHOD_TABLE,
    ),
    _study_table("table-4", "Transfer between domains", "transfer"),
    _study_table("table-5", "Unseen counterparties", "counterparty"),
    _study_table("table-6", "Weight of negative advantages", "kappa"),
    Recipe(
        name="table-7",
        title="What each method learns",
        content=definition_content.method_definitions,
        columns=(
            METHOD,
            TableColumn("writer"),
            TableColumn("selector", "selector learns from"),
            TableColumn("adapter", "adapter learns from"),
            TableColumn("emotion", "emotion at inference"),
        ),
        notes=(),
    ),
    Recipe(
        name="table-8",
        title="Data sets",
        content=definition_content.data_sets,
        columns=(
            TableColumn("domain", "data set"),
            TableColumn("num_scenarios", "N"),
            *map(TableColumn, definition_content.SPLITS),
            TableColumn("gap_sign", "gap sign"),
            TableColumn("gap_sign_share", "of scenarios %"),
            TableColumn("quantity"),
            *_paper(TableColumn("num_scenarios", "N")),
        ),
        made_by="sweep.py",
    ),
    Recipe(
        name="table-9",
        title="Outcomes by domain",
        content=method_content.of_methods("table-9", METHODS, rows=outcome_rows),
        made_by="evaluate.py",
        **OUTCOME_TABLE,
    ),
    _study_outcomes("table-10", "Outcomes: counterparties", "counterparty"),
    _study_outcomes("table-11", "Outcomes: training signals", "signal"),
    Recipe(
        name="table-12",
        title="Without emotions, all domains",
        content=method_content.of_methods(
            "table-12", method_content.FREE, needs=method_content.FREE_TRAINED
        ),
        made_by="ablate.py emotion-free",
        **METHOD_TABLE,
    ),
    Recipe(
        name="table-13",
        title="Trained against trained",
        content=tournament_content.pairings,
        columns=tournament_content.pairing_columns,
        notes=(
            "Success and utility of the focal seat, failures counted as 0; ± is the population "
            "standard deviation. Bold: the best utility against a counterparty.",
            ABOUT_RUN,
            NOTE_PAPER,
        ),
        made_by="tournament.py",
    ),
    Recipe(
        name="table-14",
        title="A-LoL and DPO in place of JPO",
        content=method_content.of_methods(
            "table-14", method_content.REFINED, needs=("iql+sft+alol", "iql+sft+dpo")
        ),
        made_by="ablate.py refinement",
        **METHOD_TABLE,
    ),
    Recipe(
        name="table-15",
        title="Stability of training",
        content=training_content.stability,
        columns=(
            TableColumn("run"),
            TableColumn("num_points", "points"),
            TableColumn("num_steps", "steps"),
            FIRST,
            LAST,
            *CONTROLS,
            *_paper(FIRST, LAST, *CONTROLS),
            *_less(dataclasses.replace(LAST, title="last")),
        ),
        notes=(
            "Signal: critic loss, loss per token, clipped surrogate; medians of the first and the "
            "last quarter of the points. Control: median ± MAD of critic loss, loss per token, KL "
            "over the last quarter. Spikes: KL > 0.5; clips: mean ratio outside [0.8, 1.2]. The "
            "paper's JPO rows are emotion-free runs of five epochs.",
            ABOUT_RUN,
            NOTE_PAPER,
        ),
        made_by="train_iql.py",
    ),
    Recipe(
        name="table-16",
        title="Two-step emotion sequences that end best",
        content=emotion_content.emotion_sequences,
        columns=(
            TableColumn("sequence"),
            TableColumn("num_dialogues", "n"),
            TableColumn("utility", "savings, failures 0", digits=2),
            TableColumn("outcomes", "over successes", digits=2),
            TableColumn("paper", "its best (n, savings)", group="paper"),
            TableColumn("less", "same sequence", group="ours − paper", digits=2, is_signed=True),
        ),
        notes=(
            "Emotions of consecutive focal turns in at least three dialogues of the sweep, by mean "
            "savings; each dialogue counts once for a sequence.",
            ABOUT_RUN,
            NOTE_PAPER,
        ),
        made_by="sweep.py",
    ),
    _study_table("kl", "KL coefficient", "kl"),
    _study_table("rank", "Rank of LoRA", "rank"),
    _study_table("iql", "Settings of the selector", "iql"),
    Recipe(
        name="emotions",
        title="Each emotion against neutral",
        content=emotion_content.emotions_against_neutral,
        columns=(
            TableColumn("emotion"),
            TableColumn("num_scenarios", "scenarios"),
            TableColumn("difference", digits=2, is_signed=True),
            dataclasses.replace(INTERVAL, digits=2, is_signed=True),
            TableColumn("welch", "Welch, over turns", spread="interval", digits=2, is_signed=True),
            TableColumn("t", digits=2),
            TableColumn("p", digits=4),
            TableColumn("p_bonferroni", "p, Bonferroni", digits=4),
        ),
        notes=(
            "Judge scores of focal turns (1 to 10) under one emotion at every turn, less those "
            "under neutral on the same scenarios; paired t-test over scenarios, corrected for 27 "
            "comparisons.",
            ABOUT_RUN,
        ),
        made_by="emotion_study.py",
    ),
    Recipe(
        name="matches",
        title="Recorded emotions that the selector would have chosen",
        content=emotion_content.selector_matches,
        columns=(
            TableColumn("group", "turns"),
            TableColumn("num_turns", "n"),
            TableColumn("num_matches", "matches"),
            RATE,
            INTERVAL,
            *_paper(RATE),
            *_less(RATE),
        ),
        notes=(
            "The selector's most probable emotion against the recorded one, over all focal turns "
            "of the sweep, those that SFT keeps, and by outcome; intervals draw whole scenarios. "
            "One in 28 (3.6 %) would match by chance.",
            ABOUT_RUN,
            NOTE_PAPER,
        ),
        made_by="train_iql.py",
    ),
    Recipe(
        name="shift",
        title="States of the sweep and of evaluation",
        content=emotion_content.shifted_features,
        columns=(
            TableColumn("feature"),
            TableColumn("distance", "KS distance", digits=2),
            TableColumn("sweep_mean", "mean, sweep", digits=2),
            TableColumn("evaluation_mean", f"mean, {FULLY_TRAINED}", digits=2),
        ),
        notes=(
            f"The {NUM_SHIFTS} features of the state whose distributions are furthest apart "
            f"between the sweep and the dialogues of {FULLY_TRAINED}; the paper names this shift "
            "and does not measure it.",
            ABOUT_RUN,
        ),
        made_by=f"evaluate.py --method {FULLY_TRAINED}",
    ),
    Recipe(
        name="ratings",
        title="Strength by method",
        content=tournament_content.strengths,
        columns=(
            METHOD,
            TableColumn("strength", "log strength", digits=2, is_signed=True, best="max"),
            dataclasses.replace(INTERVAL, digits=2, is_signed=True),
            TableColumn("num_bouts", "bouts"),
        ),
        notes=(
            "Bradley-Terry over both seats: a bout is a dialogue, its score the focal side's share "
            "of the gap, a draw where talks failed. Strengths are centred at 0.",
            ABOUT_RUN,
        ),
        made_by="tournament.py",
    ),
    Recipe(
        name="differences",
        title="Paired differences in utility",
        content=method_content.differences,
        columns=(
            TableColumn("comparison"),
            TableColumn("num_scenarios", "scenarios"),
            TableColumn("difference", is_signed=True),
            dataclasses.replace(INTERVAL, is_signed=True),
            TableColumn("reading"),
            TableColumn("p", digits=4),
            TableColumn("p_holm", "p, Holm", digits=4),
            TableColumn("num_needed", "needed"),
        ),
        notes=(
            "Differences in utility on the same scenarios, in points of per cent, with paired "
            "scenario-clustered 95 % percentile bootstrap intervals; unclear: the interval "
            "includes zero. p: two-sided sign-flip test on the scenarios' mean differences, and "
            "its Holm correction for all comparisons of the domain. Needed: scenarios with which a "
            f"paired t-test at 0.05 sees an effect of {EFFECT_POINTS:g} points with a power of "
            f"{POWER:g}, the differences varying as they do here. N/A: a single scenario.",
            ABOUT_RUN,
        ),
        made_by="evaluate.py",
    ),
    Recipe(
        name="cost",
        title="Cost of the calls",
        content=cost_content.call_costs,
        columns=(
            TableColumn("domain"),
            TableColumn("stage"),
            TableColumn("name", "what"),
            TableColumn("num_calls", "calls"),
            TableColumn("num_retries", "repeated"),
            TableColumn("prompt_tokens", "prompt tokens"),
            TableColumn("completion_tokens", "completion tokens"),
            TableColumn("cost_usd", "USD", digits=2),
            TableColumn("paper_usd", "USD, four domains", digits=2, group="paper"),
        ),
        notes=(
            "Counted call by call, those that were repeated or came to nothing included; tokens "
            "are what the servers reported. Beside it the paper's own figures for its four domains "
            "(Appendix N).",
            ABOUT_RUN,
        ),
        made_by="sweep.py",
    ),
    Recipe(
        name="policy-cost",
        title="Offline and on-policy steps",
        content=training_content.step_times,
        columns=(
            TableColumn("domain"),
            *STEP_TIMES,
            TableColumn("num_turns", "turns"),
            *STEP_FACTORS,
            *_paper(*STEP_TIMES, *STEP_FACTORS),
        ),
        notes=(
            "Offline step: median over the steps of JPO's default cell, so that compilation plays "
            "no part. Negotiation and judging: what the sweep's turns and the judge's answers took "
            "to come, at as many calls at once as there were and without pauses for retries or "
            "rate limits; means over dialogues and over answers (on turns, and on whole dialogues "
            "where they were judged). On-policy step: samples × (negotiation + judged turns × "
            "judging) / dialogues at once (Eq. 33), the sweep's dialogues standing for those of "
            "the policy; ratio: on-policy over offline. N/A: the files do not tell.",
            ABOUT_RUN,
            "Columns of the *paper*: EmoDistill, arXiv:2605.26785, its estimate for Qwen2.5-7B on "
            "one A100 and Qwen3.5-Plus, all domains alike.",
        ),
        made_by="train_jpo.py",
    ),
)
"""The tables in the order in which the page shows them."""
