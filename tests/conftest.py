"""Shared fixtures: a tiny run, random checkpoints, and a tokenizer with Qwen's chat format."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

XLA_FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",  # an MLIR pipeline for each fused loop: 2/3 of the time
)
LONG_FILES = (
    *("test_studies", "test_adapter_training", "test_canaries", "test_serving", "test_engine"),
    *("test_iql", "test_trainer", "test_preflight", "test_stages", "test_student_servers"),
    *("test_serving_load", "test_loop", "test_adapters", "test_memory_plan", "test_embedded"),
    *("test_qwen2", "test_attention_kernels", "test_sweep", "test_sharding", "test_report_page"),
)
PROGRAMS = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config: pytest.Config) -> None:
    """Strict shapes, and less compiling, for tests and the processes that they start.

    Arrays of different rank don't combine without saying so. What XLA has compiled is shared;
    tests run small programs a few times, so its optimiser would cost more than it wins.
    """
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist, which inherits all of this
        return
    os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # processes share a GPU
    config.stash[PROGRAMS] = tempfile.TemporaryDirectory(
        prefix="emodistill-programs-", ignore_cleanup_errors=True
    )
    os.environ["JAX_COMPILATION_CACHE_DIR"] = config.stash[PROGRAMS].name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ.setdefault("XLA_FLAGS", " ".join(XLA_FLAGS))


def pytest_unconfigure(config: pytest.Config) -> None:
    if PROGRAMS in config.stash:
        config.stash[PROGRAMS].cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left alone with one at the end."""
    rank = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Imports make much that stays and little garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Leave what imports have made alone: to look through it again and again is slow.

    The garbage of tests is still collected, a little later.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


CHATML_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

# Qwen2's split into words, digits one by one.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CORPUS = [
    "I can offer 45 days from today, and I hope you understand how hard this month has been.",
    "That is too long for us. We need the payment within 20 days, or we must charge a fee.",
    "assistant user system You are a helpful assistant.",
    "Could we meet in the middle, say at 30 days? I would be grateful, and you'd have certainty.",
    "days\n\n\nweeks\n\n\nmonths\n\n\n" * 20,  # so that line ends merge, as Qwen's do
]


def make_tokenizer() -> Any:
    """A byte-level BPE of a few hundred entries with Qwen's control tokens and ChatML."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])
    # As in Qwen2.5, some added tokens are not marked special.
    backend.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_tokenizer_dir: Path) -> Any:
    from emodistill.model.tokenization import load_tokenizer

    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    """A random two-layer Qwen2 with the tiny tokenizer beside it; read only."""
    import jax.numpy as jnp

    from emodistill import seeding
    from emodistill.model.config import Qwen2Config
    from emodistill.model.qwen2 import Qwen2
    from emodistill.model.weights import save_qwen2

    config = Qwen2Config(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rope_theta=10_000.0,
        norm_eps=1e-6,
        max_positions=4096,
        is_tied=True,
    )
    model = Qwen2(config, key=seeding.jax_key(0, "tiny-checkpoint"), dtype=jnp.float32)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_qwen2(model, folder, extra_files=sorted(tiny_tokenizer_dir.iterdir()))
    return folder


def files_of(folder: Path) -> dict[str, list[int]]:
    """Size and time of the last change of every file; hidden ones, which are locks, apart."""
    files = (path for path in folder.rglob("[!.]*") if path.is_file())
    return {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run of `tiny_run.make_tiny_run`, made by the first worker that needs it; read only."""
    from tiny_run import make_tiny_run

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # a worker's folder lies in that of the session
        shared = shared.parent
    run, finished = shared / "tiny-run", shared / "tiny-run.json"
    with FileLock(shared / "tiny-run.lock"):
        if not finished.exists():
            make_tiny_run(run)
            finished.write_text(json.dumps(files_of(run)))
    yield run
    assert files_of(run) == json.loads(finished.read_text()), "a test has changed the shared run"


