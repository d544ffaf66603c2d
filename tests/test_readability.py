"""A job whose utterances carry no offer that its game can mean stops, and says what it read."""

import msgspec
import pytest
from builders import trajectory, turns
from chat_server import ok
from simulated_talks import dialogue
from sweeps import sweep

from emodistill.domains import DOMAINS
from emodistill.errors import InputError
from emodistill.jsonl import read_lines
from emodistill.offline.readability import MAX_SHARE, ReadabilityCheck, offer_shares

SALARY = {"focal_target": 2900.0, "counterparty_anchor": 2400.0}


def played(number, *offers, text="2,400 EUR a month", **fields):
    return trajectory(f"d{number}", turns(*offers, texts=(text,)), **fields)


def after(dialogues, *, is_end=False, is_lenient=False):
    check = ReadabilityCheck(is_lenient=is_lenient)
    for one in dialogues:
        check.add(one)
    check.check(is_end=is_end)
    return check.shares


def test_offers_far_outside_target_and_anchor_stop_a_job_with_three_examples():
    dialogues = [played(n, 30.0, 30.0, **SALARY) for n in range(20)]
    with pytest.raises(InputError) as caught:
        after(dialogues)
    message = str(caught.value)
    assert "100% of the offers in 20 dialogues lie far outside target and anchor" in message
    example = "'2,400 EUR a month': 30 days, with target 2900 days and anchor 2400 days"
    assert message.count(example) == 3 and "--domain" in message and "--keep-unread" in message


def test_utterances_without_an_offer_stop_a_job_with_three_examples():
    dialogues = [played(n, None, None, 30.0, text="Let us see." * 20) for n in range(20)]
    with pytest.raises(InputError, match=r"67% of the utterances in 20 dialogues") as caught:
        after(dialogues)
    assert str(caught.value).count("Let us see.") > 3 and "…': no offer in days" in str(
        caught.value
    )


def test_few_dialogues_are_no_reason_to_stop_until_the_job_ends():
    dialogues = [played(n, 30.0, 30.0, **SALARY) for n in range(16)]  # one of sixteen dialogues
    assert after(dialogues).far == 1.0
    with pytest.raises(InputError, match="100% of the offers in 16 dialogues"):
        after(dialogues, is_end=True)
    assert after(dialogues[:9], is_end=True).far == 1.0
    assert after(dialogues, is_end=True, is_lenient=True).text == (
        "0% of utterances without an offer, 100% of offers far out"
    )


def test_what_is_half_and_half_goes_on():
    shares = after([played(n, None, 30.0, 60.0, 900.0) for n in range(40)], is_end=True)
    assert (shares.without, shares.far) == (0.25, pytest.approx(1 / 3))
    assert offer_shares([]).text.startswith("0% of utterances")


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_simulator_stays_far_below_where_a_job_stops(domain):
    shares = offer_shares(dialogue(domain, number, "random") for number in range(20))
    assert shares.without < MAX_SHARE / 2 and shares.far == 0


def test_a_sweep_stops_after_twenty_such_dialogues_and_before_it_starts_again(tmp_path):
    async def respond(call):
        calls.append(call)
        return ok("Well, we shall see about that.")

    calls = []
    settings = {"num_seeds": 12, "concurrency": 1, "max_turns": 4}
    with pytest.raises(InputError, match="100% of the utterances in 20 dialogues"):
        sweep(tmp_path, respond, **settings)
    assert sum(1 for _ in read_lines(tmp_path / "trajectories.jsonl")) == 20
    calls.clear()
    with pytest.raises(InputError, match="in 20 dialogues"):
        sweep(tmp_path, respond, **settings)
    assert calls == []
    result, _ = sweep(tmp_path, respond, **settings, keep_unread=True)
    assert result.is_complete and "100% of utterances without an offer" in result.summary
    assert result.shares == {"without_offer": 1.0, "far_offers": 0.0}


def test_cut_utterances_are_no_unread_ones():
    talk = played(0, None, None, text="I could pay within 4")
    cut = msgspec.structs.replace(
        talk, turns=tuple(msgspec.structs.replace(t, finish_reason="length") for t in talk.turns)
    )
    assert offer_shares([cut]).num_turns == 0
    with pytest.raises(InputError, match=r"40 of 40 utterances were cut .* --max-reply-tokens"):
        after([cut] * 20)
    after([cut] * 20, is_lenient=True)
