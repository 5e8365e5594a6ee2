"""pygpt: the parts of a GPT as hand-written kernels, wrapped for training and sampling with PyTorch."""

__version__ = "0.1.0"
