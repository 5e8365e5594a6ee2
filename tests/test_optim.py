from __future__ import annotations

import copy

import pytest
import torch

import pygpt
from tests.support import assert_accurate, assert_same_bits, normal, strided

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def parameters(generator, dtype=torch.float32):
    return [torch.nn.Parameter(normal(generator, *shape, dtype=dtype)) for shape in ((7, 5), (5,), ())]


def twin(params):
    return [torch.nn.Parameter(param.detach().clone()) for param in params]


def take_steps(optimizer, params, grads):
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = None if grad is None else grad.clone()
        optimizer.step()


def random_grads(generator, params, steps):
    return [[normal(generator, *param.shape, dtype=param.dtype) for param in params] for _ in range(steps)]


def flat(params):
    """All parameters as one tensor: the error of each stands beside values of the size that steps are taken from.

    A single parameter may end near zero by cancellation.
    """
    return torch.cat([param.detach().flatten() for param in params])


def in_float64(params, grads):
    """The same parameters and gradients for the reference."""
    return (
        [torch.nn.Parameter(param.detach().double()) for param in params],
        [[None if grad is None else grad.double() for grad in step] for step in grads],
    )


def test_steps_follow_torch(generator):
    ours = parameters(generator)
    theirs = twin(ours)
    grads = random_grads(generator, ours, 6)
    grads[2][1] = None  # a parameter that had no part in the loss
    exact, exact_grads = in_float64(ours, grads)
    groups = [[{"params": p[:1]}, {"params": p[1:], "weight_decay": 0.0, "lr": 3e-3}] for p in (ours, theirs, exact)]
    take_steps(pygpt.optim.AdamW(groups[0], **OPTIONS), ours, grads)
    take_steps(torch.optim.AdamW(groups[1], **OPTIONS), theirs, grads)
    take_steps(torch.optim.AdamW(groups[2], **OPTIONS), exact, exact_grads)
    assert_accurate(flat(ours), flat(exact), flat(theirs), "after 6 steps")


def test_default_options_are_torchs():
    ours = pygpt.optim.AdamW([torch.nn.Parameter(torch.ones(1))]).defaults
    theirs = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]).defaults
    assert ours == {name: theirs[name] for name in ours}


@pytest.mark.parametrize("first, second", [("pygpt", "torch"), ("torch", "pygpt")])
def test_each_loads_what_the_other_saved(generator, first, second):
    classes = {"pygpt": pygpt.optim.AdamW, "torch": torch.optim.AdamW}
    params = parameters(generator)
    grads = random_grads(generator, params, 6)
    straight = twin(params)
    exact, exact_grads = in_float64(params, grads)
    take_steps(torch.optim.AdamW(straight, **OPTIONS), straight, grads)
    take_steps(torch.optim.AdamW(exact, **OPTIONS), exact, exact_grads)

    before = classes[first](params, **OPTIONS)
    take_steps(before, params, grads[:3])
    saved = copy.deepcopy(before.state_dict())
    continued = twin(params)
    after = classes[second](continued, lr=99.0)
    after.load_state_dict(saved)
    take_steps(after, continued, grads[3:])
    assert_accurate(flat(continued), flat(exact), flat(straight), f"3 steps by {first}, 3 by {second}")
    assert saved["state"].keys() == after.state_dict()["state"].keys()
    assert saved["state"][0].keys() == after.state_dict()["state"][0].keys()


def test_resumed_gives_the_same_bits(generator):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        params = parameters(generator, dtype)
        grads = random_grads(generator, params, 6)
        resumed = twin(params)
        take_steps(pygpt.optim.AdamW(params, **OPTIONS), params, grads)
        before = pygpt.optim.AdamW(resumed, **OPTIONS)
        take_steps(before, resumed, grads[:3])
        after = pygpt.optim.AdamW(resumed, **OPTIONS)
        after.load_state_dict(copy.deepcopy(before.state_dict()))
        take_steps(after, resumed, grads[3:])
        for a, b in zip(params, resumed, strict=True):
            assert_same_bits(a.detach(), b.detach(), f"{dtype}")


def test_16_bit_parameters_have_a_float32_state(generator):
    params = parameters(generator, torch.bfloat16)
    theirs = [torch.nn.Parameter(param.detach().float()) for param in params]
    grads = random_grads(generator, params, 5)
    exact, exact_grads = in_float64(params, grads)
    ours = pygpt.optim.AdamW(params, **OPTIONS)
    take_steps(ours, params, grads)
    take_steps(torch.optim.AdamW(theirs, **OPTIONS), theirs, [[grad.float() for grad in step] for step in grads])
    take_steps(torch.optim.AdamW(exact, **OPTIONS), exact, exact_grads)
    for param in params:
        state = ours.state[param]
        assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq", "master")} == {torch.float32}
        assert_same_bits(param.detach(), state["master"].bfloat16(), "the parameter is the master, rounded")
    masters = [ours.state[param]["master"] for param in params]
    assert_accurate(flat(masters), flat(exact), flat(theirs), "master")


def test_torch_state_of_16_bit_parameters_loads(generator):
    params = parameters(generator, torch.bfloat16)
    before = torch.optim.AdamW(params, **OPTIONS)
    take_steps(before, params, random_grads(generator, params, 1))
    after = pygpt.optim.AdamW(params, **OPTIONS)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    assert_same_bits(after.state[params[0]]["exp_avg"], before.state[params[0]]["exp_avg"].float(), "exp_avg")
    take_steps(after, params, random_grads(generator, params, 1))
    assert_same_bits(params[0].detach(), after.state[params[0]]["master"].bfloat16(), "master")


