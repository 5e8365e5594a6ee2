"""The emulated device under the Python API: what ``PYGPT_EMULATE`` loads, what it refuses, and what its counters say.

Each check is a program of its own: which extension module is loaded is decided once in a process. The ops themselves
run there by ``PYGPT_EMULATE=80 pytest tests/ops``.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

needs_the_module = pytest.mark.skipif(
    importlib.util.find_spec("pygpt._C_emulated") is None,
    reason="this build has no emulated device; build with --config-settings=cmake.define.PYGPT_EMULATOR=ON",
)


def run(
    program: str, device: str, arguments: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "PYGPT_EMULATE": device},
    )


def output(program: str, device: str, arguments: Sequence[str] = (), **environment: str) -> str:
    result = run(program, device, arguments, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@needs_the_module
@pytest.mark.parametrize("device", ["80", "86", "90"])
def test_info_says_what_is_emulated(device):
    info = json.loads(output("import json, pygpt; print(json.dumps(pygpt.info()))", device))
    assert info["emulated"] == f"sm_{device}"
    (gpu,) = [each for each in info["devices"] if each["device"] != "cpu"]
    assert gpu["compute_capability"] == [int(digit) for digit in device]
    assert (gpu["shared_memory_bytes"] < 100 * 1024) == (device == "86")
    assert "cuda_sm80" in info["implementations"]["layer_norm"]
    assert not [name for names in info["implementations"].values() for name in names if name.startswith("cpu")]


@needs_the_module
def test_a_trace_has_the_launches():
    program = "import torch, pygpt; pygpt.ops.add(torch.ones(3, 5), torch.ones(5))"
    result = run(program, "80", PYGPT_TRACE="1")
    assert result.returncode == 0, result.stderr
    call, launch = [line for line in result.stderr.splitlines() if line.startswith("pygpt: ")]
    assert call == "pygpt: add cuda_sm80 float32, x (3, 5), y (5,), out (3, 5)"
    sizes = r"\(\d+, 1, 1\)"
    words = rf"pygpt:   grid {sizes}, block {sizes}, cluster \(1, 1, 1\), 0 bytes of dynamic shared memory"
    assert re.fullmatch(words, launch), launch


def test_an_unknown_device_is_an_error():
    result = run("import pygpt", "85")
    assert result.returncode != 0
    assert "PYGPT_EMULATE must be one of 80, 86, 90, but is '85'" in result.stderr


def test_a_build_without_it_says_so():
    program = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "pygpt._C_emulated":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import pygpt
"""
    result = run(program, "80")
    assert result.returncode != 0
    assert "PYGPT_EMULATE=80 needs a development build with the emulated device" in result.stderr


@needs_the_module
def test_what_has_no_cuda_kernel_is_refused_with_each_reason():
    program = """
import torch, pygpt
for op, tensor in (("add", torch.ones(2).double()), ("dropout", torch.ones(2).double())):
    try:
        pygpt.ops.add(tensor, tensor) if op == "add" else pygpt.ops.dropout(tensor, 0.5)
    except ValueError as error:
        print(error)
"""
    words = output(program, "80")
    for op in ("add", "dropout"):
        assert f"{op}: no implementation takes these arguments" in words
    assert words.count("cuda_sm80: there are no CUDA kernels for float64") == 2
    assert words.count("cpu_scalar: the tensors are on cuda:0") == 2


@needs_the_module
def test_a_runtime_that_is_loaded_globally_takes_no_launch(tmp_path: Path):
    """As that of a torch built for CUDA would be."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler, to make a false CUDA runtime")
    functions = (
        "cudaLaunchKernelExC",
        "cudaLaunchKernel",
        "cudaGetDeviceCount",
        "cudaGetDevice",
        "cudaFuncSetAttribute",
    )
    functions += ("__cudaRegisterFatBinary", "__cudaRegisterFunction", "__cudaPushCallConfiguration")
    source, library = tmp_path / "cudart.c", tmp_path / "libcudart.so"
    calls = "".join(f"int {name}(void) {{ abort(); }}\n" for name in functions)
    source.write_text(f"#include <stdlib.h>\n{calls}")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    program = f"""
