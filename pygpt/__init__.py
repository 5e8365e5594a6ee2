"""pygpt: the parts of a GPT as hand-written kernels, wrapped for training and sampling with PyTorch.

What needs torch is imported when it is first asked for, so that ``pygpt --help`` answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pygpt.extension import C as _extension
from pygpt.info import force, force_from_environment, info

if TYPE_CHECKING:
    from pygpt import ops

force_from_environment()

__version__: str = _extension.__version__

__all__ = ["__version__", "force", "info", "ops"]

_MODULES = ("ops",)


def __getattr__(name: str) -> Any:
    """Import a module on first use."""
    if name in _MODULES:
        return importlib.import_module(f"pygpt.{name}")
    raise AttributeError(f"module 'pygpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
