"""What the emotions of dialogues say: Table 16, Appendices B and H, and the shift of states."""

from __future__ import annotations

import functools

from emodistill.evaluation.comparisons import emotion_tests
from emodistill.evaluation.sequences import match_rates, state_shift, top_sequences
from emodistill.offline.judging import scores_by_turn
from emodistill.offline.run_files import turn_limit
from emodistill.reports import paper
from emodistill.reports.labels import FULLY_TRAINED, PAPER_DOMAIN
from emodistill.reports.recipe import TableContent
from emodistill.reports.results import by_domain
from emodistill.reports.run_data import RunData
from emodistill.seeding import stream
from emodistill.selectors import IQLSelector

NUM_SEQUENCES = 5
"""Sequences of a domain in Table 16; the paper lists three."""
NUM_SHIFTS = 8
"""Features of the state that are listed; the others differ less."""
PAPER_MATCH_RATES = {
    (PAPER_DOMAIN, "all"): [100 * 136 / 2104],
    (PAPER_DOMAIN, "kept"): [100 * 25 / 526],
}
"""Matches by turns, in per cent (Appendix H)."""


def emotion_sequences(data: RunData) -> TableContent:
    """Table 16: the emotion sequences that end best in the sweep."""
    rows = []
    frame = data.played_in("sweep")
    for domain, swept in by_domain(frame):
        listed = paper.tables()["16"].get(domain, {})
        theirs = [f"{pair} ({n}, {value:.2f})" for pair, (n, value) in listed.items()]
        ours = top_sequences(list(swept.dialogue), average=data.readings.average)
        for rank, row in enumerate(ours.head(NUM_SEQUENCES).to_dict("records")):
            name = f"{row['first']} → {row['second']}"
            if rank < len(theirs):
                row["paper"] = theirs[rank]
            if name in listed:
                row["less"] = row["outcomes"] - listed[name][1]
            rows.append({"block": domain, "sequence": name} | row)
    return TableContent(rows, players_of=frame)


def selector_matches(data: RunData) -> TableContent:
    """How often a greedy selector would have said what was recorded (Appendix H)."""
    rows = []
    for domain, path in data.files("iql/default/selector.safetensors").items():
        dialogues = data.records("sweep", domain=domain)
        if not dialogues or domain not in data.judgements:
            continue
        selector = IQLSelector.load(path.parent, greedy=True)
        rows += [
            {"block": domain, "published": PAPER_MATCH_RATES.get((domain, row["group"]))} | row
            for row in match_rates(
                dialogues,
                scores_by_turn(data.judgements[domain]),
                functools.partial(
                    selector.choose, rng=stream(data.resampling.seed, "matches", domain)
                ),
                *data.resampling,
                limit=turn_limit(data.data_dir / domain),
            )
        ]
    return TableContent(rows)


def shifted_features(data: RunData) -> TableContent:
    """How far the states of evaluation are from those that were learned from."""
    rows = []
    for domain, swept in by_domain(data.played_in("sweep")):
        played = data.records("evaluation", domain=domain, label=FULLY_TRAINED)
        if any(t.focal_turns for t in played):
            shifts = state_shift(
                list(swept.dialogue), played, limit=turn_limit(data.data_dir / domain)
            )
            rows += shifts.head(NUM_SHIFTS).assign(block=domain).to_dict("records")
    return TableContent(rows)


def emotions_against_neutral(data: RunData) -> TableContent:
    """Each emotion against neutral (Appendix B)."""
    frame = data.played_in("study", study="emotions")
    rows = [
        {"block": domain} | test
        for domain, played in by_domain(frame)
        for test in emotion_tests(
            list(played.dialogue), scores_by_turn(data.emotion_judgements.get(domain, ()))
        )
    ]
    return TableContent(rows, players_of=frame)
