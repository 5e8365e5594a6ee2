"""Contenders in processes of their own, asked in turn: what `decode.py` and `training.py` have in common.

In a process of its own a contender's memory can be told, its threads sleep while others run, and one that fails takes
nobody along. A line of JSON goes in, one comes out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

Answer = Callable[[Any], Any]
T = TypeVar("T")


class Worker:
    """A contender's process.

    Args:
        name: what it is called if it dies.
        program: a file of this folder, which calls `serve`.
        arguments: what that gets.
        threads: the most that its libraries may start.
    """

    def __init__(self, name: str, program: str, arguments: Sequence[Any], threads: int) -> None:
        self._name = name
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / program), json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)},
        )
        self.about = self._answer()  # what it says of itself

    def ask(self, request: Any) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name}: its process died")
        return json.loads(line)


def in_turn(those: Sequence[T], count: int) -> Iterator[tuple[bool, list[T]]]:
    """Rounds in alternating order, and whether they count: all but the first."""
    for number in range(count + 1):
        yield number > 0, list(those if number % 2 == 0 else reversed(those))


def serve(begin: Callable[..., tuple[Any, Answer]]) -> None:
    """Be a worker's process: begin with its arguments, tell about the contender, then answer what is asked."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes elsewhere
    about, answer = begin(*json.loads(sys.argv[1]))
    print(json.dumps(about), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers)


def memory(kind: str) -> int:
    """Of this process in bytes, as Linux counts it: "VmRSS" is resident now, "VmHWM" was at the most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise ValueError(f"this system does not tell {kind}")
