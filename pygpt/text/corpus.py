"""Text to learn from: files, folders and globs, or the documentation inside Python's own standard library.

A corpus is a list of documents in a fixed order. A document is read piece by piece, so that a file larger than the
memory can be pre-processed; the list itself holds names and sizes only.
"""

import ast
import codecs
import functools
import glob
import io
import os
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

Source: TypeAlias = str | os.PathLike[str]

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
"""The files that are read when a folder is given; a glob takes any others."""

PIECE_BYTES = 1 << 16

_SKIPPED_FOLDERS = ("site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__")


@dataclass(frozen=True)
class Document:
    """One text.

    Args:
        name: what messages call it: the file's path, or the module's name.
        pieces: the text, or an iterable of its parts in order. An iterable may be read more than once, so it is no
            iterator. Parts are cut only between a character that is not whitespace and a space, tab or newline, or
            between one of ``。！？，；：、`` and a letter: there, GPT-2's BPE always has a token boundary, so the
            tokens of the parts are the tokens of the whole.
        size_bytes: the text's size as UTF-8, for progress bars; an estimate is enough.
    """

    name: str
    pieces: str | Iterable[str]
    size_bytes: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.pieces, str):
            object.__setattr__(self, "size_bytes", self.size_bytes or len(self.pieces.encode("utf-8", "replace")))
            object.__setattr__(self, "pieces", (self.pieces,))

    @property
    def text(self) -> str:
        """The whole text, read into memory."""
        return "".join(self.pieces)


@dataclass(frozen=True)
class TextFile:
    """The text of a UTF-8 file in pieces of about ``PIECE_BYTES``; iterating again reads the file again.

    A byte order mark is dropped, and every line ends in a newline character alone, as Python's ``open`` does it.
    """

    path: Path

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces. Raises: ValueError naming the file and the place if it is not UTF-8; OSError."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        with open(self.path, "rb") as file:
            text, offset, last = "", 0, False
            while not last:
                block = file.read(PIECE_BYTES)
                last = not block
                pending = len(decoder.getstate()[0])
                try:
                    decoded = decoder.decode(block, last)
                except UnicodeDecodeError as error:
                    place = offset - pending + error.start
                    raise ValueError(
                        f"{self.path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {place}; "
                        "convert it to UTF-8, or leave it out"
                    ) from error
                searched = len(text)
                text += newlines.decode(decoded.removeprefix("\ufeff") if offset == 0 else decoded, last)
                offset += len(block)
                cut = len(text) if last else _last_cut(text, searched)
                if cut:
                    yield text[:cut]
                    text = text[cut:]


def load_corpus(
    sources: Source | Sequence[Source] | None = None, suffixes: tuple[str, ...] = TEXT_SUFFIXES
) -> list[Document]:
    """List the documents of text files, or those of Python's standard library.

    Args:
        sources: a file, a folder (every file in it and in its sub-folders that ends in one of ``suffixes``, those whose
            names begin with a dot left out), a glob (``**`` goes through sub-folders), or several of these. None: the
            standard library's documentation. A file that several sources name is taken once; the files of each folder
            or glob come in the order of their paths.
        suffixes: of the files that are taken from folders.

    Returns: one document per file. Files are opened when a document is read.

    Raises: FileNotFoundError if a source matches nothing; ValueError if there is no source, or no file in a folder.
    """
    if sources is None:
        return standard_library()
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    if not sources:
        raise ValueError("sources is an empty list; give a file, a folder or a glob, or None for the standard library")
    files = dict.fromkeys(file for source in sources for file in _files(source, suffixes))
    return [Document(str(file), TextFile(file), file.stat().st_size) for file in files]


@functools.cache
def _standard_library() -> tuple[Document, ...]:
    documents = []
    with suppress(ImportError):  # some distributions leave it out
        from pydoc_data.topics import topics

        documents += [Document(f"pydoc topic {name}", topics[name].strip() + "\n") for name in sorted(topics)]
    for name, tree in standard_library_sources():
        text = "\n".join(map(_documentation, described(name, tree)))
        if text:
            documents.append(Document(name, text))
    return tuple(documents)


