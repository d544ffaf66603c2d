"""Makes an embedded student: a small Qwen2 that can negotiate a little.

It is pretrained on what the novice says (`novice`) in dialogues of the simulator (`corpus`): at
first many bare ones, which are mostly figures, then more and more of those with the pipeline's
prompts. What it learns is to read the prompt: whose turn it is, which figures are on the table,
which facts are stated. What makes a turn good is left for SFT and JPO to teach.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, muon

from emodistill.errors import DivergenceError
from emodistill.model.config import Qwen2Config
from emodistill.model.qwen2 import Qwen2
from emodistill.model.tokenization import encode_chat, encode_reply, end_of_turn_id
from emodistill.model.weights import save_qwen2
from emodistill.progress import Progress
from emodistill.records import Role
from emodistill.seeding import jax_key, stream
from emodistill.train.checkpoints import Checkpoints
from pretraining.config import PretrainConfig
from pretraining.copying_weights import ROPE_THETA, write_copying_weights
from pretraining.corpus import (
    Dialogue,
    PossibleReply,
    last_texts,
    play_dialogues,
    prompted_replies,
    train_tokenizer,
)
from pretraining.dialogue_rows import (
    FOREIGN_START,
    FREE_DIGIT,
    GIVEN,
    NOTHING,
    PROMPT,
    REPLY,
    Rows,
    TokenSample,
    endless_batches,
    merge_samples,
)
from pretraining.novice import given_characters

Metrics = dict[str, jax.Array]

MAX_TOKENS = 1024
"""The longest sample; turns whose histories are longer are left out."""
STEPS_PER_SAVE = 100
"""Steps between two checkpoints: at most four minutes of work are done again."""
NUM_START_TOKENS = 2
"""The first word alone does not tell who speaks: both the novice and the others begin with "I"."""
NUM_TOKENIZER_DIALOGUES = 2_000
"""Dialogues that the tokenizer's words are learned from; more of them change none."""


def make_embedded(config: PretrainConfig) -> Path:
    """Play the dialogues, train tokenizer and model, write a Hugging Face checkpoint folder.

    A run that was stopped goes on from its last checkpoint, and ends with the same weights.

    Raises:
      StaleInputError: the folder has checkpoints of other settings.
      DivergenceError: the loss is no longer finite; the last good checkpoint stays.
    """
    full, bare = play_dialogues(config, "full"), play_dialogues(config, "bare")
    tokenizer = train_tokenizer(last_texts(full[:NUM_TOKENIZER_DIALOGUES]), config.vocab_size)
    tokenizer.save_pretrained(config.out, save_jinja_files=False)
    model, trained = new_student(config, end_of_turn_id(tokenizer))
    fit(model, trained, rows_of(bare, tokenizer, config), rows_of(full, tokenizer, config), config)
    return config.out


def new_student(config: PretrainConfig, eos_token_id: int) -> tuple[Qwen2, nnx.State]:
    """The student before its first step, and what of it is trained (`copying_weights`)."""
    model = Qwen2(
        Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.hidden_size // config.num_heads,
            rope_theta=ROPE_THETA,
            norm_eps=1e-6,
            max_positions=4096,
            is_tied=True,
            eos_token_ids=(eos_token_id,),
        ),
        key=jax_key(config.seed, "pretrain", "weights"),
    )
    rng = stream(config.seed, "pretrain", "copying weights")
    return model, write_copying_weights(model, rng, MAX_TOKENS)


def rows_of(dialogues: Sequence[Dialogue], tokenizer: Any, config: PretrainConfig) -> list[Rows]:
    """A row for each side of each dialogue, of the turns whose prompts are not too long."""
    rows = []
    for dialogue in dialogues:
        for role in get_args(Role):
            name = dialogue.trajectory.trajectory_id
            rng = stream(config.seed, "pretrain", "replies", name, role)
            samples = [
                TokenSample(prompt_ids, reply_ids, _kinds(tokenizer, reply))
                for prompted in prompted_replies(dialogue, role, rng, config.replies_per_turn)
                for prompt_ids in [encode_chat(tokenizer, prompted.messages)]
                for reply in prompted.replies
                for reply_ids in [encode_reply(tokenizer, reply.text)]
                if len(prompt_ids) + len(reply_ids) <= MAX_TOKENS
            ]
            if samples:
                rows.append(merge_samples(samples))
    return rows


