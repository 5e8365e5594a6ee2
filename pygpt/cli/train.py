"""Train a GPT on text (by --objective, other models), or fine-tune one on a task. Flags can also stand in a TOML file.

Examples:
  pygpt train --data shakespeare.txt --tokenizer char --out runs/shakespeare --steps 2000
  pygpt train --resume runs/shakespeare
  pygpt train --config settings.toml --lr 3e-4 --out runs/slower
  pygpt train --data texts/ --objective mlm+nsp --out runs/encoder
  pygpt train --base runs/shakespeare --task summarisation --data examples.jsonl --out runs/summaries

Without --data it trains on the documentation inside Python's own standard library, which every machine has.
Ctrl-C saves a checkpoint and ends; --resume then goes on to the same bits as if nothing had happened. So it does after
a crash, from the last checkpoint. Exit code: 0 finished, 130 interrupted, 1 diverged, 2 bad input.
"""

import argparse

from pygpt.train.config import TrainConfig, add_flags, flags_given, read_toml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which flags there are."""
    parser.add_argument("--out", metavar="FOLDER", help="the run's folder, made new (default: runs/train)")
    parser.add_argument(
        "--resume", metavar="FOLDER", help="go on with the run in this folder, from its last checkpoint"
    )
    parser.add_argument("--config", metavar="FILE", help="read settings from a TOML file, such as a run's config.toml")
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, and say how it ended."""
    from pathlib import Path

    from rich.console import Console

    from pygpt.machine import keep_freed_memory
    from pygpt.train.display import TerminalDisplay
    from pygpt.train.run import create, describe, describe_baselines, open_run, read_config
    from pygpt.train.trainer import TrainingStopped

    given = (read_toml(arguments.config) if arguments.config else {}) | flags_given(arguments)
    console = Console()
    keep_freed_memory()
    if arguments.resume is not None:
        if arguments.out is not None:
            raise ValueError("--resume goes on in the folder it names; leave out --out")
        folder = Path(arguments.resume)
        config = read_config(folder, given)
    else:
        folder = Path(arguments.out or "runs/train")
        config = TrainConfig.from_dict(given, arguments.config or "the flags")
        if "data" not in given and config.task is None:
            console.print("no --data: the text is the documentation inside Python's own standard library")
        left_out = create(folder, config)
        if left_out:
            console.print(left_out, soft_wrap=True, highlight=False, markup=False)
        config = read_config(folder)
    with open_run(folder, config, TerminalDisplay(console, config.log_every)) as trainer:
        console.print(describe(trainer), highlight=False)
        baselines = describe_baselines(folder, trainer)
        if baselines:
            console.print(baselines, highlight=False)
        try:
            finished = trainer.run()
        except TrainingStopped as stopped:
            console.print(stopped, style="red", soft_wrap=True, highlight=False, markup=False)
            return 1
    if not finished:
        said = f"interrupted and saved; go on with: pygpt train --resume {folder}"
        console.print(said, soft_wrap=True, markup=False)
        return 130
    next_command = f"eval {folder} --data FILE" if config.task else f"sample --model {folder}"
    then = f", or try: pygpt {next_command}" if config.objective == "clm" else ""
    console.print(f"finished; see {folder}/loss.png{then}", soft_wrap=True, markup=False)
    return 0
