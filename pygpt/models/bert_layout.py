"""An `Encoder` in the layout of Hugging Face's BERT: ``BertModel``, ``BertForPreTraining`` and their like."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from pygpt.models.encoder import Encoder, EncoderConfig
from pygpt.models.layout import Layout, attention_rows, is_plain, our_activation, require_fixed, their_activation

# Settings that change the computation -> the only value that we can compute with, which is also their default.
_FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}

# Ours -> Hugging Face's, and what config.json may leave out, as transformers.BertConfig has it.
_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 30522),
    "context_length": ("max_position_embeddings", 512),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "embedding_dim": ("hidden_size", 768),
    "hidden_dim": ("intermediate_size", 3072),
    "num_segments": ("type_vocab_size", 2),
    "layer_norm_eps": ("layer_norm_eps", 1e-12),
    "attention_dropout": ("attention_probs_dropout_prob", 0.1),
    "dropout": ("hidden_dropout_prob", 0.1),
    "init_std": ("initializer_range", 0.02),
}

# Whether there are pooler, masked-LM head, next-sentence head and labels -> the class of transformers.
_ARCHITECTURES = {
    (False, False, False, False): "BertModel",
    (True, False, False, False): "BertModel",
    (False, True, False, False): "BertForMaskedLM",
    (True, False, True, False): "BertForNextSentencePrediction",
    (True, True, True, False): "BertForPreTraining",
    (True, False, False, True): "BertForSequenceClassification",
}

# Modules of ours outside and inside of blocks -> theirs.
_OUTSIDE = {
    "token_embedding": "embeddings.word_embeddings",
    "segment_embedding": "embeddings.token_type_embeddings",
    "stack.position_embedding": "embeddings.position_embeddings",
    "stack.embedding_norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
    "mlm_transform": "cls.predictions.transform.dense",
    "mlm_norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions.decoder",
    "nsp_head": "cls.seq_relationship",
    "label_head": "classifier",
}
_INSIDE = {
    "attention.out": "attention.output.dense",
    "norm_1": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "norm_2": "output.LayerNorm",
}


def _canonical(name: str) -> str | None:
    name = name.removeprefix("bert.")
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)  # as TensorFlow called them
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    if name == "cls.predictions.decoder.bias":
        return "cls.predictions.bias"
    return None if name == "embeddings.position_ids" else name


def _config(values: dict[str, Any], names: Collection[str], path: Path) -> EncoderConfig:
    require_fixed(values, _FIXED, path)
    return EncoderConfig.from_dict(
        {
            **{ours: values.get(theirs, default) for ours, (theirs, default) in _FIELDS.items()},
            "activation": our_activation(values, "hidden_act", "gelu", path),
            "tie_head": values.get("tie_word_embeddings", True),
            "pooler": "pooler.dense.weight" in names,
            "mlm_head": "cls.predictions.transform.dense.weight" in names,
            "nsp_head": "cls.seq_relationship.weight" in names,
            "labels": _labels(values, path) if "classifier.weight" in names else (),
        }
    )


def _labels(values: dict[str, Any], path: Path) -> tuple[str, ...]:
    """The names of the classes; those that transformers gives where config.json has none."""
    names = values.get("id2label")
    if names is None:
        return tuple(f"LABEL_{number}" for number in range(values.get("num_labels", 2)))
    if not isinstance(names, dict) or set(names) != {str(number) for number in range(len(names))}:
        raise ValueError(f"{path}: id2label should name the classes 0, 1, …, but is {names!r}")
    return tuple(names[str(number)] for number in range(len(names)))


def _heads(config: EncoderConfig) -> tuple[bool, bool, bool, bool]:
    return config.pooler, config.mlm_head, config.nsp_head, bool(config.labels)


def _targets(model: Encoder) -> dict[str, Tensor]:
    targets: dict[str, Tensor] = {}
    for ours, theirs in _OUTSIDE.items():
        module = getattr(model.stack, ours[6:]) if ours.startswith("stack.") else getattr(model, ours)
        if module is not None:
            targets |= {f"{theirs}.{leaf}": parameter for leaf, parameter in module.named_parameters()}
    if model.mlm_bias is not None:
        targets["cls.predictions.bias"] = model.mlm_bias
    for layer, block in enumerate(model.stack.blocks):
        prefix = f"encoder.layer.{layer}"
        for ours, theirs in _INSIDE.items():
            parameters = block.get_submodule(ours).named_parameters()
            targets |= {f"{prefix}.{theirs}.{leaf}": parameter for leaf, parameter in parameters}
        for leaf in ("weight", "bias"):
            parts = attention_rows(block.attention, leaf)
            for part, rows in zip(("query", "key", "value"), parts, strict=True):
                targets[f"{prefix}.attention.self.{part}.{leaf}"] = rows
    return targets


def _fits(config: EncoderConfig) -> bool:
    return (
        is_plain(config)
        and config.norm == "post"
        and config.num_segments > 0
        and config.embedding_dropout == config.residual_dropout == config.dropout
        and _heads(config) in _ARCHITECTURES
    )


def _values(model: Encoder) -> dict[str, Any]:
    config = model.config
    return {
        "architectures": [_ARCHITECTURES[_heads(config)]],
        **{theirs: getattr(config, ours) for ours, (theirs, _) in _FIELDS.items()},
        "hidden_act": their_activation(config.activation),
        "tie_word_embeddings": config.tie_head,
        **_named(config.labels),
    }


def _named(labels: tuple[str, ...]) -> dict[str, Any]:
    if not labels:
        return {}
    numbers = {label: number for number, label in enumerate(labels)}
    return {"id2label": {str(number): label for label, number in numbers.items()}, "label2id": numbers}


def _stored(model: Encoder) -> dict[str, Tensor]:
    """As files have them: in a model with heads the part without begins with ``bert.``."""
    heads = model.config.mlm_head or model.config.nsp_head or bool(model.config.labels)
    targets = _targets(model).items()
    return {
        f"bert.{name}" if heads and not name.startswith(("cls.", "classifier.")) else name: target
        for name, target in targets
    }


BERT = Layout(
    "bert", Encoder, _canonical, _config, _targets, _fits, _values, _stored, head="cls.predictions.decoder.weight"
)
