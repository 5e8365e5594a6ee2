"""The emulated device from Python: PTX text in, NumPy arrays as device memory, a fault's report as an exception.

with Device(arch=90, seed=1) as device:
    module = device.load(ptx)
    module.launch("scale", grid=4, block=128, args=[out, x, np.float32(2)], writable=[out])
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BUILD = Path(__file__).resolve().parents[2] / "build" / "emulator"

DEFAULTS = {
    "arch": 90,
    "multiprocessors": 4,
    "seed": 1,
    "arith_seed": 0,
    "instruction_limit": 2_000_000_000,
    "stall_limit": 4_000_000,
    "count": 0,
    "drop_line": 0,
    "fast_mma": 0,
    "timing": 0,
    "timing_reuse": 1,
    "timing_registers": 128,
    "timing_clusters": 0,
}
CHECKS = (
    "check_bounds",
    "check_alignment",
    "check_races",
    "check_warp_races",
    "check_global",
    "check_order",
    "check_init",
    "check_proxy",
    "check_async",
    "check_masks",
    "check_barriers",
    "check_readonly",
)


class DeviceFault(RuntimeError):
    """The kernel did something wrong, or holds an instruction that is not emulated; the text is the report."""


def _library() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(BUILD / "libpygpt_emulator_python.so"))
    lib.pygpt_emulator_error.restype = ctypes.c_char_p
    lib.pygpt_emulator_load.restype = ctypes.c_void_p
    lib.pygpt_emulator_load.argtypes = [ctypes.c_char_p]
    lib.pygpt_emulator_unload.argtypes = [ctypes.c_void_p]
    lib.pygpt_emulator_kernels.restype = ctypes.c_char_p
    lib.pygpt_emulator_kernels.argtypes = [ctypes.c_void_p]
    lib.pygpt_emulator_synchronisation.restype = ctypes.c_char_p
    lib.pygpt_emulator_synchronisation.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.pygpt_emulator_register.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    lib.pygpt_emulator_unregister.argtypes = [ctypes.c_void_p]
    lib.pygpt_emulator_set_option.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    lib.pygpt_emulator_tensor_map.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
        *[ctypes.c_void_p] * 4,
        ctypes.c_int,
        ctypes.c_int,
    ]
    lib.pygpt_emulator_take_counts.restype = ctypes.c_char_p
    lib.pygpt_emulator_launch.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.c_uint),
        ctypes.c_uint,
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_uint,
        ctypes.c_int,
    ]
    return lib


Shape = int | tuple[int, ...]


def _three(shape: Shape) -> list[int]:
    sizes = [shape] if isinstance(shape, int) else list(shape)
    return sizes + [1] * (3 - len(sizes))


class Device:
    """One setting of the emulator's options; every device of a process shares the same emulator.

    Options that are not given have their defaults, or what the environment says (PYGPT_EMULATOR_COUNT).
    """

    def __init__(self, **settings: int) -> None:
        unknown = set(settings) - set(DEFAULTS) - set(CHECKS)
        if unknown:
            raise ValueError(f"the emulator has no options {sorted(unknown)}")
        self._lib = _library()
        defaults = {**DEFAULTS, **dict.fromkeys(CHECKS, 1)}
        mine = {k: v for k, v in defaults.items() if f"PYGPT_EMULATOR_{k.upper()}" not in os.environ}
        self._settings = {**mine, **settings}

    def apply(self) -> ctypes.CDLL:
        """Put this device's options in force."""
        for name, value in self._settings.items():
            if self._lib.pygpt_emulator_set_option(name.encode(), str(int(value)).encode()):
                raise ValueError(self._lib.pygpt_emulator_error().decode())
        return self._lib

    def load(self, ptx: str | Path) -> LoadedModule:
        """Parse PTX, given as text or as a file; DeviceFault if it is malformed."""
        return LoadedModule(self, ptx.read_text() if isinstance(ptx, Path) else ptx)

    def tensor_map(
        self,
        array: np.ndarray,
        box: Sequence[int],
        *,
        swizzle: int = 0,
        extents: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        element_strides: Sequence[int] | None = None,
        kind: int | None = None,
        fill_nan: bool = False,
    ) -> bytes:
        """A CUtensorMap of an array, as a kernel's parameter: all sizes innermost first, strides in bytes.

        Args:
            swizzle: 0 none, 1 32 bytes, 2 64, 3 128.
            extents, strides: of the tensor, if they are not the array's.
            kind: CUtensorMapDataType, if it is not that of the array's dtype.
        Raises: ValueError where the driver would refuse.
        """
        types = {"u1": 0, "u2": 1, "u4": 2, "i4": 3, "u8": 4, "i8": 5, "f2": 6, "f4": 7, "f8": 8}
        kind = types[array.dtype.str[1:]] if kind is None else kind
        extents = array.shape[::-1] if extents is None else extents
        strides = array.strides[-2::-1] if strides is None else strides
        out = ctypes.create_string_buffer(192)
        at = (ctypes.addressof(out) + 63) & ~63
        numbers = [
            (ctypes.c_uint64 * 5)(*extents),
            (ctypes.c_uint64 * 5)(*strides),
            (ctypes.c_uint32 * 5)(*box),
            (ctypes.c_uint32 * 5)(*(element_strides or [1] * len(extents))),
        ]
        if self._lib.pygpt_emulator_tensor_map(
            at, kind, len(extents), array.ctypes.data, *(ctypes.addressof(n) for n in numbers), swizzle, int(fill_nan)
        ):
            raise ValueError(f"no tensor map of {extents} by {strides}, box {box}, swizzle {swizzle}")
        return ctypes.string_at(at, 128)

    def counts(self) -> list[dict[str, Any]]:
        """What every launch since the last call used, if the option ``count`` is set."""
        return json.loads(self._lib.pygpt_emulator_take_counts())


