"""A recorded turn played on from again: what is planned, and what it will take.

    <trajectory_id>#<turn index>/<arm>/<number>

An arm says what becomes of the turn itself: `said` keeps the utterance as it was recorded, `anew`
lets the player say something else by its own method, and an emotion lets it say something else
under that emotion. The forks of one number share their luck in all arms of a turn, as far as the
models allow: the simulator draws it by the number of the turn alone (`simulator.forked_seeds`),
while a real API gets one seed for all arms, and another one for each number.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError, refuse
from emodistill.negotiation.episode import ChooseEmotion, PlannedDialogue, Player, player_seed
from emodistill.negotiation.states import DialogueState
from emodistill.records import Role, Trajectory, Turn
from emodistill.seeding import derive
from emodistill.simulator.forked_seeds import forked_seed

SAID, ANEW = "said", "anew"
_ID = re.compile(r"(?P<trajectory>.+)#(?P<index>\d+)/(?P<arm>[a-z]+)/(?P<number>\d+)")


class TurnKey(NamedTuple):
    """A focal turn of a recorded dialogue."""

    trajectory_id: str
    turn_index: int

    def __str__(self) -> str:
        return f"{self.trajectory_id}#{self.turn_index}"

    @classmethod
    def parse(cls, text: str) -> TurnKey:
        """Read `TRAJECTORY_ID#INDEX`.

        Raises:
          InputError: the text doesn't have that form.
        """
        name, hash_sign, index = text.rpartition("#")
        if not (name and hash_sign and index.isdecimal()):
            raise InputError(
                f"turn={text!r} must be TRAJECTORY_ID#INDEX, such as crad/debt_001/seed_0007#4."
            )
        return cls(name, int(index))


class Fork(NamedTuple):
    """One continuation of a turn; numbers count from 1."""

    turn: TurnKey
    arm: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.turn}/{self.arm}/{self.number:03d}"

    @property
    def luck(self) -> str:
        """What all arms of the turn draw their emotions by."""
        return f"{self.turn}/{self.number}"

    @classmethod
    def parse(cls, name: str) -> Fork:
        """The fork that a `trajectory_id` names.

        Raises:
          InputError: the text doesn't have that form.
        """
        if (match := _ID.fullmatch(name)) is None:
            raise InputError(f"trajectory_id {name!r} names no fork of a turn.")
        turn = TurnKey(match["trajectory"], int(match["index"]))
        return cls(turn, match["arm"], int(match["number"]))


def arms_of(emotions: str | None) -> tuple[str, ...]:
    """The arms of a replay: the worth of what was said, or a choice of emotions (`all`, `a,b`).

    Neutral is always among the emotions, since effects are differences from it.

    Raises:
      InputError: a label is unknown.
    """
    if emotions is None:
        return (SAID, ANEW)
    if emotions == "all":
        return EMOTIONS
    named = [name.strip() for name in emotions.split(",")]
    if unknown := [name for name in named if name not in EMOTIONS]:
        raise InputError(
            f"emotions={emotions!r}: unknown: {', '.join(map(repr, unknown))}; the labels are "
            f"{', '.join(EMOTIONS)}, and `all` takes all of them."
        )
    return tuple(name for name in EMOTIONS if name in (*named, "neutral"))


def chosen_turns(
    trajectories: Sequence[Trajectory], *, turn: str | None, num_turns: int, seed: int
) -> list[TurnKey]:
    """The turn that is asked for, or some of the training scenarios', drawn by the seed.

    A larger `num_turns` begins with those of a smaller one. Truncated turns are never trained on,
    so they are left out.

    Raises:
      InputError: there is no such focal turn.
    """
    if turn is not None:
        key = TurnKey.parse(turn)
        found = [t for t in trajectories if t.trajectory_id == key.trajectory_id]
        if not found or key.turn_index not in [t.index for t in found[0].focal_turns]:
            what = "no such dialogue" if not found else "no focal turn of that number"
            raise InputError(f"turn={turn}: there is {what} in the sweep.")
        return [key]
    keys = [
        TurnKey(trajectory.trajectory_id, one.index)
        for trajectory in trajectories
        if trajectory.split == "train"
        for one in trajectory.focal_turns
        if one.finish_reason != "length"
    ]
    return sorted(keys, key=lambda key: (derive(seed, "replay-turns", *key), key))[:num_turns]


def plan_forks(turns: Sequence[TurnKey], arms: Sequence[str], continuations: int) -> list[Fork]:
    """Every turn once in all arms, then all again, …: what stops early has paired arms."""
    return [
        Fork(turn, arm, number)
        for number in range(1, continuations + 1)
        for turn in turns
        for arm in arms
    ]


def fork_dialogue(
    fork: Fork, trajectory: Trajectory, scenario: Scenario, seed: int, simulated: Sequence[Role]
) -> PlannedDialogue:
    """The fork as a dialogue to be played: what was heard, and who its players are.

    Args:
      seed: the sweep's, from which the recorded players had theirs.
      simulated: the roles that the simulator plays.
    """
    index = fork.turn.turn_index
    given = index + 1 if fork.arm == SAID else index
    number = sum(turn.speaker == "focal" for turn in trajectory.turns[: index + 1])
    seeds: dict[Role, int] = {}
    for role in ("focal", "counterparty"):
        own = player_seed(seed, role, trajectory.trajectory_id)
        seeds[role] = (
            forked_seed(own, number, fork.number)
            if role in simulated
            else derive(own, "fork", index, fork.number)
        )
    heard = trajectory.turns[:given]
    return PlannedDialogue(scenario, fork.number, fork.name, heard, seeds)


def fork_player(player: Player) -> Player:
    """A focal player for forks: its first word may be given, and all arms share its luck."""

    def choose_for(dialogue: PlannedDialogue) -> ChooseEmotion:
        fork = Fork.parse(dialogue.trajectory_id)
        assert player.choose_for is not None  # whoever plays on has a method
        choose = player.choose_for(dialogue._replace(trajectory_id=fork.luck))
        before = dialogue.heard[: fork.turn.turn_index]
        is_first = True

        def choose_emotion(state: DialogueState) -> str | None:
            nonlocal is_first
            if not is_first:
                return choose(state)
            is_first = False
            # Asked in every arm, so that all later draws are the same in all.
            own = choose(DialogueState.from_turns(dialogue.scenario, before, state.max_turns))
            if fork.arm == SAID:
                return choose(state)
            return own if fork.arm == ANEW else fork.arm

        return choose_emotion

    return dataclasses.replace(player, choose_for=choose_for)


class RoleCalls(NamedTuple):
    """The calls to one role's model, with their tokens."""

    num_calls: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0

    def plus(self, other: RoleCalls) -> RoleCalls:
        return RoleCalls(*(a + b for a, b in zip(self, other, strict=True)))


