"""What the op kernels give at fixed inputs on the emulated device, and whether a card gives the same.

    PYGPT_EMULATE=90 python tests/emulator/agree.py record FILE.npz    # 80 for a card before Hopper
    python tests/emulator/agree.py compare FILE.npz                    # on the card; or emulated, as a test of this

The inputs are those of `pygpt doctor --check`, in each dtype that a CUDA implementation takes, gradients included. Bits
must agree where the operations are exact (`EXACT`); elsewhere differences must be within the error that the check
allows. What is not known of the card's arithmetic (README.md, "Arithmetic") shows as such differences.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pygpt
from pygpt import selfcheck
from pygpt.extension import C

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXACT = ("add", "dropout", "embedding")  # whose outputs are copies, or single operations with IEEE's rounding
Results = dict[str, np.ndarray[Any, np.dtype[np.float32]]]  # by "op implementation dtype, what"


def on(device: str, value: Any) -> Any:
    """An argument of an op on that device."""
    if isinstance(value, Tensor):
        return value.detach().to(device).requires_grad_(value.requires_grad)
    return [on(device, each) for each in value] if isinstance(value, list) else value


def results_of(check: selfcheck.Check, implementation: str, dtype: str, device: str) -> Results:
    """Outputs and gradients of one implementation; none if it does not take the dtype."""
    draw = selfcheck.Draw(DTYPES[dtype], seed=0)
    arguments = {name: on(device, value) for name, value in check.arguments(draw).items()}
    with pygpt.force(check.op, implementation), torch.device(device):
        try:
            value = check.ours(**arguments)
        except ValueError as error:
            if "no implementation takes these arguments" in str(error):
                return {}
            raise
    outputs = [value] if isinstance(value, Tensor) else list(value)
    found = {f"output {place}": output for place, output in enumerate(outputs)}
    if check.differentiable:
        leaves = [name for name, each in arguments.items() if isinstance(each, Tensor) and each.requires_grad]
        upstream = [on(device, draw.like(output)) for output in outputs]
        with pygpt.force(check.op, implementation):
            gradients = torch.autograd.grad(outputs, [arguments[name] for name in leaves], upstream)
        found |= {f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    case = f"{check.op} {implementation} {dtype}"
    return {f"{case}, {what}": tensor.detach().float().cpu().numpy() for what, tensor in found.items()}


def all_results(device: str, only: list[str]) -> Results:
    """Of every check on every CUDA implementation that runs here, or of the ops that are named."""
    found: Results = {}
    for op, entries in C.implementations():
        for check in (check for check in selfcheck.CHECKS if check.op == op and (not only or op in only)):
            for implementation in (name for name, reason in entries if name.startswith("cuda") and not reason):
                for dtype in DTYPES:
                    found |= results_of(check, implementation, dtype, device)
    return found


def differences(recorded: Results, now: Results) -> tuple[list[str], list[str]]:
    """A line for each case, and in words what does not agree."""
    lines, wrong = [], []
    for case in sorted({name.partition(",")[0] for name in recorded}):
        op, _, dtype = case.split()
        worst, equal, count = 0.0, 0, 0
        for name, before in ((name, x) for name, x in recorded.items() if name.startswith(case + ",")):
            if name not in now or now[name].shape != before.shape:
                wrong.append(f"{name}: {'other shapes' if name in now else 'not there'}")
                continue
            same = (now[name] == before) | (np.isnan(now[name]) & np.isnan(before))
            equal, count = equal + int(same.sum()), count + same.size
            allowed = selfcheck.ALLOWED * torch.finfo(DTYPES[dtype]).eps * float(np.abs(before).max(initial=0))
            if op in EXACT and "output" in name:
                allowed = 0.0
            for place in np.argwhere(~same)[:1]:
                difference = np.where(same, 0.0, np.abs(now[name].astype(np.float64) - before))
                largest = float(np.nan_to_num(difference, nan=np.inf).max())
                worst = max(worst, largest / allowed if allowed else np.inf)
                if not largest <= allowed:
                    at = tuple(int(i) for i in place)
                    words = f"{same.size - same.sum()} of {same.size} differ, first at {list(at)}: "
                    words += f"{float(now[name][at])!r}, recorded {float(before[at])!r}"
                    wrong.append(f"{name}: {words}; by at most {largest:.3g}, allowed {allowed:.3g}")
        lines.append(f"{case:50} {equal:6} of {count:6} equal, at most {worst:.3f} of the allowed difference")
    return lines, wrong


def main(argv: list[str] | None = None) -> int:
    """Record, or compare and return how many results do not agree, 1 at most."""
    parser = argparse.ArgumentParser(prog="agree.py", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("file", type=Path, metavar="FILE.npz")
    parser.add_argument("--only", action="append", default=[], metavar="OP", help="only this op; may be given again")
    arguments = parser.parse_args(argv)
    emulated = pygpt.info()["emulated"]
    if arguments.what == "compare" and not arguments.file.exists():
        parser.error(f"{arguments.file} is not there; record it under PYGPT_EMULATE")
    if not emulated and (arguments.what == "record" or not torch.cuda.is_available()):
        parser.error("record needs PYGPT_EMULATE=80 or 90, and compare that or a GPU")
    unknown = set(arguments.only) - {check.op for check in selfcheck.CHECKS}
    if unknown:
        parser.error(f"there is no op {', '.join(sorted(unknown))}")
    now = all_results("cpu" if emulated else "cuda", arguments.only)
    if arguments.what == "record":
        np.savez_compressed(arguments.file, **now)
        print(f"{len(now)} results recorded")
        return 0
    with np.load(arguments.file) as file:
        kept = {name: file[name] for name in file.files if not arguments.only or name.split()[0] in arguments.only}
    lines, wrong = differences(kept, now)
    print("\n".join(lines + wrong))
    print(f"{len(kept)} results recorded, {len(wrong)} of them do not agree")
    return int(bool(wrong) or not kept)


if __name__ == "__main__":
    sys.exit(main())
