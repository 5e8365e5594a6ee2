"""What the three models have in common: how they are made, copied, told apart."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from pygpt import GPT, Encoder, EncoderConfig, GPTConfig, Seq2Seq, Seq2SeqConfig
from pygpt.models import Transformer
from tests.support import assert_same_bits

SIZES: dict[str, Any] = {"vocab_size": 11, "context_length": 16, "num_layers": 2, "num_heads": 2, "embedding_dim": 8}
MODELS = {GPT: GPTConfig, Encoder: EncoderConfig, Seq2Seq: Seq2SeqConfig}
each_model = pytest.mark.parametrize("kind", MODELS)


def made(kind: type[Any], **changes: Any) -> Any:
    torch.manual_seed(3)
    return kind(MODELS[kind](**SIZES, **changes)).eval()


def hidden(model: Any) -> torch.Tensor:
    ids = torch.arange(10).view(2, 5)
    with torch.no_grad():
        return model(ids, ids) if isinstance(model, Seq2Seq) else model(ids)


@each_model
def test_the_configuration_and_the_dtype_are_checked(kind):
    other = GPTConfig if kind is Encoder else EncoderConfig
    with pytest.raises(TypeError, match=f"config must be a {MODELS[kind].__name__}, not {other.__name__}"):
        kind(other(**SIZES))
    with pytest.raises(TypeError, match=r"dtype must be a torch\.dtype of floating-point numbers, not torch\.int64"):
        kind(MODELS[kind](**SIZES), dtype=torch.int64)
    with pytest.raises(MemoryError, match="GiB"):
        kind(MODELS[kind](**{**SIZES, "vocab_size": 10**12}))


@each_model
def test_parameters_are_as_many_as_the_configuration_says(kind):
    for changes in ({}, {"tie_head": False}, {"bias": False}):
        model = kind(MODELS[kind](**SIZES, **changes), device="meta")
        assert sum(p.numel() for p in model.parameters()) == model.config.num_parameters()
        assert all(p.is_meta for p in model.parameters())


@each_model
def test_the_same_seed_makes_the_same_model(kind):
    for a, b in zip(made(kind).parameters(), made(kind).parameters(), strict=True):
        assert_same_bits(a, b, "parameters")


@each_model
def test_copies_are_models_without_the_session(kind):
    model = made(kind)
    right = hidden(model)
    with model.session(100):
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for each in copies:
        assert_same_bits(hidden(each), right, "a copy")
        with each.session(), each.session() as inner:
            assert inner is not None, "a session in a session is the outer one"


@each_model
def test_a_folder_tells_which_class_reads_it(kind, tmp_path):
    model = made(kind)
    model.save_pretrained(tmp_path)
    assert type(Transformer.from_pretrained(tmp_path)) is kind
    assert_same_bits(hidden(kind.from_pretrained(tmp_path)), hidden(model), "loaded")
    for other in set(MODELS) - {kind}:
        with pytest.raises(ValueError, match=rf"which pygpt\.{kind.__name__} reads, not {other.__name__}"):
            other.from_pretrained(tmp_path)


@each_model
def test_a_tied_head_is_the_embedding(kind):
    tied = made(kind, tie_head=True)
    assert tied.head_weight is tied.token_embedding.weight
    free = made(kind, tie_head=False)
    assert free.head_weight is free.head.weight and free.head_weight is not free.token_embedding.weight
