"""Make the embedded student: a Qwen2 of two million parameters that can negotiate a little.

It is pretrained on dialogues of the simulated teacher as it comes, good turns and bad, over all
four domains and on scenarios that no experiment uses. What it has learned is to read the prompt:
whose turn it is, which figures are on the table, which tone is asked for. What makes a turn good
is left for SFT and JPO to teach.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from emodistill.batches.examples import Example, build_examples
from emodistill.configs import SIMULATED_MODELS, PretrainConfig
from emodistill.domains import DOMAINS
from emodistill.domains.generator import NUM_SCENARIOS, generate_scenarios
from emodistill.domains.scenario import Scenario
from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.model.config import Qwen2Config
from emodistill.model.qwen2 import Qwen2
from emodistill.model.tokenization import encode_chat, encode_reply, load_tokenizer
from emodistill.model.weights import load_qwen2, save_qwen2
from emodistill.negotiation.episode import play
from emodistill.negotiation.states import DialogueState
from emodistill.progress import progress
from emodistill.prompts import PromptPack, focal_messages, load_pack
from emodistill.records import Trajectory
from emodistill.seeding import jax_key, stream
from emodistill.simulator.speaker import SimulatedSpeaker

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NUM_OWN_SCENARIOS = 300
"""Per domain, beyond the built-in hundred that experiments use."""
ROW_MULTIPLE = 192
"""Row lengths are multiples of this; each is a program of its own."""
SAVE_EVERY = 100
"""Steps between the checkpoints on the way."""
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make_embedded(config: PretrainConfig) -> Path:
    """Play the dialogues, train tokenizer and model, write a Hugging Face checkpoint folder."""
    pack = load_pack()
    dialogues = pretraining_dialogues(config, pack)
    config.out.mkdir(parents=True, exist_ok=True)
    if config.start is None:
        train_tokenizer(_texts(dialogues, pack), config.vocab_size, config.out)
        model = _new_model(config)
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(config.start / name, config.out / name)
        model = load_qwen2(config.start, dtype=jnp.float32)
    tokenizer = load_tokenizer(config.out)
    fit(model, _rows(dialogues, pack, tokenizer, config), config)
    return config.out


def _new_model(config: PretrainConfig) -> Qwen2:
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


class Dialogue(NamedTuple):
    scenario: Scenario
    trajectory: Trajectory


def pretraining_dialogues(config: PretrainConfig, pack: PromptPack) -> list[Dialogue]:
    """Dialogues under random emotions on scenarios beyond the built-in hundred."""
    games = [
        scenario
        for scenarios in zip(
            *(
                generate_scenarios(domain, NUM_SCENARIOS + NUM_OWN_SCENARIOS)[NUM_SCENARIOS:]
                for domain in DOMAINS
            ),
            strict=True,
        )
        for scenario in scenarios
    ]
    teacher = SimulatedSpeaker(SIMULATED_MODELS["focal"])
    counterparty = SimulatedSpeaker(SIMULATED_MODELS["counterparty"])

    async def one(number: int) -> Dialogue:
        scenario = games[number % len(games)]
        name = f"pretrain/{scenario.scenario_id}/{number // len(games)}"
        rng = stream(config.seed, "pretrain", "emotions", name)
        is_tone_free = rng.random() < config.tone_free_share

        def choose(state: DialogueState) -> str | None:
            return None if is_tone_free else EMOTIONS[rng.integers(len(EMOTIONS))]

        trajectory = await play(
            scenario,
            trajectory_id=name,
            seed=config.seed,
            focal=teacher,
            counterparty=counterparty,
            choose_emotion=choose,
            pack=pack,
            method="sweep",
        )
        return Dialogue(scenario, trajectory)

    async def all_of_them() -> list[Dialogue]:
        with progress("pretrain", total=config.num_dialogues, unit="dialogues") as bar:
            dialogues = []
            for number in range(config.num_dialogues):
                dialogues.append(await one(number))
                bar.advance()
            return dialogues

    return asyncio.run(all_of_them())


def _texts(dialogues: Sequence[Dialogue], pack: PromptPack) -> Iterator[str]:
    """The last prompt of each dialogue, history included, and the reply to it."""
    for scenario, trajectory in dialogues:
        turn = trajectory.focal_turns[-1]
        before = trajectory.turns[: turn.index]
        for message in focal_messages(pack, scenario, before, turn.emotion):
            yield message["content"]
        yield turn.text


def train_tokenizer(texts: Iterator[str], vocab_size: int, folder: Path) -> None:
    """A byte-level BPE with single digits and Qwen's chat format, in Hugging Face files."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    words = (
        r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[
            AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS
        ],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


class Row(NamedTuple):
    """A dialogue's samples with their shared history laid down once (T tokens).

    `weights_T` belongs to the prediction of `targets_T`; where two samples part, the first one's
    next token is predicted. A token sees what stands before it on its own path.
    """

    tokens_T: np.ndarray
    positions_T: np.ndarray
    targets_T: np.ndarray
    weights_T: np.ndarray
    paths: tuple[tuple[np.ndarray, int], ...]
    """Per sample: its tokens' places in the row, and how many of them an earlier sample owns."""


