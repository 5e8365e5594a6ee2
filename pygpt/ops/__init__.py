"""The ops: hand-written kernels as functions of torch tensors (or NumPy arrays), with gradients."""

from pygpt.ops.adamw import adamw
from pygpt.ops.add import add
from pygpt.ops.attention import attention
from pygpt.ops.cross_entropy import cross_entropy
from pygpt.ops.dropout import dropout
from pygpt.ops.embedding import embedding
from pygpt.ops.feed_forward import feed_forward
from pygpt.ops.grad_norm import grad_norm
from pygpt.ops.layer_norm import add_layer_norm, layer_norm
from pygpt.ops.linear import linear, pack_linear, pack_linears
from pygpt.ops.linear_cross_entropy import linear_cross_entropy
from pygpt.ops.quantized_linear import quantize_weight, quantized_linear
from pygpt.ops.sample import sample

__all__ = [
    "adamw",
    "add",
    "add_layer_norm",
    "attention",
    "cross_entropy",
    "dropout",
    "embedding",
    "feed_forward",
    "grad_norm",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "pack_linear",
    "pack_linears",
    "quantize_weight",
    "quantized_linear",
    "sample",
]
