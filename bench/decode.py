"""Writing text, token by token, with the weights of a GPT-2: pygpt beside llama.cpp, CTranslate2 and transformers.

    python bench/decode.py                        GPT-2 124M with fixed random weights, batch 1, 8 and 32
    python bench/decode.py --model FOLDER         a GPT-2 in Hugging Face's layout
    python bench/decode.py --only pygpt --only llama.cpp --batch 1
    python bench/decode.py --json now.json

The peers come with `pip install 'pygpt[bench]'`; one that is missing is named as missing.

How it measures. Every contender has the same weights, converted by this script, and a process of its own, with its
own threads. They write after the same prompts in turn, round by round; a round that does not count comes first. A
step is one token of each row of the batch, and its time the distance between two tokens as the caller meets them; the
pass over the prompt is none. tok/s is all tokens over all time. `the model alone` is what stands without choosing
tokens: they are given. Everything else samples, with top-k 40 and top-p 0.95. `of limit` is the time that reading the
weights once a step would take at the rate that this machine reads memory, over the mean time of a step; the rate is
measured in every round, since machines that share a host do not keep theirs; the weights are as large as the contender
keeps them. Memory is the peak of the process, with its libraries, the loading included. Nothing else should run on the
machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pygpt import GPT, GPTConfig, machine
from pygpt.cli import Parser
from pygpt.train.config import MOST_THREADS

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # behind the installed pygpt
from bench import compare  # noqa: E402
from bench.decode_contenders import KINDS, Missing, Prompts, Weights  # noqa: E402
from bench.worker import Worker, in_turn  # noqa: E402

SEED = 1
ONE_ROW = 1  # the only batch of those who write one row at a time

# Class of bench/decode_contenders.py, its dtypes, and whether it writes several rows.
LINES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("PygptStep", ("fp32", "bf16", "int8", "int4"), True),
    ("LlamaDecode", ("f32", "bf16", "q8_0", "q4_0"), False),
    ("PygptGenerate", ("fp32", "bf16", "int8", "int4"), True),
    ("Llama", ("f32", "bf16", "q8_0", "q4_0"), False),
    ("CTranslate2", ("float32", "int8"), True),
    ("Transformers", ("fp32", "bf16"), True),
)


@dataclass(frozen=True)
class Result:
    """One contender with one batch."""

    label: str
    dtype: str
    batch: int
    tokens_per_second: float
    median_seconds: float  # of a step
    p99_seconds: float
    weight_bytes: int
    share: float  # of the limit
    memory_bytes: int
    steps: int


class Writer(Worker):
    """A contender in its process.

    Raises:
        Missing: it, or its dtype; the message says why.
    """

    def __init__(
        self, kind: str, weights: Weights, dtype: str, arguments: argparse.Namespace, sizes: list[int]
    ) -> None:
        self.label = KINDS[kind].label
        self.dtype = dtype
        package = KINDS[kind].package
        if package not in installed():
            raise Missing(f"{package} is not installed: pip install 'pygpt[bench]'")
        try:
            path = weights.prepared(kind, dtype)
        except ImportError as error:
            raise Missing(f"{package} cannot be imported: {error}") from error
        threads = arguments.threads
        options = [kind, str(path), dtype, threads, arguments.tokens, *sizes]
        super().__init__(f"{self.label}, {dtype}", "decode_contenders.py", options, threads)
        if isinstance(self.about, str):
            self.close()
            raise Missing(self.about)
        self.weight_bytes: int = self.about

    def decode(self, prompts: Prompts) -> tuple[list[float], int]:
        """Seconds of each step, and the peak memory so far."""
        seconds, memory = self.ask(prompts)
        return seconds, memory


def measure(
    arguments: argparse.Namespace, weights: Weights, config: GPTConfig
) -> tuple[list[Result], list[str], float]:
    """Results, who is missing, and the rate of reading memory: the median of one measurement a round."""
    sizes = [config.vocab_size, config.context_length * config.embedding_dim]
    missing: list[str] = []
    workers: list[tuple[Writer, bool]] = []
    for kind, dtype, many_rows in chosen(arguments.only):
        try:
            workers.append((Writer(kind, weights, dtype, arguments, sizes), many_rows))
        except Missing as error:
            missing.append(f"{KINDS[kind].label}, {dtype}: {error}")
    generator = torch.Generator().manual_seed(SEED)
    measured: list[tuple[Writer, int, list[float], int]] = []
    rates: list[float] = []
    for batch in arguments.batch:
        taking_part = [worker for worker, many_rows in workers if many_rows or batch == ONE_ROW]
        prompts = torch.randint(config.vocab_size, (batch, arguments.prompt), generator=generator).tolist()
        steps: dict[Writer, list[float]] = {worker: [] for worker in taking_part}
        memory: dict[Writer, int] = {}
        for counts, order in in_turn(taking_part, arguments.rounds):
            rates.append(machine.memory_bandwidth(0.2))
            for worker in order:
                seconds, memory[worker] = worker.decode(prompts)
                if counts:
                    steps[worker] += seconds
        measured += [(worker, batch, steps[worker], memory[worker]) for worker in taking_part]
    for worker, _ in workers:
        worker.close()
    bandwidth = statistics.median(rates)
    return [result(*each, bandwidth) for each in measured], missing, bandwidth


def chosen(only: list[str]) -> Iterator[tuple[str, str, bool]]:
    for kind, dtypes, many_rows in LINES:
        for dtype in dtypes:
            if kind.startswith("Pygpt") and dtype in ("int8", "int4") and not hasattr(GPT, "quantize"):
                continue
            if not only or any(word in f"{KINDS[kind].label}, {dtype}" for word in only):
                yield kind, dtype, many_rows


def result(worker: Writer, batch: int, steps: list[float], memory: int, bandwidth: float) -> Result:
    ordered = sorted(steps)
    mean = statistics.fmean(steps)
    return Result(
        label=worker.label,
        dtype=worker.dtype,
        batch=batch,
        tokens_per_second=batch / mean,
        median_seconds=statistics.median(steps),
        p99_seconds=ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        weight_bytes=worker.weight_bytes,
        share=worker.weight_bytes / bandwidth / mean,
        memory_bytes=memory,
        steps=len(steps),
    )


def results_table(results: list[Result]) -> Table:
    out = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    out.add_column("what", no_wrap=True)
    out.add_column("dtype", no_wrap=True)
    for name in ("batch", "tok/s", "median", "p99", "weights", "of limit", "memory"):
        out.add_column(name, justify="right", no_wrap=True)
    before = None
    for each in results:
        if before not in (None, each.batch):
            out.add_row()
        before = each.batch
        out.add_row(
            each.label,
            each.dtype,
            str(each.batch),
            f"{each.tokens_per_second:.1f}",
            compare.time_text(each.median_seconds),
            compare.time_text(each.p99_seconds),
            f"{each.weight_bytes / 1e6:.0f} MB",
            f"{each.share:.0%}",
            f"{each.memory_bytes / 2**20:.0f} MiB",
        )
    return out


def random_gpt2(folder: Path, config: GPTConfig) -> Path:
    """A GPT-2 with fixed random weights in Hugging Face's layout."""
    torch.manual_seed(SEED)
    GPT(config).save_pretrained(folder)
    return folder


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="decode.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a GPT-2 in Hugging Face's layout")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="rows at once")
    parser.add_argument("--prompt", type=int, default=16, metavar="N", help="tokens of a prompt (default: 16)")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="tokens written a round (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="that count (default: 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of each contender")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="contenders whose name has it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    arguments = parser.parse_args(argv)
    for name in ("prompt", "rounds", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, but is {getattr(arguments, name)}")
    if arguments.threads > MOST_THREADS:
        parser.error(f"--threads must be from 1 to {MOST_THREADS}, but is {arguments.threads}")
    if min(arguments.batch) < 1:
        parser.error(f"--batch must be at least 1, but is {min(arguments.batch)}")
    if arguments.tokens < 3:
        parser.error(f"--tokens must be at least 3, but is {arguments.tokens}")
    if arguments.model and not (arguments.model / "config.json").is_file():
        parser.error(f"there is no config.json in {arguments.model}")
    if arguments.json and not arguments.json.parent.is_dir():
        parser.error(f"there is no folder {arguments.json.parent} to write {arguments.json.name} into")
    if not list(chosen(arguments.only)):
        names = ", ".join(dict.fromkeys(KINDS[kind].label for kind, _, _ in LINES))
        parser.error(f"--only must be in one of {names} with its dtype, but is {', '.join(arguments.only)}")
    return arguments


def main(argv: list[str] | None = None, config: GPTConfig | None = None) -> int:
    """Run it; ``config`` is that of the random weights."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        source = arguments.model or random_gpt2(made / "gpt2", config or GPTConfig.preset("gpt2"))
        model = GPT.from_pretrained(source)
        if arguments.prompt + arguments.tokens > model.config.context_length:
            limit = model.config.context_length
            print(f"decode.py: error: --prompt and --tokens must be at most {limit} together", file=sys.stderr)
            return 2
        config = model.config
        del model
        results, missing, bandwidth = measure(arguments, Weights(source, made), config)
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(results_table(results))
    for line in missing:
        console.print(f"missing: {line}", highlight=False, markup=False)
    where = compare.setting() | {
        "bytes_per_second": bandwidth,
        "bytes_measured_by": "reading a buffer of eight last-level caches, once a round; the median",
    }
    console.print(compare.setting_text(where), highlight=False)
    if arguments.json:
        data: dict[str, Any] = {**where, "prompt": arguments.prompt, "tokens": arguments.tokens, "missing": missing}
        data["versions"] = installed()
        data["results"] = [dataclasses.asdict(each) for each in results]
        arguments.json.write_text(json.dumps(data, indent=2) + "\n")
    return 0


def installed() -> dict[str, str]:
    """The contenders' packages that are there, with their versions."""
    out = {}
    for package in {kind.package for kind in KINDS.values()}:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[package] = importlib.metadata.version(package)
    return out


if __name__ == "__main__":
    sys.exit(main())
