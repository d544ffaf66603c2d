"""The peers of `training`: PEFT loops as they are usually written, and TRL's SFTTrainer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from emodistill.batches import Example
from emodistill.bench.own_training import EPOCHS, Ours, padded
from emodistill.configs import BenchTrainingConfig

Measure = Callable[[list[Example]], float]
"""Seconds for one optimiser step on these samples."""
PADDED_BATCH = 4


def _student(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.config.use_cache = False
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)


def _optimizer(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)


def _tensors(examples: list[Example]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in padded(examples).items()}


def _batches(examples: list[Example]) -> list[list[Example]]:
    """Of samples of about the same length, so that little is padded."""
    by_length = sorted(examples, key=lambda example: example.num_tokens)
    return [by_length[i : i + PADDED_BATCH] for i in range(0, len(by_length), PADDED_BATCH)]


def _peft_sft(config: BenchTrainingConfig, folder: Path, ours: Ours) -> Measure:
    """Padded batches with the model's own loss."""
    model = _student(folder)
    optimizer = _optimizer(model)

    def measure(examples: list[Example]) -> float:
        batches = [_tensors(batch) for batch in _batches(examples)]
        started = time.perf_counter()
        for batch in batches:
            (model(**batch).loss / len(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return measure


def _trl_sft(config: BenchTrainingConfig, folder: Path, ours: Ours) -> Measure:
    """SFTTrainer with packing; the clock runs over its steps alone."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    model = _student(folder)
    tokenizer = _any_tokenizer(PreTrainedTokenizerFast, ours.sizes.vocab_size)

    class Clock(TrainerCallback):
        started = ended = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = self.started or time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended = time.perf_counter()

    def measure(examples: list[Example]) -> float:
        rows = [
            {
                "input_ids": [*map(int, one.prompt_ids), *map(int, one.response_ids)],
                "completion_mask": [0] * len(one.prompt_ids) + [1] * len(one.response_ids),
            }
            for one in examples
        ]
        clock = Clock()
        with tempfile.TemporaryDirectory() as name:
            arguments = SFTConfig(
                output_dir=name,
                packing=True,
                completion_only_loss=True,
                max_length=config.max_micro_tokens,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=1,
                num_train_epochs=1,
                gradient_checkpointing=False,
                use_cpu=True,
                bf16=False,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            )
            trainer = SFTTrainer(
                model=model,
                args=arguments,
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
                callbacks=[clock],
            )
            trainer.train()
        return clock.ended - clock.started

    return measure


def _any_tokenizer(cls: Any, vocab_size: int) -> Any:
    """SFTTrainer asks for one, although the samples are token ids already."""
    from tokenizers import Tokenizer, models

    words = {f"<{i}>": i for i in range(vocab_size)}
    core = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    return cls(tokenizer_object=core, eos_token="<0>", pad_token="<0>", unk_token="<0>")


def _logprobs(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the replies' tokens, and where they are, [B, T - 1]."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = batch["labels"][:, 1:]
    mask = targets != -100
    logp = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    return logp.gather(-1, targets.clamp(min=0)[..., None])[..., 0], mask


def _jpo_loss(logp: torch.Tensor, ref: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    length = mask.sum(dim=1)
    ratio = torch.exp(((logp - ref) * mask).sum(dim=1) / length)
    advantage = torch.ones_like(ratio)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    delta = (ref - logp) * mask
    kl = ((torch.exp(delta) - delta - 1) * mask).sum() / mask.sum()
    return 0.04 * kl - surrogate


def _peft_jpo_two_forwards(config: BenchTrainingConfig, folder: Path, ours: Ours) -> Measure:
    """One sample at a time, the reference beside the policy in every step."""
    model = _student(folder)
    optimizer = _optimizer(model)

    def measure(examples: list[Example]) -> float:
        batches = [_tensors([example]) for example in examples]
        started = time.perf_counter()
        for batch in batches:
            with torch.no_grad(), model.disable_adapter():
                ref, _ = _logprobs(model, batch)
            logp, mask = _logprobs(model, batch)
            (_jpo_loss(logp, ref, mask) / len(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return measure


def _peft_jpo_stored(config: BenchTrainingConfig, folder: Path, ours: Ours) -> Measure:
    """Padded batches; the reference's log-probs are computed once for all epochs."""
    model = _student(folder)
    optimizer = _optimizer(model)

    def measure(examples: list[Example]) -> float:
        batches = [_tensors(batch) for batch in _batches(examples)]
        started = time.perf_counter()
        with torch.no_grad(), model.disable_adapter():
            stored = [_logprobs(model, batch)[0] for batch in batches]
        reference_s = time.perf_counter() - started
        started = time.perf_counter()
        for batch, ref in zip(batches, stored, strict=True):
            logp, mask = _logprobs(model, batch)
            (_jpo_loss(logp, ref, mask) / len(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
        return reference_s / EPOCHS + time.perf_counter() - started

    return measure


PEERS: Mapping[str, Mapping[str, Callable[[BenchTrainingConfig, Path, Ours], Measure]]] = {
    "sft": {"peft": _peft_sft, "trl": _trl_sft},
    "jpo": {"upstream-style": _peft_jpo_two_forwards, "peft-stored": _peft_jpo_stored},
}
