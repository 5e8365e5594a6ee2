from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pygpt import Seq2Seq, Seq2SeqConfig, reference
from tests.models.test_gpt import loss_and_gradients
from tests.support import assert_same_bits, random_generator, threads

COUNTS = {
    "transformer-base": 63_082_496,
    "transformer-big": 214_245_376,
    "bart-base": 139_420_416,
    "bart-large": 406_291_456,
}
BART = {
    "positions": "learned",
    "position_offset": 2,
    "activation": "gelu",
    "embedding_norm": True,
    "scale_embedding": False,
}


def small(**changes) -> Seq2SeqConfig:
    values = {"vocab_size": 29, "context_length": 16, "num_layers": 2, "num_heads": 4, "embedding_dim": 24}
    return Seq2SeqConfig(**{**values, **changes})


def lively(config: Seq2SeqConfig, dtype: torch.dtype = torch.float32) -> Seq2Seq:
    """A model in eval mode whose parameters are all far from their initial values, so that each one matters."""
    torch.manual_seed(random_generator().initial_seed())
    model = Seq2Seq(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3).add_(1.0 if parameter.dim() == 1 else 0.0)
    return model


class Reader:
    """A model that has read a source, called as a `pygpt.GPT` is."""

    def __init__(self, model: Seq2Seq, source: torch.Tensor) -> None:
        self._model, self._source = model, source

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        return self._model(self._source, ids)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        return self._model.hidden(self._source, ids)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(29, shape)


@pytest.mark.parametrize("name", Seq2SeqConfig.presets)
def test_presets_have_their_published_size(name):
    config = Seq2SeqConfig.preset(name)
    assert sum(p.numel() for p in Seq2Seq(config, device="meta").parameters()) == COUNTS[name]
    assert config.num_parameters() == COUNTS[name]


@pytest.mark.parametrize(
    "changes",
    [{}, BART, {"bias": False}, {"tie_head": False}, {"norm": "pre"}, {"num_decoder_layers": 1}, {"num_kv_heads": 2}],
)
def test_parameters_are_counted_and_configs_come_back(changes):
    config = small(**changes)
    assert sum(p.numel() for p in Seq2Seq(config, device="meta").parameters()) == config.num_parameters()
    assert Seq2SeqConfig.from_dict(config.to_dict()) == config
    assert config.num_decoder_layers == changes.get("num_decoder_layers", 2)


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"num_decoder_layers": 0}, ValueError, "num_decoder_layers must be at least 1, but is 0"),
        ({"position_offset": -1}, ValueError, "position_offset must be at least 0"),
        ({"scale_embedding": None}, TypeError, "scale_embedding must be True or False"),
        ({"end_token": 29}, ValueError, "end_token must be less than vocab_size, 29, but is 29"),
        ({"start_token": 1.0}, TypeError, "start_token must be an integer"),
    ],
)
def test_bad_configs(changes, error, words):
    with pytest.raises(error, match=words):
        small(**changes)


