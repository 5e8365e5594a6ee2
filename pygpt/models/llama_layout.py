"""A `GPT` in the layout of Hugging Face's Llama, and of models like it: ``LlamaForCausalLM``."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from pygpt.models.config import GPTConfig
from pygpt.models.gpt import GPT
from pygpt.models.layout import Layout, attention_rows, require_fixed

# Settings that change the computation -> the only value that we can compute with, which is also their default.
_FIXED = {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rope_scaling": None}

# Ours -> Hugging Face's, and what config.json may leave out, as transformers.LlamaConfig has it.
_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 32000),
    "context_length": ("max_position_embeddings", 2048),
    "num_layers": ("num_hidden_layers", 32),
    "num_heads": ("num_attention_heads", 32),
    "num_kv_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "embedding_dim": ("hidden_size", 4096),
    "hidden_dim": ("intermediate_size", 11008),
    "layer_norm_eps": ("rms_norm_eps", 1e-6),
    "attention_dropout": ("attention_dropout", 0.0),
    "init_std": ("initializer_range", 0.02),
}
_ACTIVATIONS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}

# Modules of a block of ours -> theirs.
_INSIDE = {
    "norm_1": "input_layernorm",
    "attention.out": "self_attn.o_proj",
    "norm_2": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}


def llama_config(**fields: Any) -> GPTConfig:
    """The configuration of a Llama: everything that the fields do not say."""
    kind = {"positions": "rope", "norm_type": "rms", "norm": "pre", "bias": False}
    return GPTConfig.from_dict({"activation": "swiglu", **kind, **fields})


def _canonical(name: str) -> str | None:
    name = name.removeprefix("model.")
    return None if re.fullmatch(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", name) else name


def _config(values: dict[str, Any], names: Collection[str], path: Path) -> GPTConfig:
    rope = values.get("rope_parameters") or {}
    require_fixed(values, _FIXED, path)
    if not isinstance(rope, dict):
        raise ValueError(f"{path}: rope_parameters should hold a JSON object, but is {rope!r}")
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"{path}: rope_type is {rope['rope_type']!r}; pygpt computes with 'default' only")
    activation = values.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{path}: hidden_act is {activation!r}; pygpt computes with {', '.join(_ACTIVATIONS)} only")
    return llama_config(
        **{ours: values.get(theirs, default) for ours, (theirs, default) in _FIELDS.items()},
        activation=_ACTIVATIONS[activation],
        rope_theta=rope.get("rope_theta", values.get("rope_theta", 10000.0)),
        tie_head=values.get("tie_word_embeddings", False),
    )


def _targets(model: GPT) -> dict[str, Tensor]:
    assert model.norm is not None, "a model that fits this layout normalises before its blocks"
    targets: dict[str, Tensor] = {
        "embed_tokens.weight": model.token_embedding.weight,
        "norm.weight": model.norm.weight,
    }
    if model.head is not None:
        targets["lm_head.weight"] = model.head.weight
    for layer, block in enumerate(model.blocks):
        prefix = f"layers.{layer}"
        for ours, theirs in _INSIDE.items():
            targets[f"{prefix}.{theirs}.weight"] = block.get_submodule(ours).get_parameter("weight")
        for part, rows in zip("qkv", attention_rows(block.attention, "weight"), strict=True):
            targets[f"{prefix}.self_attn.{part}_proj.weight"] = rows
    return targets


def _fits(config: GPTConfig) -> bool:
    return (
        config.activation in _ACTIVATIONS.values()
        and config.positions == "rope"
        and config.norm_type == "rms"
        and config.norm == "pre"
        and not config.bias
        and not config.qk_norm
        and config.embedding_dropout == config.residual_dropout == 0
        and all(window is None for window in config.attention_windows)
    )


def _values(model: GPT) -> dict[str, Any]:
    config = model.config
    return {
        "architectures": ["LlamaForCausalLM"],
        **{theirs: getattr(config, ours) for ours, (theirs, _) in _FIELDS.items()},
        "hidden_act": next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation),
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_head,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _stored(model: GPT) -> dict[str, Tensor]:
    return {name if name == "lm_head.weight" else f"model.{name}": t for name, t in _targets(model).items()}


LLAMA = Layout("llama", GPT, _canonical, _config, _targets, _fits, _values, _stored, head="lm_head.weight")
