"""Every table of the report by its name, made from what a run holds; the paper's numbering.

A table over partial data says below it what is missing, and each says which models played it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from emodistill.agents import METHODS as KNOWN_METHODS
from emodistill.configs import METHODS, TournamentConfig
from emodistill.domains import DOMAINS, get_domain
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.evaluation.arms import Arm
from emodistill.evaluation.comparisons import emotion_tests
from emodistill.evaluation.ratings import Bout, bradley_terry
from emodistill.evaluation.sequences import match_rates, state_shift, top_sequences
from emodistill.evaluation.stability import stability_row
from emodistill.evaluation.tournament import Pair, PairScore, pair_scores, tournament_matrix
from emodistill.offline.judging import scores_by_turn
from emodistill.records import Judgement, Trajectory
from emodistill.reports import costs, paper
from emodistill.reports.figures import Curve
from emodistill.reports.table import Block, Cell, Column, PlusMinus, Range, Table
from emodistill.reports.tables import (
    NOTE_PAPER,
    TAUGHT,
    TITLES,
    Entry,
    Evaluations,
    Resampling,
    blocks,
    difference_table,
    entries_of,
    method_rows,
    method_table,
    order_of,
    outcome_table,
    paired_differences,
)
from emodistill.seeding import stream
from emodistill.selectors import IQLSelector

Played = Mapping[str, Sequence[Trajectory]]
PAPER_DOMAIN = "crad"
"""Where the paper has run what it has run in one domain."""
TOP_SEQUENCES = 5
TOURNAMENT = TournamentConfig().methods
"""Those of Table 13, in its order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """What a run holds; empty parts are left out of the report."""

    run_dir: Path
    evaluations: Evaluations = field(default_factory=dict)
    judgements: Mapping[str, Sequence[Judgement]] = field(default_factory=dict)
    """domain -> judge calls on the sweep."""
    trajectories: Played = field(default_factory=dict)
    """domain -> dialogues of the sweep."""
    curves: Sequence[Curve] = ()
    support: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """domain -> the support map of its selector."""
    selectors: Mapping[str, Path] = field(default_factory=dict)
    """domain -> the folder of its trained selector."""
    max_turns: Mapping[str, int] = field(default_factory=dict)
    """domain -> the cap that the sweep was played under."""
    scenarios: Mapping[str, Sequence[Scenario]] = field(default_factory=dict)
    arms: Mapping[str, Sequence[Arm]] = field(default_factory=dict)
    """study -> its arms."""
    arm_dialogues: Played = field(default_factory=dict)
    """path of an arm -> its dialogues."""
    arm_curves: Mapping[str, Curve] = field(default_factory=dict)
    """path of an arm -> its metrics."""
    emotions: Mapping[str, tuple[Sequence[Trajectory], Sequence[Judgement]]] = field(
        default_factory=dict
    )
    """domain -> dialogues under single emotions, and their judge calls; ids begin with the
    emotion."""
    tournament: Mapping[str, Mapping[Pair, Sequence[Trajectory]]] = field(default_factory=dict)
    """domain -> methods in the focal and the other seat -> dialogues."""
    unfinished: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(domain, method) of evaluations that were cut off -> the command that goes on."""
    num_failed: int = 0
    """Dialogues of stage 5 that never came about."""
    caveat: str = ""
    """What every table says about where its figures come from."""


def _notes(data: RunData, dialogues: Iterable[Trajectory], missing: Sequence[str]) -> list[str]:
    played = list(dialogues)
    notes = []
    if played:
        focal = ", ".join(sorted({t.focal.model for t in played}))
        other = ", ".join(sorted({t.counterparty.model for t in played}))
        notes.append(f"Focal side: {focal}. Counterparty: {other}.")
    if missing:
        notes.append(f"Missing: {'; '.join(missing)}.")
    if data.caveat:
        notes.append(f"**{data.caveat}**")
    return notes


def _methods(
    name: str,
    title: str,
    methods: Sequence[str] | None,
    domains: Sequence[str],
    data: RunData,
    resampling: Resampling,
) -> Table | None:
    """A table of methods in their default cells; all of them without `methods`."""
    entries = [
        entry
        for entry in entries_of(data.evaluations)
        if entry.block in domains and (methods is None or entry.label in methods)
    ]
    if methods is not None:
        order = order_of(methods)
        entries.sort(key=lambda entry: (order_of(DOMAINS)(entry.block), order(entry.label)))
    if not entries:
        return None
    there = {(entry.block, entry.label) for entry in entries}
    missing = [
        f"{method} in {TITLES[domain]}"
        for domain in dict.fromkeys(entry.block for entry in entries)
        for method in methods or METHODS
        if (domain, method) not in there
    ]
    missing += [
        f"some dialogues of {method} in {TITLES[domain]} (go on with {command})"
        for (domain, method), command in data.unfinished.items()
        if (domain, method) in there
    ]
    notes = _notes(data, (t for entry in entries for t in entry.dialogues), missing)
    if name == "table-9":
        return outcome_table(name, title, entries, resampling, notes)
    return method_table(name, title, method_rows(name, entries, resampling), notes)


def _missing(arm: Arm) -> str:
    reason = f" ({arm.reason.rstrip('.')})" if arm.reason else ""
    block = TITLES.get(arm.block, f"{TITLES[arm.domain]}: {arm.block}")
    return f"{block} {arm.label}{reason}"


def _study(
    study: str, name: str, title: str, data: RunData, resampling: Resampling
) -> Table | None:
    """A table of a study's arms."""
    arms = [arm for arm in data.arms.get(study, ()) if arm.method is not None]
    finished = [arm for arm in arms if arm.path in data.arm_dialogues]
    if not finished:
        return None
    is_by_domain = all(arm.block == arm.domain for arm in arms)
    entries = []
    for arm in finished:
        block = arm.block if is_by_domain else f"{TITLES[arm.domain]}: {arm.block}"
        published_as = arm.block if is_by_domain or arm.domain == PAPER_DOMAIN else None
        dialogues = data.arm_dialogues[str(arm.path)]
        entries.append(Entry(block, arm.label, dialogues, published_as))
    missing = [_missing(arm) for arm in arms if arm not in finished]
    notes = _notes(data, (t for entry in entries for t in entry.dialogues), missing)
    if name in ("table-10", "table-11"):
        return outcome_table(name, title, entries, resampling, notes)
    return method_table(name, title, method_rows(name, entries, resampling), notes)


