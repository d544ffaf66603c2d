"""The architecture of a checkpoint as its `config.json` gives it, and of an adapter (no jax)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emodistill.configs import EMBEDDED
from emodistill.errors import InputError
from emodistill.model import student_folder
from emodistill.untrusted import brief, read_json, shown

Architecture = Literal["qwen2", "llama", "qwen3"]
ARCHITECTURES: Mapping[Architecture, str] = {
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS: Mapping[str, str] = {
    **dict.fromkeys(ATTENTION_TARGETS, "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}
"""The projections that an adapter can adapt, and the module of a layer that holds each."""

ParamPath = tuple[Any, ...]
"""The names on the way to a parameter, such as ("layers", "mlp", "up_proj", "weight")."""

# What older Llama-type configurations leave out, and the values that they then mean.
_LLAMA_DEFAULTS = {"rope_theta": 10_000.0, "max_position_embeddings": 2_048}

_HF_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "is_tied": "tie_word_embeddings",
}
"""What Hugging Face calls the fields that are the same there."""


def _is_size(value: object) -> bool:
    """Whether it is a whole number from 1 on; for Python `True` is one too."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value: Any) -> bool:
    return _is_size(value) or (isinstance(value, float) and 0 < value < math.inf)


def read_json_object(path: Path, advice: str) -> dict[str, Any]:
    """The JSON object in the file; `advice` is for where the file is missing.

    Raises:
      InputError: the file is missing, or holds anything else.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; {advice}.")
    try:
        fields = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: this is no JSON ({brief(error)}); copy the file again."
        ) from None
    if not isinstance(fields, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(fields).__name__}.")
    return fields


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
            _check_size(name, getattr(self, name))
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if not _is_positive(value):
                raise InputError(f"{name}={shown(value)} must be a positive number.")
            object.__setattr__(self, name, float(value))
        if not isinstance(self.is_tied, bool):
            raise InputError(f"is_tied={self.is_tied!r} must be true or false.")
        if not all(token == 0 or _is_size(token) for token in self.eos_token_ids):
            raise InputError(f"eos_token_ids={shown(self.eos_token_ids)} must be token ids.")
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
        if not Path(folder).is_dir():
            raise InputError(f"{folder} is no folder; name a folder with config.json and weights.")
        path = Path(folder) / "config.json"
        advice = "a model folder holds config.json beside its .safetensors"
        fields = read_json_object(path, advice)
        try:
            return cls.from_hf(fields)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Qwen2Config:
        """The configuration that Hugging Face's `fields` describe."""
        architecture: Any = fields.get("model_type")
        if architecture not in tuple(ARCHITECTURES):  # a tuple, since it may be unhashable
            raise InputError(
                f"model_type={shown(architecture)} is not implemented; "
                f"known: {', '.join(ARCHITECTURES)}."
            )
        if architecture == "llama":
            fields = {**_LLAMA_DEFAULTS, **fields}
        _refuse_options(fields, architecture)
        given = {name: value for name, value in fields.items() if value is not None}
        if {"num_attention_heads", "hidden_size"} <= given.keys():
            heads, width = given["num_attention_heads"], given["hidden_size"]
            _check_size("num_attention_heads", heads)
            _check_size("hidden_size", width)
            given = {"num_key_value_heads": heads, "head_dim": width // heads} | given
        if base := (given.get("rope_parameters") or {}).get("rope_theta"):
            given["rope_theta"] = base
        given.setdefault("tie_word_embeddings", False)
        for name in _HF_NAMES.values():
            if name not in given:
                raise InputError(f"{name} is missing; copy the checkpoint's own config.")
        eos = given.get("eos_token_id", [])
        return cls(
            architecture=architecture,
            eos_token_ids=tuple(eos) if isinstance(eos, list) else (eos,),
            **{ours: given[theirs] for ours, theirs in _HF_NAMES.items()},
        )

    def to_hf(self, *, dtype: str = "float32") -> dict[str, Any]:
        """The fields of a `config.json` that transformers, PEFT and vLLM read.

        The base of RoPE is written in both places in which readers look for it.
        """
        fields = {
            "architectures": [ARCHITECTURES[self.architecture]],
            "model_type": self.architecture,
            **{theirs: getattr(self, ours) for ours, theirs in _HF_NAMES.items()},
            "hidden_act": "silu",
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "use_sliding_window": False,
            "torch_dtype": dtype,
        }
        if self.eos_token_ids:
            first, *more = self.eos_token_ids
            fields["eos_token_id"] = [first, *more] if more else first
        return fields


def _check_size(name: str, value: object) -> None:
    if not _is_size(value):
        raise InputError(f"{name}={shown(value)} must be a positive integer.")


_QWEN25 = {
    "0.5b": (896, 4_864, 24, 14, 2),
    "1.5b": (1_536, 8_960, 28, 12, 2),
    "3b": (2_048, 11_008, 36, 16, 2),
    "7b": (3_584, 18_944, 28, 28, 4),
    "14b": (5_120, 13_824, 48, 40, 8),
    "32b": (5_120, 27_648, 64, 40, 8),
    "72b": (8_192, 29_568, 80, 64, 8),
}
"""Width, width of the MLP, layers, query heads and key/value heads of each size."""
MAX_TIED_WIDTH = 2_048
"""Up to 3B, embedding and head are one matrix; from 7B on they are two, of more rows."""

PUBLISHED: Mapping[str, Qwen2Config] = {
    f"qwen2.5-{size}": Qwen2Config(
        vocab_size=151_936 if D <= MAX_TIED_WIDTH else 152_064,
        hidden_size=D,
        intermediate_size=F,
        num_layers=L,
        num_heads=N,
        num_kv_heads=K,
        head_dim=D // N,
        rope_theta=1e6,
        norm_eps=1e-6,
        max_positions=32_768,
        is_tied=D <= MAX_TIED_WIDTH,
    )
    for size, (D, F, L, N, K) in _QWEN25.items()
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
    """Rank and scale of an adapter, and the projections that it adapts."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ATTENTION_TARGETS

    def __post_init__(self) -> None:
        _check_size("rank", self.rank)
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


_READ_FIELDS = frozenset({"model_type", "eos_token_id", *_HF_NAMES.values()})
_FREE_FIELDS = frozenset(
    {
        # what the file is, and who has written it
        *("architectures", "_name_or_path", "_model_name_or_path", "transformers_version"),
        *("dtype", "torch_dtype", "unk_token_id"),
        *("tokenizer_class", "unsloth_fixed", "unsloth_version", "transformers.js_config"),
        *("is_llama_config",),
        # training, and how the model is run
        *("attention_dropout", "initializer_range", "use_cache", "pretraining_tp"),
        *("return_dict", "hf_device_map", "is_decoder", "output_attentions"),
        *("output_hidden_states", "chunk_size_feed_forward", "keys_to_ignore_at_inference"),
        *("attn_implementation", "_attn_implementation", "_attn_implementation_autoset"),
        # tokens that the tokenizer knows as well
        *("bos_token_id", "pad_token_id", "sep_token_id"),
        # limits: a window that is in use is refused below
        *("max_window_layers", "sliding_window", "model_max_length", "seq_length"),
        # heads that are not read, and sampling, which has settings of its own
        *("id2label", "label2id", "problem_type", "task_specific_params", "max_length"),
        *("min_length", "temperature", "top_k", "top_p", "typical_p", "do_sample"),
        *("repetition_penalty", "length_penalty", "num_beams", "num_beam_groups"),
        *("num_return_sequences",),
    }
)
"""They don't change what is computed here."""


def _refuse_options(fields: Mapping[str, Any], architecture: Architecture) -> None:
    """Raise for options that would otherwise be ignored, and something else computed silently.

    An option that is not known here has to be empty.
    """
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(fields.get(name) or {}, Mapping):
            raise InputError(f"{name}={shown(fields[name])} must be an object, or null.")
    if not isinstance(fields.get("layer_types") or [], list):
        raise InputError(f"layer_types={shown(fields['layer_types'])} must be a list.")
    rope = {**(fields.get("rope_scaling") or {}), **(fields.get("rope_parameters") or {})}
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope = {name: rope[name] for name in rope.keys() - {"rope_theta", "type"}}
    # As a top-level field some configurations say which share of a head is rotated.
    rope = {"partial_rotary_factor": fields.get("partial_rotary_factor")} | rope
    has_attention_bias = bool(fields.get("attention_bias", architecture == "qwen2"))
    layer_types = sorted(set(map(str, fields.get("layer_types") or ["full_attention"])))
    refused = {
        f"rope_type={shown(kind)}": kind != "default",
        f"rope_parameters={shown(rope)}": any(value not in (None, 1) for value in rope.values()),
        "use_sliding_window=true": fields.get("use_sliding_window"),
        "sliding_window": architecture == "llama" and fields.get("sliding_window"),
        f"layer_types={shown(layer_types)}": layer_types != ["full_attention"],
        f"hidden_act={shown(fields.get('hidden_act'))}": (
            fields.get("hidden_act", "silu") != "silu"
        ),
        "mlp_bias=true": fields.get("mlp_bias"),
        f"attention_bias={str(has_attention_bias).lower()}": (
            has_attention_bias != (architecture == "qwen2")
        ),
        "quantization_config": fields.get("quantization_config") is not None,
    }
    known = {"rope_scaling", "rope_parameters", "partial_rotary_factor", "layer_types"}
    known |= {"hidden_act", "attention_bias"}
    for name in fields.keys() - _READ_FIELDS - _FREE_FIELDS - known:
        refused[f"{brief(name)}={shown(fields[name])}"] = bool(fields[name])
    for option, is_refused in refused.items():
        if is_refused:
            raise InputError(
                f"{option} is not implemented for {architecture}; use a checkpoint without it."
            )
