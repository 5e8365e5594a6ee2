"""Train a small GPT from nothing and see what it writes: in three minutes, on two CPU cores, without the network.

Example:
  pygpt demo
  pygpt demo --seconds 300 --out runs/longer
"""

import argparse
import itertools
import platform
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from pygpt.train.config import TrainConfig
from pygpt.train.display import StepReport, TerminalDisplay
from pygpt.train.metrics import read_metrics
from pygpt.train.plot import draw_chart, loss_curves, smoothed

if TYPE_CHECKING:
    from pygpt.train.trainer import Trainer

SETTINGS = TrainConfig(
    vocab_size=2048,
    layers=4,
    heads=4,
    width=128,
    context=128,
    positions="rope",  # with which it learns in the first steps which neighbour stands where
    batch_size=12,
    lr=3e-3,
    min_lr=1e-4,
    weight_decay=0.05,
    save_every=0,  # at the end
)
FEWEST_STEPS, MOST_STEPS = 50, 3000
SECONDS_AROUND = 60  # for text and tokenizer before the training, and for its being slower than timed
PROMPTS = ("Return the", "If the file", "class ")
EXAMPLE = "Return the absolute value of a number."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which flags there are."""
    parser.add_argument("--out", metavar="FOLDER", help="the run's folder (default: runs/demo, or the next free name)")
    parser.add_argument("--seconds", type=float, default=90, metavar="X", help="time for training (default: 90)")
    parser.add_argument("--steps", type=int, metavar="N", help="train so many steps, however long they take")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (as many as PyTorch takes)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another GPT (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Go through text, tokenizer, training and writing, telling what happens."""
    from pygpt.train.run import create, describe, open_run

    started = time.monotonic()
    console = Console()
    folder = Path(arguments.out) if arguments.out else _free_name(Path("runs/demo"))
    console.print(
        Panel("[bold cyan]pygpt demo[/]\nA GPT from nothing: text, tokenizer, training, writing", expand=False)
    )
    with console.status("timing the machine"):
        config = _settings(arguments)
    with console.status("reading the documentation inside Python, training a tokenizer on it"):
        create(folder, config, progress=False)
    deadline = None if arguments.steps else started + arguments.seconds + SECONDS_AROUND
    display = _LimitedDisplay(console, config.steps, deadline)
    with open_run(folder, config, display) as trainer:
        display.trainer = trainer
        _say_what_was_read(console, folder)
        _heading(console, "Training")
        console.print(describe(trainer), highlight=False, soft_wrap=True)
        if not trainer.run() and not display.out_of_time:
            said = f"interrupted and saved; go on with: pygpt train --resume {folder}"
            console.print(said, soft_wrap=True, markup=False)
            return 130
        _draw_loss(console, folder)
        _write_texts(console, trainer, folder)
    _say_where_it_is(console, folder)
    console.print(f"\nDone in {time.monotonic() - started:.0f} seconds.", highlight=False)
    return 0