def expected_calls(
    forks: Sequence[Fork], trajectories: Sequence[Trajectory]
) -> Mapping[Role, RoleCalls]:
    """What the forks will probably ask of each role's model.

    A recorded dialogue is itself a continuation of each of its turns. So a fork is expected to take
    what the dialogues that have the forked turn took on average from there on, that turn included
    where it is spoken anew. Dialogues that had ended before it say nothing of it.
    """
    rest: dict[tuple[int, bool], list[Mapping[Role, RoleCalls]]] = defaultdict(list)
    for trajectory in trajectories:
        for index in range(len(trajectory.turns)):
            for is_said in (False, True):
                rest[index, is_said].append(_calls(trajectory.turns[index + is_said :]))
    means = {key: _mean_calls(calls) for key, calls in rest.items()}
    total: dict[Role, RoleCalls] = {"focal": RoleCalls(), "counterparty": RoleCalls()}
    for fork in forks:
        for role, calls in means[fork.turn.turn_index, fork.arm == SAID].items():
            total[role] = total[role].plus(calls)
    return total


def _calls(turns: Sequence[Turn]) -> dict[Role, RoleCalls]:
    calls: dict[Role, RoleCalls] = {"focal": RoleCalls(), "counterparty": RoleCalls()}
    for turn in turns:
        one = RoleCalls(1.0, turn.prompt_tokens, turn.completion_tokens)
        calls[turn.speaker] = calls[turn.speaker].plus(one)
    return calls


def _mean_calls(many: Sequence[Mapping[Role, RoleCalls]]) -> dict[Role, RoleCalls]:
    return {
        role: RoleCalls(*np.mean([calls[role] for calls in many], axis=0).tolist())
        for role in many[0]
    }


def refuse_other_players(
    trajectories: Sequence[Trajectory],
    turns: Sequence[TurnKey],
    played: Mapping[str, Any],
) -> None:
    """Refuse to go on with other players, or by other rules, than a dialogue was recorded with.

    Args:
      played: who plays on, or by what rule, by the flag that says so.

    Raises:
      InputError: something differs; it names the dialogue and the flag.
    """
    wanted = {key.trajectory_id for key in turns}
    problems = {}
    for trajectory in trajectories:
        if trajectory.trajectory_id not in wanted:
            continue
        recorded = {
            "focal": trajectory.focal.model,
            "focal-temperature": trajectory.focal.temperature,
            "counterparty": trajectory.counterparty.model,
            "counterparty-temperature": trajectory.counterparty.temperature,
            "agreement": trajectory.agreement_rule,
        }
        for name, value in recorded.items():
            if name in played and played[name] != value:
                problems.setdefault(
                    (name, value),
                    f"{trajectory.trajectory_id} was recorded with {name} {value}, not "
                    f"{played[name]}; say --{name} accordingly.",
                )
    refuse(
        list(problems.values()),
        "Forks measure a turn's worth only if everything else is unchanged.",
    )
