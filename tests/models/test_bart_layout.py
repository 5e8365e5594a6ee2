from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pygpt import Seq2Seq
from tests.models.test_seq2seq import BART, lively, small
from tests.support import assert_as_peers, assert_same_bits


def theirs(**changes) -> transformers.BartForConditionalGeneration:
    sizes = {"vocab_size": 61, "max_position_embeddings": 32, "d_model": 48, "encoder_layers": 2, "decoder_layers": 3}
    heads = {"encoder_attention_heads": 3, "decoder_attention_heads": 3, "encoder_ffn_dim": 80, "decoder_ffn_dim": 80}
    torch.manual_seed(0)
    config = transformers.BartConfig(**{**sizes, **heads, **changes})
    model = transformers.BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def assert_same_model(ours: Seq2Seq, hf: transformers.BartForConditionalGeneration) -> None:
    """Logits, loss and gradients within 1e-4; ids are from 3 on, since theirs gives padding no gradient."""
    source, ids, targets = (torch.randint(3, 61, (3, n)) for n in (17, 11, 11))
    source_lengths = torch.tensor([17, 4, 9])
    seen = torch.arange(17) < source_lengths.unsqueeze(1)
    targets[1, 6:] = -100
    ours.zero_grad()
    hf.zero_grad()
    right = hf(source, attention_mask=seen.long(), decoder_input_ids=ids, labels=targets)
    torch.testing.assert_close(ours(source, ids, source_lengths), right.logits, rtol=0, atol=1e-4)
    loss = ours.loss(source, ids, targets, source_lengths)
    torch.testing.assert_close(loss, right.loss, rtol=0, atol=1e-4)
    loss.backward()
    right.loss.backward()
    gradients = {name: parameter.grad for name, parameter in hf.named_parameters()}
    pairs = {
        "token_embedding": "shared",
        "encoder.position_embedding": "encoder.embed_positions",
        "decoder.position_embedding": "decoder.embed_positions",
        "encoder.embedding_norm": "encoder.layernorm_embedding",
        "encoder.blocks.1.attention.out": "encoder.layers.1.self_attn.out_proj",
        "encoder.blocks.0.norm_2": "encoder.layers.0.final_layer_norm",
        "decoder.blocks.2.cross_attention.out": "decoder.layers.2.encoder_attn.out_proj",
        "decoder.blocks.0.cross_norm": "decoder.layers.0.encoder_attn_layer_norm",
        "decoder.blocks.1.feed_forward.up": "decoder.layers.1.fc1",
        "decoder.blocks.1.norm_1": "decoder.layers.1.self_attn_layer_norm",
    }
    for mine, name in pairs.items():
        for leaf, parameter in ours.get_submodule(mine).named_parameters():
            assert_as_peers(parameter.grad, gradients[f"model.{name}.{leaf}"], f"{mine}.{leaf}")
    names = [f"model.decoder.layers.1.encoder_attn.{part}_proj.weight" for part in "qkv"]
    right_qkv = torch.cat([gradients[name] for name in names])
    assert_as_peers(ours.decoder.blocks[1].cross_attention.qkv.weight.grad, right_qkv, "qkv")


@pytest.mark.parametrize("changes", [{}, {"activation_function": "relu", "scale_embedding": True}])
def test_logits_loss_and_gradients_are_transformers_and_files_are_read_both_ways(tmp_path, changes):
    hf = theirs(**changes)
    hf.save_pretrained(tmp_path / "theirs")
    ours = Seq2Seq.from_pretrained(tmp_path / "theirs")
    assert not ours.training and (ours.config.start_token, ours.config.end_token, ours.config.pad_token) == (2, 2, 1)
    assert_same_model(ours, hf)
    assert ours.save_pretrained(tmp_path / "ours") == "bart"
    again, report = transformers.BartForConditionalGeneration.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for (key, before), (_, after) in zip(hf.named_parameters(), again.named_parameters(), strict=True):
        assert_same_bits(before.detach(), after.detach(), key)


@torch.no_grad()
def test_greedy_text_is_transformers(tmp_path):
    hf = theirs()
    hf.save_pretrained(tmp_path)
    ours, source = Seq2Seq.from_pretrained(tmp_path), torch.randint(3, 61, (4, 12))
    options = {"num_beams": 1, "do_sample": False, "forced_bos_token_id": None, "forced_eos_token_id": None}
    right = hf.generate(source, max_new_tokens=20, **options)
    mine = ours.generate(source, 20, temperature=0)
    assert torch.equal(mine[:, : right.shape[1]], right) and (mine[:, right.shape[1] :] == 1).all()


def test_old_spellings_are_read(tmp_path):
    hf = theirs()
    hf.save_pretrained(tmp_path)
    tensors = {name.removeprefix("model."): t for name, t in load_file(tmp_path / "model.safetensors").items()}
    shared = hf.model.shared.weight.detach()
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = shared.clone()
    tensors["final_logits_bias"] = torch.zeros(1, 61)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_model(Seq2Seq.from_pretrained(tmp_path), hf)
    tensors["final_logits_bias"][0, 3] = 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="final_logits_bias is not zero"):
        Seq2Seq.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "changes", [{}, {**BART, "position_offset": 0}, {**BART, "norm": "pre"}, {**BART, "num_kv_heads": 2}]
)
def test_what_bart_cannot_be_is_saved_as_our_own(tmp_path, changes):
    model = lively(small(**changes, end_token=2))
    assert model.save_pretrained(tmp_path) == "pygpt-seq2seq"
    again = Seq2Seq.from_pretrained(tmp_path)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert_same_bits(tensor, again.state_dict()[name], name)
    source, ids = torch.randint(29, (2, 5)), torch.randint(29, (2, 3))
    assert_same_bits(again(source, ids), model(source, ids), "logits")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"normalize_before": True}, "normalize_before is True"),
        ({"decoder_ffn_dim": 81}, "encoder_ffn_dim and decoder_ffn_dim differ"),
        ({"decoder_attention_heads": 6}, "encoder_attention_heads and decoder_attention_heads differ"),
        ({"activation_function": "silu"}, "activation_function is 'silu'"),
        ({"decoder_layers": 4}, r"no weights for decoder\.layers\.3\."),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, words):
    theirs().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=words):
        Seq2Seq.from_pretrained(tmp_path)