class _LimitedDisplay(TerminalDisplay):
    """Ends the training when it takes much longer than planned: a machine may become slower after it was timed."""

    def __init__(self, console: Console, steps: int, deadline: float | None) -> None:
        super().__init__(console, log_every=max(1, steps // 10))
        self.trainer: Trainer | None = None
        self.out_of_time = False
        self._deadline = deadline

    def step(self, report: StepReport) -> None:
        super().step(report)
        if self.trainer is not None and self._deadline is not None and time.monotonic() > self._deadline:
            self.out_of_time = self.trainer.stop_requested = True


def _settings(arguments: argparse.Namespace) -> TrainConfig:
    """As many steps as fit into the time that is asked for."""
    config = replace(SETTINGS, threads=arguments.threads, seed=arguments.seed)
    if not arguments.seconds > 0:
        raise ValueError(f"seconds must be positive, not {arguments.seconds:g}")
    steps: int = arguments.steps
    if steps is None:
        fitting = arguments.seconds / _seconds_per_step(config)
        steps = round(min(MOST_STEPS, max(FEWEST_STEPS, fitting)))
    config = replace(config, steps=steps)  # refuses a number that is none
    return replace(config, eval_every=max(1, steps // 4), sample_every=max(1, steps // 3))


def _seconds_per_step(config: TrainConfig) -> float:
    """The median of a few forward and backward passes, of a model of the same shape."""
    import torch

    from pygpt.models import GPT
    from pygpt.train.run import model_config

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    model = GPT(model_config(config, config.vocab_size))
    ids = torch.zeros(config.batch_size, model.config.context_length, dtype=torch.int64)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch.autograd.backward(model.loss(ids, ids))
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def _free_name(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, … that is not there."""
    names = itertools.chain([folder], (folder.with_name(f"{folder.name}-{i}") for i in itertools.count(2)))
    return next(path for path in names if not path.exists())


def _heading(console: Console, title: str) -> None:
    console.print()
    console.rule(f"[bold]{title}", align="left", style="cyan")


def _say_what_was_read(console: Console, folder: Path) -> None:
    from pygpt.text import TokenFile, Tokenizer

    tokenizer = Tokenizer.load(folder)
    train, held_out = TokenFile(folder / "data", "train"), TokenFile(folder / "data", "validation")
    _heading(console, "Text")
    console.print(
        f"The documentation inside Python {platform.python_version()}: "
        f"{train.num_documents + held_out.num_documents:,} documents, {len(train) + len(held_out):,} tokens, "
        f"of which {len(held_out):,} are held out",
        highlight=False,
        soft_wrap=True,
    )
    pieces = Text()
    for token, style in zip(tokenizer.encode(EXAMPLE), itertools.cycle(("on dark_blue", "on dark_green"))):
        pieces.append(tokenizer.decode([token]), style if console.is_terminal else "")
        pieces.append("" if console.is_terminal else "|")
    console.print(f"A byte-level BPE of {tokenizer.vocab_size:,} tokens, trained on it, reads", highlight=False)
    console.print(Text("  ") + pieces)


def _draw_loss(console: Console, folder: Path) -> None:
    records = read_metrics(folder / "metrics.jsonl")
    train, _ = loss_curves(records)
    _heading(console, "Loss")
    console.print(Text(draw_chart(smoothed(train), width=min(72, console.width - 11)), style="cyan"))


def _write_texts(console: Console, trainer: "Trainer", folder: Path) -> None:
    from pygpt.text import Tokenizer
    from pygpt.train.run import write_text

    tokenizer = Tokenizer.load(folder)
    end = "" if tokenizer.end_of_document is None else tokenizer.decode([tokenizer.end_of_document])
    trainer.model.eval()
    _heading(console, "What it writes")
    for seed, prompt in enumerate(PROMPTS):
        written = write_text(trainer.model, tokenizer, prompt, seed)[len(prompt) :]
        written = written.replace(end, "\n· · ·\n") if end else written  # where another document begins
        written = re.sub(r"\n\s*\n", "\n", written.rstrip())  # empty lines tell nothing
        console.print(Panel(Text.assemble((prompt, "bold cyan"), written), border_style="dim"))


def _say_where_it_is(console: Console, folder: Path) -> None:
    _heading(console, "Where it is, and what to try next")
    for name, what in (
        ("checkpoints", "the model, with all that a training needs to go on"),
        ("loss.png", "the loss curve"),
        ("metrics.jsonl", "every step's numbers"),
        ("config.toml", "every setting"),
        ("tokenizer.json", "the tokenizer"),
    ):
        console.print(Text.assemble((f"{folder / name!s:<28}", "green"), "  ", what))
    for command, what in (
        (f'pygpt sample --model {folder} --prompt "Return the"', "let it write more"),
        (f"pygpt train --resume {folder} --steps 5000", "train it further"),
        ("pygpt train --data FILE.txt --out runs/mine", "train on your own text"),
    ):
        console.print(Text.assemble("\n", what, ":\n  ", (command, "bold cyan")), soft_wrap=True)
