"""What blocks and what stands around them have in common in all models: which dropout is where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pygpt import GPT, Encoder, EncoderConfig, Seq2Seq, Seq2SeqConfig, ops
from tests.models.test_config import small

SHAPE = {"vocab_size": 23, "context_length": 16, "num_layers": 2, "num_heads": 4, "embedding_dim": 24}
DROPOUT = {"embedding_dropout": 0.1, "attention_dropout": 0.2, "residual_dropout": 0.3}
IDS = torch.arange(6).view(2, 3)
EMBEDDING, ATTENTION, RESIDUAL = ("dropout", 0.1), ("attention", 0.2), ("dropout", 0.3)
BLOCK = [ATTENTION, RESIDUAL, RESIDUAL]
DECODER = [ATTENTION, RESIDUAL, *BLOCK]

MODELS = {
    "gpt": (lambda: GPT(small(**DROPOUT))(IDS), [EMBEDDING, *2 * BLOCK]),
    "gated": (lambda: GPT(small(**DROPOUT, activation="swiglu"))(IDS), [EMBEDDING, *2 * BLOCK]),
    "norm after": (lambda: GPT(small(**DROPOUT, norm="post"))(IDS), [EMBEDDING, *2 * BLOCK]),
    "encoder": (lambda: Encoder(EncoderConfig(**SHAPE, **DROPOUT))(IDS), [EMBEDDING, *2 * BLOCK]),
    "encoder-decoder": (
        lambda: Seq2Seq(Seq2SeqConfig(**SHAPE, **DROPOUT))(IDS, IDS),
        [EMBEDDING, *2 * BLOCK, EMBEDDING, *2 * DECODER],
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_each_site_has_its_own_dropout(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the forward pass: of the embeddings, of attention's weights, of what a block adds."""
    seen: list[tuple[str, float]] = []
    dropout = ops.dropout

    def seen_dropout(x: torch.Tensor, p: float) -> torch.Tensor:
        seen.append(("dropout", p))
        return dropout(x, p)

    def watched(attention: Callable[..., Any]) -> Callable[..., Any]:
        def seen_attention(*tensors: Any, **options: Any) -> Any:
            seen.append(("attention", options["dropout"]))
            return attention(*tensors, **options)

        return seen_attention

    monkeypatch.setattr(ops, "dropout", seen_dropout)
    for name in ("attention", "attention_packed"):
        monkeypatch.setattr(ops, name, watched(getattr(ops, name)))
    run, expected = MODELS[kind]
    run()
    assert seen == expected
