"""The training loop: it learns, goes on where it was cut off, and names what breaks it."""

import dataclasses
import signal

import numpy as np
import pytest
from flax import nnx
from model_outputs import reply_logprobs
from samples import lengths_to_examples, sharing_examples
from tiny_training import (
    CONFIG,
    SFT,
    SHORT,
    leaves,
    lines,
    packed,
    placed,
    tiny_model,
    with_reference,
    without_times,
)

from emodistill.configs import DPOConfig
from emodistill.errors import DivergenceError, StaleInputError, StoppedError
from emodistill.model import LoRAParam
from emodistill.train.checkpoints import Checkpoints
from emodistill.train.loop import train
from emodistill.train.objectives import OBJECTIVES
from emodistill.train.watching import UNWATCHED


def run_loop(
    cell_dir,
    *,
    lengths=SHORT,
    config=SFT,
    num_epochs=40,
    model=None,
    on_step=None,
    watcher=UNWATCHED,
):
    model = model or tiny_model()
    batches = packed(lengths, batch_size=config.batch_size, num_epochs=num_epochs)
    run = train(
        model,
        batches,
        config,
        OBJECTIVES["sft"],
        cell_dir=cell_dir,
        identity={"config": config.identity(), "samples": "abc"},
        on_step=on_step,
        watcher=watcher,
    )
    return run, model


class Eye:
    """A watcher that notes what it is shown, and stops where it is told to."""

    every = 2

    def __init__(self, stop_at=None, fail_at=None):
        self.stop_at, self.fail_at, self.seen, self.begun = stop_at, fail_at, {}, []

    def begin(self, step):
        self.begun.append(step)
        self.seen = {seen: values for seen, values in self.seen.items() if seen <= step}

    def look(self, step, model):
        if step == self.fail_at:
            raise KilledError
        self.seen.setdefault(step, leaves(nnx.state(model, LoRAParam)))
        return step == self.stop_at

    def kept(self, last_step):
        return last_step, None


def newest(cell_dir):
    """The step of the newest checkpoint."""
    return Checkpoints(cell_dir / "checkpoints", {}, keep=2, keep_every=None).newest


class KilledError(Exception):
    """Stands for whatever ends a process in the middle of a run."""