class LoadedModule:
    """A module on a device."""

    def __init__(self, device: Device, ptx: str) -> None:
        self._device = device
        lib = device.apply()
        self._handle = lib.pygpt_emulator_load(ptx.encode())
        if not self._handle:
            raise DeviceFault(lib.pygpt_emulator_error().decode())

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._device._lib.pygpt_emulator_unload(self._handle)

    @property
    def kernels(self) -> list[str]:
        """The names of its kernels."""
        return self._device._lib.pygpt_emulator_kernels(self._handle).decode().split()

    def synchronisation(self, kernel: str) -> list[tuple[int, str, str]]:
        """(PTX line, source line, text) of the kernel's synchronising instructions."""
        text = self._device.apply().pygpt_emulator_synchronisation(self._handle, kernel.encode()).decode()
        rows = [row.split("\t") for row in text.splitlines()]
        return [(int(line), source, ptx) for line, source, ptx in rows]

    def launch(
        self,
        kernel: str,
        *,
        grid: Shape = 1,
        block: Shape = 128,
        cluster: Shape = 1,
        args: Sequence[Any] = (),
        readonly: Sequence[np.ndarray] = (),
        mapped: Sequence[np.ndarray] = (),
        shared: int = 0,
        extents: dict[int, int] | None = None,
        early: bool = False,
    ) -> None:
        """Run a kernel to its end.

        Args:
            args: arrays are passed as pointers to their memory, NumPy scalars and ``bytes`` by value.
            readonly: those of the arrays that the kernel must not write.
            mapped: arrays that tensor maps among the arguments point to.
            shared: bytes of dynamic shared memory.
            extents: by argument, how many bytes of an array are device memory, if not all.
            early: it may begin before the launch before it has ended: programmatic dependent launch.
        Raises: DeviceFault with the report.
        """
        lib = self._device.apply()
        values: list[Any] = []
        registered: list[int] = []
        for a in mapped:
            lib.pygpt_emulator_register(a.ctypes.data, a.nbytes, 1)
            registered.append(a.ctypes.data)
        for i, a in enumerate(args):
            if isinstance(a, np.ndarray):
                assert a.flags.c_contiguous, "arrays on the device are contiguous"
                writable = not any(a is r for r in readonly)
                lib.pygpt_emulator_register(a.ctypes.data, (extents or {}).get(i, a.nbytes), int(writable))
                registered.append(a.ctypes.data)
                values.append(ctypes.c_uint64(a.ctypes.data))
            elif isinstance(a, bytes):
                values.append(ctypes.create_string_buffer(a, len(a)))
            else:
                values.append(ctypes.create_string_buffer(np.asarray(a).tobytes(), np.asarray(a).nbytes))
        pointers = (ctypes.c_void_p * max(1, len(values)))(*[ctypes.addressof(v) for v in values])
        dims = (ctypes.c_uint * 9)(*_three(grid), *_three(block), *_three(cluster))
        try:
            failed = lib.pygpt_emulator_launch(
                self._handle, kernel.encode(), dims, shared, pointers, len(values), int(early)
            )
        finally:
            for address in registered:
                lib.pygpt_emulator_unregister(address)
        if failed:
            raise DeviceFault(lib.pygpt_emulator_error().decode())


def build() -> None:
    """Build the emulator and its test kernels into build/emulator, if they are not up to date."""
    source = Path(__file__).resolve().parent
    beside_python = Path(sys.executable).parent / "cmake"
    cmake = str(beside_python) if beside_python.exists() else "cmake"
    configure = [cmake, "-S", str(source), "-B", str(BUILD), "-G", "Ninja"]
    for command in (configure, [cmake, "--build", str(BUILD)]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
