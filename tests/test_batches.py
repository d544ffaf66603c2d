"""Examples, their order and their padding."""

import itertools

import numpy as np
import pytest

from emodistill.batches import Example, PaddedBatches, build_examples
from emodistill.batches.padded import row_lengths
from emodistill.domains import load_scenarios
from emodistill.errors import InputError
from emodistill.prompts import focal_messages, load_pack
from emodistill.records import CounterParty, FocalParty, Trajectory, Turn
from emodistill.seeding import stream

PACK = load_pack()
SCENARIO = load_scenarios("crad")[0]
START, CUE, END = 256, 257, 258


def encode_chat(messages):
    """Bytes as tokens, with a start token before each message and a cue for the reply."""
    ids = []
    for message in messages:
        ids += [START, *message["content"].encode()]
    return [*ids, CUE]


def encode_reply(text):
    return [*text.encode(), END]


def dialogue(num_turns=6, scenario=SCENARIO, number=0):
    turns = tuple(
        Turn(
            index=i,
            speaker="focal" if i % 2 == 0 else "counterparty",
            emotion="anger" if i % 2 == 0 else None,
            text=f"Turn {i}: let us say {20 + i} days.",
            offer=20.0 + i,
        )
        for i in range(num_turns)
    )
    return Trajectory(
        trajectory_id=f"crad/{scenario.scenario_id}/seed_{number:04d}",
        domain="crad",
        scenario_id=scenario.scenario_id,
        seed=number,
        split="train",
        focal_target=scenario.focal_target,
        counterparty_anchor=scenario.counterparty_anchor,
        unit=scenario.unit,
        focal=FocalParty(method="sweep", model="m", temperature=0.7),
        counterparty=CounterParty(model="m", temperature=0.7),
        prompt_pack_sha256=PACK.sha256,
        agreement_rule="stand",
        turns=turns,
        outcome="breakdown",
        final_value=None,
    )


def build(trajectories, turns, max_tokens=4000, **more):
    return build_examples(
        trajectories,
        [SCENARIO],
        turns,
        pack=PACK,
        encode_chat=encode_chat,
        encode_reply=encode_reply,
        max_tokens=max_tokens,
        **more,
    )


def lengths_to_examples(lengths, seed=0):
    """Random samples of (prompt, reply) lengths; the tokens of sample i start with i."""
    rng = stream(seed, "examples")
    return [
        Example(
            sample_id=f"crad/debt_001/seed_{i:04d}#0",
            prompt_ids=np.concatenate([[i], rng.integers(1, 99, p - 1)]).astype(np.int32),
            response_ids=rng.integers(100, 199, u).astype(np.int32),
        )
        for i, (p, u) in enumerate(lengths)
    ]


def some_lengths(number, seed=0):
    rng = stream(seed, "lengths")
    return [(int(rng.integers(5, 300)), int(rng.integers(1, 40))) for _ in range(number)]


class TestExamples:
    def test_an_example_is_the_prompt_of_the_game_and_the_reply(self):
        trajectory = dialogue()
        ((example,), trimmed, dropped) = build([trajectory], [(0, 4)])
        messages = focal_messages(PACK, SCENARIO, trajectory.turns[:4], "anger")
        assert example.sample_id == "crad/debt_001/seed_0000#4"
        assert example.prompt_ids.tolist() == encode_chat(messages)
        assert example.response_ids.tolist() == encode_reply(trajectory.turns[4].text)
        assert (trimmed, dropped, example.num_dropped_turns) == (0, 0, 0)

    def test_emotion_free_leaves_the_block_out(self):
        trajectory = dialogue()
        (example,) = build([trajectory], [(0, 2)], emotion_free=True).examples
        want = encode_chat(focal_messages(PACK, SCENARIO, trajectory.turns[:2], None))
        assert example.prompt_ids.tolist() == want

    def test_a_long_prompt_loses_its_oldest_turns_and_keeps_the_reply(self):
        trajectory = dialogue(num_turns=12)
        turns = trajectory.turns
        (whole,) = build([trajectory], [(0, 10)]).examples
        for room in range(whole.num_tokens - 1, whole.num_tokens - 200, -13):
            ((example,), trimmed, dropped) = build([trajectory], [(0, 10)], max_tokens=room)
            k = example.num_dropped_turns
            assert k > 0
            assert example.num_tokens <= room
            assert (trimmed, dropped) == (1, 0)
            assert example.response_ids.tolist() == whole.response_ids.tolist()
            kept = encode_chat(focal_messages(PACK, SCENARIO, turns[k:10], "anger"))
            assert example.prompt_ids.tolist() == kept
            one_more = encode_chat(focal_messages(PACK, SCENARIO, turns[k - 1 : 10], "anger"))
            assert len(one_more) + len(example.response_ids) > room  # no turn lost needlessly

    def test_what_does_not_fit_without_history_is_left_out_and_counted(self):
        sets = build([dialogue()], [(0, 0), (0, 4)], max_tokens=60)
        assert (sets.examples, sets.num_trimmed, sets.num_dropped) == ((), 0, 2)

    def test_the_hash_tells_every_change(self):
        trajectories = [dialogue(), dialogue(number=1)]
        one = build(trajectories, [(0, 0), (1, 2)])
        assert one.sha256() == build(trajectories, [(0, 0), (1, 2)]).sha256()
        others = [
            build(trajectories, [(1, 2), (0, 0)]),
            build(trajectories, [(0, 0), (1, 4)]),
            build(trajectories, [(0, 0), (1, 2)], emotion_free=True),
            build(trajectories, [(0, 0)]),
        ]
        assert len({one.sha256(), *(other.sha256() for other in others)}) == 5

    def test_wrong_turns_and_scenarios_are_refused_by_name(self):
        with pytest.raises(InputError, match=r"seed_0000#1 is the counterparty's turn"):
            build([dialogue()], [(0, 1)])
        with pytest.raises(InputError, match=r"seed_0000#6: the dialogue has turns 0 to 5"):
            build([dialogue()], [(0, 6)])
        other = load_scenarios("crad")[1]
        with pytest.raises(InputError, match=r"scenario 'debt_002' .* is not among the 1"):
            build([dialogue(scenario=other)], [(0, 0)])


