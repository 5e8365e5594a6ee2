"""A small model with random weights, as Hugging Face lays out one for conversations."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pygpt import GPT, GPTConfig
from pygpt.text import BPETokenizer, Document

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write_chat_folder(path: Path) -> Path:
    """Write model, tokenizer and template into a folder; gives it."""
    tokenizer = BPETokenizer.train([Document("", "the cat sat on the mat " * 5)], 280)
    tokenizer.save(path)
    torch.manual_seed(0)
    sizes = {"context_length": 64, "num_layers": 1, "num_heads": 2, "embedding_dim": 16}
    GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **sizes)).save_pretrained(path)
    settings = {"chat_template": TEMPLATE, "bos_token": None, "eos_token": {"content": "<|endoftext|>"}}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path
