"""Documents as memory-mapped token ids: pre-processed once, read at random by training.

A folder of token files holds

    tokens.json        what is there: the format's version, dtype, counts, hashes
    train.bin          the tokens of the training documents, one after another, then (8-byte aligned) the documents'
    validation.bin     boundaries as documents + 1 int64: document i is tokens[boundaries[i] : boundaries[i + 1]]
    tokenizer.json     what made them, and decodes them

``tokens.json`` is removed before the others are replaced, and written last: where it is, everything is whole.
"""

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pygpt.files import atomic_path, atomic_write_json, read_json
from pygpt.text.corpus import Document, Source, load_corpus
from pygpt.text.permutation import permuted
from pygpt.text.progress import tracked
from pygpt.text.tokenizer import Tokenizer

Tokens: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
Boundaries: TypeAlias = npt.NDArray[np.int64]
Split: TypeAlias = Literal["train", "validation"]

FORMAT = "pygpt tokens"
VERSION = 1
HEADER = "tokens.json"

_BATCH_CHARACTERS = 1 << 20  # encoded at a time, in parallel
_COPY_TOKENS = 1 << 20  # copied at a time


@dataclass(frozen=True)
class PrepareReport:
    """What :func:`prepare` wrote.

    Attributes:
        folder: where.
        documents, tokens: how many in both splits together, end-of-document tokens included.
        train_tokens, validation_tokens: how many in each.
        train_documents, validation_documents: likewise. A document that was cut in two counts in both.
        empty_documents: documents without text, left out.
        bytes: the text's size as UTF-8.
        vocab_size: the tokenizer's.
        content_hash: see :class:`TokenFile`.
    """

    folder: Path
    documents: int
    tokens: int
    train_tokens: int
    validation_tokens: int
    train_documents: int
    validation_documents: int
    empty_documents: int
    bytes: int
    vocab_size: int
    content_hash: str


