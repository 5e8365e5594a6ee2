"""bench/training.py with a tiny GPT-2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import training, training_contenders, worker
from pygpt import GPTConfig
from pygpt.extension import EMULATED

pytestmark = pytest.mark.skipif(EMULATED is not None, reason="measures the CPU")

TINY = GPTConfig(vocab_size=101, context_length=64, num_layers=2, num_heads=2, embedding_dim=16)


class Fake:
    """Takes a second with one thread, half with two, a tenth more with torch's awake; the first time longer."""

    asked: list[tuple[str, int, bool]]

    def __init__(self, name: str, program: str, arguments: list[Any], threads: int) -> None:
        self.who, _, _, self.batch, self.time, self.keep_freed = arguments
        self.seen: set[tuple[int, bool]] = set()

    def ask(self, request: tuple[int, bool]) -> tuple[float, int]:
        threads, awake = request
        if self.keep_freed:
            self.asked.append((self.who, threads, awake))
        late = 9.0 if tuple(request) not in self.seen else 0.0
        self.seen.add((threads, awake))
        return 1 / threads + (0.1 if awake else 0.0) + late, self.batch * self.time

    def close(self) -> None:
        pass


def test_contenders_take_turns_with_one_thread_and_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    Fake.asked = []
    monkeypatch.setattr(training, "Worker", Fake)
    arguments = training.parse(["--batch", "3", "--time", "4", "--long", "10", "--threads", "2", "--rounds", "2"])
    ours, theirs, awake = training.measure(["pygpt", "eager"], "bf16", arguments, TINY)
    turns = [("pygpt", 2, False), ("pygpt", 1, False), ("eager", 2, False), ("eager", 1, False), ("pygpt", 2, True)]
    assert Fake.asked == turns + turns[::-1] + turns
    assert (ours.label, theirs.label, awake.label) == ("pygpt", "PyTorch eager", training.AWAKE)
    assert (ours.seconds, ours.one_thread_seconds, ours.scaling, ours.tokens_per_second) == (0.5, 1.0, 2.0, 24.0)
    assert (awake.seconds, awake.scaling, awake.memory_bytes) == (0.6, None, {})
    assert ours.memory_bytes == {"4": 12, "10": 30}
    assert training.results_table([ours, theirs, awake], arguments).row_count == 3


@pytest.mark.parametrize("dtype", training.DTYPES)
@pytest.mark.parametrize("who", ["pygpt", "pygpt, whole logits", "eager"])
def test_a_contender_answers_with_time_and_memory(who: str, dtype: str) -> None:
    before = torch.get_num_threads()
    try:
        about, answer = training_contenders.begin(who, TINY.to_dict(), dtype, 2, 8, False)
        assert about is None
        for request in ((1, False), (2, False), (2, True)):
            seconds, memory = answer(request)
            assert 0 < seconds < 60
            # Of this process, which may hold as much already; Linux adds up pages by processor, and is off by a few.
            assert memory > -(2**20)
            assert torch.get_num_threads() == request[0]
    finally:
        torch.set_num_threads(before)


def test_torch_is_awake_before_each_modules_passes_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = []
    monkeypatch.setattr(torch.Tensor, "add_", lambda self, other: sums.append(self.numel()))
    model, _ = training_contenders.models.training_step("pygpt", TINY, torch.float32, 1, 4)
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with training_contenders.torch_awake(model):
        loss = model.loss(ids, ids)
        forward = len(sums)
        loss.backward()
    assert forward >= 12, "in each of two blocks: itself, a norm, attention, two projections, the feed-forward network"
    assert len(sums) - forward >= 12
    assert set(sums) == {training_contenders.WAKING}
    sums.clear()
    model.loss(ids, ids).backward()
    assert not sums


def test_memory_is_what_the_system_tells() -> None:
    block = torch.ones(2**26, dtype=torch.uint8)
    resident = worker.memory("VmRSS")
    assert block.nbytes < resident <= worker.memory("VmHWM")
    with pytest.raises(ValueError, match="does not tell VmNone"):
        worker.memory("VmNone")


@pytest.mark.slow
def test_results(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "DTYPES", ("fp32",))
    file = tmp_path / "results.json"
    sizes = ["--batch", "2", "--time", "8", "--long", "16", "--rounds", "1", "--threads", "1"]
    assert training.main(["--only", "whole", *sizes, "--json", str(file)], TINY) == 0
    data = json.loads(file.read_text())
    (result,) = data["results"]
    assert (result["label"], result["dtype"], result["scaling"]) == ("pygpt, whole logits", "fp32", 1.0)
    assert result["tokens_per_second"] == pytest.approx(16 / result["seconds"])
    assert list(result["memory_bytes"]) == ["8", "16"]
    assert min(result["memory_bytes"].values()) > 2**20
    assert (data["batch"], data["time"], data["rounds"], data["threads"]) == (2, 8, 1, 1)
    assert "pygpt, whole logits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--batch", "0"], "--batch must be at least 1, but is 0"),
        (["--long", "-1"], "--long must be at least 1, but is -1"),
        (["--threads", "0"], "--threads must be from 1 to 1024, but is 0"),
        (["--only", "nobody"], "--only must be in one of pygpt, pygpt, whole logits, PyTorch eager, torch.compile"),
        (["--json", "no/such/x.json"], "there is no folder no/such"),
    ],
)
def test_bad_input_is_one_line_and_code_2(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        training.main(words, TINY)
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_a_text_that_is_too_long_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert training.main(["--time", "65"], TINY) == 2
    assert "--time and --long must be at most 64" in capsys.readouterr().err
