from __future__ import annotations

import copy

import pytest
import torch

from pygpt import reference
from pygpt.nn import MultiHeadAttention
from tests.support import assert_near, normal


class Plain(torch.nn.Module):
    """A model around PyTorch's own attention, or what takes its place."""

    def __init__(self, attention: torch.nn.Module, width: int) -> None:
        super().__init__()
        self.before = torch.nn.Linear(width, width)
        self.attention = attention
        self.after = torch.nn.Linear(width, 3)

    def forward(self, x, context=None):
        x = self.before(x)
        if isinstance(self.attention, MultiHeadAttention):
            return self.after(self.attention(x, context, causal=context is None))
        memory = x if context is None else context
        time = x.shape[1]
        hidden = torch.ones(time, time, dtype=torch.bool).triu(1) if context is None else None
        return self.after(self.attention(x, memory, memory, attn_mask=hidden, need_weights=False)[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cross", [True, False])
def test_takes_the_place_of_torchs(generator, bias, cross):
    width, heads = 12, 3
    theirs = torch.nn.MultiheadAttention(width, heads, bias=bias, batch_first=True)
    ours = MultiHeadAttention(width, heads, bias=bias)
    state = {"qkv.weight": theirs.in_proj_weight, "out.weight": theirs.out_proj.weight}
    if bias:
        torch.nn.init.normal_(theirs.in_proj_bias, generator=generator)
        state |= {"qkv.bias": theirs.in_proj_bias, "out.bias": theirs.out_proj.bias}
    ours.load_state_dict(state)
    plain = Plain(theirs, width)
    swapped = copy.deepcopy(plain)
    swapped.attention = ours
    x, context = normal(generator, 2, 5, width), normal(generator, 2, 4, width) if cross else None
    results = []
    for model, dtype in ((swapped, torch.float32), (plain, torch.float64)):
        model = copy.deepcopy(model).to(dtype)
        leaf = x.to(dtype, copy=True).requires_grad_()
        out = model(leaf, None if context is None else context.to(dtype))
        out.square().sum().backward()
        qkv = model.attention.qkv if model.attention.__class__ is MultiHeadAttention else None
        weight = qkv.weight if qkv else model.attention.in_proj_weight
        results.append([out.detach(), leaf.grad, weight.grad, model.before.weight.grad])
    for ours, exact in zip(*results, strict=True):
        assert_near(ours, exact, "attention")


def test_grouped_heads_and_options(generator):
    width, heads, kv_heads, head_dim = 10, 4, 2, 3
    module = MultiHeadAttention(width, heads, kv_heads, head_dim, bias=False)
    x = normal(generator, 2, 6, width)
    options = {"causal": True, "window": 3, "key_lengths": torch.tensor([6, 2]), "softcap": 2.0}
    out, weights, lse = module(x, **options, return_weights=True, return_lse=True)
    rows = module.qkv.weight.detach()
    q, k, v = (
        reference.linear(x, part).view(2, 6, -1, head_dim) for part in rows.split([12, kv_heads * 3, kv_heads * 3])
    )
    attended, right_weights, right_lse = reference.attention(q, k, v, **options, return_weights=True, return_lse=True)
    exact = reference.linear(attended.flatten(2), module.out.weight.detach())
    assert_near(out.detach(), exact, "output")
    torch.testing.assert_close(weights, right_weights.float())
    torch.testing.assert_close(lse.detach(), right_lse.float())


def test_dropout_acts_in_training_only(generator):
    module = MultiHeadAttention(8, 2, dropout=0.5)
    x = normal(generator, 2, 16, 8)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((10, 3), "width must be a multiple of num_heads, but 10 is none of 3"),
        ((12, 4, 3), "num_heads must be a multiple of num_kv_heads, but 4 is none of 3"),
        ((12, 4, 0), "num_heads must be a multiple of num_kv_heads"),
    ],
)
def test_bad_shapes(arguments, words):
    with pytest.raises(ValueError, match=words):
        MultiHeadAttention(*arguments)
