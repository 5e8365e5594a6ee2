"""``pygpt doctor``: what it says, and that ``--check`` notices a wrong kernel."""

from __future__ import annotations

import pytest
import torch

import pygpt
from pygpt import cli, reference
from pygpt.extension import C


def test_the_report_names_what_is_built_and_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in (pygpt.__version__, torch.__version__, "G operations/s", "GB/s", *dict(C.implementations())):
        assert words in out
    for architecture in pygpt.info()["cuda_architectures"]:
        assert architecture in out


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
