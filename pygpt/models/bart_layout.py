"""A `Seq2Seq` in the layout of Hugging Face's BART, ``BartForConditionalGeneration``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pygpt.models.layout import Layout, attention_rows, is_plain, our_activation, require_fixed, their_activation
from pygpt.models.seq2seq import Seq2Seq, Seq2SeqConfig

LAYER_NORM_EPS = 1e-5  # which BART's config.json does not say
POSITION_OFFSET = 2

# Settings that change the computation -> the only value that we can compute with, which is also their default.
_FIXED = {"normalize_before": False, "add_final_layer_norm": False, "static_position_embeddings": False}

# Ours -> Hugging Face's, and what config.json may leave out, as transformers.BartConfig has it.
_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 50265),
    "context_length": ("max_position_embeddings", 1024),
    "num_layers": ("encoder_layers", 12),
    "num_decoder_layers": ("decoder_layers", 12),
    "num_heads": ("encoder_attention_heads", 16),
    "embedding_dim": ("d_model", 1024),
    "hidden_dim": ("encoder_ffn_dim", 4096),
    "attention_dropout": ("attention_dropout", 0.0),
    "dropout": ("dropout", 0.1),
    "init_std": ("init_std", 0.02),
    "scale_embedding": ("scale_embedding", False),
    "start_token": ("decoder_start_token_id", 2),
    "end_token": ("eos_token_id", 2),
    "pad_token": ("pad_token_id", 1),
}

# Modules of a block of ours -> theirs. Those of "cross" are in decoders only.
_INSIDE = {
    "attention.out": "self_attn.out_proj",
    "norm_1": "self_attn_layer_norm",
    "cross_attention.out": "encoder_attn.out_proj",
    "cross_norm": "encoder_attn_layer_norm",
    "feed_forward.up": "fc1",
    "feed_forward.down": "fc2",
    "norm_2": "final_layer_norm",
}
_ATTENTIONS = {"attention": "self_attn", "cross_attention": "encoder_attn"}


def _canonical(name: str) -> str | None:
    name = name.removeprefix("model.")
    if name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        return "shared.weight"
    return name


def _config(values: dict[str, Any], names: Collection[str], path: Path) -> Seq2SeqConfig:
    require_fixed(values, _FIXED, path)
    for ours, theirs in (
        ("encoder_attention_heads", "decoder_attention_heads"),
        ("encoder_ffn_dim", "decoder_ffn_dim"),
    ):
        default = next(default for name, default in _FIELDS.values() if name == ours)
        if values.get(ours, default) != values.get(theirs, default):
            raise ValueError(f"{path}: {ours} and {theirs} differ; pygpt has one width for both sides")
    fields = {ours: values.get(theirs, default) for ours, (theirs, default) in _FIELDS.items()}
    if fields["start_token"] is None:
        fields["start_token"] = fields["end_token"]
    return Seq2SeqConfig.from_dict(
        {
            **fields,
            "activation": our_activation(values, "activation_function", "gelu", path),
            "positions": "learned",
            "position_offset": POSITION_OFFSET,
            "embedding_norm": True,
            "layer_norm_eps": LAYER_NORM_EPS,
            "tie_head": values.get("tie_word_embeddings", True),
        }
    )


def _targets(model: Seq2Seq) -> dict[str, Tensor]:
    targets: dict[str, Tensor] = {"shared.weight": model.token_embedding.weight}
    if model.head is not None:
        targets["lm_head.weight"] = model.head.weight
    for side, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        outside = {"embed_positions": stack.position_embedding, "layernorm_embedding": stack.embedding_norm}
        for theirs, module in outside.items():
            assert module is not None, "a model that fits this layout has learned positions and an embedding norm"
            targets |= {f"{side}.{theirs}.{leaf}": parameter for leaf, parameter in module.named_parameters()}
        for layer, block in enumerate(stack.blocks):
            prefix = f"{side}.layers.{layer}"
            for ours, theirs in _INSIDE.items():
                if side == "encoder" and ours.startswith("cross"):
                    continue
                parameters = block.get_submodule(ours).named_parameters()
                targets |= {f"{prefix}.{theirs}.{leaf}": parameter for leaf, parameter in parameters}
            for ours, theirs in _ATTENTIONS.items():
                if getattr(block, ours) is None:
                    continue
                for leaf in ("weight", "bias"):
                    parts = attention_rows(getattr(block, ours), leaf)
                    for part, rows in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                        targets[f"{prefix}.{theirs}.{part}.{leaf}"] = rows
    return targets


def _fits(config: Seq2SeqConfig) -> bool:
    return (
        is_plain(config)
        and config.position_offset == POSITION_OFFSET
        and config.embedding_norm
        and config.norm == "post"
        and config.layer_norm_eps == LAYER_NORM_EPS
        and config.embedding_dropout == config.residual_dropout == config.dropout
        and config.end_token is not None
    )


def _values(model: Seq2Seq) -> dict[str, Any]:
    config = model.config
    return {
        "architectures": ["BartForConditionalGeneration"],
        **{theirs: getattr(config, ours) for ours, (theirs, _) in _FIELDS.items()},
        "decoder_attention_heads": config.num_heads,
        "decoder_ffn_dim": config.hidden_dim,
        "activation_function": their_activation(config.activation),
        "activation_dropout": 0.0,
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tie_head,
        "forced_eos_token_id": config.end_token,
        "bos_token_id": 0,
    }


def _stored(model: Seq2Seq) -> dict[str, Tensor]:
    """As files have them, with the bias of the head that BART has and does not train."""
    targets = {name if name == "lm_head.weight" else f"model.{name}": t for name, t in _targets(model).items()}
    zeros = torch.zeros(1, model.config.vocab_size, dtype=model.token_embedding.weight.dtype)
    return {**targets, "final_logits_bias": zeros}


BART = Layout(
    "bart",
    Seq2Seq,
    _canonical,
    _config,
    _targets,
    _fits,
    _values,
    _stored,
    head="lm_head.weight",
    zeros=("final_logits_bias",),
)
