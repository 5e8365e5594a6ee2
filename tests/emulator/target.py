"""What the mutation and profile tools run: a line of Python on the emulated device, or any command."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# One thread: a fork has no others, and would wait for those that its parent had made.
PRELUDE = "import torch\nimport pygpt\nfrom pygpt import ops\ntorch.manual_seed(0)\ntorch.set_num_threads(1)\n"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: whether all went well, and if not, in one line, why."""

    passed: bool
    why: str = ""


def reason(output: str, otherwise: str) -> str:
    """The emulator's report in what a run has printed; else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reports = [line.removeprefix("pygpt emulator: ") for line in lines if line.startswith("pygpt emulator: ")]
    faults = [line.split("DeviceFault: ", 1)[1] for line in lines if "DeviceFault: " in line]
    return (reports + faults + lines[-1:] + [otherwise])[0]


class Command:
    """A command, a process each time."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv

    def run(self, environment: Mapping[str, str], timeout: float) -> Outcome:
        """Run it with these variables added to the environment."""
        try:
            done = subprocess.run(
                self.argv, env={**os.environ, **environment}, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return Outcome(False, f"still running after {timeout:g} s")
        if done.returncode == 0:
            return Outcome(True)
        return Outcome(False, reason(done.stdout + done.stderr, f"exit code {done.returncode}"))


class Code:
    """Python code, in a fork of this process each time: what it imports first is imported once."""

    def __init__(self, code: str, prelude: str = PRELUDE) -> None:
        self.code = compile(code, "<code>", "exec")
        self.names: dict[str, object] = {}
        exec(prelude, self.names)

    def run_here(self) -> None:
        """Run it in this process, whose forks then find all PTX parsed."""
        exec(self.code, dict(self.names))

    def run(self, environment: Mapping[str, str], timeout: float) -> Outcome:
        """Run it with these variables added to the environment."""
        with tempfile.TemporaryFile("w+") as output:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    os.dup2(output.fileno(), 1)
                    os.dup2(output.fileno(), 2)
                    os.environ.update(environment)
                    exec(self.code, dict(self.names))
                    status = 0
                except BaseException:
                    os.write(2, traceback.format_exc().encode())
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            end = time.monotonic() + timeout
            while True:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    break
                if time.monotonic() > end:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    return Outcome(False, f"still running after {timeout:g} s")
                time.sleep(0.005)
            if status == 0:
                return Outcome(True)
            output.seek(0)
            return Outcome(False, reason(output.read(), f"wait status {status}"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what to run."""
    parser.add_argument("--arch", default="90", help="PYGPT_EMULATE: 80, 86 or 90 (default 90)")
    parser.add_argument("-c", "--code", help="Python that raises if a result is wrong; torch, pygpt and ops are there")
    parser.add_argument("--setup", default="", help="Python that runs once before all of it, so that -c has its names")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="instead of -c, after --: exits with 0 if right")


def from_arguments(options: argparse.Namespace) -> Command | Code:
    """What the options say to run, on the emulated device."""
    if bool(options.code) == bool(options.command):
        raise SystemExit("give either -c CODE or -- COMMAND")
    os.environ.setdefault("PYGPT_EMULATE", options.arch)
    # The installed pygpt, not the checkout that `python -m` puts first.
    sys.path[:] = [p for p in sys.path if Path(p).resolve() != ROOT]
    return Code(options.code, PRELUDE + options.setup) if options.code else Command(options.command)
