"""Llama-style models in GGUF files, the format of llama.cpp: weights, often quantised, tokenizer and chat template.

The package ``gguf`` reads them. Quantised weights are expanded when they are loaded; or kept, where the blocks' are in
4 bits, each group of 32 with a scale (and an offset): Q4_0 and Q4_1 are what our "int4" is. llama.cpp turns
neighbouring elements of a head where Hugging Face's layout, and ours, turn those that lie half a head apart: the rows
of queries and keys are put into our order.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pygpt.models.config import GPTConfig
from pygpt.models.gpt import GPT
from pygpt.models.llama_layout import LLAMA, llama_config
from pygpt.nn import QuantizedLinear
from pygpt.ops.quantized_linear import GROUP_PLACES, pack_pairs
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
# Linear layers of a block of ours -> theirs, whose rows follow one another.
_MATRICES = {
    "attention.qkv": ("attn_q", "attn_k", "attn_v"),
    "attention.out": ("attn_output",),
    "feed_forward.gate": ("ffn_gate",),
    "feed_forward.up": ("ffn_up",),
    "feed_forward.down": ("ffn_down",),
}
_FOUR_BITS = ("Q4_0", "Q4_1")
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


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    keep_quantized: bool = False,
) -> GPT:
    """Load a model from a GGUF file.

    Args:
        path: the file.
        device: where the model is made.
        dtype: of the model; None: float32.
        keep_quantized: leave the blocks' weights in 4 bits, where all are and the model is on the CPU, for sampling;
            the head, whatever it is in, gets 8 bits.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: if the file is damaged, its architecture or a quantisation is not supported, or the package ``gguf``
            is not installed.
        MemoryError: if the model does not fit into the device's memory.
    """
    return _model(_open(path), path, torch.device(device), dtype or torch.float32, keep_quantized)


def load_with_text(
    path: str | Path, dtype: torch.dtype | None = None, *, keep_quantized: bool = False
) -> tuple[GPT, TextParts]:
    """`load`, on the CPU, and `text_parts`; most of the time of either goes to looking through the file."""
    reader = _open(path)
    model = _model(reader, path, torch.device("cpu"), dtype or torch.float32, keep_quantized)
    return model, _text_parts(reader, path)


def _model(reader: Any, path: str | Path, device: torch.device, dtype: torch.dtype, keep_quantized: bool) -> GPT:
    stored = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(reader, stored, path)
    names = {_canonical(name): name for name in stored}
    expected = LLAMA.targets(GPT(config, "meta"))
    unknown = sorted(name for canonical, name in names.items() if canonical not in expected)
    missing = sorted(str(name) for name in set(expected) - set(names))
    if unknown or missing:
        what = f"holds {unknown[0]}, which is no part of" if unknown else f"has no {missing[0]} for"
        raise ValueError(f"{path} {what} a Llama with {config.num_layers} blocks")
    for canonical, name in names.items():
        shape = tuple(int(size) for size in reversed(stored[name].shape))
        if shape != expected[str(canonical)].shape:
            raise ValueError(f"{path}: {name} has shape {shape}, expected {tuple(expected[str(canonical)].shape)}")
    if keep_quantized and device.type == "cpu" and _is_in_four_bits(stored):
        model = GPT(config, device, dtype, initialise=False, quantization="int4", head_quantization="int8")
        _keep(model, stored, path)
    else:
        model = GPT(config, device, dtype, initialise=False)
        for canonical, target in LLAMA.targets(model).items():
            _copy(stored[names[canonical]], target, config, path)
    return model.eval()


@torch.no_grad()
def _copy(tensor: Any, target: Tensor, config: GPTConfig, path: str | Path) -> None:
    """Put a weight of the file, expanded, into the model's memory."""
    target.copy_(_our_order(_expanded(tensor, path), tensor.name, config))


def _keep(model: GPT, stored: dict[str, Any], path: str | Path) -> None:
    """Put the weights into a model that has room for the blocks' in 4 bits."""
    assert model.norm is not None and isinstance(model.head, QuantizedLinear), "a Llama, quantised"
    _copy(stored["token_embd.weight"], model.token_embedding.weight, model.config, path)
    _copy(stored["output_norm.weight"], model.norm.weight, model.config, path)
    head = stored.get("output.weight", stored["token_embd.weight"])
    model.head.weight = QuantizedLinear.of(_expanded(head, path), None, "int8").weight
    for layer, block in enumerate(model._blocks()):
        prefix = f"blk.{layer}"
        _copy(stored[f"{prefix}.attn_norm.weight"], block.norm_1.weight, model.config, path)
        _copy(stored[f"{prefix}.ffn_norm.weight"], block.norm_2.weight, model.config, path)
        for ours, theirs in _MATRICES.items():
            tensors = [stored[f"{prefix}.{name}.weight"] for name in theirs]
            parts = [[_our_order(x, t.name, model.config) for x in _four_bits(t)] for t in tensors]
            pairs, scale, offset = (torch.cat(part) for part in zip(*parts, strict=True))
            block.get_submodule(ours).weight = pack_pairs(pairs, scale, offset)


