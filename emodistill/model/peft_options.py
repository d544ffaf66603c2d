"""What PEFT's `adapter_config.json` says of an adapter: which modules, of which rank and scale.

Read by allow-list: what changes the weights' meaning in another way is refused by name. Ranks and
scales may differ between modules (`rank_pattern`, `alpha_pattern`), and the scale may be alpha /
sqrt(rank) (`use_rslora`, arXiv 2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from emodistill.errors import InputError
from emodistill.model.config import TARGETS, LoRAConfig
from emodistill.untrusted import brief, shown

# What is written of PEFT's options: those that could change what the weights mean are off.
PLAIN_OPTIONS: Mapping[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "modules_to_save": None,
    "trainable_token_indices": None,
}
# What an adapter may say. Any other option has to be empty, those of a later PEFT included.
_READ_OPTIONS = frozenset(
    {
        *("r", "lora_alpha", "target_modules", "base_model_name_or_path"),
        *("rank_pattern", "alpha_pattern", "use_rslora"),
    }
)
_FREE_OPTIONS = frozenset(
    {
        *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode"),
        *("lora_dropout", "megatron_core", "qalora_group_size", "runtime_config"),
    }
)
"""They change nothing, or only with another option that is refused."""
_ALLOWED_VALUES: Mapping[str, Sequence[Any]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # The others (PiSSA, OLoRA, LoftQ, CorDA, …) change the base model's own weights as well.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
MAX_PATTERNS = 2_048
"""More than an 80-layer model has adapted modules of one kind; each is tried on every module."""
MAX_PATTERN_CHARS, MAX_REPEATS = 200, 2
"""Of a pattern. It is a regular expression from somebody else: with few repetitions, none of them
of a group, matching the name of a module takes no more than a power of its few characters."""


class ModuleForm(NamedTuple):
    """How one module of one layer is adapted: W + scale · B A."""

    rank: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftOptions:
    """An adapter's options that count."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    is_rank_stabilized: bool = False
    """Whether the scale is alpha / sqrt(rank) instead of alpha / rank."""
    ranks: tuple[tuple[re.Pattern[str], int], ...] = ()
    alphas: tuple[tuple[re.Pattern[str], float], ...] = ()
    """What modules have whose path a pattern matches, the first one that does."""

    @classmethod
    def read(cls, fields: Mapping[str, Any], path: Path) -> PeftOptions:
        """The options in `fields`, the contents of the file `path`.

        Raises:
          InputError: an option is not implemented, or a value can't be used.
        """
        for option, value in fields.items():
            if option in _READ_OPTIONS or option in _FREE_OPTIONS:
                continue
            if value in _ALLOWED_VALUES[option] if option in _ALLOWED_VALUES else not value:
                continue
            raise InputError(
                f"{path}: {brief(option)}={shown(value)} is not implemented; export a plain LoRA. "
                "(PEFT's save_pretrained has path_initial_model_for_weight_conversion for PiSSA, "
                "OLoRA and their like.)"
            )
        is_rank_stabilized = fields.get("use_rslora") or False
        if not isinstance(is_rank_stabilized, bool):
            raise InputError(
                f"{path}: use_rslora={shown(is_rank_stabilized)} must be true or false."
            )
        try:
            plain = LoRAConfig(
                rank=_number(fields, "r"),
                alpha=float(_number(fields, "lora_alpha")),
                targets=_targets(fields),
            )
            return cls(
                rank=plain.rank,
                alpha=plain.alpha,
                targets=plain.targets,
                is_rank_stabilized=is_rank_stabilized,
                ranks=_patterns(fields, "rank_pattern"),
                alphas=_patterns(fields, "alpha_pattern"),
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def forms(self, num_layers: int) -> dict[str, list[ModuleForm]]:
        """Rank and scale of each target in each layer."""
        return {
            target: [self._form(module_path(layer, target)) for layer in range(num_layers)]
            for target in self.targets
        }

    def lora_config(self, forms: Mapping[str, Sequence[ModuleForm]]) -> LoRAConfig:
        """The form of the LoRA that holds all of them: of the largest rank.

        Where the scale is not the one that all share as alpha / rank, it is 1 here, and whoever
        reads the factors multiplies B by the module's own.
        """
        if not (self.is_rank_stabilized or self.ranks or self.alphas):
            return LoRAConfig(rank=self.rank, alpha=self.alpha, targets=self.targets)
        rank = max(form.rank for modules in forms.values() for form in modules)
        return LoRAConfig(rank=rank, alpha=float(rank), targets=self.targets)

    def _form(self, path: str) -> ModuleForm:
        rank = next((rank for pattern, rank in self.ranks if pattern.match(path)), self.rank)
        alpha = next((alpha for pattern, alpha in self.alphas if pattern.match(path)), self.alpha)
        return ModuleForm(rank, alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank))


def module_path(layer: int, target: str) -> str:
    """The name of a projection in Hugging Face's model."""
    return f"model.layers.{layer}.{TARGETS[target]}.{target}"


def _number(fields: Mapping[str, Any], name: str) -> Any:
    value = fields.get(name)
    if not isinstance(value, int | float):
        raise InputError(f"{name}={shown(value)} must be a number.")
    return value


def _targets(fields: Mapping[str, Any]) -> tuple[str, ...]:
    targets, known = fields.get("target_modules"), tuple(TARGETS)  # a target may be unhashable
    if not isinstance(targets, list):
        raise InputError(f"target_modules={shown(targets)} must be a list of {', '.join(TARGETS)}.")
    if unknown := [target for target in targets if target not in known]:
        raise InputError(
            f"target_modules={shown(targets)}: {shown(unknown)} can't be adapted here; what can "
            f"is {', '.join(TARGETS)}."
        )
    return tuple(targets)


def _patterns(fields: Mapping[str, Any], name: str) -> tuple[tuple[re.Pattern[str], Any], ...]:
    stated = fields.get(name) or {}
    if not isinstance(stated, dict) or len(stated) > MAX_PATTERNS:
        raise InputError(
            f"{name}={shown(stated)} must be an object of at most {MAX_PATTERNS} modules."
        )
    found = []
    for key, value in stated.items():
        field = "rank" if name == "rank_pattern" else "alpha"
        try:
            LoRAConfig(**{field: value})
        except InputError as error:
            raise InputError(f"{name}: {brief(key)}: {error}") from None
        num_repeats = len(re.findall(r"[*+?{]", key))
        is_nested = re.search(r"[)*+?}][*+?{]|\(\?|\\\d", key)
        if len(key) > MAX_PATTERN_CHARS or num_repeats > MAX_REPEATS or is_nested:
            raise InputError(
                f"{name}: {brief(key)} is too much of a regular expression to be read from a file; "
                "name the module, such as layers.3.self_attn.q_proj."
            )
        try:
            pattern = re.compile(rf"(.*\.)?({key})$")  # as PEFT matches them
        except re.error as error:
            raise InputError(f"{name}: {brief(key)} can't be read ({error}).") from None
        found.append((pattern, value))
    return tuple(found)
