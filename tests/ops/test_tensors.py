"""How ops take tensors, whichever op it is."""

from __future__ import annotations

import torch

from pygpt import ops


def test_what_is_empty_is_contiguous_whatever_its_strides():
    x = torch.zeros(0, 3, 2).transpose(1, 2)  # (0, 2, 3)
    ids = torch.zeros(0, 3, 2, dtype=torch.int64).transpose(1, 2)
    assert x.is_contiguous() and x.stride() == (6, 1, 2)
    weight, matrix = torch.ones(3), torch.ones(4, 3)
    for out in (
        ops.add(x, x),
        ops.layer_norm(x, weight),
        ops.rms_norm(x, weight),
        ops.dropout(x, 0.5),
        ops.gated_product(x, x),
        ops.linear(x, torch.ones(3, 3)),
        ops.feed_forward(x, matrix, None, matrix.T.contiguous(), None),
    ):
        assert out.shape == x.shape
    assert ops.embedding(ids, matrix).shape == (0, 2, 3, 3)
    assert float(ops.cross_entropy(x, ids[..., 0])) == 0
    assert float(ops.grad_norm([x])) == 0