def _is_in_four_bits(stored: dict[str, Any]) -> bool:
    """Whether all matrices of the blocks are quantised as ours may be."""
    matrices = [t for name, t in stored.items() if name.startswith("blk.") and len(t.shape) == 2]
    return all(tensor.tensor_type.name in _FOUR_BITS for tensor in matrices)


def _four_bits(tensor: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of numbers (out, groups, 16), scales and offsets (out, groups) of a matrix, as `pack_pairs` takes them.

    A group of the file is its scale, in Q4_1 its offset, and its pairs.
    """
    rows, columns = int(tensor.shape[1]), int(tensor.shape[0])
    blocks = torch.from_numpy(np.array(tensor.data)).view(rows, columns // GROUP_PLACES, -1)
    scale = blocks[..., :2].contiguous().view(torch.float16).squeeze(-1)
    if tensor.tensor_type.name == "Q4_1":
        offset, pairs = blocks[..., 2:4].contiguous().view(torch.float16).squeeze(-1), blocks[..., 4:]
    else:
        offset, pairs = -8 * scale, blocks[..., 2:]
    return pairs, scale, offset


def _our_order(rows: Tensor, name: str, config: GPTConfig) -> Tensor:
    """What a matrix has for each row, for queries and keys with the two halves of each head one after the other."""
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return rows
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def text_parts(path: str | Path) -> TextParts:
    """Read tokenizer, chat template and special tokens of a GGUF file.

    Raises:
        ValueError: if the file is damaged, its tokenizer is no byte-level BPE that pygpt has, or the package ``gguf``
            is not installed.
    """
    return _text_parts(_open(path), path)


def _text_parts(reader: Any, path: str | Path) -> TextParts:
    kind, split = (_field(reader, f"tokenizer.ggml.{name}", path) for name in ("model", "pre"))
    if kind != "gpt2" or split not in ("gpt-2", "smollm"):
        raise ValueError(f"{path} has a tokenizer of kind {kind!r}, {split!r}; pygpt reads 'gpt2' with gpt-2 or smollm")
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens", path)
    types: list[int] = _field(reader, "tokenizer.ggml.token_type", path)
    if len(types) != len(tokens):
        raise ValueError(f"{path} has {len(tokens)} tokens, but types of {len(types)}")
    merges = [tuple(merge.split(" ", 1)) for merge in _field(reader, "tokenizer.ggml.merges", path)]
    special = [token for token, its_type in zip(tokens, types, strict=True) if its_type in _SPECIAL]
    try:
        backend = byte_level_bpe(
            {token: number for number, token in enumerate(tokens)}, merges, special, single_digits=split == "smollm"
        )
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{path} has no tokenizer that the tokenizers library makes: {error}") from error
    begins = _field(reader, "tokenizer.ggml.add_bos_token", path, False)
    begin = _field(reader, "tokenizer.ggml.bos_token_id", path, None) if begins else None
    end = _field(reader, "tokenizer.ggml.eos_token_id", path, None)
    for name, token in (("bos", begin), ("eos", end)):
        if token is not None and token >= len(tokens):
            raise ValueError(f"{path}: tokenizer.ggml.{name}_token_id is {token}, but there are {len(tokens)} tokens")
    template = _field(reader, "tokenizer.chat_template", path, None)
    return TextParts(BPETokenizer(backend, str(path)), template, "" if begin is None else tokens[begin], end)


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

    class Reader(GGUFReader):  # type: ignore[misc]
        """Slices the file as a plain array: a third of the time that slices of a memory map take."""

        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(np.ndarray)

    try:
        return Reader(path)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no GGUF file: {error}") from error


def _config(reader: Any, stored: dict[str, Any], path: str | Path) -> GPTConfig:
    architecture = _field(reader, "general.architecture", path)
    if architecture != "llama":
        raise ValueError(f"{path} holds a model of architecture {architecture!r}; pygpt reads 'llama'")
    # Where no type is said, a factor is that of linear scaling, which files of before call scale_linear.
    kind = _field(reader, "llama.rope.scaling.type", path, None)
    factors = [_field(reader, f"llama.rope.{name}", path, 1.0) for name in ("scaling.factor", "scale_linear")]
    if kind not in (None, "none") or (kind is None and any(factor not in (0.0, 1.0) for factor in factors)):
        raise ValueError(f"{path} stretches its rotary positions (rope.scaling), which pygpt does not")
    optional = {"num_kv_heads": None, "rope_theta": 10000.0}
    fields = {
        ours: _field(reader, f"llama.{theirs}", path, optional.get(ours, _REQUIRED)) for ours, theirs in _FIELDS.items()
    }
    tokens = reader.get_field("tokenizer.ggml.tokens")
    if tokens is None:
        raise ValueError(f"{path} says nothing of tokenizer.ggml.tokens")
    head_dim = _field(reader, "llama.attention.key_length", path, None)
    try:
        config = llama_config(
            vocab_size=len(tokens.data), head_dim=head_dim, tie_head="output.weight" not in stored, **fields
        )
    except (TypeError, ValueError) as error:  # of a configuration, which does not know where its values come from
        raise ValueError(f"{path}: {error}") from error
    turned = _field(reader, "llama.rope.dimension_count", path, config.head_dim)
    if turned != config.head_dim:
        raise ValueError(f"{path} turns {turned} of a head's {config.head_dim} elements, and pygpt all or none")
    return config


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