def _differences(data: RunData, resampling: Resampling) -> Table | None:
    found = paired_differences(data.evaluations, resampling)
    return difference_table(found, _notes(data, (), ())) if found else None


EMOTION_WORDS = {
    "none": "no block",
    "neutral": "neutral",
    "random": "uniform",
    "fixed": "one label",
    "iql": "IQL policy",
    "oracle": "the planted best",
}
ADAPTER_WORDS = {
    None: "–",
    "sft": "best quarter by hybrid score",
    "jpo": "turn judge, clipped",
    "alol": "A times likelihood, A > 0",
    "dpo": "pairs of turns",
}


def table_7(data: RunData, resampling: Resampling) -> Table:
    """What each method learns, from the definitions that run it."""
    rows = []
    for name, method in KNOWN_METHODS.items():
        adapters = [stage for stage in method.stages if stage != "iql"]
        rows.append(
            (
                name,
                "language model" if method.writer == "llm" else "student",
                "terminal R(τ)" if method.emotion == "iql" else "–",
                ", ".join(ADAPTER_WORDS[stage] for stage in adapters) or "–",
                EMOTION_WORDS[method.emotion],
            )
        )
    columns = (
        Column(key="method", title="method"),
        Column(key="writer", title="writer"),
        Column(key="selector", title="selector learns from"),
        Column(key="adapter", title="adapter learns from"),
        Column(key="emotion", title="emotion at inference"),
    )
    return Table(
        name="table-7",
        title="What each method learns",
        columns=columns,
        blocks=(Block(title="", rows=tuple(rows)),),
    )


