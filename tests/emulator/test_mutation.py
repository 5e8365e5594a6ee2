"""Each barrier, arrive, wait and fence of the project's kernels, removed in turn: noticed, or its line says why not.

So is the order of each acquire and release.

What survives is explained where it stands, in a comment with the words "not noticed if removed". Nightly, since every
removal is a run: ``pytest -m nightly tests/emulator/test_mutation.py -rP`` prints how many there were of each kernel.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        importlib.util.find_spec("pygpt._C_emulated") is None,
        reason="this build has no emulated device; build with --config-settings=cmake.define.PYGPT_EMULATOR=ON",
    ),
]
ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = "not noticed if removed"


@dataclass
class Program:
    """Runs kernels on an emulated device; ``run`` raises if a result is wrong. Every loop over tiles runs twice."""

    arch: str
    setup: str  # once
    run: str  # with everything there, and then with each removal
    kernels: str = ""  # a regular expression: those in which something is removed


# Close to float64, with gradients of the first `gradients` inputs where there are some.
COMMON = """
from pygpt.extension import C
bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
def drawn(*shape, dtype=bf16):
    return torch.randn(shape).to(dtype)
def close(got, right, what, bound):
    error = (got.double() - right).abs().max().item()
    assert error <= bound * max(1.0, right.abs().max().item()), f"{what} is off by {error}"
def results(function, inputs, gradients, weights):
    inputs = [x.detach().requires_grad_(i < gradients) for i, x in enumerate(inputs)]
    out = function(*inputs)
    outs = out if isinstance(out, tuple) else (out,)
    if gradients:
        total = sum((o.double() * w).sum() for o, w in zip(outs, weights))
        total.backward()
    return [o.detach() for o in outs] + [x.grad for x in inputs[:gradients]]
class Case:
    def __init__(self, ours, theirs, inputs, gradients=0, bound=0.03, implementation=None):
        self.ours, self.inputs, self.gradients, self.bound = ours, inputs, gradients, bound
        self.implementation = implementation
        outs = theirs(*(x.double() for x in inputs))
        self.weights = [torch.randn_like(o) for o in (outs if isinstance(outs, tuple) else (outs,))]
        self.right = results(theirs, [x.double() for x in inputs], gradients, self.weights)
    def check(self):
        got = results(self.ours, self.inputs, self.gradients, self.weights)
        if self.implementation:
            op, name = self.implementation
            assert C.last_used(op) == name, C.last_used(op)
        for i, (g, r) in enumerate(zip(got, self.right, strict=True)):
            close(g, r, f"result {i}", self.bound)
def attend(q, k, v, causal=False, window=None, lengths=None):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    i = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
    j = torch.arange(k.shape[2])
    hidden = torch.zeros(i.shape[0], j.shape[0], dtype=torch.bool)
    if causal: hidden |= j > i
    if window: hidden |= j <= i - window
    scores = scores.masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1)
def attention_case(D, queries, keys, heads, groups, gradients=0, dtype=bf16, implementation="cuda_sm90", **options):
    inputs = drawn(1, queries, heads, D, dtype=dtype), *(drawn(1, keys, groups, D, dtype=dtype) for _ in "kv")
    extra = {"decode": True} if implementation.endswith("decode") else {}
    return Case(lambda *x: ops.attention(*x, return_lse=True, **options, **extra), lambda *x: attend(*x, **options),
                inputs, gradients, implementation=("attention", implementation))
"""
RUN = "for case in cases: case.check()"


def attention_on_hopper(kernels: str, *cases: str, blocks: tuple[int, ...] = (1,)) -> Program:
    """On one multiprocessor a block takes all tiles, so that its rings go round; on several, blocks take turns."""
    setup = f"cases = [{', '.join(f'attention_case({c})' for c in cases)}]"
    each = f"for n in {blocks}:\n    C.emulator.set_option('multiprocessors', str(n))\n    {RUN}"
    return Program("90", setup, each, kernels)


LINEAR = """
def product(x, weight, bias, residual):
    return torch.nn.functional.gelu(x @ weight.T + bias) + residual
def linear_case(rows, inputs, outputs, implementation, dtype=bf16, gradients=4, decode=False, bound=0.03):
    return Case(lambda x, w, b, r: ops.linear(x, w, b, "gelu", r, decode=decode), product,
                (drawn(rows, inputs, dtype=dtype), drawn(outputs, inputs, dtype=dtype) * inputs**-0.5,
                 drawn(outputs, dtype=dtype), drawn(rows, outputs, dtype=dtype)),
                gradients, bound, ("linear", implementation))
