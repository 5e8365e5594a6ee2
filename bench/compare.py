"""Every op and the whole model of GPT-2 small beside PyTorch: time, share of this machine's limit, error.

    python bench/compare.py                          every row, in under five minutes
    python bench/compare.py --only attention         one of them
    python bench/compare.py --full --json now.json   longer sequences, more rounds, torch.compile as a third rival
    python bench/compare.py --plot bars.png

With AVX2 only, on a processor that has more; the limit is then that of AVX2. The first line holds PyTorch to it, with
oneDNN and MKL; without that line PyTorch is as it is.

    export ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
    PYGPT_FORCE='*:cpu_avx2' python bench/compare.py --json avx2.json

How it measures. All contenders of a row run in one process, in turn, round by round; a row's time is the median of its
rounds. Before each measurement there are 25 ms of calls that do not count: the other's threads stop spinning, and a
processor that was idle comes to its full speed. On a GPU both are recorded as CUDA graphs and replayed, so that it is
the GPU's time that counts, but for texts that are written token by token. Freed memory stays with the process, for both
sides: how many pages the C library gives back after a call, and has to fetch anew for the next, is a matter of what
else lies on its heap, and takes as long as many an op. `ratio` is PyTorch's time over ours: above 1 pygpt is faster.
`of limit` is the time that the row's operations or its memory traffic would take at the best rate this machine reaches
(bench/rows.py says how many they are, pygpt/machine.py how the rate is measured), over our time, and which of the two
takes longer; it is above 100% where tensors stay in a cache. Errors are the largest difference from float64, over the
largest value, of the output and, with a backward pass, of the gradients, at fewer rows (batch 1, time 256). Nothing
else should run on the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import itertools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import pygpt
from pygpt import machine
from pygpt.cli import Parser
from pygpt.extension import C
from pygpt.files import atomic_write_json
from pygpt.train.config import MOST_THREADS

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # behind the installed pygpt
from bench import gpu, models, rows  # noqa: E402
from bench.case import Call, Case  # noqa: E402
from bench.plot import plot  # noqa: E402

SHORT_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    sizes: rows.Sizes  # of the ops
    model_time: int  # of the whole-model rows
    rounds: int  # at least
    seconds: float  # for a case, if that is enough for its rounds
    compiled: bool = False


QUICK = Settings(rows.Sizes(batch=4, time=1024, head_rows=512), model_time=256, rounds=3, seconds=1.0)
FULL = Settings(rows.Sizes(batch=4, time=1024, head_rows=4096), model_time=1024, rounds=7, seconds=3.0, compiled=True)
ON_GPU = Settings(rows.Sizes(batch=16, time=1024, head_rows=4096), model_time=1024, rounds=3, seconds=0.3)
# What holds back pygpt, PyTorch and PyTorch's libraries, read when they are loaded.
LIMITING = ("PYGPT_FORCE", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
FAR_BEHIND = 20  # times as slow as the fastest
LONG = 60.0  # seconds of a call: PyTorch's products in bfloat16 without AVX-512 are that slow
WARM_UP = 0.025  # seconds of calls that do not count: a processor that was idle takes about as long to its full speed


@dataclass(frozen=True)
class Result:
    """A measured case."""

    op: str | None
    name: str
    shape: str
    dtype: str
    direction: str
    implementation: str
    rounds: int
    seconds: float
    peer_seconds: float  # PyTorch eager
    compiled_seconds: float | None  # torch.compile
    rival_seconds: dict[str, float]  # other ways that PyTorch has
    ratio: float  # of PyTorch eager's time to ours
    operations: float | None
    bytes: float | None
    limit: str | None  # "arithmetic" or "memory", whichever takes longer at its best
    share: float | None  # of that limit
    error: float
    peer_error: float | None


def every_case(settings: Settings) -> Iterator[Case]:
    """All lines of the table."""
    small_rows = rows.op_rows(rows.Sizes(batch=1, time=256, head_rows=64))
    for row, small in zip(rows.op_rows(settings.sizes), small_rows, strict=True):
        yield from rows.cases(row, small)
    yield from rows.cases(rows.overhead_row(), rows.overhead_row())
    yield from models.cases(models.SMALL, settings.sizes.batch, settings.model_time)
    if gpu.in_use():
        for config in (models.SMALL, models.XL):
            yield from models.decode_cases(config)
        for dtype in rows.HALVES:
            for row, small in rows.gpu_rows():
                yield from rows.cases(dataclasses.replace(row, dtypes=(dtype,)), small)


def measure(case: Case, settings: Settings) -> Result:
    contenders = case.contenders(settings.compiled)
    if settings.compiled:
        torch._dynamo.reset()  # so that no row is compiled with another's sizes in mind
    seconds, rounds = median_seconds(contenders, settings, case.recorded)
    implementation = C.last_used(case.op) if case.op else None  # of a model: those of its ops
    contenders.clear()  # and with them their inputs
    limit = limit_seconds = None
    if case.work:
        at_best = {
            "arithmetic": case.work.operations / peak_arithmetic(case.work.multiplied_as or case.dtype),
            "memory": case.work.bytes(case.dtype) / memory_bandwidth(),
        }
        limit, limit_seconds = max(at_best.items(), key=lambda item: item[1])
    error, peer_error = case.errors()
    return Result(
        op=case.op,
        name=case.name,
        shape=case.shape,
        dtype=SHORT_DTYPES[case.dtype],
        direction=case.direction,
        implementation=implementation or "",
        rounds=rounds,
        seconds=seconds["pygpt"],
        peer_seconds=seconds["eager"],
        compiled_seconds=seconds.get("compiled"),
        rival_seconds={name: s for name, s in seconds.items() if name not in ("pygpt", "eager", "compiled")},
        ratio=seconds["eager"] / seconds["pygpt"],
        operations=case.work.operations if case.work else None,
        bytes=case.work.bytes(case.dtype) if case.work else None,
        limit=limit,
        share=limit_seconds / seconds["pygpt"] if limit_seconds else None,
        error=error,
        peer_error=peer_error,
    )


def peak_arithmetic(dtype: torch.dtype) -> float:
    return gpu.peak_arithmetic(dtype) if gpu.in_use() else machine.peak_arithmetic(dtype)


@functools.cache
def memory_bandwidth() -> float:
    return gpu.memory_bandwidth() if gpu.in_use() else machine.memory_bandwidth()


def median_seconds(contenders: dict[str, Call], settings: Settings, recorded: bool) -> tuple[dict[str, float], int]:
    """The median time of a call of each contender, and over how many rounds."""
    once = {name: timed(call) for name, call in contenders.items()}  # warms up
    again = {name for name, seconds in once.items() if seconds < 1 or gpu.in_use()}
    once = {name: timed(call) if name in again else once[name] for name, call in contenders.items()}
    # A rival that is far behind is not worth the time of rounds; what takes very long is not, unless it is ours.
    most = {name: LONG if name == "eager" else min(LONG, FAR_BEHIND * min(once.values())) for name in list(once)[1:]}
    far_behind = {name: [once[name]] for name in most if once[name] > most[name]}
    near = {name: call for name, call in contenders.items() if name not in far_behind}
    measurements = {name: measurement(call, once[name], recorded) for name, call in near.items()}
    rounds = min(25, max(settings.rounds, int(settings.seconds / sum(max(once[name], 0.01) for name in near))))
    samples: dict[str, list[float]] = {name: [] for name in near}
    for number in range(rounds):
        order = list(near) if number % 2 == 0 else list(reversed(near))
        for name in order:
            samples[name].append(measurements[name]())
    return {name: statistics.median(values) for name, values in (samples | far_behind).items()}, rounds


def measurement(call: Call, once: float, recorded: bool) -> Callable[[], float]:
    """A way to take the time of a call that took ``once`` seconds."""
    if gpu.in_use() and recorded:
        return gpu.seconds_of_work(call, repeats=max(1, int(0.001 / once)))
    repeats = max(1, int(0.005 / once))  # of a call too short to time

    def measure() -> float:
        end = time.perf_counter() + WARM_UP
        while once < 0.1 and time.perf_counter() < end:
            call()
        return timed(call, repeats)

    return measure


def timed(call: Call, repeats: int = 1) -> float:
    """Seconds of a call; on a GPU until its work is done."""
    synchronize = torch.cuda.synchronize if gpu.in_use() else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - start) / repeats


def setting() -> dict[str, Any]:
    """Where and of what the results are: hardware, its limits and how they are measured, versions, date, commit."""
    dtypes = (torch.float32, torch.bfloat16)
    on_gpu = gpu.in_use()
    return {
        **(gpu.description() if on_gpu else {}),
        "processor": machine.cpu_name(),
        "threads": torch.get_num_threads(),
        "memory_bytes": machine.memory_bytes(),
        "last_level_cache_bytes": machine.last_level_cache_bytes(),
        "operations_per_second": {SHORT_DTYPES[dtype]: peak_arithmetic(dtype) for dtype in dtypes},
        "operations_measured_by": {
            SHORT_DTYPES[dtype]: f"torch's product of matrices of {gpu.PRODUCT_SIZE}²"
            if on_gpu
            else f"multiply-adds of {machine.instruction_set(dtype)} on registers"
            for dtype in dtypes
        },
        "bytes_per_second": memory_bandwidth(),
        "bytes_measured_by": "a copy of 1 GiB, read and written"
        if on_gpu
        else "reading a buffer of eight last-level caches",
        "environment": {name: os.environ[name] for name in LIMITING if os.environ.get(name)},
        "pygpt": pygpt.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def commit() -> str:
    """The checkout's commit, marked if something in it has changed; "unknown" outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def setting_text(where: dict[str, Any]) -> str:
    rates = ", ".join(
        f"{rate / 1e9:.0f} G operations/s in {dtype} ({where['operations_measured_by'][dtype]})"
        for dtype, rate in where["operations_per_second"].items()
    )
    return (
        f"pygpt {where['pygpt']} ({where['commit']}) beside torch {where['torch']}, {where['date']}\n"
        f"{where['gpu'] + ', CUDA ' + where['cuda'] + '; ' if 'gpu' in where else ''}"
        f"{where['processor']}, {where['threads']} threads, {where['memory_bytes'] / 2**30:.0f} GiB\n"
        f"{environment_text(where['environment'])}"
        f"limits: {rates}\n"
        f"        {where['bytes_per_second'] / 1e9:.1f} GB/s ({where['bytes_measured_by']})"
    )