def prepare(
    sources: Source | Sequence[Source] | Iterable[Document] | None,
    tokenizer: Tokenizer,
    folder: str | PathLike[str],
    validation_fraction: float = 0.1,
    seed: int = 0,
    progress: bool = True,
    cut_documents: bool = True,
) -> PrepareReport:
    """Tokenise documents and write them as token files, split into training and validation.

    Whole documents, drawn by ``seed``, go to validation, as many as fit into its share. If they do not fill half of it
    (there is one document, or long ones beside a few short ones), the end of the longest becomes the validation split
    instead. Within a split, documents keep their order; after each comes the tokenizer's end-of-document token, if it
    has one. Memory grows with the number of documents, not with their text; while it runs, the tokens take twice their
    space on the disk.

    Args:
        sources: what :func:`~pygpt.text.load_corpus` takes, or documents.
        tokenizer: decides the ids; saved beside the tokens.
        folder: created if it is not there; token files in it are replaced.
        validation_fraction: the share of the tokens for validation, at least 0, less than 1. 0 writes no validation
            split.
        seed: draws the validation documents. Nothing else is random: the same input gives the same bytes.
        progress: show a progress bar on a terminal.
        cut_documents: False: no document is cut, however much of its share validation gets of whole ones.

    Returns: counts and the content hash.

    Raises: ValueError if the corpus is empty, or a file is not UTF-8, or the tokenizer does not know a character, or
        no whole document fits into validation's share and none may be cut;
        OSError naming the file if something cannot be read or written. ``folder`` then has what it had before, or,
        from the moment the last files are moved into place, no ``tokens.json``.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be at least 0 and less than 1, got {validation_fraction}")
    folder = Path(folder)
    documents = _as_documents(sources)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    boundaries = array("q", [0])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as spool:  # nameless: no crash leaves it behind
            counts = _Counts()
            for tokens, ends in _encode(tracked(documents, "tokenising", progress), tokenizer, dtype, counts):
                spool.write(tokens.tobytes())
                boundaries.extend(ends)
            spool.flush()
            if len(boundaries) == 1:
                raise ValueError(f"the corpus is empty: {counts.empty} documents without any text")
            parts, validation = _split(np.frombuffer(boundaries, np.int64), validation_fraction, seed, cut_documents)
            header = _write(folder, np.memmap(spool, dtype, "r"), parts, validation, tokenizer)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # writing the nameless file
            raise OSError(error.errno, f"{error.strerror} (while writing token files)", str(folder)) from error
        raise
    sizes = {name: header["splits"].get(name, {"tokens": 0, "documents": 0}) for name in ("train", "validation")}
    return PrepareReport(
        folder=folder,
        documents=len(boundaries) - 1,
        tokens=boundaries[-1],
        train_tokens=sizes["train"]["tokens"],
        validation_tokens=sizes["validation"]["tokens"],
        train_documents=sizes["train"]["documents"],
        validation_documents=sizes["validation"]["documents"],
        empty_documents=counts.empty,
        bytes=counts.bytes,
        vocab_size=tokenizer.vocab_size,
        content_hash=header["content_hash"],
    )


class TokenFile:
    """One split of a folder of token files, memory-mapped.

    Args:
        folder: what :func:`prepare` wrote.
        split: ``"train"`` or ``"validation"``.
        tokenizer: if given, the one that must have made the tokens.

    Attributes:
        tokens: (tokens,) uint16 or uint32, read from the disk when touched.
        boundaries: (documents + 1,) int64, ascending, from 0 to the number of tokens.
        vocab_size: the tokenizer's.
        content_hash: a hash of all tokens and boundaries of all splits, and of the tokenizer: the same hash means the
            same data.

    Raises: FileNotFoundError if there are no token files, or not this split; ValueError naming the file if they are
        truncated, foreign, half-written, of another version, or made by another tokenizer than the one given.
    """

    def __init__(self, folder: str | PathLike[str], split: Split = "train", tokenizer: Tokenizer | None = None) -> None:
        self.folder = Path(folder)
        self.split = split
        self._header = _read_header(self.folder)
        self.vocab_size: int = self._header["vocab_size"]
        self.content_hash: str = self._header["content_hash"]
        if tokenizer is not None and tokenizer.fingerprint != self._header["tokenizer"]:
            raise ValueError(
                f"the tokens in {str(self.folder)!r} were made by another tokenizer (vocabulary of {self.vocab_size}) "
                f"than the one given ({tokenizer.kind}, vocabulary of {tokenizer.vocab_size})"
            )
        if split not in self._header["splits"]:
            there = ", ".join(self._header["splits"])
            raise FileNotFoundError(f"{str(self.folder)!r} has no {split!r} split, only {there}")
        self._entry = _Entry(**self._header["splits"][split])
        self.path = self.folder / f"{split}.bin"
        dtype = np.dtype(self._header["dtype"])
        start = _aligned(self._entry.tokens * dtype.itemsize)
        expected = start + 8 * (self._entry.documents + 1)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is missing, though {HEADER} names it")
        size = self.path.stat().st_size
        if size != expected:
            raise ValueError(f"{self.path} is truncated or foreign: {size} bytes, expected {expected}")
        self.tokens: Tokens = np.memmap(self.path, dtype, "r", shape=(self._entry.tokens,))
        self.boundaries: npt.NDArray[np.int64] = np.memmap(
            self.path, np.dtype("<i8"), "r", offset=start, shape=(self._entry.documents + 1,)
        )
        if self.boundaries[0] != 0 or self.boundaries[-1] != len(self.tokens):
            raise ValueError(f"{self.path} is damaged: its document boundaries do not span its tokens")

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """The number of documents, or parts of one."""
        return len(self.boundaries) - 1

    def document(self, index: int) -> Tokens:
        """Give one document's tokens, with its end-of-document token. Raises: IndexError."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        return self.tokens[self.boundaries[index] : self.boundaries[index + 1]]

    def verify(self) -> None:
        """Read everything and compare it with the hash in the header. Raises: ValueError if a bit has changed."""
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != self._entry.sha256:
            raise ValueError(f"{self.path} is damaged: its SHA-256 is not the one in {HEADER}")


@dataclass
class _Counts:
    empty: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class _Entry:
    """What the header says of one split."""

    tokens: int
    documents: int
    sha256: str


def _as_documents(sources: Source | Sequence[Source] | Iterable[Document] | None) -> list[Document]:
    if sources is None or isinstance(sources, str | PathLike):
        return load_corpus(sources)
    items = list(sources)
    documents = [item for item in items if isinstance(item, Document)]
    paths = [item for item in items if not isinstance(item, Document)]
    if documents and paths:
        raise TypeError(f"sources mixes documents with others, such as {paths[0]!r}")
    return documents or load_corpus(paths)


def _encode(
    documents: Iterable[Document], tokenizer: Tokenizer, dtype: np.dtype[Any], counts: _Counts
) -> Iterator[tuple[Tokens, list[int]]]:
    """Yield runs of tokens, with the places (counted from the first run's start) where documents end in each."""
    separator = [] if tokenizer.end_of_document is None else [tokenizer.end_of_document]
    written, document_start = 0, 0
    for pieces in _batches(documents):
        texts = [piece for piece in pieces if piece is not None]
        counts.bytes += sum(len(text.encode("utf-8", "replace")) for text in texts)
        encoded = iter(tokenizer.encode_batch(texts))
        tokens: list[int] = []
        ends: list[int] = []
        for piece in pieces:
            if piece is not None:
                tokens += next(encoded)
            elif written + len(tokens) > document_start:
                tokens += separator
                document_start = written + len(tokens)
                ends.append(document_start)
            else:
                counts.empty += 1
        written += len(tokens)
        yield np.asarray(tokens, dtype), ends