def _kinds(tokenizer: Any, reply: PossibleReply) -> list[int]:
    """The kind of each token of a reply, its end included.

    Of what others than the novice say nothing is known to be decided by the prompt.
    """
    num_foreign = 0 if reply.is_novice else NUM_START_TOKENS
    text = reply.text
    given = given_characters(text) & reply.is_novice
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    kinds = [
        GIVEN if given[start:end].any() else FREE_DIGIT if text[start:end].isdigit() else REPLY
        for start, end in spans
    ]
    return [*[FOREIGN_START] * num_foreign, *kinds[num_foreign:], REPLY]


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


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4))
def _step(
    graphdef: Any, config: PretrainConfig, trained: Any, params: Any, opt_state: Any, rows: Rows
) -> tuple[Any, Any, Metrics]:
    """An update of what is `trained`; of the replies, the mean cross-entropy, and the share of the
    tokens predicted right that the prompt decides."""
    weight_of = {
        NOTHING: 0.0,
        PROMPT: config.prompt_weight,
        REPLY: 1.0,
        FREE_DIGIT: config.drawn_weight,
        GIVEN: config.given_weight,
        FOREIGN_START: config.foreign_start_weight,
    }
    weights = jnp.array([weight_of[kind] for kind in range(len(weight_of))])

    def loss_fn(params: nnx.State) -> tuple[jax.Array, Metrics]:
        model = nnx.merge(graphdef, params)
        logits_BTV = model(rows.tokens_BT, positions_BT=rows.positions_BT, ends_BT=rows.ends_BT)
        losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, rows.targets_BT)
        # By argmax, the step would take more than twice as long on a CPU.
        target_logits_BT1 = jnp.take_along_axis(logits_BTV, rows.targets_BT[..., None], axis=-1)
        is_right_BT = target_logits_BT1[..., 0] >= jnp.max(logits_BTV, axis=-1)
        weights_BT = weights[rows.kinds_BT]
        return jnp.sum(losses_BT * weights_BT) / jnp.sum(weights_BT), {
            "reply_loss": jnp.mean(losses_BT, where=rows.kinds_BT >= REPLY),
            "copied": jnp.mean(is_right_BT, where=rows.kinds_BT == GIVEN),
        }

    (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = _optimizer(config).update(grads, opt_state, params)
    # Of the updates, not the gradients: frozen weights count in the clip and in Muon's
    # orthogonal updates.
    updates = jax.tree.map(jnp.multiply, updates, trained)
    return optax.apply_updates(params, updates), opt_state, metrics


def fit(
    model: Qwen2,
    trained: nnx.State,
    bare: Sequence[Rows],
    full: Sequence[Rows],
    config: PretrainConfig,
) -> None:
    """Train the weights where `trained` is 1, with one compiled step per shape of a batch, and save
    them in bfloat16."""
    graphdef, params = nnx.split(model, nnx.Param)
    # On the device, as what is read from a checkpoint: a step is compiled once for both.
    state = jax.device_put((params, _optimizer(config).init(params)), jax.devices()[0])
    folder = config.out / "checkpoints"
    step = partial(_step, graphdef, dataclasses.replace(config, out=Path()), trained)
    with (
        Checkpoints(folder, config.identity(), keep=1, keep_every=None) as checkpoints,
        Progress("pretrain", total=config.num_steps, unit="steps") as bar,
    ):
        state, cursor = checkpoints.restore(state)
        first = cursor.get("step", 0)
        bar.advance(first)
        rest = islice(curriculum(bare, full, config), first, None)
        for number, rows in enumerate(rest, first + 1):
            *state, metrics = step(*state, rows)
            note = None
            if number % 20 == 0:  # reading the metrics waits for the step
                note = "loss {reply_loss:.3f}, copied {copied:.0%}".format(**metrics)
            bar.advance(1, note)
            if number % STEPS_PER_SAVE == 0 or number == config.num_steps:
                if not jnp.isfinite(metrics["reply_loss"]):
                    raise DivergenceError(
                        f"pretrain: the loss is {metrics['reply_loss']} at step {number}. "
                        f"{folder} keeps an earlier checkpoint; lower --learning-rate."
                    )
                known = {name: float(value) for name, value in metrics.items()}
                checkpoints.save(number, tuple(state), cursor={"step": number}, metrics=known)
        half = jax.jit(partial(jax.tree.map, lambda leaf: leaf.astype(jnp.bfloat16)))(state[0])
    save_qwen2(nnx.merge(graphdef, half), config.out)
