"""What the emotions of dialogues say: Table 16, Appendices B and H, and the shift of states."""

from __future__ import annotations

from emodistill.evaluation.comparisons import emotion_tests
from emodistill.evaluation.sequences import match_rates, state_shift, top_sequences
from emodistill.offline.judging import scores_by_turn
from emodistill.offline.run_files import max_turns
from emodistill.reports import paper
from emodistill.reports.labels import FULLY_TRAINED, PAPER_DOMAIN, in_order
from emodistill.reports.recipe import TableContent
from emodistill.reports.results import interval
from emodistill.reports.run_data import RunData
from emodistill.seeding import stream
from emodistill.selectors import IQLSelector

NUM_SEQUENCES = 5
"""Sequences of a domain in Table 16; the paper lists three."""
NUM_SHIFTS = 8
"""Features of the state that are listed; the others differ less."""
PAPER_MATCHES = {"all": (136, 2104), "kept": (25, 526)}
"""Matches and turns of CRAD (Appendix H)."""


def emotion_sequences(data: RunData) -> TableContent:
    """Table 16: the emotion sequences that end best in the sweep."""
    rows = []
    frame = data.played_in("sweep")
    for domain in in_order(frame.domain.unique()):
        listed = paper.tables()["16"].get(domain, {})
        theirs: list[str | None] = [
            f"{pair} ({n}, {value:.2f})" for pair, (n, value) in listed.items()
        ]
        theirs += [None] * NUM_SEQUENCES
        for sequence, published in zip(
            top_sequences(data.records("sweep", domain)), theirs[:NUM_SEQUENCES], strict=False
        ):
            name = f"{sequence.first} → {sequence.second}"
            same = listed.get(name)
            rows.append(
                {
                    "block": domain,
                    "sequence": name,
                    "num_dialogues": sequence.num_dialogues,
                    "utility": sequence.utility,
                    "outcomes": sequence.outcomes,
                    "paper": published,
                    "less": None if same is None else sequence.utility - same[1],
                }
            )
    return TableContent(rows, players_of=frame)


def selector_matches(data: RunData) -> TableContent:
    """How often a greedy selector would have said what was recorded (Appendix H)."""
    rows = []
    for domain, path in data.files("iql/default/selector.safetensors").items():
        dialogues = data.records("sweep", domain)
        if not dialogues or domain not in data.judgements:
            continue
        selector = IQLSelector.load(path.parent, greedy=True)
        rng = stream(data.resampling.seed, "matches", domain)
        rates = match_rates(
            dialogues,
            scores_by_turn(data.judgements[domain]),
            lambda state, selector=selector, rng=rng: selector.choose(state, rng),
            max_turns=max_turns(data.run_dir / domain),
            n_resamples=data.resampling.num_resamples,
            seed=data.resampling.seed,
        )
        for group in rates:
            row = {
                "block": domain,
                "group": group.group,
                "num_turns": group.num_turns,
                "num_matches": group.num_matches,
                "rate": 100 * group.rate.mean,
                **interval("interval", group.rate, 100),
            }
            published = None
            if domain == PAPER_DOMAIN and group.group in PAPER_MATCHES:
                matches, turns = PAPER_MATCHES[group.group]
                published = [100 * matches / turns]
            rows.append(row | paper.beside(row, published, ("rate",)))
    return TableContent(rows)


def shifted_features(data: RunData) -> TableContent:
    """How far the states of evaluation are from those that were learned from."""
    rows = []
    for domain in in_order(data.played_in("sweep").domain.unique()):
        sides = data.records("sweep", domain), data.records("evaluation", domain, FULLY_TRAINED)
        if any(t.focal_turns for t in sides[1]):
            shifts = state_shift(*sides, max_turns=max_turns(data.run_dir / domain))
            rows += [{"block": domain, **shift._asdict()} for shift in shifts[:NUM_SHIFTS]]
    return TableContent(rows)


def emotions_against_neutral(data: RunData) -> TableContent:
    """Each emotion against neutral (Appendix B)."""
    frame = data.played_in("study", "emotions")
    rows = [
        {
            "block": domain,
            "emotion": test.emotion,
            "num_scenarios": test.num_scenarios,
            "difference": test.difference.mean,
            **interval("interval", test.difference),
            **interval("welch", test.welch),
            "t": test.t,
            "p": test.p,
            "p_bonferroni": test.p_bonferroni,
        }
        for domain in in_order(frame.domain.unique())
        for test in emotion_tests(
            list(frame.dialogue[frame.domain == domain]),
            scores_by_turn(data.emotion_judgements.get(domain, ())),
        )
    ]
    return TableContent(rows, players_of=frame)
