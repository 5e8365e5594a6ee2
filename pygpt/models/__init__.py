"""Whole models: GPT, Encoder and Seq2Seq, their configurations, and their files."""

from pygpt.models.config import PRESETS, GPTConfig, TransformerConfig
from pygpt.models.encoder import Encoder, EncoderConfig
from pygpt.models.gpt import GPT
from pygpt.models.seq2seq import Seq2Seq, Seq2SeqConfig
from pygpt.models.transformer import Transformer

__all__ = [
    "GPT",
    "PRESETS",
    "Encoder",
    "EncoderConfig",
    "GPTConfig",
    "Seq2Seq",
    "Seq2SeqConfig",
    "Transformer",
    "TransformerConfig",
]
