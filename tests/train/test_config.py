"""The configuration: flags win over TOML, what is unknown or out of range is refused by name."""

import argparse
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pygpt.train.config import TrainConfig, add_flags, flags_given, read_toml


def parse(*flags: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return flags_given(parser.parse_args(flags))


def test_flags_are_the_fields() -> None:
    assert parse() == {}
    given = parse("--data", "a", "b*", "--lr", "3e-4", "--checkpoint-blocks", "--steps", "7", "--schedule", "wsd")
    assert given == {"data": ["a", "b*"], "lr": 3e-4, "checkpoint_blocks": True, "steps": 7, "schedule": "wsd"}
    config = TrainConfig.from_dict(given, "flags")
    assert (config.data, config.steps, config.learning_rate().decay) == (("a", "b*"), 7, 1)
    for option in fields(TrainConfig):
        assert option.metadata["text"], option.name


def test_toml_round_trip(tmp_path: Path) -> None:
    config = TrainConfig(data=("one", "two"), layers=3, dropout=0.1, min_lr=0.0, checkpoint_blocks=True, seed=5)
    config.save(tmp_path / "config.toml")
    assert TrainConfig.from_dict(read_toml(tmp_path / "config.toml"), "config.toml") == config


def test_toml_takes_one_path_and_whole_numbers_for_floats(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('data = "text.txt"\ngrad_clip = 2\n')
    config = TrainConfig.from_dict(read_toml(tmp_path / "c.toml"), "c.toml")
    assert config.data == ("text.txt",)
    assert config.grad_clip == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 1.0}, r"c\.toml: unknown key 'learning_rate'"),
        ({"batchsize": 1}, r"c\.toml: unknown key 'batchsize'; did you mean 'batch_size'\?"),
        ({"steps": 0}, r"c\.toml: steps must be at least 1, not 0"),
        ({"steps": 1.5}, r"c\.toml: steps must be a whole number, not 1\.5"),
        ({"threads": 1025}, "threads must be at most 1024, not 1025"),
        ({"seed": 2**63}, "seed must be at most 9223372036854775807"),
        ({"steps": True}, "steps must be a whole number, not True"),
        ({"lr": 0.0}, "lr must be above 0, not 0"),
        ({"lr": math.nan}, "lr must be above 0, not nan"),
        ({"lr": "high"}, "lr must be a number, not 'high'"),
        ({"beta2": 1.0}, "beta2 must be below 1, not 1"),
        ({"dtype": "fp8"}, "dtype must be one of fp32, bf16, not 'fp8'"),
        ({"data": []}, "data must name at least one file"),
        ({"data": [1]}, "data must be a list of texts"),
        ({"checkpoint_blocks": "yes"}, "checkpoint_blocks must be true or false"),
        ({"min_lr": 1.0}, "lowest learning rate must be between 0 and the peak"),
        ({"early_stopping": 2, "eval_every": 0}, "early_stopping needs evaluations"),
        ({"label_smoothing": 0.1}, "label_smoothing is for seq2seq and denoise, not clm"),
        ({"mask_rate": 0.5}, "mask_rate is for mlm and mlm.nsp and denoise, not clm"),
        ({"whole_words": True, "objective": "seq2seq"}, "whole_words is for mlm and mlm.nsp, not seq2seq"),
        ({"noise": ["masking"], "objective": "mlm"}, "noise is for denoise, not mlm"),
        ({"task": "dialogue"}, "task is given, but base is not: fine-tuning needs both"),
        ({"task": "poetry", "base": "a"}, "task must be one of generation, summarisation"),
        ({"lora_targets": ["up"]}, "lora_alpha and lora_targets need a lora_rank"),
        ({"warmup": 5, "steps": 4}, "warmup must be between 0 and steps, 4, not 5"),
    ],
)
def test_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(values, "c.toml")


def test_what_is_not_toml_is_named(tmp_path: Path) -> None:
    for content in (b"steps 7", b"\xff\xfe"):
        (tmp_path / "c.toml").write_bytes(content)
        with pytest.raises(ValueError, match=r"c\.toml is not valid TOML"):
            read_toml(tmp_path / "c.toml")
    with pytest.raises(FileNotFoundError, match=r"absent\.toml"):
        read_toml(tmp_path / "absent.toml")