import ctypes
ctypes.CDLL({str(library)!r}, mode=ctypes.RTLD_GLOBAL)
import torch, pygpt
print(pygpt.ops.add(torch.ones(3), torch.ones(3)).tolist())
"""
    assert output(program, "80").strip() == "[2.0, 2.0, 2.0]"


@needs_the_module
def test_a_fault_names_op_implementation_and_line():
    program = """
import torch, pygpt
try:
    pygpt.ops.layer_norm(torch.ones(2, 300), torch.ones(300))
except RuntimeError as error:
    print(error)
"""
    words = output(program, "80", PYGPT_EMULATOR_INSTRUCTION_LIMIT="100")
    assert "layer_norm (cuda_sm80): " in words
    assert "layer_norm_forward_kernel" in words
    assert "norm.cuh:" in words


@needs_the_module
def test_tokens_are_those_of_the_cpu():
    program = """
import torch
from pygpt import ops
logits = torch.randn(40, 1500, generator=torch.Generator().manual_seed(3)) * 3
logits[1::2] = (logits[1::2] * 2).round() / 2  # ties
rows = {"seeds": torch.arange(40) * 977 - 11, "positions": torch.arange(40) * 2**33}
for options in (
    {}, {"temperature": 0.0}, {"temperature": 0.6}, {"top_k": 1}, {"top_k": 50}, {"top_k": 700}, {"top_p": 0.4},
    {"top_p": 0.99}, {"min_p": 0.05}, {"top_k": 300, "top_p": 0.8, "min_p": 0.01, "temperature": 1.7},
):
    print(options, ops.sample(logits, **options, **rows)[0].tolist())
"""
    assert output(program, "80") == output(program, "")


@needs_the_module
def test_kernels_touch_the_tensors_of_their_op_alone_and_as_it_says():
    program = """
import torch
from pygpt.extension import C
x = torch.zeros(100)
C.emulator.touch(x[10:20], 0, False)
C.emulator.touch(x[10:20], 9, False)
for element, write in ((10, False), (-1, False), (0, True)):
    try:
        C.emulator.touch(x[10:20], element, write)
    except RuntimeError as error:
        print(error)
"""
    words = output(program, "80")
    assert "global access of 4 bytes at offset 40 of 40 bytes of device memory" in words
    assert "which is no device memory of this launch" in words
    assert "writes to read-only memory, at offset 0 of 40 bytes" in words
    assert words.count("touch.cu:") == 3


@needs_the_module
def test_values_are_checked_when_asked_for():
    program = """
import torch
from pygpt import ops
x, rows = torch.zeros(2, 3), {"seeds": torch.tensor([0, 1]), "positions": torch.tensor([0, 0])}
q = torch.zeros(1, 3, 1, 8)
for call in (
    lambda: ops.embedding(torch.tensor([0, 2]), x),
    lambda: ops.cross_entropy(x, torch.tensor([1, -1])),
    lambda: ops.sample(torch.full((2, 3), torch.nan), **rows),
    lambda: ops.attention(q, q, q, key_lengths=torch.tensor([4])),
    lambda: ops.attention(q, q, q, causal=True, query_start=torch.tensor([-1])),
    lambda: ops.attention(q, q, q, cu_seqlens=torch.tensor([0, 2, 4])),
):
    try:
        call()
    except ValueError as error:
        print(error)
"""
    words = output(program, "80", PYGPT_CHECK="1")
    assert "ids[1] is 2, but must be at least 0 and less than 2" in words
    assert "targets[1] is -1" in words
    assert "logits must hold no NaN" in words
    assert "key_lengths[0] must be 0 to 3 (at most k_time), but is 4" in words
    assert "query_start[0] must be 0 to" in words
    assert "cu_seqlens must go from 0 to q_time, 3, but goes from 0 to 4" in words
    assert output(program, "80") == ""


TRAINING = """
import json, sys
import torch
import pygpt
from pygpt import ops

