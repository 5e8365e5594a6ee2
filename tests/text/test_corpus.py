"""Documents come in a fixed order, whole, as UTF-8; whatever is wrong with a source is said by its name."""

import ast
import hashlib
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pygpt.text import BPETokenizer, Document, load_corpus, standard_library
from pygpt.text.corpus import PIECE_BYTES, TextFile


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_the_standard_library_is_documentation_in_a_fixed_order() -> None:
    documents = standard_library()
    names = [document.name for document in documents]
    assert len(set(names)) == len(names) > 300
    assert sum(document.size_bytes for document in documents) > 1_000_000
    by_name = {document.name: document.text for document in documents}
    assert "assert" in by_name["pydoc topic assert"]
    text = by_name["textwrap"]
    assert text.startswith("module textwrap\n\nText wrapping and filling.\n")
    assert "\nclass TextWrapper\n\n" in text
    assert "\ndedent(text)\n\nRemove any common leading whitespace" in text
    assert "\nTextWrapper.wrap(self, text)\n\nwrap(text : string)" in text
    assert text.index("class TextWrapper") < text.index("\ndedent(text)")
    assert "_wordsep_simple_re" not in text, "code is no documentation"
    assert not any(name.startswith(("test.", "site-packages")) for name in names)


@pytest.mark.slow
def test_the_standard_library_is_the_same_in_another_process_and_imports_none_of_it() -> None:
    program = (
        "import hashlib, sys\n"
        "from pygpt.text import standard_library\n"
        "before = set(sys.modules)\n"
        "documents = standard_library()\n"
        "print(sorted(set(sys.modules) - before))\n"
        "print(hashlib.sha256(repr([(d.name, d.text) for d in documents]).encode()).hexdigest())\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported, digest = run.stdout.splitlines()
    here = hashlib.sha256(repr([(d.name, d.text) for d in standard_library()]).encode()).hexdigest()
    assert digest == here
    by_python_itself = ("pydoc_data", "encodings.", "_sysconfigdata")
    assert all(name.startswith(by_python_itself) for name in ast.literal_eval(imported))


def test_files_folders_and_globs(tmp_path: Path) -> None:
    a = write(tmp_path / "a.txt", "a")
    b = write(tmp_path / "sub" / "b.md", "b")
    c = write(tmp_path / "sub" / "deep" / "c.rst", "c")
    code = write(tmp_path / "sub" / "code.py", "code")
    write(tmp_path / ".hidden" / "d.txt", "d")
    write(tmp_path / "sub" / ".e.txt", "e")

    def paths(*sources: str | Path) -> list[Path]:
        return [Path(document.name) for document in load_corpus(sources)]

    assert [Path(document.name) for document in load_corpus(tmp_path)] == [a, b, c]
    assert [document.text for document in load_corpus(str(code))] == ["code"]
    assert paths(tmp_path / "sub" / "*.py") == [code]
    assert paths(str(tmp_path / "**" / "*.md")) == [b]
    assert paths(str(tmp_path / "*")) == [a], "folders that a glob matches are no files"
    assert paths(c, a, tmp_path) == [c, a, b], "each once, in the order of the sources"
    assert load_corpus(a)[0].size_bytes == 1


def test_a_name_with_glob_characters_is_a_name_first(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].txt", "text")
    assert [document.text for document in load_corpus(path)] == ["text"]


def test_sources_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder '.*missing'"):
        load_corpus(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*\*.txt'"):
        load_corpus(str(tmp_path / "*.txt"))
    write(tmp_path / "picture.png", "")
    with pytest.raises(ValueError, match=r"has no text files \(.txt, .*name others by a glob"):
        load_corpus(tmp_path)
    with pytest.raises(ValueError, match="sources is an empty list"):
        load_corpus([])


@pytest.mark.parametrize(
    ("content", "byte", "offset"),
    [
        (b"caf\xe9 au lait", "e9", 3),
        (b"\xff\xfeh\0i\0", "ff", 0),
        (b"x" * (PIECE_BYTES - 1) + b"\xc3" + b"x", "c3", PIECE_BYTES - 1),  # a character cut by the end of a block
        (b"cut \xe2\x82", "e2", 4),
    ],
)
def test_other_encodings_are_named_with_their_place(tmp_path: Path, content: bytes, byte: str, offset: int) -> None:
    path = write(tmp_path / "latin.txt", content)
    with pytest.raises(ValueError, match=f"latin.txt is not UTF-8 text: byte 0x{byte} at offset {offset};"):
        _ = load_corpus(path)[0].text


def test_a_byte_order_mark_and_line_ends_are_normalised(tmp_path: Path) -> None:
    at_the_seam = "x" * (PIECE_BYTES - 4)  # the mark's 3 bytes, and \r: the block ends between \r and \n
    path = write(tmp_path / "windows.txt", "\ufeff" + at_the_seam + "\r\nb\rc\n\ufeff")
    assert load_corpus(path)[0].text == at_the_seam + "\nb\nc\n\ufeff"


@given(text=st.text(st.sampled_from("ab1.é😀 \n\t\x1c\u00a0\u3000"), max_size=60), repeat=st.sampled_from([1, 3000]))
def test_pieces_join_to_the_file_and_are_cut_before_whitespace(
    tmp_path_factory: pytest.TempPathFactory, text: str, repeat: int
) -> None:
    text *= repeat
    path = write(tmp_path_factory.getbasetemp() / "pieces.txt", text)
    pieces = list(TextFile(path))
    assert "".join(pieces) == text
    assert "" not in pieces
    for left, right in itertools.pairwise(pieces):
        assert not left[-1].isspace()
        assert right[0] in " \t\n"


def test_a_large_file_comes_in_small_pieces(tmp_path: Path) -> None:
    path = write(tmp_path / "large.txt", "some words\n" * 100_000)
    pieces = list(TextFile(path))
    assert max(map(len, pieces)) <= 2 * PIECE_BYTES
    assert len(pieces) >= 11 * 100_000 // (2 * PIECE_BYTES)


def test_a_cut_where_a_block_begins_is_found(tmp_path: Path) -> None:
    long = "x" * PIECE_BYTES
    path = write(tmp_path / "seam.txt", long + " " + 3 * long)
    assert list(TextFile(path)) == [long, " " + 3 * long]


def test_a_document_of_a_string_is_one_piece() -> None:
    document = Document("name", "é text")
    assert list(document.pieces) == ["é text"]
    assert document.size_bytes == 7


def test_text_without_spaces_comes_in_pieces_too(tmp_path: Path) -> None:
    path = tmp_path / "chinese.txt"
    text = "没有空格，也没有换行。真的！" * 20_000
    path.write_text(text, encoding="utf-8")
    (document,) = load_corpus(path)
    pieces = list(document.pieces)
    assert "".join(pieces) == text and max(map(len, pieces)) < PIECE_BYTES
    tokenizer = BPETokenizer.train([Document("", text[:2000])], 300)
    whole = tokenizer.encode(text)
    assert [token for piece in pieces for token in tokenizer.encode(piece)] == whole
