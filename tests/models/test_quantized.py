from __future__ import annotations

import copy
import json

import pytest
import safetensors.torch
import torch

from pygpt import GPT, ops, reference
from pygpt.models import huggingface, memory
from pygpt.nn import QuantizedLinear
from pygpt.ops.quantized_linear import SCHEMES
from tests.models.test_config import small
from tests.models.test_gpt import lively, tokens
from tests.support import assert_same_bits, threads

CONFIGS = {
    "gpt2": small(),
    "untied": small(tie_head=False, bias=False, activation="relu"),
    "llama": small(
        activation="swiglu", norm_type="rms", positions="rope", bias=False, num_kv_heads=2, tie_head=False, qk_norm=True
    ),
    "geglu": small(activation="geglu", norm="post"),
}


def with_plain_weights(model: GPT) -> GPT:
    """The model that a quantised one stands for: its head is not tied, since the table is not quantised."""
    plain = GPT(small(**{**model.config.to_dict(), "tie_head": False}))
    stored = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            shape = module.out_features, module.in_features
            stored[f"{name}.weight"] = reference.quantized_weight(module.weight, *shape, module.scheme)
    plain.load_state_dict(stored)
    return plain.eval()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_computes_with_the_rounded_weights(config, scheme):
    model = lively(config)
    before = model(ids := tokens(model, 2, 11))
    table = model.token_embedding.weight.clone()
    assert model.quantize(scheme) is model
    assert model.quantization == scheme and not model.training
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear | QuantizedLinear)]
    assert all(isinstance(m, QuantizedLinear) for m in linears)
    assert_same_bits(model.token_embedding.weight, table, "the table stays")
    logits, plain = model(ids), with_plain_weights(model)(ids)
    assert logits.dtype == torch.float32
    scale = float(plain.abs().max())
    assert float((logits - plain).abs().max()) < 1e-3 * scale
    assert float((logits - before).abs().max()) < (0.2 if scheme == "int8" else 2.0) * scale
    targets = tokens(model, 2, 11)
    targets[0, 3:5] = -100
    expected = ops.cross_entropy(logits, targets)
    assert_same_bits(model.loss(ids, targets), expected, "loss")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_bits_do_not_depend_on_batch_cache_session_or_threads(scheme, dtype):
    model = lively(CONFIGS["gpt2"], dtype).quantize(scheme)
    ids = tokens(model, 3, 9)
    written = model.generate(ids, max_new_tokens=7, seed=3, top_p=0.9, return_logprobs=True)
    whole = model(written.tokens)
    logprobs = torch.stack(
        [-ops.cross_entropy(whole[:, 8 + i].contiguous(), written.tokens[:, 9 + i], reduction="none") for i in range(7)]
    ).T
    assert_same_bits(written.logprobs, logprobs, "with and without a cache")
    alone = model.generate(ids[1:2], max_new_tokens=7, seed=4, top_p=0.9)
    assert_same_bits(alone, written.tokens[1:2], "a row alone")
    with threads(1), model.session(100):
        again = model.generate(ids, max_new_tokens=7, seed=3, top_p=0.9)
    assert_same_bits(again, written.tokens, "one thread, in a session")
    assert_same_bits(model(ids, lengths=torch.tensor([9, 4, 0]))[1, :4], model(ids[1:2, :4])[0], "padding")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(tmp_path, config, scheme):
    model = lively(config).quantize(scheme)
    assert model.save_pretrained(tmp_path) == "pygpt-quantized"
    loaded = GPT.from_pretrained(tmp_path)
    assert loaded.quantization == scheme and not loaded.training and loaded.config == config
    ids = tokens(model, 2, 11)
    assert_same_bits(loaded(ids), model(ids), "loaded")
    assert_same_bits(copy.deepcopy(model)(ids), model(ids), "copied")
    rounded = GPT.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in rounded.parameters()} == {torch.bfloat16}
    assert rounded.save_pretrained(tmp_path / "again") == "pygpt-quantized"
    assert_same_bits(GPT.from_pretrained(tmp_path / "again")(ids), rounded(ids), "bfloat16")


