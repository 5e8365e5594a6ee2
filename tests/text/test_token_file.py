"""Token files hold every token once, whole documents in one split; a file that is not whole is never read."""

import errno
import json
import multiprocessing
import os
import signal
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pygpt.text import BPETokenizer, ByteTokenizer, CharTokenizer, Document, TokenFile, Tokenizer, prepare
from pygpt.text import token_file as module
from tests.disk import files_of_at_most

SPLITS = ("train", "validation")
BYTES = ByteTokenizer()
DOCUMENTS = [Document(f"document {i}", f"text {i} " * (i % 5 + 1)) for i in range(40)]


def decoded(folder: Path, split: str) -> list[str]:
    file = TokenFile(folder, split)  # type: ignore[arg-type]
    return [Tokenizer.load(folder).decode(file.document(i)) for i in range(file.num_documents)]


@given(
    texts=st.lists(st.text("ab é\n", max_size=30), min_size=1, max_size=12).filter(any),
    fraction=st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.5, 0.9]),
    seed=st.integers(0, 100),
)
def test_every_text_is_in_one_split_whole_or_the_longest_is_cut(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], fraction: float, seed: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "property"
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    report = prepare(documents, BYTES, folder, fraction, seed, progress=False)
    full = [text for text in texts if text]
    assert report.documents == len(full)
    assert report.empty_documents == len(texts) - len(full)
    assert report.bytes == sum(len(text.encode()) for text in full)
    assert report.tokens == report.bytes + len(full) == report.train_tokens + report.validation_tokens
    assert report.validation_tokens <= fraction * report.tokens
    if report.validation_tokens == 0:
        assert int(fraction * report.tokens) == 0
        with pytest.raises(FileNotFoundError, match="has no 'validation' split, only train"):
            TokenFile(folder, "validation")
        assert decoded(folder, "train") == full
        return
    assert report.validation_tokens >= int(fraction * report.tokens) / 2
    for split in SPLITS:
        TokenFile(folder, split, BYTES).verify()  # type: ignore[arg-type]
    train, validation = (decoded(folder, split) for split in SPLITS)
    assert report.train_documents == len(train)
    assert report.validation_documents == len(validation)
    if len(train) + len(validation) == len(full):
        assert sorted(train + validation) == sorted(full)
        for split in (train, validation):  # in the corpus's order
            remaining = iter(full)
            assert all(text in remaining for text in split)
    else:
        assert len(validation) == 1
        assert report.validation_tokens == int(fraction * report.tokens) < max(len(text.encode()) for text in full) + 1
        tokens = np.concatenate([TokenFile(folder, "train").tokens, TokenFile(folder, "validation").tokens])
        assert sorted(tokens) == sorted(token for text in full for token in [*text.encode(), 256])


def test_one_document_is_split_by_position(tmp_path: Path) -> None:
    report = prepare([Document("play", "0123456789" * 100)], BYTES, tmp_path, 0.1)
    assert (report.train_tokens, report.validation_tokens) == (901, 100)
    assert decoded(tmp_path, "train") == ["0123456789" * 90 + "0"]
    assert TokenFile(tmp_path, "validation").tokens[-1] == 256


def test_short_documents_alone_are_no_validation_split(tmp_path: Path) -> None:
    documents = [Document("short", "abc"), Document("play", "x" * 1000), Document("note", "d" * 10)]
    prepare(documents, BYTES, tmp_path, 0.1)
    assert decoded(tmp_path, "validation") == ["x" * 100]
    assert decoded(tmp_path, "train") == ["abc", "x" * 900, "d" * 10]


def test_a_document_of_about_the_share_goes_whole(tmp_path: Path) -> None:
    documents = [
        Document(str(i), letter * length) for i, (letter, length) in enumerate([("a", 19), ("b", 99), ("c", 79)])
    ]
    for seed in range(10):
        report = prepare(documents, BYTES, tmp_path, 0.5, seed)
        assert report.validation_tokens in (80, 100)
        assert sorted(decoded(tmp_path, "train") + decoded(tmp_path, "validation")) == [d.text for d in documents]