def table_8(data: RunData, resampling: Resampling) -> Table | None:
    """The data sets: size, direction, quantity."""
    if not data.scenarios:
        return None
    rows: list[tuple[Cell, ...]] = []
    for domain in sorted(data.scenarios, key=order_of(DOMAINS)):
        found = data.scenarios[domain]
        gaps = np.array([s.focal_target - s.counterparty_anchor for s in found])
        is_lower = float(np.mean(gaps < 0))
        sign = "target < anchor" if is_lower > 0.5 else "target > anchor"
        splits = [sum(s.split == name for s in found) for name in ("train", "validation", "test")]
        quantity = f"{get_domain(domain).quantity}, {get_domain(domain).unit}"
        shared = float(np.mean(np.sign(gaps) == np.sign(np.median(gaps))))
        rows.append((TITLES[domain], len(found), *splits, sign, 100 * shared, quantity, 100))
    columns = (
        Column(key="domain", title="data set"),
        Column(key="num_scenarios", title="N"),
        *(Column(key=name, title=name) for name in ("train", "validation", "test")),
        Column(key="gap_sign", title="gap sign"),
        Column(key="gap_sign_share", title="of scenarios %"),
        Column(key="quantity", title="quantity"),
        Column(key="paper_num_scenarios", title="N", group="paper"),
    )
    missing = [TITLES[domain] for domain in DOMAINS if domain not in data.scenarios]
    return Table(
        name="table-8",
        title="Data sets",
        columns=columns,
        blocks=(Block(title="", rows=tuple(rows)),),
        notes=tuple(_notes(data, (), missing)),
    )


def table_13(data: RunData, resampling: Resampling) -> Table | None:
    """Methods against each other: rows in the focal seat, columns in the counterparty's."""
    if not data.tournament:
        return None
    pairs = [pair for played in data.tournament.values() for pair in played]
    names = sorted({name for pair in pairs for name in pair}, key=order_of(TOURNAMENT))
    found_blocks, missing = [], []
    for domain in sorted(data.tournament, key=order_of(DOMAINS)):
        matrix = tournament_matrix(data.tournament[domain])
        rows = []
        for focal in names:
            cells: list[Cell] = [focal]
            for other in names:
                cell = matrix.get((focal, other))
                if cell is None or not cell.num_dialogues:
                    missing.append(f"{focal} against {other} in {TITLES[domain]}")
                    cells += [None] * 4
                    continue
                published = paper.tables()["13"] if domain == PAPER_DOMAIN else {}
                theirs = published.get(f"{focal} @ {other}")
                cells += [
                    100 * cell.success,
                    PlusMinus(100 * cell.utility, 100 * cell.utility_std),
                    None if theirs is None else PlusMinus(*theirs[1:]),
                    None if theirs is None else 100 * cell.utility - theirs[1],
                ]
            rows.append(tuple(cells))
        found_blocks.append(Block(title=TITLES[domain], rows=tuple(rows)))
    columns = [Column(key="focal", title="focal \\ counterparty")]
    for other in names:
        columns += [
            Column(key=f"success_{other}", title="success %", group=other),
            Column(key=f"utility_{other}", title="utility %", group=other, best="max"),
            Column(key=f"paper_{other}", title="paper", group=other),
            Column(key=f"less_{other}", title="less", group=other, is_signed=True),
        ]
    dialogues = [t for pairs in data.tournament.values() for ts in pairs.values() for t in ts]
    return Table(
        name="table-13",
        title="Trained against trained",
        columns=tuple(columns),
        blocks=tuple(found_blocks),
        notes=(
            "Success and utility of the focal seat, failures counted as 0; ± is the population "
            "standard deviation. Bold: the best utility against a counterparty.",
            *_notes(data, dialogues, missing),
            NOTE_PAPER,
        ),
    )


