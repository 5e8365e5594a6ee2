"""The ops: hand-written kernels as functions of torch tensors (or NumPy arrays), with gradients."""

from pygpt.ops.adamw import adamw
from pygpt.ops.add import add
from pygpt.ops.attention import attention, attention_packed
from pygpt.ops.cross_entropy import cross_entropy
from pygpt.ops.dropout import dropout
from pygpt.ops.embedding import embedding
from pygpt.ops.feed_forward import feed_forward
from pygpt.ops.gated_product import gated_product
from pygpt.ops.grad_norm import grad_norm
from pygpt.ops.layer_norm import add_layer_norm, layer_norm
from pygpt.ops.linear import linear, pack_linear, pack_linears
from pygpt.ops.linear_cross_entropy import linear_cross_entropy
from pygpt.ops.quantized_linear import quantize_weight, quantized_linear
from pygpt.ops.rms_norm import add_rms_norm, rms_norm
from pygpt.ops.rotary import rotary
from pygpt.ops.sample import sample

__all__ = [
    "adamw",
    "add",
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "attention_packed",
    "cross_entropy",
    "dropout",
    "embedding",
    "feed_forward",
    "gated_product",
    "grad_norm",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "pack_linear",
    "pack_linears",
    "quantize_weight",
    "quantized_linear",
    "rms_norm",
    "rotary",
    "sample",
]
