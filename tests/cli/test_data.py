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


def test_text_is_cleaned_and_every_step_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    chinese = "你好。世界！" * 20
    for number, text in enumerate(["one  text,\u00a0twice. ", "one text, twice.", "hi", "a bad word", chinese]):
        (texts / f"{number}.txt").write_text(text)
    (tmp_path / "words").write_text("BAD\n")
    words = ["data", str(texts), "--report", "--min-characters", "3", "--drop-words", str(tmp_path / "words")]
    assert main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].split()[:4] == ["kept", "2", "of", "5"] and len(printed) == 13
    assert any(line.split()[:3] == ["duplicates", "0", "1"] for line in printed)
    out = tmp_path / "tokens"
    assert main([*words, "--out", str(out), "--tokenizer", "char", "--validation", "0.9", "--whole-documents"]) == 0
    assert "2 documents" in capsys.readouterr().out
    train, validation, tokenizer = TokenFile(out), TokenFile(out, "validation"), Tokenizer.load(out)
    whole = {tokenizer.decode(file.document(0).tolist()) for file in (train, validation)}
    assert whole == {"one text, twice.", chinese}


def test_bad_input_of_cleaning(tmp_path: Path, fails: Run) -> None:
    (tmp_path / "good.txt").write_text("text " * 10)
    (tmp_path / "none").touch()
    for flags, message in [
        ([], "say with --out where to write the token files, or ask for a --report alone"),
        (["--out", "OUT", "--min-characters", "99"], "no document is left of the 1 that were read"),
        (["--report", "--min-characters", "0"], "least_characters must be an integer of at least 1, not 0"),
        (["--report", "--near-duplicates", "2"], "near_duplicates must be a number between 0 and 1, not 2.0"),
        (["--report", "--drop-words", str(tmp_path / "none")], "none has no words"),
        (["--report", "--drop-words", str(tmp_path / "absent")], "No such file or directory"),
        (["--report", "--form", "NFX"], "invalid choice: 'NFX'"),
        (["--out", "OUT", "--whole-documents", "--tokenizer", "char"], "no whole document fits into the 2 tokens"),
    ]:
        line = fails(
            "data", str(tmp_path / "good.txt"), *[str(tmp_path / "out") if flag == "OUT" else flag for flag in flags]
        )
        assert line.startswith("pygpt data: error: ") and message in line, line
        assert not (tmp_path / "out" / "tokens.json").exists()
