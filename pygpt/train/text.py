"""The text of a run, by the names that flags and configurations use."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pygpt.text import Document, Tokenizer, load_corpus, make_tokenizer
from pygpt.train.config import CORPUS

KINDS = {"char": "characters", "byte": "bytes"}  # by the names of flags


def read_corpus(sources: Sequence[str], separator: str | None = None) -> list[Document]:
    r"""The documents of text files, folders and globs, or of Python's standard library.

    Args:
        sources: as ``load_corpus`` takes them, or ``CORPUS``.
        separator: cuts each file into several documents, and is in none of them; ``\n`` and ``\t`` stand for a new
            line and a tab. The texts are then held in memory.

    Raises: as ``load_corpus``; ValueError if the separator is empty.
    """
    documents = load_corpus(None if tuple(sources) == (CORPUS,) else list(sources))
    if separator is None:
        return documents
    cut = separator.replace("\\n", "\n").replace("\\t", "\t")
    if not cut:
        raise ValueError("separator is empty: leave it out where a file is one document")
    return [
        Document(f"{document.name}, part {number}", part.strip("\n") + "\n")
        for document in documents
        for number, part in enumerate(document.text.split(cut), start=1)
        if part.strip()
    ]


def named_tokenizer(
    kind: str, documents: Sequence[Document], vocab_size: int | None = None, progress: bool = True
) -> Tokenizer:
    """The tokenizer of a command line: ``char``, ``byte``, ``bpe``, or a folder. Raises: as ``make_tokenizer``."""
    if kind not in (*KINDS, "bpe") and not Path(kind).is_dir():
        raise ValueError(f"tokenizer must be char, byte, bpe or a folder that holds one, not {kind!r}")
    return make_tokenizer(KINDS.get(kind, kind), documents, vocab_size, progress)


def prompt_tokens(tokenizer: Tokenizer, prompt: str | None) -> list[int]:
    """The tokens of a prompt; without one, a new line, or what ends documents if the tokenizer knows no new line.

    Raises: ValueError if the tokenizer does not know a character of the prompt, or there is nothing to begin with.
    """
    if prompt is None:
        with suppress(ValueError):
            if tokens := tokenizer.encode("\n"):
                return tokens
        if tokenizer.end_of_document is None:
            raise ValueError("the tokenizer knows no new line to begin with: give a prompt")
        return [tokenizer.end_of_document]
    if not prompt:
        raise ValueError("the prompt is empty: leave it out to begin with a new line")
    tokens = tokenizer.encode(prompt)
    if not tokens:
        raise ValueError(f"the prompt {prompt!r} has no tokens")
    return tokens
