"""One training step and one decode of tiny GPTs, as hashes of their bytes, for each implementation set.

    python -m tests.golden.step

rewrites hashes.json with what this machine computes; README.md says when that is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pygpt
from pygpt.models import GPT, GPTConfig
from pygpt.optim import AdamW

HASHES = Path(__file__).with_name("hashes.json")

# A set is what runs when all ops are forced to these entries, the later ones where an op has them.
SETS = {
    "cpu_scalar": ("cpu_scalar",),
    "cpu_avx2": ("cpu_avx2",),
    "cpu_avx512": ("cpu_avx512",),
    "cpu_avx512_bf16": ("cpu_avx512", "cpu_avx512_bf16"),
}
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}  # of autocast

# Sizes that are multiples of no vector, grouped heads, a window, a head of its own.
CONFIG = GPTConfig(
    vocab_size=101,
    context_length=48,
    num_layers=2,
    num_heads=4,
    embedding_dim=52,
    num_kv_heads=2,
    head_dim=14,
    hidden_dim=150,
    attention_windows=(None, 9),
    tie_head=False,
)
# The same with what a Llama has. By their keys in hashes.json.
CONFIGS = {
    "hashes": CONFIG,
    "llama": replace(CONFIG, positions="rope", norm_type="rms", activation="swiglu", bias=False, qk_norm=True),
}


def c_library() -> str:
    """What kernels take exp, log and pow from where they have none of their own: it has a part in the bits."""
    return f"{platform.machine()} {' '.join(platform.libc_ver())}"


def missing(name: str) -> str | None:
    """Why a set does not run here, or None."""
    reasons = [dict(entries).get(SETS[name][-1], "no op has it") for _, entries in pygpt.extension.C.implementations()]
    return None if "" in reasons else reasons[0]


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    """Run everything on one set."""
    with contextlib.ExitStack() as stack:
        for entry in SETS[name]:
            stack.enter_context(pygpt.force("*", entry))
        yield


def noise(count: int, stream: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Numbers that look random: splitmix64 of their places (Steele, Lea, Flood, 2014)."""
    z = (np.arange(count, dtype=np.uint64) + np.uint64(stream << 32)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def weights(shape: torch.Size, stream: int) -> Tensor:
    """Multiples of 2^-26 between -1/8 and 1/8."""
    values = (noise(shape.numel(), stream) >> np.uint64(40)).astype(np.int64) - 2**23
    return torch.from_numpy(values).float().mul(2.0**-26).view(shape)


def tokens(shape: tuple[int, ...], stream: int) -> Tensor:
    values = noise(int(np.prod(shape)), stream) % np.uint64(CONFIG.vocab_size)
    return torch.from_numpy(values.astype(np.int64)).view(shape)


def digest(tensors: Iterable[Tensor]) -> str:
    out = hashlib.sha256()
    for tensor in tensors:
        out.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return out.hexdigest()


def hashes(config: GPTConfig, dtype: str) -> dict[str, str]:
    """The SHA-256 of everything that a step and a decode give."""
    model = GPT(config, initialise=False)
    parameters = list(model.parameters())
    with torch.no_grad():
        for stream, parameter in enumerate(parameters):
            parameter.copy_(weights(parameter.shape, stream))
    optimizer = AdamW(parameters, lr=0.01, weight_decay=0.1)
    autocast = torch.autocast("cpu", DTYPES[dtype], enabled=DTYPES[dtype] is not None)
    with autocast:
        loss = model.loss(tokens((3, 40), 1000), tokens((3, 40), 1001), lengths=torch.tensor([40, 7, 33]))
    torch.autograd.backward(loss)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    optimizer.step()
    with autocast:
        written = model.generate(tokens((2, 11), 1002), max_new_tokens=16, seed=5, top_p=0.9, return_logprobs=True)
    return {
        "loss": digest([loss.reshape(1)]),
        "gradients": digest(gradients),
        "parameters": digest(parameters),
        "decode": digest([written.tokens, written.logprobs]),
    }


def main() -> None:
    """Write what this machine computes; sets that it cannot run keep what is there."""
    recorded = json.loads(HASHES.read_text()) if HASHES.exists() else {}
    if recorded.get("c_library") != c_library():
        recorded = {"c_library": c_library()}
    for name in SETS:
        if reason := missing(name):
            print(f"{name}: left as it is; {reason}")
            continue
        with forced(name):
            for key, config in CONFIGS.items():
                recorded.setdefault(key, {})[name] = {dtype: hashes(config, dtype) for dtype in DTYPES}
        print(f"{name}: written")
    HASHES.write_text(json.dumps(recorded, indent=2) + "\n")


if __name__ == "__main__":
    main()