@pytest.fixture(scope="session", autouse=True)
def one_simulator() -> Iterator[None]:
    """Stages that tests run in this process share a simulator, which keeps no state."""
    from emodistill.simulator.process import running_simulator
    from emodistill.stages import language_models

    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        url = functools.cache(lambda: stack.enter_context(running_simulator()))
        patch.setattr(language_models, "running_simulator", lambda: contextlib.nullcontext(url()))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_collections() -> Iterator[None]:
    """statsmodels collects all garbage at each correction of p-values: 1 s in a loaded worker."""
    collect = gc.collect

    def seldom(generation: int = 2) -> int:
        caller = sys._getframe(1).f_globals.get("__name__")
        return 0 if caller == "statsmodels.stats.multitest" else collect(generation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", seldom)
        yield


@pytest.fixture(scope="session", autouse=True)
def settled_heap() -> Iterator[None]:
    """Jobs need not settle the heap, which is frozen: to count what is would take 30 ms each."""
    from emodistill.offline import workers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_settled_heap", contextlib.nullcontext)
        yield


SMALLER = {
    "train.selector_checks.FQE_STEPS": 20,  # by which selectors that tests train are valued
    "evaluation.canary_making.NUM_CANDIDATES": 5,
    "evaluation.canary_making.MAX_REPLY_TOKENS": 16,
    "evaluation.canary_check.MAX_BACKOFF_S": 0.05,
    "reports.figures.DOTS_PER_INCH": 20,  # 200 take as long to draw as all that precedes it
}
"""What is smaller in tests than for users, by its name in `emodistill`."""


@pytest.fixture(scope="session", autouse=True)
def smaller() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALLER.items():
            patch.setattr(f"emodistill.{name}", value)
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_generation() -> Iterator[None]:
    """Engines have few slots, and XLA optimises the embedded student's programs.

    A step of decoding takes it 4 ms so, and 50 ms with 16 slots and without the optimiser. The
    random models of tests are too small, and say too little, for the optimiser to be worth it.
    The embedded student's slots are as long as they can be, so that all its engines share the
    programs; those of other models grow where tests let them.
    """
    import jax

    from emodistill.model import Qwen2Config, decoding, embedded_path, engine, kv_cache

    width = Qwen2Config.from_pretrained(embedded_path()).head_dim

    def is_embedded(head_dim: int) -> bool:
        return head_dim == width  # other models have less

    def quick(program: Any) -> Any:
        optimized = jax.jit(
            program.__wrapped__,
            static_argnames="graph",
            donate_argnames="slots",
            compiler_options={"xla_backend_optimization_level": 1},
        )

        def call(graph: Any, state: Any, slots: Any, given: Any) -> Any:
            is_quick = is_embedded(slots.keys.shape[3])
            return (optimized if is_quick else program)(graph, state, slots, given)

        call.lower = program.lower
        return call

    def long_slots(config: Any, num_slots: int, length: int, *args: Any) -> Any:
        longest = kv_cache.slot_length(config.max_positions)
        return empty_slots(
            config, num_slots, longest if is_embedded(config.head_dim) else length, *args
        )

    empty_slots = kv_cache.empty_slots
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "DEFAULT_SLOTS", 4)
        # Those of the embedded student have a loop, which compiles sooner.
        patch.setattr(decoding, "UNROLLED_LAYERS", 2)
        patch.setattr(kv_cache, "empty_slots", long_slots)
        for name in ("prefill", "decode"):
            patch.setattr(decoding, name, quick(getattr(decoding, name)))
        yield


HFMaker = Callable[..., tuple[Path, Any]]


@pytest.fixture(scope="session")
def make_hf_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> HFMaker:
    """`make(architecture="qwen2", config_style="new", **config) -> (folder, torch model)`.

    Weights are random, biases and norms included. `config_style="hub"` rewrites config.json the
    way the hub's Qwen2.5 files have it, with `rope_theta` at the top.
    """
    torch = pytest.importorskip("torch")
    import transformers

    torch.set_num_threads(1)  # several would wait for each other at each of many small products

    def make(
        architecture: str = "qwen2", *, config_style: str = "new", **changes: Any
    ) -> tuple[Path, Any]:
        name = {"qwen2": "Qwen2", "llama": "Llama", "qwen3": "Qwen3"}[architecture]
        fields: dict[str, Any] = {
            "vocab_size": 101,
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "attn_implementation": "eager",
            "bos_token_id": None,
            "eos_token_id": 100,
            **changes,
        }
        if architecture == "qwen3":
            fields.setdefault("head_dim", 16)
        theta = fields.pop("rope_theta", None)
        if theta is not None:
            fields["rope_parameters"] = {"rope_theta": theta, "rope_type": "default"}
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**fields)
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith("bias") or "norm" in parameter_name:
                    parameter.add_(0.3 * torch.randn_like(parameter))
                else:
                    parameter.mul_(4)  # from 0.02: attention far from uniform, logits of size 1
        folder = tmp_path_factory.mktemp(architecture)
        model.save_pretrained(folder)
        if config_style == "hub":
            path = folder / "config.json"
            saved = json.loads(path.read_text())
            saved["rope_theta"] = saved.pop("rope_parameters")["rope_theta"]
            path.write_text(json.dumps(saved))
        return folder, model

    return make
