"""A `GPT` in the layout of Hugging Face's GPT-2, ``GPT2LMHeadModel``, whose maps are stored (in, out)."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from pygpt.models.config import GPTConfig
from pygpt.models.gpt import GPT
from pygpt.models.layout import Layout, is_plain, our_activation, require_fixed, their_activation

END_OF_TEXT = 50256  # in GPT-2's vocabulary

# Settings that change the computation -> the only value that we can compute with, which is also their default.
_FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}

# Ours -> Hugging Face's, where both have a number of the same meaning.
_SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "embedding_dim": "n_embd",
    "hidden_dim": "n_inner",
    "layer_norm_eps": "layer_norm_epsilon",
    "embedding_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "residual_dropout": "resid_pdrop",
    "init_std": "initializer_range",
}
# What config.json may leave out, as transformers.GPT2Config has it.
_DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "initializer_range": 0.02,
}

# Parts of our names -> parts of Hugging Face's; in a block, our map is stored transposed.
_OUTSIDE = {
    "token_embedding": "wte",
    "position_embedding": "wpe",
    "norm": "ln_f",
}
_MAPS = {
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}
_NORMS = {"norm_1": "ln_1", "norm_2": "ln_2"}

# The causal mask, which old files carry along.
_BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def _canonical(name: str) -> str | None:
    name = name.removeprefix("transformer.")
    return None if _BUFFERS.fullmatch(name) else name


def _config(values: dict[str, Any], names: Collection[str], path: Path) -> GPTConfig:
    require_fixed(values, _FIXED, path)
    sizes = {ours: values.get(theirs, _DEFAULTS[theirs]) for ours, theirs in _SIZES.items()}
    return GPTConfig.from_dict(
        {
            **sizes,
            "activation": our_activation(values, "activation_function", "gelu_new", path),
            "tie_head": values.get("tie_word_embeddings", True),
            "dropout": sizes["residual_dropout"],
        }
    )


def _targets(model: GPT) -> dict[str, Tensor]:
    targets: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        if path == "head":
            targets["lm_head.weight"] = parameter
        elif path in _OUTSIDE:
            targets[f"{_OUTSIDE[path]}.{leaf}"] = parameter
        else:
            _, layer, part = path.split(".", 2)
            theirs = f"h.{layer}.{_MAPS.get(part) or _NORMS[part]}.{leaf}"
            targets[theirs] = parameter.T if part in _MAPS and leaf == "weight" else parameter
    return targets


def _fits(config: GPTConfig) -> bool:
    return is_plain(config) and config.norm == "pre"


def _values(model: GPT) -> dict[str, Any]:
    config = model.config
    return {
        "architectures": ["GPT2LMHeadModel"],
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        **_FIXED,
        "activation_function": their_activation(config.activation),
        "tie_word_embeddings": config.tie_head,
        **dict.fromkeys(("bos_token_id", "eos_token_id"), END_OF_TEXT if config.vocab_size > END_OF_TEXT else None),
    }


def _stored(model: GPT) -> dict[str, Tensor]:
    return {name if name == "lm_head.weight" else f"transformer.{name}": t for name, t in _targets(model).items()}


GPT2 = Layout("gpt2", GPT, _canonical, _config, _targets, _fits, _values, _stored, head="lm_head.weight")