def environment_text(environment: dict[str, str]) -> str:
    return f"with {' '.join(f'{name}={value}' for name, value in environment.items())}\n" if environment else ""


def results_table(results: list[Result]) -> Table:
    compiled = any(result.compiled_seconds for result in results)
    out = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("what", "shape", "dtype", "implementation"):
        out.add_column(name, no_wrap=True)
    rivals = ["PyTorch", "ratio", *(["compiled", "ratio"] if compiled else [])]
    others = ["others"] if any(result.rival_seconds for result in results) else []
    for name in ("pygpt", *rivals, *others, "rate", "of limit", "error", "PyTorch's"):
        out.add_column(name, justify="right", no_wrap=True)
    for name, group in itertools.groupby(results, key=lambda result: result.name):
        for result in group:
            title = name if result.direction == "forward" or not result.op else f"{name}, {result.direction}"
            cells = [title, f"[dim]{result.shape}[/]", result.dtype, result.implementation, time_text(result.seconds)]
            cells += [time_text(result.peer_seconds), ratio_text(result.ratio)]
            if compiled:
                rival = result.compiled_seconds
                cells += [time_text(rival), ratio_text(rival / result.seconds)] if rival else ["", ""]
            if others:
                cells.append(", ".join(f"{name} {time_text(s)}" for name, s in result.rival_seconds.items()))
            cells.append(rate_text(result))
            cells.append("" if result.share is None else f"{result.share:.0%} {result.limit}")
            cells += [error_text(result.error), error_text(result.peer_error)]
            out.add_row(*cells)
        out.add_row()
    return out


