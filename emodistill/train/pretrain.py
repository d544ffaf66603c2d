"""Make the embedded student: a Qwen2 of two million parameters that can negotiate a little.

It is pretrained on dialogues of the simulated teacher as it comes, good turns and bad (`corpus`):
on bare ones, which are mostly figures, and ever more on those with the pipeline's prompts. What it
has learned is to read the prompt: whose turn it is, which figures are on the table, which tone is
asked for. What makes a turn good is left for SFT and JPO to teach.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, muon

from emodistill.batches.dialogue_rows import Row, Rows, endless_batches, merge_samples
from emodistill.batches.examples import build_examples
from emodistill.configs import PretrainConfig
from emodistill.errors import DivergenceError, InputError
from emodistill.model.config import Qwen2Config
from emodistill.model.qwen2 import Qwen2
from emodistill.model.tokenization import encode_chat, encode_reply, load_tokenizer
from emodistill.model.weights import load_qwen2, save_qwen2
from emodistill.progress import progress
from emodistill.prompts import load_pack
from emodistill.seeding import jax_key, stream
from emodistill.train.corpus import (
    SPECIAL_TOKENS,
    Dialogue,
    bare_dialogues,
    full_dialogues,
    last_texts,
    train_tokenizer,
)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
MAX_TOKENS = 1024
"""Of a sample; longer histories lose their oldest turns."""
SAVE_EVERY = 100
"""Steps between the checkpoints on the way."""


def make_embedded(config: PretrainConfig) -> Path:
    """Play the dialogues, train tokenizer and model, write a Hugging Face checkpoint folder.

    Raises:
      InputError: `config.start` is no checkpoint with a tokenizer, or is the folder to write to.
      DivergenceError: the loss is no longer finite; the last good checkpoint stays.
    """
    if config.start is not None:
        _check_start(config.start, config.out)
    pack = load_pack()
    full = full_dialogues(config, pack)
    bare = bare_dialogues(config, pack)
    config.out.mkdir(parents=True, exist_ok=True)
    if config.start is None:
        train_tokenizer(last_texts(full), config.vocab_size, config.out)
        model = new_student(config)
    else:
        for name in TOKENIZER_FILES:
            shutil.copyfile(config.start / name, config.out / name)
        model = load_qwen2(config.start, dtype=jnp.float32)
    tokenizer = load_tokenizer(config.out)
    fit(model, _rows(bare, tokenizer, config), _rows(full, tokenizer, config), config)
    return config.out


def _check_start(start: Path, out: Path) -> None:
    Qwen2Config.from_pretrained(start)
    for name in TOKENIZER_FILES:
        if not (start / name).is_file():
            raise InputError(f"--start {start} holds no {name}; name a student's folder.")
    if start.resolve() == out.resolve():
        raise InputError(f"--start and --out are both {start}; write to another folder.")


def new_student(config: PretrainConfig) -> Qwen2:
    """The student before its first step."""
    return Qwen2(
        Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.hidden_size // config.num_heads,
            rope_theta=10_000.0,
            norm_eps=1e-6,
            max_positions=4096,
            is_tied=True,
            eos_token_ids=(SPECIAL_TOKENS.index("<|im_end|>"),),
        ),
        key=jax_key(config.seed, "pretrain", "weights"),
    )


def _rows(dialogues: Sequence[Dialogue], tokenizer: Any, config: PretrainConfig) -> list[Row]:
    digit_ids = frozenset(tokenizer.convert_tokens_to_ids(list("0123456789")))
    rows = []
    for scenario, trajectory, pack in dialogues:
        examples = build_examples(
            [trajectory],
            [scenario],
            [(0, turn.index) for turn in trajectory.focal_turns],
            pack=pack,
            encode_chat=partial(encode_chat, tokenizer),
            encode_reply=partial(encode_reply, tokenizer),
            max_tokens=MAX_TOKENS,
        ).examples
        if not examples:  # even the first prompt was too long
            continue
        rows.append(
            merge_samples(
                examples,
                prompt_weight=config.prompt_weight,
                digit_ids=digit_ids,
                digit_weight=config.digit_weight,
            )
        )
    return rows


def _optimizer(config: PretrainConfig) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) for the stacked matrices `[L, O, I]`, AdamW for all else.

    Figures are read sooner than with AdamW alone (docs/notes.md).
    """

    def schedule(peak: float) -> optax.Schedule:
        num_warmup = config.num_steps // 30 + 1
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, num_warmup, config.num_steps + 1, peak / 50
        )

    def matrices(params: Any) -> Any:
        axes = MuonDimensionNumbers(reduction_axis=2, output_axis=1)
        return jax.tree.map(lambda leaf: axes if leaf.ndim == 3 else None, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(
            schedule(config.learning_rate),
            weight_decay=0.01,
            adam_b2=0.95,
            adam_learning_rate=schedule(config.adam_learning_rate),
            muon_weight_dimension_numbers=matrices,
        ),
    )


