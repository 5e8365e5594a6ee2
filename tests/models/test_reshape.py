"""A model with further tokens, labels and other heads keeps what it knew."""

import pytest
import torch

from pygpt import GPT, Encoder, EncoderConfig, GPTConfig, Seq2Seq, Seq2SeqConfig
from pygpt.models.reshape import reshaped

SIZES = {"context_length": 16, "num_layers": 2, "num_heads": 2, "embedding_dim": 8}
IDS = torch.arange(10).view(2, 5)


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_leave_the_others_logits_alone(tied: bool) -> None:
    model = GPT(GPTConfig(vocab_size=11, tie_head=tied, **SIZES))
    more = reshaped(model, seed=3, vocab_size=14)
    assert more.config.vocab_size == 14 and model.config.vocab_size == 11
    assert torch.equal(more(IDS)[..., :11], model(IDS))
    new = more.token_embedding.weight[11:]
    assert (new - model.token_embedding.weight.mean(0)).abs().max() < 0.01
    assert not torch.equal(new[0], new[1])
    assert torch.equal(reshaped(model, seed=3, vocab_size=14)(IDS), more(IDS))
    assert not torch.equal(reshaped(model, seed=4, vocab_size=14)(IDS), more(IDS))
    with pytest.raises(ValueError, match="does not fit into"):
        reshaped(model, vocab_size=10)


def test_a_quantised_model_keeps_its_shape() -> None:
    model = GPT(GPTConfig(vocab_size=11, **SIZES)).quantize("int8")
    with pytest.raises(ValueError, match="a quantised model keeps its shape"):
        reshaped(model, vocab_size=12)


def test_an_encoder_decoder_grows_too() -> None:
    model = Seq2Seq(Seq2SeqConfig(vocab_size=11, **SIZES))
    assert torch.equal(reshaped(model, vocab_size=12)(IDS, IDS)[..., :11], model(IDS, IDS))


def test_drawing_leaves_the_random_stream_alone() -> None:
    model = GPT(GPTConfig(vocab_size=11, **SIZES))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    reshaped(model, seed=8, vocab_size=12)
    assert torch.equal(torch.rand(3), expected)


def test_an_encoder_gets_labels_for_its_other_heads() -> None:
    model = Encoder(EncoderConfig(vocab_size=11, **SIZES)).eval()
    labels = reshaped(model, labels=("yes", "no", "maybe"), mlm_head=False, nsp_head=False, vocab_size=12)
    assert torch.equal(labels(IDS), model(IDS)) and not labels.training
    assert labels.label_logits(labels(IDS)).shape == (2, 3)
    assert sum(p.numel() for p in labels.parameters()) == labels.config.num_parameters()
