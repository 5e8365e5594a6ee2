from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pygpt import ops, reference
from tests.support import (
    assert_accurate,
    assert_bits_hold,
    assert_same_bits,
    dtypes_of,
    gradients,
    normal,
    on_the_cpu,
    random_generator,
    smaller,
    strided,
    unaligned,
)

REDUCTIONS = ("mean", "sum", "none")


def random_targets(generator, vocabulary, *shape, ignored=0.3):
    return torch.where(
        torch.rand(shape, generator=generator) < ignored, -100, torch.randint(vocabulary, shape, generator=generator)
    )


def loss_of(function, targets, reduction):
    return lambda logits: function(logits, targets, reduction=reduction)


def torch_cross_entropy(logits, targets, reduction):
    """PyTorch's, with 0 where all targets are ignored."""
    rows = logits.reshape(-1, logits.shape[-1])
    loss = torch.nn.functional.cross_entropy(rows.float(), targets.flatten(), reduction=reduction)
    if reduction == "mean" and (targets == -100).all():
        return rows.sum() * 0
    return loss.view(targets.shape) if reduction == "none" else loss


@given(
    shape=st.sampled_from([(40,), (5, 8), (2, 4, 5)]),  # enough rows for an error to be typical
    vocabulary=st.integers(1, 90),
    reduction=st.sampled_from(REDUCTIONS),
    scale=st.floats(0, 100),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
)
@example(shape=[5, 8], vocabulary=1500, reduction="mean", scale=1.0, ignored=0.0)  # several blocks of a row's softmax
@example(shape=[700], vocabulary=50, reduction="mean", scale=3.0, ignored=0.1)  # several rows a task
@example(shape=[0], vocabulary=3, reduction="mean", scale=1.0, ignored=0.0)
@example(shape=[2, 0], vocabulary=3, reduction="none", scale=1.0, ignored=0.0)
def test_loss_and_gradient_match_the_reference(implementation, shape, vocabulary, reduction, scale, ignored):
    generator = random_generator()
    targets = random_targets(generator, vocabulary, *shape, ignored=ignored)
    for dtype in dtypes_of(implementation):
        logits = (normal(generator, *shape, vocabulary) * scale).to(dtype)
        loss_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        grad = normal(generator, *(shape if reduction == "none" else ()), dtype=loss_dtype)
        (loss,), (grad_logits,) = gradients(loss_of(ops.cross_entropy, targets, reduction), [logits], [grad])
        exact, exact_grads = gradients(
            loss_of(reference.cross_entropy, targets, reduction), [logits.double()], [grad.double()]
        )
        peer, peer_grads = gradients(loss_of(torch_cross_entropy, targets, reduction), [logits.float()], [grad.float()])
        assert loss.dtype == loss_dtype and grad_logits.dtype == dtype
        assert_accurate(loss, exact[0], peer[0], f"loss, {dtype}")
        assert_accurate(grad_logits, exact_grads[0], peer_grads[0].to(dtype), f"gradient, {dtype}")


def test_bits_hold(implementation, generator):
    time = smaller(21, 3)
    targets = random_targets(generator, 701, 3, time)
    for dtype in dtypes_of(implementation):
        logits = normal(generator, 3, time, 701, dtype=dtype) * 30  # probabilities down to the denormals
        for reduction in REDUCTIONS:
            grad = torch.ones(targets.shape if reduction == "none" else ())
            grad = grad.double() if dtype == torch.float64 else grad

            def run(logits=logits, targets=targets, reduction=reduction, grad=grad):
                (loss,), grads = gradients(loss_of(ops.cross_entropy, targets, reduction), [logits], [grad])
                return [loss, *grads]

            assert_bits_hold(run, f"{dtype}, {reduction}")
            for awkward in (unaligned, strided):
                for a, b in zip(run(), run(awkward(logits), awkward(targets)), strict=True):
                    assert_same_bits(a, b, awkward.__name__)
        batch = ops.cross_entropy(logits, targets, reduction="none")
        for row in ((0, 0), (2, time - 1)):
            alone = ops.cross_entropy(logits[row], targets[row], reduction="none")
            assert_same_bits(batch[row], alone, f"{dtype}, row {row} alone")


def test_ignored_rows_may_hold_anything(implementation, generator):
    logits, targets = normal(generator, 3, 20), torch.tensor([4, -1, 7])
    hidden = logits.clone()
    hidden[1] = torch.nan
    for reduction in REDUCTIONS:

        def run(x, reduction=reduction):
            grad = torch.ones(3 if reduction == "none" else ())
            return gradients(lambda x: ops.cross_entropy(x, targets, -1, reduction), [x], [grad])

        (loss,), (grad,) = run(logits)
        (same_loss,), (same_grad,) = run(hidden)
        assert_same_bits(loss, same_loss, reduction)
        assert_same_bits(grad, same_grad, reduction)
        assert (grad[1] == 0).all()


