"""GGUF checkpoints as folders of safetensors, by the package `gguf` and without torch.

What is stored in few bits is dequantised to float32 once; the rounding of the file stays. There
Llama-type models have the rows of q and k in llama.cpp's order (`gguf_adapters.paired_rows`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from emodistill.errors import InputError
from emodistill.files import new_folder, write_json
from emodistill.model.config import Qwen2Config
from emodistill.model.gguf_adapters import NAMES, gguf_package, halved_rows
from emodistill.model.tokenization import load_tokenizer
from emodistill.tensor_files import write_tensors
from emodistill.untrusted import brief, shown

_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    **{
        theirs: f"{'mlp' if theirs.startswith('ffn') else 'self_attn'}.{ours}"
        for ours, theirs in NAMES.items()
    },
}
_SPLITS = {
    # The pieces within which bytes are merged, as the models' own tokenizers cut texts.
    "smollm": None,  # digits one by one, then GPT-2's own pattern
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
_CONTROL = 3  # among a file's types of tokens


def convert_gguf(source: Path, out: Path) -> Qwen2Config:
    """Write the checkpoint folder `out` from the GGUF file `source`.

    Returns: its architecture.

    Raises:
      InputError: the package `gguf` is not installed; `source` is no GGUF file of an architecture
        and a tokenizer that are known here, or can't be read; `out` exists.
    """
    gguf = gguf_package()
    if out.exists():
        raise InputError(f"{out} exists; name another folder, or move it away.")
    try:
        reader = gguf.GGUFReader(source)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # the package raises nearly anything on a torn file
        raise InputError(f"{source} can't be read as GGUF ({brief(error)}).") from None
    try:
        config = _config(fields, {tensor.name for tensor in reader.tensors})
        tokenizer, settings = _tokenizer(fields)
        tensors = dict(_tensors(gguf, reader, config))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{source} lacks what a checkpoint needs ({brief(error)}).") from None
    with new_folder(out) as folder:
        write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
        write_json(folder / "config.json", config.to_hf())
        tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", settings)
        try:
            load_tokenizer(folder)  # refuses a chat template that training can't use
        except InputError as error:
            raise InputError(f"{source}: {str(error).removeprefix(f'{folder}: ')}") from None
    return config


def _config(fields: Mapping[str, Any], names: set[str]) -> Qwen2Config:
    architecture = fields.get("general.architecture")

    def of(key: str, default: Any = None) -> Any:
        value = fields.get(f"{architecture}.{key}", default)
        if value is None:
            raise InputError(f"{architecture}.{key} is missing.")
        return value

    if fields.get(f"{architecture}.rope.scaling.type", "none") != "none":
        raise InputError("scaled rotary positions are not implemented.")
    heads, width = of("attention.head_count"), of("embedding_length")
    return Qwen2Config.from_hf(
        {
            "model_type": architecture,
            "vocab_size": len(fields["tokenizer.ggml.tokens"]),
            "hidden_size": width,
            "intermediate_size": of("feed_forward_length"),
            "num_hidden_layers": of("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": of("attention.head_count_kv", heads),
            "head_dim": of("attention.key_length", width // heads),
            "rope_theta": of("rope.freq_base", 10_000.0),
            "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
            "max_position_embeddings": of("context_length"),
            "tie_word_embeddings": "output.weight" not in names,
            "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
            "hidden_act": "silu",
        }
    )


def _tensors(gguf: Any, reader: Any, config: Qwen2Config) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors by Hugging Face's names, float32."""
    num_heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        kind = parts[-2] if len(parts) > 1 else ""
        if parts[0] == "blk" and len(parts) == 4 and kind in _OF_LAYER:
            name = f"model.layers.{int(parts[1])}.{_OF_LAYER[kind]}.{parts[-1]}"
        elif len(parts) == 2 and parts[0] in _WHOLE:
            name = f"{_WHOLE[parts[0]]}.{parts[-1]}"
        else:
            raise InputError(f"there is no place for its tensor {shown(tensor.name)}.")
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        if config.architecture == "llama" and kind in num_heads:
            values = halved_rows(values, num_heads[kind])
        yield name, np.ascontiguousarray(values)


def _tokenizer(fields: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The file's byte-level BPE, and the settings with its chat template."""
    kind, cut = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or cut not in _SPLITS:
        raise InputError(
            f"its tokenizer ({shown(kind)}, {shown(cut)}) is not known here; there is gpt2 with "
            f"{', '.join(_SPLITS)}."
        )
    if not (template := fields.get("tokenizer.chat_template")):
        raise InputError("it has no chat template; use an instruction-tuned model.")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    pattern = _SPLITS[cut]
    first = (
        pre_tokenizers.Digits(individual_digits=True)
        if pattern is None
        else pre_tokenizers.Split(Regex(pattern), "isolated")
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, of in zip(tokens, types, strict=True) if of == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": template,
        "add_bos_token": False,
    }
    for name in ("bos", "eos", "padding"):
        if (index := fields.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            settings[f"{'pad' if name == 'padding' else name}_token"] = tokens[index]
    return tokenizer, settings
