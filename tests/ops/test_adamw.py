from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pygpt import ops, reference
from tests.support import (
    assert_accurate,
    assert_bits_hold,
    assert_same_bits,
    dtypes_of,
    normal,
    random_generator,
    unaligned,
)

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def state_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def random_state(generator, shapes, dtype):
    """Params, gradients and moments as after some steps."""
    params, grads = ([normal(generator, *shape, dtype=dtype) for shape in shapes] for _ in range(2))
    means = [normal(generator, *shape, dtype=state_dtype(dtype)) * 0.1 for shape in shapes]
    variances = [normal(generator, *shape, dtype=state_dtype(dtype)).square() * 0.1 + 1e-3 for shape in shapes]
    return params, grads, means, variances


def torch_step(param, grad, mean, variance, step, scale, *, lr, betas, eps, weight_decay):
    """torch.optim.AdamW's step on copies: the new parameter and moments."""
    param = param.clone().requires_grad_()
    param.grad = (grad * scale).to(grad.dtype)
    optimizer = torch.optim.AdamW([param], lr, betas, eps, weight_decay, foreach=False)
    optimizer.state[param] = {
        "step": torch.tensor(float(step - 1)),
        "exp_avg": mean.clone(),
        "exp_avg_sq": variance.clone(),
    }
    optimizer.step()
    state = optimizer.state[param]
    return param.detach(), state["exp_avg"], state["exp_avg_sq"]


@given(
    shapes=st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=1, max_size=4),
    step=st.sampled_from([1, 2, 1000, 10**6]),
    lr=st.sampled_from([0.0, 1e-4, 0.1]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.0), (0.9, 0.95)]),
    scale=st.sampled_from([None, 0.3]),
)
def test_a_step_matches_the_reference(implementation, shapes, step, lr, weight_decay, betas, scale):
    generator = random_generator()
    shapes = [[200], *shapes]  # enough elements for an error to be typical
    options = {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay}
    for dtype in dtypes_of(implementation):
        state = random_state(generator, shapes, dtype)
        before = [[tensor.clone() for tensor in tensors] for tensors in state]
        grad_scale = None if scale is None else torch.tensor(scale)
        nobody = [None] * len(shapes)
        ops.adamw(*state, nobody, [step] * len(shapes), **options, grad_scale=grad_scale)
        factor = 1.0 if scale is None else float(grad_scale)
        exact, peer = [], []
        for param, grad, mean, variance in zip(*before, strict=True):
            exact.append(reference.adamw(param, grad, mean, variance, step, lr, betas, 1e-8, weight_decay, factor))
            peer.append(torch_step(*(t.float() for t in (param, grad, mean, variance)), step, factor, **options))
        ours = list(zip(state[0], state[2], state[3], strict=True))
        for i, name in enumerate(("param", "mean", "variance")):
            mine, right, theirs = (
                torch.cat([results[i].flatten() for results in each]) for each in (ours, exact, peer)
            )
            assert_accurate(mine, right, theirs, f"{dtype}, {name}")
        for after, grad in zip(state[1], before[1], strict=True):
            assert_same_bits(after, grad, "the gradient stays")


def test_numbers_that_are_tensors_are_read_when_the_kernel_runs(implementation, generator):
    """The same step, to the rounding of its factors."""
    options = {**OPTIONS, "lr": 2.0**-7}
    for dtype in dtypes_of(implementation):
        for step in (1, 7, 100_000):
            state = random_state(generator, [(700,), (3, 5)], dtype)
            params, grads, means, variances = ([tensor.clone() for tensor in tensors] for tensors in state)
            ops.adamw(*state, [None] * 2, [float(step)] * 2, **options)
            counted, of_tensors = [torch.tensor(float(step))] * 2, {**options, "lr": torch.tensor(options["lr"])}
            ops.adamw(params, grads, means, variances, [None] * 2, counted, **of_tensors)
            for ours, other in ((params, state[0]), (means, state[2]), (variances, state[3])):
                for a, b in zip(ours, other, strict=True):
                    few_ulps = 4 * torch.finfo(a.dtype).eps
                    torch.testing.assert_close(a, b, rtol=few_ulps, atol=few_ulps)


