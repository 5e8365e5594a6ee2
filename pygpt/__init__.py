"""pygpt: the parts of a GPT as hand-written kernels, wrapped for training and sampling with PyTorch."""

from pygpt import ops
from pygpt.extension import C as _extension
from pygpt.info import force, force_from_environment, info

force_from_environment()

__version__: str = _extension.__version__

__all__ = ["__version__", "force", "info", "ops"]
