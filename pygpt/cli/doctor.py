"""Say what this installation is made of, what it uses on this machine and why, and how fast the machine is.

Example:
  pygpt doctor
  pygpt doctor --explain     every implementation of every op, and why it does not run here
  pygpt doctor --check       run them all on small inputs and compare with float64; exit code 1 if one is wrong
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from pygpt.selfcheck import Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which flags there are."""
    parser.add_argument("--explain", action="store_true", help="list every implementation of every op, with reasons")
    parser.add_argument("--check", action="store_true", help="compare every implementation with float64")


def run(arguments: argparse.Namespace) -> int:
    """Print the report; the exit code is 1 if ``--check`` found an error."""
    from rich.console import Console

    console = Console()
    for table in (installation(), machine_table(), explanation() if arguments.explain else in_use()):
        console.print(table)
        console.print()
    if not arguments.check:
        return 0
    from pygpt.selfcheck import check_all

    results = check_all()
    console.print(check_table(results))
    wrong = [result for result in results if result.wrong]
    for result in wrong:
        console.print(f"[red]wrong:[/red] {result.op} {result.implementation} {result.dtype}: {result.wrong}")
    console.print(f"{len(wrong)} of {len(results)} checks failed" if wrong else f"all {len(results)} checks passed")
    return 1 if wrong else 0


def _facts(title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    return table


def _instruction_sets() -> dict[str, str]:
    """Those that this build has kernels for, best first, and why they do not run here; empty: they do."""
    from pygpt.extension import EMULATED, C
    from pygpt.info import CPU_ISAS

    found = dict(C.instruction_sets())  # that general kernels are compiled for
    for _, entries in C.implementations():
        for name, reason in entries:
            if name.startswith("cpu_"):  # which refuse all tensors where these are on an emulated device
                found.setdefault(name.removeprefix("cpu_"), "" if EMULATED else reason)
    return {name: found[name] for name in CPU_ISAS if name in found}


def installation() -> Table:
    """What was built, and beside which torch it runs."""
    import platform

    import pygpt
    from pygpt.extension import C

    info, build = pygpt.info(), C.build()
    table = _facts("Installation")
    table.add_row("pygpt", f"{info['version']}, Python {platform.python_version()}, torch {info['torch']}")
    table.add_row("compiled by", build["compiler"])
    table.add_row("instruction sets", ", ".join(_instruction_sets()))
    if info["cuda_architectures"]:
        table.add_row("CUDA", f"{', '.join(info['cuda_architectures'])} (nvcc {build['cuda_compiler']})")
    else:
        table.add_row("CUDA", f"not built: {build['cuda_absent']}")
    if info["emulated"]:
        table.add_row("emulated", f"CPU tensors run the kernels of {info['emulated']}")
    return table


def machine_table() -> Table:
    """What the machine has, and how fast that is."""
    import os

    import torch

    import pygpt
    from pygpt import machine
    from pygpt.extension import C

    table = _facts("Machine")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    table.add_row("processor", f"{machine.cpu_name()}, {cores} cores, {machine.memory_bytes() / 2**30:.1f} GiB")
    missing = [why_not for why_not in _instruction_sets().values() if why_not]
    if missing:
        table.add_row("", "; ".join(missing))
    gpus = [device for device in pygpt.info()["devices"] if device["device"] != "cpu"]
    for gpu in gpus:
        major, minor = gpu["compute_capability"]
        table.add_row(
            gpu["device"],
            f"{gpu['name']}, compute capability {major}.{minor}, {gpu['multiprocessors']} multiprocessors, "
            f"{gpu['memory_bytes'] / 2**30:.1f} GiB, {gpu['shared_memory_bytes'] // 2**10} KiB shared memory a block",
        )
    if not gpus:
        table.add_row("GPU", f"none: {C.cuda_devices()[1]}")
    table.add_row("threads", f"{torch.get_num_threads()}, as torch.get_num_threads() says")
    for dtype in (torch.float32, torch.bfloat16):
        table.add_row(
            f"arithmetic, {str(dtype).removeprefix('torch.')}",
            f"{machine.peak_arithmetic(dtype) / 1e9:.0f} G operations/s "
            f"(multiply-adds of {machine.instruction_set(dtype)} on registers)",
        )
    table.add_row("main memory", f"{machine.memory_bandwidth() / 1e9:.1f} GB/s read")
    return table


def _op_table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def _choice(op: str, entries: list[tuple[str, str]]) -> tuple[str, str]:
    """Which implementation of an op runs on the CPU, and why that one."""
    from pygpt.extension import C

    forced = C.forced(op)
    if forced:
        return forced, dict(entries)[forced] or "forced"
    for place, (name, reason) in enumerate(entries):
        if not reason:
            return name, _reasons(entries[:place]) or "the first of its table"
    return "none", _reasons(entries)


def _reasons(entries: list[tuple[str, str]]) -> str:
    """Why entries do not run, each reason once."""
    names: dict[str, list[str]] = {}
    for name, reason in entries:
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(of_reason)}: {reason}" for reason, of_reason in names.items())


def in_use() -> Table:
    """The implementation of each op that runs here, and why."""
    from pygpt.extension import C

    table = _op_table("In use", "op", "implementation", "because")
    for op, entries in C.implementations():
        table.add_row(op, *_choice(op, entries))
    return table


def explanation() -> Table:
    """Every implementation of every op, best first, and why it does or does not run here."""
    from pygpt.extension import C

    table = _op_table("Implementations, best first", "op", "implementation", "here")
    for op, entries in C.implementations():
        chosen, _ = _choice(op, entries)
        runs = "[green]runs[/green], forced" if C.forced(op) else "[green]runs[/green], the first that can"
        left = C.options_left(op)
        for name, reason in entries:
            verdict = reason or (runs if name == chosen else "would run, but is not the first")
            if name in left:
                verdict += f"; leaves to the next: {left[name]}"
            table.add_row(op if name == entries[0][0] else "", name, verdict)
    return table


def check_table(results: list[Result]) -> Table:
    """The errors of every implementation, forward and gradients."""
    dtypes = list(dict.fromkeys(result.dtype for result in results))
    table = _op_table("Largest error against float64, relative to the largest value", "op", "implementation", *dtypes)
    for op, implementation in dict.fromkeys((result.op, result.implementation) for result in results):
        cells = {r.dtype: r for r in results if (r.op, r.implementation) == (op, implementation)}
        table.add_row(op, implementation, *(_cell(cells.get(dtype)) for dtype in dtypes))
    return table


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    return f"[red]{result.error:.1e} wrong[/red]" if result.wrong else f"{result.error:.1e}"