def test_files_that_do_not_fit_are_refused(tmp_path):
    lively(small()).quantize("int8").save_pretrained(tmp_path)
    config = json.loads((tmp_path / huggingface.CONFIG).read_text())
    weights = safetensors.torch.load_file(tmp_path / huggingface.WEIGHTS)

    def refused(values, stored, words):
        (tmp_path / huggingface.CONFIG).write_text(json.dumps(values))
        safetensors.torch.save_file(stored, tmp_path / huggingface.WEIGHTS)
        with pytest.raises(ValueError, match=words):
            GPT.from_pretrained(tmp_path)

    refused(config | {"quantization": "int3"}, weights, "quantization is 'int3'; pygpt reads int8, int4")
    refused({k: v for k, v in config.items() if k != "quantization"}, weights, "quantization is None")
    refused(config | {"quantization": "int4"}, weights, r"attention\.out\.weight has shape \(.*model that config\.json")
    name = "blocks.0.attention.out.weight"
    refused(config, weights | {name: weights[name].float()}, rf"{name} is torch\.float32; it must be torch\.uint8")
    name = "blocks.0.attention.out.bias"
    refused(config, weights | {name: weights[name].to(torch.uint8)}, rf"{name} is torch\.uint8; it must be floating")
    refused(config, {k: v for k, v in weights.items() if k != "head.weight"}, r"has no weights for head\.weight")
    refused(config | {"model_type": "pygpt"}, weights, "GPTConfig has no field head_quantization, quantization")


def test_training_a_quantised_model_is_refused():
    model = lively(small()).quantize("int8")
    ids = tokens(model, 1, 5)
    with pytest.raises(RuntimeError, match="a quantised model cannot be trained: its weights are whole numbers"):
        model.train()
    assert not model.training and model.eval() is model
    assert not model.loss(ids, ids).requires_grad
    model.requires_grad_(True)
    with pytest.raises(NotImplementedError, match="quantized_linear has no gradient: a quantised model is for"):
        model.loss(ids, ids)


def test_what_cannot_be_quantised_is_refused_and_left_as_it_is():
    model = lively(small())
    with pytest.raises(ValueError, match="scheme must be one of int8, int4, not 'int2'"):
        model.quantize("int2")
    with torch.no_grad():
        model.blocks[-1].feed_forward.down.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="weight must be finite"):
        model.quantize("int4")
    assert model.quantization is None and not any(isinstance(m, QuantizedLinear) for m in model.modules())
    model = lively(small())
    with model.session(), pytest.raises(RuntimeError, match=r"frozen inside model\.session\(\)"):
        model.quantize("int8")
    model.quantize("int8")
    with pytest.raises(ValueError, match="the model is quantised already, as int8; quantise the one it was made from"):
        model.quantize("int4")
    with pytest.raises(ValueError, match=r"computes in float32 or bfloat16, not in torch\.float64"):
        lively(small(), torch.float64).quantize("int8")
    with pytest.raises(ValueError, match="computed on the CPU, not on meta"):
        GPT(small(), "meta").quantize("int8")
    with pytest.raises(ValueError, match="computed on the CPU, not on meta"):
        GPT(small(), "meta", quantization="int8")


def test_room_is_asked_for_before_the_weights_are_made(monkeypatch):
    config = small()
    needed = sum(t.nbytes for t in GPT(config, quantization="int4").state_dict().values())
    monkeypatch.setattr(memory, "free_memory", lambda device: needed if device.type == "cpu" else None)
    GPT(config, quantization="int4")
    with pytest.raises(MemoryError, match=r"the model's .* parameters need .*4 bytes each"):
        GPT(config)
    monkeypatch.setattr(memory, "free_memory", lambda device: needed - 1 if device.type == "cpu" else None)
    with pytest.raises(MemoryError, match=r"the model's weights in int4 need .* GiB free"):
        GPT(config, quantization="int4")
