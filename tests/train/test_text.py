"""The text of a run by the names of flags: what is read, which tokenizer, how a text begins."""

from pathlib import Path

import pytest

from pygpt.text import BPETokenizer, ByteTokenizer, CharTokenizer, Document, Tokenizer
from pygpt.train.text import named_tokenizer, prompt_tokens, read_corpus


def test_a_separator_cuts_files_and_is_in_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n---\n\ntwo\n---\n   \n---\nthree")
    (tmp_path / "b.txt").write_text("four")
    whole = read_corpus([str(tmp_path)])
    assert [document.text for document in whole] == ["one\n---\n\ntwo\n---\n   \n---\nthree", "four"]
    parts = read_corpus([str(tmp_path)], "---\\n")
    assert [document.text for document in parts] == ["one\n", "two\n", "three\n", "four\n"]
    assert [document.name.rpartition(", ")[2] for document in parts] == ["part 1", "part 2", "part 4", "part 1"]
    with pytest.raises(ValueError, match="separator is empty"):
        read_corpus([str(tmp_path)], "")


def test_tokenizers_have_the_names_of_flags(tmp_path: Path) -> None:
    documents = [Document("", "the cat sat on the mat " * 5)]
    for kind, expected in (("char", CharTokenizer), ("byte", ByteTokenizer), ("bpe", BPETokenizer)):
        assert type(named_tokenizer(kind, documents, 280 if kind == "bpe" else None, progress=False)) is expected
    CharTokenizer("abc").save(tmp_path)
    loaded = named_tokenizer(str(tmp_path), documents)
    assert loaded.fingerprint == Tokenizer.load(tmp_path).fingerprint
    with pytest.raises(ValueError, match="must be char, byte, bpe or a folder that holds one, not 'words'"):
        named_tokenizer("words", documents)


def test_a_text_begins_with_the_prompt_or_a_new_line() -> None:
    tokenizer = ByteTokenizer()
    assert prompt_tokens(tokenizer, "ab") == [97, 98]
    assert prompt_tokens(tokenizer, None) == [10]
    with pytest.raises(ValueError, match="the prompt is empty: leave it out"):
        prompt_tokens(tokenizer, "")
    no_new_line = CharTokenizer("abc")
    assert prompt_tokens(no_new_line, None) == [no_new_line.end_of_document]
    with pytest.raises(ValueError, match="'é'"):
        prompt_tokens(no_new_line, "é")
