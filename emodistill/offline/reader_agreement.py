"""Whether a language model and the patterns read a sweep alike: offers, and how dialogues end.

Nothing is asked for it: the model's readings are in the records, and patterns read the same words.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from emodistill.negotiation import Verdict, mediate, read_offer
from emodistill.records import Act, Outcome, Record, Trajectory, Turn


class Disagreement(Record, frozen=True, kw_only=True):
    """An utterance that model and patterns read differently, or the first turn at which the two
    verdicts differ. `heard` is what the other side had said."""

    trajectory_id: str
    turn_index: int
    heard: str | None
    text: str
    act: Act | None
    offer: float | None
    pattern_offer: float | None
    outcome: Outcome
    final_value: float | None
    pattern_outcome: Outcome
    pattern_final_value: float | None


@dataclass(slots=True, kw_only=True)
class ReaderAgreement:
    """How often the two agree; turns that were cut have been read by neither."""

    num_turns: int = 0
    num_same_offers: int = 0
    num_dialogues: int = 0
    num_same_outcomes: int = 0
    """Dialogues that end at the same turn, in the same way and at the same value."""
    disagreements: list[Disagreement] = field(default_factory=list)

    @property
    def shares(self) -> dict[str, float]:
        """For manifests: the shares of equal offers and outcomes."""
        return {
            "same_offers": self.num_same_offers / max(1, self.num_turns),
            "same_outcomes": self.num_same_outcomes / max(1, self.num_dialogues),
        }

    @property
    def text(self) -> str:
        """For the terminal."""
        return (
            f"the patterns would read the same offer in {self.num_same_offers:,} of "
            f"{self.num_turns:,} utterances, and end {self.num_same_outcomes:,} of "
            f"{self.num_dialogues:,} dialogues in the same way"
        )


def compare_readers(trajectories: Iterable[Trajectory]) -> ReaderAgreement:
    """Have patterns read what a language model has read, and the mediator judge by either."""
    agreement = ReaderAgreement()
    for trajectory in trajectories:
        turns = trajectory.turns
        others = [_read_by_patterns(turn, trajectory.domain) for turn in turns]
        verdicts, pattern_verdicts = (_verdicts(read, trajectory) for read in (turns, others))
        # The first turn at which the two verdicts differ; after it one of the two has ended the
        # talks, so that later differences say nothing more.
        differ = map(operator.ne, verdicts, pattern_verdicts)
        parting = next((i for i, is_other in enumerate(differ) if is_other), None)
        agreement.num_dialogues += 1
        agreement.num_same_outcomes += parting is None
        for i, (turn, other) in enumerate(zip(turns, others, strict=True)):
            is_same = turn.offer == other.offer
            if turn.finish_reason == "stop":
                agreement.num_turns += 1
                agreement.num_same_offers += is_same
            if is_same and i != parting:
                continue
            agreement.disagreements.append(
                Disagreement(
                    trajectory_id=trajectory.trajectory_id,
                    turn_index=i,
                    heard=turns[i - 1].text if i else None,
                    text=turn.text,
                    act=turn.act,
                    offer=turn.offer,
                    pattern_offer=other.offer,
                    outcome=verdicts[i].outcome,
                    final_value=verdicts[i].final_value,
                    pattern_outcome=pattern_verdicts[i].outcome,
                    pattern_final_value=pattern_verdicts[i].final_value,
                )
            )
    return agreement


def _read_by_patterns(turn: Turn, domain: str) -> Turn:
    is_cut = turn.finish_reason == "length"
    offer = None if is_cut else read_offer(turn.text, domain)
    return msgspec.structs.replace(turn, offer=offer, act=None)


def _verdicts(turns: Sequence[Turn], trajectory: Trajectory) -> list[Verdict]:
    """How the dialogue stands after each of its turns."""
    rule = trajectory.agreement_rule
    return [mediate(turns[:end], trajectory, rule) for end in range(1, len(turns) + 1)]
