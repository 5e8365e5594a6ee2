"""Text survives encoding and decoding, in one go, streamed and saved; GPT-2's ids are GPT-2's."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pygpt.text import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Document,
    Tokenizer,
    WordPieceTokenizer,
    make_tokenizer,
)
from pygpt.text.tokenizer import END_OF_TEXT, byte_level_bpe

ALPHABET = "aäbc 😀\n\t_e\u0301"

DOCUMENTS = [
    Document("english", "the cat and the dog and the cat\nsat; the dogs' 123 hats, they'll see them\n\n  indented" * 5),
    Document("others", "größer, größte: naïve café \u4f60\u597d\u4f60\u597d 😀😀 e\u0301 x\u00a0y" * 3),
    Document("alphabet", ALPHABET),
]

SAMPLES = [
    "",
    " ",
    "Hello, world!",
    "  leading and trailing  ",
    "tabs\tand\r\nline\n\n\nends \n",
    "don't they'll we've I'm 'quoted' it's",
    "1234567890 3.14159e-10 0x1F",
    "naïve café größer \u4f60\u597d 😀\u200d😀",
    "\u4f60\u597d\u4e16\u754c \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644\u0639\u0631 😀👩‍👩‍👧",
    "nul\0 and control \x1c\x7f\x85\u200b\u3000 e\u0301",
    "def f(x):\n    return x ** 2  # comment\n",
    "<|endoftext|>",
    "one<|endoftext|>two <|endoftext|> three<|endoftext",
    "a" * 1000 + " " * 100 + "\n" * 50,
]


@pytest.fixture(scope="session")
def made() -> dict[str, Tokenizer]:
    return {
        "characters": CharTokenizer.train(DOCUMENTS),
        "bytes": ByteTokenizer(),
        "bpe": BPETokenizer.train(DOCUMENTS, 300),
    }


@pytest.fixture(scope="session")
def gpt2(gpt2_folder: Path) -> Tokenizer:
    return Tokenizer.load(gpt2_folder)


KINDS = ("characters", "bytes", "bpe")


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@settings(max_examples=200)
@given(text=st.text())
def test_any_text_survives(made: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokens = made[kind].encode(text)
    assert made[kind].decode(tokens) == text
    assert all(0 <= token < made[kind].vocab_size for token in tokens)


@given(text=st.text(ALPHABET))
def test_text_over_the_vocabulary_survives_characters(made: dict[str, Tokenizer], text: str) -> None:
    tokens = made["characters"].encode(text)
    assert len(tokens) == len(text)
    assert made["characters"].decode(tokens) == text


@settings(max_examples=200)
@given(text=st.text())
def test_any_text_survives_gpt2(gpt2: Tokenizer, text: str) -> None:
    assert gpt2.decode(gpt2.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_stream_is_the_decoded_whole_and_never_half_a_character(
    made: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    tokenizer = made[kind]
    tokens = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))  # any bytes, most of them no UTF-8
    stream = tokenizer.stream()
    assert "".join(map(stream.push, tokens)) + stream.flush() == tokenizer.decode(tokens)

    text = data.draw(st.text(ALPHABET))
    stream = tokenizer.stream()
    parts = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(parts) == text
    assert stream.flush() == ""


def test_a_stream_waits_for_the_rest_of_a_character() -> None:
    stream = ByteTokenizer().stream()
    assert [stream.push(byte) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]
    assert stream.push(0xF0) == ""
    assert stream.flush() == "\ufffd"


def test_characters_are_numbered_by_code_point() -> None:
    tokenizer = CharTokenizer.train([Document("a", "cab"), Document("b", "é\nb")])
    assert tokenizer.characters == "\nabcé"
    assert tokenizer.encode("abé\n") == [1, 2, 4, 0]
    assert tokenizer.vocab_size == 6
    assert tokenizer.end_of_document == 5
    assert tokenizer.decode([1, 5, 2]) == "ab"


def test_an_unknown_character_is_named() -> None:
    tokenizer = CharTokenizer("abc")
    with pytest.raises(ValueError, match=r"the character 'é' \(U\+00E9\), at index 2 of the text, is not among the 3"):
        tokenizer.encode("abé")


def test_bytes_are_utf8() -> None:
    assert ByteTokenizer().encode("aé") == [0x61, 0xC3, 0xA9]
    assert ByteTokenizer().end_of_document == 256
    assert ByteTokenizer().decode([0x61, 256, 0x62]) == "ab"


def test_bpe_learns_frequent_words(made: dict[str, Tokenizer]) -> None:
    bpe = made["bpe"]
    assert bpe.vocab_size == 300
    assert len(bpe.encode(" the")) == 1
    assert bpe.end_of_document is not None
    assert bpe.encode("a<|endoftext|>b") == [*bpe.encode("a"), bpe.end_of_document, *bpe.encode("b")]


def test_bpe_training_stops_where_pairs_do() -> None:
    tokenizer = BPETokenizer.train([Document("a", "ab ab")], 5000)
    assert tokenizer.vocab_size == 257 + 1
    assert tokenizer.token_bytes(257) == b"ab"


@pytest.mark.slow
def test_bpe_training_gives_the_same_in_another_process(made: dict[str, Tokenizer]) -> None:
    program = (
        "import sys; from pygpt.text import BPETokenizer, Document\n"
        "print(BPETokenizer.train([Document('', t) for t in eval(sys.argv[1])], 300).fingerprint)\n"
    )
    texts = repr([document.text for document in DOCUMENTS])
    for threads in ("1", "2"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", program, texts], env=environment, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == made["bpe"].fingerprint


@given(text=st.text(st.sampled_from("ab1.é😀' \n\t\x1c\u00a0\u3000"), max_size=80), data=st.data())
def test_pieces_cut_as_documents_are_give_the_tokens_of_the_whole(
    made: dict[str, Tokenizer], text: str, data: st.DataObject
) -> None:
    cuts = [i for i in range(1, len(text)) if text[i] in " \t\n" and not text[i - 1].isspace()]
    chosen = sorted(data.draw(st.sets(st.sampled_from(cuts)))) if cuts else []
    pieces = [text[a:b] for a, b in zip([0, *chosen], [*chosen, len(text)], strict=True)]
    for tokenizer in (made["bytes"], made["bpe"]):
        assert list(itertools.chain(*tokenizer.encode_batch(pieces))) == tokenizer.encode(text)


@pytest.mark.parametrize("text", SAMPLES)
def test_gpt2_gives_the_ids_of_transformers(gpt2: Tokenizer, gpt2_of_transformers: Any, text: str) -> None:
    tokens = gpt2.encode(text)
    assert tokens == gpt2_of_transformers(text)["input_ids"]
    assert gpt2.decode(tokens) == text
    assert gpt2.decode(tokens[1:]) == gpt2_of_transformers.decode(tokens[1:], clean_up_tokenization_spaces=False)


@pytest.fixture(scope="session")
def gpt2_of_transformers(gpt2_folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2Tokenizer.from_pretrained(gpt2_folder)


def test_gpt2_is_known_by_its_numbers(gpt2: Tokenizer) -> None:
    assert gpt2.vocab_size == 50257
    assert gpt2.end_of_document == 50256
    assert gpt2.encode("Hello world") == [15496, 995]


def test_gpt2_decodes_broken_bytes_as_the_tokenizers_library_does(gpt2: Tokenizer, tmp_path: Path) -> None:
    gpt2.save(tmp_path)
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    generator = np.random.default_rng(0)
    for _ in range(300):
        tokens = generator.integers(0, 50257 if generator.random() < 0.5 else 256, 8).tolist()
        assert gpt2.decode(tokens) == peer.decode(tokens, skip_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(made: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
    CharTokenizer("xyz").save(tmp_path)  # what was there before goes away
    made[kind].save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert type(loaded) is type(made[kind])
    assert loaded.fingerprint == made[kind].fingerprint
    assert loaded.end_of_document == made[kind].end_of_document
    assert loaded.encode(ALPHABET) == made[kind].encode(ALPHABET)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_gpt2_is_the_same_from_either_of_its_forms(gpt2: Tokenizer, tmp_path: Path) -> None:
    gpt2.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == gpt2.fingerprint


def test_gpt2_is_read_as_the_hub_has_it(gpt2: Tokenizer, tmp_path: Path) -> None:
    gpt2.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model = content["model"]
    model = {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "vocab": model["vocab"],
        "merges": [" ".join(merge) for merge in model["merges"]],
    }
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    content = {
        "version": "1.0",
        "truncation": truncation,
        "padding": None,
        "added_tokens": content["added_tokens"],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": model,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == gpt2.fingerprint
    for text in SAMPLES:
        assert loaded.encode(text) == gpt2.encode(text)


def test_fingerprints_tell_vocabularies_apart(made: dict[str, Tokenizer]) -> None:
    bpe = made["bpe"]
    assert isinstance(bpe, BPETokenizer)
    model = bpe._description["model"]
    digits = byte_level_bpe(
        model["vocab"], [tuple(pair) for pair in model["merges"]], [END_OF_TEXT], single_digits=True
    )
    others = [CharTokenizer("abc"), CharTokenizer("abd"), BPETokenizer.train(DOCUMENTS, 299), BPETokenizer(digits)]
    fingerprints = [tokenizer.fingerprint for tokenizer in [*made.values(), *others]]
    assert len(set(fingerprints)) == len(fingerprints)
    assert CharTokenizer("abc").fingerprint == CharTokenizer("cba").fingerprint


def test_a_model_with_another_vocabulary_is_refused() -> None:
    CharTokenizer("abc").check_model_vocabulary(4)
    with pytest.raises(ValueError, match=r"model has a vocabulary of 50257 tokens, but this tokenizer .* has 4"):
        CharTokenizer("abc").check_model_vocabulary(50257)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_named(made: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = made[kind]
    with pytest.raises(TypeError, match="text must be a str, got bytes"):
        tokenizer.encode(b"abc")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at index 1"):
        tokenizer.encode("a\ud800")
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"token {token} is not in the vocabulary"):
            tokenizer.decode([0, token])
    with pytest.raises(TypeError):
        tokenizer.decode([1.5])  # type: ignore[list-item]
    assert tokenizer.decode(torch.tensor([1, 2])) == tokenizer.decode(np.array([1, 2])) == tokenizer.decode([1, 2])


def test_bad_training_is_named() -> None:
    with pytest.raises(ValueError, match=r"vocab_size must be at least 257 .* got 256"):
        BPETokenizer.train(DOCUMENTS, 256)
    for empty in ([], [Document("a", "")], [Document("a", []), Document("b", ["", ""])]):
        with pytest.raises(ValueError, match="the corpus is empty"):
            CharTokenizer.train(empty)
        with pytest.raises(ValueError, match="the corpus is empty"):
            BPETokenizer.train(empty, 300)
    with pytest.raises(ValueError, match="holds 'b' more than once"):
        CharTokenizer("abcb")
    with pytest.raises(ValueError, match="characters is empty"):
        CharTokenizer("")


def test_make_tokenizer(made: dict[str, Tokenizer], tmp_path: Path) -> None:
    for kind, size in (("characters", None), ("bytes", None), ("bpe", 300)):
        assert make_tokenizer(kind, DOCUMENTS, size).fingerprint == made[kind].fingerprint
    made["bpe"].save(tmp_path)
    assert make_tokenizer(str(tmp_path), []).fingerprint == made["bpe"].fingerprint
    with pytest.raises(ValueError, match="vocab_size can be chosen for 'bpe' only, not for 'bytes'"):
        make_tokenizer("bytes", DOCUMENTS, 300)
    with pytest.raises(ValueError, match=r"tokenizer must be 'characters', .* got 'gpt2'"):
        make_tokenizer("gpt2", DOCUMENTS)


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("characters", lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not valid JSON"),
        ("bpe", lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not valid JSON"),
        (
            "bpe",
            lambda path: path.write_text('{"some": "file"}'),
            "is not a tokenizer that the tokenizers library reads",
        ),
        ("characters", changed(lambda c: c.update(pygpt_tokenizer=2)), "has version 2 of pygpt's tokenizer format"),
        ("characters", changed(lambda c: c.update(kind="words")), "has a tokenizer of the unknown kind 'words'"),
        ("characters", changed(lambda c: c.update(characters=7)), "'characters' should be a string, but is 7"),
        ("characters", changed(lambda c: c.update(characters="aa")), "holds 'a' more than once"),
        ("bpe", changed(lambda c: c["model"]["merges"].pop()), "no merge that makes .*: is it truncated?"),
        ("bpe", changed(lambda c: c["pre_tokenizer"].update(add_prefix_space=True)), "not GPT-2's kind of tokenizer"),
        ("bpe", changed(lambda c: c.update(normalizer={"type": "NFC"})), "not GPT-2's kind of tokenizer"),
        ("bpe", changed(lambda c: c["model"].update(dropout=0.1)), "sets dropout"),
        ("bpe", changed(lambda c: c["model"]["vocab"].pop("a")), r"tokenizer\.json"),
        ("bpe", changed(lambda c: c["added_tokens"][0].update(rstrip=True)), "swallow whitespace"),
    ],
)
def test_damaged_and_foreign_files_are_named(
    made: dict[str, Tokenizer], tmp_path: Path, kind: str, damage: Callable[[Path], None], message: str
) -> None:
    made[kind].save(tmp_path)
    damage(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert "tokenizer.json" in str(caught.value)


def test_damaged_gpt2_files_are_named(gpt2_folder: Path, tmp_path: Path) -> None:
    shutil.copy(gpt2_folder / "vocab.json", tmp_path)
    merges = (gpt2_folder / "merges.txt").read_bytes()
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer.json nor vocab.json with merges.txt"):
        Tokenizer.load(tmp_path)
    lines = merges.splitlines(keepends=True)
    for content in (b"".join(lines[:40_000]), merges[: len(merges) // 2], b"not merges at all"):
        (tmp_path / "merges.txt").write_bytes(content)
        with pytest.raises(ValueError, match=r"merges\.txt"):
            Tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0, "b":')
    with pytest.raises(ValueError, match=r"vocab\.json is not valid JSON"):
        Tokenizer.load(tmp_path)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer in '.*nowhere'"):
        Tokenizer.load(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_after_all_others(made: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
    plain = made[kind]
    more = plain.with_special(["<|a|>", "<|ab|>", "<|a|>"]).with_special(["<|ab|>", "<|c|>"])
    first = plain.vocab_size
    assert more.vocab_size == first + 3 and plain.vocab_size == first
    assert {name: more.special_tokens[name] - first for name in ("<|a|>", "<|ab|>", "<|c|>")} == {
        "<|a|>": 0,
        "<|ab|>": 1,
        "<|c|>": 2,
    }
    parts = [plain.encode("abc"), [first + 1], plain.encode("a"), [first], [first + 2]]
    assert more.encode("abc<|ab|>a<|a|><|c|>") == [token for part in parts for token in part]
    assert more.decode([first, *plain.encode("abc")]) == "<|a|>abc"
    more.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == more.fingerprint != plain.fingerprint
    assert again.encode("<|c|>") == [first + 2]
    assert more.with_special([]).fingerprint == more.fingerprint
    for names, error, words in (
        ([""], ValueError, "a special token needs a name"),
        ("<|a|>", TypeError, "must be a list of names, not one string, '<|a|>'"),
        ([3], TypeError, "text must be a str, got int"),
        (["\ud800"], ValueError, r"lone surrogate U\+D800"),
    ):
        with pytest.raises(error, match=words):
            plain.with_special(names)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_names_of_special_tokens_in_a_text_are_text(made: dict[str, Tokenizer], kind: str) -> None:
    more = made[kind].with_special(["<|a|>"])
    text = "x <|a|> y<|endoftext|>"
    (tokens,) = more.encode_literally([text])
    assert not set(tokens) & set(more.special_tokens.values())
    assert more.decode(tokens) == text
    assert more.encode_literally(SAMPLES[:8]) == more.encode_batch(SAMPLES[:8])


def test_tokens_of_texts_do_not_become_special() -> None:
    """Else every "the" would be, and "é", which the vocabulary calls a byte by, could no longer be written."""
    bpe = BPETokenizer.train([Document("", "the cat " * 9 + "é")], 300)
    assert bpe.encode("the") == [bpe._backend.token_to_id("the")]
    for name in ("the", "\u0120the", "a", "é", "Ã"):
        token = bpe._backend.token_to_id(name)
        with pytest.raises(ValueError, match=rf"token {token} of the vocabulary: a special token needs a name of its"):
            bpe.with_special([name])
    assert bpe.with_special([" the"]).encode("x the") == [*bpe.encode("x"), bpe.vocab_size]


def test_special_tokens_of_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"pygpt_tokenizer": 1, "kind": "bytes", "special": "<|a|>"}')
    with pytest.raises(ValueError, match="'special' should be a list of names"):
        Tokenizer.load(tmp_path)


WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", ".", "!", "'", "the", "cat", "sat", "mat", "naive"),
    *("##s", "##ting", "un", "##able", "\u4f60", "\u597d", "Cat", "caf\u00e9", "cafe", "##\u00e9", "1", "##2"),
]
SENTENCES = [
    "The cats sat, unable!  \u4f60\u597d naïve caf\u00e9 Café CAT",
    "[CLS] the cat [SEP] [MASK] \u200b\t sat. 12 zebras",
    "",
]


def bert_folder(path: Path, **settings: Any) -> Path:
    path.mkdir()
    (path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    if settings:
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"strip_accents": False, "unk_token": "[PAD]"}])
def test_word_pieces_are_those_of_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    """From vocab.txt and from the tokenizer.json that transformers saves, and that we save."""
    transformers = pytest.importorskip("transformers")
    folder = bert_folder(tmp_path / "bert", **settings)
    theirs = transformers.BertTokenizerFast.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Tokenizer.load(folder)
    ours.save(tmp_path / "theirs" / "..")
    for tokenizer in (ours, Tokenizer.load(tmp_path / "theirs"), Tokenizer.load(tmp_path)):
        assert isinstance(tokenizer, WordPieceTokenizer) and tokenizer.vocab_size == len(WORDS)
        assert tokenizer.end_of_document is None and tokenizer.special_tokens["[CLS]"] == 2
        for text in SENTENCES:
            assert tokenizer.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text


def test_word_pieces_are_joined_to_words(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(bert_folder(tmp_path / "bert"))
    assert tokenizer.decode(tokenizer.encode("The  cats sat, unable [MASK] zebras")) == (
        "the cats sat , unable [MASK] [UNK]"
    )
    assert 2 not in tokenizer.encode_literally(["[CLS] the cat"])[0]
    more = tokenizer.with_special(["[CLS]", "[END]"])
    assert more.encode("the [END]") == [9, len(WORDS)] and more.fingerprint != tokenizer.fingerprint
    for name in ("the", "##s", ","):
        with pytest.raises(ValueError, match="of the vocabulary: a special token needs a name of its own"):
            tokenizer.with_special([name])
    (tmp_path / "bert" / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"vocab\.txt has no token '\[UNK\]'"):
        Tokenizer.load(tmp_path / "bert")
