"""The text of a run, by the names that flags and configurations use."""

from collections.abc import Sequence
from pathlib import Path

from pygpt.text import Document, Tokenizer, load_corpus, make_tokenizer
from pygpt.train.config import CORPUS

KINDS = {"char": "characters", "byte": "bytes"}  # by the names of flags


def read_corpus(sources: Sequence[str]) -> list[Document]:
    """The documents of text files, folders and globs, or of Python's standard library. Raises: as ``load_corpus``."""
    return load_corpus(None if tuple(sources) == (CORPUS,) else list(sources))


def named_tokenizer(
    kind: str, documents: Sequence[Document], vocab_size: int | None = None, progress: bool = True
) -> Tokenizer:
    """The tokenizer of a command line: ``char``, ``byte``, ``bpe``, or a folder. Raises: as ``make_tokenizer``."""
    if kind not in (*KINDS, "bpe") and not Path(kind).is_dir():
        raise ValueError(f"tokenizer must be char, byte, bpe or a folder that holds one, not {kind!r}")
    return make_tokenizer(KINDS.get(kind, kind), documents, vocab_size, progress)


def prompt_tokens(tokenizer: Tokenizer, prompt: str | None) -> list[int]:
    """The tokens of a prompt; without one, a new line, or what ends documents if the tokenizer knows no new line.

    Raises: ValueError if the tokenizer does not know a character of the prompt, or the prompt is empty.
    """
    if prompt is None:
        try:
            return tokenizer.encode("\n")
        except ValueError:
            if tokenizer.end_of_document is None:
                raise
            return [tokenizer.end_of_document]
    if not prompt:
        raise ValueError("the prompt is empty: leave it out to begin with a new line")
    return tokenizer.encode(prompt)
