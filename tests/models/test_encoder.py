from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from pygpt import Encoder, EncoderConfig
from tests.models.test_gpt import loss_and_gradients
from tests.support import assert_same_bits, random_generator, threads

COUNTS = {"bert-base": 110_106_428, "bert-large": 336_226_108}  # BertForPreTraining


def small(**changes) -> EncoderConfig:
    values = {"vocab_size": 29, "context_length": 16, "num_layers": 2, "num_heads": 4, "embedding_dim": 24}
    return EncoderConfig(**{**values, **changes})


def lively(config: EncoderConfig, dtype: torch.dtype = torch.float32) -> Encoder:
    """A model in eval mode whose parameters are all far from their initial values, so that each one matters."""
    torch.manual_seed(random_generator().initial_seed())
    model = Encoder(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3).add_(1.0 if parameter.dim() == 1 else 0.0)
    return model


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(29, shape)


@pytest.mark.parametrize("name", EncoderConfig.presets)
def test_presets_have_their_published_size(name):
    config = EncoderConfig.preset(name)
    assert sum(p.numel() for p in Encoder(config, device="meta").parameters()) == COUNTS[name]
    assert config.num_parameters() == COUNTS[name]


def test_bert_without_heads_has_its_published_size():
    config = EncoderConfig.preset("bert-base", mlm_head=False, nsp_head=False)
    assert config.num_parameters() == 109_482_240  # BertModel


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": False},
        {"tie_head": False},
        {"norm": "pre"},
        {"num_segments": 0},
        {"positions": "sinusoidal"},
        {"nsp_head": False},
        {"mlm_head": False},
        {"nsp_head": False, "pooler": False, "mlm_head": False},
        {"labels": ("yes", "no"), "bias": False},
        {"num_kv_heads": 2, "head_dim": 5, "hidden_dim": 7},
    ],
)
def test_parameters_are_counted_and_configs_come_back(changes):
    config = small(**changes)
    assert sum(p.numel() for p in Encoder(config, device="meta").parameters()) == config.num_parameters()
    assert EncoderConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"num_segments": -1}, ValueError, "num_segments must be at least 0, but is -1"),
        ({"pooler": 1}, TypeError, "pooler must be True or False, not 1"),
        ({"pooler": False}, ValueError, "nsp_head needs the pooler"),
        ({"norm": "both"}, ValueError, "norm must be one of"),
        ({"context_length": 0}, ValueError, "context_length must be at least 1"),
        ({"labels": ("one",)}, ValueError, "labels must be none, or two or more, each once, but are one"),
        ({"labels": ("one", "one")}, ValueError, "labels must be none, or two or more"),
        ({"labels": "yes"}, TypeError, "labels must be a tuple of names, not 'yes'"),
        ({"labels": ("one", 2)}, TypeError, "labels must be names"),
        ({"labels": ("a", "b"), "nsp_head": False, "pooler": False}, ValueError, "labels need the pooler"),
    ],
)
def test_bad_configs(changes, error, words):
    with pytest.raises(error, match=words):
        small(**changes)


def test_bad_names():
    with pytest.raises(ValueError, match="no preset 'gpt2'; there are bert-base, bert-large"):
        EncoderConfig.preset("gpt2")
    with pytest.raises(ValueError, match="EncoderConfig has no field experts"):
        EncoderConfig.from_dict({**small().to_dict(), "experts": 2})


def test_every_token_sees_all_others_in_its_row():
    model = lively(small())
    ids = tokens(1, 7)
    before = model(ids)
    for place in (0, 6):
        changed = ids.clone()
        changed[0, place] = (ids[0, place] + 1) % 29
        assert (model(changed) != before).any(-1).all()


@pytest.mark.parametrize("changes", [{}, {"attention_windows": (3, None)}, {"norm": "pre"}])
def test_a_padded_row_is_the_row_alone(changes):
    model = lively(small(**changes))
    ids, lengths = tokens(4, 9), torch.tensor([9, 4, 0, 1])
    segments = torch.randint(2, (4, 9))
    for row, length in enumerate(lengths.tolist()):
        ids[row, length:] = -7  # padding may be anything
        segments[row, length:] = 99
    hidden = model(ids, segments, lengths)
    for row, length in enumerate(lengths.tolist()):
        if length:
            alone = model(ids[row : row + 1, :length], segments[row : row + 1, :length])
            assert_same_bits(hidden[row : row + 1, :length], alone, f"row {row}")
        assert (hidden[row, length:] == 0).all()


def test_the_losses_are_those_of_the_logits_and_add_up():
    model = lively(small())
    ids, segments, lengths = tokens(3, 9), torch.randint(2, (3, 9)), torch.tensor([9, 2, 5])
    targets, following = tokens(3, 9), torch.tensor([0, -100, 1])
    targets[:, ::2] = -100
    hidden = model(ids, segments, lengths)
    counted = targets.masked_fill(torch.arange(9) >= lengths.unsqueeze(1), -100)
    masked = model.loss(ids, targets, segments, lengths)
    torch.testing.assert_close(masked, F.cross_entropy(model.mlm_logits(hidden).transpose(1, 2), counted))
    following_loss = model.loss(ids, None, segments, lengths, following)
    torch.testing.assert_close(following_loss, F.cross_entropy(model.nsp_logits(hidden), following))
    both = model.loss(ids, targets, segments, lengths, following)
    torch.testing.assert_close(both, masked + following_loss)


