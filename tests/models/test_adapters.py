"""Low-rank adapters: they begin as nothing, train alone, merge to the same bits, and know their model."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pygpt import GPT, Encoder, EncoderConfig, GPTConfig, Seq2Seq, Seq2SeqConfig
from pygpt.models import low_rank
from pygpt.models.adapters import Adapters, attach, load, merge, save, steady
from pygpt.models.low_rank import LowRank
from pygpt.models.reshape import reshaped
from pygpt.models.session import PACK_AFTER_PASSES
from pygpt.optim import AdamW
from pygpt.train.trainer import parameter_groups
from tests.support import assert_same_bits

SIZES: dict[str, Any] = {"context_length": 16, "num_layers": 2, "num_heads": 2, "embedding_dim": 8}
IDS = torch.arange(10).view(2, 5) % 11
HEADS: dict[str, Any] = {"labels": ("a", "b"), "nsp_head": False, "mlm_head": False}
MODELS = {
    "gpt": lambda: GPT(GPTConfig(vocab_size=11, **SIZES)),
    "gated, no bias": lambda: GPT(GPTConfig(vocab_size=11, activation="swiglu", bias=False, tie_head=False, **SIZES)),
    "encoder": lambda: Encoder(EncoderConfig(vocab_size=11, **HEADS, **SIZES)),
    "encoder-decoder": lambda: Seq2Seq(Seq2SeqConfig(vocab_size=11, num_kv_heads=1, **SIZES)),
}


def loss_of(model: Any) -> torch.Tensor:
    if isinstance(model, Encoder):
        return model.loss(IDS, labels=torch.tensor([0, 1]))
    if isinstance(model, Seq2Seq):
        return model.loss(IDS, IDS, IDS)
    return model.loss(IDS, IDS)


def outputs(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(IDS, IDS) if isinstance(model, Seq2Seq) else model(IDS)


def train(model: Any, adapters: Adapters, steps: int = 3) -> None:
    optimizer = AdamW(parameter_groups(model, 0.1, steady(model, adapters)), lr=0.05)
    for _ in range(steps):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", MODELS)
def test_adapters_begin_as_nothing_train_alone_and_merge_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = MODELS[kind]()
    before = outputs(model)
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    adapters = attach(model, rank=2, alpha=8)
    assert_same_bits(outputs(model), before, "before training")
    train(model, adapters)
    after = outputs(model)
    assert not torch.equal(after, before)
    for name, parameter in model.named_parameters():
        original = base.get(name.replace("parametrizations.weight.original", "weight"))
        if original is not None and not parameter.requires_grad:
            assert_same_bits(parameter.detach(), original, name)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".parametrizations." in name or name.startswith(("label_head", "pooler")) for name in trained)
    save(model, adapters, tmp_path)

    merge(model)
    assert {name for name, _ in model.named_parameters()} == base.keys()
    assert_same_bits(outputs(model), after, "merged")

    torch.manual_seed(1)
    again, read = load(MODELS[kind](), tmp_path)
    assert read == adapters
    assert_same_bits(outputs(again), after, "loaded")


def test_the_update_is_the_papers() -> None:
    model = MODELS["gpt"]()
    before = model.blocks[0].attention.out.weight.detach().clone()
    adapters = attach(model, rank=3, alpha=6, targets=["out"])
    train(model, adapters)
    part = model.blocks[0].attention.out.parametrizations.weight[0]
    torch.testing.assert_close(model.blocks[0].attention.out.weight, before + 2 * part.b @ part.a)
    assert not hasattr(model.blocks[0].attention.qkv, "parametrizations")


@pytest.mark.parametrize("kind", MODELS)
def test_a_weight_is_computed_once_in_a_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for one that attends to a context, whose rows are used in two products."""
    model = MODELS[kind]()
    attach(model, 2, 4)
    computed: list[LowRank] = []
    forward = LowRank.forward
    monkeypatch.setattr(LowRank, "forward", lambda self, weight: computed.append(self) or forward(self, weight))
    loss_of(model)
    crossing = {
        module.parametrizations.weight[0]
        for name, module in model.named_modules()
        if name.endswith("cross_attention.qkv")
    }
    there = [module for module in model.modules() if isinstance(module, LowRank)]
    assert sorted(map(id, computed)) == sorted(map(id, [*there, *crossing]))


