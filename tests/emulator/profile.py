"""What kernels use, by line of their source, worst first: counts of PTX instructions, no times.

    python -m tests.emulator.profile -c "ops.layer_norm(torch.randn(64, 768), torch.ones(768))"
    python -m tests.emulator.profile --by conflicts --top 5 -- python -m pytest -q tests/ops/test_linear.py
    python -m tests.emulator.profile --time --reuse 100 -c "ops.linear(torch.randn(256, 512), torch.randn(128, 512))"

Columns: instructions issued a warp at a time; lanes that took part, of 32; wavefronts of shared memory beyond what no
bank conflict would need; 32-byte sectors of global memory beyond what the bytes asked for fill; multiply-adds of tensor
cores; turns that ended here waiting. With --time the last column is cycles that warps waited in the timing model, and
what for: computed, not measured, and good for ranking designs that differ by 10 % and more (README.md).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
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
    "stalls": lambda c: sum(c.get("stalls", {}).values()),
}
# The model's order of execution is one of many, so looking for races in it is not worth the time.
TIMED = {
    "TIMING": "1",
    "FAST_MMA": "1",
    **{f"CHECK_{check}": "0" for check in ("RACES", "WARP_RACES", "GLOBAL", "INIT", "PROXY", "ASYNC")},
}


def add(into: Counts, counts: Counts) -> None:
    for name, value in counts.items():
        if isinstance(value, int):
            into[name] = into.get(name, 0) + value
        elif name == "stalls":
            add(into.setdefault(name, {}), value)


def by_kernel(launches: list[Counts]) -> list[Counts]:
    """One entry a kernel, all its launches added up, in order of instructions."""
    kernels: dict[str, Counts] = {}
    for launch in launches:
        k = kernels.setdefault(
            launch["kernel"], {"kernel": launch["kernel"], "launches": 0, "classes": {}, "lines": {}}
        )
        k["launches"] += 1
        if "timing" in launch:
            k.setdefault("timings", []).append(launch["timing"])
        add(k, launch)
        add(k["classes"], launch["classes"])
        for line in launch["lines"]:
            add(k["lines"].setdefault(line["line"], defaultdict(int)), line)
    return sorted(kernels.values(), key=lambda k: -k["instructions"])


def mainly(shares: dict[str, float], most: int, least: float = 0.005) -> str:
    """The largest of some shares, in words."""
    largest = sorted(shares.items(), key=lambda s: -s[1])[:most]
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in largest if share >= least)


def modelled(kernel: Counts) -> list[str]:
    """What the timing model says of a kernel's launches, the longest one in detail."""
    t = max(kernel["timings"], key=lambda t: t["cycles"])
    cycles = sum(t["cycles"] for t in kernel["timings"])
    stalled = sum(kernel["stalls"].values()) or 1
    return [
        f"  timing model (computed, not measured): {cycles:,} cycles; the longest launch {t['cycles']:,}, with "
        f"{t['clusters']} clusters on {t['multiprocessors']} multiprocessors, {t['at_a_time']} at a time",
        f"  busy: {mainly(t['busy'], 9)}; {t['tensor_tflops_if_all_do_the_same']:.0f} tensor TFLOP/s if all "
        "multiprocessors do the same",
        f"  warps wait for: {mainly({s: n / stalled for s, n in kernel['stalls'].items()}, 6)}",
    ]


def report(kernel: Counts, by: str, top: int) -> str:
    measure = MEASURES[by]
    classes = ", ".join(f"{n:,} {name}" for name, n in sorted(kernel["classes"].items(), key=lambda c: -c[1]) if n)
    out = [
        f"{kernel['kernel']}: {kernel['launches']} launches, {kernel['instructions']:,} warp instructions ({classes})"
    ]
    timed = "timings" in kernel
    if timed:
        out += modelled(kernel)
    head, last = f"{by} %", "stalls" if timed else "waits"
    out.append(f"{head:>16} {'issued':>12} {'lanes':>6} {'conflicts':>10} {'sectors':>9} {'macs':>14} {last:>10}  line")
    total = sum(measure(c) for c in kernel["lines"].values()) or 1
    lines = sorted(kernel["lines"].items(), key=lambda item: -measure(item[1]))
    for place, c in [line for line in lines if measure(line[1]) > 0][:top]:
        lanes = c["lanes"] / c["instructions"] if c["instructions"] else 0
        out.append(
            f"{100 * measure(c) / total:16.1f} {c['instructions']:12,} {lanes:6.1f} {MEASURES['conflicts'](c):10,} "
            f"{MEASURES['sectors'](c):9,} {c['tensor_macs']:14,} {MEASURES[last](c):10,}  {place}"
            + (f"  ({max(c['stalls'], key=c['stalls'].get)})" if c.get("stalls") else "")
        )
    return "\n".join(out)


def profile(
    run: Callable[..., target.Outcome], timeout: float = 600, options: Mapping[str, str] | None = None
) -> list[Counts]:
    """The counts of every launch of one run, under these options of the emulator."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counts"
        settings = {"COUNT": "1", "COUNTS_FILE": str(file), **(options or {})}
        outcome = run({f"PYGPT_EMULATOR_{name}": value for name, value in settings.items()}, timeout)
        if not outcome.passed:
            raise SystemExit(f"the run failed: {outcome.why}")
        return [json.loads(row) for row in file.read_text().splitlines()] if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by", choices=MEASURES, help="what is worst (default: instructions, or with --time stalls)")
    parser.add_argument("--top", type=int, default=15, help="lines shown of each kernel (default 15)")
    parser.add_argument("--json", type=Path, help="also write the counts to this file")
    parser.add_argument("--time", action="store_true", help="run in the order of modelled time, on one multiprocessor")
    parser.add_argument(
        "--reuse",
        default="1",
        help="with --time: multiprocessors that use a byte of DRAM; 1 a stream, 100 all is in L2",
    )
    parser.add_argument("--registers", default="128", help="with --time: of a thread, as ptxas says (default 128)")
    parser.add_argument("--clusters", default="0", help="with --time: the first that many only; results are then wrong")
    target.add_arguments(parser)
    options = parser.parse_args()
    by = options.by or ("stalls" if options.time else "instructions")
    if by == "stalls" and not options.time:
        parser.error("--by stalls needs --time")
    timed = {
        **TIMED,
        "TIMING_REUSE": options.reuse,
        "TIMING_REGISTERS": options.registers,
        "TIMING_CLUSTERS": options.clusters,
    }
    kernels = by_kernel(profile(target.from_arguments(options).run, options=timed if options.time else None))
    if options.json:
        options.json.write_text(json.dumps(kernels, indent=1))
    if not kernels:
        raise SystemExit("no emulated kernel ran")
    print("\n\n".join(report(k, by, options.top) for k in kernels))


if __name__ == "__main__":
    main()
