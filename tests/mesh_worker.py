"""Losses, gradients and short runs on meshes; a process of its own, since devices are counted once.

python mesh_worker.py OUT.npz gradients '[["1x2x4", "many", "jpo"], …]' [FLAGS]
python mesh_worker.py CELL train STAGE MESH NUM_STEPS [FLAGS]
python mesh_worker.py CELL die STAGE MESH NUM_STEPS
python mesh_worker.py CELL preempt STAGE MESH NUM_STEPS FLAGS
python mesh_worker.py OUT.json load FOLDER MESH [FLAGS]
python mesh_worker.py OUT.json generate FOLDER MESH PROMPTS
python mesh_worker.py CELL refuse FLAGS
python mesh_worker.py OUT fail FLAGS

FLAGS are `--coordinator HOST:PORT --num-processes NUM --process-id ID`, as for a training stage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import sys
import time
from collections import deque
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import optax
from flax import nnx
from random_models import random_parts
from samples import lengths_to_examples

from emodistill import cli
from emodistill.batches import PackedBatches, Step
from emodistill.configs import DPOConfig, JPOConfig, MeshShape, SFTConfig
from emodistill.errors import InputError, StoppedError
from emodistill.model import (
    Engine,
    GenerationRequest,
    LoRAParam,
    Qwen2,
    Qwen2Config,
    add_lora,
    agree,
    base_fingerprint,
    is_first,
    joined,
    load_qwen2,
    make_mesh,
    num_row_shards,
    processes,
    qwen2,
    sharding,
    to_host,
    weights,
)
from emodistill.runs import Job, begin_stage
from emodistill.seeding import jax_key, stream
from emodistill.settings import Cell
from emodistill.train.loop import train
from emodistill.train.objectives import OBJECTIVES
from emodistill.train.trainer import Trainer, add_metrics

MANY_HEADS = Qwen2Config(
    vocab_size=208,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,  # fewer than tensor shards
    head_dim=8,
    rope_theta=1e4,
    norm_eps=1e-6,
    max_positions=512,
    is_tied=False,
)
ODD = dataclasses.replace(MANY_HEADS, num_heads=6, vocab_size=203, is_tied=True)
MODELS = {"many": MANY_HEADS, "odd": ODD}
CONFIGS = {
    "sft": SFTConfig(),
    "jpo": JPOConfig(kl_coef=0.3),
    "dpo": DPOConfig(beta=0.2),
}
LENGTHS = [(9, 3), (20, 12), (17, 1), (30, 20), (5, 9), (33, 2), (40, 20), (12, 6), (60, 4)]


def make_model(config: Qwen2Config, mesh=None) -> Qwen2:
    """A random model with a LoRA that does something, the same numbers on every mesh."""
    remat = "none" if mesh is None else "full"  # and in blocks, on every mesh

    def make():
        model = Qwen2(config, key=jax_key(0, "model"), mesh=mesh, remat=remat)
        add_lora(model, rank=4, alpha=8)
        return model

    graphdef, state = random_parts(make)
    rng = stream(0, "trained")

    def trained(path, variable):
        value = variable.get_value()
        if path[-1] == "b":
            value = rng.normal(0, 0.1, value.shape).astype(np.float32)
        if path[0] == "embed_tokens":
            value = 20 * value
        where = sharding.param_sharding(tuple(map(str, path)), value.shape, mesh)
        array = jax.make_array_from_callback(value.shape, where, lambda index: value[index])
        return variable.replace(array)

    leaves = sorted(nnx.to_flat_state(state), key=lambda item: item[0])
    return nnx.merge(graphdef, nnx.from_flat_state([(p, trained(p, v)) for p, v in leaves]))


def make_batches(mesh=None, **settings) -> PackedBatches:
    batches = PackedBatches(
        lengths_to_examples(LENGTHS * 2),
        seed=0,
        max_micro_tokens=64,  # one row length, and so one program for each loss and mesh
        row_multiple=num_row_shards(mesh),
        advantages=stream(0, "advantages").normal(size=2 * len(LENGTHS)),
        **settings,
    )
    shape = len(batches.examples), batches.num_reply_tokens
    batches.set_reference(stream(0, "ref").normal(-5, 0.1, shape).astype(np.float32))
    return batches


def assert_moments_lie_like_their_factors(state) -> None:
    (adam,) = [part for part in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(part)]
    for moments in (adam.mu, adam.nu):
        for moment, factor in zip(
            jax.tree.leaves(moments), jax.tree.leaves(state.lora), strict=True
        ):
            assert moment.sharding.is_equivalent_to(factor.sharding, moment.ndim)


def is_adam(part) -> bool:
    return isinstance(part, optax.ScaleByAdamState)


def gradients(name: str, stage: str, mesh=None) -> dict[str, np.ndarray]:
    """The gradient of the first step by path, and its metrics."""
    graphdef, lora, frozen = nnx.split(make_model(MODELS[name], mesh), LoRAParam, ...)
    config = CONFIGS[stage]
    loss_fn = functools.partial(OBJECTIVES[stage].loss, config)
    trainer = Trainer(graphdef, loss_fn, config, num_steps=1, mesh=mesh)
    if mesh is not None:
        assert_moments_lie_like_their_factors(trainer.init(lora))
    unit_size = 2 if stage == "dpo" else 1
    batches = make_batches(mesh, batch_size=18 // unit_size, num_epochs=1, unit_size=unit_size)
    step = batches.step(0)
    grads, metrics = trainer.gradients(lora, frozen, trainer.put(step.batches))
    found = {
        "/".join(map(str, path)): to_host(leaf[...]) for path, leaf in nnx.to_flat_state(grads)
    }
    return found | {name: np.float32(value) for name, value in add_metrics(metrics).items()}


def run(cell_dir: Path, mesh, num_steps: int, *, stage="jpo", end="train") -> None:
    """Take up to `num_steps` of 8 steps, of several micro-batches each, and then end.

    By leaving (`train`), by SIGKILL (`die`), or, in the first process, by SIGTERM (`preempt`).
    `trace.jsonl` gets the number and the samples of every step that was begun: those of the rows
    that the loop was given, not those that should come at that number.
    """
    save_every = 100 if end == "preempt" else 1
    config = dataclasses.replace(CONFIGS[stage], learning_rate=1e-2, save_every=save_every)
    batches = make_batches(mesh, batch_size=9, num_epochs=4)
    assert all(len(batches.step(n).batches) > 1 for n in range(batches.num_steps)) or mesh
    cell_dir.mkdir(parents=True, exist_ok=True)
    given: deque[list[str]] = deque()
    make_step = batches.step

    def noting(number: int) -> Step:
        made = make_step(number)
        given.append([batches.examples[i].sample_id for i in made.samples])
        return made

    def on_step(step: int) -> None:
        samples = given.popleft()
        if is_first():
            with (cell_dir / "trace.jsonl").open("a") as file:
                file.write(json.dumps([step, samples]) + "\n")
        if end == "preempt":
            time.sleep(0.5)  # the notice reaches the other process long before the last step
        if step != num_steps or step == batches.num_steps:
            return
        if end == "train":
            raise SystemExit
        if end == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if is_first():
            signal.raise_signal(signal.SIGTERM)

    with mock.patch.object(batches, "step", noting):
        train(
            make_model(MANY_HEADS, mesh),
            batches,
            config,
            OBJECTIVES[stage],
            cell_dir=cell_dir,
            identity={},
            on_step=on_step,
        )


def load(folder: str, mesh) -> dict[str, object]:
    """Load a checkpoint; what it is, and how many of its numbers this process has read."""
    num_read = 0

    def counting(read):
        def wrapped(*args):
            nonlocal num_read
            out = read(*args)
            num_read += out.size
            return out

        return wrapped

    with mock.patch.object(weights, "_read", counting(weights._read)):
        model = load_qwen2(folder, mesh, dtype=np.float32)
    logits = jax.jit(lambda model, tokens: sharding.everywhere(model(tokens), mesh))
    found = to_host(logits(model, np.arange(24, dtype=np.int32).reshape(2, 12)))
    return {
        "fingerprint": base_fingerprint(model),
        "num_read": num_read,
        "logits": found.tolist(),
    }


def greedy(folder: str, mesh: jax.sharding.Mesh, prompts: str) -> list[list[int]]:
    """Greedy continuations by sharded weights, each as long as tests/test_engine.py has it."""
    engine = Engine(load_qwen2(folder, mesh, dtype=np.float32), num_slots=4)
    requests = [
        GenerationRequest(ids, 5 + 3 * n, 0.0, stop_ids=frozenset({n, 7, 9}))
        for n, ids in enumerate(json.loads(prompts))
    ]
    return [generated.ids for generated in engine.generate(requests)]


def job(cell_dir: Path, kappa: float) -> Job:
    """A stage in `cell_dir`, where it has written its output."""
    output = cell_dir / "metrics.jsonl"
    output.write_text("{}\n")
    return Job(
        cell=Cell(JPOConfig()),
        name="jpo",
        directory=cell_dir,
        output=output,
        path=output,
        inputs={},
        identity={"kappa": kappa},
    )


def main(out: Path, command: str, *args: str) -> None:
    if command == "gradients":
        found = {
            f"{shape} {name} {stage}:{key}": value
            for shape, name, stage in json.loads(args[0])
            for key, value in gradients(name, stage, make_mesh(MeshShape.parse(shape))).items()
        }
        if is_first():
            np.savez(out, **found)
    elif command == "refuse":  # the stage was begun with another setting; only the first looks
        agree(lambda: begin_stage(job(out, kappa=1.0)))
    elif command == "fail":
        if is_first():
            raise InputError(f"{out} can't be written.")
        agree(lambda: True)
    elif command == "generate":
        folder, shape, prompts = args
        out.write_text(json.dumps(greedy(folder, make_mesh(MeshShape.parse(shape)), prompts)))
    elif command == "load":
        folder, shape = args
        found = load(folder, make_mesh(MeshShape.parse(shape)))
        out.with_suffix(f".{jax.process_index()}.json").write_text(json.dumps(found))
    else:
        stage, shape, num_steps = args
        mesh = make_mesh(MeshShape.parse(shape))
        with contextlib.suppress(StoppedError):
            run(out, mesh, int(num_steps), stage=stage, end=command)


if __name__ == "__main__":
    qwen2.MLP_TOKENS, qwen2.MLP_PARTS = 0, 3  # although rows are short
    first_flag = sys.argv.index("--coordinator") if "--coordinator" in sys.argv else None
    out, command, *args = sys.argv[1:first_flag]
    if command == "fail":
        processes.LEAVING_S = 1  # in vain

    def action(cell: Cell) -> None:
        with joined(cell.config):
            main(Path(out), command, *args)

    cli.main(SFTConfig, __doc__, action, args=sys.argv[first_flag:] if first_flag else [])
