"""Examples, their order and their rows."""

import dataclasses

import numpy as np
import pytest
from samples import PACK, SCENARIO, dialogue, lengths_to_examples, sharing_examples

from benchmarks.workload import dialogue_examples
from emodistill.batches import PackedBatches, RoundBatches, RowShape, build_examples
from emodistill.batches.row_packing import StepSamples, cheapest_cuts, pack
from emodistill.domains import load_scenarios
from emodistill.errors import InputError
from emodistill.prompts import focal_messages
from emodistill.seeding import stream

START, CUE, END = 256, 257, 258


def encode_chat(messages):
    """Bytes as tokens, with a start token before each message and a cue for the reply."""
    ids = []
    for message in messages:
        ids += [START, *message["content"].encode()]
    return [*ids, CUE]


def encode_reply(text):
    return [*text.encode(), END]


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


def some_lengths(number, seed=0):
    rng = stream(seed, "lengths")
    return [(int(rng.integers(5, 300)), int(rng.integers(1, 40))) for _ in range(number)]


class TestExamples:
    def test_an_example_is_the_prompt_of_the_game_and_the_reply(self):
        trajectory = dialogue()
        (example,) = build([trajectory], [(0, 4)])
        messages = focal_messages(PACK, SCENARIO, trajectory.turns[:4], "anger")
        assert example.sample_id == "crad/debt_001/seed_0000#4"
        assert example.prompt_ids.tolist() == encode_chat(messages)
        assert example.response_ids.tolist() == encode_reply(trajectory.turns[4].text)
        assert example.num_dropped_turns == 0

    def test_emotion_free_leaves_the_block_out(self):
        trajectory = dialogue()
        (example,) = build([trajectory], [(0, 2)], emotion_free=True)
        want = encode_chat(focal_messages(PACK, SCENARIO, trajectory.turns[:2], None))
        assert example.prompt_ids.tolist() == want

    def test_a_long_prompt_loses_its_oldest_turns_and_keeps_the_reply(self):
        trajectory = dialogue(num_turns=12)
        turns = trajectory.turns
        (whole,) = build([trajectory], [(0, 10)])
        for room in range(whole.num_tokens - 1, whole.num_tokens - 200, -13):
            (example,) = build([trajectory], [(0, 10)], max_tokens=room)
            k = example.num_dropped_turns
            assert k > 0
            assert example.num_tokens <= room
            assert example.response_ids.tolist() == whole.response_ids.tolist()
            kept = encode_chat(focal_messages(PACK, SCENARIO, turns[k:10], "anger"))
            assert example.prompt_ids.tolist() == kept
            one_more = encode_chat(focal_messages(PACK, SCENARIO, turns[k - 1 : 10], "anger"))
            assert len(one_more) + len(example.response_ids) > room  # no turn lost needlessly

    def test_what_does_not_fit_without_history_is_left_out(self):
        assert build([dialogue()], [(0, 0), (0, 4)], max_tokens=60) == []

    def test_the_hash_of_a_stage_s_samples_tells_every_change(self):
        trajectories = [dialogue(), dialogue(number=1)]

        def sha256(turns, **more):
            examples = build(trajectories, turns, **more)
            return PackedBatches(examples, batch_size=2, seed=0, num_epochs=1).sha256

        one = sha256([(0, 0), (1, 2)])
        assert one == sha256([(0, 0), (1, 2)])
        others = [
            sha256([(1, 2), (0, 0)]),
            sha256([(0, 0), (1, 4)]),
            sha256([(0, 0), (1, 2)], emotion_free=True),
            sha256([(0, 0)]),
        ]
        assert len({one, *others}) == 5

    def test_an_unknown_scenario_is_refused_by_name(self):
        other = load_scenarios("crad")[1]
        with pytest.raises(InputError, match=r"scenario 'debt_002' .* is not among the 1"):
            build([dialogue(scenario=other)], [(0, 0)])


def epoch(batches, number=0):
    per_epoch = batches.num_steps // batches.num_epochs
    steps = range(number * per_epoch, (number + 1) * per_epoch)
    return [batches.step(step) for step in steps]


