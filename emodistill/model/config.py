"""The architecture of a checkpoint as its `config.json` gives it, and of an adapter (no jax)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emodistill.configs import EMBEDDED
from emodistill.errors import InputError
from emodistill.model import student_folder

Architecture = Literal["qwen2", "llama", "qwen3"]
ARCHITECTURES: Mapping[Architecture, str] = {
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_TARGETS = ("gate_proj", "up_proj", "down_proj")
TARGETS = ATTENTION_TARGETS + MLP_TARGETS

ParamPath = tuple[str, ...]
"""Where a parameter is, such as ("layers", "mlp", "up_proj", "weight")."""

# What older Llama-type configurations leave out, and the values that they then mean.
_LLAMA_DEFAULTS = {"rope_theta": 10_000.0, "max_position_embeddings": 2_048}


def _is_int(value: object) -> bool:
    """Whether it is a whole number; for Python `true` is one too."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and 0 < value < math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen2Config:
    """Sizes and variants of a decoder of the Qwen2 family.

    `architecture` decides what differs between relatives: qwen2 has biases on q, k and v; qwen3
    has RMS norms on each head of q and k instead; llama has neither.
    """

    architecture: Architecture = "qwen2"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float
    max_positions: int
    is_tied: bool
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads")
        for name in (*sizes, "num_kv_heads", "head_dim", "max_positions"):
            value = getattr(self, name)
            if not _is_int(value) or value < 1:
                raise InputError(f"{name}={value!r} must be a positive integer.")
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if not _is_positive(value):
                raise InputError(f"{name}={value!r} must be a positive number.")
            object.__setattr__(self, name, float(value))
        if not isinstance(self.is_tied, bool):
            raise InputError(f"is_tied={self.is_tied!r} must be true or false.")
        if not all(_is_int(number) and number >= 0 for number in self.eos_token_ids):
            raise InputError(f"eos_token_ids={self.eos_token_ids!r} must be token ids.")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"num_heads={self.num_heads} must be a multiple of "
                f"num_kv_heads={self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise InputError(f"head_dim={self.head_dim} must be even for rotary embeddings.")
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"architecture={self.architecture!r} is unknown; known: {', '.join(ARCHITECTURES)}."
            )

    @property
    def has_qkv_bias(self) -> bool:
        return self.architecture == "qwen2"

    @property
    def has_qk_norm(self) -> bool:
        return self.architecture == "qwen3"

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Qwen2Config:
        """Read `config.json` of a checkpoint folder in Hugging Face layout.

        Raises:
          InputError: the file is missing or no JSON, a field is missing, or the architecture or
            one of its options (scaled RoPE, sliding windows, …) is not implemented.
        """
        path = Path(folder) / "config.json"
        if not Path(folder).is_dir():
            raise InputError(f"{folder} is no folder; name a folder with config.json and weights.")
        if not path.is_file():
            raise InputError(
                f"{path} is missing; a model folder holds config.json beside its .safetensors."
            )
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is no JSON ({error}); copy the file again.") from None
        if not isinstance(fields, dict):
            raise InputError(f"{path} must hold a JSON object, not {type(fields).__name__}.")
        return cls.from_hf(fields, where=str(path))

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], *, where: str = "config.json") -> Qwen2Config:
        """The configuration that Hugging Face's `fields` describe; `where` is for messages."""
        architecture: Any = fields.get("model_type")
        if architecture not in tuple(ARCHITECTURES):  # which a list may be looked for in
            raise InputError(
                f"{where}: model_type={architecture!r} is not implemented; "
                f"known: {', '.join(ARCHITECTURES)}."
            )
        if architecture == "llama":
            fields = {**_LLAMA_DEFAULTS, **fields}
        _refuse_options(fields, architecture, where)

        def need(name: str) -> Any:
            if fields.get(name) is None:
                raise InputError(f"{where}: {name} is missing; copy the checkpoint's own config.")
            return fields[name]

        def given(name: str, otherwise: Any) -> Any:
            return otherwise if fields.get(name) is None else fields[name]

        rope = fields.get("rope_parameters") or {}
        heads, width = need("num_attention_heads"), need("hidden_size")
        for name, size in (("num_attention_heads", heads), ("hidden_size", width)):
            if not _is_int(size) or size < 1:
                raise InputError(f"{where}: {name}={size!r} must be a positive integer.")
        eos = given("eos_token_id", [])
        try:
            return cls(
                architecture=architecture,
                vocab_size=need("vocab_size"),
                hidden_size=width,
                intermediate_size=need("intermediate_size"),
                num_layers=need("num_hidden_layers"),
                num_heads=heads,
                num_kv_heads=given("num_key_value_heads", heads),
                head_dim=given("head_dim", width // heads),
                rope_theta=rope.get("rope_theta") or need("rope_theta"),
                norm_eps=need("rms_norm_eps"),
                max_positions=need("max_position_embeddings"),
                is_tied=given("tie_word_embeddings", False),
                eos_token_ids=()
                if eos is None
                else tuple(eos)
                if isinstance(eos, list)
                else (eos,),
            )
        except InputError as error:
            message = str(error)
            raise InputError(message if where in message else f"{where}: {message}") from None

    def to_hf(self, *, dtype: str = "float32") -> dict[str, Any]:
        """The fields of a `config.json` that transformers, PEFT and vLLM read.

        RoPE's base is written in both places in which readers look for it.
        """
        fields: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.architecture]],
            "model_type": self.architecture,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "tie_word_embeddings": self.is_tied,
            "use_sliding_window": False,
            "torch_dtype": dtype,
        }
        if self.eos_token_ids:
            first, *more = self.eos_token_ids
            fields["eos_token_id"] = [first, *more] if more else first
        return fields


