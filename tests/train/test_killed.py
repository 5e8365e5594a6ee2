"""Real processes, killed at random moments, inside a save too, go on to the bits of a training that was left alone."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pygpt.train.checkpoint import Checkpoints, load_checkpoint
from pygpt.train.metrics import read_metrics
from tests.support import assert_same_bits, fresh_seed

FLAGS = shlex.split(
    "--tokenizer byte --layers 2 --heads 2 --width 32 --context 32 --dropout 0.1 --batch-size 4 --accumulate 3 "
    "--steps 24 --save-every 4 --eval-every 6 --sample-every 9 --lr 0.01 --threads 1"
)

# Kills itself at the n-th fsync, which only saves do: of a file, of a folder, before the rename or after it.
DIES_IN_A_SAVE = """
import os, signal, sys
left, fsync = int(sys.argv.pop(1)), os.fsync
def dying(descriptor):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = dying
from pygpt.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{a} times {b} is {a * b}.\n" for a in range(60) for b in range(20)))
    return path


def run(*words: str, die_at_fsync: int | None = None) -> "subprocess.Popen[str]":
    program = ["-m", "pygpt"] if die_at_fsync is None else ["-c", DIES_IN_A_SAVE, str(die_at_fsync)]
    return subprocess.Popen(
        [sys.executable, *program, "train", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err + out
    return out


def assert_same_training(ours: Path, whole: Path) -> None:
    """The last checkpoints hold the same bits, and the records the same numbers."""
    a, b = (Checkpoints(folder / "checkpoints").newest() for folder in (ours, whole))
    assert a.name == b.name
    for name in ("model.safetensors", "training.safetensors"):
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        for key in left:
            assert_same_bits(left[key], right[key], f"{name}: {key}")
    assert load_checkpoint(a).values == load_checkpoint(b).values
    timed = {"seconds", "tokens_per_second", "share_of_peak"}
    records = [
        [{k: v for k, v in r.items() if k not in timed} for r in read_metrics(f / "metrics.jsonl")]
        for f in (ours, whole)
    ]
    assert records[0] == records[1]


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path, text: Path) -> None:
    generator = random.Random(fresh_seed())
    whole, ours = tmp_path / "whole", tmp_path / "ours"
    started = time.monotonic()
    finish(run("--data", str(text), "--out", str(whole), *FLAGS))
    seconds = time.monotonic() - started
    # Every other one dies inside a save, of which the training has six, each with about ten fsyncs.
    for kill in range(6):
        begun = (ours / "config.toml").is_file()
        words = ["--resume", str(ours)] if begun else ["--data", str(text), "--out", str(ours), *FLAGS]
        if kill % 2:
            process = run(*words, die_at_fsync=generator.randrange(1, 25))
            process.communicate(timeout=120)
        else:
            process = run(*words)
            time.sleep(generator.uniform(0.3, 1.0) * seconds)
            process.kill()
            process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        for path in Checkpoints(ours / "checkpoints").paths():
            load_checkpoint(path)  # each one that is there is whole
    finish(run("--resume", str(ours)) if ours.exists() else run("--data", str(text), "--out", str(ours), *FLAGS))
    assert_same_training(ours, whole)
    assert not [name for name in os.listdir(ours / "checkpoints") if name.startswith(".")]


@pytest.mark.slow
def test_interrupted_it_saves_and_says_how_to_go_on(tmp_path: Path, text: Path) -> None:
    whole, ours = tmp_path / "whole", tmp_path / "ours"
    finish(run("--data", str(text), "--out", str(whole), *FLAGS))
    process = run("--data", str(text), "--out", str(ours), *FLAGS, "--save-every", "0", "--log-every", "1")
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step 2/"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out = finish(process, 130)
    assert f"pygpt train --resume {ours}" in " ".join(out.split())
    assert len(Checkpoints(ours / "checkpoints").paths()) == 1
    finish(run("--resume", str(ours), "--save-every", "4", "--log-every", "10"))
    assert_same_training(ours, whole)
