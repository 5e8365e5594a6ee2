from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import pygpt
from pygpt import ops, reference
from tests.support import (
    assert_accurate,
    assert_bits_hold,
    assert_same_bits,
    dtypes_of,
    gradients,
    least_accurate,
    normal,
    on_the_cpu,
    random_generator,
    smaller,
    strided,
)


def torch_linear_cross_entropy(hidden, weight, targets, bias, ignore_index=-100, reduction="mean"):
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), ignore_index=ignore_index, reduction=reduction
    ).view(targets.shape if reduction == "none" else ())


def inputs(generator, rows, width, vocabulary, dtype=torch.float32):
    """hidden, weight, bias with logits of about 2, and targets of which about a quarter are ignored."""
    hidden = normal(generator, *rows, width, dtype=dtype)
    weight = normal(generator, vocabulary, width, dtype=dtype) * 2 * width**-0.5
    targets = torch.randint(0, vocabulary, tuple(rows), generator=generator)
    targets[torch.rand(tuple(rows), generator=generator) < 0.25] = -100
    return [hidden, weight, normal(generator, vocabulary, dtype=dtype)], targets


def run(function, targets, tensors, reduction, grad):
    """The loss, and its gradients."""
    (loss,), grads = gradients(
        lambda hidden, weight, bias: function(hidden, weight, targets, bias, reduction=reduction), tensors, [grad]
    )
    return [loss, *grads]


def peers(generator, targets, tensors, reduction, grad):
    """PyTorch's loss and gradients, with the width and the vocabulary in several orders."""

    def in_some_order(hidden, weight, targets, bias, reduction):
        tokens, width = (torch.randperm(n, generator=generator) for n in weight.shape)
        moved = torch.where(targets == -100, -100, tokens.argsort()[targets.clamp(min=0)])
        return torch_linear_cross_entropy(
            hidden[..., width], weight[tokens][:, width], moved, bias[tokens], reduction=reduction
        )

    functions = (torch_linear_cross_entropy, *[in_some_order] * 7)
    return [run(function, targets, tensors, reduction, grad) for function in functions]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows, width, vocabulary", [(40, 33, 70), (150, 16, 1300)])
def test_loss_and_gradients_match_the_reference(implementation, generator, rows, width, vocabulary, reduction):
    for dtype in dtypes_of(implementation):
        if dtype == torch.float64 and vocabulary > 1000:
            continue  # the reference's own error is of the size of what is allowed
        tensors, targets = inputs(generator, (rows,), width, vocabulary, dtype)
        targets[0] = 1
        shape = (rows,) if reduction == "none" else ()
        number = torch.float64 if dtype == torch.float64 else torch.float32
        grad = normal(generator, *shape, dtype=number)
        upcast = [t.double() for t in tensors]
        ours = run(ops.linear_cross_entropy, targets, tensors, reduction, grad)
        exact = run(reference.linear_cross_entropy, targets, upcast, reduction, grad.double())
        peer = least_accurate(peers(generator, targets, tensors, reduction, grad.to(dtype)), exact)
        assert ours[0].dtype == number
        for name, mine, right, theirs in zip(("loss", "hidden", "weight", "bias"), ours, exact, peer, strict=True):
            assert_accurate(mine, right, theirs, f"{name}, {dtype}")


