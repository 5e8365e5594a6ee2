from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pygpt import GPT, GPTConfig
from tests.models.test_config import small
from tests.models.test_gpt import lively
from tests.support import assert_as_peers, assert_same_bits

# GPT-2's four sizes with a tenth or so of everything: the same ratio of layers, heads and width.
STAND_INS = {"gpt2": (3, 3, 48), "gpt2-medium": (6, 4, 64), "gpt2-large": (9, 5, 80), "gpt2-xl": (12, 5, 80)}


def theirs(**changes) -> transformers.GPT2LMHeadModel:
    values = {"vocab_size": 61, "n_positions": 32, "n_layer": 2, "n_head": 2, "n_embd": 16, **changes}
    ids = {"bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values, **ids)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def assert_same_model(ours: GPT, hf: transformers.GPT2LMHeadModel) -> None:
    """Logits within 1e-4, and gradients."""
    ids = torch.randint(ours.config.vocab_size, (2, 17))
    torch.testing.assert_close(ours(ids), hf(ids).logits, rtol=0, atol=1e-4)
    ours.zero_grad()
    hf.zero_grad()
    ours.loss(ids[:, :-1], ids[:, 1:]).backward()
    hf(ids, labels=ids).loss.backward()
    prefix, gradients = "transformer.", {name: parameter.grad for name, parameter in hf.named_parameters()}
    pairs = {
        "token_embedding": "wte",
        "position_embedding": "wpe",
        "norm": "ln_f",
        "blocks.1.norm_2": "h.1.ln_2",
        "blocks.0.attention.qkv": "h.0.attn.c_attn",
        "blocks.1.attention.out": "h.1.attn.c_proj",
        "blocks.0.feed_forward.up": "h.0.mlp.c_fc",
        "blocks.1.feed_forward.down": "h.1.mlp.c_proj",
    }
    for mine, name in pairs.items():
        for leaf, parameter in ours.get_submodule(mine).named_parameters():
            right = gradients[f"{prefix}{name}.{leaf}"]
            right = right.T if leaf == "weight" and ("attn" in name or "mlp" in name) else right
            assert_as_peers(parameter.grad, right, f"{mine}.{leaf}")


@pytest.mark.parametrize("name", STAND_INS)
def test_logits_and_gradients_are_transformers_and_files_are_read_both_ways(tmp_path, name):
    layers, heads, width = STAND_INS[name]
    hf = theirs(n_layer=layers, n_head=heads, n_embd=width)
    hf.save_pretrained(tmp_path / "theirs")
    ours = GPT.from_pretrained(tmp_path / "theirs")
    assert not ours.training
    assert_same_model(ours, hf)
    assert ours.save_pretrained(tmp_path / "ours") == "gpt2"
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    for (key, before), (_, after) in zip(hf.named_parameters(), again.named_parameters(), strict=True):
        assert_same_bits(before.detach(), after.detach(), key)


@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_pytorch_tanh"])
def test_config_is_followed(tmp_path, activation):
    numbers = {"n_inner": 40, "layer_norm_epsilon": 0.01, "embd_pdrop": 0.2, "attn_pdrop": 0.3, "resid_pdrop": 0.4}
    hf = theirs(activation_function=activation, tie_word_embeddings=False, **numbers)
    hf.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    assert (ours.config.hidden_dim, ours.config.layer_norm_eps, ours.config.tie_head) == (40, 0.01, False)
    dropouts = ours.config.embedding_dropout, ours.config.attention_dropout, ours.config.residual_dropout
    assert dropouts == (0.2, 0.3, 0.4)
    assert_same_model(ours, hf)
    ours.save_pretrained(tmp_path / "ours")
    assert GPT.from_pretrained(tmp_path / "ours").config == ours.config
    assert_same_model(ours, transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours"))


def hub_file(hf: transformers.GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    """As the hub's gpt2/model.safetensors: no prefix, no head, the causal masks that once were buffers."""
    state = {name.removeprefix("transformer."): tensor for name, tensor in hf.state_dict().items()}
    del state["lm_head.weight"]
    for layer in range(hf.config.n_layer):
        state[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        state[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def write(folder, config, tensors) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


HUB_CONFIG = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 32,
    "n_embd": 16,
    "n_head": 2,
    "n_layer": 2,
    "n_positions": 32,
    "resid_pdrop": 0.1,
    "summary_type": "cls_index",
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 61,
}


def test_the_hubs_own_key_style(tmp_path):
    hf = theirs()
    write(tmp_path, HUB_CONFIG, hub_file(hf))
    assert_same_model(GPT.from_pretrained(tmp_path), hf)


def test_a_tied_head_may_be_stored(tmp_path):
    hf = theirs()
    state = hub_file(hf) | {"lm_head.weight": hf.lm_head.weight.detach().clone()}
    write(tmp_path, HUB_CONFIG, {"transformer." + name if "lm" not in name else name: t for name, t in state.items()})
    assert_same_model(GPT.from_pretrained(tmp_path), hf)


def test_parts_are_put_together(tmp_path):
    hf = theirs()
    hf.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = GPT.from_pretrained(tmp_path)
    assert_same_model(ours, hf)
    ours.save_pretrained(tmp_path)  # over it: the parts must not be taken for the model any more
    with torch.no_grad():
        ours.norm.weight.fill_(3)
    ours.save_pretrained(tmp_path)
    assert (GPT.from_pretrained(tmp_path).norm.weight == 3).all()


@pytest.mark.parametrize(
    "stored, asked, expected",
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float16, None, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float64, None, torch.float64),
    ],
)
def test_dtypes(tmp_path, stored, asked, expected):
    write(tmp_path, HUB_CONFIG, {name: tensor.to(stored) for name, tensor in hub_file(theirs()).items()})
    model = GPT.from_pretrained(tmp_path, dtype=asked)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    right = hub_file(theirs())["h.0.attn.c_attn.weight"].to(stored).T
    assert_same_bits(model.blocks[0].attention.qkv.weight.detach(), right.to(expected).contiguous(), "weight")


def test_a_dtype_that_nothing_computes_with_has_to_be_replaced(tmp_path):
    stored = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in hub_file(theirs()).items()}
    write(tmp_path, HUB_CONFIG, stored)
    with pytest.raises(ValueError, match=r"holds weights of torch\.float8_e4m3fn, with which pygpt does not compute"):
        GPT.from_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path, dtype=torch.float32)
    right = stored["h.0.attn.c_attn.weight"].float().T.contiguous()
    assert_same_bits(model.blocks[0].attention.qkv.weight.detach(), right, "weight")


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": False},
        {"norm": "post"},
        {"positions": "sinusoidal"},
        {"num_kv_heads": 2},
        {"head_dim": 5},
        {"attention_windows": (None, 4)},
    ],
)
def test_what_gpt2_cannot_be_is_saved_as_our_own(tmp_path, changes):
    model = lively(small(**changes, dropout=0.3))
    assert model.save_pretrained(tmp_path) == "pygpt"
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "pygpt"
    again = GPT.from_pretrained(tmp_path)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert_same_bits(tensor, again.state_dict()[name], name)
    ids = torch.randint(23, (1, 7))
    assert_same_bits(again(ids), model(ids), "logits")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn is True"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"activation_function": "silu"}, "activation_function is 'silu'; pygpt computes with gelu_new"),
        ({"model_type": "mamba"}, "model of type 'mamba'; GPT reads gpt2, llama, pygpt"),
        ({"n_layer": 3}, "no weights for h.2.attn.c_attn.bias, .* more"),
        ({"n_layer": 1}, "holds h.1.*no part of the model"),
        ({"n_inner": 63}, r"has shape .* describes has .*63"),
        ({"tie_word_embeddings": False}, "no weights for lm_head.weight"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, words):
    write(tmp_path, HUB_CONFIG | changes, hub_file(theirs()))
    with pytest.raises(ValueError, match=words):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("layout", ["gpt2", "pygpt", "llama"])