def ratings(data: RunData, resampling: Resampling) -> Table | None:
    """Bradley-Terry strengths from a tournament in which the seats were swapped."""
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for domain in sorted(data.tournament, key=order_of(DOMAINS)):
        found = [
            Bout(score.focal, score.counterparty, _score(score), score.scenario_id)
            for score in pair_scores(data.tournament[domain])
        ]
        for rating in bradley_terry(found, resampling.num_resamples, resampling.seed):
            interval = Range(rating.low, rating.high)
            rows.append((domain, (rating.method, rating.strength, interval, rating.num_bouts)))
    if not rows:
        return None
    return Table(
        name="ratings",
        title="Strength by method",
        columns=(
            Column(key="method", title="method"),
            Column(key="strength", title="log strength", digits=2, is_signed=True, best="max"),
            Column(key="interval", title="95 % interval", digits=2, is_signed=True),
            Column(key="num_bouts", title="bouts"),
        ),
        blocks=blocks(rows),
        notes=(
            "Bradley-Terry over both seats: a bout is a dialogue, its score the focal side's share "
            "of the gap, a draw where talks failed. Strengths are centred at 0.",
            *_notes(data, (), ()),
        ),
    )


def _score(score: PairScore) -> float:
    """Of the focal side in a bout: its share of an agreement, a draw where talks failed."""
    return score.share if score.counterparty_share + score.share else 0.5


def table_15(data: RunData, resampling: Resampling) -> Table | None:
    """How quietly training ended."""
    runs = [
        (curve.stage, curve.domain, curve.name, curve)
        for curve in data.curves
        if curve.stage in ("iql", "sft", "jpo") and curve.cell == "default"
    ]
    for arm in data.arms.get("emotion-free", ()):
        if arm.path in data.arm_curves:
            curve = data.arm_curves[str(arm.path)]
            runs.append(("jpo", arm.domain, f"{TITLES[arm.domain]}, {arm.label}", curve))
    runs.sort(key=lambda run: (("iql", "sft", "jpo").index(run[0]), order_of(DOMAINS)(run[1])))
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    missing = []
    for stage, domain, name, curve in runs:
        try:
            found = stability_row(stage, curve.metrics)
        except InputError:
            missing.append(f"{stage} of {name}, which has logged nothing yet")
            continue
        is_papers = stage != "jpo" or PAPER_EPOCHS in name
        theirs = paper.tables()["15"].get(f"{stage} {domain}") if is_papers else None
        cells: list[Cell] = [name, found.num_points, found.num_steps, found.first, found.last]
        quarters = [PlusMinus(quarter.median, quarter.mad) for quarter in found.controls]
        cells += [quarters[0], quarters[1] if len(quarters) > 1 else None]
        cells += [found.kl_spikes, found.ratio_clips]
        if theirs is None:
            cells += [None] * 7
        else:
            has_ratio = len(theirs) > 6
            cells += [*theirs[2:4], PlusMinus(*theirs[4:6])]
            cells += [PlusMinus(*theirs[6:8]), *theirs[8:10]] if has_ratio else [None] * 3
            cells.append(found.last - theirs[3])
        title = {"iql": "IQL", "sft": "LoRA-SFT", "jpo": "JPO"}[stage]
        rows.append((title, tuple(cells)))
    if not rows:
        return None
    return Table(
        name="table-15",
        title="Stability of training",
        columns=STABILITY_COLUMNS,
        blocks=blocks(rows),
        notes=(
            "Signal: critic loss, loss per token, clipped surrogate; medians of the first and the "
            "last quarter of the points. Control: median ± MAD of critic loss, loss per token, KL "
            "over the last quarter. Spikes: KL > 0.5; clips: mean ratio outside [0.8, 1.2]. The "
            "paper's JPO rows are emotion-free runs of five epochs.",
            *_notes(data, (), missing),
            NOTE_PAPER,
        ),
    )


PAPER_EPOCHS = "5 epochs"
STABILITY_COLUMNS = (
    Column(key="run", title="run"),
    Column(key="num_points", title="points"),
    Column(key="num_steps", title="steps"),
    Column(key="first", title="signal, first", digits=2),
    Column(key="last", title="signal, last", digits=2),
    Column(key="control", title="control", digits=3),
    Column(key="ratio", title="ratio", digits=3),
    Column(key="kl_spikes", title="KL spikes"),
    Column(key="ratio_clips", title="ratio clips"),
    Column(key="paper_first", title="signal, first", digits=2, group="paper"),
    Column(key="paper_last", title="signal, last", digits=2, group="paper"),
    Column(key="paper_control", title="control", digits=3, group="paper"),
    Column(key="paper_ratio", title="ratio", digits=3, group="paper"),
    Column(key="paper_kl_spikes", title="KL spikes", group="paper"),
    Column(key="paper_ratio_clips", title="ratio clips", group="paper"),
    Column(key="less_last", title="last", group="ours − paper", digits=2, is_signed=True),
)


