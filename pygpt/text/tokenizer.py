"""Text to token ids and back: characters, bytes, byte-level BPE (GPT-2's, or trained on a corpus), WordPiece (BERT's).

Every tokenizer gives each token its bytes, so that decoding, also of a stream, is joining bytes and reading UTF-8. A
tokenizer is saved in one file, ``tokenizer.json``: for BPE in the format of the ``tokenizers`` library, which other
programs read too, for the others in a few lines of our own.
"""

import codecs
import functools
import hashlib
import json
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import tokenizers
from tokenizers.models import BPE, WordPiece
from tokenizers.trainers import BpeTrainer

from pygpt.files import atomic_write_json, atomic_write_text, read_json
from pygpt.text.corpus import Document
from pygpt.text.progress import tracked

END_OF_TEXT = "<|endoftext|>"
"""How GPT-2 writes its end-of-document token. In BPE, this text encodes to that token."""


class Tokenizer(ABC):
    """Text to token ids and back. ``decode(encode(text))`` is ``text``."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of token ids: they are 0 to ``vocab_size`` - 1."""

    @property
    @abstractmethod
    def end_of_document(self) -> int | None:
        """The token that stands between documents, where there is one."""

    @property
    @abstractmethod
    def special_tokens(self) -> dict[str, int]:
        """The tokens that stand for what is no text, by the names that `encode` finds them under."""

    @abstractmethod
    def with_special(self, names: Iterable[str]) -> "Tokenizer":
        """A tokenizer of the same ids, and of further special tokens after them: those that it has not yet, in order.

        Raises: ValueError if a name is empty, no text, or that of a token which texts have; TypeError if it is no str,
            or ``names`` are one.
        """

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts, in parallel where that is faster. Raises: as :meth:`encode`."""

    @abstractmethod
    def encode_literally(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts in which the names of special tokens are nothing special. Raises: as :meth:`encode`."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """Give the UTF-8 bytes that a token stands for; one token need not be a whole character.

        Raises: ValueError if the id is not in the vocabulary.
        """

    @abstractmethod
    def _content(self) -> dict[str, Any]:
        """All that decides ids and texts, as JSON."""

    @abstractmethod
    def save(self, folder: str | PathLike[str]) -> None:
        """Write ``tokenizer.json`` into ``folder``, whole or not at all. Raises: OSError, see ``pygpt.files``."""

    def encode(self, text: str) -> list[int]:
        """Give the token ids of a text.

        Raises: TypeError if it is no str; ValueError if it holds a character that the vocabulary has not, or lone
            surrogates, which are no text.
        """
        return self.encode_batch([text])[0]

    def decode(self, tokens: Iterable[int]) -> str:
        """Give the text of token ids; bytes that are no UTF-8 become U+FFFD.

        Raises: ValueError if an id is not in the vocabulary.
        """
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def stream(self) -> "TextStream":
        """Decode one token at a time: see :class:`TextStream`."""
        return TextStream(self)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the vocabulary: equal for two tokenizers if, and only if, they give the same ids."""
        content = json.dumps({"kind": self.kind, **self._content()}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def check_model_vocabulary(self, vocab_size: int) -> None:
        """Raise a ValueError unless a model's ``vocab_size`` is this tokenizer's."""
        if vocab_size != self.vocab_size:
            raise ValueError(
                f"the model has a vocabulary of {vocab_size} tokens, but this tokenizer ({self.kind}) has "
                f"{self.vocab_size}: they do not belong together"
            )

    @staticmethod
    def load(folder: str | PathLike[str]) -> "Tokenizer":
        """Read the tokenizer in a folder: ``tokenizer.json``, GPT-2's ``vocab.json`` and ``merges.txt``, ``vocab.txt``.

        The last is BERT's; a ``tokenizer_config.json`` beside it says whether case is kept.

        Raises: FileNotFoundError if neither is there; ValueError naming the file if it is truncated, foreign, of a
            newer version, or a kind of tokenizer that pygpt does not have.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if path.is_file():
            content = read_json(path)
            if "pygpt_tokenizer" in content:
                return _read_own(path, content)
            backend = _read_tokenizers_json(path, content)
            if content["model"].get("type") == "WordPiece":
                return WordPieceTokenizer(backend, str(path))
            return BPETokenizer(backend, str(path))
        vocab, merges = folder / "vocab.json", folder / "merges.txt"
        if vocab.is_file() and merges.is_file():
            return BPETokenizer(_read_vocab_and_merges(vocab, merges), str(merges))
        words = folder / "vocab.txt"
        if words.is_file():
            return WordPieceTokenizer(_read_words(words), str(words))
        raise FileNotFoundError(
            f"no tokenizer in {str(folder)!r}: neither tokenizer.json nor vocab.json with merges.txt, nor vocab.txt"
        )

    def _missing(self, names: Iterable[str]) -> list[str]:
        """The names that are no special tokens yet, each once. Raises: as :meth:`with_special`."""
        if isinstance(names, str):
            raise TypeError(f"special tokens must be a list of names, not one string, {names!r}")
        missing = [name for name in dict.fromkeys(names) if name not in self.special_tokens]
        for name in missing:
            self._check_text(name)
            if not name:
                raise ValueError("a special token needs a name, but one is empty")
        return missing

    def _check_text(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text holds the lone surrogate U+{ord(text[error.start]):04X} at index {error.start}, which is no "
                "character"
            ) from error

    def _check_token(self, token: int) -> int:
        token = operator.index(token)
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token {token} is not in the vocabulary (0 to {self.vocab_size - 1})")
        return token


class TextStream:
    """Decodes tokens one by one, giving text as soon as its characters are complete.

    The texts of all ``push`` calls and of the final ``flush`` together are ``decode`` of all the tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Take a token, give the text that it completes: nothing, while a character is still cut in half."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """End the stream: what is left of an incomplete character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)


