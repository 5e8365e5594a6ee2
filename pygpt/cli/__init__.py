"""The command ``pygpt``.

Each command is a module of this package with ``add_arguments(parser)``, ``run(arguments)``, which returns the exit
code, and a docstring whose first line says what it does and whose rest is an example. Modules import what is heavy
inside ``run``, so that help and mistakes are answered at once.

Exit codes: 0 done; 1 a training that diverged; 2 bad input, told in one line; 130 interrupted.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

COMMANDS = {
    "demo": "train a small GPT in three minutes and see what it writes",
    "train": "train a GPT on text",
    "sample": "let a model write",
    "chat": "talk to a model",
    "eval": "score a model at a task, a text, or questions",
    "data": "turn text into token files",
    "doctor": "what is built, what runs here and why, how fast the machine is",
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words after ``pygpt``; by default those of this process.

    Returns: the exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="pygpt",
        description="GPT in hand-written kernels: train, sample, measure.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "".join(f"  {name:<10}{summary}\n" for name, summary in COMMANDS.items())
        + "\nExample:\n  pygpt demo\n\n'pygpt COMMAND --help' tells more."
        + "\nPYGPT_TRACEBACK=1 shows where an error came from.",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND", help="what to do")
    arguments = parser.parse_args(words[:1])
    if arguments.version:
        import pygpt

        print(f"pygpt {pygpt.__version__}")
        return 0
    if arguments.command is None:
        parser.print_help()
        return 2
    return _run(arguments.command, words[1:])


def _run(name: str, words: list[str]) -> int:
    command = importlib.import_module(f"pygpt.cli.{name}")
    summary, _, example = (command.__doc__ or "").partition("\n\n")
    parser = Parser(
        prog=f"pygpt {name}",
        description=summary,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    arguments = parser.parse_args(words)
    try:
        code: int = command.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output, such as 'head', has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
        return 1
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise  # PyTorch has no type of its own for this error
        if os.environ.get("PYGPT_TRACEBACK"):
            raise
        print(f"{parser.prog}: error: {one_line(error)}", file=sys.stderr)
        return 2


def use_threads(count: int | None) -> None:
    """Have PyTorch compute on as many threads as a flag asks for; None: as many as it takes.

    Raises: ValueError if there cannot be that many.
    """
    import torch

    from pygpt.train.config import MOST_THREADS

    if count is None:
        return
    if not 1 <= count <= MOST_THREADS:
        raise ValueError(f"threads must be from 1 to {MOST_THREADS}, not {count}")
    torch.set_num_threads(count)


def one_line(error: BaseException) -> str:
    """What an error says, in one line, without its number."""
    text: Any = error
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    return " ".join(str(text).split()) or type(error).__name__
