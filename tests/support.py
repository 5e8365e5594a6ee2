"""What the tests share: random inputs from a printed seed, allowed errors, comparison of bits, awkward tensors."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pygpt.extension import C

THREAD_COUNTS = (1, 2, 3, 7, 16)
# The architecture whose kernels run on CPU tensors, or None.
EMULATED = os.environ.get("PYGPT_EMULATE") or None
# What tests of equal bits vary on the emulated device: how many orders of the warps' turns, which may be asked for; and
# guesses at what is not known of the arithmetic (arith_seed).
INTERLEAVINGS = int(os.environ.get("PYGPT_TEST_INTERLEAVINGS", "3"))
ARITHMETICS = range(3)
# For tests of what only the CPU does: it raises what depends on values, and has no float16.
on_the_cpu = pytest.mark.cpu


def fresh_seed() -> int:
    """A new seed, printed so that a failure can be repeated with PYGPT_TEST_SEED."""
    seed = int(os.environ.get("PYGPT_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))
    print(f"PYGPT_TEST_SEED={seed}")
    return seed


def random_generator() -> torch.Generator:
    """A torch generator with a `fresh_seed`."""
    return torch.Generator("cpu").manual_seed(fresh_seed())


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal values, drawn in float64 and rounded to ``dtype``."""
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


class DrawnOnTheCpu(TorchFunctionMode):
    """On a GPU: what a test draws with its generator, which is the CPU's, is the same there and on the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is None or "device" in kwargs:
            return function(*args, **kwargs)
        return function(*args, **kwargs, device="cpu").to(torch.get_default_device())


def smaller(count: int, emulated: int) -> int:
    """A count of rows or elements, and what stands for it on the emulated device, where a kernel takes longer."""
    return emulated if EMULATED else count


def dtypes_of(implementation: str) -> tuple[torch.dtype, ...]:
    """The dtypes that an implementation computes with."""
    if implementation == "cuda_sm90":
        return torch.bfloat16, torch.float16
    if implementation.startswith("cuda"):
        return torch.float32, torch.bfloat16, torch.float16
    if implementation == "cpu_scalar":
        return torch.float32, torch.bfloat16, torch.float64
    return torch.float32, torch.bfloat16


def unaligned(tensor: Tensor) -> Tensor:
    """The same values, contiguous, at an address that is aligned to one element only."""
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    out = storage[1:].view(tensor.shape)
    out.copy_(tensor)
    return out


def strided(tensor: Tensor) -> Tensor:
    """The same values in every second element of a larger tensor."""
    storage = torch.empty(*tensor.shape, 2, dtype=tensor.dtype)
    storage[..., 0] = tensor
    return storage[..., 0]


def assert_accurate(ours: Tensor, reference: Tensor, peer: Tensor | None, what: str, roundings: float = 4.0) -> None:
    """Compare with the float64 reference.

    Allowed is the larger of twice the peer's (PyTorch's) error on the same input and as many eps of our dtype as there
    may be roundings, times the largest value of the reference.
    """
    assert reference.dtype == torch.float64, what
    assert ours.shape == reference.shape, f"{what}: shape {tuple(ours.shape)}, expected {tuple(reference.shape)}"
    if reference.numel() == 0:
        return
    assert torch.isfinite(reference).all(), f"{what}: the reference is not finite; the test's input is wrong"
    error = (ours.double() - reference).abs()
    error = torch.where(error.isnan(), torch.inf, error)
    peer_error = 0.0 if peer is None else float((peer.double() - reference).abs().max())
    allowed = max(2 * peer_error, roundings * torch.finfo(ours.dtype).eps * float(reference.abs().max()))
    worst = int(error.argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape)]
    assert float(error.max()) <= allowed, (
        f"{what}: error {float(error.max()):.3g} at {place} (ours {float(ours.flatten()[worst])!r}, "
        f"reference {float(reference.flatten()[worst])!r}); allowed {allowed:.3g}, PyTorch's own {peer_error:.3g}"
    )


def assert_near(ours: Tensor, reference: Tensor, what: str) -> None:
    """Compare a float32 chain of ops with float64: ops have their own tests of accuracy, this is one of wiring."""
    assert ours.shape == reference.shape, f"{what}: shape {tuple(ours.shape)}, expected {tuple(reference.shape)}"
    distance = float((ours.double() - reference).abs().max())
    assert distance <= 1e-5 * float(reference.abs().max()), f"{what} is off by {distance}"


def assert_as_peers(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Compare with what a peer computes in float32 as we do: within 1e-4, and of the largest value if that is smaller.

    Gradients are often far below 1: without the latter they might be anything.
    """
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}"
    distance, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
    assert distance <= 1e-4 * min(1.0, largest), f"{what} is off by {distance}, and its largest value is {largest}"