def table_16(data: RunData, resampling: Resampling) -> Table | None:
    """The emotion sequences that end best in the sweep."""
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for domain in sorted(data.trajectories, key=order_of(DOMAINS)):
        listed = paper.tables()["16"].get(domain, {})
        theirs = [f"{pair} ({n}, {value:.2f})" for pair, (n, value) in listed.items()]
        for place, found in enumerate(top_sequences(data.trajectories[domain])[:TOP_SEQUENCES]):
            own = f"{found.first} → {found.second}"
            same = listed.get(own)
            cells: tuple[Cell, ...] = (
                own,
                found.num_dialogues,
                found.utility,
                found.outcomes,
                theirs[place] if place < len(theirs) else None,
                None if same is None else found.utility - same[1],
            )
            rows.append((domain, cells))
    if not rows:
        return None
    return Table(
        name="table-16",
        title="Two-step emotion sequences that end best",
        columns=(
            Column(key="sequence", title="sequence"),
            Column(key="num_dialogues", title="n"),
            Column(key="utility", title="savings, failures 0", digits=2),
            Column(key="outcomes", title="over successes", digits=2),
            Column(key="paper", title="its best (n, savings)", group="paper"),
            Column(
                key="less", title="same sequence", group="ours − paper", digits=2, is_signed=True
            ),
        ),
        blocks=blocks(rows),
        notes=(
            "Emotions of consecutive focal turns in at least three dialogues of the sweep, by mean "
            "savings; each dialogue counts once for a sequence.",
            *_notes(data, (t for ts in data.trajectories.values() for t in ts), ()),
            NOTE_PAPER,
        ),
    )


PAPER_MATCHES = {"all": (136, 2104), "kept": (25, 526)}
"""Of CRAD (Appendix H)."""


def matches(data: RunData, resampling: Resampling) -> Table | None:
    """How often a greedy selector would have said what was recorded (Appendix H)."""
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for domain in sorted(data.selectors, key=order_of(DOMAINS)):
        if domain not in data.trajectories or domain not in data.judgements:
            continue
        selector = IQLSelector.load(data.selectors[domain], greedy=True)
        dice = stream(resampling.seed, "matches", domain)
        found = match_rates(
            data.trajectories[domain],
            scores_by_turn(data.judgements[domain]),
            lambda state, selector=selector, dice=dice: selector.choose(state, dice),
            max_turns=data.max_turns.get(domain, 30),
            n_resamples=resampling.num_resamples,
            seed=resampling.seed,
        )
        for row in found:
            published = PAPER_MATCHES.get(row.group) if domain == PAPER_DOMAIN else None
            theirs = None if published is None else 100 * published[0] / published[1]
            cells: tuple[Cell, ...] = (
                row.group,
                row.num_turns,
                row.num_matches,
                100 * row.rate.mean,
                Range(100 * row.rate.low, 100 * row.rate.high),
                theirs,
                None if theirs is None else 100 * row.rate.mean - theirs,
            )
            rows.append((domain, cells))
    if not rows:
        return None
    return Table(
        name="matches",
        title="Recorded emotions that the selector would have chosen",
        columns=(
            Column(key="group", title="turns"),
            Column(key="num_turns", title="n"),
            Column(key="num_matches", title="matches"),
            Column(key="rate", title="rate %"),
            Column(key="interval", title="95 % interval"),
            Column(key="paper_rate", title="rate %", group="paper"),
            Column(key="less_rate", title="rate %", group="ours − paper", is_signed=True),
        ),
        blocks=blocks(rows),
        notes=(
            "The selector's most probable emotion against the recorded one, over all focal turns "
            "of the sweep, those that SFT keeps, and by outcome; intervals draw whole scenarios. "
            "One in 28 (3.6 %) would match by chance.",
            *_notes(data, (), ()),
            NOTE_PAPER,
        ),
    )