def _batches(documents: Iterable[Document]) -> Iterator[list[str | None]]:
    """Yield lists of pieces of about ``_BATCH_CHARACTERS``; None ends a document."""
    batch: list[str | None] = []
    characters = 0
    for document in documents:
        for piece in document.pieces:
            batch.append(piece)
            characters += len(piece)
            if characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        batch.append(None)
    yield batch


def _split(
    boundaries: Boundaries, fraction: float, seed: int, cut_documents: bool
) -> tuple[Boundaries, npt.NDArray[np.bool_]]:
    """Choose the documents for validation, or the end of the longest.

    Returns: the boundaries (with one more where a document was cut), and per document whether it is for validation.

    Raises: ValueError if no document fits and none may be cut.
    """
    lengths = np.diff(boundaries)
    chosen = np.zeros(len(lengths), np.bool_)
    share = int(fraction * int(boundaries[-1]))
    if share == 0:
        return boundaries, chosen
    left = share
    for index in permuted(np.arange(len(lengths)), len(lengths), seed).tolist():
        if lengths[index] <= left:
            chosen[index] = True
            left -= int(lengths[index])
    if not cut_documents and not chosen.any():
        raise ValueError(
            f"no whole document fits into the {share} tokens of the validation split; make its share larger, give "
            "shorter documents, or let the longest be cut"
        )
    if left <= share / 2 or not cut_documents:
        return boundaries, chosen
    longest = int(lengths.argmax())  # more than half the share, or it would have been chosen
    start = max(boundaries[longest], boundaries[longest + 1] - share)
    boundaries = np.unique(np.append(boundaries, start))
    return boundaries, boundaries[:-1] == start


def _write(
    folder: Path, tokens: Tokens, boundaries: Boundaries, validation: npt.NDArray[np.bool_], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Write the files of a folder; give the header."""
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": tokens.dtype.str,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint,
        "splits": {},
    }
    with ExitStack() as files:
        for split, chosen in (("train", ~validation), ("validation", validation)):
            if chosen.any():
                with open(files.enter_context(atomic_path(folder / f"{split}.bin")), "wb") as file:
                    header["splits"][split] = asdict(_write_split(file, tokens, boundaries, chosen))
                    file.flush()
                    os.fsync(file.fileno())  # a full disk must show before the old header goes
        (folder / HEADER).unlink(missing_ok=True)
    if not validation.any():
        (folder / "validation.bin").unlink(missing_ok=True)
    tokenizer.save(folder)
    header["content_hash"] = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    atomic_write_json(folder / HEADER, header)
    return header


def _write_split(file: BinaryIO, tokens: Tokens, boundaries: Boundaries, chosen: npt.NDArray[np.bool_]) -> "_Entry":
    """Write the chosen documents' tokens, and where they now begin and end."""
    digest = hashlib.sha256()

    def write(data: bytes) -> None:
        digest.update(data)
        file.write(data)

    changes = np.diff(
        chosen.astype(np.int8), prepend=0, append=0
    )  # +1 where a run of documents begins, -1 past its end
    for first, last in zip(np.flatnonzero(changes == 1), np.flatnonzero(changes == -1), strict=True):
        for start in range(boundaries[first], boundaries[last], _COPY_TOKENS):
            write(tokens[start : min(start + _COPY_TOKENS, int(boundaries[last]))].tobytes())
    own = np.concatenate([[0], np.cumsum(np.diff(boundaries)[chosen])]).astype("<i8")
    size = int(own[-1]) * tokens.itemsize
    write(bytes(_aligned(size) - size))
    write(own.tobytes())
    return _Entry(tokens=int(own[-1]), documents=len(own) - 1, sha256=digest.hexdigest())


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    if not path.is_file():
        if (folder / "train.bin").exists():
            raise ValueError(
                f"{str(folder)!r} has token files but no {HEADER}: writing them was interrupted; prepare them again"
            )
        raise FileNotFoundError(f"no token files in {str(folder)!r} ({HEADER} is missing); make them by 'pygpt data'")
    header = read_json(path)
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} does not describe token files: its format is {header.get('format')!r}, not {FORMAT!r}"
        )
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {header.get('version')!r} of the token files' format; this pygpt reads version "
            f"{VERSION}: prepare them again"
        )
    try:
        entries = [_Entry(**entry) for entry in header["splits"].values()]
        whole = (
            header["dtype"] in ("<u2", "<u4")
            and all(isinstance(header[key], str) for key in ("tokenizer", "content_hash"))
            and all(isinstance(count, int) and count >= 0 for e in entries for count in (e.tokens, e.documents))
            and isinstance(header["vocab_size"], int)
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if not whole:
        raise ValueError(f"{path} is damaged: a value in it has another type or range than pygpt writes")
    return header


def _aligned(size: int) -> int:
    """The next multiple of 8: where the boundaries begin."""
    return -(-size // 8) * 8
