"""Whole models: GPT, its configuration, and its files."""

from pygpt.models.config import PRESETS, GPTConfig
from pygpt.models.gpt import GPT

__all__ = ["GPT", "PRESETS", "GPTConfig"]
