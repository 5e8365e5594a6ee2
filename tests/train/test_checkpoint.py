"""Checkpoints are whole or absent, keep every bit, and say clearly what is wrong with one that cannot be read."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pygpt.train.checkpoint import Checkpoints, TrainingState, load_checkpoint
from tests.disk import files_of_at_most


def state(step: int, part: int = 0) -> TrainingState:
    tensors = {
        "a": torch.tensor([float("nan"), -0.0, 1e-40]),
        "b": torch.arange(6).view(2, 3).t(),
        "c": torch.tensor(7),
    }
    return TrainingState(step, part, {"position": [1, 2], "seconds": 0.1}, tensors)


def save_model(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"the model")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_to_the_bit(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(state(12, 3), save_model)
    assert (path.name, (path / "model.safetensors").read_bytes()) == ("step-00000012-part-03", b"the model")
    loaded, expected = load_checkpoint(path), state(12, 3)
    assert (loaded.step, loaded.part, loaded.values) == (12, 3, expected.values)
    assert loaded.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert loaded.tensors[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes(), name
        assert loaded.tensors[name].dtype == tensor.dtype


def test_the_newest_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        checkpoints.newest()
    for step, part in [(9, 0), (10, 0), (10, 2), (10, 11)]:
        checkpoints.save(state(step, part), save_model)
    (tmp_path / "step-of-mine").mkdir()
    assert [path.name for path in checkpoints.paths()] == ["step-00000010-part-02", "step-00000010-part-11"]
    assert checkpoints.newest().name == "step-00000010-part-11"
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_what_a_kill_left_is_removed_by_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".step-00000005.4194305-01234567.tmp").mkdir(parents=True)
    Checkpoints(tmp_path).save(state(6), save_model)
    assert names(tmp_path) == ["step-00000006"]


@pytest.mark.parametrize("limit", [0, 9, 200])
def test_a_full_disk_leaves_the_one_before(tmp_path: Path, limit: int) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    good = checkpoints.save(state(1), save_model)
    with files_of_at_most(limit), pytest.raises(OSError, match=r"step-00000002"):
        checkpoints.save(state(2), save_model)
    assert names(tmp_path) == [good.name]
    assert load_checkpoint(good).step == 1
    assert load_checkpoint(checkpoints.save(state(2), save_model)).step == 2


def test_a_model_that_cannot_be_saved_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), save_model)

    def fails(folder: Path) -> None:
        save_model(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(state(2), fails)
    assert names(tmp_path) == ["step-00000001"]


def test_missing_truncated_foreign_and_skewed_are_told_apart(tmp_path: Path) -> None:
    good = Checkpoints(tmp_path / "good").save(state(1), save_model)
    about = json.loads((good / "training.json").read_text())
    tensors = (good / "training.safetensors").read_bytes()

    def broken(name: str, content: bytes | None) -> Path:
        copy = tmp_path / "broken"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(good, copy)
        (copy / name).unlink()
        if content is not None:
            (copy / name).write_bytes(content)
        return copy

    with pytest.raises(FileNotFoundError, match=r"absent"):
        load_checkpoint(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"training\.safetensors is missing"):
        load_checkpoint(broken("training.safetensors", None))
    for cut in (0, 4, 60, len(tensors) - 1):
        with pytest.raises(ValueError, match=r"training\.safetensors is truncated or not a safetensors file"):
            load_checkpoint(broken("training.safetensors", tensors[:cut]))
    with pytest.raises(ValueError, match=r"training\.json is not valid JSON \(truncated"):
        load_checkpoint(broken("training.json", b'{"format": "pyg'))
    with pytest.raises(ValueError, match=r"training\.json is not of a pygpt checkpoint: its format is None"):
        load_checkpoint(broken("training.json", b"{}"))
    with pytest.raises(ValueError, match="is a checkpoint of version 2, and this pygpt reads version 1"):
        load_checkpoint(broken("training.json", json.dumps({**about, "version": 2}).encode()))
    del about["values"]
    with pytest.raises(ValueError, match=r"training\.json has no 'values'"):
        load_checkpoint(broken("training.json", json.dumps(about).encode()))
