"""The loaded extension module: ``pygpt._C``, or its emulated twin when PYGPT_EMULATE asks for one."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

EMULATED_DEVICES = ("80", "86", "90")


def _load() -> ModuleType:
    device = os.environ.get("PYGPT_EMULATE")
    if not device:
        return importlib.import_module("pygpt._C")
    if device not in EMULATED_DEVICES:
        raise ImportError(f"PYGPT_EMULATE must be one of {', '.join(EMULATED_DEVICES)}, but is {device!r}")
    try:
        return importlib.import_module("pygpt._C_emulated")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"PYGPT_EMULATE={device} needs a development build with the emulated device, which this installation "
            "has not; unset PYGPT_EMULATE to compute on the CPU"
        ) from error


C = _load()
