"""How ops take tensors, whichever op it is: what torch calls contiguous, numbers, the first call."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from pygpt import ops


def test_what_is_empty_is_contiguous_whatever_its_strides():
    x = torch.zeros(0, 3, 2).transpose(1, 2)  # (0, 2, 3)
    ids = torch.zeros(0, 3, 2, dtype=torch.int64).transpose(1, 2)
    assert x.is_contiguous() and x.stride() == (6, 1, 2)
    weight, matrix = torch.ones(3), torch.ones(4, 3)
    for out in (
        ops.add(x, x),
        ops.layer_norm(x, weight),
        ops.rms_norm(x, weight),
        ops.dropout(x, 0.5),
        ops.gated_product(x, x),
        ops.linear(x, torch.ones(3, 3)),
        ops.feed_forward(x, matrix, None, matrix.T.contiguous(), None),
    ):
        assert out.shape == x.shape
    assert ops.embedding(ids, matrix).shape == (0, 2, 3, 3)
    assert float(ops.cross_entropy(x, ids[..., 0])) == 0
    assert float(ops.grad_norm([x])) == 0


def test_a_number_that_no_float_holds_is_too_large():
    with pytest.raises(ValueError, match="eps must fit in a float64"):
        ops.layer_norm(torch.ones(2, 3), torch.ones(3), eps=10**400)


def test_the_first_calls_may_come_from_several_threads_while_an_import_hook_runs():
    code = """
        import builtins, threading, time
        import torch
        from pygpt.extension import C
        original = builtins.__import__
        def hook(name, *rest, **named):
            if threading.current_thread() is not threading.main_thread():
                time.sleep(0.02)  # lets another thread have the GIL
            return original(name, *rest, **named)
        x, weight, out = torch.ones(2, 3), torch.ones(3), torch.empty(2, 3)
        def call():
            C.layer_norm_forward(x, None, weight, None, 1e-5, out, None, None, None)
        threads = [threading.Thread(target=call) for _ in range(4)]
        builtins.__import__ = hook
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("end")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout == "end\n", result.stderr