def test_the_same_input_gives_the_same_bytes_and_hash(tmp_path: Path) -> None:
    reports = [prepare(DOCUMENTS, BYTES, tmp_path / name, 0.2, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    for name in ("train.bin", "validation.bin", "tokens.json", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert reports[0].content_hash == reports[1].content_hash == TokenFile(tmp_path / "a").content_hash
    assert reports[2].content_hash != reports[0].content_hash, "another seed, another split"
    assert 0.1 <= reports[0].validation_tokens / reports[0].tokens <= 0.2
    other = prepare(DOCUMENTS, CharTokenizer.train(DOCUMENTS), tmp_path / "d", 0.2)
    assert other.content_hash != reports[0].content_hash


@pytest.mark.parametrize(("characters", "dtype"), [(300, np.uint16), (65535, np.uint16), (65536, np.uint32)])
def test_the_dtype_follows_the_vocabulary(tmp_path: Path, characters: int, dtype: type) -> None:
    alphabet = "".join(chr(0x20000 + i) for i in range(characters))
    tokenizer = CharTokenizer(alphabet)
    prepare([Document("ends", alphabet[:2] + alphabet[-2:])], tokenizer, tmp_path, 0)
    tokens = TokenFile(tmp_path, tokenizer=tokenizer).tokens
    assert tokens.dtype == dtype
    assert tokens.tolist() == [0, 1, characters - 2, characters - 1, characters]


def test_documents_larger_than_a_batch_give_the_tokens_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 50)
    monkeypatch.setattr(module, "_COPY_TOKENS", 7)
    text = "some words, and others;\n\n  123 more " * 4000
    path = tmp_path / "text.txt"
    path.write_text(text)
    tokenizer = BPETokenizer.train([Document("", text)], 300)
    prepare(path, tokenizer, tmp_path / "tokens", 0)
    assert TokenFile(tmp_path / "tokens").tokens.tolist() == [*tokenizer.encode(text), tokenizer.end_of_document]


def test_the_default_corpus_is_the_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pygpt.text.corpus.standard_library", lambda: DOCUMENTS[:2])
    assert prepare(None, BYTES, tmp_path, 0).documents == 2


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    peaks = []
    for repeats in (400_000, 1_600_000):
        path = tmp_path / "text.txt"
        path.write_text("words\n" * repeats)
        tracemalloc.start()
        prepare(path, BYTES, tmp_path / "tokens")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_an_empty_corpus_is_named(tmp_path: Path) -> None:
    for empty in ([Document("a", ""), Document("b", [])], tmp_path / "empty.txt"):
        (tmp_path / "empty.txt").touch()
        with pytest.raises(ValueError, match=r"the corpus is empty: \d documents without any text"):
            prepare(empty, BYTES, tmp_path / "tokens")
        assert list((tmp_path / "tokens").iterdir()) == []


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="validation_fraction must be at least 0 and less than 1"):
            prepare(DOCUMENTS, BYTES, tmp_path, fraction)
    with pytest.raises(TypeError, match=r"sources mixes documents with others, such as 'a\.txt'"):
        prepare([DOCUMENTS[0], "a.txt"], BYTES, tmp_path)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"sources is an empty list"):
        prepare([], BYTES, tmp_path)