"""


def linear(arch: str, *cases: str) -> Program:
    return Program(arch, f"{LINEAR}cases = [{', '.join(f'linear_case({c})' for c in cases)}]", RUN)


# The residual stream in the dtype of what is added to it, and in float32.
NORM = """
from pygpt import reference
shapes = (70, 130), (7, 2500), (3, 20000)
cases = [
    Case(getattr(ops, NAME), getattr(reference, NAME),
         (drawn(rows, width, dtype=dtype), drawn(rows, width, dtype=stream),
          *(drawn(width, dtype=stream) for _ in range(PARAMETERS))), 2 + PARAMETERS, 1e-5 if dtype == fp32 else 0.03)
    for dtype, stream in ((fp32, fp32), (bf16, bf16), (bf16, fp32)) for rows, width in shapes
]
"""
CROSS_ENTROPY = """
targets = torch.tensor([3, 0, 69, 8, 5])
cases = [
    Case(lambda x: ops.cross_entropy(x, targets), lambda x: torch.nn.functional.cross_entropy(x, targets),
         (drawn(5, columns, dtype=dtype),), 1, 0.01)
    for dtype in (fp32, bf16) for columns in (70, 5000, 70000)
]
"""
LINEAR_CROSS_ENTROPY = """
cases = []
for rows, width, vocabulary in ((1100, 24, 40), (150, 200, 300)):
    targets = torch.arange(rows) * 7 % vocabulary
    targets[::5] = -100
    def loss(x, weight, targets=targets):
        return torch.nn.functional.cross_entropy(x @ weight.T, targets, ignore_index=-100)
    def ours(x, weight, targets=targets):
        return ops.linear_cross_entropy(x, weight, targets, ignore_index=-100)
    cases += [Case(ours, loss, (drawn(rows, width, dtype=dtype), drawn(vocabulary, width, dtype=dtype) * 0.1), 2, 0.01)
              for dtype in DTYPES]
"""
FEED_FORWARD = """
def network(x, w_in, w_out):
    return torch.nn.functional.gelu(x @ w_in.T) @ w_out.T
cases = [
    Case(lambda x, a, b: ops.feed_forward(x, a, None, b, None), network,
         (drawn(rows, 200, dtype=dtype), drawn(333, 200, dtype=dtype) * 0.1, drawn(200, 333, dtype=dtype) * 0.1),
         GRADIENTS, 0.03, ("feed_forward", IMPLEMENTATION))
    for dtype in DTYPES for rows in ROWS
]
"""
SAMPLE = """
from pygpt import ops as o
logits = torch.randn(3, 5000) * 3
rows = {"seeds": torch.arange(3), "positions": torch.arange(3)}
choices = [{"top_k": 40, "top_p": 0.9}, {"top_p": 0.5, "min_p": 0.01}, {}, {"temperature": 0.0}, {"top_k": 700}]
right = [ops.sample(logits, **c, **rows) for c in choices]
"""
SAMPLED = """
for c, (token, logprob) in zip(choices, right):
    a, b = ops.sample(logits, **c, **rows)
    assert torch.equal(a, token) and torch.equal(b, logprob), c
"""
EMBEDDING = """
def sums(ids, rows):
    return lambda table: torch.nn.functional.embedding(ids, table)
cases = []
for count, rows in ((300, 40), (5000, 3000)):
    ids = torch.randint(rows, (count,))
    cases += [Case(lambda t, ids=ids: ops.embedding(ids, t), sums(ids, rows), (drawn(rows, width, dtype=dtype),), 1,
                   1e-5 if dtype == fp32 else 0.03) for dtype in (fp32, bf16) for width in (24,)]
"""
ATTENTION_WITH_BIAS = """
def with_bias(q, k, v, bias):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(scores.shape[-1] - scores.shape[-2] + 1)
    blind = hidden.all(-1, keepdim=True)
    weights = scores.masked_fill(hidden & ~blind, -torch.inf).softmax(-1).masked_fill(blind, 0)
    return (weights @ v).transpose(1, 2), weights
def ours(q, k, v, bias):
    return ops.attention(q, k, v, bias=bias, causal=True, return_weights=True)[0],
cases = []
for dtype, queries, keys in ((fp32, 150, 150), (bf16, 150, 150), (bf16, 260, 40)):  # in the last a whole tile sees none
    inputs = (drawn(1, queries, 2, 24, dtype=dtype), *(drawn(1, keys, 2, 24, dtype=dtype) for _ in "kv"),
              drawn(1, 1, 1, keys, dtype=dtype))
    implementation, bound = ("attention", "cuda_sm80"), 1e-5 if dtype == fp32 else 0.03
    cases.append(Case(ours, lambda *x: with_bias(*x)[:1], inputs, 4, bound, implementation))
    weights = lambda *x: ops.attention(*x[:3], bias=x[3], causal=True, return_weights=True)[1]
    cases.append(Case(weights, lambda *x: with_bias(*x)[1], inputs, 0, bound, implementation))