class _PlainTokenizer(Tokenizer):
    """What characters and bytes have in common: special tokens come last, and are found before all else."""

    def __init__(self, special: Sequence[str], first: int) -> None:
        self._special = {name: first + number for number, name in enumerate(special)}
        self._special_bytes = [name.encode("utf-8") for name in special]

    @property
    def special_tokens(self) -> dict[str, int]:
        """By their names."""
        return dict(self._special)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts. Raises: as :meth:`encode`."""
        if not self._special:
            return self.encode_literally(texts)
        names = "|".join(re.escape(name) for name in sorted(self._special, key=len, reverse=True))
        encoded = []
        for text in texts:
            self._check_text(text)
            parts = re.split(f"({names})", text)  # texts and names in turn
            literal = self.encode_literally(parts[::2])
            special = [[self._special[name]] for name in parts[1::2]] + [[]]
            encoded.append([token for pair in zip(literal, special, strict=True) for part in pair for token in part])
        return encoded

    def save(self, folder: str | PathLike[str]) -> None:
        """Write ``tokenizer.json`` into ``folder``. Raises: OSError, see ``pygpt.files``."""
        content = {"pygpt_tokenizer": 1, "kind": self.kind, **self._content()}
        atomic_write_json(Path(folder) / "tokenizer.json", content)

    def _content(self) -> dict[str, Any]:
        return {"special": list(self._special)} if self._special else {}


class CharTokenizer(_PlainTokenizer):
    """One token per character, of a vocabulary in code point order, and one for the end of a document.

    Args:
        characters: the vocabulary, each character once.
        special: names of further tokens.

    Raises: ValueError if there is no character, or one occurs twice.
    """

    kind = "characters"

    def __init__(self, characters: str, special: Sequence[str] = ()) -> None:
        super().__init__(special, len(characters) + 1)
        self._check_text(characters)
        self.characters = "".join(sorted(characters))
        self._ids = {character: index for index, character in enumerate(self.characters)}
        if not characters:
            raise ValueError("characters is empty: a vocabulary needs at least one")
        if len(self._ids) != len(characters):
            repeated = next(c for c in self.characters if self.characters.count(c) > 1)
            raise ValueError(f"characters holds {repeated!r} more than once")
        self._bytes = [*(character.encode("utf-8") for character in self.characters), b"", *self._special_bytes]

    @classmethod
    def train(cls, documents: Iterable[Document]) -> "CharTokenizer":
        """Take every character that occurs in the documents. Raises: ValueError if they hold no text."""
        characters: set[str] = set()
        for document in documents:
            for piece in document.pieces:
                characters.update(piece)
        if not characters:
            raise ValueError("the corpus is empty: its documents hold no text")
        return cls("".join(sorted(characters)))

    @property
    def vocab_size(self) -> int:
        """The number of characters, one, and the special tokens."""
        return len(self._bytes)

    @property
    def end_of_document(self) -> int:
        """The id after the characters'. It has no text."""
        return len(self.characters)

    def with_special(self, names: Iterable[str]) -> "CharTokenizer":
        """A tokenizer of further special tokens. Raises: as `Tokenizer.with_special`."""
        return CharTokenizer(self.characters, [*self._special, *self._missing(names)])

    def encode_literally(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts as characters. Raises: as :meth:`encode`."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        self._check_text(text)
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise ValueError(
                f"the character {character!r} (U+{ord(character):04X}), at index {text.index(character)} of the text, "
                f"is not among the {len(self.characters)} that this tokenizer was trained on"
            ) from None

    def token_bytes(self, token: int) -> bytes:
        """Give a character's UTF-8 bytes. Raises: ValueError if the id is not in the vocabulary."""
        return self._bytes[self._check_token(token)]

    def _content(self) -> dict[str, Any]:
        return {"characters": self.characters, **super()._content()}


class ByteTokenizer(_PlainTokenizer):
    """One token per byte of UTF-8 (ids 0 to 255), and 256 for the end of a document, which has no text.

    Args:
        special: names of further tokens.
    """

    kind = "bytes"

    def __init__(self, special: Sequence[str] = ()) -> None:
        super().__init__(special, 257)

    @property
    def vocab_size(self) -> int:
        """257, and the special tokens."""
        return 257 + len(self._special)

    @property
    def end_of_document(self) -> int:
        """256."""
        return 256

    def with_special(self, names: Iterable[str]) -> "ByteTokenizer":
        """A tokenizer of further special tokens. Raises: as `Tokenizer.with_special`."""
        return ByteTokenizer([*self._special, *self._missing(names)])

    def encode_literally(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts as bytes. Raises: as :meth:`encode`."""
        for text in texts:
            self._check_text(text)
        return [list(text.encode("utf-8")) for text in texts]

    def token_bytes(self, token: int) -> bytes:
        """Give the byte. Raises: ValueError if the id is not in the vocabulary."""
        token = self._check_token(token)
        if token < 256:
            return bytes((token,))
        return b"" if token == 256 else self._special_bytes[token - 257]


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding: bytes, and the merges of two tokens into one that training found frequent.

    Text is first split into words, numbers, punctuation and whitespace by GPT-2's pattern; merges stay inside these.
    Make one by :meth:`train` or :meth:`Tokenizer.load`. A vocabulary may lack some bytes, as SmolLM's does; texts that
    have them are refused.

    Args:
        backend: the ``tokenizers`` library's object that encodes.
        origin: what messages call it.

    Raises: ValueError if the backend is no byte-level BPE as GPT-2's is.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2.
    """

    kind = "byte-level BPE"

    def __init__(self, backend: tokenizers.Tokenizer, origin: str = "backend") -> None:
        self._backend = backend
        backend.no_padding()
        backend.no_truncation()
        self._description: dict[str, Any] = json.loads(backend.to_str())
        self._special = {int(t["id"]): str(t["content"]) for t in self._description["added_tokens"]}
        _check_byte_level(self._description, set(self._special.values()), origin)
        ids: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError(f"{origin}: the {len(ids)} token ids are not 0 to {len(ids) - 1}, each once")
        values = _byte_values()
        self._lacking = bytes(value for character, value in values.items() if character not in ids)
        self._bytes = [b""] * len(ids)
        for content, token in ids.items():
            special = token in self._special
            self._bytes[token] = content.encode() if special else bytes(values[character] for character in content)
        self._end_of_document = ids.get(END_OF_TEXT)
        self._literal: tokenizers.Tokenizer | None = None  # made when it is first needed

    @classmethod
    def train(cls, documents: Iterable[Document], vocab_size: int) -> "BPETokenizer":
        """Find the merges by their frequency in the documents.

        Args:
            documents: the text to learn from. Word counts are held in memory, the text is not.
            vocab_size: the number of tokens to end with, of which 256 are the bytes and one ends a document. Fewer
                come out when the text has no more pairs that occur twice.

        Raises: ValueError if the documents hold no text, or ``vocab_size`` is less than 257.
        """
        if vocab_size < 257:
            raise ValueError(f"vocab_size must be at least 257 (256 bytes and {END_OF_TEXT}), got {vocab_size}")
        backend = _empty_backend(BPE())
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        )
        pieces = (piece for document in documents for piece in document.pieces)
        first = next((piece for piece in pieces if piece), None)
        if first is None:
            raise ValueError("the corpus is empty: its documents hold no text")
        backend.train_from_iterator((piece for part in ((first,), pieces) for piece in part), trainer)
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        """The number of bytes, merges and special tokens."""
        return len(self._bytes)

    @property
    def end_of_document(self) -> int | None:
        """The id of ``<|endoftext|>``, where the vocabulary has it."""
        return self._end_of_document

    @property
    def special_tokens(self) -> dict[str, int]:
        """By their names."""
        return {name: token for token, name in sorted(self._special.items())}

    def with_special(self, names: Iterable[str]) -> "BPETokenizer":
        """A tokenizer of further special tokens. Raises: as `Tokenizer.with_special`."""
        missing = self._missing(names)
        for name in missing:
            self._check_free(name)
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.add_special_tokens(missing)
        return BPETokenizer(backend)

    def _check_free(self, name: str) -> None:
        """Refuse the name of a token that texts have: all of them would be special."""
        token = self._backend.token_to_id(name)
        if token is None:
            return
        try:
            text = self._bytes[token].decode()
        except UnicodeDecodeError:  # a part of a character
            text = ""
        if not text or self.encode_literally([text]) == [[token]]:
            raise ValueError(f"{name!r} is token {token} of the vocabulary: a special token needs a name of its own")

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts in parallel. Raises: as :meth:`encode`."""
        return self._encode(self._backend, texts)

    def encode_literally(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts in parallel, without special tokens. Raises: as :meth:`encode`."""
        if self._literal is None:
            self._literal = tokenizers.Tokenizer.from_str(self._backend.to_str())
            self._literal.encode_special_tokens = True
        return self._encode(self._literal, texts)

    def _encode(self, backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            self._check_text(text)
            lacking = set(self._lacking).intersection(text.encode()) if self._lacking else None
            if lacking:
                raise ValueError(f"the vocabulary has no token for the byte 0x{min(lacking):02x} of {text[:40]!r}")
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def token_bytes(self, token: int) -> bytes:
        """Give a token's bytes. Raises: ValueError if the id is not in the vocabulary."""
        return self._bytes[self._check_token(token)]

    def save(self, folder: str | PathLike[str]) -> None:
        """Write ``tokenizer.json``, as the ``tokenizers`` library reads it. Raises: OSError, see ``pygpt.files``."""
        atomic_write_text(Path(folder) / "tokenizer.json", self._backend.to_str(pretty=True))

    def _content(self) -> dict[str, Any]:
        model, steps = self._description["model"], self._description["pre_tokenizer"].get("pretokenizers")
        content = {"vocab": model["vocab"], "merges": model["merges"], "special": self._special}
        if steps:  # GPT-2's has none of these
            content["splits"] = steps[0]
        if model.get("ignore_merges"):
            content["ignore_merges"] = True
        return content


class WordPieceTokenizer(Tokenizer):
    """BERT's: words, each cut from the left into the longest pieces that the vocabulary has.

    What lies between words, and case and accents where the vocabulary has none, are not kept: ``decode(encode(text))``
    is the normalised words, with a space before each but the first. Punctuation is a word. A word with a character that
    no piece has is the token ``[UNK]``. Make one by :meth:`Tokenizer.load`.

    Args:
        backend: the ``tokenizers`` library's object that encodes.
        origin: what messages call it.

    Raises: ValueError if the backend is no WordPiece.

    Source: Devlin et al., "BERT", 2018, section 3; Wu et al., "Google's Neural Machine Translation System", 2016.
    """

    kind = "WordPiece"

    def __init__(self, backend: tokenizers.Tokenizer, origin: str = "backend") -> None:
        self._backend = backend
        backend.no_padding()
        backend.no_truncation()
        self._description: dict[str, Any] = json.loads(backend.to_str())
        model = self._description["model"]
        if model["type"] != "WordPiece":
            raise ValueError(f"{origin} has a model of type {model['type']}, not WordPiece")
        self._special = {int(t["id"]): str(t["content"]) for t in self._description["added_tokens"]}
        ids: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError(f"{origin}: the {len(ids)} token ids are not 0 to {len(ids) - 1}, each once")
        self._bytes = [b""] * len(ids)
        prefix = model["continuing_subword_prefix"]
        for content, token in ids.items():
            inside = content.startswith(prefix) and token not in self._special
            self._bytes[token] = (content.removeprefix(prefix) if inside else f" {content}").encode()
        self._literal = tokenizers.Tokenizer.from_str(backend.to_str())
        self._literal.encode_special_tokens = True

    @property
    def vocab_size(self) -> int:
        """The number of pieces and special tokens."""
        return len(self._bytes)

    @property
    def end_of_document(self) -> None:
        """There is none."""
        return None

    @property
    def special_tokens(self) -> dict[str, int]:
        """By their names."""
        return {name: token for token, name in sorted(self._special.items())}

    def with_special(self, names: Iterable[str]) -> "WordPieceTokenizer":
        """A tokenizer of further special tokens. Raises: as `Tokenizer.with_special`."""
        missing = self._missing(names)
        for name in missing:
            self._check_free(name)
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.add_special_tokens(missing)
        return WordPieceTokenizer(backend)

    def _check_free(self, name: str) -> None:
        """Refuse the name of a token that texts have: all of them would be special."""
        token = self._backend.token_to_id(name)
        inside = name.startswith(self._description["model"]["continuing_subword_prefix"])
        if token is not None and (inside or self.encode_literally([name]) == [[token]]):
            raise ValueError(f"{name!r} is token {token} of the vocabulary: a special token needs a name of its own")

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts in parallel. Raises: as :meth:`encode`."""
        return self._encode(self._backend, texts)

    def encode_literally(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts in parallel, without special tokens. Raises: as :meth:`encode`."""
        return self._encode(self._literal, texts)

    def _encode(self, backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            self._check_text(text)
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Iterable[int]) -> str:
        """Give the words. Raises: ValueError if an id is not in the vocabulary."""
        return super().decode(tokens).removeprefix(" ")

    def token_bytes(self, token: int) -> bytes:
        """Give a piece's bytes, after a space if it begins a word. Raises: ValueError if the id is unknown."""
        return self._bytes[self._check_token(token)]

    def save(self, folder: str | PathLike[str]) -> None:
        """Write ``tokenizer.json``, as the ``tokenizers`` library reads it. Raises: OSError, see ``pygpt.files``."""
        atomic_write_text(Path(folder) / "tokenizer.json", self._backend.to_str(pretty=True))

    def _content(self) -> dict[str, Any]:
        description = self._description
        return {
            "vocab": description["model"]["vocab"],
            "normalizer": description["normalizer"],
            "special": self._special,
        }


def make_tokenizer(
    kind: str, documents: Iterable[Document], vocab_size: int | None = None, progress: bool = True
) -> Tokenizer:
    """Train or load the tokenizer that a command line names.

    Args:
        kind: ``"characters"``, ``"bytes"``, ``"bpe"``, or a folder that holds a tokenizer.
        documents: the corpus that characters and BPE are trained on.
        vocab_size: BPE's; None means 4096.
        progress: show a progress bar on a terminal while the documents are read.

    Raises: ValueError for another name, an empty corpus, or a ``vocab_size`` that is not the tokenizer's to choose;
        FileNotFoundError and ValueError as :meth:`Tokenizer.load`.
    """
    documents = tracked(documents, "reading for the tokenizer", progress)
    if kind == "bpe":
        return BPETokenizer.train(documents, 4096 if vocab_size is None else vocab_size)
    if vocab_size is not None:
        raise ValueError(f"vocab_size can be chosen for 'bpe' only, not for {kind!r}")
    if kind == "characters":
        return CharTokenizer.train(documents)
    if kind == "bytes":
        return ByteTokenizer()
    if Path(kind).is_dir():
        return Tokenizer.load(kind)
    raise ValueError(f"tokenizer must be 'characters', 'bytes', 'bpe' or a folder with a tokenizer, got {kind!r}")


def _read_own(path: Path, content: dict[str, Any]) -> Tokenizer:
    version = content["pygpt_tokenizer"]
    if version != 1:
        raise ValueError(f"{path} has version {version!r} of pygpt's tokenizer format; this pygpt reads version 1")
    kind, special = content.get("kind"), content.get("special", [])
    if not isinstance(special, list) or not all(isinstance(name, str) and name for name in special):
        raise ValueError(f"{path}: 'special' should be a list of names, but is {special!r}")
    if kind == ByteTokenizer.kind:
        return ByteTokenizer(special)
    if kind != CharTokenizer.kind:
        raise ValueError(f"{path} has a tokenizer of the unknown kind {kind!r}")
    characters = content.get("characters")
    if not isinstance(characters, str):
        raise ValueError(f"{path}: 'characters' should be a string, but is {characters!r}")
    try:
        return CharTokenizer(characters, special)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _empty_backend(model: BPE) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def byte_level_bpe(
    vocab: dict[str, int], merges: Sequence[tuple[str, str]], special: Sequence[str], single_digits: bool = False
) -> tokenizers.Tokenizer:
    """A backend for `BPETokenizer`.

    Args:
        vocab: ids of all tokens, bytes written as GPT-2 writes them.
        merges: pairs of tokens, the first merged first.
        special: tokens of ``vocab`` that stand for themselves.
        single_digits: whether every digit is a token of its own, as in SmolLM and StarCoder.
    """
    backend = _empty_backend(BPE(vocab=vocab, merges=list(merges)))
    if single_digits:
        digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    backend.add_special_tokens(list(special))
    return backend


def _read_tokenizers_json(path: Path, content: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{path} is not a tokenizer that the tokenizers library reads: {error}") from error


def _read_vocab_and_merges(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    ids = read_json(vocab)
    try:
        model = BPE.from_file(str(vocab), str(merges))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{vocab} and {merges} are not a BPE vocabulary: {error}") from error
    backend = _empty_backend(model)
    if END_OF_TEXT in ids:
        backend.add_special_tokens([END_OF_TEXT])
    return backend


def _read_words(path: Path) -> tokenizers.Tokenizer:
    """BERT's vocabulary, a token a line, with the settings that a tokenizer_config.json has beside it."""
    beside = path.with_name("tokenizer_config.json")
    settings = read_json(beside) if beside.is_file() else {}
    lines = path.read_text(encoding="utf-8").split("\n")
    vocab = {line.rstrip("\r"): number for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names["mask_token"] = "[MASK]"
    written = {name: settings.get(name) or token for name, token in names.items()}  # as text, or in an object
    special = [token["content"] if isinstance(token, dict) else token for token in written.values()]
    unknown = special[0]
    if unknown not in vocab:
        raise ValueError(f"{path} has no token {unknown!r}, which stands for words that it lacks")
    backend = tokenizers.Tokenizer(WordPiece(vocab, unk_token=unknown, max_input_chars_per_word=100))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.add_special_tokens([token for token in special if token in vocab])
    return backend


@functools.cache
def _byte_values() -> dict[str, int]:
    """The byte behind each of the 256 printable characters in which byte-level BPE writes bytes.

    Those that print in Latin-1 stand for themselves, the others, in order, for U+0100 and up (GPT-2's encoder.py).
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _check_byte_level(description: dict[str, Any], special: set[str], origin: str) -> None:
    """Refuse tokenizers whose texts would not survive, or whose ids would differ from their makers'."""
    model = description["model"]
    pre_tokenizer = description["pre_tokenizer"] or {}
    steps = pre_tokenizer.get("pretokenizers", [])
    if [step["type"] for step in steps] == ["Digits", "ByteLevel"]:  # splits more than GPT-2 does, and joins nothing
        pre_tokenizer = steps[1]
    byte_level = pre_tokenizer.get("type") == "ByteLevel" and pre_tokenizer.get("use_regex", True)
    if model["type"] != "BPE" or not byte_level or pre_tokenizer["add_prefix_space"] or description["normalizer"]:
        raise ValueError(
            f"{origin} is not GPT-2's kind of tokenizer (a BPE model, ByteLevel pre-tokenizer with its pattern and "
            f"without prefix space, no normalizer), but model {model['type']}, pre-tokenizer {pre_tokenizer}, "
            f"normalizer {description['normalizer']}"
        )
    options = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    set_options = [option for option in options if model.get(option)]
    if set_options:
        raise ValueError(f"{origin} sets {', '.join(set_options)}, which byte-level BPE has not")
    vocab = set(model["vocab"]) - special
    stripping = [token["content"] for token in description["added_tokens"] if token["lstrip"] or token["rstrip"]]
    if stripping:
        raise ValueError(f"{origin} has special tokens that swallow whitespace beside them: {', '.join(stripping)}")
    merged = {"".join(merge) for merge in model["merges"]}
    unmade = sorted(vocab - merged - _byte_values().keys())
    if unmade:
        raise ValueError(
            f"{origin} has no merge that makes {unmade[0]!r} and {len(unmade) - 1} other tokens: is it truncated?"
        )
