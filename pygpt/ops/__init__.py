"""The ops: hand-written kernels as functions of torch tensors (or NumPy arrays), with gradients."""

from pygpt.ops.layer_norm import add_layer_norm, layer_norm

__all__ = ["add_layer_norm", "layer_norm"]