def time_text(seconds: float) -> str:
    """Three digits with a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def rate_text(result: Result) -> str:
    """Of what limits a case: operations or bytes in a second."""
    if result.limit is None:
        return ""
    amount, unit = (result.operations, "FLOP/s") if result.limit == "arithmetic" else (result.bytes, "B/s")
    rate = (amount or 0) / result.seconds
    scale, prefix = (1e12, "T") if rate >= 1e12 else (1e9, "G")
    return f"{rate / scale:.3g} {prefix}{unit}"


def ratio_text(ratio: float) -> str:
    return f"[{'green' if ratio >= 1 else 'red'}]{ratio:.2f}[/]"


def error_text(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}" if error else "0"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="an op, 'train step', 'prefill', 'decode', or 'model'")
    parser.add_argument("--threads", type=int, metavar="N", help="for both sides (default: torch's choice)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default: cpu)")
    parser.add_argument("--compile", action="store_true", help="torch.compile as a third contender")
    parser.add_argument("--full", action="store_true", help="the model at time 1024, seven rounds, torch.compile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios as bars")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda":
        why_none = C.cuda_devices()[1] or ("" if torch.cuda.is_available() else "this torch is built without CUDA")
        if why_none:
            parser.error(f"--device cuda: {why_none}")
    if arguments.threads is not None and not 1 <= arguments.threads <= MOST_THREADS:
        parser.error(f"--threads must be from 1 to {MOST_THREADS}, but is {arguments.threads}")
    for file in (arguments.json, arguments.plot):
        if file and not file.parent.is_dir():
            parser.error(f"there is no folder {file.parent} to write {file.name} into")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    machine.keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda":
        torch.set_default_device("cuda")
    settings = FULL if arguments.full else ON_GPU if gpu.in_use() else QUICK
    settings = dataclasses.replace(settings, compiled=settings.compiled or arguments.compile)
    cases = list(every_case(settings))
    if gpu.in_use():
        kernels = gpu.ops()
        needed = {op for op, _ in C.implementations()} - {"quantized_linear"}  # by a model
        cases = [case for case in cases if (case.op in kernels if case.op else kernels >= needed)]
    if arguments.only:
        chosen = [case for case in cases if arguments.only in (case.name, case.op or "model")]
        if not chosen:
            names = ", ".join(dict.fromkeys(case.op or case.name for case in cases))
            print(f"compare.py: error: --only must be one of {names}, model, not {arguments.only}", file=sys.stderr)
            return 2
        cases = chosen

    console = Console()
    console = console if console.is_terminal else Console(width=220)
    where = setting()
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=f"{case.name}, {SHORT_DTYPES[case.dtype]}, {case.direction}")
            results.append(measure(case, settings))
            progress.advance(task)
            measured = {**where, "results": [dataclasses.asdict(result) for result in results]}
            if arguments.json:  # at once: an interruption loses nothing
                atomic_write_json(arguments.json, measured)
    console.print(results_table(results))
    console.print(setting_text(where), highlight=False)
    if arguments.plot:
        plot(measured, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