def _qwen25(
    hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int, num_kv_heads: int
) -> Qwen2Config:
    is_small = hidden_size <= 2_048
    return Qwen2Config(
        vocab_size=151_936 if is_small else 152_064,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=hidden_size // num_heads,
        rope_theta=1_000_000.0,
        norm_eps=1e-6,
        max_positions=32_768,
        is_tied=is_small,
    )


PUBLISHED: Mapping[str, Qwen2Config] = {
    "qwen2.5-0.5b": _qwen25(896, 4_864, 24, 14, 2),
    "qwen2.5-1.5b": _qwen25(1_536, 8_960, 28, 12, 2),
    "qwen2.5-3b": _qwen25(2_048, 11_008, 36, 16, 2),
    "qwen2.5-7b": _qwen25(3_584, 18_944, 28, 28, 4),
    "qwen2.5-14b": _qwen25(5_120, 13_824, 48, 40, 8),
    "qwen2.5-32b": _qwen25(5_120, 27_648, 64, 40, 8),
    "qwen2.5-72b": _qwen25(8_192, 29_568, 80, 64, 8),
}
"""Sizes of the published family (arXiv 2412.15115), for planning without a checkpoint at hand."""


def read_architecture(name: str) -> Qwen2Config:
    """The sizes of `qwen2.5-7b` and its kin, of `embedded`, or of the checkpoint folder `name`.

    Raises:
      InputError: it is none of these, or the folder's `config.json` can't be used.
    """
    if name.lower() in PUBLISHED:
        return PUBLISHED[name.lower()]
    if name != EMBEDDED and not Path(name).is_dir():
        raise InputError(
            f"model={name!r} is neither a folder nor one of {', '.join((EMBEDDED, *PUBLISHED))}."
        )
    return Qwen2Config.from_pretrained(student_folder(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAConfig:
    """Rank, scale and place of an adapter."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ATTENTION_TARGETS

    def __post_init__(self) -> None:
        if not _is_int(self.rank) or self.rank < 1:
            raise InputError(f"rank={self.rank!r} must be a positive integer.")
        if not _is_positive(self.alpha):
            raise InputError(f"alpha={self.alpha!r} must be positive.")
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown or not self.targets:
            raise InputError(
                f"targets={list(self.targets)} must be some of {', '.join(TARGETS)}; "
                f"unknown: {unknown}."
            )
        ordered = tuple(target for target in TARGETS if target in self.targets)
        object.__setattr__(self, "targets", ordered)
        object.__setattr__(self, "alpha", float(self.alpha))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def _refuse_options(fields: Mapping[str, Any], architecture: Architecture, where: str) -> None:
    """Raise for what would silently compute something else."""
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(fields.get(name) or {}, Mapping):
            raise InputError(f"{where}: {name}={fields[name]!r} must be an object, or null.")
    if not isinstance(fields.get("layer_types") or [], list):
        raise InputError(f"{where}: layer_types={fields['layer_types']!r} must be a list.")
    rope = {**(fields.get("rope_scaling") or {}), **(fields.get("rope_parameters") or {})}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    has_attention_bias = bool(fields.get("attention_bias", architecture == "qwen2"))
    layer_types = set(map(str, fields.get("layer_types") or ["full_attention"]))
    refused = {
        f"rope_type={kind!r}": kind != "default",
        f"rope_parameters={rope}": any(isinstance(value, dict) for value in rope.values()),
        "use_sliding_window=true": bool(fields.get("use_sliding_window")),
        f"layer_types={sorted(layer_types)}": layer_types != {"full_attention"},
        f"hidden_act={fields.get('hidden_act')!r}": fields.get("hidden_act", "silu") != "silu",
        "mlp_bias=true": bool(fields.get("mlp_bias")),
        f"attention_bias={str(has_attention_bias).lower()}": (
            has_attention_bias != (architecture == "qwen2")
        ),
        "quantization_config": fields.get("quantization_config") is not None,
    }
    for option, is_refused in refused.items():
        if is_refused:
            raise InputError(
                f"{where}: {option} is not implemented for {architecture}; "
                "use a checkpoint without it."
            )
