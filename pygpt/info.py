"""What is built and in use (`info`), and which implementation of an op runs (`force`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from pygpt.extension import C

CPU_ISAS = ("avx512_bf16", "avx512_vnni", "avx512", "avx2", "scalar")  # best first


def info() -> dict[str, Any]:
    """What this installation can do here and what it last did.

    Returns:
        A dict with ``version``, ``torch``, ``cpu_isa`` (the best instruction set in use), ``cpu_isas`` (all that run
        here), ``cuda_architectures`` (what the build has code for: ``sm_90`` machine code, ``compute_80`` PTX),
        ``devices`` (a dict each: ``device`` as torch names it and ``name``; a GPU also ``compute_capability``,
        ``multiprocessors``, ``memory_bytes`` and ``shared_memory_bytes``, the most one block can have), ``threads``,
        ``emulated``, ``implementations`` ({op: [names that run here, best first]}) and ``last_used`` ({op: name, None
        before the first call}).

    In a build with a CUDA part this starts the CUDA driver, after which a forked child process cannot use it.
    """
    # Neither is needed to force an implementation, which happens at import.
    import torch

    from pygpt.machine import cpu_name

    tables = C.implementations()
    usable = {op: [name for name, reason in entries if not reason] for op, entries in tables}
    names = {name for entries in usable.values() for name in entries}
    isas = [isa for isa in CPU_ISAS if f"cpu_{isa}" in names]
    device = os.environ.get("PYGPT_EMULATE")
    gpus = [{"device": f"cuda:{index}", **gpu} for index, gpu in enumerate(C.cuda_devices()[0])]
    return {
        "version": C.__version__,
        "torch": torch.__version__,
        "cpu_isa": isas[0] if isas else None,
        "cpu_isas": isas,
        "cuda_architectures": [code for code in C.build()["cuda_code"].split(";") if code],
        "devices": [{"device": "cpu", "name": cpu_name()}, *gpus],
        "threads": torch.get_num_threads(),
        "emulated": f"sm_{device}" if device else None,
        "implementations": usable,
        "last_used": {op: C.last_used(op) for op, _ in tables},
    }


@contextlib.contextmanager
def force(op: str, name: str) -> Iterator[None]:
    """Let ``op`` run on its implementation ``name`` only, forward and backward, inside a ``with`` block.

    Args:
        op: an op's name, or ``"*"`` for every op that has an implementation of that name.
        name: one of ``pygpt.info()["implementations"][op]``.

    Raises:
        ValueError: if there is no such op or implementation (the message lists them); inside the block, by an op that
            the implementation refuses, with its reason.
    """
    before = {each: C.forced(each) for each, _ in C.implementations()}
    _force(op, name)
    try:
        yield
    finally:
        for each, previous in before.items():
            C.force(each, previous)


def _force(op: str, name: str) -> None:
    if op != "*":
        C.force(op, name)
        return
    having = [each for each, entries in C.implementations() if name in dict(entries)]
    if not having:
        names = sorted({entry for _, entries in C.implementations() for entry, _ in entries})
        raise ValueError(f"no op has an implementation {name!r}; there are {', '.join(names)}")
    for each in having:
        C.force(each, name)


def force_from_environment() -> None:
    """Apply PYGPT_FORCE=op:name[,op:name...].

    Raises:
        ValueError: if it is not of that form, or names an unknown op or implementation.
    """
    for part in filter(None, os.environ.get("PYGPT_FORCE", "").split(",")):
        op, colon, name = part.partition(":")
        if not colon:
            raise ValueError(f"PYGPT_FORCE must be op:name[,op:name...], but has the part {part!r}")
        _force(op.strip(), name.strip())