class TestOrder:
    def batches(self, number=37, batch_size=8, num_epochs=3, seed=0):
        return PaddedBatches(
            lengths_to_examples(some_lengths(number)),
            batch_size=batch_size,
            seed=seed,
            num_epochs=num_epochs,
        )

    def test_every_epoch_is_a_permutation_and_only_the_last_step_is_short(self):
        batches = self.batches()
        assert batches.num_steps == 14
        steps = [batches.indices(step) for step in range(14)]
        assert [len(step) for step in steps] == [8] * 13 + [7]
        epochs = np.concatenate(steps).reshape(3, 37)
        for epoch in epochs:
            assert sorted(epoch) == list(range(37))
        assert epochs[0].tolist() != epochs[1].tolist()

    def test_the_order_follows_from_seed_and_step_alone(self):
        forward = [self.batches().sample_ids(step) for step in range(14)]
        fresh = self.batches()
        assert [fresh.sample_ids(step) for step in reversed(range(14))] == forward[::-1]
        assert [self.batches(seed=1).sample_ids(step) for step in range(14)] != forward
        assert fresh.step(5).sample_ids == forward[5]

    def test_there_is_no_step_after_the_last(self):
        with pytest.raises(IndexError):
            self.batches().indices(14)
        with pytest.raises(IndexError):
            self.batches().indices(-1)


