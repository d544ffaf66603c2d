"""What the emotions of dialogues say: Table 16, Appendices B and H, and the shift of states."""

from __future__ import annotations

from emodistill.domains import DOMAINS
from emodistill.evaluation.comparisons import emotion_tests
from emodistill.evaluation.sequences import match_rates, state_shift, top_sequences
from emodistill.offline.judging import scores_by_turn
from emodistill.reports import paper
from emodistill.reports.run_data import PAPER_DOMAIN, RunData, notes
from emodistill.reports.table import Cell, Column, Range, Table
from emodistill.reports.tables import (
    NOTE_PAPER,
    TAUGHT,
    blocks,
    order_of,
)
from emodistill.seeding import stream
from emodistill.selectors import IQLSelector

TOP_SEQUENCES = 5


def table_16(data: RunData) -> Table | None:
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
            *notes(data, (t for ts in data.trajectories.values() for t in ts), ()),
            NOTE_PAPER,
        ),
    )


PAPER_MATCHES = {"all": (136, 2104), "kept": (25, 526)}
"""Of CRAD (Appendix H)."""


def matches(data: RunData) -> Table | None:
    """How often a greedy selector would have said what was recorded (Appendix H)."""
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for domain in sorted(data.selectors, key=order_of(DOMAINS)):
        if domain not in data.trajectories or domain not in data.judgements:
            continue
        selector = IQLSelector.load(data.selectors[domain], greedy=True)
        dice = stream(data.resampling.seed, "matches", domain)
        found = match_rates(
            data.trajectories[domain],
            scores_by_turn(data.judgements[domain]),
            lambda state, selector=selector, dice=dice: selector.choose(state, dice),
            max_turns=data.cap(domain),
            n_resamples=data.resampling.num_resamples,
            seed=data.resampling.seed,
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
            *notes(data, (), ()),
            NOTE_PAPER,
        ),
    )


NUM_SHIFTS = 8


def shift(data: RunData) -> Table | None:
    """How far the states of evaluation are from those that were learned from."""
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for domain in sorted(data.trajectories, key=order_of(DOMAINS)):
        played = data.evaluations.get(domain, {}).get(TAUGHT, ())
        if not any(t.focal_turns for t in played):
            continue
        most = data.cap(domain)
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
            *notes(data, (), ()),
        ),
    )


def emotions(data: RunData) -> Table | None:
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
            *notes(data, (t for ts, _ in data.emotions.values() for t in ts), ()),
        ),
    )
