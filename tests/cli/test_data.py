"""``pygpt data``: text becomes token files that can be read back."""

from pathlib import Path

import pytest

from pygpt.cli import main
from pygpt.text import TokenFile, Tokenizer
from tests.cli.conftest import Run


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_token_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: str) -> None:
    (tmp_path / "a.txt").write_text("one text, " * 200)
    (tmp_path / "b.md").write_text("another text. " * 200)
    out = tmp_path / "tokens"
    words = ["data", str(tmp_path), "--out", str(out), "--tokenizer", tokenizer, "--validation", "0"]
    assert main([*words, *(["--vocab-size", "270"] if tokenizer == "bpe" else [])]) == 0
    printed = capsys.readouterr().out
    assert "2 documents" in printed
    assert f"pygpt train --data {out}" in printed
    file, loaded = TokenFile(out), Tokenizer.load(out)
    texts = [loaded.decode(file.document(i).tolist()) for i in range(2)]
    assert texts[0].startswith("one text, one") and texts[1].startswith("another text. another")


def test_bad_input(tmp_path: Path, fails: Run) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 10)
    (tmp_path / "good.txt").write_text("text " * 10)
    for name, flags, message in [
        ("absent.txt", [], "there is no file or folder"),
        ("empty.txt", [], "the corpus is empty"),
        ("latin.txt", [], "latin.txt is not UTF-8 text"),
        ("good.txt", ["--tokenizer", "words"], "tokenizer must be"),
        ("good.txt", ["--tokenizer", "byte", "--vocab-size", "300"], "vocab_size can be chosen for 'bpe' only"),
        ("good.txt", ["--validation", "1"], "validation_fraction must be"),
        ("good.txt", ["--out", "/proc/pygpt"], "/proc/pygpt"),
        ("good.txt", ["--out", str(tmp_path)], "holds something other than token files"),
    ]:
        line = fails("data", str(tmp_path / name), "--out", str(tmp_path / "out"), *flags)
        assert line.startswith("pygpt data: error: ")
        assert message in line
        assert not (tmp_path / "out" / "tokens.json").exists()
