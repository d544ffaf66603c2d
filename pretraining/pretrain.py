"""Makes the embedded student: a Qwen2 of two million parameters that can negotiate a little.

It is pretrained on dialogues of the simulated teacher, good turns and bad (`corpus`): at first many
bare ones, which are mostly figures, then more and more of those with the pipeline's prompts. What
it learns is to read the prompt: whose turn it is, which figures are on the table, which tone is
asked for. What makes a turn good is left for SFT and JPO to teach.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, muon

from emodistill.batches.examples import build_examples
from emodistill.errors import DivergenceError, InputError
from emodistill.model.config import Qwen2Config
from emodistill.model.qwen2 import Qwen2
from emodistill.model.tokenization import (
    encode_chat,
    encode_reply,
    end_of_turn_id,
    load_tokenizer,
)
from emodistill.model.weights import load_qwen2, save_qwen2
from emodistill.progress import Progress
from emodistill.seeding import jax_key, stream
from pretraining.config import PretrainConfig
from pretraining.corpus import Dialogue, last_texts, play_dialogues, train_tokenizer
from pretraining.dialogue_rows import DIGIT, REPLY, Rows, endless_batches, merge_samples

Metrics = dict[str, jax.Array]

MAX_TOKENS = 1024
"""The longest sample; longer histories lose their oldest turns."""
STEPS_PER_SAVE = 100
"""Steps between two checkpoints, so that a half-trained student can be looked at."""


def make_embedded(config: PretrainConfig) -> Path:
    """Play the dialogues, train tokenizer and model, write a Hugging Face checkpoint folder.

    Raises:
      InputError: `config.start` is no checkpoint with a tokenizer, or is the folder to write to.
      DivergenceError: the loss is no longer finite; the last good checkpoint stays.
    """
    if config.start is not None:  # looked at first, for the dialogues take minutes
        Qwen2Config.from_pretrained(config.start)
        load_tokenizer(config.start)
        if config.start.resolve() == config.out.resolve():
            raise InputError(f"--start and --out are both {config.start}; write to another folder.")
    full, bare = play_dialogues(config, "full"), play_dialogues(config, "bare")
    if config.start is None:
        tokenizer = train_tokenizer(last_texts(full), config.vocab_size)
        model = _new_student(config, end_of_turn_id(tokenizer))
    else:
        tokenizer = load_tokenizer(config.start)
        model = load_qwen2(config.start, dtype=jnp.float32)
    tokenizer.save_pretrained(config.out, save_jinja_files=False)
    fit(model, _rows(bare, tokenizer), _rows(full, tokenizer), config)
    return config.out


def _new_student(config: PretrainConfig, eos_token_id: int) -> Qwen2:
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
            eos_token_ids=(eos_token_id,),
        ),
        key=jax_key(config.seed, "pretrain", "weights"),
    )


def _rows(dialogues: Sequence[Dialogue], tokenizer: Any) -> list[Rows]:
    """A row per dialogue; a dialogue whose very first prompt is too long has none."""
    digit_ids = tokenizer.convert_tokens_to_ids(list("0123456789"))
    samples = (
        build_examples(
            [trajectory],
            [scenario],
            [(0, turn.index) for turn in trajectory.focal_turns],
            pack=pack,
            encode_chat=partial(encode_chat, tokenizer),
            encode_reply=partial(encode_reply, tokenizer),
            max_tokens=MAX_TOKENS,
        )
        for scenario, trajectory, pack in dialogues
    )
    return [merge_samples(examples, digit_ids) for examples in samples if examples]


def _optimizer(config: PretrainConfig) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) for the stacked matrices `[L, O, I]`, AdamW for all else.

    The student learns to read figures sooner than with AdamW alone (docs/notes.md).
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


def curriculum(
    bare: Sequence[Rows], full: Sequence[Rows], config: PretrainConfig
) -> Iterator[Rows]:
    """The batches of a run: fewer and fewer bare ones, and none at the end."""
    rng = stream(config.seed, "pretrain", "curriculum")
    batches = partial(endless_batches, tokens_per_step=config.tokens_per_step, seed=config.seed)
    bare_batches, full_batches = batches(bare), batches(full)
    for number in range(config.num_steps):
        bare_odds = 2 * config.bare_share * (1 - number / config.num_steps)
        yield next(bare_batches if rng.random() < bare_odds else full_batches)


def fit(model: Qwen2, bare: Sequence[Rows], full: Sequence[Rows], config: PretrainConfig) -> None:
    """Train all weights, with one compiled step per shape of a batch, and save them in bfloat16."""
    optimizer = _optimizer(config)
    graphdef, params = nnx.split(model, nnx.Param)

    # By the kinds of `dialogue_rows`: nothing, a prompt's token, a reply's, a reply's digit.
    weights = jnp.array([0.0, config.prompt_weight, 1.0, config.digit_weight])

    def loss_fn(params: nnx.State, rows: Rows) -> tuple[jax.Array, Metrics]:
        """The loss; on replies, the mean cross-entropy and the share of digits predicted right.

        Many digits are random draws and cannot be known.
        """
        model = nnx.merge(graphdef, params)
        logits_BTV = model(rows.tokens_BT, positions_BT=rows.positions_BT, ends_BT=rows.ends_BT)
        losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, rows.targets_BT)
        is_right_BT = jnp.argmax(logits_BTV, axis=-1) == rows.targets_BT
        weights_BT = weights[rows.kinds_BT]
        return jnp.sum(losses_BT * weights_BT) / jnp.sum(weights_BT), {
            "reply_loss": jnp.mean(losses_BT, where=rows.kinds_BT >= REPLY),
            "digit_accuracy": jnp.mean(is_right_BT, where=rows.kinds_BT == DIGIT),
        }

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, rows: Rows) -> tuple[Any, Any, Metrics]:
        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rows)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics

    opt_state = optimizer.init(params)
    with Progress("pretrain", total=config.num_steps, unit="steps") as bar:
        for number, rows in enumerate(curriculum(bare, full, config), start=1):
            params, opt_state, metrics = step(params, opt_state, rows)
            note = None
            if number % 20 == 0:  # reading the metrics waits for the step
                note = "loss {reply_loss:.3f}, digits {digit_accuracy:.0%}".format(**metrics)
            bar.advance(1, note)
            if number % STEPS_PER_SAVE == 0 or number == config.num_steps:
                if not jnp.isfinite(metrics["reply_loss"]):
                    raise DivergenceError(
                        f"pretrain: the loss is {metrics['reply_loss']} at step {number}. "
                        f"{config.out} keeps the weights of step {number - STEPS_PER_SAVE}; lower "
                        "--learning-rate."
                    )
                half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
                save_qwen2(nnx.merge(graphdef, half), config.out)
