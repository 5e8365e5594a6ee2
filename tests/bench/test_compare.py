"""The benchmark: each row compares two ways of computing the same thing, and the report says what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import compare, rows
from bench.case import Case, Work, largest_error
from pygpt import machine
from pygpt.extension import C

TINY = rows.op_rows(rows.Sizes(2, 5, head_rows=3, heads=3, head_dim=8, width=24, hidden=40, vocabulary=70))


def test_every_op_has_a_row() -> None:
    assert {row.op for row in TINY} == {op for op, _ in C.implementations()}


def test_other_ways_of_pytorch_are_rivals_where_they_take_the_input() -> None:
    def refuses(**inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel")

    row = rows.attention_row(1, 5, 2, 8, causal=True)
    row = replace(row, rivals={"math": rows._with_backend(row.theirs, rows.BACKENDS["math"]), "other": refuses})
    case = next(rows.cases(row, row))
    assert list(case.contenders(False)) == ["pygpt", "eager", "math"]
    result = compare.measure(case, replace(compare.QUICK, rounds=1, seconds=0))
    assert result.rival_seconds.keys() == {"math"}
    assert compare.rate_text(replace(result, limit="arithmetic", operations=3e12, seconds=2.0)) == "1.5 TFLOP/s"
    assert compare.rate_text(replace(result, limit="memory", bytes=3e9, seconds=2.0)) == "1.5 GB/s"


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pytorchs_products_with_rounded_weights_are_those_of_the_row(scheme: str, dtype: torch.dtype) -> None:
    row = rows._quantized(scheme, 3, 96, 70)
    inputs = row.inputs(rows.Draw(dtype))
    exact = row.exact(**inputs)
    for name, rival in row.rivals.items():
        error = largest_error([rival(**inputs)], [exact])
        assert error < (0.02 if scheme == "int4" else 0.01), name
    names = ["pygpt", "eager", scheme]
    assert list(next(rows.cases(replace(row, dtypes=(dtype,)), row)).contenders(False)) == names


def test_rows_of_a_gpu_have_errors_at_smaller_sizes_of_the_same_kind() -> None:
    for row, small in rows.gpu_rows():
        assert (row.op, row.name) == (small.op, small.name)


@pytest.mark.parametrize("row", TINY, ids=lambda row: row.name)
def test_both_sides_of_a_row_compute_what_it_says(row: rows.Row) -> None:
    """Ours and PyTorch's are near the same float64 result, gradients included."""
    for case in rows.cases(row, row):
        ours, theirs = case.errors()
        allowed = 16 * torch.finfo(case.dtype).eps
        rounds_activations = row.op == "quantized_linear"  # to 15 bits
        assert ours < (max(allowed, 2**-12) if rounds_activations else allowed), case
        assert theirs is None or theirs < allowed, case


def test_contenders_take_turns_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = 0.0, []

    def contender(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            nonlocal now
            calls.append(name)
            now += seconds * (100 if calls.count(name) == 4 else 1)  # one slow call moves no median

        return call

    monkeypatch.setattr(compare.time, "perf_counter", lambda: now)
    contenders = {"a": contender("a", 2.0), "b": contender("b", 3.0)}
    seconds, rounds = compare.median_seconds(contenders, replace(compare.QUICK, rounds=5, seconds=0), recorded=False)
    assert rounds == 5
    assert "".join(calls) == "ab" + "abbaabbaab"  # once to warm up, then rounds in alternating order
    assert seconds == {"a": 2.0, "b": 3.0}


@pytest.mark.parametrize("eager", [59.0, 61.0])
def test_what_is_left_behind_is_timed_once(eager: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch eager is measured like us unless a call takes over a minute; another rival unless it is far behind."""
    now, calls = 0.0, []

    def contender(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            nonlocal now
            calls.append(name)
            now += seconds

        return call

    monkeypatch.setattr(compare.time, "perf_counter", lambda: now)
    speeds = {"pygpt": 2.0, "eager": eager, "compiled": 3.0, "math": 41.0}
    contenders = {name: contender(name, seconds) for name, seconds in speeds.items()}
    seconds, rounds = compare.median_seconds(contenders, replace(compare.QUICK, rounds=5, seconds=0), recorded=False)
    assert rounds == 5 and seconds == speeds
    often = 6 if eager < 60 else 1
    assert {name: calls.count(name) for name in speeds} == {"pygpt": 6, "eager": often, "compiled": 6, "math": 1}


def test_the_limit_is_the_slower_of_arithmetic_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "peak_arithmetic", lambda dtype: 1e3)
    monkeypatch.setattr(compare, "memory_bandwidth", lambda: 1e2)
    for work, limit, seconds in ((Work(2e3, 1), "arithmetic", 2.0), (Work(1, 100, 100), "memory", 5.0)):
        case = Case(
            None,
            "x",
            "",
            torch.float32,
            "forward",
            work,
            lambda compiled: dict.fromkeys(("pygpt", "eager"), int),
            lambda: (0.5, None),
        )
        result = compare.measure(case, replace(compare.QUICK, seconds=0))
        assert result.limit == limit
        assert result.share == pytest.approx(seconds / result.seconds)


def test_largest_error_is_relative_to_each_tensor() -> None:
    exact = [torch.tensor([100.0, 1.0], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)]
    assert largest_error([torch.tensor([100.0, 2.0]), torch.tensor([0.55])], exact) == pytest.approx(0.1)


def test_the_report_in_all_its_forms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "every_case", lambda settings: (c for row in TINY[:2] for c in rows.cases(row, row)))
    monkeypatch.setattr(compare, "QUICK", replace(compare.QUICK, rounds=1, seconds=0))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    numbers, picture = tmp_path / "results.json", tmp_path / "bars.png"
    assert compare.main(["--only", "layer_norm", "--json", str(numbers), "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    for words in (
        "layer_norm, forward + backward",
        "bf16",
        C.last_used("layer_norm"),
        "operations/s",
        "ONEDNN_MAX_CPU_ISA=AVX2",
        torch.__version__,
    ):
        assert words in out
    data = json.loads(numbers.read_text())
    for key in ("processor", "threads", "operations_per_second", "bytes_per_second", "torch", "commit", "date"):
        assert data[key]
    assert data["environment"]["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert len(data["results"]) == 8  # two rows, two dtypes, two directions
    for result in data["results"]:
        assert result["ratio"] == pytest.approx(result["peer_seconds"] / result["seconds"])
        assert 0 < result["error"] < 0.1
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--only", "atention"], "--only must be one of"),
        (["--threads", "0"], "--threads must be from 1 to 1024, but is 0"),
        (["--threads", "1000000"], "--threads must be from 1 to 1024, but is 1000000"),
        (["--json", "no/such/folder/x.json"], "there is no folder"),
        (["--device", "tpu"], "invalid choice"),
    ],
)
def test_bad_input_is_one_line_and_code_2(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _code(words) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert _code(["--device", "cuda"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def _code(words: list[str]) -> int:
    try:
        return compare.main(words)
    except SystemExit as end:
        return int(end.code or 0)
