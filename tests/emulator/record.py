"""Records what a card's wgmma computes, and compares it with the emulator's guess, bit for bit.

    python tests/emulator/record.py FILE.npz

needs a GPU with wgmma (sm_90), or PYGPT_EMULATE=90, where all are equal. The products are those of `ops.linear` of 16
columns: one instruction of 16 products a result, into an accumulator of zero. FILE holds bit patterns, as
data/README.md says of mma.sync's: bf16_a (results, 16), bf16_b likewise, bf16_d (results,), and fp16's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import pygpt

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind the installed pygpt
from tests.emulator.device import Device, build
from tests.emulator.test_matrix import Image, wgmma

ROWS, COLUMNS, K = 64, 8, 16  # of the instruction that is emulated
PRODUCTS = 8
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {"bf16": "bf16", "fp16": "f16"}  # PTX's


def factors(dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers whose products are far enough apart that it shows where a sum is cut: (ROWS, K) and (COLUMNS, K)."""
    random = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> torch.Tensor:
        exponents = torch.randint(-6, 7, (rows, K), generator=random)
        return (torch.randn(rows, K, generator=random) * 2.0**exponents).to(dtype)

    return draw(ROWS), draw(COLUMNS)


def patterns(x: torch.Tensor) -> np.ndarray:
    return x.view(torch.int16).numpy().view(np.uint16)


def recorded(device: str) -> dict[str, np.ndarray]:
    """The products on the device: of each dtype ``a``, ``b`` and ``d``."""
    out = {}
    for name, dtype in DTYPES.items():
        parts = []
        for seed in range(PRODUCTS):
            a, b = factors(dtype, seed)
            d = pygpt.ops.linear(a.to(device), b.to(device), out_dtype=torch.float32).cpu()
            used = pygpt.info()["last_used"]["linear"]
            if used != "cuda_sm90":
                raise SystemExit(f"record.py: ops.linear ran on {used}, but only sm_90 (or PYGPT_EMULATE=90) has wgmma")
            each = (ROWS, COLUMNS, K)
            factors_of_results = (np.broadcast_to(patterns(x), each).reshape(-1, K) for x in (a[:, None], b[None]))
            parts.append((*factors_of_results, d.reshape(-1).numpy().view(np.uint32)))
        for letter, values in zip("abd", zip(*parts, strict=True), strict=True):
            out[f"{name}_{letter}"] = np.concatenate(values)
    return out


def guessed(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The emulator's results, (results,), as bit patterns."""
    out = []
    zeros = np.zeros((ROWS, COLUMNS), np.uint32)
    for part in range(PRODUCTS):
        results = slice(part * ROWS * COLUMNS, (part + 1) * ROWS * COLUMNS)
        rows, columns = (x[results].reshape(ROWS, COLUMNS, K) for x in (a, b))
        images = [Image(x.astype(np.uint64), 2, 128) for x in (rows[:, 0], columns[0])]
        form = f"m64n8k16.f32.{NAMES[name]}.{NAMES[name]}"
        d = wgmma(lambda **settings: Device(**settings), form, *images, zeros, "f32", ", 1, 1, 0, 0", arith_seed=0)
        out.append(d.astype(np.float32).reshape(-1).view(np.uint32))
    return np.concatenate(out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="record.py", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE.npz")
    arguments = parser.parse_args(argv)
    if not pygpt.info()["emulated"] and not torch.cuda.is_available():
        parser.error("there is neither a GPU nor PYGPT_EMULATE=90")
    values = recorded("cpu" if pygpt.info()["emulated"] else "cuda")
    np.savez_compressed(arguments.file, **values)
    build()
    different = 0
    for name in DTYPES:
        a, b, d = (values[f"{name}_{letter}"] for letter in "abd")
        wrong = guessed(name, a, b) != d
        different += int(wrong.sum())
        print(f"wgmma, {name}: {wrong.sum()} of {len(d)} results are not the emulator's")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
