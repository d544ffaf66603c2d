"""A dialogue from the opening to its end, by scripted writers and by a real API."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from chat_client import priced
from chat_server import ChatServer, fault, negotiate, negotiating, ok, scripted

from emodistill.domains import load_scenarios
from emodistill.llm import ChatClient, Provider, RefusedError
from emodistill.llm.client import RetryPolicy
from emodistill.llm.usage import Completion
from emodistill.negotiation.episode import Match, PlannedDialogue, Player, play
from emodistill.negotiation.states import DialogueState
from emodistill.negotiation.writers import ApiWriter, EmptyReplyError
from emodistill.prompts import counterparty_messages, focal_messages, load_pack
from emodistill.records import Trajectory
from emodistill.seeding import derive

SCENARIO = load_scenarios("crad")[0]
PACK = load_pack()


class Scripted:
    """Says its lines in order and remembers what it was asked."""

    model, provider, temperature = "lines", "", 0.0

    def __init__(self, *lines):
        self.lines = iter(lines)
        self.asked = []
        self.window = 10**9

    def fits(self, messages):
        return sum(len(message["content"]) for message in messages) <= self.window

    async def reply(self, messages, *, dialogue_id, seed):
        self.asked.append(SimpleNamespace(messages=messages, dialogue_id=dialogue_id, seed=seed))
        return Completion(next(self.lines), 100, 10, 0.5, 0.01)


def match(focal, counterparty, choose_counterparty_emotion=None, **changes):
    """`choose_emotion`, `cells` and the like are of the focal player, `counterparty_method` and
    `counterparty_cells` of the other; all else is of the match."""
    choose = changes.pop("choose_emotion", lambda state: "joy")
    chooser = choose_counterparty_emotion and (lambda dialogue: choose_counterparty_emotion)
    return Match(
        focal=Player(
            writer=focal,
            choose_for=lambda dialogue: choose,
            method="test",
            cells=changes.pop("cells", {}),
        ),
        counterparty=Player(
            writer=counterparty,
            choose_for=chooser,
            method=changes.pop("counterparty_method", None),
            cells=changes.pop("counterparty_cells", {}),
        ),
        pack=PACK,
        **changes,
    )


def played(focal, counterparty, number=0, **changes):
    dialogue = PlannedDialogue(SCENARIO, number, "crad/debt_001/seed_0007")
    return asyncio.run(play(dialogue, match(focal, counterparty, **({"seed": 3} | changes))))


def test_a_dialogue_that_ends_in_agreement():
    focal = Scripted("I need  payment\nwithin 40 days. ", "Agreed, 45 days it is.", "never said")
    counterparty = Scripted("I can do 45 days.", "never said")
    trajectory = played(focal, counterparty, number=7, cells={"iql": "default"})
    assert [turn.text for turn in trajectory.turns] == [
        "I need payment within 40 days.",
        "I can do 45 days.",
        "Agreed, 45 days it is.",
    ]
    assert [turn.speaker for turn in trajectory.turns] == ["focal", "counterparty", "focal"]
    assert [turn.emotion for turn in trajectory.turns] == ["joy", None, "joy"]
    assert [turn.offer for turn in trajectory.turns] == [40.0, 45.0, 45.0]
    assert (trajectory.outcome, trajectory.final_value) == ("accepted", 45.0)
    assert trajectory.seed == 7 and trajectory.focal.cells == {"iql": "default"}
    assert trajectory.usage.calls == 3 and trajectory.usage.prompt_tokens == 300
    assert trajectory.cost_usd == pytest.approx(0.03)
    assert trajectory.prompt_pack_sha256 == PACK.sha256
    assert Trajectory.from_json(_plain(trajectory), where="t:1") == trajectory


def _plain(record):
    return json.loads(json.dumps(record.to_json()))


def test_each_side_is_shown_the_dialogue_so_far_under_one_seed():
    focal = Scripted("I need payment within 40 days.", "I can stretch to 50 days.", "55 days.")
    counterparty = Scripted("I can do 90 days.", "I can do 80 days.", "Never.")
    trajectory = played(focal, counterparty, max_turns=6)
    turns = trajectory.turns
    for i, asked in enumerate(focal.asked):
        assert asked.messages == focal_messages(PACK, SCENARIO, turns[: 2 * i], "joy")
    for i, asked in enumerate(counterparty.asked):
        assert asked.messages == counterparty_messages(PACK, SCENARIO, turns[: 2 * i + 1])
    name = "crad/debt_001/seed_0007"
    assert {asked.seed for asked in focal.asked} == {derive(3, "focal", name)}
    assert {asked.seed for asked in counterparty.asked} == {derive(3, "counterparty", name)}
    assert {asked.dialogue_id for asked in focal.asked + counterparty.asked} == {name}


@pytest.mark.parametrize("max_turns", [1, 2, 5])
def test_the_cap_counts_turns_of_both_sides(max_turns):
    focal = Scripted(*["I need payment within 40 days."] * 9)
    counterparty = Scripted(*["I can do 90 days."] * 9)
    trajectory = played(focal, counterparty, max_turns=max_turns)
    assert len(trajectory.turns) == max_turns
    assert (trajectory.outcome, trajectory.final_value) == ("ongoing", None)


def test_a_side_may_end_the_talks():
    focal = Scripted("I need payment within 40 days.", "never said")
    trajectory = played(focal, Scripted("I'm walking away from these talks."))
    assert trajectory.outcome == "breakdown" and len(trajectory.turns) == 2


def test_the_emotion_is_chosen_on_the_state_before_each_focal_turn():
    states = []

    def choose(state):
        states.append(state)
        return (None, "anger", "joy")[len(states) - 1]

    focal = Scripted("40 days, please.", "I can stretch to 50 days.", "I can stretch to 55 days.")
    counterparty = Scripted("I can do 90 days.", "I was hoping for more time.", "Never.")
    trajectory = played(focal, counterparty, choose_emotion=choose, max_turns=6)
    assert [turn.emotion for turn in trajectory.focal_turns] == [None, "anger", "joy"]
    assert [state.emotions for state in states] == [(), (None,), (None, "anger")]
    assert states[2].counterparty_offers == (90.0, None)
    assert "emotion" not in str(focal.asked[0].messages[1]).lower()


def test_a_method_in_the_counterpartys_role_chooses_on_its_own_view_of_the_state():
    states, chosen = [], (None, "anger", "joy")

    def choose(state):
        states.append(state)
        return chosen[len(states) - 1]

    focal = Scripted("40 days, please.", "I can stretch to 50 days.", "I can stretch to 55 days.")
    counterparty = Scripted("I can do 90 days.", "I was hoping for more time.", "Never.")
    trajectory = played(
        focal,
        counterparty,
        choose_counterparty_emotion=choose,
        counterparty_method="iql",
        counterparty_cells={"iql": "default"},
        max_turns=6,
    )
    turns = trajectory.turns
    assert [turn.emotion for turn in turns] == ["joy", None, "joy", "anger", "joy", "joy"]
    for i, asked in enumerate(counterparty.asked):
        said = turns[: 2 * i + 1]
        assert asked.messages == counterparty_messages(PACK, SCENARIO, said, chosen[i])
        assert states[i] == DialogueState.from_turns(SCENARIO, said, 6, role="counterparty")
    assert states[2].focal_target == SCENARIO.counterparty_anchor
    assert states[2].emotions == (None, "anger")
    other = trajectory.counterparty
    assert (other.method, dict(other.cells)) == ("iql", {"iql": "default"})
    assert Trajectory.from_json(_plain(trajectory), where="t:1") == trajectory


def test_a_counterparty_without_a_method_is_neutral_and_records_nothing():
    trajectory = played(Scripted("40 days."), Scripted("I can do 90 days."), max_turns=2)
    assert trajectory.turns[1].emotion is trajectory.counterparty.method is None
    lines = Scripted("I can do 90 days.")
    played(
        Scripted("40 days."),
        lines,
        choose_counterparty_emotion=lambda s: "neutral",
        max_turns=2,
    )
    plain = Scripted("I can do 90 days.")
    played(Scripted("40 days."), plain, max_turns=2)
    assert lines.asked == plain.asked


def test_an_empty_utterance_is_no_turn():
    with pytest.raises(EmptyReplyError, match="turn 1 of crad/debt_001/seed_0007 is empty"):
        played(Scripted("40 days, please."), Scripted(" \n "))


# Over an API


def over_api(respond, **settings):
    async def main():
        async with ChatServer(respond) as server:
            provider = Provider(name="test", base_url=server.base_url, profiles=priced(1.0, 1.0))
            async with ChatClient(provider, (), retry=RetryPolicy(backoff_s=0.01)) as client:
                trajectory = await play(
                    PlannedDialogue(SCENARIO, 0, "crad/debt_001/seed_0000"),
                    match(
                        ApiWriter(client, "echo-focal", 0.7, 160),
                        ApiWriter(client, "echo-counterparty", 0.3, 80),
                        **settings,
                    ),
                )
                return trajectory, server.calls

    return asyncio.run(main())


def test_a_dialogue_over_an_api():
    trajectory, calls = over_api(negotiating)
    assert trajectory.outcome in ("accepted", "breakdown")
    assert [turn.text for turn in trajectory.turns] == [negotiate(call.body) for call in calls]
    assert {c.body["max_tokens"] for c in calls if c.body["model"] == "echo-counterparty"} == {80}
    assert {c.body["temperature"] for c in calls if c.body["model"] == "echo-focal"} == {0.7}
    assert (trajectory.focal.model, trajectory.counterparty.temperature) == ("echo-focal", 0.3)
    assert trajectory.usage.completion_tokens == 5 * len(calls)
    assert trajectory.cost_usd == pytest.approx(15e-6 * len(calls))
    assert all(turn.latency_s > 0 for turn in trajectory.turns)


def test_in_evaluation_a_silent_student_has_broken_off_the_talks():
    class Silent(Scripted):
        async def reply(self, messages, *, dialogue_id, seed):
            if not messages[-1]["content"].count("I can do"):
                return await super().reply(messages, dialogue_id=dialogue_id, seed=seed)
            raise EmptyReplyError("nothing to say")

    counterparty = Scripted("I can do 60 days.")
    trajectory = played(Silent("I need 40 days."), counterparty, silence_ends=True)
    assert (trajectory.outcome, trajectory.final_value) == ("breakdown", None)
    assert len(trajectory.turns) == 2
    with pytest.raises(EmptyReplyError):
        played(Silent("I need 40 days."), Scripted("I can do 60 days."))


def test_a_silent_counterparty_ends_the_talks_only_where_it_plays_by_a_method():
    class Silent(Scripted):
        async def reply(self, messages, *, dialogue_id, seed):
            raise EmptyReplyError("nothing to say")

    trajectory = played(
        Scripted("I need 40 days."), Silent(), silence_ends=True, counterparty_method="iql"
    )
    assert (trajectory.outcome, len(trajectory.turns)) == ("breakdown", 1)
    with pytest.raises(EmptyReplyError):
        played(Scripted("I need 40 days."), Silent(), silence_ends=True)
    with pytest.raises(EmptyReplyError):
        played(Scripted("I need 40 days."), Silent(), counterparty_method="iql")


def test_one_empty_answer_is_asked_for_again_under_another_seed():
    async def respond(call):
        return ok("") if call.number == 1 else await negotiating(call)

    trajectory, calls = over_api(respond, max_turns=2)
    assert trajectory.turns[1].completion_tokens == 10
    assert calls[1].body["messages"] == calls[2].body["messages"]
    assert calls[1].body["seed"] != calls[2].body["seed"]


def test_empty_answers_in_a_row_fail_the_dialogue():
    with pytest.raises(EmptyReplyError, match=r"echo-focal answered 3 times"):
        over_api(scripted(lambda: ok("  ")))


def test_a_refusal_fails_the_dialogue():
    with pytest.raises(RefusedError, match="HTTP 400"):
        over_api(scripted(fault(400, "too long")))


def test_a_prompt_beyond_the_window_loses_its_oldest_turns_first():
    lines = [f"I can stretch to {40 + i} days, as the account is overdue." for i in range(5)]
    replies = [f"I can do {95 - i} days, and not one day less." for i in range(5)]
    whole = Scripted(*lines)
    played(whole, Scripted(*replies), max_turns=9)
    short = Scripted(*lines)
    full = sum(len(message["content"]) for message in whole.asked[-1].messages)
    short.window = full - 100
    trajectory = played(short, Scripted(*replies), max_turns=9)
    assert len(trajectory.turns) == 9
    last = short.asked[-1].messages[-1]["content"]
    assert lines[0] not in last and replies[0] not in last
    assert replies[3] in last and lines[3] in last