def test_a_failure_keeps_what_was_there(tmp_path: Path) -> None:
    before = prepare(DOCUMENTS, BYTES, tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        prepare(tmp_path / "latin.txt", BYTES, tmp_path)
    with pytest.raises(ValueError, match="the character 't'"):
        prepare(DOCUMENTS, CharTokenizer("abc"), tmp_path)
    assert TokenFile(tmp_path).content_hash == before.content_hash
    TokenFile(tmp_path).verify()


def test_preparing_again_replaces_all(tmp_path: Path) -> None:
    prepare(DOCUMENTS, BYTES, tmp_path)
    tokenizer = CharTokenizer.train(DOCUMENTS)
    prepare(DOCUMENTS[:3], tokenizer, tmp_path, 0)
    assert decoded(tmp_path, "train") == [document.text for document in DOCUMENTS[:3]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokens.json", "train.bin"]


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    before = prepare(DOCUMENTS, BYTES, tmp_path)
    large = [Document(str(i), "x" * 1000) for i in range(1000)]
    for limit in (100_000, 2_003_000):  # the nameless file's end, and train.bin's, which has boundaries too
        with pytest.raises(OSError, match="while writing") as caught, files_of_at_most(limit):
            prepare(large, BYTES, tmp_path, 0)
        assert str(tmp_path) in str(caught.value)
    assert TokenFile(tmp_path).content_hash == before.content_hash
    assert len(list(tmp_path.iterdir())) == 4
    TokenFile(tmp_path).verify()


def test_a_disk_that_turns_out_full_late_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where blocks are allocated late (quotas, network disks), only fsync says that there is no space.
    before = prepare(DOCUMENTS, BYTES, tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device"):
        patch.setattr(os, "fsync", full)
        prepare(DOCUMENTS[:5], BYTES, tmp_path)
    assert TokenFile(tmp_path).content_hash == before.content_hash


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        prepare(DOCUMENTS, BYTES, tmp_path / "file" / "tokens")
    with pytest.raises(FileExistsError, match="file"):
        prepare(DOCUMENTS, BYTES, tmp_path / "file")


def run_and_kill(folder: Path, kill: Callable[[], None] | None, seconds: float) -> int | None:
    """Prepare other documents in a process of its own, killed by itself or after a time; give its exit code."""

    def work() -> None:
        if kill is not None:
            kill()
        prepare([Document(str(i), "other text " * 2000) for i in range(100)], CharTokenizer("ehortx "), folder)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


def assert_old_or_new_or_refused(folder: Path, old: str) -> str:
    try:
        files = [TokenFile(folder, "train"), TokenFile(folder, "validation")]
    except ValueError as error:
        assert "writing them was interrupted" in str(error)
        return "refused"
    for file in files:
        file.verify()
        TokenFile(folder, file.split, Tokenizer.load(folder))
    return "old" if files[0].content_hash == old else "new"


def kill_at(step: int) -> Callable[[], None]:
    """Send kill -9 to oneself in place of the step-th replacing, removing or syncing of a file."""

    def patch() -> None:
        left = step
        for name in ("replace", "unlink", "fsync"):
            original = getattr(os, name)

            def counting(*args: Any, original: Callable[..., Any] = original, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **options)

            setattr(os, name, counting)

    return patch


def test_killed_at_every_step_nothing_half_written_looks_whole(tmp_path: Path) -> None:
    seen = []
    for step in range(100):
        old = prepare(DOCUMENTS, BYTES, tmp_path).content_hash
        code = run_and_kill(tmp_path, kill_at(step), 60)
        seen.append(assert_old_or_new_or_refused(tmp_path, old))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert seen == sorted(seen, key=["old", "refused", "new"].index)
    assert set(seen) == {"old", "refused", "new"}
    prepare(DOCUMENTS, BYTES, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4, "what the killed ones left is removed"


def test_killed_at_any_time_nothing_half_written_looks_whole(tmp_path: Path) -> None:
    start = time.perf_counter()
    assert run_and_kill(tmp_path / "first", None, 60) == 0
    whole = time.perf_counter() - start
    for share in np.linspace(0.1, 0.9, 5):
        old = prepare(DOCUMENTS, BYTES, tmp_path).content_hash
        run_and_kill(tmp_path, None, share * whole)
        assert_old_or_new_or_refused(tmp_path, old)


def header(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "tokens.json").read_text())
        (folder / "tokens.json").write_text(json.dumps({**content, **values}))

    return apply


def train_bin(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / "train.bin").write_bytes(change((folder / "train.bin").read_bytes())) and None


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: (folder / "tokens.json").unlink(), ValueError, "no tokens.json: writing them was interrupted"),
        (lambda folder: (folder / "tokens.json").write_text('{"format'), ValueError, r"tokens\.json is not valid JSON"),
        (lambda folder: (folder / "train.bin").unlink(), FileNotFoundError, r"train\.bin is missing"),
        (train_bin(lambda data: data[:-1]), ValueError, r"train\.bin is truncated or foreign: \d+ bytes, expected \d+"),
        (train_bin(lambda data: b""), ValueError, r"train\.bin is truncated or foreign: 0 bytes"),
        (train_bin(lambda data: data + b"x"), ValueError, r"train\.bin is truncated or foreign"),
        (train_bin(lambda data: bytes(len(data))), ValueError, r"train\.bin is damaged: its document boundaries"),
        (header(format="else"), ValueError, r"tokens\.json does not describe token files: its format is 'else'"),
        (header(version=2), ValueError, r"tokens\.json has version 2 of the token files' format.* reads version 1"),
        (header(dtype="<f4"), ValueError, r"tokens\.json is damaged"),
        (header(splits={"train": {"tokens": 5}}), ValueError, r"tokens\.json is damaged"),
        (
            header(splits={"train": {"tokens": -5, "documents": 1, "sha256": ""}}),
            ValueError,
            r"tokens\.json is damaged",
        ),
        (header(splits=None), ValueError, r"tokens\.json is damaged"),
    ],
)
def test_damaged_and_foreign_files_are_named(
    tmp_path: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    prepare(DOCUMENTS, BYTES, tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        TokenFile(tmp_path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    prepare(DOCUMENTS, BYTES, tmp_path)
    TokenFile(tmp_path).verify()
    train_bin(lambda data: bytes([data[0] ^ 1]) + data[1:])(tmp_path)
    with pytest.raises(ValueError, match=r"train\.bin is damaged: its SHA-256"):
        TokenFile(tmp_path).verify()


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    prepare(DOCUMENTS, BYTES, tmp_path)
    TokenFile(tmp_path, "train", ByteTokenizer())
    with pytest.raises(ValueError, match=r"made by another tokenizer \(vocabulary of 257\) than the one given \(char"):
        TokenFile(tmp_path, "train", CharTokenizer("abc"))


def test_a_folder_without_token_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no token files in .*make them by 'pygpt data'"):
        TokenFile(tmp_path)


def test_documents_by_number(tmp_path: Path) -> None:
    prepare(DOCUMENTS[:2], BYTES, tmp_path, 0)
    file = TokenFile(tmp_path)
    assert len(file) == len(file.tokens)
    assert bytes(file.document(1)[:-1].tolist()).decode() == DOCUMENTS[1].text
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"document {index} of 2"):
            file.document(index)
