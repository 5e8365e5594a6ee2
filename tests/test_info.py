"""Which implementation runs: PYGPT_FORCE and PYGPT_TRACE, which a process reads once, and what `pygpt.info` says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

import pygpt
from pygpt.extension import C
from pygpt.info import force_from_environment

# An op forward and backward, another one forward.
PROGRAM = """
import torch, pygpt
x, weight = torch.ones(3, 5, requires_grad=True), torch.ones(5)
pygpt.ops.layer_norm(x, weight).sum().backward()
pygpt.ops.add(torch.ones(3), torch.ones(3))
"""


@pytest.fixture
def force_by(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, str | None]]]:
    """Force what a value of PYGPT_FORCE says; gives what is forced then."""

    def force(value: str) -> dict[str, str | None]:
        for op in before:
            C.force(op, None)
        monkeypatch.setenv("PYGPT_FORCE", value)
        force_from_environment()
        return {op: C.forced(op) for op in before}

    before = {op: C.forced(op) for op, _ in C.implementations()}
    yield force
    for op, name in before.items():
        C.force(op, name)


def last_of(op: str) -> str:
    """The last entry of an op's table that runs here."""
    return str(pygpt.info()["implementations"][op][-1])


def test_the_environment_says_what_is_forced(force_by: Callable[[str], dict[str, str | None]]) -> None:
    nothing: dict[str, str | None] = dict.fromkeys(dict(C.implementations()))
    scalar: dict[str, str | None] = dict.fromkeys(nothing, "cpu_scalar")
    avx2 = {"layer_norm": "cpu_avx2"}
    assert force_by("") == nothing
    assert force_by("layer_norm:cpu_avx2") == nothing | avx2
    assert force_by(" add:cpu_scalar, layer_norm:cpu_avx2,") == nothing | avx2 | {"add": "cpu_scalar"}
    assert force_by("*:cpu_scalar") == scalar
    assert force_by("*:cpu_scalar,layer_norm:cpu_avx2") == scalar | avx2
    only_linear = force_by("*:cpu_avx512_vnni")
    assert {op for op, name in only_linear.items() if name} == {"quantized_linear"}


@pytest.mark.parametrize(
    ("forced", "words"),
    [
        ("layer_norm", r"PYGPT_FORCE must be op:name\[,op:name\.\.\.\], but has the part 'layer_norm'"),
        ("layer_norm:cpu_mmx", 'layer_norm has no implementation "cpu_mmx"; it has .*cpu_scalar'),
        ("*:cpu_mmx", "no op has an implementation 'cpu_mmx'; there are .*cpu_scalar"),
        ("layer_form:cpu_scalar", 'there is no op "layer_form"; the ops are adamw, add, '),
    ],
)
def test_what_cannot_be_forced_is_an_error(
    force_by: Callable[[str], dict[str, str | None]], forced: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        force_by(forced)


def test_what_is_forced_at_import_runs_forward_and_backward_and_a_trace_says_so() -> None:
    name = last_of("layer_norm")
    environment = {**os.environ, "PYGPT_TRACE": "1", "PYGPT_FORCE": f"*:{name}"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("pygpt: ")]
    row, gradients = "mean (3,), rstd (3,)", "grad_x (3, 5), grad_weight (5,), grad_bias (5,)"
    assert lines == [
        f"pygpt: layer_norm {name} float32, x (3, 5), weight (5,), out (3, 5), {row}",
        f"pygpt: layer_norm {name} float32, grad_out (3, 5), x (3, 5), weight (5,), {row}, {gradients}",
        f"pygpt: add {name} float32, x (3,), y (3,), out (3,)",
    ]


def test_info_has_what_is_promised() -> None:
    info = pygpt.info()
    assert info.keys() == {
        *("version", "torch", "cpu_isa", "cpu_isas", "cuda_architectures", "devices", "threads", "emulated"),
        *("implementations", "last_used"),
    }
    assert info["version"] == pygpt.__version__
    assert info["implementations"] == {
        op: [name for name, reason in entries if not reason] for op, entries in C.implementations()
    }
    assert info["devices"][0]["device"] == "cpu"
    if info["emulated"] is None:  # every set that some op's kernels run on
        names = {name for entries in info["implementations"].values() for name in entries}
        assert {f"cpu_{isa}" for isa in info["cpu_isas"]} == {name for name in names if name.startswith("cpu_")}
        assert info["cpu_isa"] == info["cpu_isas"][0]
