"""The parts of a GPT as modules; each takes the place of its namesake in any PyTorch model."""

from pygpt.nn.attention import MultiHeadAttention
from pygpt.nn.embedding import Embedding
from pygpt.nn.feed_forward import FeedForward
from pygpt.nn.gated_feed_forward import GatedFeedForward
from pygpt.nn.layer_norm import LayerNorm
from pygpt.nn.linear import Linear
from pygpt.nn.quantized_linear import QuantizedLinear
from pygpt.nn.rms_norm import RMSNorm

__all__ = [
    "Embedding",
    "FeedForward",
    "GatedFeedForward",
    "LayerNorm",
    "Linear",
    "MultiHeadAttention",
    "QuantizedLinear",
    "RMSNorm",
]
