"""What rounding costs: a line for each form of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench import perplexity
from pygpt import GPT, GPTConfig
from pygpt.extension import EMULATED
from pygpt.text import Document, make_tokenizer

pytestmark = pytest.mark.skipif(EMULATED is not None, reason="quantised weights are the CPU's")


TEXT = "A cat sat on a mat. " * 20


def saved(folder: Path, **options: Any) -> tuple[GPT, torch.Tensor]:
    """A model of characters in a folder, and the tokens of `TEXT`."""
    tokenizer = make_tokenizer("characters", [Document("cat", TEXT)], None, progress=False)
    torch.manual_seed(1)
    sizes = {"context_length": 16, "num_layers": 1, "num_heads": 2, "embedding_dim": 32}
    model = GPT(GPTConfig(tokenizer.vocab_size, **sizes, **options)).eval()
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return model, torch.tensor(tokenizer.encode(TEXT))


def test_every_form_has_its_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, ids = saved(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    assert perplexity.main(["--model", str(tmp_path / "model"), "--text", str(tmp_path / "text.txt")]) == 0
    printed = capsys.readouterr().out
    assert f"{perplexity.mean_loss(model, ids, 16):.5f}" in printed
    assert all(f"pygpt {kind}" in printed for kind in perplexity.KINDS)
    assert all(f"llama.cpp {kind}" in printed for kind in perplexity.LLAMAS), "with its loss, or as missing"


def test_llama_cpp_has_our_loss(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model, ids = saved(tmp_path)
    losses = {}
    for name, kind, measured in perplexity.llamas(tmp_path, ids, 16):
        assert name == "llama.cpp" and not isinstance(measured, str), measured
        losses[kind] = measured[1]
    assert losses["f32"] == pytest.approx(perplexity.mean_loss(model, ids, 16), abs=1e-3)
    assert losses["f32"] != losses["q8_0"] == pytest.approx(losses["f32"], abs=0.01)
    assert losses["q4_0"] != losses["q8_0"]


def test_llama_cpp_knows_no_gpt_with_layer_norms_and_rotary_positions(tmp_path: Path) -> None:
    _, ids = saved(tmp_path, positions="rope")
    for name, _, measured in perplexity.llamas(tmp_path, ids, 16):
        assert (name, measured) == ("llama.cpp", "it knows no GPT that is built like this one")


def test_a_folder_without_a_text_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        perplexity.main(["--model", str(tmp_path / "none")])
    assert "none" in capsys.readouterr().err