def randomise(model: Any) -> None:
    """Adapters begin as nothing; make them something."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                parameter.normal_()


@torch.no_grad()
def test_in_a_session_a_weight_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["gpt"]().eval()
    attach(model, 2, 4)
    randomise(model)
    right = model(IDS)
    products = 0
    linear = low_rank.ops.linear

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal products
        products += 1
        return linear(*arguments, **options)

    monkeypatch.setattr(low_rank, "ops", SimpleNamespace(linear=counted, add=low_rank.ops.add))
    maps = sum(isinstance(module, LowRank) for module in model.modules())
    written = model.generate(IDS, 10, temperature=0.0)
    assert products == maps
    with model.session():
        for _ in range(2 * PACK_AFTER_PASSES):  # packed after some
            assert_same_bits(model(IDS), right, "in a session")
        assert products == 2 * maps
        copied = copy.deepcopy(model)
        randomise(copied)
        assert not torch.equal(copied(IDS), right), "a copy is in no session"
        with torch.enable_grad():
            model.loss(IDS, IDS).backward()
    part = model.blocks[0].attention.out.parametrizations.weight[0]
    assert part.a.grad is not None and part.a.grad.abs().max() > 0
    randomise(model)
    after = model(IDS)
    assert not torch.equal(after, right), "after a session"
    written = model.generate(IDS, 10, temperature=0.0)
    merge(model)
    assert_same_bits(model(IDS), after, "merged")
    assert torch.equal(model.generate(IDS, 10, temperature=0.0), written)


@pytest.mark.cpu
def test_steps_are_recorded_with_adapters(caplog: pytest.LogCaptureFixture) -> None:
    model = MODELS["gpt"]()
    attach(model, 2, 4)
    with caplog.at_level("DEBUG", "pygpt.generate.recording"):
        model.generate(IDS, 10)
    assert not caplog.records


def test_a_merged_model_trains_whole() -> None:
    model = reshaped(GPT(GPTConfig(vocab_size=8, **SIZES)), vocab_size=11)
    attach(model, 2, 4, base_tokens=8, changes={"vocab_size": 11})
    merge(model)
    model.loss(IDS % 8, IDS % 8).backward()
    gradient = model.token_embedding.weight.grad
    assert gradient is not None and gradient[:8].abs().amax(1).min() > 0


def test_a_model_with_adapters_is_not_saved_as_a_whole(tmp_path: Path) -> None:
    for make in MODELS.values():
        model = make()
        attach(model, 2, 4)
        with pytest.raises(ValueError, match=r"save these by pygpt\.models\.adapters\.save, or merge them"):
            model.save_pretrained(tmp_path / "model")
        assert not (tmp_path / "model").exists()
        merge(model)
        model.save_pretrained(tmp_path / "merged")


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_are_trained_and_the_others_stay(tied: bool, tmp_path: Path) -> None:
    base = GPT(GPTConfig(vocab_size=8, tie_head=tied, **SIZES))
    changes = {"vocab_size": 11}
    model = reshaped(base, **changes)
    table = model.token_embedding.weight.detach().clone()
    adapters = attach(model, 2, 4, base_tokens=8, changes=changes)
    train(model, adapters)
    assert_same_bits(model.token_embedding.weight[:8].detach(), table[:8], "old tokens")
    assert not torch.equal(model.token_embedding.weight[8:], table[8:])
    save(model, adapters, tmp_path)
    stored = load_file(tmp_path / "adapter.safetensors")
    assert stored["token_embedding.weight"].shape == (3, 8) and ("head.weight" in stored) == (not tied)
    again, _ = load(base, tmp_path)  # which grows it
    assert_same_bits(outputs(again), outputs(model), "from the base as it was")


def test_labels_come_with_the_adapters(tmp_path: Path) -> None:
    base = Encoder(EncoderConfig(vocab_size=11, **SIZES))
    changes = {"labels": ["a", "b"], "mlm_head": False, "nsp_head": False}
    model = reshaped(base, **changes)
    adapters = attach(model, 2, 4, changes=changes)
    train(model, adapters)
    save(model, adapters, tmp_path)
    again, _ = load(base, tmp_path)
    assert again.config.labels == ("a", "b")
    assert_same_bits(again.label_logits(again(IDS)), model.label_logits(model(IDS)), "labels")


def test_adapters_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = MODELS["gpt"]()
    adapters = attach(model, 2, 4)
    save(model, adapters, tmp_path)

    def refused(other: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            load(other, tmp_path)

    def base() -> GPT:
        torch.manual_seed(3)
        return MODELS["gpt"]()

    refused(MODELS["gpt"](), "of another model: its weights are others")
    refused(
        GPT(GPTConfig(vocab_size=11, **{**SIZES, "embedding_dim": 16})), "its embedding_dim is 8, and this one's 16"
    )
    refused(GPT(GPTConfig(vocab_size=12, **SIZES)), "its vocab_size is 11, and this one's 12")
    refused(MODELS["encoder"](), "adapters of a GPT, not of a Encoder")
    labels = {"labels": ["a", "b"], "mlm_head": False, "nsp_head": False}
    encoder = reshaped(Encoder(EncoderConfig(vocab_size=11, **SIZES)), **labels)
    save(encoder, attach(encoder, 2, 4, changes=labels), tmp_path / "encoder")
    with pytest.raises(ValueError, match="adapters of a Encoder, not of a GPT"):
        load(base(), tmp_path / "encoder")

    whole = load_file(tmp_path / "adapter.safetensors")
    name = "blocks.0.attention.out.lora_a"
    save_file({k: v for k, v in whole.items() if k != name}, tmp_path / "adapter.safetensors")
    unchanged = base()
    refused(unchanged, f"is damaged: lacks {name}")
    assert unchanged.state_dict().keys() == base().state_dict().keys(), "it is as it was"
    assert_same_bits(outputs(unchanged), outputs(base()), "it is as it was")
    assert all(parameter.requires_grad for parameter in unchanged.parameters())
    save_file({**whole, name: torch.zeros(3, 8)}, tmp_path / "adapter.safetensors")
    refused(base(), r"lora_a has shape \(3, 8\), not \(2, 8\)")
    (tmp_path / "adapter.safetensors").write_bytes(b"")
    refused(base(), "truncated")
    settings = json.loads((tmp_path / "adapter.json").read_text())
    (tmp_path / "adapter.json").write_text(json.dumps({**settings, "version": 2}))
    refused(base(), "no adapters that this pygpt reads")
    for name in ("rank", "alpha", "targets", "tokens", "changes", "model", "base"):
        for odd in (None, {}) if name != "changes" else (None, []):
            (tmp_path / "adapter.json").write_text(json.dumps({**settings, name: odd}))
            refused(base(), rf"adapter\.json is damaged: its {name} is ")
    del settings["base"]
    (tmp_path / "adapter.json").write_text(json.dumps(settings))
    refused(base(), "adapter.json is damaged")


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="lora_targets must be any of qkv, out, up, down, not 'gate'"):
        attach(MODELS["gpt"](), 2, 4, ["gate"])
    with pytest.raises(ValueError, match="lora_rank must be from 1 to 8, the smallest size of the maps, not 9"):
        attach(MODELS["gpt"](), 9, 4)
    with pytest.raises(ValueError, match="lora_targets must be one or more of qkv, out, up, down, but there is none"):
        attach(MODELS["gpt"](), 2, 4, [])
    model = MODELS["gpt"]()
    attach(model, 2, 4)
    with pytest.raises(ValueError, match="has adapters already"):
        attach(model, 2, 4)
    with pytest.raises(ValueError, match="a quantised model cannot have adapters"):
        attach(GPT(GPTConfig(vocab_size=11, **SIZES)).quantize("int8"), 2, 4)


def test_recomputed_blocks_and_autocast() -> None:
    torch.manual_seed(5)
    model = MODELS["gpt"]()
    attach(model, 2, 4)
    model.train()
    gradients = []
    for recompute in (False, True):
        model.checkpoint_blocks = recompute
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss_of(model).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) == 16
    for plain, recomputed in zip(*gradients, strict=True):
        assert_same_bits(plain, recomputed, "gradient")
