"""A table of vectors as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pygpt import ops


class Embedding(nn.Module):
    """``pygpt.ops.embedding`` with its table.

    Args:
        num_embeddings: how many vectors the table has.
        embedding_dim: how long each is.
        device: where the table is made.
        dtype: of the table.

    The key of the state dict is `torch.nn.Embedding`'s: ``weight`` (num_embeddings, embedding_dim). So is the
    initialisation.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table from the standard normal distribution."""
        nn.init.normal_(self.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up (...) int64 ids: (..., embedding_dim)."""
        return ops.embedding(ids, self.weight)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.num_embeddings}, {self.embedding_dim}"