NUM_SHIFTS = 8


def shift(data: RunData, resampling: Resampling) -> Table | None:
    """How far the states of evaluation are from those that were learned from."""
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for domain in sorted(data.trajectories, key=order_of(DOMAINS)):
        played = data.evaluations.get(domain, {}).get(TAUGHT, ())
        if not any(t.focal_turns for t in played):
            continue
        most = data.max_turns.get(domain, 30)
        found = state_shift(data.trajectories[domain], played, max_turns=most)
        rows += [(domain, tuple(row)) for row in found[:NUM_SHIFTS]]
    if not rows:
        return None
    return Table(
        name="shift",
        title="States of the sweep and of evaluation",
        columns=(
            Column(key="feature", title="feature"),
            Column(key="distance", title="KS distance", digits=2),
            Column(key="sweep_mean", title="mean, sweep", digits=2),
            Column(key="evaluation_mean", title=f"mean, {TAUGHT}", digits=2),
        ),
        blocks=blocks(rows),
        notes=(
            f"The {NUM_SHIFTS} features of the state whose distributions are furthest apart "
            f"between the sweep and the dialogues of {TAUGHT}; the paper names this shift and does "
            "not measure it.",
            *_notes(data, (), ()),
        ),
    )


def emotions(data: RunData, resampling: Resampling) -> Table | None:
    """Each emotion against neutral (Appendix B)."""
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for domain in sorted(data.emotions, key=order_of(DOMAINS)):
        trajectories, judgements = data.emotions[domain]
        for test in emotion_tests(trajectories, scores_by_turn(judgements)):
            cells: tuple[Cell, ...] = (
                test.emotion,
                test.num_scenarios,
                test.difference.mean,
                Range(*test.difference[1:]),
                Range(*test.welch[1:]),
                test.t,
                test.p,
                test.p_bonferroni,
            )
            rows.append((domain, cells))
    if not rows:
        return None
    return Table(
        name="emotions",
        title="Each emotion against neutral",
        columns=(
            Column(key="emotion", title="emotion"),
            Column(key="num_scenarios", title="scenarios"),
            Column(key="difference", title="difference", digits=2, is_signed=True),
            Column(key="interval", title="95 % interval", digits=2, is_signed=True),
            Column(key="welch", title="Welch, over turns", digits=2, is_signed=True),
            Column(key="t", title="t", digits=2),
            Column(key="p", title="p", digits=4),
            Column(key="p_bonferroni", title="p, Bonferroni", digits=4),
        ),
        blocks=blocks(rows),
        notes=(
            "Judge scores of focal turns (1 to 10) under one emotion at every turn, less those "
            "under neutral on the same scenarios; paired t-test over scenarios, corrected for 27 "
            "comparisons.",
            *_notes(data, (t for ts, _ in data.emotions.values() for t in ts), ()),
        ),
    )


COST_COLUMNS = (
    Column(key="domain", title="domain"),
    Column(key="stage", title="stage"),
    Column(key="name", title="what"),
    Column(key="num_calls", title="calls"),
    Column(key="num_retries", title="repeated"),
    Column(key="prompt_tokens", title="prompt tokens"),
    Column(key="completion_tokens", title="completion tokens"),
    Column(key="cost_usd", title="USD", digits=2),
    Column(key="paper_usd", title="USD, four domains", digits=2, group="paper"),
)


def cost(data: RunData, resampling: Resampling) -> Table | None:
    """What the calls used (Appendix N)."""
    used = costs.read_costs(data.run_dir)
    if not used:
        return None
    rows = [(TITLES[c.domain], c.stage, c.name, *c.usage, None) for c in used]
    sums = [("all", stage, "", *usage, usd) for stage, usage, usd in costs.sums(used)]
    return Table(
        name="cost",
        title="Cost of the calls",
        columns=COST_COLUMNS,
        blocks=(Block(title="By stage", rows=tuple(rows)), Block(title="Sums", rows=tuple(sums))),
        notes=(costs.NOTE, *_notes(data, (), ())),
    )