def _rows(
    dialogues: Sequence[Dialogue], pack: PromptPack, tokenizer: Any, config: PretrainConfig
) -> list[Row]:
    digits = np.array(tokenizer.convert_tokens_to_ids(list("0123456789")))
    rows = []
    for scenario, trajectory in dialogues:
        examples = build_examples(
            [trajectory],
            [scenario],
            [(0, turn.index) for turn in trajectory.focal_turns],
            pack=pack,
            encode_chat=partial(encode_chat, tokenizer),
            encode_reply=partial(encode_reply, tokenizer),
            max_tokens=1024,
        ).examples
        row = merge_samples(examples, config.prompt_weight)
        is_digit_T = (row.weights_T == 1.0) & np.isin(row.targets_T, digits)
        weights_T = np.where(is_digit_T, config.digit_weight, row.weights_T).astype(np.float32)
        rows.append(row._replace(weights_T=weights_T))
    return rows


def merge_samples(examples: Sequence[Example], prompt_weight: float) -> Row:
    """Lay a dialogue's samples into one row, each beginning where it leaves the one before."""
    tokens, positions, targets, weights = [], [], [], []
    paths: list[tuple[np.ndarray, int]] = []
    before: np.ndarray = np.zeros(0, np.int32)
    path: list[int] = []
    for example in examples:
        ids = np.concatenate([example.prompt_ids, example.response_ids])
        both = min(len(before), len(ids), len(example.prompt_ids) - 1)
        differs = np.flatnonzero(before[:both] != ids[:both])
        shared = int(differs[0]) if len(differs) else both
        path = path[:shared] + list(range(len(tokens), len(tokens) + len(ids) - shared))
        for place in range(shared, len(ids)):
            is_last = place + 1 == len(ids)
            is_reply = place + 1 >= len(example.prompt_ids)
            tokens.append(ids[place])
            positions.append(place)
            targets.append(0 if is_last else ids[place + 1])
            weights.append(0.0 if is_last else 1.0 if is_reply else prompt_weight)
        paths.append((np.array(path, np.int32), shared))
        before = ids
    return Row(
        np.array(tokens, np.int32),
        np.array(positions, np.int32),
        np.array(targets, np.int32),
        np.array(weights, np.float32),
        tuple(paths),
    )


def path_mask(row: Row, length: int) -> np.ndarray:
    """Which keys each query of the row sees, `[T, T]` of bool, T = `length`."""
    mask_TT = np.zeros((length, length), bool)
    for path, shared in row.paths:
        for place in range(shared, len(path)):
            mask_TT[path[place], path[: place + 1]] = True
    return mask_TT


class Rows(NamedTuple):
    """Right-padded rows of one length; padding weighs 0."""

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    targets_BT: np.ndarray
    weights_BT: np.ndarray
    mask_BTS: np.ndarray


def _stack(rows: Sequence[Row], length: int) -> Rows:
    def stacked(arrays: Iterator[np.ndarray]) -> np.ndarray:
        return np.stack([np.pad(array, (0, length - len(array))) for array in arrays])

    return Rows(
        stacked(row.tokens_T for row in rows),
        stacked(row.positions_T for row in rows),
        stacked(row.targets_T for row in rows),
        stacked(row.weights_T for row in rows),
        np.stack([path_mask(row, length) for row in rows]),
    )


def _batches(rows: Sequence[Row], config: PretrainConfig) -> Iterator[Rows]:
    """Rows of one length at a time (a multiple of ROW_MULTIPLE), in a seeded order, without end."""
    by_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        length = -(-len(row.tokens_T) // ROW_MULTIPLE) * ROW_MULTIPLE
        by_length.setdefault(length, []).append(index)
    if not any(
        len(members) >= config.tokens_per_step // length for length, members in by_length.items()
    ):
        raise InputError(
            f"num_dialogues={config.num_dialogues} do not fill a step of "
            f"tokens_per_step={config.tokens_per_step}; play more, or lower it."
        )
    for epoch in itertools.count():
        rng = stream(config.seed, "pretrain", "order", epoch)
        batches = []
        for length, members in sorted(by_length.items()):
            size = max(1, config.tokens_per_step // length)
            order = rng.permutation(members)
            batches += [
                (length, order[i : i + size]) for i in range(0, len(order) - size + 1, size)
            ]
        for position in rng.permutation(len(batches)):
            length, members = batches[position]
            yield _stack([rows[i] for i in members], length)


def fit(model: Qwen2, rows: Sequence[Row], config: PretrainConfig) -> None:
    """Train all weights, one compiled step per row length; writes them to `config.out` in bfloat16.

    They are written now and then on the way too, so that a half-trained student can be looked at.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.num_steps // 20 + 1, config.num_steps + 1, 1e-5
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95))
    graphdef, params = nnx.split(model, nnx.Param)

    def loss_fn(params: nnx.State, rows: Rows) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graphdef, params)
        logits_BTV = model(rows.tokens_BT, positions_BT=rows.positions_BT, mask=rows.mask_BTS)
        losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, rows.targets_BT)
        is_reply_BT = rows.weights_BT >= 1.0
        loss = jnp.sum(losses_BT * rows.weights_BT) / jnp.sum(rows.weights_BT)
        return loss, jnp.sum(losses_BT * is_reply_BT) / jnp.sum(is_reply_BT)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: nnx.State, opt_state: Any, rows: Rows) -> tuple[nnx.State, Any, jax.Array]:
        (_, reply_loss), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rows)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, reply_loss

    opt_state = optimizer.init(params)
    batches = _batches(rows, config)
    with progress("pretrain", total=config.num_steps, unit="steps") as bar:
        for number in range(config.num_steps):
            params, opt_state, reply_loss = step(params, opt_state, next(batches))
            note = f"loss {float(reply_loss):.3f}" if number % 20 == 0 else None
            bar.advance(1, note)
            if (number + 1) % SAVE_EVERY == 0 or number + 1 == config.num_steps:
                half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
                save_qwen2(nnx.merge(graphdef, half), config.out)
