"""Sampling from a model, with a cache of keys and values."""

from pygpt.generate.cache import KeyValueCache
from pygpt.generate.generate import Generation, TokenBytes, generate

__all__ = ["Generation", "KeyValueCache", "TokenBytes", "generate"]
