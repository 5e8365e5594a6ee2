from __future__ import annotations

import json

import pytest

from pygpt import GPT, GPTConfig
from pygpt.models import PRESETS

COUNTS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-small": 125_226_240,
    "gpt3-medium": 355_871_744,
    "gpt3-large": 760_300_032,
    "gpt3-xl": 1_315_723_264,
    "gpt3-2.7b": 2_651_553_280,
    "gpt3-6.7b": 6_658_404_352,
    "gpt3-13b": 12_853_386_240,
    "gpt3": 174_604_259_328,
}


def small(**changes) -> GPTConfig:
    values = {"vocab_size": 23, "context_length": 16, "num_layers": 2, "num_heads": 4, "embedding_dim": 24}
    return GPTConfig(**{**values, **changes})


def test_there_are_no_other_presets():
    assert set(PRESETS) == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_presets_have_their_published_size(name):
    config = GPTConfig.preset(name)
    model = GPT(config, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]
    assert config.num_parameters() == COUNTS[name]


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": False},
        {"tie_head": False},
        {"norm": "post"},
        {"positions": "none"},
        {"positions": "sinusoidal"},
        {"num_kv_heads": 2, "head_dim": 5, "hidden_dim": 7},
    ],
)
def test_parameters_are_counted(changes):
    config = small(**changes)
    assert sum(parameter.numel() for parameter in GPT(config, device="meta").parameters()) == config.num_parameters()


def test_fields_follow_from_others():
    config = small(dropout=0.1, residual_dropout=0.2)
    assert (config.num_kv_heads, config.head_dim, config.hidden_dim) == (4, 6, 96)
    assert (config.embedding_dropout, config.attention_dropout, config.residual_dropout) == (0.1, 0.1, 0.2)
    assert [small(attention_windows=(None, 3)).window(layer) for layer in range(3)] == [None, 3, None]


def test_round_trip_through_json():
    config = small(attention_windows=(None, 4), dropout=0.1, embedding_dropout=0.0, num_kv_heads=2)
    values = json.loads(json.dumps(config.to_dict()))
    assert GPTConfig.from_dict(values) == config
    assert values["head_dim"] is None  # so that a changed width changes it
    assert GPTConfig.from_dict({**values, "embedding_dim": 48}).head_dim == 12


def test_presets_can_be_changed():
    assert GPTConfig.preset("gpt2", dropout=0.1).attention_dropout == 0.1


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1, but is 0"),
        ({"vocab_size": 2.5}, TypeError, "vocab_size must be an integer, not 2.5"),
        ({"num_heads": True}, TypeError, "num_heads must be an integer"),
        ({"embedding_dim": 25}, ValueError, "embedding_dim must be a multiple of num_heads, but 25 is none of 4"),
        ({"num_kv_heads": 3}, ValueError, "num_heads must be a multiple of num_kv_heads, but 4 is none of 3"),
        ({"head_dim": 257}, ValueError, "head_dim must be at most 256, but is 257"),
        ({"activation": "swish"}, ValueError, "activation must be one of gelu_tanh, gelu, relu, .* not 'swish'"),
        ({"positions": "rotary"}, ValueError, "positions must be one of"),
        ({"norm": "both"}, ValueError, "norm must be one of"),
        ({"bias": "no"}, TypeError, "bias must be True or False, not 'no'"),
        ({"dropout": 1.0}, ValueError, "dropout must be at least 0 and less than 1, but is 1"),
        ({"attention_dropout": -0.1}, ValueError, "attention_dropout must be at least 0"),
        ({"layer_norm_eps": float("nan")}, ValueError, "layer_norm_eps must be at least 0"),
        ({"init_std": "small"}, TypeError, "init_std must be a number, not 'small'"),
        ({"rope_theta": 0}, ValueError, "rope_theta must be above 0, but is 0"),
        ({"attention_windows": ()}, ValueError, "attention_windows must hold one or more"),
        ({"attention_windows": (None, 0)}, ValueError, "attention_windows must hold"),
        ({"attention_windows": 8}, TypeError, "attention_windows must be a tuple, not 8"),
    ],
)
def test_bad_values(changes, error, words):
    with pytest.raises(error, match=words):
        small(**changes)


def test_bad_names():
    with pytest.raises(ValueError, match=r"no preset 'gpt5'; there are gpt2, gpt2-medium"):
        GPTConfig.preset("gpt5")
    with pytest.raises(ValueError, match="no field experts, rotary"):
        GPTConfig.from_dict({**small().to_dict(), "rotary": True, "experts": 8})
    values = small().to_dict()
    del values["num_heads"]
    with pytest.raises(ValueError, match="needs a value for num_heads"):
        GPTConfig.from_dict(values)
