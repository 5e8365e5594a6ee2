"""Folders of models, with tokenizers: what is loaded, and what does not fit together."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pygpt import GPT, Encoder, EncoderConfig, GPTConfig
from pygpt.text import ByteTokenizer, CharTokenizer
from pygpt.train.saved import check_vocabulary, load_model, load_saved
from tests.support import assert_same_bits

SIZES: dict[str, Any] = {"context_length": 16, "num_layers": 1, "num_heads": 2, "embedding_dim": 8}
TOKENIZER = CharTokenizer("abc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    GPT(GPTConfig(TOKENIZER.vocab_size, **SIZES)).save_pretrained(tmp_path / "model")
    TOKENIZER.save(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_is_a_model_and_its_tokenizer(folder: Path) -> None:
    saved = load_saved(folder)
    assert isinstance(saved.model, GPT) and not saved.model.training
    assert saved.tokenizer.fingerprint == TOKENIZER.fingerprint and saved.form is None and saved.folder == folder
    assert load_saved(folder, torch.bfloat16).model.token_embedding.weight.dtype == torch.bfloat16
    model, tokenizer = load_model(folder)
    assert_same_bits(model.token_embedding.weight, saved.model.token_embedding.weight, "loaded twice")
    assert tokenizer.fingerprint == TOKENIZER.fingerprint


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*; give the folder of a run or of a model"):
        load_saved(tmp_path / "absent")
    for name, words in (("tokenizer.json", "tokenizer"), ("config.json", r"has no config\.json")):
        copy = Path(shutil.copytree(folder, tmp_path / name))
        (copy / name).unlink()
        with pytest.raises(FileNotFoundError, match=words):
            load_saved(copy)


def test_a_tokenizer_of_another_size_is_refused(folder: Path) -> None:
    ByteTokenizer().save(folder)
    with pytest.raises(ValueError, match="vocabulary"):
        load_saved(folder)


def test_an_encoder_may_have_tokens_that_texts_have_not(tmp_path: Path) -> None:
    for more in (0, 4):
        check_vocabulary(Encoder(EncoderConfig(TOKENIZER.vocab_size + more, **SIZES)), TOKENIZER)
    with pytest.raises(ValueError, match="vocabulary"):
        check_vocabulary(Encoder(EncoderConfig(TOKENIZER.vocab_size + 3, **SIZES)), TOKENIZER)
    with pytest.raises(ValueError, match="vocabulary"):
        check_vocabulary(GPT(GPTConfig(TOKENIZER.vocab_size + 4, **SIZES)), TOKENIZER)
    Encoder(EncoderConfig(TOKENIZER.vocab_size, **SIZES)).save_pretrained(tmp_path)
    TOKENIZER.save(tmp_path)
    with pytest.raises(ValueError, match=r"which pygpt\.Encoder reads, not GPT: it does not write"):
        load_model(tmp_path)
