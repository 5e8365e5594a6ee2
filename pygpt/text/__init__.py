"""Text to batches: corpora, cleaning, tokenizers, token files, and loaders that read them; and what a model wrote."""

from pygpt.text.clean import HTML_SUFFIXES, Cleaning, CleanReport, clean
from pygpt.text.corpus import TEXT_SUFFIXES, Document, load_corpus, standard_library
from pygpt.text.finish import Finish, collapse_repeats, strip_prompt, trim_to_sentence
from pygpt.text.loader import BatchLoader, sequential_batches
from pygpt.text.sentences import sentences
from pygpt.text.token_file import PrepareReport, TokenFile, prepare
from pygpt.text.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    TextStream,
    Tokenizer,
    WordPieceTokenizer,
    make_tokenizer,
)
from pygpt.text.words import WordList

__all__ = [
    "HTML_SUFFIXES",
    "TEXT_SUFFIXES",
    "BPETokenizer",
    "BatchLoader",
    "ByteTokenizer",
    "CharTokenizer",
    "CleanReport",
    "Cleaning",
    "Document",
    "Finish",
    "PrepareReport",
    "TextStream",
    "TokenFile",
    "Tokenizer",
    "WordList",
    "WordPieceTokenizer",
    "clean",
    "collapse_repeats",
    "load_corpus",
    "make_tokenizer",
    "prepare",
    "sentences",
    "sequential_batches",
    "standard_library",
    "strip_prompt",
    "trim_to_sentence",
]