@pytest.fixture
def usual_signals():
    """What a program finds that is started at a terminal."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class TestLoop:
    def test_sft_learns_a_few_samples_by_heart(self, tmp_path):
        config = dataclasses.replace(SFT, learning_rate=3e-2, save_every=1000)
        run, model = run_loop(tmp_path, lengths=[(6, 4), (9, 3)] * 2, config=config, num_epochs=80)
        losses = [row["sft/loss"] for row in lines(tmp_path)]
        assert losses[0] > 4
        assert run.metrics["sft/loss"] < 0.1 * losses[0]
        batch = packed([(6, 4), (9, 3)] * 2).step(0).batches[0]
        logp_SU = reply_logprobs(model, batch)  # the model itself was trained
        assert -np.asarray(logp_SU)[batch.mask_SU].mean() < 0.1 * losses[0]

    def test_dpo_learns_to_prefer_the_better_of_each_pair(self, tmp_path):
        model = tiny_model()
        examples = lengths_to_examples([(9, 5), (9, 7), (20, 6), (20, 4)])
        batches = packed(examples, batch_size=2, unit_size=2, num_epochs=40)
        with_reference(batches, model)
        config = DPOConfig(beta=0.5, learning_rate=3e-2, batch_size=2, save_every=1000)
        run = train(model, batches, config, OBJECTIVES["dpo"], cell_dir=tmp_path, identity={})
        assert lines(tmp_path)[0]["dpo/accuracy"] == 0  # no margin yet
        assert run.metrics["dpo/accuracy"] == 1
        assert run.metrics["dpo/loss"] < 0.1

    def test_an_interrupted_run_goes_on_to_the_same_end(self, tmp_path):
        config = dataclasses.replace(SFT, save_every=4)
        whole, model = run_loop(tmp_path / "whole", config=config, num_epochs=5)
        assert whole.num_steps == 10

        def stop(step):
            if step == 7:
                raise KilledError

        with pytest.raises(KilledError):
            run_loop(tmp_path / "cut", config=config, num_epochs=5, on_step=stop)
        assert lines(tmp_path / "cut")[-1]["step"] == 5  # past the checkpoint of step 4
        first = []
        run, other = run_loop(tmp_path / "cut", config=config, num_epochs=5, on_step=first.append)
        assert first == [5, 6, 7, 8, 9, 10]
        assert without_times(lines(tmp_path / "cut")) == without_times(lines(tmp_path / "whole"))
        for a, b in zip(
            leaves(nnx.state(model, LoRAParam)), leaves(nnx.state(other, LoRAParam)), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        kept = sorted(int(p.name) for p in (tmp_path / "cut/checkpoints").iterdir())
        assert kept == [8, 10]
        assert run.metrics["sft/loss"] == whole.metrics["sft/loss"]

        again, _ = run_loop(tmp_path / "cut", config=config, num_epochs=5, on_step=first.append)
        assert len(first) == 6  # nothing was left to do
        assert again.metrics["sft/loss"] == whole.metrics["sft/loss"]

    @pytest.mark.parametrize(
        "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
    )
    def test_asked_to_stop_it_saves_the_step_and_goes_on_from_there(
        self, number, usual_signals, tmp_path
    ):
        before = signal.getsignal(number)
        config = dataclasses.replace(SFT, save_every=1000)
        whole, _ = run_loop(tmp_path / "whole", config=config, num_epochs=5)

        def ask(step):
            if step == 3:
                signal.raise_signal(number)

        with pytest.raises(StoppedError, match="stopped after step 4 of 10, which is saved"):
            run_loop(tmp_path / "cut", config=config, num_epochs=5, on_step=ask)
        assert signal.getsignal(number) is before
        steps = []
        run, _ = run_loop(tmp_path / "cut", config=config, num_epochs=5, on_step=steps.append)
        assert steps == [5, 6, 7, 8, 9, 10]
        assert without_times(lines(tmp_path / "cut")) == without_times(lines(tmp_path / "whole"))
        assert run.metrics["sft/loss"] == whole.metrics["sft/loss"]

    def test_asked_to_stop_twice_it_stops_at_once(self, usual_signals, tmp_path):
        def ask(step):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            run_loop(tmp_path, on_step=ask)

    def test_an_ignored_signal_stays_ignored(self, usual_signals, tmp_path):
        """As under nohup, or in the background of a shell."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        config = dataclasses.replace(SFT, max_steps=2)
        run, _ = run_loop(
            tmp_path, config=config, on_step=lambda _: signal.raise_signal(signal.SIGINT)
        )
        assert run.num_steps == 2

    def test_a_loss_that_is_not_finite_names_the_samples_and_keeps_the_checkpoint(self, tmp_path):
        model = tiny_model()
        config = dataclasses.replace(SFT, learning_rate=1e30, save_every=1)
        with pytest.raises(DivergenceError) as caught:
            run_loop(tmp_path, config=config, model=model)
        message = str(caught.value)
        step = int(message.split("sft step ")[1].split(":")[0])
        assert step > 1
        assert f"the checkpoint of step {step - 1} is kept" in message
        for sample_id in packed(SHORT, batch_size=4, num_epochs=40).sample_ids(step - 1):
            assert sample_id in message
        assert newest(tmp_path) == step - 1

    @pytest.mark.parametrize("spoilt", [2, 5])
    def test_a_nan_in_one_sample_names_that_sample_alone(self, spoilt, tmp_path):
        """A token that only one prompt has, with an embedding that is not a number."""
        untied = tiny_model(config=dataclasses.replace(CONFIG, is_tied=False))
        weight_VD = np.array(untied.embed_tokens.weight[...])
        weight_VD[199] = np.nan
        untied.embed_tokens.weight.set_value(placed(weight_VD))
        examples = sharing_examples(8)
        prompt_ids = np.append(examples[spoilt].prompt_ids, np.int32(199))
        examples[spoilt] = dataclasses.replace(examples[spoilt], prompt_ids=prompt_ids)
        config = dataclasses.replace(SFT, save_every=1)
        batches = packed(examples, batch_size=4, num_epochs=3)
        first_bad = next(
            step for step in range(6) if examples[spoilt].sample_id in batches.sample_ids(step)
        )
        with pytest.raises(DivergenceError) as caught:
            train(untied, batches, config, OBJECTIVES["sft"], cell_dir=tmp_path, identity={})
        message = str(caught.value)
        assert f"sft step {first_bad + 1}: " in message
        assert f"It comes from {examples[spoilt].sample_id};" in message
        assert (newest(tmp_path) or 0) == first_bad

    def test_a_checkpoint_of_something_else_is_refused_by_name(self, tmp_path):
        config = dataclasses.replace(SFT, max_steps=2)
        run_loop(tmp_path, config=config)
        with pytest.raises(StaleInputError, match=r"config\[learning_rate\]=0.01, now .*=0.02"):
            run_loop(tmp_path, config=dataclasses.replace(config, learning_rate=0.02))
        model = tiny_model(rank=8)
        with pytest.raises(StaleInputError, match=r"arrays\[.*\]='float32\[2, .*4.*8"):
            run_loop(tmp_path, config=config, model=model)
        run, _ = run_loop(tmp_path, config=dataclasses.replace(config, save_every=7))
        assert run.num_steps == 2  # how often to save is nobody's business

    def test_a_watcher_sees_the_student_as_it_is_and_may_end_the_training(self, tmp_path):
        config = dataclasses.replace(SFT, max_steps=5, save_every=1000)
        eye = Eye()
        _, model = run_loop(tmp_path / "whole", config=config, watcher=eye)
        assert list(eye.seen) == [0, 2, 4, 5] and eye.begun == [0]
        for ours, theirs in zip(eye.seen[5], leaves(nnx.state(model, LoRAParam)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        cut = Eye(fail_at=4)
        with pytest.raises(KilledError):
            run_loop(tmp_path / "cut", config=config, watcher=cut)
        assert newest(tmp_path / "cut") == 4  # saved before the look, which is taken up again
        cut.fail_at = None
        run_loop(tmp_path / "cut", config=config, watcher=cut)
        assert list(cut.seen) == [0, 2, 4, 5] and cut.begun == [0, 4]
        for step, values in eye.seen.items():
            for ours, theirs in zip(cut.seen[step], values, strict=True):
                np.testing.assert_array_equal(ours, theirs)
        run, stopped = run_loop(tmp_path / "stop", config=config, watcher=Eye(stop_at=2))
        assert run.num_steps == 2 and len(lines(tmp_path / "stop")) == 2
        for ours, theirs in zip(leaves(nnx.state(stopped, LoRAParam)), eye.seen[2], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        again, _ = run_loop(tmp_path / "stop", config=config, watcher=Eye(stop_at=2))
        assert again.num_steps == 2 and again.metrics["sft/loss"] == run.metrics["sft/loss"]

    def test_max_steps_ends_early(self, tmp_path):
        run, _ = run_loop(tmp_path, config=dataclasses.replace(SFT, max_steps=3))
        assert run.num_steps == 3
        assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3]