@given(
    rows=st.lists(st.integers(0, 5), max_size=2),
    width=st.integers(1, 20),
    vocabulary=st.sampled_from([1, 2, 31, 33, 511, 513]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
)
@example(rows=[0], width=3, vocabulary=5, reduction="mean")
@example(rows=[], width=1, vocabulary=1, reduction="none")
def test_the_loss_has_the_bits_of_cross_entropy(implementation, rows, width, vocabulary, reduction):
    for dtype in dtypes_of(implementation):
        (hidden, weight, bias), targets = inputs(random_generator(), rows, width, vocabulary, dtype)
        number = torch.float64 if dtype == torch.float64 else torch.float32
        loss = ops.linear_cross_entropy(hidden, weight, targets, bias, reduction=reduction)
        plain = implementation.removesuffix("_bf16").replace("sm90", "sm80")
        with pygpt.force("linear", implementation), pygpt.force("cross_entropy", plain):
            logits = ops.linear(hidden, weight, bias, out_dtype=number)
            expected = ops.cross_entropy(logits, targets, reduction=reduction)
        assert_same_bits(loss, expected, f"{dtype}")
        hidden.requires_grad_()
        with_gradient = ops.linear_cross_entropy(hidden, weight, targets, bias, reduction=reduction)
        assert_same_bits(with_gradient.detach(), expected, "with a gradient")


def test_ignored_rows_reach_nothing_whatever_they_hold(implementation, generator):
    for dtype in dtypes_of(implementation):
        tensors, targets = inputs(generator, (50,), 20, 70, dtype)
        kept = targets != -100
        tensors[0][~kept] = torch.nan
        alone = [tensors[0][kept], *tensors[1:]]
        grad = torch.ones((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        loss, grad_hidden, *grads = run(ops.linear_cross_entropy, targets, tensors, "mean", grad)
        expected, expected_hidden, *expected_grads = run(ops.linear_cross_entropy, targets[kept], alone, "mean", grad)
        assert_same_bits(loss, expected, "loss")
        assert_same_bits(grad_hidden[kept], expected_hidden, "gradient of hidden")
        assert not grad_hidden[~kept].any()
        for a, b in zip(grads, expected_grads, strict=True):
            assert_same_bits(a, b, "gradients of weight and bias")


def test_all_ignored_give_zero_and_zero_gradients(implementation, generator):
    tensors, targets = inputs(generator, (5,), 8, 40, dtypes_of(implementation)[0])
    loss, *grads = run(ops.linear_cross_entropy, targets.fill_(-100), tensors, "mean", torch.ones(()))
    assert loss == 0
    assert not any(grad.any() for grad in grads)


def test_no_rows_give_zero_and_zero_gradients(implementation, generator):
    for dtype in dtypes_of(implementation):
        tensors, targets = inputs(generator, (0,), 8, 40, dtype)
        grad = torch.ones((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        loss, *grads = run(ops.linear_cross_entropy, targets, tensors, "mean", grad)
        assert loss == 0
        assert [grad.shape for grad in grads] == [(0, 8), (40, 8), (40,)]
        assert not any(grad.any() for grad in grads)


def test_a_row_as_long_as_the_shared_memory_that_kernels_have_unasked(implementation, generator):
    # 48 KB of logits on CUDA, beside what else is in shared memory.
    dtype = dtypes_of(implementation)[0]
    tensors, targets = inputs(generator, (2,), 3, 12_288, dtype)
    targets[:] = torch.tensor([12_287, 5])
    grad = torch.ones(())
    ours = run(ops.linear_cross_entropy, targets, tensors, "mean", grad)
    exact = run(reference.linear_cross_entropy, targets, [t.double() for t in tensors], "mean", grad.double())
    peer = least_accurate(peers(generator, targets, tensors, "mean", grad.to(dtype)), exact)
    for mine, right, theirs in zip(ours, exact, peer, strict=True):
        assert_accurate(mine, right, theirs, f"{dtype}")


@pytest.mark.float16
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_float16s_gradients_are_rounded_when_the_loss_has_been_scaled(implementation, generator, reduction):
    """As those of a loss for each row, which are computed when what they are multiplied with is known."""
    tensors, targets = inputs(generator, [70], 32, 300, torch.float16)
    scale = torch.tensor(65536.0)
    _, *grads = run(ops.linear_cross_entropy, targets, tensors, reduction, scale)
    each = scale / (targets != -100).sum() if reduction == "mean" else scale
    _, *right = run(ops.linear_cross_entropy, targets, tensors, "none", each.expand(70).contiguous())
    for mine, exact in zip(grads, right, strict=True):
        assert_same_bits(mine, exact, reduction)


def test_bits_do_not_depend_on_threads_mode_or_strides(implementation, generator):
    for dtype in dtypes_of(implementation):
        tensors, targets = inputs(generator, (70,), 30, 700, dtype)
        grad = torch.ones((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)

        def result(tensors=tensors, targets=targets, grad=grad):
            return run(ops.linear_cross_entropy, targets, tensors, "mean", grad)

        assert_bits_hold(result, f"{dtype}")
        moved = [strided(t) for t in tensors]
        for a, b in zip(result(), result(tensors=moved), strict=True):
            assert_same_bits(a, b, "strided")


def test_rows_past_one_block(generator):
    # On the CPU 64 MB of logits are 128 rows of this vocabulary; CUDA kernels take at most 8192. Weight gradients are
    # summed over the blocks.
    for dtype in (torch.float32, torch.bfloat16):
        tensors, targets = inputs(generator, (smaller(200, 8_300),), 4, smaller(130_000, 40), dtype)
        grad = torch.ones(())
        ours = run(ops.linear_cross_entropy, targets, tensors, "mean", grad)
        exact = run(reference.linear_cross_entropy, targets, [t.double() for t in tensors], "mean", grad.double())
        peer = least_accurate(peers(generator, targets, tensors, "mean", grad.to(dtype)), exact)
        for mine, right, theirs in zip(ours, exact, peer, strict=True):
            assert_accurate(mine, right, theirs, f"{dtype}")


def test_autocast(generator):
    (hidden, weight, bias), targets = inputs(generator, (3, 20), 30, 70)

    def autocast(hidden, weight, bias):
        with torch.autocast("cpu", torch.bfloat16):
            return ops.linear_cross_entropy(hidden, weight, targets, bias)

    (loss,), grads = gradients(autocast, [hidden, weight, bias], [torch.ones(())])
    explicit = ops.linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets, bias)
    assert_same_bits(loss, explicit, "autocast")
    assert all(grad.dtype == torch.float32 for grad in grads)


@pytest.mark.float64
def test_gradcheck(generator):
    tensors, targets = inputs(generator, (2, 3), 4, 6, torch.float64)
    hidden, weight, bias = (t.requires_grad_() for t in tensors)
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(ops.linear_cross_entropy, (hidden, weight, targets, bias, -100, reduction))
        assert torch.autograd.gradcheck(
            ops.linear_cross_entropy, (hidden.detach(), weight, targets, None, -100, reduction)
        )


def test_opcheck(generator):
    tensors, targets = inputs(generator, (2, 3), 4, 6)
    hidden, weight, bias = (t.requires_grad_() for t in tensors)
    op = torch.ops.pygpt.linear_cross_entropy
    for reduction in ("mean", "none"):
        torch.library.opcheck(op, (hidden, weight, bias, targets, -100, reduction, True, True, True))
        torch.library.opcheck(op, (hidden.detach(), weight, None, targets, -100, reduction, False, True, False))


def test_compiled_gives_the_same_bits(generator):
    tensors, targets = inputs(generator, (6,), 16, 40)

    def loss(hidden, weight, bias):
        return ops.linear_cross_entropy(hidden, weight, targets, bias)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    eager_out, eager_grads = gradients(loss, tensors, [torch.ones(())])
    out, grads = gradients(compiled, tensors, [torch.ones(())])
    for a, b in zip(eager_out + eager_grads, out + grads, strict=True):
        assert_same_bits(a, b, "compiled")


H, W, T = torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 3])


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((H, torch.ones(4, 5), T), ValueError, r"weight must have shape \(4, 3\).*\(4, 5\)"),
        ((H, W, torch.tensor([0])), ValueError, r"targets must have shape \(2,\)"),
        ((H, W, T.int()), TypeError, "targets must be int64.*int32"),
        pytest.param(*((H, W, torch.tensor([0, 4])), ValueError, "targets.*4"), marks=on_the_cpu),
        pytest.param(*((H, W, torch.tensor([-1, 2])), ValueError, "targets.*-1"), marks=on_the_cpu),
        ((H, W, T, torch.ones(3)), ValueError, "bias must have shape"),
        ((H, W, T, None, -100, "average"), ValueError, "reduction must be.*average"),
        ((H, torch.ones(0, 3), torch.tensor([-100, -100])), ValueError, "weight must have a row"),
        ((H, W.double(), T), TypeError, "weight must be float32.*float64"),
        ((H, None, T), TypeError, "weight must be a"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.linear_cross_entropy(*arguments)
