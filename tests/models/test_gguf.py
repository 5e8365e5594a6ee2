"""GGUF files: small ones written here, and SmolLM2-135M-Instruct where its package is installed."""

from __future__ import annotations

import pytest
import torch
import transformers

from pygpt import GPT, Encoder, reference
from pygpt.models import gguf as gguf_models
from pygpt.models.gguf import text_parts
from pygpt.nn import QuantizedLinear
from pygpt.text import BPETokenizer, Document
from tests.models.llama_file import smollm2, write
from tests.models.test_llama_layout import assert_same_model, theirs
from tests.support import assert_same_bits

gguf = pytest.importorskip("gguf", reason="the package gguf, which reads GGUF files, is not installed")


@pytest.mark.parametrize("tied", [False, True])
def test_a_file_is_the_model_that_it_was_written_from(tmp_path, tied):
    hf = theirs(tie_word_embeddings=tied)
    write(tmp_path / "m.gguf", hf, without="output" if tied else "")
    ours = GPT.from_pretrained(tmp_path / "m.gguf")
    assert not ours.training and ours.config.tie_head == tied
    assert_same_model(ours, hf)
    assert ours.save_pretrained(tmp_path / "folder") == "llama"
    assert GPT.from_pretrained(tmp_path / "m.gguf", dtype=torch.bfloat16).head_weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16"])
def test_quantised_weights_are_those_that_gguf_expands(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    hf = theirs(hidden_size=96, intermediate_size=128)
    write(tmp_path / "m.gguf", hf, kind=kind)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.dim() == 2:
                packed = gguf.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.dequantize(packed, kind).copy()))
    assert_same_model(GPT.from_pretrained(tmp_path / "m.gguf"), hf)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_four_bits_may_be_kept(tmp_path, kind, tied):
    """The blocks' weights are the file's, exactly; the head is rounded to 8 bits."""
    path, kinds = tmp_path / "m.gguf", gguf.GGMLQuantizationType
    hf = theirs(hidden_size=96, intermediate_size=128, tie_word_embeddings=tied)
    write(path, hf, kind=kinds[kind], outside_kind=kinds.Q8_0, without="output" if tied else "")
    expanded, kept = gguf_models.load(path), gguf_models.load(path, keep_quantized=True)
    assert (kept.quantization, kept.head_quantization) == ("int4", "int8") and not kept.training
    right = dict(expanded.named_parameters())
    for name, module in kept.named_modules():
        if isinstance(module, QuantizedLinear):
            shape = module.out_features, module.in_features
            weight = reference.quantized_weight(module.weight, *shape, module.scheme)
            if name == "head":
                table = right["token_embedding.weight" if tied else "head.weight"]
                assert float((weight - table).abs().max()) <= float(table.abs().max()) / 250
            else:
                assert torch.equal(weight.float(), right[f"{name}.weight"]), name
    for name, parameter in kept.named_parameters():
        assert_same_bits(parameter, right[name], name)
    ids = torch.randint(kept.config.vocab_size, (2, 7))
    assert float((kept(ids) - expanded(ids)).abs().max()) < 0.02 * float(expanded(ids).abs().max())
    kept.save_pretrained(tmp_path / "folder")
    again = GPT.from_pretrained(tmp_path / "folder")
    assert again.head_quantization == "int8"
    assert_same_bits(again(ids), kept(ids), "saved and loaded")


def test_only_four_bits_are_kept(tmp_path):
    path = tmp_path / "m.gguf"
    write(path, theirs(hidden_size=96, intermediate_size=128), kind=gguf.GGMLQuantizationType.Q8_0)
    assert gguf_models.load(path, keep_quantized=True).quantization is None


