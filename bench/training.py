"""A training step of GPT-2 124M: tokens a second with one thread and with more, and the memory that it takes.

    python bench/training.py                      pygpt, pygpt with whole logits, PyTorch
    python bench/training.py --compile            torch.compile, too
    python bench/training.py --only pygpt --json now.json

A step is that of compare.py's `train step`: the loss, all gradients, AdamW; in fp32, and in bf16 by autocast. `whole
logits` is pygpt without `linear_cross_entropy`: it computes the logits of all tokens, and `cross_entropy` of them, as
PyTorch's side does.

How it measures. Every contender has a process of its own. Those of one dtype train in turn, round by round, with all
threads and with one; a round that does not count comes first, and a figure is the median of the others. `scaling` is
the rate with all threads over that with one. There freed memory stays with the process, as in compare.py. `torch's
threads awake` is pygpt while PyTorch's thread pool is alive and busy waiting beside ours: before each module's forward
and backward pass, torch gives its threads a sum of 65,536 numbers to compute.

Memory is the peak of what is resident in the process (VmHWM) after two steps, less what was resident (VmRSS) before
there was a model, with torch and pygpt imported: so weights, gradients, AdamW's state, activations, and all that the
libraries take to compute with count, torch.compile's compiler too. In the second step AdamW's state is there from the
beginning. It is measured in further processes, with malloc as it comes, at two lengths of a row. Nothing else should
run on the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pygpt import GPTConfig
from pygpt.cli import Parser
from pygpt.files import atomic_write_json
from pygpt.train.config import MOST_THREADS

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # behind the installed pygpt
from bench import compare, models  # noqa: E402
from bench.training_contenders import DTYPES  # noqa: E402
from bench.worker import Worker, in_turn  # noqa: E402

LABELS = {"eager": "PyTorch eager", "compiled": "torch.compile"}  # of those that have not their name
AWAKE = "pygpt, torch's threads awake"
PROGRAM = "training_contenders.py"


@dataclass(frozen=True)
class Result:
    """One contender with one dtype."""

    label: str
    dtype: str
    seconds: float  # of a step with all threads
    tokens_per_second: float
    one_thread_seconds: float | None
    scaling: float | None
    memory_bytes: dict[str, int]  # by the tokens of a row


def measure(who: list[str], dtype: str, arguments: argparse.Namespace, config: GPTConfig) -> list[Result]:
    """All contenders with one dtype."""
    shape = config.to_dict(), dtype, arguments.batch
    lengths = (arguments.time, arguments.long)
    memory = {
        each: {str(time): _peak_memory(each, [each, *shape, time, False], arguments.threads) for time in lengths}
        for each in track(who, f"memory, {dtype}", console=Console(stderr=True), transient=True)
    }
    workers = {each: Worker(each, PROGRAM, [each, *shape, arguments.time, True], arguments.threads) for each in who}
    # Who, with how many threads, and whether torch's are awake.
    turns = [(each, threads, False) for each in who for threads in dict.fromkeys((arguments.threads, 1))]
    turns += [("pygpt", arguments.threads, True)] if "pygpt" in who else []
    seconds: dict[tuple[str, int, bool], list[float]] = {turn: [] for turn in turns}
    for counts, order in in_turn(turns, arguments.rounds):
        for turn in track(order, f"speed, {dtype}", console=Console(stderr=True), transient=True):
            each, *request = turn
            taken, _ = workers[each].ask(request)
            if counts:
                seconds[turn].append(taken)
    for worker in workers.values():
        worker.close()
    tokens = arguments.batch * arguments.time
    out = []
    for each, threads, awake in turns:
        if threads != arguments.threads:
            continue
        median = statistics.median(seconds[each, threads, awake])
        alone = None if awake else statistics.median(seconds[each, 1, False])
        out.append(
            Result(
                label=AWAKE if awake else LABELS.get(each, each),
                dtype=dtype,
                seconds=median,
                tokens_per_second=tokens / median,
                one_thread_seconds=alone,
                scaling=alone / median if alone else None,
                memory_bytes={} if awake else memory[each],
            )
        )
    return out


def _peak_memory(name: str, options: list[Any], threads: int) -> int:
    """After two steps of a process of its own."""
    worker = Worker(name, PROGRAM, options, threads)
    for _ in range(2):
        _, peak = worker.ask([threads, False])
    worker.close()
    return int(peak)


def results_table(results: list[Result], arguments: argparse.Namespace) -> Table:
    out = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("what", "dtype"):
        out.add_column(name, no_wrap=True)
    threads = f"{arguments.threads} threads" if arguments.threads > 1 else "1 thread"
    lengths = [f"memory, {arguments.batch} × {time}" for time in results[0].memory_bytes]
    for name in ("tok/s, 1 thread", f"tok/s, {threads}", "step", "scaling", *lengths):
        out.add_column(name, justify="right", no_wrap=True)
    for each in results:
        tokens = each.seconds * each.tokens_per_second
        out.add_row(
            each.label,
            each.dtype,
            f"{tokens / each.one_thread_seconds:.0f}" if each.one_thread_seconds else "",
            f"{each.tokens_per_second:.0f}",
            compare.time_text(each.seconds),
            f"{each.scaling:.2f}×" if each.scaling else "",
            *(f"{size / 2**20:.0f} MiB" for size in each.memory_bytes.values()),
        )
    return out


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="training.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="rows (default: 4)")
    parser.add_argument("--time", type=int, default=256, metavar="N", help="tokens of a row (default: 256)")
    parser.add_argument(
        "--long", type=int, default=1024, metavar="N", help="of a longer one, for memory (default: 1024)"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="that count (default: 3)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), metavar="N", help="the most (default: all)"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile as a contender")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="contenders whose name has it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    arguments = parser.parse_args(argv)
    for name in ("batch", "time", "long", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, but is {getattr(arguments, name)}")
    if not 1 <= arguments.threads <= MOST_THREADS:
        parser.error(f"--threads must be from 1 to {MOST_THREADS}, but is {arguments.threads}")
    if arguments.json and not arguments.json.parent.is_dir():
        parser.error(f"there is no folder {arguments.json.parent} to write {arguments.json.name} into")
    if not list(chosen(arguments)):
        names = ", ".join(LABELS.get(each, each) for each in models.LEARNERS)
        parser.error(f"--only must be in one of {names}, but is {', '.join(arguments.only)}")
    return arguments


def chosen(arguments: argparse.Namespace) -> Iterator[str]:
    for each in models.LEARNERS:
        named = not arguments.only or any(word in LABELS.get(each, each) for word in arguments.only)
        if named and (each != "compiled" or arguments.compile):
            yield each


def main(argv: list[str] | None = None, config: GPTConfig = models.SMALL) -> int:
    """Run it; ``config`` is that of the model."""
    arguments = parse(argv)
    if max(arguments.time, arguments.long) > config.context_length:
        limit = config.context_length
        print(f"training.py: error: --time and --long must be at most {limit}", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    where = compare.setting()
    results: list[Result] = []
    for dtype in DTYPES:
        results += measure(list(chosen(arguments)), dtype, arguments, config)
        if arguments.json:  # at once: an interruption loses no dtype
            shape = {"batch": arguments.batch, "time": arguments.time, "rounds": arguments.rounds}
            atomic_write_json(arguments.json, where | shape | {"results": [dataclasses.asdict(r) for r in results]})
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(results_table(results, arguments))
    console.print(compare.setting_text(where), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