steps, batch = map(int, sys.argv[1:])
config = pygpt.GPTConfig(vocab_size=61, context_length=32, num_layers=2, num_heads=4, embedding_dim=64)
torch.manual_seed(1)
model = pygpt.GPT(config)
tokens = torch.randint(61, (batch, 33))
optimizer = pygpt.optim.AdamW(model.parameters(), lr=3e-3)
losses = []
for _ in range(steps):
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(float(loss))

prompts, lengths = tokens[:, :9], torch.tensor([9, 4])[:batch]
new = 5
emulator = getattr(pygpt.extension.C, "emulator", None)
for guess in range(3 if emulator else 1):  # at what is not known of the arithmetic
    if emulator:
        emulator.set_option("arith_seed", str(guess))
    written = model.generate(
        prompts, new, temperature=0.0, prompt_lengths=lengths, exact=True, return_logprobs=True
    )
    for row, length in enumerate(lengths.tolist()):
        ids = written.tokens[row : row + 1, : length + new]
        with torch.no_grad():
            logits = model(ids)[0, length - 1 : -1]  # not cached, the row alone
        expected = -ops.cross_entropy(logits, ids[0, length:], reduction="none")
        assert torch.equal(written.logprobs[row].view(torch.int32), expected.view(torch.int32)), (guess, row)
        assert torch.equal(logits.argmax(-1), ids[0, length:]), (guess, row)
print(json.dumps(losses))
"""


@functools.cache
def losses(device: str, steps: int, batch: int) -> list[float]:
    """Of a tiny GPT that learns its batch by heart; and what it then writes has the bits of the uncached forward."""
    return json.loads(output(TRAINING, device, arguments=(str(steps), str(batch))))


@needs_the_module
@pytest.mark.parametrize("device, steps, batch", [("80", 50, 2), ("90", 20, 2)])
def test_a_model_trains_as_on_the_cpu_and_writes_the_bits_of_forward(device, steps, batch):
    ours, expected = losses(device, steps, batch), losses("", steps, batch)
    assert ours == pytest.approx(expected, rel=1e-3)
    assert ours[-1] < 0.8 * ours[0]


@needs_the_module
def test_decoding_kernels_write_by_default_and_a_row_has_its_bits_in_any_batch():
    program = """
import torch, pygpt
from pygpt.extension import C
config = pygpt.GPTConfig(
    vocab_size=61, context_length=32, num_layers=2, num_heads=4, num_kv_heads=2, embedding_dim=48, tie_head=False
)
torch.manual_seed(1)
model = pygpt.GPT(config)
prompts, lengths = torch.randint(61, (3, 20)), torch.tensor([20, 1, 11])
options = {"max_new_tokens": 5, "temperature": 0.7, "return_logprobs": True}
exact = model.generate(prompts, prompt_lengths=lengths, exact=True, **options)
assert not any(C.last_used(op).endswith("_decode") for op in ("attention", "feed_forward", "linear"))
for guess in range(3):  # at what is not known of the arithmetic
    C.emulator.set_option("arith_seed", str(guess))
    batch = model.generate(prompts, prompt_lengths=lengths, **options)
    assert all(C.last_used(op) == "cuda_sm80_decode" for op in ("attention", "feed_forward", "linear"))
    assert torch.equal(batch.tokens, exact.tokens)
    torch.testing.assert_close(batch.logprobs, exact.logprobs, rtol=1e-4, atol=1e-5)
    for row, length in enumerate(lengths.tolist()):
        alone = model.generate(prompts[row : row + 1, :length], seed=row, **options)
        assert torch.equal(alone.tokens[0], batch.tokens[row, : length + 5]), row
        assert torch.equal(alone.logprobs[0].view(torch.int32), batch.logprobs[row].view(torch.int32)), row
