"""A model with other tables and heads: what fine-tuning adds to a pre-trained one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch

from pygpt.models.transformer import Transformer

Model = TypeVar("Model", bound=Transformer)

NOISE = 0.1  # of a new token beside the spread of initial weights: enough to tell new tokens apart


@torch.no_grad()
def reshaped(model: Model, seed: int = 0, **changes: Any) -> Model:
    """A copy of a model whose configuration differs in vocabulary, labels or heads.

    What both have is copied. A new token begins as the mean of all others, with a little noise: it is then about as
    likely as the average token, and says as little. New heads have initial weights.

    Args:
        model: stays as it is.
        seed: decides what is drawn.
        changes: fields of the configuration; ``vocab_size`` can grow only.

    Returns:
        The new model, in the mode, and on the device, of the other.

    Raises:
        ValueError: if the changes do not fit, parameters of the model do not fit the new one, or it is quantised.

    Source: Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021.
    """
    if model.quantization is not None:
        raise ValueError("a quantised model keeps its shape: change the model that it was made from")
    weight = model.token_embedding.weight
    config = replace(model.config, **changes)
    with torch.random.fork_rng([weight.device] if weight.device.type == "cuda" else []):
        torch.manual_seed(seed)
        made: Any = type(model)(config, device=weight.device, dtype=weight.dtype)  # type: ignore[call-arg]
    before = dict(model.named_parameters())
    for name, new in made.named_parameters():
        old = before.get(name)
        if old is None:
            continue
        rows = len(old)
        if old.shape[1:] != new.shape[1:] or rows > len(new):
            raise ValueError(f"{name} has shape {tuple(old.shape)}, which does not fit into {tuple(new.shape)}")
        new[rows:] = old.mean(0) + NOISE * new[rows:]
        new[:rows] = old
    made.train(model.training)
    return made  # type: ignore[no-any-return]
