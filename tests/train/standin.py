"""A model and batches that are small enough to train in milliseconds, with the interfaces that the trainer uses."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

VOCABULARY = 11


class TinyModel(nn.Module):
    """Predicts a token from the one before it, with dropout so that random streams matter."""

    def __init__(self, width: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, VOCABULARY)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(self.dropout(self.norm(self.embedding(ids))))
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def save_pretrained(self, folder: Path) -> None:
        save_file(self.state_dict(), folder / "model.safetensors")

    def load(self, folder: Path) -> None:
        self.load_state_dict(load_file(folder / "model.safetensors"))


class TinyBatches:
    """Batch n is drawn from the seed n; every third has targets that are ignored."""

    def __init__(self, batch: int = 4, time: int = 6) -> None:
        self.shape = (batch, time + 1)
        self.position = 0

    def __next__(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.position)
        tokens = torch.randint(VOCABULARY, self.shape, generator=generator)
        tokens[:, 1:] = (tokens[:, :-1] + 1) % VOCABULARY  # something to learn
        targets = tokens[:, 1:].clone()
        if self.position % 3 == 0:
            targets[0] = -100
        self.position += 1
        return tokens[:, :-1], targets

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