def least_accurate(results: Sequence[Sequence[Tensor]], references: Sequence[Tensor]) -> list[Tensor]:
    """Of several results of the same computation, place by place the one with the largest error.

    The largest error of a single run is a matter of luck; PyTorch's is taken over a few orders of summation.
    """
    errors = [
        [float((x.double() - y).abs().max()) if y.numel() else 0.0 for x, y in zip(result, references, strict=True)]
        for result in results
    ]
    worst = [max(range(len(results)), key=lambda i, place=place: errors[i][place]) for place in range(len(references))]
    return [results[i][place] for place, i in enumerate(worst)]


def assert_same_bits(a: Tensor, b: Tensor, what: str) -> None:
    """Fail unless both tensors hold the same bytes, naming the first element that differs."""
    assert a.shape == b.shape, f"{what}: shapes {tuple(a.shape)} and {tuple(b.shape)}"
    assert a.dtype == b.dtype, f"{what}: dtypes {a.dtype} and {b.dtype}"
    if a.numel() == 0:
        return
    width = a.element_size()
    a_bytes = a.contiguous().view(-1).view(torch.uint8).view(-1, width)
    b_bytes = b.contiguous().view(-1).view(torch.uint8).view(-1, width)
    differs = (a_bytes != b_bytes).any(dim=1)
    if differs.any():
        first = int(differs.nonzero()[0])
        place = [int(i) for i in torch.unravel_index(torch.tensor(first), a.shape)]
        raise AssertionError(
            f"{what}: {int(differs.sum())} of {a.numel()} elements differ, first at {place}: "
            f"{a.flatten()[first].item()!r} and {b.flatten()[first].item()!r}"
        )


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch, and so pygpt, use that many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_residual_streams(dtypes: Iterable[torch.dtype]) -> Iterator[tuple[torch.dtype, torch.dtype]]:
    """Each dtype with those that a residual stream may have to which a tensor of that dtype is added."""
    for dtype in dtypes:
        yield dtype, dtype
        if dtype.itemsize == 2:
            yield dtype, torch.float32


def gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor | None], grad_outs: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of function(*inputs) and the gradients of the tensors among its inputs, which lie where they lie."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    grads = torch.autograd.grad(outputs, [x for x in leaves if x is not None], grad_outs)
    return [y.detach() for y in outputs], list(grads)


def launches_of(run: Callable[[], object]) -> list[dict[str, Any]]:
    """What the emulated device counts of each launch of a call: tests/emulator/README.md, "Tools"."""
    C.emulator.take_counts()
    C.emulator.set_option("count", "1")
    try:
        run()
        return list(json.loads(C.emulator.take_counts()))
    finally:
        C.emulator.set_option("count", "0")


@contextlib.contextmanager
def emulated_options(**options: int) -> Iterator[None]:
    """Set options of the emulated device inside the block, and then the environment's, or the defaults, again."""
    defaults = {"seed": "1", "arith_seed": "0", "multiprocessors": "4"}
    try:
        for name, value in options.items():
            C.emulator.set_option(name, str(value))
        yield
    finally:
        for name in options:
            C.emulator.set_option(name, os.environ.get(f"PYGPT_EMULATOR_{name.upper()}", defaults[name]))


def arithmetic(guess: int) -> contextlib.AbstractContextManager[None]:
    """One of `ARITHMETICS` on the emulated device."""
    return emulated_options(arith_seed=guess)


def assert_bits_hold_emulated(run: Callable[[], Sequence[Tensor]], what: str) -> None:
    """Fail unless run() gives the same bytes in every order of the warps' turns and on every number of processors.

    What is not known of the arithmetic is the same within a comparison, and varied between them.
    """
    for guess in ARITHMETICS:
        with arithmetic(guess):
            expected = run()
            for seed in range(2, INTERLEAVINGS + 1):
                multiprocessors = (1, 7, 4)[seed % 3 - 2]
                with emulated_options(seed=seed, multiprocessors=multiprocessors):
                    again = run()
                for i, (a, b) in enumerate(zip(expected, again, strict=True)):
                    assert_same_bits(a, b, f"{what}, result {i}, {multiprocessors} processors, seed {seed}")


def assert_bits_hold(run: Callable[[], Sequence[Tensor]], what: str) -> None:
    """Fail unless run() gives the same bytes whatever else may change.

    On the CPU: the number of threads, and whether the caller flushes denormals. On a GPU: 30 repeats. On the emulated
    device: the order of the warps' turns and the number of processors.
    """
    if EMULATED:
        assert_bits_hold_emulated(run, what)
        return
    if torch.get_default_device().type == "cuda":
        expected = run()
        for _ in range(29):
            for i, (a, b) in enumerate(zip(expected, run(), strict=True)):
                assert_same_bits(a, b, f"{what}, result {i}, repeated")
        return
    with threads(1):
        expected = run()
    for count in THREAD_COUNTS[1:]:
        with threads(count):
            for i, (a, b) in enumerate(zip(expected, run(), strict=True)):
                assert_same_bits(a, b, f"{what}, result {i}, {count} threads against 1")
    assert torch.set_flush_denormal(True)
    try:
        flushed = run()
    finally:
        torch.set_flush_denormal(False)
    for i, (a, b) in enumerate(zip(expected, flushed, strict=True)):
        assert_same_bits(a, b, f"{what}, result {i}, denormals flushed by the caller")
