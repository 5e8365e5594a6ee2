"""What kernels use, by line of their source, worst first: counts of PTX instructions, no times.

    python -m tests.emulator.profile -c "ops.layer_norm(torch.randn(64, 768), torch.ones(768))"
    python -m tests.emulator.profile --by conflicts --top 5 -- python -m pytest -q tests/ops/test_linear.py

Columns: instructions issued a warp at a time; lanes that took part, of 32; wavefronts of shared memory beyond what no
bank conflict would need; 32-byte sectors of global memory beyond what the bytes asked for fill; multiply-adds of tensor
cores; turns that ended here waiting.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.emulator import target

Counts = dict[str, Any]

MEASURES: dict[str, Callable[[Counts], float]] = {
    "instructions": lambda c: c["instructions"],
    "divergent": lambda c: c["divergent"],
    "conflicts": lambda c: c["shared_wavefronts"] - c["shared_ideal"],
    "sectors": lambda c: c["global_sectors"] - c["global_ideal"],
    "macs": lambda c: c["tensor_macs"],
    "waits": lambda c: c["waits"],
}


def add(into: Counts, counts: Counts) -> None:
    for name, value in counts.items():
        if isinstance(value, int):
            into[name] = into.get(name, 0) + value


def by_kernel(launches: list[Counts]) -> list[Counts]:
    """One entry a kernel, all its launches added up, in order of instructions."""
    kernels: dict[str, Counts] = {}
    for launch in launches:
        k = kernels.setdefault(
            launch["kernel"], {"kernel": launch["kernel"], "launches": 0, "classes": {}, "lines": {}}
        )
        k["launches"] += 1
        add(k, launch)
        add(k["classes"], launch["classes"])
        for line in launch["lines"]:
            add(k["lines"].setdefault(line["line"], defaultdict(int)), line)
    return sorted(kernels.values(), key=lambda k: -k["instructions"])


def report(kernel: Counts, by: str, top: int) -> str:
    measure = MEASURES[by]
    classes = ", ".join(f"{n:,} {name}" for name, n in sorted(kernel["classes"].items(), key=lambda c: -c[1]) if n)
    out = [
        f"{kernel['kernel']}: {kernel['launches']} launches, {kernel['instructions']:,} warp instructions ({classes})"
    ]
    head = f"{by} %"
    out.append(
        f"{head:>16} {'issued':>12} {'lanes':>6} {'conflicts':>10} {'sectors':>9} {'macs':>14} {'waits':>8}  line"
    )
    total = sum(measure(c) for c in kernel["lines"].values()) or 1
    lines = sorted(kernel["lines"].items(), key=lambda item: -measure(item[1]))
    for place, c in [line for line in lines if measure(line[1]) > 0][:top]:
        lanes = c["lanes"] / c["instructions"] if c["instructions"] else 0
        out.append(
            f"{100 * measure(c) / total:16.1f} {c['instructions']:12,} {lanes:6.1f} {MEASURES['conflicts'](c):10,} "
            f"{MEASURES['sectors'](c):9,} {c['tensor_macs']:14,} {c['waits']:8,}  {place}"
        )
    return "\n".join(out)


def profile(run: Callable[..., target.Outcome], timeout: float = 600) -> list[Counts]:
    """The counts of every launch of one run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counts"
        outcome = run({"PYGPT_EMULATOR_COUNT": "1", "PYGPT_EMULATOR_COUNTS_FILE": str(file)}, timeout)
        if not outcome.passed:
            raise SystemExit(f"the run failed: {outcome.why}")
        return [json.loads(row) for row in file.read_text().splitlines()] if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by", choices=MEASURES, default="instructions", help="what is worst (default: instructions)")
    parser.add_argument("--top", type=int, default=15, help="lines shown of each kernel (default 15)")
    parser.add_argument("--json", type=Path, help="also write the counts to this file")
    target.add_arguments(parser)
    options = parser.parse_args()
    kernels = by_kernel(profile(target.from_arguments(options).run))
    if options.json:
        options.json.write_text(json.dumps(kernels, indent=1))
    if not kernels:
        raise SystemExit("no emulated kernel ran")
    print("\n\n".join(report(k, options.by, options.top) for k in kernels))


if __name__ == "__main__":
    main()