def test_the_loss_of_labels_is_that_of_their_logits():
    model = lively(small(labels=("a", "b", "c"), mlm_head=False))
    ids, labels = tokens(4, 7), torch.tensor([2, 0, -100, 1])
    loss = model.loss(ids, labels=labels)
    torch.testing.assert_close(loss, F.cross_entropy(model.label_logits(model(ids)), labels))
    both = model.loss(ids, next_sentence=torch.tensor([0, 1, 1, 0]), labels=labels)
    torch.testing.assert_close(both, loss + model.loss(ids, next_sentence=torch.tensor([0, 1, 1, 0])))


def test_bits_do_not_depend_on_batch_or_threads():
    model = lively(small())
    ids, targets = tokens(5, 9), tokens(5, 9)
    hidden, results = model(ids), loss_and_gradients(model, ids, targets, next_sentence=torch.tensor([0, 1, 1, 0, 1]))
    for row in range(5):
        assert_same_bits(hidden[row : row + 1], model(ids[row : row + 1]), f"row {row} alone")
    for count in (1, 3):
        with threads(count):
            again = loss_and_gradients(model, ids, targets, next_sentence=torch.tensor([0, 1, 1, 0, 1]))
            for name, value in again.items():
                assert_same_bits(value, results[name], f"{name} on {count} threads")


def test_embeddings_are_normalised_means():
    model = lively(small())
    ids, lengths = tokens(3, 8), torch.tensor([8, 3, 0])
    vectors = model.embed(ids, lengths)
    for row, length in enumerate([8, 3]):
        mean = model(ids[row : row + 1, :length]).mean(1)
        torch.testing.assert_close(vectors[row : row + 1], F.normalize(mean))
    assert (vectors[2] == 0).all()
    model = lively(small(dropout=0.3))
    right = model.embed(ids, lengths)
    assert_same_bits(model.train().embed(ids, lengths), right, "of a model in training")
    assert model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    model = lively(small(), dtype)
    ids = tokens(2, 5)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    hidden = model(ids)
    assert hidden.dtype == dtype
    loss = model.loss(ids, ids, next_sentence=torch.tensor([0, 1]))
    assert model.mlm_logits(hidden).dtype == model.nsp_logits(hidden).dtype == loss.dtype == expected


def test_initial_weights():
    torch.manual_seed(random_generator().initial_seed())
    model = Encoder(small(embedding_dim=64, num_layers=4, init_std=0.1))
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if name.endswith("bias"):
            assert (value == 0).all(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        else:
            assert value.std() == pytest.approx(0.1, rel=0.25), name


def test_dropout_acts_in_training_only():
    model = lively(small(dropout=0.3))
    ids = tokens(2, 9)
    assert_same_bits(model(ids), model(ids), "eval")
    model.train()
    assert not torch.equal(model(ids), model(ids))


@torch.no_grad()
def test_a_session_packs_and_gives_the_same_bits():
    model = lively(small())
    ids = tokens(2, 5)
    before = model(ids)
    with model.session():
        for _ in range(25):
            assert_same_bits(model(ids), before, "hidden")
        assert model.packed_head is not None


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (([[1, 2]],), TypeError, "ids must be a tensor"),
        ((torch.zeros(1, 17, dtype=torch.int64),), ValueError, "context_length is 16, but ids has 17"),
        ((torch.full((1, 3), 29),), ValueError, "29"),
        (
            (torch.zeros(1, 3, dtype=torch.int64), torch.full((1, 3), 2)),
            ValueError,
            "segments .* than 2, but has 2",
        ),
        ((torch.zeros(1, 3, dtype=torch.int64), torch.full((1, 3), -1)), ValueError, "segments must be at least 0"),
        ((torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 2)), ValueError, "segments must have the shape of ids"),
        ((torch.zeros(1, 3, dtype=torch.int64), None, torch.tensor([4])), ValueError, "lengths must be .* at most 3"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        Encoder(small())(*arguments)


def test_absent_heads_are_named():
    bare = Encoder(small(pooler=False, mlm_head=False, nsp_head=False, num_segments=0))
    ids = tokens(2, 3)
    hidden = bare(ids)
    calls = {
        "no pooler": lambda: bare.pool(hidden),
        "no masked-LM head": lambda: bare.loss(ids, ids),
        "no next-sentence head": lambda: bare.loss(ids, next_sentence=torch.tensor([0, 1])),
        "no labels": lambda: bare.loss(ids, labels=torch.tensor([0, 1])),
        "needs targets, next_sentence or labels": lambda: bare.loss(ids),
        r"segments must be None.*num_segments is 0": lambda: bare(ids, torch.zeros_like(ids)),
        r"targets must have the shape of ids, \(2, 3\)": lambda: Encoder(small()).loss(ids, ids[:1]),
    }
    for words, call in calls.items():
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="config must be a EncoderConfig"):
        Encoder("bert")


def test_recomputed_blocks_give_the_same_bits_with_dropout():
    model = lively(small(dropout=0.2)).train()
    ids, targets = tokens(3, 9), tokens(3, 9)
    runs = []
    for recompute in (False, True):
        model.checkpoint_blocks = recompute
        torch.manual_seed(5)
        runs.append(loss_and_gradients(model, ids, targets, next_sentence=torch.tensor([0, 1, 1])))
    for (name, kept), recomputed in itertools.zip_longest(runs[0].items(), runs[1].values()):
        assert_same_bits(kept, recomputed, name)