class Learned(NamedTuple):
    """How a step went: mean loss of the reply tokens, and the share of their digits that is right.

    Many digits are drawn by lot and can't be known.
    """

    reply_loss: jax.Array
    digit_accuracy: jax.Array


def curriculum(bare: Sequence[Row], full: Sequence[Row], config: PretrainConfig) -> Iterator[Rows]:
    """The batches of a run: ever fewer bare ones, down to none at the end."""
    is_bare = stream(config.seed, "pretrain", "curriculum")
    batches = partial(endless_batches, tokens_per_step=config.tokens_per_step, seed=config.seed)
    bare_batches, full_batches = batches(bare), batches(full)
    for number in range(config.num_steps):
        bare_odds = 2 * config.bare_share * (1 - number / config.num_steps)
        yield next(bare_batches if is_bare.random() < bare_odds else full_batches)


def fit(model: Qwen2, bare: Sequence[Row], full: Sequence[Row], config: PretrainConfig) -> None:
    """Train all weights, one compiled step per row length.

    Weights go to `config.out` in bfloat16, now and then on the way too, so that a half-trained
    student can be looked at.
    """
    optimizer = _optimizer(config)
    graphdef, params = nnx.split(model, nnx.Param)

    def loss_fn(params: nnx.State, rows: Rows) -> tuple[jax.Array, Learned]:
        model = nnx.merge(graphdef, params)
        logits_BTV = model(rows.tokens_BT, positions_BT=rows.positions_BT, ends_BT=rows.ends_BT)
        losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, rows.targets_BT)
        is_right_BT = jnp.argmax(logits_BTV, axis=-1) == rows.targets_BT
        loss = jnp.sum(losses_BT * rows.weights_BT) / jnp.sum(rows.weights_BT)
        return loss, Learned(
            jnp.mean(losses_BT, where=rows.is_reply_BT),
            jnp.mean(is_right_BT, where=rows.is_digit_BT),
        )

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: nnx.State, opt_state: Any, rows: Rows) -> tuple[nnx.State, Any, Learned]:
        (_, went), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rows)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        moved: Any = optax.apply_updates(params, updates)
        return moved, opt_state, went

    opt_state = optimizer.init(params)
    batches = curriculum(bare, full, config)
    with progress("pretrain", total=config.num_steps, unit="steps") as bar:
        for number, rows in enumerate(batches, start=1):
            params, opt_state, went = step(params, opt_state, rows)
            note = None
            if number % 20 == 0:
                note = f"loss {went.reply_loss:.3f}, digits {went.digit_accuracy:.0%}"
            bar.advance(1, note)
            if number % SAVE_EVERY == 0 or number == config.num_steps:
                if not jnp.isfinite(went.reply_loss):
                    raise DivergenceError(
                        f"pretrain: the loss is {went.reply_loss} at step {number}. {config.out} "
                        f"keeps the weights of step {number - SAVE_EVERY}; lower --learning-rate."
                    )
                half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
                save_qwen2(nnx.merge(graphdef, half), config.out)
