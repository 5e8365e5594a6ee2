from __future__ import annotations

import sys
import tracemalloc
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pygpt.text import BPETokenizer, Cleaning, Document, WordList, clean, load_corpus, prepare
from pygpt.text.corpus import PIECE_BYTES

PAGE = """<html><head><title>Page</title><style>p {}</style></head><body><nav><a href="/">Home</a> <a href="/x">Menu</a>
</nav><article><h1>The heading</h1><p>This is the main text of the page, of which there is enough to be found.</p>
<p>这是第二段。它也是正文的一部分，足够长了。</p></article>
<footer>Copyright, all rights reserved</footer></body></html>"""


def cleaned(text: str, **options) -> str:
    kept, _ = clean([Document("text", text)], Cleaning(**options))
    return kept[0].text if kept else ""


@pytest.mark.parametrize(
    "text, right",
    [
        ("a  b \t c", "a b c"),
        ("a \n\n\n\n b  \n", "a\n\n b"),
        ("\n  first", "first"),
        ("one\r\ntwo\rthree\x0cfour\u2028five", "one\ntwo\nthree\nfour\nfive"),
        ("a\xa0b\u3000c\u2009d", "a b c d"),
        ("e\u0301", "é"),
        ("a\x00b\x1b[c\ufeffd\u200be\ufffdf\ud800g\ufdd0h\U0001fffei\u202ej\xadk", "ab[cdefghijk"),
        ("می‌خواهم أَهْلًا\u200f", "می‌خواهم أَهْلًا\u200f"),
        ("👩‍👩‍👧 ❤️ 👍🏽 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "👩‍👩‍👧 ❤️ 👍🏽 🏴󠁧󠁢󠁥󠁮󠁧󠁿"),
        ("你好，世界！　再见。", "你好，世界！ 再见。"),
        ("    indented\n    code", "indented\n    code"),
    ],
)
def test_text_is_mended(text, right):
    assert cleaned(text) == right


def test_compatible_forms_and_repair():
    assert cleaned("ﬁne ２ ！", form="NFKC") == "fine 2 !" and cleaned("ﬁne ２", form=None) == "ﬁne ２"
    pytest.importorskip("ftfy", reason="ftfy, which repairs text, is not installed")
    text = "schÃ¶n “quoted” ﬁne &amp; 你好 👍🏽 أَهْلًا"
    assert cleaned(text, repair=True) == text.replace("Ã¶", "ö"), "and nothing else is changed"


@given(
    st.lists(
        st.sampled_from(
            ["a", "é", "e\u0301", "好", "。", "😀", " ", "  ", "\n", "\t", "\x00", "\ufeff", "\xa0", "\r\n"]
        ),
        max_size=60,
    ),
    st.sets(st.integers(0, 60)),
)
def test_pieces_are_cleaned_like_the_whole(parts, cuts):
    """Cut wherever a piece of a document may be cut."""
    text = "".join(parts)
    pieces, last = [], 0
    for cut in sorted(cuts):
        if 0 < cut < len(text) and text[cut] in " \n\t" and not text[cut - 1].isspace():
            pieces.append(text[last:cut])
            last = cut
    pieces.append(text[last:])
    kept, report = clean([Document("in pieces", pieces)])
    assert (kept[0].text if kept else "") == cleaned(text)
    assert report.characters - sum(step.characters for step in report.steps) == report.kept_characters
    if kept:
        again, _ = clean(kept)
        assert again[0].text == kept[0].text, "what is clean stays as it is"
        assert unicodedata.is_normalized("NFC", kept[0].text)
        assert kept[0].size_bytes == len(kept[0].text.encode())


def test_documents_are_left_out_and_counted():
    chinese = "".join(chr(0x4E00 + 37 * n % 20000) for n in range(300))
    documents = [
        Document("kept", "This one is kept, as it is long enough and new.  "),
        Document("empty", " \n\x00"),
        Document("short", "hi"),
        Document("long", "x" * 1001),
        Document("same", "This  one is kept, as it is long enough and new."),
        Document("word", "This has a Bad Word in it."),
        Document("chinese", chinese),
        Document("nearly the same", chinese[:290] + "完全不同的结尾在这里"),
    ]
    pytest.importorskip("datasketch", reason="datasketch, which finds near-duplicates, is not installed")
    words = WordList(["bad word"])
    kept, report = clean(
        documents, Cleaning(least_characters=3, most_characters=1000, drop_words=words, near_duplicates=0.7)
    )
    assert [document.name for document in kept] == ["kept", "chinese"]
    dropped = {step.name: step.dropped for step in report.steps if step.dropped}
    assert dropped == {"too short": 2, "too long": 1, "duplicates": 1, "words to leave out": 1, "near-duplicates": 1}
    assert report.documents == 8 and report.kept_documents == 2
    assert report.characters - sum(step.characters for step in report.steps) == report.kept_characters
    assert report.step("whitespace").changed == 3
    lines = str(report).splitlines()
    assert lines[-1].startswith("kept 2 of 8") and any(line.startswith("near-duplicates") for line in lines)
    everything, _ = clean(documents, Cleaning(duplicates=False))
    assert len(everything) == 7


def test_html_becomes_its_main_text(tmp_path):
    pytest.importorskip("trafilatura", reason="trafilatura, which reads HTML, is not installed")
    (tmp_path / "page.html").write_text(PAGE)
    (tmp_path / "old.htm").write_bytes(PAGE.replace("<head>", '<head><meta charset="gb2312">').encode("gb2312"))
    (tmp_path / "plain.txt").write_text("a < b and <p>")
    (tmp_path / "empty.html").touch()
    kept, report = clean(load_corpus(tmp_path, (".html", ".htm", ".txt")), Cleaning(duplicates=False))
    texts = {document.name.rpartition("/")[2]: document.text for document in kept}
    assert texts["plain.txt"] == "a < b and <p>" and set(texts) == {"page.html", "old.htm", "plain.txt"}
    for name in ("page.html", "old.htm"):
        assert "This is the main text" in texts[name] and "这是第二段。" in texts[name]
        assert not any(word in texts[name] for word in ("Menu", "Copyright", "<p>"))
    assert report.step("main text").changed == 2


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["some words of text, ", "没有空格的中文文本。", "كلمات قليلة ", "👩‍👩‍👧 😀 "])
def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch, unit):
    """Cleaning, tokenising and writing 4 MB takes the memory that 1 MB takes."""
    monkeypatch.setattr("pygpt.text.token_file._BATCH_CHARACTERS", 1 << 16)
    tokenizer = BPETokenizer.train([Document("", unit * 20)], 280)
    peaks = []
    for number, size in enumerate((1_000_000, 4_000_000)):
        path = tmp_path / f"{number}.txt"
        path.write_bytes(unit.encode() * (size // len(unit.encode())))
        tracemalloc.start()
        kept, _ = clean(load_corpus(path), progress=False)
        longest = max(len(piece.encode()) for piece in kept[0].pieces)
        prepare(kept, tokenizer, tmp_path / f"tokens{number}", progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert longest < 2 * PIECE_BYTES
    assert peaks[1] < 1.1 * peaks[0] + 100_000, peaks


@pytest.mark.slow
def test_memory_grows_by_a_kilobyte_a_document_whatever_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr("pygpt.text.token_file._BATCH_CHARACTERS", 1 << 16)
    unit = "some words of text, "
    tokenizer = BPETokenizer.train([Document("", unit * 20)], 280)
    peaks = {}
    for count, size in ((300, 1_000), (900, 1_000), (900, 6_000)):
        folder = tmp_path / f"{count} of {size}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.txt").write_text(f"{number} {unit * (size // len(unit))}")
        tracemalloc.start()
        kept, _ = clean(load_corpus(folder), progress=False)
        prepare(kept, tokenizer, folder / "tokens", progress=False)
        peaks[count, size] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(kept) == count
    assert peaks[900, 1_000] - peaks[300, 1_000] < 600 * 1_500, peaks
    assert peaks[900, 6_000] < peaks[900, 1_000] + 200_000, peaks  # of 4.5 MB more text


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"form": "NFX"}, ValueError, "form must be NFC, NFKC or None, not 'NFX'"),
        ({"least_characters": 0}, ValueError, "least_characters must be an integer of at least 1, not 0"),
        ({"most_characters": 1.5}, ValueError, "most_characters must be an integer of at least 1, not 1.5"),
        (
            {"least_characters": 5, "most_characters": 4},
            ValueError,
            "most_characters must be at least least_characters",
        ),
        ({"drop_words": ["a"]}, TypeError, r"drop_words must be a WordList, not \['a'\]"),
    ],
)
def test_bad_options(options, error, words):
    with pytest.raises(error, match=words):
        Cleaning(**options)


def test_packages_that_are_missing_are_named(monkeypatch, tmp_path):
    for package, options in (("ftfy", {"repair": True}), ("datasketch", {"near_duplicates": 0.8})):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=rf"package {package}.*pip install 'pygpt\[data\]'"):
            Cleaning(**options)
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    (tmp_path / "page.html").write_text(PAGE)
    with pytest.raises(ValueError, match=r"page.html is HTML, .*pip install 'pygpt\[html\]'"):
        clean(load_corpus(tmp_path / "page.html"))