def test_what_does_not_fit_is_refused(tmp_path):
    path, hf = tmp_path / "m.gguf", theirs()
    for options, words in (
        ({"architecture": "mamba"}, "architecture 'mamba'; pygpt reads 'llama'"),
        ({"without": "blk.1.ffn_up"}, r"has no layers\.1\.mlp\.up_proj\.weight for a Llama with 3 blocks"),
        ({"extra": "rope_freqs.weight"}, r"holds rope_freqs\.weight, which is no part of"),
    ):
        write(path, hf, **options)
        with pytest.raises(ValueError, match=words):
            GPT.from_pretrained(path)
    write(path, hf, kind=gguf.GGMLQuantizationType.I8, outside_kind=gguf.GGMLQuantizationType.F32)
    for keep in (False, True):
        with pytest.raises(ValueError, match=r"m\.gguf: blk\.0\.\w+\.weight is quantised as I8, which pygpt does not"):
            gguf_models.load(path, keep_quantized=keep)
    write(path, hf)
    with pytest.raises(ValueError, match=r"a GGUF file, which pygpt\.GPT reads, not Encoder"):
        Encoder.from_pretrained(path)
    whole = path.read_bytes()
    for part in (b"", whole[:100], whole[: len(whole) // 2], b"x" * 1000):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=r"m\.gguf is damaged or no GGUF file"):
            GPT.from_pretrained(path)


def test_settings_that_change_the_computation_are_refused(tmp_path):
    path, hf = tmp_path / "m.gguf", theirs()
    rope, heads = "llama.rope", "llama.attention.head_count"
    for settings, words in (
        ({f"{rope}.scaling.type": "linear"}, "stretches its rotary positions"),
        ({f"{rope}.scaling.factor": 2.0}, "stretches its rotary positions"),
        ({f"{rope}.scale_linear": 4.0}, "stretches its rotary positions"),
        ({f"{rope}.dimension_count": 4}, "turns 4 of a head's 8 elements, and pygpt all or none"),
        ({f"{heads}_kv": [2, 2, 2]}, r"m\.gguf: num_kv_heads must be an integer, not \[2, 2, 2\]"),
        ({"llama.context_length": 0}, r"m\.gguf: context_length must be at least 1, but is 0"),
        ({"llama.context_length": None}, r"says nothing of llama\.context_length"),
    ):
        write(path, hf, settings=settings)
        with pytest.raises(ValueError, match=words):
            GPT.from_pretrained(path)
    plain = {f"{rope}.scaling.type": "none", f"{rope}.scaling.factor": 2.0, f"{rope}.dimension_count": 8}
    hf = theirs(num_key_value_heads=6)
    write(path, hf, settings={**plain, f"{heads}_kv": None})  # as many as query heads
    assert_same_model(GPT.from_pretrained(path), hf)


def test_tokenizers_that_do_not_fit_are_refused(tmp_path):
    path, tokenizer = tmp_path / "m.gguf", BPETokenizer.train([Document("", "the cat sat on the mat " * 5)], 280)
    hf, ggml = theirs(vocab_size=tokenizer.vocab_size), "tokenizer.ggml"
    for settings, words in (
        ({f"{ggml}.token_type": [1, 1]}, r"tokens, but types of 2"),
        (
            {f"{ggml}.merges": ["a no-such-token"]},
            "has no tokenizer that the tokenizers library makes: .*no-such-token",
        ),
        ({f"{ggml}.merges": ["ab"]}, "has no tokenizer that the tokenizers library makes"),
        ({f"{ggml}.add_bos_token": True, f"{ggml}.bos_token_id": 10**6}, "bos_token_id is 1000000, but there are"),
        ({f"{ggml}.eos_token_id": 10**6}, "eos_token_id is 1000000, but there are"),
        ({f"{ggml}.pre": "llama-bpe"}, "has a tokenizer of kind 'gpt2', 'llama-bpe'"),
    ):
        write(path, hf, tokenizer=tokenizer, settings=settings)
        with pytest.raises(ValueError, match=words):
            text_parts(path)


TEXTS = [
    "What is the capital of France?",
    "def f(x):\n    return 12345 * x  # naïve",
    "中文, emoji 🙂 and  spaces\t\n\n",
]


def test_the_tokenizer_inside_is_transformers():
    path = smollm2()
    ours, template, begin, end = text_parts(path)
    right = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in (*TEXTS, "<|im_start|>user\nhi<|im_end|>\n"):
        assert ours.encode(text) == right(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ours.encode(text)) == text
    assert ours.token_bytes(end) == b"<|im_end|>" and begin == "" and "im_start" in template
    with pytest.raises(ValueError, match="has no token for the byte 0x"):
        ours.encode("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x0e\x0f\x10\x11\x12")


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_is_transformers():
    """Logits within 1e-3 of logits that reach 30 or so, and the same greedy tokens."""
    path = smollm2()
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate, which is not installed")
    hf = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ours, (tokenizer, *_) = GPT.from_pretrained(path), text_parts(path)
    assert ours.config.num_parameters() == 134_515_008
    for text in TEXTS:
        ids = torch.tensor([tokenizer.encode(text)])
        difference = (ours(ids) - hf(ids).logits).abs().max()
        print("largest difference", float(difference))
        assert difference < 1e-3
        right = hf.generate(ids, max_new_tokens=12, do_sample=False)
        assert torch.equal(ours.generate(ids, right.shape[1] - ids.shape[1], temperature=0), right)
