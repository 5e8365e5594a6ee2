"""pygpt: the parts of a GPT as hand-written kernels, wrapped for training and sampling with PyTorch.

What needs torch is imported when it is first asked for, so that ``pygpt --help`` answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pygpt.extension import C as _extension
from pygpt.info import force, force_from_environment, info

if TYPE_CHECKING:
    from pygpt import models, nn, ops, optim
    from pygpt.generate.text_generator import TextGenerator
    from pygpt.models import GPT, Encoder, EncoderConfig, GPTConfig, Seq2Seq, Seq2SeqConfig

force_from_environment()

__version__: str = _extension.__version__

_MODULES = ("models", "nn", "ops", "optim")
_CLASSES = ("GPT", "Encoder", "EncoderConfig", "GPTConfig", "Seq2Seq", "Seq2SeqConfig")

__all__ = [
    "GPT",
    "Encoder",
    "EncoderConfig",
    "GPTConfig",
    "Seq2Seq",
    "Seq2SeqConfig",
    "TextGenerator",
    "__version__",
    "force",
    "info",
    "models",
    "nn",
    "ops",
    "optim",
]


def __getattr__(name: str) -> Any:
    """Import a module, or what holds a class, on first use."""
    if name in _MODULES:
        return importlib.import_module(f"pygpt.{name}")
    if name in _CLASSES:
        return getattr(importlib.import_module("pygpt.models"), name)
    if name == "TextGenerator":
        return importlib.import_module("pygpt.generate.text_generator").TextGenerator
    raise AttributeError(f"module 'pygpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
