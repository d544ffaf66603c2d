"""Arms side by side: what waits for what, what fails with what, and what is trained once."""

import logging
import pickle
import sys
import types

import pytest

from emodistill.configs import IQLConfig, JPOConfig, SFTConfig
from emodistill.errors import InputError
from emodistill.llm.client import RefusedError
from emodistill.settings import Cell
from emodistill.stages import Output
from emodistill.studies import launchers
from emodistill.studies.launchers import Task, run_here, run_on_ray
from emodistill.train.metrics_log import METRICS


class Ref:
    def __init__(self, value):
        self.value = value


def through_pickle(value):
    return pickle.loads(pickle.dumps(value))


class FakeRay(types.ModuleType):
    """Runs a task as soon as it is submitted; what goes in and out is pickled, as Ray does."""

    def __init__(self, **resources):
        super().__init__("ray")
        self.resources = resources
        self.is_initialized = lambda: True

    def nodes(self):
        return [{"Alive": True, "Resources": self.resources}]

    def remote(self, **resources):
        def wrap(function):
            def submit(*args):
                values = [arg.value if isinstance(arg, Ref) else arg for arg in args]
                return Ref(through_pickle(function(*through_pickle(values))))

            return types.SimpleNamespace(remote=submit)

        return wrap

    def wait(self, refs):
        return refs[-1:], refs[:-1]  # in any order

    def get(self, ref):
        return ref.value


@pytest.fixture
def trained(monkeypatch):
    """The cells that were trained, in order; a learning rate of 9 makes a training fail."""
    found = []

    def train(cell):
        found.append(f"{cell.config.stage}/{cell.name}")
        if getattr(cell.config, "learning_rate", 0) == 9:
            raise RefusedError("no such model", 400)
        return Output(launchers._directory(cell), "")

    monkeypatch.setattr(launchers, "run_stage", train)
    return found


@pytest.fixture
def on_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", FakeRay(CPU=2.0))
    return lambda starts, cpus=1.0, gpus=0.0: dict(run_on_ray(starts, cpus=cpus, gpus=gpus))


def task(sft=None, **jpo):
    cells = (
        Cell(IQLConfig()),
        Cell(SFTConfig(**(sft or {})), SFTConfig()),
        Cell(JPOConfig(**jpo), JPOConfig()),
    )
    return lambda: Task(tuple((cell,) for cell in cells), None)


def test_what_arms_share_is_trained_once_and_before_them(trained, on_ray):
    starts = [task(kappa=0.25), task(), task(kappa=0.5)]
    outcomes = on_ray(starts)
    assert [outcomes[n] for n in range(3)] == [
        launchers._directory(start().trainings[-1][0]) / METRICS for start in starts
    ]
    assert sorted(trained) == sorted(set(trained)) and len(trained) == 5
    assert trained.index("sft/default") < min(
        index for index, name in enumerate(trained) if name.startswith("jpo")
    )
    assert dict(run_here(starts)) == outcomes


def test_a_training_that_fails_takes_those_along_that_need_it_and_no_other(trained, on_ray):
    broken = {"learning_rate": 9.0}
    starts = [
        task(sft=broken, sft_cell="other"),
        task(kappa=0.5, **broken),
        task(kappa=0.25),
        task(),
    ]
    outcomes = on_ray(starts)
    for number in (0, 1):
        assert str(outcomes[number]) == "no such model" and outcomes[number].status == 400
    assert all(outcomes[number].name == METRICS for number in (2, 3))
    assert not any("sft_cell=other" in name for name in trained)


def test_an_arm_that_can_t_begin_fails_alone(trained, on_ray, caplog):
    def refuse():
        raise InputError("no such counterparty")

    def crash():
        raise ZeroDivisionError("by zero")

    with caplog.at_level(logging.ERROR):
        outcomes = on_ray([refuse, crash, task()])
    assert (str(outcomes[0]), str(outcomes[1])) == ("no such counterparty", "by zero")
    assert outcomes[2].name == METRICS and "ZeroDivisionError" in caplog.text


def test_what_no_machine_has_is_refused_before_anything_is_made(trained, on_ray, monkeypatch):
    with pytest.raises(InputError, match=r"--ray-cpus 1 --ray-gpus 1: no machine"):
        on_ray([task()], gpus=1.0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'emodistill\[ray\]'"):
        on_ray([task()])
    assert not trained
