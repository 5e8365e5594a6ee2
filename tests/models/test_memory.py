from __future__ import annotations

import pytest
import torch

from pygpt import GPT, GPTConfig
from pygpt.models import memory


def test_a_model_that_does_not_fit_is_refused_with_both_figures(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 3 * 2**30)
    with pytest.raises(MemoryError, match=r"174,604,259,328 parameters need 650\.5 GiB .* cpu has 3\.0 GiB free"):
        GPT(GPTConfig.preset("gpt3"))
    memory.check_fits(3 * 2**28, torch.device("cpu"), torch.float32)
    with pytest.raises(MemoryError):
        memory.check_fits(3 * 2**28 + 1, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("positions", ["rope", "sinusoidal"])
def test_positions_that_do_not_fit_are_refused_too(positions):
    shape = {"vocab_size": 9, "num_layers": 1, "num_heads": 2, "embedding_dim": 8, "positions": positions}
    with pytest.raises(MemoryError, match=r"the positions of 1,000,000,000,000 tokens need"):
        GPT(GPTConfig(context_length=10**12, **shape))


def test_free_memory_is_that_of_the_machine():
    free = memory.free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert memory.free_memory(torch.device("meta")) is None


def test_a_container_limit_counts(tmp_path):
    assert memory._free_in_cgroup(tmp_path) is None
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 200\nactive_file 100\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._free_in_cgroup(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._free_in_cgroup(tmp_path) is None
