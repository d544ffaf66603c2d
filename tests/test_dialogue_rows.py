"""A dialogue in one row means what its samples mean one by one."""

import jax.numpy as jnp
import numpy as np
import pytest
from model_outputs import logits

from emodistill.batches.prefix_trees import lay_out
from emodistill.errors import InputError
from emodistill.model import load_qwen2
from emodistill.seeding import stream
from pretraining.dialogue_rows import (
    GIVEN,
    NOTHING,
    PROMPT,
    REPLY,
    Rows,
    TokenSample,
    endless_batches,
    merge_samples,
    stack_rows,
)

DIGITS = (10, 11)


def sample(prompt: list[int], reply: list[int]) -> TokenSample:
    return TokenSample(prompt, reply, [GIVEN if id_ in DIGITS else REPLY for id_ in reply])


SAMPLES = (
    sample([1, 2, 3, 4, 5], [6, 10, 9]),
    sample([1, 2, 3, 6, 10, 12, 4, 5], [11, 9]),
    sample([1, 2, 3, 6, 10, 12, 11, 13, 4, 5], [10, 10, 9]),
)
PATHS = lay_out(
    [np.array([*one.prompt_ids, *one.reply_ids]) for one in SAMPLES],
    [len(one.prompt_ids) - 1 for one in SAMPLES],
).paths
"""For each sample, where its tokens lie in the row."""


def test_logits_of_a_row_are_those_of_its_samples(tiny_checkpoint):
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    row = merge_samples(SAMPLES)
    rows = stack_rows([row], 32)
    logits_BTV = logits(model, rows.tokens_BT, positions_BT=rows.positions_BT, ends_BT=rows.ends_BT)
    assert row.num_tokens < sum(len(one.prompt_ids) + len(one.reply_ids) for one in SAMPLES)
    for one, path in zip(SAMPLES, PATHS, strict=True):
        ids = np.array([*one.prompt_ids, *one.reply_ids])
        assert row.tokens_BT[0, path].tolist() == ids.tolist()
        alone_BT = np.pad(ids, (0, 32 - len(ids)))[None]  # one shape; nobody sees what follows
        alone_TV = logits(model, alone_BT)[0, : len(ids)]
        np.testing.assert_allclose(logits_BTV[0, path], alone_TV, rtol=1e-4, atol=1e-5)


def test_every_reply_is_predicted_once_and_its_digits_are_marked():
    row = Rows(*(array[0] for array in merge_samples(SAMPLES)))
    for one, path in zip(SAMPLES, PATHS, strict=True):
        positions = path[len(one.prompt_ids) - 1 : -1]
        assert row.targets_BT[positions].tolist() == one.reply_ids
        assert row.kinds_BT[positions].tolist() == one.reply_kinds
        assert row.kinds_BT[path[-1]] == NOTHING
    assert (row.kinds_BT >= REPLY).sum() == sum(len(one.reply_ids) for one in SAMPLES)
    ends = {int(path[-1]) for path in PATHS}
    others = [i for i in np.flatnonzero(row.kinds_BT < REPLY) if i not in ends]
    assert others and (row.kinds_BT[others] == PROMPT).all()


def test_padding_predicts_nothing():
    row = merge_samples(SAMPLES)
    padded = stack_rows([row], row.num_tokens + 3)
    assert padded.num_tokens == row.num_tokens + 3
    for array_BT in padded:
        assert (array_BT[:, row.num_tokens :] == 0).all()


def test_batches_come_in_a_seeded_order_without_end():
    rng = stream(0, "test rows")
    rows = [
        merge_samples([sample(rng.integers(1, 9, 5).tolist(), [int(rng.integers(9)), 9])])
        for i in range(12)
    ]

    def tokens(seed, number):
        batches = endless_batches(rows, tokens_per_step=512, seed=seed)
        return [next(batches).tokens_BT.tolist() for _ in range(number)]

    assert tokens(0, 5) == tokens(0, 7)[:5] != tokens(1, 5)
    assert all(len(batch) == 4 for batch in tokens(0, 5))
    epoch = sorted(row for batch in tokens(0, 3) for row in batch)
    assert epoch == sorted(stack_rows(rows, 128).tokens_BT.tolist())


def test_no_dialogue_is_left_out_for_its_rare_length():
    rows = [merge_samples([sample([1] * size, [2, 9])]) for size in [5] * 9 + [200, 300, 500, 510]]
    batches = endless_batches(rows, tokens_per_step=512, seed=0)
    lengths = {int((tokens > 0).sum()) for _ in range(40) for tokens in next(batches).tokens_BT}
    assert lengths == {row.num_tokens for row in rows}


def test_too_few_dialogues_for_a_step():
    with pytest.raises(InputError, match=r"1 dialogues do not fill a step of tokens_per_step=512"):
        next(endless_batches([merge_samples(SAMPLES)], tokens_per_step=512, seed=0))
