"""Table 15's rows from made-up training curves."""

import numpy as np
import pytest

from emodistill.errors import InputError
from emodistill.evaluation.stability import stability_row


def logged(**columns):
    """Metric names with `__` for the slash; a point every 25 steps, as in the paper."""
    return {
        name.replace("__", "/"): (25.0 * np.arange(1, len(values) + 1), np.array(values))
        for name, values in columns.items()
    }


def test_a_loss_by_hand():
    loss = [4.0, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 5.0]  # quarters of two points
    row = stability_row("sft", logged(sft__loss=loss))
    assert (row["num_points"], row["num_steps"]) == (11, 275)
    assert (row["first"], row["last"]) == (3.0, 3.0)
    assert (row["control"], row["control_std"]) == (3.0, 2.0)
    assert not {"ratio", "kl_spikes", "ratio_clips"} & row.keys()


def test_the_spread_is_robust():
    loss = [1.0] * 30 + [0.3, 0.31, 0.32, 0.33, 0.34, 0.35, 0.36, 0.37, 0.38, 99.0]
    row = stability_row("iql", logged(critic__loss=loss, value__loss=[1.0]))
    # Around 0.345: .005 .005 .015 .015 .025 .025 .035 .035 .045 and one far off.
    assert (row["control"], row["control_std"]) == pytest.approx((0.345, 0.025))


def test_jpo_counts_spikes_and_ratios_over_the_whole_run():
    row = stability_row(
        "jpo",
        logged(
            policy__surrogate=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
            policy__kl_k3=[0.0, 0.6, 0.5, 0.51, 0.1, 0.1, 0.2, 0.3],
            policy__ratio_mean=[1.0, 0.79, 0.8, 1.2, 1.21, 0.9, 0.9, float("nan")],
        ),
    )
    assert (row["first"], row["last"]) == pytest.approx((0.05, 0.65))
    assert (row["kl_spikes"], row["ratio_clips"]) == (2, 3)
    assert (row["control"], row["control_std"]) == pytest.approx((0.25, 0.05))  # of the KL
    assert np.isnan([row["ratio"], row["ratio_std"]]).all()  # the last ratio is not a number


def test_a_single_point():
    row = stability_row("sft", logged(sft__loss=[2.5]))
    assert [row[name] for name in ("num_points", "num_steps", "first", "last")] == [1, 25, 2.5, 2.5]
    assert row["control_std"] == 0.0


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match="'policy/kl_k3', which its row of Table 15 needs; it has"):
        stability_row("jpo", logged(policy__surrogate=[0.1]))
    with pytest.raises(InputError, match=r"the sft run has logged no 'sft/loss'.* nothing"):
        stability_row("sft", {})
    with pytest.raises(InputError, match="stage='ppo' is none of iql, sft, jpo"):
        stability_row("ppo", {})