def test_a_master_copy_collects_small_changes(implementation, generator):
    param = normal(generator, 300, dtype=torch.bfloat16)
    master, grad = param.float(), torch.ones_like(param)
    exact = master.double()
    means, variances = [torch.zeros(300)], [torch.zeros(300)]
    exact_means, exact_variances = means[0].double(), variances[0].double()
    for step in range(1, 11):
        ops.adamw(
            [param], [grad], means, variances, [master], [step], lr=1e-5, betas=(0.9, 0.99), eps=0, weight_decay=0
        )
        exact, exact_means, exact_variances = reference.adamw(
            exact, grad, exact_means, exact_variances, step, 1e-5, (0.9, 0.99), 0.0, 0.0
        )
    assert_accurate(master, exact, None, "master")
    assert_same_bits(param, master.bfloat16(), "the parameter is the master, rounded")


def test_bits_hold(implementation, generator):
    for dtype in dtypes_of(implementation):
        state = random_state(generator, [(20_000,), (3, 5), (9001,)], dtype)
        state[1][0].mul_(1e-30)

        def run(state=state, moved=torch.clone):
            params, grads, means, variances = ([moved(tensor) for tensor in tensors] for tensors in state)
            ops.adamw(params, grads, means, variances, [None] * 3, [3] * 3, **OPTIONS)
            return [*params, *means, *variances]

        assert_bits_hold(run, f"{dtype}")
        for a, b in zip(run(), run(moved=unaligned), strict=True):
            assert_same_bits(a, b, "unaligned")


def test_what_is_written_is_marked(implementation, generator):
    (params, grads, means, variances) = random_state(generator, [(3,)], torch.float32)
    written = params[0], means[0], variances[0]
    versions = [tensor._version for tensor in written]
    ops.adamw(params, grads, means, variances, [None], [1], **OPTIONS)
    assert all(tensor._version > version for tensor, version in zip(written, versions, strict=True))


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"grads": [torch.ones(2)]}, ValueError, r"grad must have the shape of its param, \(3,\).*\(2,\)"),
        ({"grads": [torch.ones(3).double()]}, TypeError, "grad must be float32.*float64"),
        ({"means": [torch.ones(3).bfloat16()]}, TypeError, "exp_avg must be float32"),
        ({"masters": [torch.ones(3)]}, TypeError, "param with a master must be of dtype bfloat16"),
        ({"means": []}, ValueError, "must have one length, but have 1, 1, 0, 1, 1 and 1"),
        ({"steps": [0]}, ValueError, "step must be at least 1, but is 0"),
        ({"params": [torch.ones(6)[::2]]}, ValueError, "param must be contiguous"),
        ({"params": [None]}, TypeError, "param must be a torch.Tensor"),
        ({"betas": (1.0, 0.9)}, ValueError, r"beta1 must be in \[0, 1\), but is 1"),
        ({"betas": (0.9, -0.1)}, ValueError, "beta2"),
        ({"eps": -1.0}, ValueError, "eps must be at least 0"),
        ({"grad_scale": torch.ones(2)}, ValueError, r"grad_scale must have shape \(\)"),
    ],
)
def test_bad_input(changes, error, words):
    arguments = {name: [torch.ones(3)] for name in ("params", "grads", "means", "variances")}
    arguments |= {"masters": [None], "steps": [1], **OPTIONS, **changes}
    lists = [arguments.pop(name) for name in ("params", "grads", "means", "variances", "masters", "steps")]
    with pytest.raises(error, match=words):
        ops.adamw(*lists, **arguments)


@pytest.mark.parametrize("first", [torch.float16, torch.float64])
def test_float16_and_float64_do_not_mix(first):
    others = {torch.float16: torch.float64, torch.float64: torch.float16}
    params = [torch.ones(3, dtype=dtype) for dtype in (first, torch.float32, others[first])]
    moments = [torch.zeros(3, dtype=torch.float64 if p.dtype == torch.float64 else torch.float32) for p in params]
    before = [p.clone() for p in params]
    with pytest.raises(TypeError, match=f"param must not be {str(others[first])[6:]} beside others"):
        ops.adamw(params, params, moments, moments, [None] * 3, [1] * 3, **OPTIONS)
    for a, b in zip(params, before, strict=True):
        assert_same_bits(a, b, "a refused step")
