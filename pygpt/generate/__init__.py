"""Sampling from a model and searching for what it finds probable, with a cache of keys and values."""

from pygpt.generate.beam import Beams, beam_search
from pygpt.generate.cache import KeyValueCache
from pygpt.generate.contrastive import contrastive_search
from pygpt.generate.generate import Generation, generate
from pygpt.generate.prompts import TokenBytes

__all__ = ["Beams", "Generation", "KeyValueCache", "TokenBytes", "beam_search", "contrastive_search", "generate"]