def test_infinite_and_nan_logits(implementation):
    inf, nan = torch.inf, torch.nan
    logits = torch.full((5, 600), -inf)
    logits[0, 599] = 1.5  # certain
    logits[1, 0], logits[1, 599] = 2.0, 2.0  # one half
    logits[2, 550] = nan  # among -inf
    logits[3, 3] = inf
    logits[4, 7] = 0.0  # the target is impossible
    losses = ops.cross_entropy(logits, torch.tensor([599, 0, 599, 3, 8]), reduction="none")
    assert losses[0] == 0
    assert float(losses[1]) == pytest.approx(np.log(2), rel=1e-6)
    assert losses[2].isnan() and losses[3].isnan()
    assert losses[4] == inf


def test_targets_out_of_range(implementation, generator):
    logits, targets = normal(generator, 5, 20), torch.tensor([4, 20, -100, -1, 7])
    if implementation.startswith("cpu"):
        with pytest.raises(ValueError, match=r"targets\[1\] is 20"):
            ops.cross_entropy(logits, targets)
        assert ops.cross_entropy(logits, targets.clamp(0, 19)).isfinite()  # the process is unharmed
        return
    bad = [1, 3]
    (losses,), (grad,) = gradients(loss_of(ops.cross_entropy, targets, "none"), [logits], [torch.ones(5)])
    replaced = targets.index_fill(0, torch.tensor(bad), -100)
    (exact,), (exact_grad,) = gradients(loss_of(ops.cross_entropy, replaced, "none"), [logits], [torch.ones(5)])
    for mine, right in ((losses, exact), (grad, exact_grad)):
        assert mine[bad].isnan().all()
        assert_same_bits(mine[[0, 2, 4]], right[[0, 2, 4]], "the other rows")
    for reduction in ("sum", "mean"):
        assert ops.cross_entropy(logits, targets, reduction=reduction).isnan()


@pytest.mark.float64
def test_autograd(generator):
    targets = random_targets(generator, 7, 2, 3)
    logits = normal(generator, 2, 3, 7, dtype=torch.float64).requires_grad_()
    for reduction in REDUCTIONS:
        assert torch.autograd.gradcheck(loss_of(ops.cross_entropy, targets, reduction), (logits,))


def test_library(generator):
    targets, logits = random_targets(generator, 7, 2, 3), normal(generator, 2, 3, 7).requires_grad_()
    for reduction in REDUCTIONS:
        torch.library.opcheck(torch.ops.pygpt.cross_entropy, (logits, targets, -100, reduction))


def test_autocast_keeps_the_dtype(generator):
    logits, targets = normal(generator, 3, 20), torch.tensor([4, 1, 7])
    with torch.autocast("cpu", torch.bfloat16):
        loss = ops.cross_entropy(logits, targets)
    assert_same_bits(loss, ops.cross_entropy(logits, targets), "autocast")


def test_numpy_in_numpy_out(generator):
    logits, targets = normal(generator, 3, 20), torch.tensor([4, 1, 7])
    loss = ops.cross_entropy(logits.numpy(), targets.numpy(), reduction="none")
    assert isinstance(loss, np.ndarray)
    assert_same_bits(torch.from_numpy(loss), ops.cross_entropy(logits, targets, reduction="none"), "NumPy")


LOGITS = torch.ones(2, 3)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        pytest.param(
            *((LOGITS, torch.tensor([0, 3])), ValueError, r"targets\[1\] is 3, .* less than 3, .*, or -100"),
            marks=on_the_cpu,
        ),
        pytest.param(*((LOGITS, torch.tensor([-1, 0])), ValueError, r"targets\[0\] is -1"), marks=on_the_cpu),
        pytest.param(
            *((LOGITS, torch.tensor([0, -100]), -1), ValueError, r"targets\[1\] is -100, .* or -1"), marks=on_the_cpu
        ),
        ((LOGITS, torch.tensor([0])), ValueError, r"targets must have shape \(2,\).*\(1,\)"),
        ((LOGITS, torch.tensor([0.0, 1.0])), TypeError, "targets must be int64.*float32"),
        ((LOGITS, torch.tensor([0, 1]), -100, "average"), ValueError, 'reduction must be .* "average"'),
        ((LOGITS.int(), torch.tensor([0, 1])), TypeError, "logits must be of dtype"),
        ((torch.ones(2, 0), torch.tensor([0, 1])), ValueError, "last dimension of at least 1"),
        ((torch.tensor(1.0), torch.tensor(0)), ValueError, "last dimension of at least 1"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.cross_entropy(*arguments)