class TestPadding:
    lengths = some_lengths(50)
    examples = lengths_to_examples(lengths)

    def batches(self, **more):
        settings = {"batch_size": 16, "seed": 0, "num_epochs": 2, "max_micro_tokens": 600}
        return PaddedBatches(self.examples, **(settings | more))

    def rows(self, batch):
        """(sample, prompt and reply tokens, targets) of the rows that hold a sample."""
        for b in range(len(batch.tokens_BT)):
            if batch.mask_BU[b].any():
                yield int(batch.tokens_BT[b, 0]), b

    def test_rows_hold_prompt_reply_and_the_targets_next_to_their_positions(self):
        batches = self.batches(advantages=np.arange(50) / 10)
        reference = stream(0, "ref").normal(size=(50, batches.num_reply_tokens)).astype(np.float32)
        batches.set_reference(reference)
        seen = []
        for step in range(batches.num_steps):
            indices, made = batches.indices(step), batches.step(step)
            in_step = [i for batch in made.batches for i, _ in self.rows(batch)]
            assert sorted(in_step) == sorted(indices)
            for batch in made.batches:
                for i, b in self.rows(batch):
                    example, length = self.examples[i], batch.lengths_B[b]
                    whole = [*example.prompt_ids, *example.response_ids]
                    assert batch.tokens_BT[b, :length].tolist() == whole[:-1]
                    assert not batch.tokens_BT[b, length:].any()
                    mask_U = batch.mask_BU[b]
                    assert mask_U.sum() == len(example.response_ids)
                    assert batch.targets_BU[b][mask_U].tolist() == list(example.response_ids)
                    positions_U = batch.positions_BU[b][mask_U]
                    assert [whole[p + 1] for p in positions_U] == list(example.response_ids)
                    assert positions_U[-1] == length - 1
                    assert batch.advantages_B[b] == np.float32(i / 10)
                    np.testing.assert_array_equal(
                        batch.ref_logp_BU[b][mask_U], reference[i][: mask_U.sum()]
                    )
                    seen.append(i)
        assert sorted(seen) == sorted([*range(50)] * 2)

    def test_empty_rows_are_masked_but_have_a_token(self):
        batches = self.batches()
        empty = [
            (batch.lengths_B[b], batch.mask_BU[b].any())
            for step in range(batches.num_steps)
            for batch in batches.step(step).batches
            for b in set(range(len(batch.tokens_BT))) - {b for _, b in self.rows(batch)}
        ]
        assert empty
        assert set(empty) == {(1, False)}

    def test_totals_are_those_of_the_whole_step(self):
        batches = self.batches()
        for step in range(batches.num_steps):
            made = batches.step(step).batches
            assert len(made) > 1
            for batch in made:
                assert batch.num_tokens == sum(other.mask_BU.sum() for other in made)
                assert batch.num_samples == len(batches.indices(step))

    def test_few_shapes_within_the_bound_and_a_sample_s_shape_is_its_own(self):
        batches = self.batches()
        shapes, row_of = set(), {}
        for step in range(batches.num_steps):
            for batch in batches.step(step).batches:
                shapes.add(batch.tokens_BT.shape)
                for i, _ in self.rows(batch):
                    row_of.setdefault(i, set()).add((batch.tokens_BT.shape, batch.mask_BU.shape))
        assert len(shapes) <= len(batches.shapes) <= 4
        assert all(len(found) == 1 for found in row_of.values())
        for num_rows, num_tokens in shapes:
            assert num_rows * num_tokens <= 600
        for rows, batch in batches.all_rows():
            for i in rows:
                assert row_of[i] == {(batch.tokens_BT.shape, batch.mask_BU.shape)}

    def test_a_mesh_gets_rows_that_it_can_split(self):
        for multiple in (1, 3, 8):
            batches = self.batches(row_multiple=multiple)
            found = [batch for step in range(3) for batch in batches.step(step).batches]
            assert all(len(batch.tokens_BT) % multiple == 0 for batch in found)
            assert sum(batch.mask_BU.any(axis=1).sum() for batch in found) == sum(
                len(batches.indices(step)) for step in range(3)
            )

    def test_the_reference_pass_sees_every_sample_once(self):
        found = np.concatenate([rows for rows, _ in self.batches().all_rows()])
        assert sorted(found) == list(range(50))

    def test_a_reply_longer_than_its_row_allows_is_never_cut(self):
        examples = lengths_to_examples([(3, 150), (700, 2)])
        batches = PaddedBatches(examples, batch_size=2, seed=0, num_epochs=1)
        assert sum(batch.mask_BU.sum() for batch in batches.step(0).batches) == 152

    def test_row_lengths_pad_the_least_of_all_choices(self):
        rng = stream(0, "row-lengths")
        for _ in range(30):
            lengths = rng.integers(1, 600, size=rng.integers(1, 40))
            found = row_lengths(lengths)
            candidates = {int(-(-n // 64) * 64) for n in lengths}

            def cost(chosen, lengths=lengths):
                return sum(min(c for c in chosen if c >= n) for n in lengths)

            choices = itertools.chain.from_iterable(
                itertools.combinations(candidates, k) for k in range(1, 5)
            )
            best = min(cost(c) for c in choices if max(c) >= lengths.max())
            assert found == sorted(found)
            assert len(found) <= 4
            assert cost(found) == best

    def test_bad_samples_are_refused_by_name(self):
        with pytest.raises(InputError, match="no sample to train on"):
            PaddedBatches([], batch_size=2, seed=0, num_epochs=1)
        (example,) = lengths_to_examples([(5, 0)])
        with pytest.raises(InputError, match=r"seed_0000#0: the batch would be masked throughout"):
            PaddedBatches([example], batch_size=2, seed=0, num_epochs=1)
        with pytest.raises(InputError, match=r"shape \(3,\) for 50 samples"):
            self.batches(advantages=[1.0, 2.0, 3.0])
        with pytest.raises(InputError, match=r"seed_0004#0: advantage nan is not finite"):
            self.batches(advantages=[np.nan if i == 4 else 0 for i in range(50)])
        with pytest.raises(InputError, match=r"shape \(50, 1\), these samples \(50, 48\)"):
            self.batches().set_reference(np.zeros((50, 1), np.float32))
