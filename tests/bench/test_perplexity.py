"""What rounding costs: a line for each form of the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import perplexity
from pygpt import GPT, GPTConfig
from pygpt.extension import EMULATED
from pygpt.text import Document, make_tokenizer

pytestmark = pytest.mark.skipif(EMULATED is not None, reason="quantised weights are the CPU's")


def test_every_form_has_its_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "A cat sat on a mat. " * 20
    (tmp_path / "text.txt").write_text(text)
    tokenizer = make_tokenizer("characters", [Document("cat", text)], None, progress=False)
    torch.manual_seed(1)
    model = GPT(GPTConfig(tokenizer.vocab_size, context_length=16, num_layers=1, num_heads=2, embedding_dim=32))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save(folder)
    assert perplexity.main(["--model", str(folder), "--text", str(tmp_path / "text.txt")]) == 0
    printed = capsys.readouterr().out
    ids = torch.tensor(tokenizer.encode(text))
    assert f"{perplexity.mean_loss(model.eval(), ids, 16):.5f}" in printed
    assert all(kind in printed for kind in perplexity.KINDS)


def test_a_folder_without_a_text_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        perplexity.main(["--model", str(tmp_path / "none")])
    assert "none" in capsys.readouterr().err
