"""Text as it is found, made fit to learn from: repaired, normalised, without duplicates, every step counted.

A document is read twice or more, piece by piece, and never held, but for HTML, one file at a time. First it is looked
at as a whole: is it long enough, was it there before? What is kept is cleaned again whenever it is read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pygpt.text.corpus import Document, TextFile
from pygpt.text.duplicates import ExactDuplicates, NearDuplicates
from pygpt.text.progress import tracked
from pygpt.text.words import WordList

HTML_SUFFIXES = (".html", ".htm", ".xhtml")
FORMS = ("NFC", "NFKC")

Note: TypeAlias = Callable[[str, str, str], None]  # step, text before, text after

_TEXT_STEPS = ("main text", "repair", "broken characters", "normal form", "whitespace")
_REASONS = ("too short", "too long", "words to leave out", "duplicates", "near-duplicates")

_NEW_LINES = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028]")
# Controls but tab and new line, lone surrogates, what stands for a broken character, invisible marks that change no
# letter, bidirectional overrides, noncharacters. Joiners (U+200C, U+200D), direction marks and variation selectors
# stay: Persian, Arabic and emoji need them.
_BROKEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\xad\u200b\u202a-\u202e\u2060\ufeff\ufff9-\ufffd\ufffe\uffff\ufdd0-\ufdef"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0x10000, 0x110000, 0x10000))
    + "\ud800-\udfff]"
)
_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_RUNS = re.compile(r"(?<=\S)[ \t]{2,}(?=\S)")
_LINE_ENDS = re.compile(r"[ \t]+(?=\n)")
_BLANK_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class Cleaning:
    """What is done with documents, in this order.

    Args:
        repair: mend text that was decoded wrongly ("schÃ¶n"), by the package ftfy.
        form: Unicode's normal form, ``"NFC"`` or ``"NFKC"``; None: text stays as it is.
        least_characters: shorter documents are left out.
        most_characters: longer documents are left out; None: none are.
        drop_words: documents in which one of these words occurs are left out.
        duplicates: whether documents that are the same as an earlier one are left out.
        near_duplicates: documents are left out of which this share was there before, as
            `pygpt.text.duplicates.NearDuplicates` estimates it; None: none are.

    Before all of them, the main text of HTML files (by their names) is taken out, by the package trafilatura. Before
    the normal form, controls and broken characters go. After it, whitespace becomes spaces, tabs and new lines, of
    which at most one, or two new lines, stand between words.

    Raises: ValueError or TypeError naming an option that does not fit, or the package that it lacks.
    """

    repair: bool = False
    form: Literal["NFC", "NFKC"] | None = "NFC"
    least_characters: int = 1
    most_characters: int | None = None
    drop_words: WordList | None = None
    duplicates: bool = True
    near_duplicates: float | None = None

    def __post_init__(self) -> None:
        if self.form not in (*FORMS, None):
            raise ValueError(f"form must be {', '.join(FORMS)} or None, not {self.form!r}")
        for name, value in (("least_characters", self.least_characters), ("most_characters", self.most_characters)):
            if value is None and name == "most_characters":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
        if self.most_characters is not None and self.most_characters < self.least_characters:
            raise ValueError(
                f"most_characters must be at least least_characters, {self.least_characters}, "
                f"but is {self.most_characters}"
            )
        if self.drop_words is not None and not isinstance(self.drop_words, WordList):
            raise TypeError(f"drop_words must be a WordList, not {self.drop_words!r}")
        if self.near_duplicates is not None:
            NearDuplicates(self.near_duplicates)  # which checks it
        if self.repair:
            _ftfy()


@dataclass
class Step:
    """What one step has done.

    Attributes:
        name: of the step.
        changed: documents in which it changed the text.
        dropped: documents that it left out.
        characters: how many fewer the text has after it.
    """

    name: str
    changed: int = 0
    dropped: int = 0
    characters: int = 0


@dataclass
class CleanReport:
    """What `clean` has done.

    Attributes:
        steps: each in order.
        documents, characters: before.
        kept_documents, kept_characters: after.
    """

    steps: list[Step]
    documents: int = 0
    characters: int = 0
    kept_documents: int = 0
    kept_characters: int = 0

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)

    def __str__(self) -> str:
        rows = [("step", "changed", "left out", "characters")]
        rows.append(("read", "", "", f"{self.characters:,}"))
        for step in self.steps:
            rows.append((step.name, f"{step.changed:,}", f"{step.dropped:,}", f"{-step.characters:+,}"))
        rows.append((f"kept {self.kept_documents:,} of {self.documents:,}", "", "", f"{self.kept_characters:,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            f"{row[0]:<{widths[0]}}" + "".join(f"  {row[n]:>{widths[n]}}" for n in range(1, 4)) for row in rows
        )


class CleanText:
    """The pieces of a document, cleaned; iterating again reads it again."""

    def __init__(self, document: Document, cleaning: Cleaning) -> None:
        self._document = document
        self._cleaning = cleaning

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces. Raises: as those of the document."""
        return _cleaned(self._document, self._document.pieces, self._cleaning, lambda step, before, after: None)