def plain_logits(model: Seq2Seq, p: dict[str, torch.Tensor], source: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The 2017 Transformer in plain PyTorch, with these parameters."""
    config = model.config

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], config.layer_norm_eps)

    def linear(x, name):
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def attend(x, context, name, causal):
        width = config.embedding_dim
        weight, bias = p[f"{name}.qkv.weight"], p[f"{name}.qkv.bias"]
        q = F.linear(x, weight[:width], bias[:width])
        k, v = F.linear(context, weight[width:], bias[width:]).chunk(2, -1)
        q, k, v = (t.view(*t.shape[:2], config.num_heads, -1).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return linear(out.transpose(1, 2).flatten(2), f"{name}.out")

    def embed(ids):
        x = F.embedding(ids, p["token_embedding.weight"]) * config.embedding_dim**0.5
        time, width = ids.shape[1], config.embedding_dim
        angle = torch.arange(time).double().view(-1, 1) / 10000 ** (torch.arange(0, width, 2).double() / width)
        return x + torch.stack([angle.sin(), angle.cos()], -1).flatten(1).to(x.dtype)

    def feed_forward(x, name):
        return linear(F.relu(linear(x, f"{name}.up")), f"{name}.down")

    memory, x = embed(source), embed(ids)
    for layer in range(config.num_layers):
        name = f"encoder.blocks.{layer}"
        memory = norm(memory + attend(memory, memory, f"{name}.attention", False), f"{name}.norm_1")
        memory = norm(memory + feed_forward(memory, f"{name}.feed_forward"), f"{name}.norm_2")
    for layer in range(config.num_decoder_layers):
        name = f"decoder.blocks.{layer}"
        x = norm(x + attend(x, x, f"{name}.attention", True), f"{name}.norm_1")
        x = norm(x + attend(x, memory, f"{name}.cross_attention", False), f"{name}.cross_norm")
        x = norm(x + feed_forward(x, f"{name}.feed_forward"), f"{name}.norm_2")
    return F.linear(x, p["token_embedding.weight"])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_is_the_transformer_of_2017_in_plain_pytorch(smoothing):
    model = lively(small(num_decoder_layers=3))
    source, ids, targets = tokens(2, 7), tokens(2, 5), tokens(2, 5)
    targets[0, 3:] = -100
    ours = loss_and_gradients(model, source, ids, targets, label_smoothing=smoothing)
    ours["logits"] = model(source, ids).detach()
    parameters = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    logits = plain_logits(model, parameters, source, ids)
    loss = F.cross_entropy(logits.transpose(1, 2), targets, label_smoothing=smoothing)
    loss.backward()
    exact = {"loss": loss.detach(), "logits": logits.detach(), **{n: p.grad for n, p in parameters.items()}}
    for name, right in exact.items():
        distance = float((ours[name].double() - right).abs().max())
        # The gradient of a key's bias is 0 but for rounding: what is added to every score changes no weight.
        assert distance <= 2e-5 * max(1.0, float(right.abs().max())), f"{name} is off by {distance}"


@pytest.mark.parametrize("changes", [{}, BART, {"norm": "pre"}])
def test_padded_rows_are_the_rows_alone(changes):
    model = lively(small(**changes))
    source, ids = tokens(4, 8), tokens(4, 6)
    source_lengths, lengths = torch.tensor([8, 3, 1, 0]), torch.tensor([6, 2, 0, 1])
    for row in range(4):
        source[row, source_lengths[row] :] = -3  # padding may be anything
        ids[row, lengths[row] :] = 999
    logits = model(source, ids, source_lengths, lengths)
    for row, (s, t) in enumerate(zip(source_lengths.tolist(), lengths.tolist(), strict=True)):
        if t:
            alone = model(source[row : row + 1, :s], ids[row : row + 1, :t])
            assert_same_bits(logits[row : row + 1, :t], alone, f"row {row}")
        assert (logits[row, t:] == 0).all()


def test_padding_has_no_loss():
    model = lively(small())
    source, ids, targets, lengths = tokens(2, 5), tokens(2, 6), tokens(2, 6), torch.tensor([6, 2])
    got = model.loss(source, ids, targets, lengths=lengths, label_smoothing=0.2)
    counted = targets.masked_fill(torch.arange(6) >= lengths.unsqueeze(1), -100)
    logits = model(source, ids, lengths=lengths)
    torch.testing.assert_close(got, F.cross_entropy(logits.transpose(1, 2), counted, label_smoothing=0.2))
    assert float(model.loss(source, ids, targets, lengths=torch.zeros(2, dtype=torch.int64)).detach()) == 0


def test_bits_do_not_depend_on_threads():
    model = lively(small(**BART))
    source, ids, targets = tokens(3, 8), tokens(3, 6), tokens(3, 6)
    results = loss_and_gradients(model, source, ids, targets, label_smoothing=0.1)
    for count in (1, 3):
        with threads(count):
            for name, value in loss_and_gradients(model, source, ids, targets, label_smoothing=0.1).items():
                assert_same_bits(value, results[name], f"{name} on {count} threads")


def test_recomputed_blocks_give_the_same_bits_with_dropout():
    model = lively(small(dropout=0.2)).train()
    source, ids, targets = tokens(3, 8), tokens(3, 6), tokens(3, 6)
    runs = []
    for recompute in (False, True):
        model.checkpoint_blocks = recompute
        torch.manual_seed(5)
        runs.append(loss_and_gradients(model, source, ids, targets))
    for name, value in runs[0].items():
        assert_same_bits(value, runs[1][name], name)


@pytest.mark.parametrize("changes", [{}, BART, {"norm": "pre", "num_kv_heads": 1}])
def test_greedy_with_a_cache_is_greedy_without(changes):
    model = lively(small(**changes))
    source, source_lengths = tokens(3, 8), torch.tensor([8, 2, 5])
    out = model.generate(source, 9, temperature=0, source_lengths=source_lengths, return_logprobs=True)
    assert out.tokens.shape == (3, 10) and (out.tokens[:, 0] == 0).all()
    for row in range(3):
        ids, alone = out.tokens[row : row + 1], source[row : row + 1, : source_lengths[row]]
        logits = model(alone, ids[:, :-1])
        assert torch.equal(logits.argmax(-1), ids[:, 1:]), f"row {row}"
        expected = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
        torch.testing.assert_close(out.logprobs[row], expected)


def test_the_source_is_read_once(monkeypatch):
    model = lively(small())
    calls = {"encoder": 0, "keys": 0}
    encode, remember = model.encoder.forward, model.decoder.blocks[0].cross_attention.keys_values

    def count(name, function):
        def counted(*arguments, **options):
            calls[name] += 1
            return function(*arguments, **options)

        return counted

    monkeypatch.setattr(model.encoder, "forward", count("encoder", encode))
    monkeypatch.setattr(model.decoder.blocks[0].cross_attention, "keys_values", count("keys", remember))
    model.generate(tokens(2, 5), 8, num_samples=3)
    assert calls == {"encoder": 1, "keys": 1}


def test_samples_of_one_source_stand_together_and_rows_do_not_matter():
    model = lively(small())
    source = tokens(2, 6)
    seeds = torch.tensor([5, 6, 7, 8])
    out = model.generate(source, 7, seed=seeds, num_samples=2)
    for row in range(4):
        alone = model.generate(source[row // 2 : row // 2 + 1], 7, seed=int(seeds[row]))
        assert torch.equal(out[row : row + 1], alone)


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_what_leaves_one_token_is_greedy(options):
    model = lively(small())
    source = tokens(2, 6)
    greedy = model.generate(source, 7, temperature=0, stop_tokens=())
    assert torch.equal(model.generate(source, 7, seed=3, stop_tokens=(), **options), greedy)
    assert not torch.equal(model.generate(source, 7, seed=3, temperature=2.0, stop_tokens=()), greedy)


def test_repeated_tokens_are_less_probable():
    model = lively(small())
    source = tokens(1, 6)
    ids = torch.zeros(1, 1, dtype=torch.int64)
    for _ in range(9):
        logits = reference.repetition_penalty(model(source, ids)[0, -1].detach(), ids[0], 3.0)
        ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
    out = model.generate(source, 9, temperature=0, repetition_penalty=3.0, stop_tokens=())
    assert torch.equal(out, ids)


def test_generation_ends_and_begins_as_the_config_says():
    model = lively(small(start_token=3, pad_token=1))
    source = tokens(8, 6)
    end = int(model.generate(source, 12, stop_tokens=())[0, 5])  # which row 0 writes, then, in the middle
    model.config = replace(model.config, end_token=end)
    out = model.generate(source, 12)
    assert (out[:, 0] == 3).all() and end in out[0, 1:6]
    for row in out.tolist():
        if end in row[1:]:
            assert set(row[row.index(end, 1) + 1 :]) <= {1}
    endless = model.generate(source, 3, stop_tokens=())
    begun = model.generate(source, 4, ids=torch.full((8, 2), 7), prompt_lengths=[1, 2] * 4, temperature=0)
    assert (
        endless.shape == (8, 4) and begun.shape == (8, 6) and (begun[:, 0] == 7).all() and (begun[1::2, 1] == 7).all()
    )


def test_training_mode_comes_back_and_weights_are_packed():
    model = lively(small(dropout=0.3, context_length=64)).train()
    source = tokens(2, 5)
    long = model.generate(source, 40, temperature=0)
    assert model.training and model.packed_head is None
    assert torch.equal(model.generate(source, 12, temperature=0), long[:, :13])


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda m: m(tokens(1, 17), tokens(1, 2)), ValueError, "context_length is 16, but source has 17"),
        (lambda m: m(tokens(1, 2), tokens(1, 17)), ValueError, "context_length is 16, but ids has 17"),
        (
            lambda m: m(tokens(2, 2), tokens(3, 2)),
            ValueError,
            "ids must have a row for each of the 2 sources, but has 3",
        ),
        (lambda m: m(tokens(2, 2).float(), tokens(2, 2)), TypeError, "source must be int64, not torch.float32"),
        (lambda m: m(tokens(1, 2), tokens(1, 2), torch.tensor([3])), ValueError, "source_lengths must be .* at most 2"),
        (lambda m: m.loss(tokens(1, 2), tokens(1, 2), tokens(1, 3)), ValueError, "targets must have the shape of ids"),
        (
            lambda m: m.loss(tokens(1, 2), tokens(1, 2), tokens(1, 2), label_smoothing=1),
            ValueError,
            "label_smoothing must be at least 0 and less than 1, but is 1",
        ),
        (lambda m: m.generate(tokens(1, 2), 16), ValueError, "context_length is 16"),
        (
            lambda m: m.generate(tokens(2, 2), ids=tokens(1, 1)),
            ValueError,
            "a row for each of the 2 sources, but has 1",
        ),
        (lambda m: m.generate(tokens(1, 2), source_lengths=[3]), ValueError, "source_lengths must be .* at most 2"),
        (lambda m: Seq2Seq(None), TypeError, "config must be a Seq2SeqConfig"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call(Seq2Seq(small()))
