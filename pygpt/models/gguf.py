"""Llama-style models in GGUF files, the format of llama.cpp: weights, often quantised, tokenizer and chat template.

The package ``gguf`` reads them. Quantised weights are expanded when they are loaded. llama.cpp turns neighbouring
elements of a head where Hugging Face's layout, and ours, turn those that lie half a head apart: the rows of queries and
keys are put into our order.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pygpt.models.config import GPTConfig
from pygpt.models.gpt import GPT
from pygpt.models.llama_layout import LLAMA, llama_config
from pygpt.text import BPETokenizer
from pygpt.text.tokenizer import byte_level_bpe

_FIELDS = {
    "context_length": "context_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "embedding_dim": "embedding_length",
    "hidden_dim": "feed_forward_length",
    "layer_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
_OUTSIDE = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPECIAL = (3, 4)  # token types "control" and "user defined"


class TextParts(NamedTuple):
    """What a GGUF file says of text.

    Attributes:
        tokenizer: what made the model's tokens.
        template: the chat template, in Jinja; None: there is none.
        begin: the token that texts begin with, as text; empty: none.
        end: the token that ends an answer.
    """

    tokenizer: BPETokenizer
    template: str | None
    begin: str
    end: int | None


def load(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> GPT:
    """Load a model from a GGUF file.

    Args:
        path: the file.
        device: where the model is made.
        dtype: of the model; None: float32.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: if the file is damaged, its architecture or a quantisation is not supported, or the package ``gguf``
            is not installed.
        MemoryError: if the model does not fit into the device's memory.
    """
    reader = _open(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(reader, stored, path)
    model = GPT(config, device, dtype or torch.float32, initialise=False)
    targets = LLAMA.targets(model)
    names = {name: _canonical(name) for name in stored}
    unknown = sorted(name for name, canonical in names.items() if canonical not in targets)
    missing = sorted(set(targets) - set(names.values()))
    if unknown or missing:
        what = f"holds {unknown[0]}, which is no part of" if unknown else f"has no {missing[0]} for"
        raise ValueError(f"{path} {what} a Llama with {config.num_layers} blocks")
    for name, tensor in stored.items():
        target = targets[str(names[name])]
        weight = _expanded(tensor, path)
        heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(name.split(".")[-2])
        if heads is not None:
            weight = weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
        if weight.shape != target.shape:
            raise ValueError(f"{path}: {name} has shape {tuple(weight.shape)}, expected {tuple(target.shape)}")
        with torch.no_grad():
            target.copy_(weight)
    return model.eval()


def text_parts(path: str | Path) -> TextParts:
    """Read tokenizer, chat template and special tokens of a GGUF file.

    Raises:
        ValueError: if the file is damaged, its tokenizer is no byte-level BPE that pygpt has, or the package ``gguf``
            is not installed.
    """
    reader = _open(path)
    kind, split = (_field(reader, f"tokenizer.ggml.{name}", path) for name in ("model", "pre"))
    if kind != "gpt2" or split not in ("gpt-2", "smollm"):
        raise ValueError(f"{path} has a tokenizer of kind {kind!r}, {split!r}; pygpt reads 'gpt2' with gpt-2 or smollm")
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens", path)
    types: list[int] = _field(reader, "tokenizer.ggml.token_type", path)
    merges = [tuple(merge.split(" ", 1)) for merge in _field(reader, "tokenizer.ggml.merges", path)]
    special = [token for token, its_type in zip(tokens, types, strict=True) if its_type in _SPECIAL]
    backend = byte_level_bpe(
        {token: number for number, token in enumerate(tokens)}, merges, special, single_digits=split == "smollm"
    )
    begins = _field(reader, "tokenizer.ggml.add_bos_token", path, False)
    begin = _field(reader, "tokenizer.ggml.bos_token_id", path, None) if begins else None
    return TextParts(
        BPETokenizer(backend, str(path)),
        _field(reader, "tokenizer.chat_template", path, None),
        "" if begin is None else tokens[begin],
        _field(reader, "tokenizer.ggml.eos_token_id", path, None),
    )


_REQUIRED = object()


def _field(reader: Any, name: str, path: str | Path, default: Any = _REQUIRED) -> Any:
    field = reader.get_field(name)
    if field is not None:
        return field.contents()
    if default is _REQUIRED:
        raise ValueError(f"{path} says nothing of {name}")
    return default


def _open(path: str | Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(f"{path} is a GGUF file, and reading it needs the package gguf: pip install gguf") from error
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no GGUF file: {error}") from error


def _config(reader: Any, stored: dict[str, Any], path: str | Path) -> GPTConfig:
    architecture = _field(reader, "general.architecture", path)
    if architecture != "llama":
        raise ValueError(f"{path} holds a model of architecture {architecture!r}; pygpt reads 'llama'")
    if _field(reader, "llama.rope.scaling.type", path, "none") != "none":
        raise ValueError(f"{path} stretches its rotary positions (rope.scaling), which pygpt does not")
    fields = {ours: _field(reader, f"llama.{theirs}", path) for ours, theirs in _FIELDS.items() if ours != "rope_theta"}
    fields["rope_theta"] = _field(reader, "llama.rope.freq_base", path, 10000.0)
    tokens = _field(reader, "tokenizer.ggml.tokens", path)
    head_dim = _field(reader, "llama.attention.key_length", path, None)
    return llama_config(vocab_size=len(tokens), head_dim=head_dim, tie_head="output.weight" not in stored, **fields)


def _canonical(name: str) -> str | None:
    """The name that Hugging Face's layout has for it."""
    inside = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if inside and inside[2] in _INSIDE:
        return f"layers.{inside[1]}.{_INSIDE[inside[2]]}.weight"
    outside = name.removesuffix(".weight")
    return f"{_OUTSIDE[outside]}.weight" if outside in _OUTSIDE and name.endswith(".weight") else None


def _expanded(tensor: Any, path: str | Path) -> Tensor:
    """A weight of the file as float32."""
    from gguf import dequantize

    try:
        return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
    except NotImplementedError as error:
        kind = tensor.tensor_type.name
        raise ValueError(f"{path}: {tensor.name} is quantised as {kind}, which pygpt does not read") from error
