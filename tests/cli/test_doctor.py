"""``pygpt doctor``: what it says, and that ``--check`` notices a wrong kernel."""

from __future__ import annotations

import pytest
import torch

import pygpt
from pygpt import cli, machine, reference
from pygpt.extension import C


def test_the_report_names_what_is_built_and_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in (pygpt.__version__, torch.__version__, "G operations/s", "GB/s", *dict(C.implementations())):
        assert words in out
    for architecture in pygpt.info()["cuda_architectures"]:
        assert architecture in out
    built = next(line for line in out.splitlines() if line.startswith("instruction sets")).split(maxsplit=2)[2].strip()
    names = {name for _, entries in C.implementations() for name, _ in entries if name.startswith("cpu_")}
    assert {f"cpu_{isa}" for isa in built.split(", ")} == names


def test_the_machine_is_measured_in_two_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    for name in ("measure_arithmetic", "measure_bandwidth"):
        monkeypatch.setattr(C, name, lambda *arguments: asked.append(arguments[-1]) or 1e9)
    machine._peak_arithmetic.cache_clear()
    assert cli.main(["doctor"]) == 0
    machine._peak_arithmetic.cache_clear()
    assert len(asked) == 3 and sum(asked) <= 2
    assert capsys.readouterr().out.count("1 G operations/s") == 2


def test_explain_lists_every_implementation_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with pygpt.force("layer_norm", "cpu_scalar"):
        assert cli.main(["doctor", "--explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for _, entries in C.implementations():
        for name, _ in entries:
            assert any(name in line for line in lines)
    start = next(i for i, line in enumerate(lines) if line.startswith("layer_norm"))
    hopper = next(i for i, line in enumerate(lines) if "cuda_sm90" in line)
    assert "leaves to the next: mask, bias, dropout" in " ".join(" ".join(lines[hopper : hopper + 4]).split())
    scalar = next(line for line in lines[start:] if "cpu_scalar" in line)
    assert "runs, forced" in scalar


def test_check_fails_where_a_kernel_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = reference.layer_norm
    monkeypatch.setattr(reference, "layer_norm", lambda *arguments: 1.001 * right(*arguments))
    assert cli.main(["doctor", "--check"]) == 1
    out = capsys.readouterr().out
    assert "wrong: layer_norm" in out
    assert "wrong: embedding" not in out