"""
SMALL = """
tensors = [torch.randn(n) for n in (1000, 3, 70001)]
norm = torch.cat(tensors).double().norm()
x, y = drawn(700, dtype=fp32), drawn(700, dtype=fp32)
"""
SMALL_RUN = """
close(ops.grad_norm(tensors), norm, "norm", 1e-6)
assert torch.equal(ops.add(x, y), x + y)
p, m, v = x.clone(), y.clone(), y.square()
ops.adamw([p], [y], [m], [v], [None], [1.0], lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
dropped = ops.dropout(x, 0.3, 5)
assert ((dropped == 0) | ((dropped - x / 0.7).abs() < 1e-5)).all()
"""

PROGRAMS = {
    "attention forward, Hopper": attention_on_hopper(
        "forward", "64, 300, 300, 2, 1, causal=True", "128, 300, 300, 2, 2"
    ),
    "attention backward in one pass, Hopper": attention_on_hopper(
        "backward|facts|grad_q",
        "64, 300, 300, 2, 1, 3, causal=True",
        "128, 300, 300, 1, 1, 3",
        blocks=(1, 3),
    ),
    "attention backward in two passes, Hopper": attention_on_hopper(
        "backward|facts|grad_q", "128, 300, 300, 2, 1, 3, causal=True", "96, 300, 300, 1, 1, 3"
    ),
    "product 256 wide, Hopper": linear("90", "256, 136, 1280, 'cuda_sm90'"),
    "product 192 wide, Hopper": linear("90", "256, 136, 960, 'cuda_sm90'"),
    "product 128 wide, Hopper": linear("90", "384, 264, 128, 'cuda_sm90'"),
    "product of rows that copies cannot reach, Hopper": linear("90", "200, 401, 201, 'cuda_sm90'"),
    "linear cross entropy, Hopper": Program("90", "DTYPES = [bf16]" + LINEAR_CROSS_ENTROPY, RUN),
    "feed-forward, Hopper": Program(
        "90",
        "DTYPES, ROWS, GRADIENTS, IMPLEMENTATION = [bf16], [300], 3, 'cuda_sm90'" + FEED_FORWARD,
        RUN,
    ),
    "attention with a bias, and its weights": Program("80", ATTENTION_WITH_BIAS, RUN),
    "product": linear("80", "150, 200, 150, 'cuda_sm80'", "150, 200, 150, 'cuda_sm80', fp32, bound=1e-5"),
    "product of few rows": linear(
        "80",
        "5, 1100, 75, 'cuda_sm80_decode', gradients=0, decode=True",
        "64, 1100, 75, 'cuda_sm80_decode', fp32, 0, True, 1e-5",
    ),
    "feed-forward": Program(
        "80",
        "DTYPES, ROWS, GRADIENTS, IMPLEMENTATION = [fp32, bf16], [100], 3, 'cuda_sm80'" + FEED_FORWARD,
        RUN,
    ),
    "attention of few queries": Program(
        "80",
        "cases = [attention_case(d, 1, 700, 4, 2, dtype=t, implementation='cuda_sm80_decode', causal=True)"
        " for d in (64, 128) for t in (bf16, fp32)]",
        RUN,
    ),
    "layer norm with residual": Program("80", "NAME, PARAMETERS = 'add_layer_norm', 2" + NORM, RUN),
    "RMS norm with residual": Program("80", "NAME, PARAMETERS = 'add_rms_norm', 1" + NORM, RUN),
    "cross entropy": Program("80", CROSS_ENTROPY, RUN),
    "linear cross entropy": Program("80", "DTYPES = [fp32, bf16]" + LINEAR_CROSS_ENTROPY, RUN),
    "sampling": Program("80", SAMPLE, SAMPLED),
    "embedding": Program("80", EMBEDDING, RUN),
    "gradient norm, add, AdamW, dropout": Program("80", SMALL, SMALL_RUN),
}


def explained(places: str) -> bool:
    """Whether one of these lines of the source, or the comment above it, says why its removal is not noticed."""
    for path, number in re.findall(r"(\S+\.cuh?):(\d+)", places):
        if not Path(path).is_relative_to(ROOT):
            continue
        lines = Path(path).read_text().splitlines()
        first = last = int(number) - 1
        while first > 0 and lines[first - 1].strip().startswith("//"):
            first -= 1
        if EXPLAINED in " ".join(line.strip().removeprefix("//").strip() for line in lines[first : last + 1]).lower():
            return True
    return False


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_removal_is_noticed_or_explained(name, tmp_path):
    program, table = PROGRAMS[name], tmp_path / "table.json"
    command = [sys.executable, "-m", "tests.emulator.mutate", "--arch", program.arch, "--json", str(table)]
    command += ["--kernel", program.kernels, "--setup", COMMON + program.setup, "-c", program.run]
    environment = {**os.environ, "PYTHONSAFEPATH": ""}  # `python -m` finds the tool in the checkout
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(table.read_text())
    noticed = {row["source"] for row in rows if row["noticed"]}  # in some kernel that is made of this line
    survivors = [row for row in rows if row["source"] not in noticed]
    print(f"{name}: {len(rows)} removed, {len(rows) - len(survivors)} noticed, {len(survivors)} survived")
    for row in survivors:
        print(f"    {row['source']}  {row['text']}  ({row['times']} times)  {row['kernel']}")
    assert not [row for row in survivors if not explained(row["source"])]