"""
    output(program, "80")


@needs_the_module
@pytest.mark.nightly
@pytest.mark.parametrize("key", ["hashes", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", ["80", "90"])
def test_a_step_and_a_decode_have_the_same_bits_in_twenty_interleavings(device, dtype, key):
    """All that tests/golden/step.py takes, whatever the order of the warps' turns and the number of processors."""
    program = """
import json, sys
sys.path.append(sys.argv[1])
from pygpt.extension import C
from tests.golden.step import CONFIGS, hashes
for seed in range(20):
    C.emulator.set_option("seed", str(seed))
    C.emulator.set_option("multiprocessors", str((4, 1, 7)[seed % 3]))
    print(json.dumps(hashes(CONFIGS[sys.argv[2]], sys.argv[3])))
"""
    lines = output(program, device, (str(Path(__file__).parents[1]), key, dtype)).splitlines()
    assert len(lines) == 20
    first = json.loads(lines[0])
    moved = {seed: [what for what in first if json.loads(x)[what] != first[what]] for seed, x in enumerate(lines)}
    assert not any(moved.values()), {seed: whats for seed, whats in moved.items() if whats}


MEMORY_BOUND = {
    "layer_norm_forward": "ops.layer_norm(x, w, w)",
    "rms_norm_forward": "ops.rms_norm(x, w)",
    "rotary_forward": "ops.rotary(x.view(1, 6, 12, 64), targets, m.view(-1, 64)[:6])",
    "gated_product_forward": "ops.gated_product(x, x.clone())",
    "cross_entropy_forward": "ops.cross_entropy(x, targets)",
    "cross_entropy_backward": "ops.cross_entropy(x.requires_grad_(), targets).backward()",
    "adamw_step": "ops.adamw([x], [x.clone()], [m], [m.clone()], [None], [1], "
    "lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)",
    "grad_norm_forward": "ops.grad_norm([x, w])",
    "add_forward": "ops.add(x, w)",
    "dropout_forward": "ops.dropout(x, 0.3, 5)",
    "embedding_forward": "ops.embedding(targets, x)",
}


@functools.cache
def launches(device: str, dtype: str) -> list[dict[str, Any]]:
    """What each launch of MEMORY_BOUND used."""
    calls = "\n".join(f"x, w, m = inputs()\n{call}" for call in MEMORY_BOUND.values())
    program = f"""
import torch
from pygpt import ops
from pygpt.extension import C
def inputs():
    return torch.randn(6, 768).to(torch.{dtype}), torch.randn(768).to(torch.{dtype}), torch.rand(6, 768)
targets = torch.tensor([0, 5, 3, 1, 2, 4])
C.emulator.set_option("count", "1")
{calls}
print(C.emulator.take_counts())
"""
    return json.loads(output(program, device))


@needs_the_module
@pytest.mark.parametrize("kernel", MEMORY_BOUND)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", ["80", "90"])
def test_every_sector_that_moves_is_used(kernel, dtype, device):
    """Of aligned shapes: as many sectors of 32 bytes as the bytes that are asked for need."""
    own = [launch for launch in launches(device, dtype) if f"{kernel}_kernel" in launch["kernel"]]
    assert own
    for launch in own:
        assert launch["global_sectors"] <= launch["global_ideal"], [
            (line["line"], line["global_sectors"], line["global_ideal"])
            for line in launch["lines"]
            if line["global_sectors"] > line["global_ideal"]
        ]


@needs_the_module
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_rows_of_layer_norm_backward_use_every_sector(dtype):
    """By the difference of two numbers of rows: a group of rows also leaves a row of sums, half a sector at a time."""
    program = f"""
import torch
from pygpt import ops
from pygpt.extension import C
C.emulator.set_option("count", "1")
for rows in (6, 12):
    x, w = torch.randn(rows, 768).to(torch.{dtype}), torch.randn(768).to(torch.{dtype})
    torch.autograd.backward(ops.layer_norm(x.requires_grad_(), w, w), x.detach())
print(C.emulator.take_counts())
"""
    few, more = (x for x in json.loads(output(program, "80")) if "layer_norm_backward_kernel" in x["kernel"])
    sectors, ideal = (more[what] - few[what] for what in ("global_sectors", "global_ideal"))
    assert 0 < sectors <= ideal
