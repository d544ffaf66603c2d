"""Generation in the evaluation's workload beside padded `generate` of transformers: `generate`.

Dialogues are played side by side, and their prompts grow with each turn. Ours takes a dialogue's
next prompt as soon as its last reply has ended; a peer takes the same turn of all dialogues as one
batch, padded on the left, which runs until its longest reply has ended. Replies are greedy and have
lengths that the workload gives, so that all contenders make the same number of tokens. Loading and
the first call, which compiles, are not timed; each of our rounds begins with nothing kept.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.completion_server import seconds_on_server
from benchmarks.configs import GenerateBenchmark
from benchmarks.rounds import OURS, Figures, alternate, medians, report
from benchmarks.workload import Turn, evaluation_dialogues
from emodistill.model import (
    Engine,
    GenerationRequest,
    Qwen2,
    Qwen2Config,
    embedded_path,
    load_qwen2,
    save_qwen2,
)
from emodistill.seeding import jax_key

SMOLLM2 = Qwen2Config(
    architecture="llama",
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1_536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rope_theta=1e5,
    norm_eps=1e-5,
    max_positions=8_192,
    is_tied=True,
)


def run(config: GenerateBenchmark) -> None:
    """Measure, print a line per round and contender, then the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape: dict[str, int] = {}
        if config.size == "embedded":  # the simulator's dialogues in the student's tokens
            folder = embedded_path()
            shape = {"context_tokens": 150, "turn_tokens": 23, "cue_tokens": 24}
        else:
            save_qwen2(Qwen2(SMOLLM2, key=jax_key(0, "bench")), folder)
        model = load_qwen2(folder, dtype=jnp.float32)
        dialogues = evaluation_dialogues(
            num_dialogues=config.dialogues,
            num_turns=config.turns,
            vocab_size=min(10_000, model.config.vocab_size),
            **shape,
        )
        num_reply_tokens = sum(length for turns in dialogues for _, length in turns)
        max_tokens = max(len(ids) + length for turns in dialogues for ids, length in turns)

        def new_engine() -> Engine:
            return Engine(model, num_slots=config.num_slots, max_tokens=max_tokens)

        warm = new_engine()
        play(warm, [turns[:2] for turns in dialogues[:2]])

        def ours(number: int) -> Figures:
            engine = new_engine()
            seconds = play(engine, dialogues)
            counters = engine.counters
            return {
                "rate": num_reply_tokens / seconds,
                "prefilled": counters.prefilled_tokens / counters.prompt_tokens,
                "chunks": counters.chunks,
                "steps": counters.steps,
                "programs": warm.counters.programs + counters.programs,
            }

        contenders: dict[str, Callable[[int], Figures]] = {OURS: ours}
        if config.peers:
            from benchmarks.torch_generation import PaddedGenerate  # takes the extra `bench`

            hf = PaddedGenerate(folder)
            hf.seconds([(prompt[:8], 2) for prompt, _ in dialogues[0]])
            middles = (np.arange(config.peer_turns) + 0.5) * config.turns / config.peer_turns
            chosen = [[turns[int(i)] for turns in dialogues] for i in middles]

            def theirs(number: int) -> Figures:
                seconds = sum(hf.seconds(batch) for batch in chosen)
                return {"rate": sum(length for batch in chosen for _, length in batch) / seconds}

            contenders["hf"] = theirs
        if (url := config.server_url) is not None:
            seconds_on_server(url, [turns[:1] for turns in dialogues])

            def served(number: int) -> Figures:
                return {"rate": num_reply_tokens / seconds_on_server(url, dialogues)}

            contenders["server"] = served
        rounds = dict(alternate(contenders, config.rounds, "{rate:,.2f} reply tokens/s"))
        # It reads other weights, in a format of its own: no peer of the ratio.
        server = rounds.pop("server", None)
        counts = ("prefilled", "chunks", "steps", "programs")
        extra: dict[str, Any] = {
            "size": config.size,
            "dialogues": config.dialogues,
            "turns": config.turns,
            "peer_turns": config.peer_turns,
            "num_slots": config.num_slots,
            "prompt_tokens": float(np.mean([len(ids) for turns in dialogues for ids, _ in turns])),
            "reply_tokens": num_reply_tokens / (config.dialogues * config.turns),
            **{name: medians({OURS: rounds[OURS]}, name)[OURS] for name in counts},
            "server": server and medians({"server": server}, "rate")["server"],
        }
        report(config, "reply tokens/s", rounds, "rate", extra)


def play(engine: Engine, dialogues: list[list[Turn]]) -> float:
    """Seconds until all dialogues have ended; each goes on as soon as its reply is there."""
    start = time.perf_counter()
    left = [iter(turns) for turns in dialogues]
    dialogue_of: dict[int, int] = {}

    def go_on(dialogue: int) -> None:
        for prompt, length in left[dialogue]:
            handle = engine.add(GenerationRequest(prompt.tolist(), length, 0.0))
            dialogue_of[handle] = dialogue
            break

    for dialogue in range(len(dialogues)):
        go_on(dialogue)
    while engine.num_unfinished:
        for progress in engine.step():
            if progress.generated is not None:
                go_on(dialogue_of.pop(progress.handle))
    return time.perf_counter() - start