def test_clipping_needs_no_pass_of_its_own(generator):
    params = parameters(generator)
    clipped = twin(params)
    (grads,) = random_grads(generator, params, 1)
    for scale in (0.25, torch.tensor(0.25)):
        for mine, other, grad in zip(params, clipped, grads, strict=True):
            mine.grad, other.grad = grad.clone(), grad * 0.25
        pygpt.optim.AdamW(params, **OPTIONS).step(grad_scale=scale)
        pygpt.optim.AdamW(clipped, **OPTIONS).step()
        for a, b, grad in zip(params, clipped, grads, strict=True):
            assert_same_bits(a.detach(), b.detach(), "scaled by the step and beforehand")
            assert_same_bits(a.grad, grad, "the gradient stays")


def test_memory_that_is_not_contiguous(generator):
    values, (grads,) = normal(generator, 6, 4), random_grads(generator, [torch.ones(6, 4)], 1)
    plain = torch.nn.Parameter(values.clone())
    turned = torch.nn.Parameter(values.t().contiguous().t())
    plain.grad, turned.grad = grads[0], strided(grads[0])
    pygpt.optim.AdamW([plain], **OPTIONS).step()
    pygpt.optim.AdamW([turned], **OPTIONS).step()
    assert not turned.is_contiguous()
    assert_same_bits(plain.detach(), turned.detach(), "transposed")


def test_autograd_sees_the_step(generator):
    (param, *_) = parameters(generator)
    loss = (param * param).sum()
    param.grad = torch.ones_like(param)
    pygpt.optim.AdamW([param], **OPTIONS).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_closure_and_schedule(generator):
    (param, *_) = parameters(generator)
    optimizer = pygpt.optim.AdamW([param], **OPTIONS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 0.0)

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    schedule.step()
    after = param.detach().clone()
    assert optimizer.step(closure) < first
    assert_same_bits(param.detach(), after, "learning rate 0")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"lr": -1.0}, "lr must be at least 0, but is -1"),
        ({"lr": float("nan")}, "lr"),
        ({"eps": -1e-8}, "eps"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\)"),
        ({"betas": (0.9,)}, "betas"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        pygpt.optim.AdamW([torch.nn.Parameter(torch.ones(2))], **options)


def test_states_and_gradients_that_do_not_fit():
    param = torch.nn.Parameter(torch.ones(2))
    for name in ("amsgrad", "maximize"):
        other = torch.optim.AdamW([param], **{name: True})
        with pytest.raises(ValueError, match=f"{name} must be False"):
            pygpt.optim.AdamW([param]).load_state_dict(other.state_dict())
    param.grad = torch.ones(2).to_sparse()
    with pytest.raises(TypeError, match="sparse"):
        pygpt.optim.AdamW([param]).step()


def test_capturable_steps_follow_torchs(generator):
    """Their number and the learning rate are tensors, which are read when the kernel runs."""
    ours = parameters(generator)
    exact = twin(ours)
    grads = random_grads(generator, ours, 6)
    theirs = twin(ours)
    _, exact_grads = in_float64(ours, grads)
    exact = [torch.nn.Parameter(param.detach().double()) for param in exact]
    rate = torch.tensor(1e-2)
    capturable = pygpt.optim.AdamW(ours, **{**OPTIONS, "lr": rate}, capturable=True)
    others = [torch.optim.AdamW(params, **OPTIONS) for params in (theirs, exact)]
    for number in range(6):
        rate.fill_(1e-2 * 0.5**number)
        for other in others:
            other.param_groups[0]["lr"] = 1e-2 * 0.5**number
        take_steps(capturable, ours, grads[number : number + 1])
        take_steps(others[0], theirs, grads[number : number + 1])
        take_steps(others[1], exact, exact_grads[number : number + 1])
    assert_accurate(flat(ours), flat(exact), flat(theirs), "after 6 steps")
    assert float(capturable.state[ours[0]]["step"]) == 6

    saved = copy.deepcopy(capturable.state_dict())
    del saved["param_groups"][0]["capturable"]  # as if from before it was an option
    after = pygpt.optim.AdamW(ours, **OPTIONS)
    after.load_state_dict(saved)
    assert not after.param_groups[0]["capturable"]
    take_steps(after, ours, grads[:1])
    assert float(after.state[ours[0]]["step"]) == 7


def test_a_learning_rate_that_is_a_tensor_asks_for_capturable():
    with pytest.raises(ValueError, match="lr must be a number, but is a tensor, which capturable=True allows"):
        pygpt.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=torch.tensor(1e-3))


def test_steps_are_counted_on_the_cpu(generator):
    """Where reading them waits for no device: whatever the default device is, and torch's fused optimiser had."""
    params = parameters(generator)
    optimizer = pygpt.optim.AdamW(params, **OPTIONS)
    grads = random_grads(generator, params, 2)
    with torch.device("meta"):
        take_steps(optimizer, params, grads)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = state["step"].double()
    optimizer.load_state_dict(saved)
    take_steps(optimizer, params, grads)
    for param in params:
        step = optimizer.state[param]["step"]
        assert (step.device.type, step.dtype, float(step)) == ("cpu", torch.float32, 4.0)


@pytest.mark.cpu
def test_a_step_that_is_refused_does_not_count() -> None:
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    param.grad = torch.ones_like(param)
    optimizer = pygpt.optim.AdamW([param])
    with pytest.raises(ValueError, match="float16"):
        optimizer.step()
    assert optimizer.state[param]["step"] == 0
