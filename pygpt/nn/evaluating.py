"""A time in which a model is in eval mode."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from torch import nn

_lock = threading.Lock()
# Modules that else were training, and in how many calls of `evaluating` they are.
_evaluating: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put the modules that are training into eval mode, and back when no thread needs them there any more.

    Args:
        model: has ``modules()``.
    """
    with _lock:
        held = [module for module in model.modules() if module.training or module in _evaluating]
        for module in held:
            module.training = False
            _evaluating[module] = _evaluating.get(module, 0) + 1
    try:
        yield
    finally:
        with _lock:
            for module in held:
                _evaluating[module] -= 1
                if _evaluating[module] == 0:
                    del _evaluating[module]
                    module.training = True
