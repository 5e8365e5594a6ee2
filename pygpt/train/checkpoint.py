"""Checkpoints of a training: folders that appear whole, of safetensors and JSON files, never pickle.

::

    checkpoints/step-00000200/            after 200 optimiser steps
    checkpoints/step-00000200-part-03/    and 3 of the next step's forward and backward passes
        config.json, model.safetensors    what GPT.save_pretrained writes, so that the folder is a model by itself
        training.safetensors              optimiser state, random streams, gradients of a half-done step
        training.json                     format, version, position in the data, guard: plain values

A folder is written under a temporary name, its files and itself fsynced, then renamed. Older ones are removed only
after that, so that a whole one exists at every moment, whatever dies when.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pygpt.files import atomic_path, atomic_write_json, load_tensors, read_json, save_tensors

FORMAT = "pygpt training checkpoint"
VERSION = 1


@dataclass(frozen=True)
class TrainingState:
    """What a training needs beside the model to go on: plain JSON values, and tensors by name."""

    step: int
    part: int  # forward and backward passes done of the next step
    values: dict[str, Any]
    tensors: dict[str, torch.Tensor]


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: holds one folder per checkpoint; made when the first is saved. One training at a time may write to it.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.folder = Path(folder)
        self.keep = keep

    def paths(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [(position, path) for path in self.folder.iterdir() if (position := _position(path.name)) is not None]
        return [path for _, path in sorted(found)]

    def newest(self) -> Path:
        """The checkpoint of the most steps. Raises: FileNotFoundError if there is none."""
        paths = self.paths()
        if not paths:
            raise FileNotFoundError(f"{self.folder} holds no checkpoint")
        return paths[-1]

    def best(self) -> Path:
        """The checkpoint of the lowest validation loss, if the training keeps it, else the newest.

        Raises: FileNotFoundError if there is none; ValueError if the newest is damaged.
        """
        newest = self.newest()
        best = load_values(newest)["values"].get("best")
        path = newest if best is None else self.folder / _name(best["step"])
        return path if path.is_dir() else newest

    def save(self, state: TrainingState, save_model: Callable[[Path], None]) -> Path:
        """Save a checkpoint, then remove those beyond the newest ``keep``, except the one that ``best`` in its values
        names.

        Args:
            state: what :meth:`load` is to give back.
            save_model: writes the model into the folder it is given.

        Returns: the checkpoint's folder. One that is there already is left: the same position means the same bits.
        Raises: OSError if it cannot be written; what was there before is still there.
        """
        path = self.folder / _name(state.step, state.part)
        if not path.exists():
            self._write(path, state, save_model)
        best = state.values.get("best")
        for old in self.paths()[: -self.keep]:
            if best is None or old.name != _name(best["step"]):
                shutil.rmtree(old)
        for abandoned in self.folder.glob(".step-*.tmp"):  # of saves that a kill cut off
            shutil.rmtree(abandoned)
        return path

    def _write(self, path: Path, state: TrainingState, save_model: Callable[[Path], None]) -> None:
        with atomic_path(path) as temporary:
            temporary.mkdir()
            save_model(temporary)
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
            save_tensors(temporary / "training.safetensors", tensors)
            about = {"format": FORMAT, "version": VERSION, "step": state.step, "part": state.part}
            atomic_write_json(temporary / "training.json", {**about, "values": state.values})


def load_checkpoint(path: str | Path) -> TrainingState:
    """Read the training state of a checkpoint folder; the model in it is read by ``GPT.from_pretrained``.

    Raises: FileNotFoundError, ValueError naming the file that is missing, truncated, of another program or of a version
        that this one does not read.
    """
    path = Path(path)
    about = load_values(path)
    try:
        state = TrainingState(about["step"], about["part"], about["values"], {})
    except KeyError as error:
        raise ValueError(f"{path / 'training.json'} has no {error}") from None
    state.tensors.update(load_tensors(path / "training.safetensors"))
    return state


def load_values(path: Path) -> dict[str, Any]:
    """What ``training.json`` of a checkpoint says. Raises: as `load_checkpoint`."""
    about = read_json(path / "training.json")
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path / 'training.json'} is not of a pygpt checkpoint: its format is {about.get('format')!r}"
        )
    if about.get("version") != VERSION:
        raise ValueError(
            f"{path} is a checkpoint of version {about.get('version')}, and this pygpt reads version {VERSION}; "
            "continue it with the pygpt that wrote it"
        )
    return about


def _name(step: int, part: int = 0) -> str:
    return f"step-{step:08d}" + (f"-part-{part:02d}" if part else "")


def _position(name: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"step-(\d{8,})(?:-part-(\d{2,}))?", name)
    return (int(match[1]), int(match[2] or 0)) if match else None
