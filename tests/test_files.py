"""Files are whole or absent: errors, full disks and kill -9 leave what was there before."""

import errno
import itertools
import math
import multiprocessing
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pygpt.files import (
    atomic_path,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    read_json,
    save_tensors,
)
from pygpt.text import ByteTokenizer, Document, prepare
from tests.disk import files_of_at_most

DOCUMENTS = [Document("name", "text")]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way" / "file.txt"
    atomic_write_text(path, "first\r\né")
    assert path.read_bytes() == b"first\r\n\xc3\xa9"
    atomic_write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert names(path.parent) == ["file.txt"]


def test_json_round_trip_and_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    atomic_write_json(path, {"text": "é\n", "numbers": [1, 2.5, None]})
    assert read_json(path) == {"text": "é\n", "numbers": [1, 2.5, None]}
    for bad in ({"loss": math.nan}, {"path": Path()}):
        with pytest.raises((TypeError, ValueError)):
            atomic_write_json(path, bad)
    assert read_json(path)["text"] == "é\n"
    for content in (b'{"text": "tru', b"\x80\x00binary", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"value\.json is not valid JSON"):
            read_json(path)
    path.write_bytes(b"[1]")
    with pytest.raises(ValueError, match="should hold a JSON object, but holds a list"):
        read_json(path)


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "step-1") as temporary:
        (temporary / "sub").mkdir(parents=True)
        (temporary / "sub" / "a").write_text("a")
        assert not (tmp_path / "step-1").exists()
    assert (tmp_path / "step-1" / "sub" / "a").read_text() == "a"
    with pytest.raises(OSError, match="step-1"), atomic_path(tmp_path / "step-1") as temporary:
        temporary.mkdir()
    assert (tmp_path / "step-1" / "sub" / "a").read_text() == "a"
    assert names(tmp_path) == ["step-1"]


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_an_error_of_the_body_keeps_its_own_file_name(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match="no such input") as caught,
        atomic_path(tmp_path / "output") as temporary,
    ):
        temporary.write_bytes((tmp_path / "no such input").read_bytes())
    assert "output" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file_is_named(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "file", "old")
    with pytest.raises(OSError, match="inside"):
        atomic_write_text(tmp_path / "file" / "inside", "new")
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_folder_without_a_name_is_named(path: str) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        atomic_write_text(path, "text")
    assert caught.value.filename == path


def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    for write in (lambda: atomic_write_text("file", "new"), lambda: prepare(DOCUMENTS, ByteTokenizer(), "new folder")):
        error = error_without_permission(tmp_path, write)
        assert error.startswith("PermissionError: [Errno 13] Permission denied")
        assert "file" in error or "new folder" in error
    assert names(tmp_path) == []


def error_without_permission(folder: Path, write: Callable[[], object]) -> str:
    """What ``write`` raises in a process that works in ``folder``, but as a user who may only read it."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)

    def work() -> None:
        os.chdir(folder)  # at once: another user may not even pass through the folders above
        folder.chmod(0o555)
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            write()
            sender.send("nothing")
        except Exception as error:
            sender.send(f"{type(error).__name__}: {error}")

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    folder.chmod(0o755)
    assert receiver.poll(), "the process died"
    return str(receiver.recv())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc/self/fd to name what is synced")
def test_content_reaches_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        events.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name.rpartition('.')[2]}")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        events.append(f"rename to {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    with atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "a.txt").write_text("a")
    assert events == ["sync txt", "sync tmp", "rename to folder", f"sync {tmp_path.name.rpartition('.')[2]}"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write_bytes(path, b"old")
    with pytest.raises(OSError, match=r"while writing; nothing was replaced.*file") as caught, files_of_at_most(4096):
        atomic_write_bytes(path, bytes(100_000))
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def write_for_ever(path: Path) -> None:
    for i in itertools.count():
        with atomic_path(path) as temporary, open(temporary, "wb", buffering=0) as file:
            for _ in range(64):
                file.write(bytes([i % 256]) * 65536)


def test_kill_leaves_a_whole_file_and_the_next_write_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for delay in (0.02, 0.05, 0.11):
        path.unlink(missing_ok=True)
        process = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(path,))
        process.start()
        while not path.exists():  # the first write is complete: from now on there must always be a whole file
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        content = path.read_bytes()
        assert len(content) == 64 * 65536
        assert len(set(content)) == 1
    with atomic_path(path) as temporary:
        host = temporary.name.removeprefix(".file.").partition("-")[0]
        temporary.write_bytes(b"newer")
    kept = [f".file.{host}-{os.getpid()}-01234567.tmp", f".file.other-{process.pid}-01234567.tmp"]
    (tmp_path / f".file.{host}-{process.pid}-01234567.tmp").write_text("left by the process just killed")
    for name in kept:
        (tmp_path / name).write_text("of a running one, here or on another machine")
    atomic_write_bytes(path, b"new")
    assert names(tmp_path) == sorted([*kept, "file"])


def test_tensors_get_the_mode_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_tensors(tmp_path / "tensors.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "tensors.safetensors").stat().st_mode) == 0o640
    assert torch.equal(load_file(tmp_path / "tensors.safetensors")["a"], torch.ones(2))


def test_tensors_on_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write .*tensors.safetensors: .*File too large"), files_of_at_most(5000):
        save_tensors(tmp_path / "tensors.safetensors", {"a": torch.ones(20_000)})


def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(NotADirectoryError, match=r"Not a directory \(while writing; nothing was replaced\).*file/new"):
        atomic_write_bytes(tmp_path / "file/new", b"x")
    assert (tmp_path / "file").read_text() == "kept"