def test_values_of_another_type_are_refused_by_file_and_name(tmp_path, layout):
    kinds = {"pygpt": {"norm": "post"}, "llama": {"positions": "rope", "norm_type": "rms", "activation": "swiglu"}}
    model = GPT(small(bias=layout != "llama", **kinds.get(layout, {})))
    assert model.save_pretrained(tmp_path) == layout
    config = json.loads((tmp_path / "config.json").read_text())
    values: list[Any] = [{"a": 1}, [1], "much", -1]
    unread = dict.fromkeys(("architectures", "bos_token_id", "eos_token_id", "torch_dtype"), values)
    fitting = {"attention_windows": [[1]], "rope_parameters": [{"a": 1}]} | unread
    if layout == "llama":
        fitting["rope_theta"] = values  # for older readers: rope_parameters say it
    for name in config:
        for value in values:
            (tmp_path / "config.json").write_text(json.dumps(config | {name: value}))
            if value in fitting.get(name, []):
                GPT.from_pretrained(tmp_path)
                continue
            with pytest.raises(ValueError) as refused:
                GPT.from_pretrained(tmp_path)
            assert str(tmp_path) in str(refused.value), (name, value)


def contents(model: GPT) -> tuple[Any, ...]:
    return model.config, *(tensor.numpy().tobytes() for tensor in model.state_dict().values())


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("changes", [{}, {"activation": "relu", "num_layers": 3}])
def test_a_save_that_is_killed_leaves_a_whole_model(tmp_path, monkeypatch, parts, changes):
    """At every change of a name. Another shape is told from the old configuration, which it has between two renames."""
    old, new = GPT(small()), GPT(small(**changes))
    before = tmp_path / "before"
    old.save_pretrained(before)
    if parts:
        weights = load_file(before / "model.safetensors")
        (before / "model.safetensors").unlink()
        files = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(weights)}
        for file in set(files.values()):
            save_file({name: weights[name] for name in weights if files[name] == file}, before / file)
        (before / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    replace, unlink = os.replace, Path.unlink
    found = []
    for kill_at in range(20):
        done = 0

        def step(act, *arguments, kill_at=kill_at, **options):
            nonlocal done
            if Path(arguments[0]).name.startswith(".") == (act is unlink):  # a temporary's removal is no change
                return act(*arguments, **options)
            if done == kill_at:
                raise KeyboardInterrupt
            done += 1
            return act(*arguments, **options)

        folder = Path(shutil.copytree(before, tmp_path / str(kill_at)))
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", functools.partial(step, replace))
            patch.setattr(Path, "unlink", lambda path, step=step, **options: step(unlink, path, **options))
            with contextlib.suppress(KeyboardInterrupt):
                new.save_pretrained(folder)
        try:
            found.append(contents(GPT.from_pretrained(folder)))
        except ValueError as error:
            found.append(str(error))
        if done < kill_at:
            break
    whole = [contents(old), contents(new)]
    states = [whole.index(state) if state in whole else state for state in found]
    if changes:
        between = [state for state in states if isinstance(state, str)]
        assert all("no part of the model that config.json describes" in state for state in between)
        states = [state for state in states if state not in between]
    assert states == sorted(states) and {*states} == {0, 1}, states


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder 'gpt2'; .*nothing is downloaded"):
        GPT.from_pretrained("gpt2")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        GPT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"')
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        GPT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        GPT.from_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, a pickle"):
        GPT.from_pretrained(tmp_path)
    write(tmp_path, HUB_CONFIG, hub_file(theirs()))
    whole = (tmp_path / "model.safetensors").read_bytes()
    for part in (b"", whole[:100], whole[:-100], b"x" * 200):
        (tmp_path / "model.safetensors").write_bytes(part)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            GPT.from_pretrained(tmp_path)
    for weight_map, error, words in (
        ({"wte.weight": "../model.safetensors"}, ValueError, "no .safetensors file of its folder"),
        ({"wte.weight": "part.safetensors"}, FileNotFoundError, r"part\.safetensors, which is not there"),
        ({}, ValueError, "no weight_map"),
    ):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(error, match=words):
            GPT.from_pretrained(tmp_path)


def test_integer_weights_are_refused(tmp_path):
    tensors = hub_file(theirs())
    tensors["ln_f.weight"] = torch.ones(16, dtype=torch.int8)
    write(tmp_path, HUB_CONFIG, tensors)
    with pytest.raises(ValueError, match=r"ln_f\.weight is torch\.int8"):
        GPT.from_pretrained(tmp_path)


def test_newer_settings_are_refused_by_name(tmp_path):
    values = GPTConfig.preset("gpt2").to_dict()
    write(tmp_path, {"model_type": "pygpt", **values, "experts": 4}, {"norm.weight": torch.ones(2)})
    with pytest.raises(ValueError, match="no field experts; was this written by a newer pygpt"):
        GPT.from_pretrained(tmp_path)


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    model = GPT(small())
    model.save_pretrained(tmp_path)
    before = load_file(tmp_path / "model.safetensors")

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pygpt.models.huggingface.save_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        GPT(small()).save_pretrained(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["config.json", "model.safetensors"]
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert_same_bits(tensor, before[name], name)


# What is resident, then its peak while a model is loaded: VmHWM begins anew by writing to clear_refs (proc(5)).
LOADING = """
import sys
from pathlib import Path
from pygpt import GPT

def resident(kind):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(kind))

GPT.from_pretrained(sys.argv[1])  # with what is imported on the way
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
model = GPT.from_pretrained(sys.argv[1])
print(before, resident("VmHWM"))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system does not tell peaks of memory")
def test_loading_takes_little_more_memory_than_the_model(tmp_path):
    config = GPTConfig(vocab_size=64, context_length=16, num_layers=10, num_heads=8, embedding_dim=512)
    GPT(config).save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    command = [sys.executable, "-P", "-c", LOADING, str(tmp_path)]
    before, peak = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert size > 120e6
    assert size * 0.9 < (peak - before) * 1024 < size * 1.3, "a second copy would be all of the file"
