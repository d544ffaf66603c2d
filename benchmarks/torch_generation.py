"""The peer of the benchmark `generate`: transformers' `generate` on padded batches."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM


class PaddedGenerate:
    """Batches padded on the left, greedy, with a cache, on all cores."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def seconds(self, batch: Sequence[tuple[np.ndarray, int]]) -> float:
        """Seconds in which a batch of prompts gets replies, as long as the longest of them."""
        start = time.perf_counter()
        longest = max(len(prompt) for prompt, _ in batch)
        ids_BT = torch.zeros((len(batch), longest), dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, (prompt, _) in enumerate(batch):
            ids_BT[row, longest - len(prompt) :] = torch.from_numpy(prompt)
            mask_BT[row, longest - len(prompt) :] = 1
        num_tokens = max(length for _, length in batch)
        with torch.no_grad():
            self.model.generate(
                ids_BT,
                attention_mask=mask_BT,
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            )
        return time.perf_counter() - start
