from __future__ import annotations

import json

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from pygpt import GPT
from pygpt.models.llama_layout import llama_config
from tests.models.test_config import small
from tests.models.test_gpt import lively, loss_and_gradients, tokens
from tests.support import assert_as_peers, assert_same_bits, threads


def theirs(**changes) -> transformers.LlamaForCausalLM:
    sizes = {"vocab_size": 61, "max_position_embeddings": 32, "num_hidden_layers": 3, "hidden_size": 48}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 80}
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **heads, **ids, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def assert_same_model(ours: GPT, hf: transformers.LlamaForCausalLM) -> None:
    """Logits and the gradient of every parameter within 1e-4."""
    ids = torch.randint(61, (2, 17))
    torch.testing.assert_close(ours(ids), hf(ids).logits, rtol=0, atol=1e-4)
    ours.zero_grad()
    hf.zero_grad()
    ours.loss(ids[:, :-1], ids[:, 1:]).backward()
    hf(ids, labels=ids).loss.backward()
    gradients = {name.removeprefix("model."): parameter.grad for name, parameter in hf.named_parameters()}
    layer = "layers.1.self_attn"
    right_qkv = torch.cat([gradients[f"{layer}.{part}_proj.weight"] for part in "qkv"])
    assert_as_peers(ours.blocks[1].attention.qkv.weight.grad, right_qkv, "qkv")
    pairs = {
        "token_embedding": "embed_tokens",
        "norm": "norm",
        "blocks.0.norm_1": "layers.0.input_layernorm",
        "blocks.2.norm_2": "layers.2.post_attention_layernorm",
        "blocks.1.attention.out": "layers.1.self_attn.o_proj",
        "blocks.0.feed_forward.gate": "layers.0.mlp.gate_proj",
        "blocks.1.feed_forward.up": "layers.1.mlp.up_proj",
        "blocks.2.feed_forward.down": "layers.2.mlp.down_proj",
    }
    for mine, name in pairs.items():
        grad = ours.get_submodule(mine).weight.grad
        assert_as_peers(grad, gradients[f"{name}.weight"], mine)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "rms_norm_eps": 0.01},
        {"head_dim": 10, "num_key_value_heads": 6},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}, "hidden_act": "gelu_pytorch_tanh"},
    ],
)
def test_logits_and_gradients_are_transformers_and_files_are_read_both_ways(tmp_path, changes):
    hf = theirs(**changes)
    hf.save_pretrained(tmp_path / "theirs")
    ours = GPT.from_pretrained(tmp_path / "theirs")
    assert_same_model(ours, hf)
    assert ours.save_pretrained(tmp_path / "ours") == "llama"
    again, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for (key, before), (_, after) in zip(hf.named_parameters(), again.named_parameters(), strict=True):
        assert_same_bits(before.detach(), after.detach(), key)
    assert_same_model(ours, again)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; pygpt computes with silu"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type is 'llama3'"),
        ({"num_hidden_layers": 4}, r"no weights for layers\.3\."),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, words):
    theirs().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=words):
        GPT.from_pretrained(tmp_path)


MODERN = {"positions": "rope", "norm_type": "rms", "bias": False, "num_kv_heads": 2, "activation": "geglu"}


@settings(max_examples=10)
@given(
    changes=st.fixed_dictionaries(
        {
            "positions": st.sampled_from(["rope", "learned", "none"]),
            "norm_type": st.sampled_from(["rms", "layer"]),
            "activation": st.sampled_from(["swiglu", "geglu", "relu"]),
            "norm": st.sampled_from(["pre", "post"]),
            "bias": st.booleans(),
            "qk_norm": st.booleans(),
            "tie_head": st.booleans(),
            "num_kv_heads": st.sampled_from([1, 2, 4]),
        }
    )
)
def test_options_go_together_are_counted_and_saved(changes, tmp_path_factory):
    model = lively(small(**changes))
    assert sum(p.numel() for p in model.parameters()) == model.config.num_parameters()
    ids = tokens(model, 2, 9)
    assert model.loss(ids, ids).isfinite()
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    again = GPT.from_pretrained(folder)
    assert again.config.to_dict() == model.config.to_dict()
    assert_same_bits(again(ids), model(ids), "logits")


@pytest.mark.parametrize("changes", [MODERN, {**MODERN, "qk_norm": True, "norm": "post"}])
def test_bits_do_not_depend_on_batch_padding_cache_or_threads(changes):
    model = lively(small(**changes, attention_windows=(None, 4)))
    ids, targets, lengths = tokens(model, 3, 9), tokens(model, 3, 9), torch.tensor([9, 4, 1])
    logits, results = model(ids, lengths=lengths), loss_and_gradients(model, ids, targets)
    for row, length in enumerate(lengths.tolist()):
        assert_same_bits(logits[row : row + 1, :length], model(ids[row : row + 1, :length]), f"row {row} alone")
    for count in (1, 3):
        with threads(count):
            for name, value in loss_and_gradients(model, ids, targets).items():
                assert_same_bits(value, results[name], f"{name} on {count} threads")
    packed = model(ids.view(1, -1), cu_seqlens=torch.tensor([0, 9, 18, 27]))
    assert_same_bits(packed.view(3, 9, -1), model(ids), "packed")
    out = model.generate(ids[:, :4], 8, temperature=0)
    for end in range(4, 12):
        assert torch.equal(model(out[:, :end])[:, -1].argmax(-1), out[:, end])


def test_rope_sees_distances_only():
    """Without other positions, what a token sees does not change when all tokens move."""
    model = lively(small(positions="rope", attention_windows=(4,), num_layers=1, context_length=64))
    ids = tokens(model, 1, 20)
    moved = model(torch.cat([tokens(model, 1, 30), ids], dim=1))[:, -10:]
    torch.testing.assert_close(moved, model(ids)[:, -10:], rtol=1e-3, atol=1e-4)


def test_compiled_recomputed_and_autocast():
    model = lively(small(**MODERN))
    ids = tokens(model, 2, 9)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(ids), model(ids), "compiled")
    model.train()
    kept = loss_and_gradients(model, ids, ids)
    model.checkpoint_blocks = True
    for name, value in loss_and_gradients(model, ids, ids).items():
        assert_same_bits(value, kept[name], name)
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(ids, ids).backward()
    assert GPT(small(**MODERN), dtype=torch.bfloat16)(ids).isfinite().all()


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"positions": "rope", "head_dim": 5}, ValueError, "head_dim must be even for positions 'rope', but is 5"),
        ({"norm_type": "batch"}, ValueError, "norm_type must be one of layer, rms, not 'batch'"),
        ({"qk_norm": 1}, TypeError, "qk_norm must be True or False"),
        ({"rope_theta": -1.0}, ValueError, "rope_theta must be at least 0"),
    ],
)
def test_bad_values(changes, error, words):
    with pytest.raises(error, match=words):
        small(**changes)


def test_smollm2_has_its_published_size():
    sizes = {"vocab_size": 49152, "context_length": 8192, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3}
    config = llama_config(**sizes, embedding_dim=576, hidden_dim=1536, tie_head=True)
    assert config.num_parameters() == 134_515_008