class TestOrder:
    def batches(self, number=37, batch_size=8, num_epochs=3, seed=0, **settings):
        return PackedBatches(
            lengths_to_examples(some_lengths(number)),
            batch_size=batch_size,
            seed=seed,
            num_epochs=num_epochs,
            **settings,
        )

    def test_every_epoch_has_each_sample_once_and_one_step_is_short(self):
        batches = self.batches()
        assert batches.num_steps == 15
        epochs = [[step.samples for step in epoch(batches, number)] for number in range(3)]
        for steps in epochs:
            assert sorted(i for step in steps for i in step) == list(range(37))
            assert sorted(len(step) for step in steps) == [5, 8, 8, 8, 8]
        assert epochs[0] != epochs[1]
        assert sorted(epochs[0]) == sorted(epochs[1])

    def test_the_order_follows_from_seed_and_step_alone(self):
        forward = [self.batches().sample_ids(step) for step in range(15)]
        fresh = self.batches()
        assert [fresh.sample_ids(step) for step in reversed(range(15))] == forward[::-1]
        assert [self.batches(seed=1).sample_ids(step) for step in range(15)] != forward
        made = fresh.step(5)
        assert tuple(fresh.examples[i].sample_id for i in made.samples) == forward[5]

    @pytest.mark.parametrize("unit_size", [1, 2])
    def test_how_samples_share_rows_changes_no_step(self, unit_size):
        examples = sharing_examples(40)
        found = {
            tuple(
                PackedBatches(
                    examples,
                    batch_size=8,
                    seed=0,
                    num_epochs=1,
                    packing=packing,
                    max_micro_tokens=max_micro_tokens,
                    row_multiple=row_multiple,
                    unit_size=unit_size,
                ).sample_ids(step)
                for step in range(3)
            )
            for packing in ("tree", "sequence", "none")
            for max_micro_tokens in (64, 1024)
            for row_multiple in (1, 4)
        }
        assert len(found) == 1

    @pytest.mark.parametrize("batch_size", [1, 5, 8, 13, 17, 31, 32])
    def test_every_step_has_its_size_and_neighbours_stay_together(self, batch_size):
        """Two samples of each prompt: no size of a step tears many of them apart."""
        examples = lengths_to_examples(some_lengths(100))
        twins = [
            dataclasses.replace(example, response_ids=example.response_ids + 1, sample_id=f"{i}#2")
            for i, example in enumerate(examples)
        ]
        batches = PackedBatches([*examples, *twins], batch_size=batch_size, seed=0, num_epochs=1)
        steps = [step.samples for step in epoch(batches)]
        assert sorted(i for step in steps for i in step) == list(range(200))
        sizes = sorted(map(len, steps), reverse=True)
        assert sizes == ([batch_size] * (200 // batch_size) + [200 % batch_size])[: len(sizes)]
        together = sum(i + 100 in step for step in steps for i in step)
        assert together >= (0 if batch_size == 1 else 60 if batch_size == 5 else 75)

    def test_there_is_no_step_after_the_last(self):
        for step in (15, -1):
            with pytest.raises(IndexError):
                self.batches().step(step)


def replies(batch):
    """(prompt and reply without its last token, targets) of each sample."""
    targets = batch.targets_BM.reshape(-1)
    for index_U, mask_U in zip(batch.logp_index_SU, batch.mask_SU, strict=True):
        if not mask_U.any():
            continue
        b, m = np.divmod(index_U[mask_U], batch.targets_BM.shape[1])
        assert len(set(b)) == 1
        parents = batch.parents_BM[b, m]
        last, row = parents[-1], b[0]
        positions = np.arange(last + 1)
        path = positions[batch.ends_BT[row, : last + 1] > last]
        assert path[-len(parents) :].tolist() == parents.tolist()
        assert batch.positions_BT[row, path].tolist() == list(range(len(path)))
        yield batch.tokens_BT[row, path].tolist(), targets[index_U[mask_U]].tolist()


class TestPacking:
    examples = sharing_examples(60)

    def batches(self, **more):
        settings = {"batch_size": 16, "seed": 0, "num_epochs": 1, "max_micro_tokens": 256}
        return PackedBatches(self.examples, **(settings | more))

    @pytest.mark.parametrize("packing", ["tree", "sequence", "none"])
    @pytest.mark.parametrize("row_multiple", [1, 3, 8])
    @pytest.mark.parametrize("unit_size", [1, 2])
    def test_rows_hold_every_sample_with_its_scores(self, packing, row_multiple, unit_size):
        batches = self.batches(
            packing=packing,
            row_multiple=row_multiple,
            unit_size=unit_size,
            advantages=np.arange(60) / 10,
        )
        shape = (60, batches.num_reply_tokens)
        reference = stream(0, "ref").normal(size=shape).astype(np.float32)
        batches.set_reference(reference)
        seen = []
        for step in epoch(batches):
            assert step.work.num_reply_tokens == sum(batch.mask_SU.sum() for batch in step.batches)
            for batch in step.batches:
                assert len(batch.tokens_BT) % row_multiple == 0
                assert batch.num_tokens == step.work.num_reply_tokens
                assert batch.num_samples == len(step.samples)
                scores = batch.advantages_S, batch.ref_logp_SU, batch.mask_SU
                members = []
                for slot, (inputs, targets) in enumerate(replies(batch)):
                    (number,) = {
                        i
                        for i in step.samples
                        if np.float32(i / 10) == scores[0][slot]
                        and inputs == [*self.examples[i].prompt_ids, *targets[:-1]]
                        and targets == list(self.examples[i].response_ids)
                    }
                    np.testing.assert_array_equal(
                        scores[1][slot][scores[2][slot]], reference[number][: len(targets)]
                    )
                    members.append(number)
                assert [i // unit_size for i in members[::unit_size]] == [
                    i // unit_size for i in members[unit_size - 1 :: unit_size]
                ]
                seen += members
            assert sorted(seen[-len(step.samples) :]) == sorted(step.samples)
        assert sorted(seen) == list(range(60))

    def test_padding_sees_itself_alone(self):
        for step in epoch(self.batches(row_multiple=3)):
            for batch in step.batches:
                successors = np.arange(1, batch.tokens_BT.shape[1] + 1)
                for tokens, ends in zip(batch.tokens_BT, batch.ends_BT, strict=True):
                    size = np.flatnonzero(tokens).max(initial=-1) + 1
                    assert (ends[size:] == successors[size:]).all()
                    assert (ends[:size] <= size).all()

    def test_tree_takes_less_than_sequence_and_few_shapes_do(self):
        tree, sequence, none = (
            self.batches(packing=packing) for packing in ("tree", "sequence", "none")
        )
        whole = sum(example.num_tokens - 1 for example in self.examples)
        assert sequence.num_tokens == none.num_tokens == whole
        assert tree.num_tokens < 0.7 * whole
        for batches in (tree, sequence, none):
            shapes = {batch.tokens_BT.shape for step in epoch(batches) for batch in step.batches}
            assert shapes <= {tuple(shape) for shape in batches.shapes}
            assert len(batches.shapes) <= 6
            works = [step.work for step in epoch(batches)]
            assert sum(work.num_tokens for work in works) == batches.num_tokens
            assert sum(work.num_positions for work in works) == batches.num_positions

    def test_rows_of_a_realistic_sweep_are_filled_and_hold_a_third_of_its_tokens(self):
        examples = dialogue_examples(num_scenarios=40, num_dialogues=10)
        batches = PackedBatches(
            examples, batch_size=16, seed=0, num_epochs=1, max_micro_tokens=4096
        )
        assert batches.num_tokens / batches.num_positions >= 0.95
        assert sum(example.num_tokens for example in examples) / batches.num_tokens > 3

    def test_rows_of_many_devices_are_filled_by_steps_of_many_samples(self):
        examples = dialogue_examples(num_scenarios=40, num_dialogues=10)
        for row_multiple in (1, 2, 8):
            batches = PackedBatches(
                examples,
                batch_size=16 * row_multiple,
                seed=0,
                num_epochs=1,
                max_micro_tokens=4096,
                row_multiple=row_multiple,
            )
            assert batches.num_tokens / batches.num_positions >= 0.9
            assert sum(example.num_tokens for example in examples) / batches.num_positions > 3

    def test_a_row_is_filled_to_its_last_position(self):
        examples = lengths_to_examples([(60, 5), (100, 29)])  # 64 and 128 positions
        batches = PackedBatches(examples, batch_size=1, seed=0, num_epochs=1)
        filled = [step.work.num_tokens / step.work.num_positions for step in epoch(batches)]
        assert filled == [1, 1]

    def test_rounds_of_new_dialogues_have_the_shapes_of_those_before(self):
        shape = {"context_tokens": 150, "turn_tokens": 23, "cue_tokens": 24}  # the simulator's
        examples = dialogue_examples(num_scenarios=8, num_dialogues=40, **shape)

        def shapes(kind):
            """Of the arrays of all micro-batches of five rounds, each of 64 other dialogues."""
            found = set()
            for number in range(5):
                own = [e for e in examples if int(e.sample_id.split("/")[2][:4]) % 5 == number]
                batches = kind(own, batch_size=64, seed=0, num_epochs=1)
                for _, batch in batches.each_batch():
                    found.add(tuple(np.shape(x) for x in batch if x is not None))
            return found

        assert len(shapes(RoundBatches)) <= 3
        assert len(shapes(PackedBatches)) > 6

    def test_the_reference_pass_sees_every_sample_once_in_training_s_rows(self):
        batches = self.batches()
        samples, made = zip(*batches.each_batch(), strict=True)
        assert sorted(i for some in samples for i in some) == list(range(60))
        rows = {batch.tokens_BT.tobytes() for batch in made}
        trained = {b.tokens_BT.tobytes() for step in epoch(batches) for b in step.batches}
        assert rows == trained

    def test_a_sample_alone_has_one_of_the_usual_shapes(self):
        batches = self.batches()
        for number in (0, 4, 59):
            step = batches.step_of_sample(number)
            (batch,) = step.batches
            assert step.samples == (number,)
            assert batch.tokens_BT.shape in {tuple(shape) for shape in batches.shapes}
            ((_, targets),) = replies(batch)
            assert targets == list(self.examples[number].response_ids)

    @pytest.mark.parametrize("packing", ["tree", "sequence", "none"])
    def test_a_pair_alone_has_room_for_both_replies(self, packing):
        """One pair has the longest replies by far, together, and every row holds little else."""
        examples = lengths_to_examples([(5, 40), (5, 40), *[(50, 1)] * 6])
        batches = PackedBatches(
            examples,
            batch_size=4,
            seed=0,
            num_epochs=1,
            packing=packing,
            max_micro_tokens=64,
            unit_size=2,
        )
        for number in range(8):
            step = batches.step_of_sample(number)
            assert step.samples == (number - number % 2, number - number % 2 + 1)
            found = [targets for batch in step.batches for _, targets in replies(batch)]
            assert sorted(found) == sorted(examples[i].response_ids.tolist() for i in step.samples)

    def test_a_long_sample_stands_alone_and_a_reply_is_never_cut(self):
        examples = lengths_to_examples([(3, 150), (700, 2), (5, 5)])
        batches = PackedBatches(examples, batch_size=3, seed=0, num_epochs=1, max_micro_tokens=64)
        made = batches.step(0).batches
        assert len(made) == 3
        assert sum(batch.mask_SU.sum() for batch in made) == 157

    def test_bad_samples_are_refused_by_name(self):
        with pytest.raises(InputError, match="no sample to train on"):
            PackedBatches([], batch_size=2, seed=0, num_epochs=1)
        (example,) = lengths_to_examples([(5, 0)])
        with pytest.raises(InputError, match=r"seed_0000#0: the batch would be masked throughout"):
            PackedBatches([example], batch_size=2, seed=0, num_epochs=1)
        with pytest.raises(InputError, match=r"traj_0004#0: advantage nan is not finite"):
            self.batches(advantages=[np.nan if i == 4 else 0 for i in range(60)])
        with pytest.raises(InputError, match=r"shape \(60, 1\), these samples \(60, 16\)"):
            self.batches().set_reference(np.zeros((60, 1), np.float32))
        spoilt = np.zeros((60, 16), np.float32)
        spoilt[7, 3] = np.inf
        with pytest.raises(InputError, match=r"traj_0007#0: a reference log-prob is not finite"):
            self.batches().set_reference(spoilt)


class TestCuts:
    def test_no_other_way_to_cut_computes_fewer_positions(self):
        for seed in range(20):
            self.check(stream(seed, "cuts"))

    def check(self, rng):
        inputs = [rng.integers(1, 3, rng.integers(1, 40)) for _ in range(7)]
        shapes = [RowShape(1, 16), RowShape(1, 40), RowShape(1, 100)]
        samples = StepSamples(range(7), inputs, "tree", 1)
        cost, _ = cheapest_cuts(samples.reaches(shapes), shapes)

        def least(start):
            if start == 7:
                return 0
            options = []
            for stop in range(start + 1, 8):
                ranks = [rank for unit in samples.units[start:stop] for rank in unit]
                size = samples.num_positions(sorted(ranks))
                fitting = [s.num_positions for s in shapes if s.num_positions >= size]
                if fitting:
                    options.append(min(fitting) + least(stop))
            return min(options)

        assert cost == least(0)
        packed = pack(samples, shapes)
        assert sum(micro.shape.num_positions for micro in packed) == cost
        assert sorted(i for micro in packed for row in micro.rows for i in row) == list(range(7))
