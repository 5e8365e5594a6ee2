"""The parts of a GPT as modules; each takes the place of its namesake in any PyTorch model."""

from pygpt.nn.attention import MultiHeadAttention
from pygpt.nn.embedding import Embedding
from pygpt.nn.feed_forward import FeedForward
from pygpt.nn.layer_norm import LayerNorm
from pygpt.nn.linear import Linear

__all__ = ["Embedding", "FeedForward", "LayerNorm", "Linear", "MultiHeadAttention"]
