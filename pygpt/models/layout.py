"""How a kind of model lies on disk: what its config.json says, and what its weights are called there."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor


class Layout(NamedTuple):
    """A kind of folder.

    Attributes:
        model_type: what config.json calls it.
        model: the class that it is read as.
        canonical: a stored weight's name as ``targets`` has it, for those that files spell in several ways; None for
            what is no weight or stands elsewhere too.
        config: the configuration that config.json's values (without model_type) and the canonical names of the
            weights describe. The path is for errors.
        targets: the model's parameters by their canonical names, as views of the shape that they have in files.
        fits: whether a configuration can be said in this layout.
        values: what config.json says of a model besides its model_type.
        stored: the weights as files have them: under the names of ``targets``, or in one of the spellings.
        head: the head's canonical name; files may hold it where it is tied to the token embedding.
        zeros: canonical names of weights that models here have not; in files they must be zero.
    """

    model_type: str
    model: type[Any]
    canonical: Callable[[str], str | None]
    config: Callable[[dict[str, Any], Collection[str], Path], Any]
    targets: Callable[[Any], dict[str, Tensor]]
    fits: Callable[[Any], bool]
    values: Callable[[Any], dict[str, Any]]
    stored: Callable[[Any], dict[str, Tensor]]
    head: str
    zeros: tuple[str, ...] = ()


def require_fixed(values: dict[str, Any], fixed: dict[str, Any], path: Path) -> None:
    """Refuse settings that change the computation from the only one that there is. Raises: ValueError."""
    for name, only in fixed.items():
        if values.get(name, only) != only:
            raise ValueError(f"{path}: {name} is {values[name]!r}; pygpt computes with {only!r} only")


def our_activation(values: dict[str, Any], name: str, default: str, path: Path) -> str:
    """Our name of the activation that config.json gives under ``name``. Raises: ValueError if we have none."""
    theirs = values.get(name, default)
    if theirs not in ACTIVATIONS:
        raise ValueError(f"{path}: {name} is {theirs!r}; pygpt computes with {', '.join(ACTIVATIONS)} only")
    return ACTIVATIONS[theirs]


def their_activation(ours: str) -> str:
    """Hugging Face's name of an activation."""
    return next(theirs for theirs, mine in ACTIVATIONS.items() if mine == ours)


def is_plain(config: Any) -> bool:
    """Whether a model has nothing that GPT-2, BERT and BART have not: gates, rotary positions, other norms, biases."""
    return (
        config.activation in ACTIVATIONS.values()
        and config.norm_type == "layer"
        and config.bias
        and not config.qk_norm
        and config.positions == "learned"
        and config.num_kv_heads == config.num_heads
        and config.num_heads * config.head_dim == config.embedding_dim
        and all(window is None for window in config.attention_windows)
    )


def attention_rows(attention: Any, leaf: str) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of ``qkv.weight`` or ``qkv.bias`` that are the queries', the keys' and the values'."""
    heads, kv_heads = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
    q, k, v = getattr(attention.qkv, leaf).split([heads, kv_heads, kv_heads])
    return q, k, v


# Hugging Face's name of an activation -> ours. The first of ours is what we write.
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
