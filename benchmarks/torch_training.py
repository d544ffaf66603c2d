"""The peers of `training`: PEFT loops as they are usually written, and TRL's SFTTrainer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from benchmarks.timed_steps import JPO_EPOCHS, Seconds
from emodistill.batches import Example
from emodistill.model import embedded_path, load_tokenizer

Tensors = Mapping[str, torch.Tensor]
Loss = Callable[[Any, Tensors, Any], torch.Tensor]
"""(model, batch, stored log-probs of the reference or None) -> the loss."""


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


def _rows(examples: Sequence[Example]) -> list[dict[str, list[int]]]:
    """input_ids and labels of each sample; only replies are labels."""
    return [
        {
            "input_ids": [*one.prompt_ids.tolist(), *one.response_ids.tolist()],
            "labels": [-100] * len(one.prompt_ids) + one.response_ids.tolist(),
        }
        for one in examples
    ]


def _sft_loss(model: Any, batch: Tensors, reference: None) -> torch.Tensor:
    """The model's own loss."""
    return model(**batch).loss


def _logprobs(model: Any, batch: Tensors) -> torch.Tensor:
    """Log-probs of the next tokens, [B, T - 1]; what is no reply means nothing."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = batch["labels"][:, 1:].clamp(min=0)
    return torch.log_softmax(logits[:, :-1].float(), dim=-1).gather(-1, targets[..., None])[..., 0]


@torch.no_grad()
def _reference_logprobs(model: Any, batch: Tensors) -> torch.Tensor:
    with model.disable_adapter():
        return _logprobs(model, batch)


def _jpo_loss(model: Any, batch: Tensors, reference: torch.Tensor | None) -> torch.Tensor:
    """The loss with stored log-probs of the reference, or with a forward pass for them."""
    ref = _reference_logprobs(model, batch) if reference is None else reference
    logp, mask = _logprobs(model, batch), batch["labels"][:, 1:] != -100
    ratio = torch.exp(((logp - ref) * mask).sum(dim=1) / mask.sum(dim=1))
    advantage = torch.ones_like(ratio)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    delta = (ref - logp) * mask
    kl = ((torch.exp(delta) - delta - 1) * mask).sum() / mask.sum()
    return 0.04 * kl - surrogate


def _peft_loop(
    folder: Path,
    max_tokens: int,
    *,
    loss: Loss,
    batch_size: int = 4,
    stores_reference: bool = False,
) -> Seconds:
    """One optimiser step over padded batches, samples of similar length together.

    Its time includes its share of the reference pass where that is stored.
    """
    model = _student(folder)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    pad = DataCollatorForLanguageModeling(pad_token_id=0)

    def seconds(examples: Sequence[Example]) -> float:
        by_length = sorted(examples, key=lambda example: example.num_tokens)
        rows = _rows(by_length)
        batches = [pad(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
        started = time.perf_counter()
        references = [
            _reference_logprobs(model, batch) if stores_reference else None for batch in batches
        ]
        stored = time.perf_counter()
        for batch, reference in zip(batches, references, strict=True):
            (loss(model, batch, reference) / len(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
        return (stored - started) / JPO_EPOCHS + time.perf_counter() - stored

    return seconds


def _trl_trainer(folder: Path, max_tokens: int) -> Seconds:
    """SFTTrainer with packing; its own clock runs over the steps alone."""
    model = _student(folder)
    # SFTTrainer asks for a tokenizer, although the samples are token ids already: any will do.
    tokenizer = load_tokenizer(embedded_path())

    def seconds(examples: Sequence[Example]) -> float:
        with tempfile.TemporaryDirectory() as name:
            settings = SFTConfig(
                output_dir=name,
                packing=True,
                max_length=max_tokens,
                per_device_train_batch_size=1,
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
                args=settings,
                train_dataset=Dataset.from_list(_rows(examples)),
                processing_class=tokenizer,
            )
            return trainer.train().metrics["train_runtime"]

    return seconds


PEERS: Mapping[str, Callable[[Path, int], Seconds]] = {
    "peft": partial(_peft_loop, loss=_sft_loss),
    "trl": _trl_trainer,
    "upstream-style": partial(_peft_loop, loss=_jpo_loss, batch_size=1),
    "peft-stored": partial(_peft_loop, loss=_jpo_loss, stores_reference=True),
}
"""By name, from a checkpoint and the longest row."""
