"""Writing files so that they are whole or absent: a temporary name, fsync, rename.

A reader, and whoever comes after a crash, a full disk or a ``kill -9``, finds either what was there before or all of
the new content, never a part of it. Everything pygpt saves (checkpoints, tokenizers, token files) goes through here.
"""

import errno
import json
import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write a file or a folder to; on success it takes the name ``path``.

    Args:
        path: the final name. Missing parent folders are created. An existing file is replaced; a folder can only take a
            name that is free or an empty folder's.

    Yields: the temporary path, where nothing exists yet. The body creates a file or a folder there, and closes it.

    Raises: OSError naming ``path`` when it cannot be written (full disk, no permission, a file where a folder should
        be). Then, as after any exception of the body, the temporary is removed and ``path`` is as it was.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        _make_folder(path.parent)
        _remove_abandoned(path)
        yield temporary
        if temporary.is_dir():
            for inside in sorted(temporary.rglob("*"), reverse=True):
                _sync(inside)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        _remove(temporary)
        if error.errno is None or not _concerns(error, temporary):
            raise  # the body failed at something else, such as reading its input
        raise OSError(error.errno, f"{error.strerror} (while writing; nothing was replaced)", str(path)) from error
    except BaseException:
        _remove(temporary)
        raise


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all. Raises: OSError, see :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, line ends as given. Raises: OSError, see :func:`atomic_path`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON.

    Raises: OSError, see :func:`atomic_path`; TypeError or ValueError if ``value`` is no JSON (NaN and infinity are
        not).
    """
    with atomic_path(path) as temporary:
        write_json(temporary, value)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to a file that nobody reads yet, as `atomic_write_json` does. Raises: as that."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_bytes(text.encode("utf-8"))


def save_tensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, with the mode that any new file gets here: the library lets its owner alone read it.

    Raises: OSError naming ``path`` if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # which imports torch

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:  # the library reports a full disk as its own error
        raise OSError(f"cannot write {path}: {error}") from error
    path.chmod(mode)


def load_tensors(path: Path) -> "dict[str, Tensor]":
    """Read a safetensors file to the CPU.

    Raises: FileNotFoundError; ValueError naming ``path`` if it is truncated or not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # which imports torch

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
    return tensors


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises: FileNotFoundError; ValueError naming ``path`` if it is truncated, not JSON, or not an object.
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except ValueError as error:  # both json.JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not valid JSON (truncated, or another kind of file): {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} should hold a JSON object, but holds a {type(value).__name__}")
    return value


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # of a file in its place, which the system's words do not say
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None


def _concerns(error: OSError, temporary: Path) -> bool:
    """Whether the error came from writing at ``temporary``: failed writes name no file, failed opens do."""
    if not isinstance(error.filename, str | Path):
        return error.filename is None
    named = Path(error.filename)
    return named == temporary or named in temporary.parents or temporary in named.parents


def _sync(path: Path) -> None:
    """Have the kernel write a file's content, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name != "posix":
        return  # only POSIX systems open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _host() -> str:
    """This machine, in eight hexadecimal digits: others may write to the same file system."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _remove_abandoned(path: Path) -> None:
    """Remove the temporaries that killed processes left for ``path``: a checkpoint's can be gigabytes.

    Those of other machines stay, as whether their processes run is not known here.
    """
    if os.name != "posix":
        return  # elsewhere os.kill(pid, 0) is not a question
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{_host()}-(\d+)-[0-9a-f]{{8}}\.tmp")
    for entry in os.scandir(path.parent):
        match = pattern.fullmatch(entry.name)
        if match is None:
            continue
        try:
            os.kill(int(match[1]), 0)
        except ProcessLookupError:
            _remove(Path(entry.path))
        except OSError:
            pass  # it runs, under another user
