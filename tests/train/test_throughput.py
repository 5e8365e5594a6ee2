"""The arithmetic per token counts every matrix that tokens are multiplied with, and the keys that are seen."""

import pytest

from pygpt import GPT
from pygpt.train.throughput import flops_per_token
from tests.models.test_config import small


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_every_matrix_is_counted(activation: str) -> None:
    config = small(activation=activation, num_kv_heads=2, positions="none", hidden_dim=31, context_length=5)
    matrices = sum(p.numel() for p in GPT(config, device="meta").parameters() if p.dim() == 2)
    scores = config.num_layers * config.embedding_dim * (1 + 2 + 3 + 4 + 5) / 5
    assert flops_per_token(config) == 3 * (2 * matrices + 4 * scores)
