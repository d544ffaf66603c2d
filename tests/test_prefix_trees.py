"""Prefix trees in rows: every sequence is there, merged, and sees itself alone."""

import numpy as np

from emodistill.batches.prefix_trees import common_prefix, lay_out, prefix_key
from emodistill.seeding import stream


def random_sequences(rng, number):
    """Many share beginnings: duplicates, prefixes of others and single tokens are among them."""
    found = [rng.integers(1, 4, rng.integers(1, 6))]
    for _ in range(number - 1):
        kind, other = rng.integers(5), found[rng.integers(len(found))]
        if kind == 0:
            found.append(other.copy())
        elif kind == 1:
            found.append(other[: rng.integers(1, len(other) + 1)])
        elif kind == 2:
            found.append(np.concatenate([other, rng.integers(1, 4, rng.integers(1, 9))]))
        elif kind == 3:
            cut = other[: rng.integers(len(other))]
            found.append(np.concatenate([cut, rng.integers(1, 4, rng.integers(1, 9))]))
        else:
            found.append(rng.integers(1, 4, 1))
    return [ids.astype(np.int32) for ids in found]


def num_nodes(sequences):
    return len({tuple(ids[: i + 1]) for ids in sequences for i in range(len(ids))})


def assert_each_sees_its_own_path(tree, sequences):
    """Every sequence is there, token by token, and each token sees those before it and no other."""
    positions = np.arange(len(tree.tokens_T))
    sees_TT = (positions[None] <= positions[:, None]) & (positions[:, None] < tree.ends_T[None])
    for ids, path in zip(sequences, tree.paths, strict=True):
        assert tree.tokens_T[path].tolist() == ids.tolist()
        assert tree.depths_T[path].tolist() == list(range(len(ids)))
        for depth, position in enumerate(path):
            assert np.flatnonzero(sees_TT[position]).tolist() == path[: depth + 1].tolist()
    assert {int(position) for path in tree.paths for position in path} == set(positions.tolist())


def test_a_row_is_the_prefix_tree():
    for seed in range(30):
        rng = stream(seed, "trees")
        sequences = sorted(random_sequences(rng, int(rng.integers(1, 12))), key=prefix_key)
        tree = lay_out(sequences)
        assert len(tree.tokens_T) == num_nodes(sequences)
        assert_each_sees_its_own_path(tree, sequences)


def test_limits_and_any_order_are_exact_as_well():
    for seed in range(10):
        rng = stream(seed, "limits")
        sequences = random_sequences(rng, 8)
        for limits in ([0] * 8, [int(rng.integers(len(ids) + 1)) for ids in sequences]):
            assert_each_sees_its_own_path(lay_out(sequences, limits), sequences)
        assert len(lay_out(sequences, [0] * 8).tokens_T) == sum(map(len, sequences))


def test_common_prefixes():
    ids = np.array([1, 2, 3])
    assert common_prefix(ids, ids) == 3
    assert common_prefix(ids, ids[:2]) == common_prefix(ids[:2], ids) == 2
    assert common_prefix(ids, np.array([1, 9, 3])) == 1
    assert common_prefix(ids, np.array([9])) == common_prefix(ids, ids[:0]) == 0
