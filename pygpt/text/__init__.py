"""Text to batches: corpora, tokenizers, token files, and loaders that read them."""

from pygpt.text.corpus import TEXT_SUFFIXES, Document, load_corpus, standard_library
from pygpt.text.loader import BatchLoader, sequential_batches
from pygpt.text.token_file import PrepareReport, TokenFile, prepare
from pygpt.text.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, TextStream, Tokenizer, make_tokenizer

__all__ = [
    "TEXT_SUFFIXES",
    "BPETokenizer",
    "BatchLoader",
    "ByteTokenizer",
    "CharTokenizer",
    "Document",
    "PrepareReport",
    "TextStream",
    "TokenFile",
    "Tokenizer",
    "load_corpus",
    "make_tokenizer",
    "prepare",
    "sequential_batches",
    "standard_library",
]