def standard_library() -> list[Document]:
    """List the documentation that every Python carries: about 2 MB of English about Python.

    The language reference's topics (``pydoc_data.topics``), then each module's docstrings with the names and
    signatures that they describe, in the order of the source. Sources are parsed, never imported.

    Raises: ValueError if this Python comes without its sources.
    """
    documents = list(_standard_library())
    if not documents:
        raise ValueError(
            f"this Python has no standard library sources in {sysconfig.get_path('stdlib')}; give text files instead"
        )
    return documents


class Described(NamedTuple):
    """A docstring, and what it describes.

    Attributes:
        kind: ``"module"``, ``"class"``, ``"function"`` or ``"method"``.
        module: its dotted name.
        name: of the class or function, a method's with its class; of a module its own.
        arguments: as they stand in the source; none of modules and classes.
        docstring: without its indentation.
    """

    kind: str
    module: str
    name: str
    arguments: str
    docstring: str


def standard_library_sources() -> Iterator[tuple[str, ast.Module]]:
    """The modules of Python's standard library, by name, as syntax trees; those that cannot be read are left out."""
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(_walk(folder, (".py",), _SKIPPED_FOLDERS)):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in old sources
                with tokenize.open(path) as file:
                    tree = ast.parse(file.read())
        except (OSError, SyntaxError, ValueError):  # unreadable, or kept for tests of bad syntax: not worth failing for
            continue
        yield name, tree


def described(module: str, tree: ast.Module) -> list[Described]:
    """The docstrings of a module, in the order of the source."""
    found: list[Described] = []

    def collect(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, what: Described) -> None:
        docstring = ast.get_docstring(node)
        if docstring and docstring.strip():
            text = docstring.strip().encode("utf-8", "replace").decode("utf-8")  # it may hold lone surrogates
            found.append(what._replace(docstring=text))
        for child in node.body:
            if isinstance(child, ast.ClassDef):
                collect(child, Described("class", module, child.name, "", ""))
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                kind, prefix = ("method", f"{node.name}.") if isinstance(node, ast.ClassDef) else ("function", "")
                collect(child, Described(kind, module, prefix + child.name, ast.unparse(child.args), ""))

    collect(tree, Described("module", module, module, "", ""))
    return found


def _documentation(each: Described) -> str:
    titles = {"module": f"module {each.name}", "class": f"class {each.name}"}
    return f"{titles.get(each.kind, f'{each.name}({each.arguments})')}\n\n{each.docstring}\n"


def _files(source: Source, suffixes: tuple[str, ...]) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(_walk(path, suffixes))
        if not found:
            raise ValueError(
                f"the folder {path} has no text files ({', '.join(suffixes)}); name others by a glob, "
                f"such as '{path}/**/*.py'"
            )
        return found
    matches = sorted(Path(match) for match in glob.glob(os.fspath(source), recursive=True))
    files = [match for match in matches if match.is_file()]
    if not files:
        what = "no file matches" if glob.has_magic(os.fspath(source)) else "there is no file or folder"
        raise FileNotFoundError(f"{what} {os.fspath(source)!r}")
    return files


def _walk(folder: Path, suffixes: tuple[str, ...], skipped: Sequence[str] = ()) -> Iterator[Path]:
    """The files under a folder that end in one of the suffixes, in no particular order, without hidden ones."""
    for inside, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in skipped]
        for name in names:
            if name.endswith(suffixes) and not name.startswith("."):
                yield Path(inside, name)


def _last_cut(text: str, start: int) -> int:
    """The last index from ``start`` on where a piece may end (see Document), or 0."""
    for index in range(len(text) - 1, max(start, 1) - 1, -1):
        if text[index] in " \t\n" and not text[index - 1].isspace():
            return index
        if text[index - 1] in "。！？，；：、" and text[index].isalpha():
            return index
    return 0