def clean(
    documents: Iterable[Document], cleaning: Cleaning | None = None, progress: bool = True
) -> tuple[list[Document], CleanReport]:
    """Clean documents and leave some out.

    Memory grows with the number of documents, not with their text: by about a kilobyte for each, which is its name,
    where its text is, and 16 bytes to find the same again; where nearly the same is to be found, by 6 kB more.

    Args:
        documents: as `pygpt.text.load_corpus` gives them.
        cleaning: what to do; None: what `Cleaning` does by itself.
        progress: show a progress bar on a terminal.

    Returns: the documents that are kept, cleaned when they are read, and what was done.

    Raises: ValueError naming the file that cannot be read as text; OSError.
    """
    cleaning = Cleaning() if cleaning is None else cleaning
    report = CleanReport([Step(name) for name in (*_TEXT_STEPS, *_REASONS)])
    exact, near = ExactDuplicates(), None
    if cleaning.near_duplicates is not None:
        near = NearDuplicates(cleaning.near_duplicates)
    originals, kept = list(documents), []
    for document, followed in zip(originals, tracked(originals, "cleaning", progress), strict=True):
        watch = _Watch(report, exact, near)
        pieces = watch.pieces(_cleaned(document, followed.pieces, cleaning, watch.note))
        word = None if cleaning.drop_words is None else cleaning.drop_words.first_in(pieces)
        for _ in pieces:
            pass
        report.documents += 1
        for name in watch.changed:
            report.step(name).changed += 1
        size = watch.characters
        # What is left out for an earlier reason is nothing that later documents are compared with.
        if size < cleaning.least_characters:
            why = "too short"
        elif cleaning.most_characters is not None and size > cleaning.most_characters:
            why = "too long"
        elif word is not None:
            why = "words to leave out"
        elif exact.was_there() and cleaning.duplicates:
            why = "duplicates"
        elif near is not None and near.was_there():
            why = "near-duplicates"
        else:
            kept.append(Document(document.name, CleanText(document, cleaning), watch.bytes))
            report.kept_documents += 1
            report.kept_characters += size
            continue
        report.step(why).dropped += 1
        report.step(why).characters += size
    return kept, report


class _Watch:
    """Takes note of a document's pieces as they are cleaned."""

    def __init__(self, report: CleanReport, exact: ExactDuplicates, near: NearDuplicates | None) -> None:
        self._report = report
        self._readers = [exact.read] if near is None else [exact.read, near.read]
        exact.begin()
        if near is not None:
            near.begin()
        self.changed: set[str] = set()
        self.characters = 0
        self.bytes = 0

    def note(self, step: str, before: str, after: str) -> None:
        """Count what a step has made of a piece."""
        if step == _TEXT_STEPS[0]:
            self._report.characters += len(before)
        if before != after:
            self.changed.add(step)
            self._report.step(step).characters += len(before) - len(after)

    def pieces(self, pieces: Iterable[str]) -> Iterator[str]:
        """The same pieces, read on their way."""
        for piece in pieces:
            self.characters += len(piece)
            self.bytes += len(piece.encode("utf-8"))
            for read in self._readers:
                read(piece)
            yield piece


def _cleaned(document: Document, pieces: Iterable[str], cleaning: Cleaning, note: Note) -> Iterator[str]:
    """The cleaned pieces of a document, none of them empty.

    Args:
        document: which it is.
        pieces: its text, whole pieces of which are cleaned: they are cut where no step looks across.
        cleaning: what to do.
        note: is told of each step, with the text before and after it.
    """
    fix = _ftfy() if cleaning.repair else None
    is_html = document.name.lower().endswith(HTML_SUFFIXES)

    def lettered() -> Iterator[str]:
        for piece in _main_text(document, note) if is_html else pieces:
            if not is_html:
                note("main text", piece, piece)
            text = piece
            if fix is not None:
                text = fix(before := text)
                note("repair", before, text)
            text = _BROKEN.sub("", _NEW_LINES.sub("\n", before := text))
            note("broken characters", before, text)
            if cleaning.form is not None:
                text = unicodedata.normalize(cleaning.form, before := text)
                note("normal form", before, text)
            yield text

    return _spaced(lettered(), note)


def _spaced(pieces: Iterable[str], note: Note) -> Iterator[str]:
    """The step that mends whitespace; what ends a piece is looked at with what follows."""
    held, first = "", True
    for piece in pieces:
        text = held + piece
        body = text.rstrip()
        held = text[len(body) :]
        if not body:
            continue
        # Letters before and after a run of spaces decide about it: one stands for what the last piece ended with.
        after = _RUNS.sub(" ", "x" + _SPACES.sub(" ", body))[1:]
        after = _BLANK_LINES.sub("\n\n", _LINE_ENDS.sub("", after))
        if first:
            after = after.lstrip()
        first = False
        note("whitespace", body, after)
        yield after
    if held:
        note("whitespace", held, "")


def _main_text(document: Document, note: Note) -> Iterator[str]:
    """The step that takes the main text out of HTML, as a whole."""
    try:
        from trafilatura import extract
    except ImportError as error:
        raise ValueError(
            f"{document.name} is HTML, whose main text needs the package trafilatura: pip install 'pygpt[html]'"
        ) from error
    file = document.pieces
    raw = file.path.read_bytes() if isinstance(file, TextFile) else document.text
    text = extract(raw, include_comments=False) or ""
    note("main text", raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw, text)
    yield text


def _ftfy() -> Callable[[str], str]:
    """What mends wrongly decoded text, and changes nothing else. Raises: ValueError if ftfy is not installed."""
    try:
        from ftfy import TextFixerConfig, fix_text
    except ImportError as error:
        raise ValueError("to repair text, the package ftfy is needed: pip install 'pygpt[data]'") from error
    options = TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
    )
    return lambda text: fix_text(text, options)
