"""The loaded extension module: ``pygpt._C``, or its emulated twin when PYGPT_EMULATE asks for one."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

EMULATED_DEVICES = ("80", "86", "90")
# Which of them stands in for the device of CPU tensors; None: they are computed on the CPU.
EMULATED = os.environ.get("PYGPT_EMULATE") or None


def _load() -> ModuleType:
    if not EMULATED:
        return importlib.import_module("pygpt._C")
    if EMULATED not in EMULATED_DEVICES:
        raise ImportError(f"PYGPT_EMULATE must be one of {', '.join(EMULATED_DEVICES)}, but is {EMULATED!r}")
    try:
        return importlib.import_module("pygpt._C_emulated")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"PYGPT_EMULATE={EMULATED} needs a development build with the emulated device, which this installation "
            "has not; unset PYGPT_EMULATE to compute on the CPU"
        ) from error


C = _load()