def _crad(data: RunData) -> Sequence[str]:
    """The domain of what the paper has for CRAD alone; another one if that is missing."""
    return [PAPER_DOMAIN] if PAPER_DOMAIN in data.evaluations else list(data.evaluations)[:1]


Maker = Callable[[RunData, Resampling], Table | None]
TRAINED_FREE = ("free-sft", "free-jpo", "free-sft+jpo")
FREE = ("vanilla-slm", *TRAINED_FREE, "iql+sft+jpo", "iql+sft+jpo-stripped")


def _free(name: str, title: str, is_crad: bool, data: RunData, r: Resampling) -> Table | None:
    domains = [
        domain
        for domain in (_crad(data) if is_crad else DOMAINS)
        if set(TRAINED_FREE) & data.evaluations.get(domain, {}).keys()
    ]
    return _methods(name, title, FREE, domains, data, r)


def _refined(data: RunData, r: Resampling) -> Table | None:
    methods = ("iql+sft+alol", "iql+sft+jpo", "iql+sft+dpo")
    domains = [d for d in DOMAINS if {methods[0], methods[2]} & data.evaluations.get(d, {}).keys()]
    return _methods("table-14", "A-LoL and DPO in place of JPO", methods, domains, data, r)


def _main(name: str, title: str, methods: Sequence[str] | None) -> Maker:
    return functools.partial(_methods, name, title, methods, DOMAINS)


TABLES: Mapping[str, Maker] = {
    "table-1": _main("table-1", "Methods by domain", None),
    "table-2": functools.partial(_study, "signal", "table-2", "Training signals"),
    "table-3": functools.partial(_free, "table-3", "Without emotions", True),
    "table-4": functools.partial(_study, "transfer", "table-4", "Transfer between domains"),
    "table-5": functools.partial(_study, "counterparty", "table-5", "Unseen counterparties"),
    "table-6": functools.partial(_study, "kappa", "table-6", "Weight of negative advantages"),
    "table-7": table_7,
    "table-8": table_8,
    "table-9": _main("table-9", "Outcomes by domain", METHODS),
    "table-10": functools.partial(_study, "counterparty", "table-10", "Outcomes: counterparties"),
    "table-11": functools.partial(_study, "signal", "table-11", "Outcomes: training signals"),
    "table-12": functools.partial(_free, "table-12", "Without emotions, all domains", False),
    "table-13": table_13,
    "table-14": _refined,
    "table-15": table_15,
    "table-16": table_16,
    "kl": functools.partial(_study, "kl", "kl", "KL coefficient"),
    "rank": functools.partial(_study, "rank", "rank", "Rank of LoRA"),
    "iql": functools.partial(_study, "iql", "iql", "Settings of the selector"),
    "emotions": emotions,
    "matches": matches,
    "shift": shift,
    "ratings": ratings,
    "differences": _differences,
    "cost": cost,
}
"""Name -> what makes it; None where the run holds nothing for it."""

HINTS: Mapping[str, str] = {
    **dict.fromkeys(("table-1", "table-9", "differences"), "evaluate.py"),
    **dict.fromkeys(("table-2", "table-11"), "ablate.py signal"),
    **dict.fromkeys(("table-3", "table-12"), "ablate.py emotion-free"),
    "table-4": "ablate.py transfer",
    **dict.fromkeys(("table-5", "table-10"), "ablate.py counterparty"),
    "table-6": "ablate.py kappa",
    "table-8": "sweep.py",
    **dict.fromkeys(("table-13", "ratings"), "tournament.py"),
    "table-14": "ablate.py refinement",
    "table-15": "train_iql.py",
    "table-16": "sweep.py",
    **{name: f"ablate.py {name}" for name in ("kl", "rank", "iql")},
    "emotions": "emotion_study.py",
    "matches": "train_iql.py",
    "shift": f"evaluate.py --method {TAUGHT}",
    "cost": "sweep.py",
}
"""Table -> the script that makes what it is made from."""
