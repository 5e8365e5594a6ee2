"""What the hot kernels take, as the emulated device counts it: instructions by class, shared memory, sectors.

    PYGPT_EMULATE=80 python -m tests.golden.counts

rewrites counts.json; README.md says when that is right. The counts are of PTX, so they also follow from nvcc's version.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pygpt import ops
from pygpt.extension import C

COUNTS = Path(__file__).with_name("counts.json")
Counts = dict[str, dict[str, int]]  # of each kernel, what it takes of each thing


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random values that ask for a gradient. They are the same ones each time: now and then a count depends on them."""
    return torch.randn(shape).to(dtype).requires_grad_()


def training(result: Tensor) -> None:
    torch.autograd.backward(result, torch.ones_like(result))


def linear(dtype: torch.dtype) -> None:
    training(ops.linear(drawn(128, 256, dtype=dtype), drawn(128, 256, dtype=dtype), drawn(128), "gelu_tanh"))


def linear_of_few_rows(dtype: torch.dtype) -> None:
    with torch.no_grad():
        for rows in (1, 64):
            ops.linear(drawn(rows, 1024, dtype=dtype), drawn(64, 1024, dtype=dtype), drawn(64), decode=True)


def attention(dtype: torch.dtype) -> None:
    for head_dim in (64, 128):
        training(ops.attention(*(drawn(1, 128, 1, head_dim, dtype=dtype) for _ in range(3)), causal=True))


def attention_of_few_queries(dtype: torch.dtype) -> None:
    with torch.no_grad():
        for head_dim in (64, 128):
            shapes = (1, 1, 4, head_dim), (1, 256, 1, head_dim), (1, 256, 1, head_dim)
            ops.attention(*(drawn(*shape, dtype=dtype) for shape in shapes), causal=True, decode=True)


def layer_norm(dtype: torch.dtype) -> None:
    x, residual = drawn(64, 768, dtype=dtype), drawn(64, 768, dtype=dtype)
    normalised, total = ops.add_layer_norm(x, residual, drawn(768), drawn(768))
    training(normalised + total)


def cross_entropy(dtype: torch.dtype) -> None:
    training(ops.cross_entropy(drawn(8, 4096, dtype=dtype), torch.arange(8)))


def adamw(dtype: torch.dtype) -> None:
    parameter, moments = drawn(4096, dtype=dtype).detach(), [torch.rand(4096) for _ in range(2)]
    settings: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    ops.adamw([parameter], [parameter.clone()], [moments[0]], [moments[1]], [None], [1.0], **settings)


def embedding(dtype: torch.dtype) -> None:
    training(ops.embedding(torch.arange(64) // 4, drawn(32, 768, dtype=dtype)))


def sample(dtype: torch.dtype) -> None:
    where = {"seeds": torch.tensor([3]), "positions": torch.tensor([5])}
    ops.sample(torch.linspace(-3, 3, 4096).view(1, -1), top_k=50, top_p=0.9, **where)


RUNS: tuple[Callable[[torch.dtype], None], ...] = (
    *(linear, linear_of_few_rows, attention, attention_of_few_queries),
    *(layer_norm, cross_entropy, adamw, embedding, sample),
)


def counts() -> dict[str, Any]:
    """Of every run, with the compiler that made the PTX."""
    C.emulator.set_option("count", "1")
    runs: dict[str, Counts] = {}
    for run in RUNS:
        for dtype in (torch.float32, torch.bfloat16):
            if run is sample and dtype == torch.bfloat16:
                continue  # logits are float32
            C.emulator.take_counts()
            torch.manual_seed(1)
            run(dtype)
            of_kernel: Counts = defaultdict(lambda: defaultdict(int))
            for launch in json.loads(C.emulator.take_counts()):
                mine = of_kernel[short(launch["kernel"])]
                for what in ("instructions", "shared_wavefronts", "global_sectors", "tensor_macs"):
                    mine[what] += launch[what]
                for what, count in launch["classes"].items():
                    mine[what] += count
            runs[f"{run.__name__}, {str(dtype).removeprefix('torch.')}"] = {
                kernel: {what: count for what, count in mine.items() if count} for kernel, mine in of_kernel.items()
            }
    C.emulator.set_option("count", "0")
    return {"compiler": C.build()["cuda_compiler"], "counts": runs}


def short(kernel: str) -> str:
    """A kernel's name and template arguments."""
    return re.sub(r"pygpt::cuda::|\(anonymous namespace\)::|^void |\(.*", "", kernel)


def main() -> None:
    """Write what this build takes."""
    taken = counts()
    if not taken["compiler"]:
        raise SystemExit("a build without PYGPT_CUDA does not know its compiler: take the counts of one that does")
    COUNTS.write_text(json.dumps(taken, indent=1) + "\n")


if __name__ == "__main__":
    main()
