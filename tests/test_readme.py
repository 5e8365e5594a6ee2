"""What the README's tour shows runs as it stands, in a folder that holds what it names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pygpt import GPT, Encoder, EncoderConfig, GPTConfig
from pygpt.text import Document, make_tokenizer

# What a snippet leaves to its reader.
GIVEN = """import torch
ids = source = targets = torch.arange(12).view(2, 6)
lengths = source_lengths = torch.tensor([6, 4])
"""

README = Path(__file__).parents[1] / "README.md"


def shortened(command: re.Match[str]) -> str:
    """A command with flags that make it quick, which win over those before them."""
    name, flags = command.groups()
    if name == "eval":
        return f"pygpt eval{flags} --limit 2 --max-new-tokens 4 "
    shape = "" if "--base" in flags else " --layers 1 --width 48"
    vocabulary = "" if "--base" in flags or "--vocab-size" in flags else " --vocab-size 270"
    return f"pygpt train{flags} --steps 2 --batch-size 2 --eval-batches 2{shape}{vocabulary} "


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path) -> None:
    text = "\n\n\n".join(["Once upon a time there was a cat. The cat sat on a mat.\n" * 5] * 100)
    (tmp_path / "my_texts").mkdir()
    (tmp_path / "my_texts" / "cat.txt").write_text(text)
    tokenizer = make_tokenizer("bpe", [Document("cat", text)], 270, progress=False)
    shape = GPTConfig(tokenizer.vocab_size, context_length=128, num_layers=1, num_heads=2, embedding_dim=16)
    GPT(shape).save_pretrained(tmp_path / "path/to/gpt2")
    tokenizer.save(tmp_path / "path/to/gpt2")

    sizes = {"num_layers": 1, "num_heads": 2, "embedding_dim": 16}
    encoder = Encoder(EncoderConfig(vocab_size=30, context_length=32, **sizes))
    encoder.save_pretrained(tmp_path / "path/to/all-MiniLM-L6-v2")

    (tmp_path / "pages").mkdir()
    article = "".join(f"<p>Paragraph {number} of the story, in which a cat sits on a mat.</p>" for number in range(9))
    (tmp_path / "pages/story.html").write_text(f"<html><body><article>{article}</article></body></html>")
    (tmp_path / "pages/poem.txt").write_text("没有空格的诗。" * 20)

    tour = README.read_text().partition("## A short tour")[2].partition("\n## ")[0]
    blocks = re.findall(r"```(sh|python)\n(.*?)```", tour, flags=re.DOTALL)
    blocks = [(language, code) for language, code in blocks if "pip install" not in code]  # which downloads
    assert [language for language, _ in blocks] == ["sh"] * 5 + ["python"] * 4 + ["sh"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for language, code in blocks:
        if "--near-duplicates" in code and not (find_spec("datasketch") and find_spec("trafilatura")):
            continue  # packages of extras
        short = re.sub(r"pygpt (train|eval)([^#\n]*)", shortened, code)
        if "Encoder.from_pretrained" in code:
            short = GIVEN + short
        command = ["bash", "-euo", "pipefail", "-c", short] if language == "sh" else [sys.executable, "-c", short]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (tmp_path / "runs/mine/loss.png").is_file()
