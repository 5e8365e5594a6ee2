"""Models as trainings leave them: a run's checkpoint, whole or adapters beside a base, with tokenizer and task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from pygpt.models import GPT, Encoder, Seq2Seq, Transformer, adapters, gguf
from pygpt.tasks.form import TaskForm, load_form
from pygpt.text import Tokenizer
from pygpt.text.rows import SpecialTokens
from pygpt.train.checkpoint import Checkpoints

BASE = "base"  # of a run that fine-tunes: the model that it began with


class Saved(NamedTuple):
    """A model with what belongs to it.

    Attributes:
        model: in eval mode.
        tokenizer: what its texts become.
        form: of the task that it was fine-tuned for; None: none.
        folder: where it lies; or the GGUF file.
    """

    model: Any
    tokenizer: Tokenizer
    form: TaskForm | None
    folder: Path


def load_saved(folder: str | Path, dtype: torch.dtype | None = None, *, keep_quantized: bool = False) -> Saved:
    """Load a model of any kind: of a run its best checkpoint, if it keeps it, else its newest; or any folder with both.

    Adapters are merged into the model. A GGUF file has both; ``keep_quantized`` is that of `pygpt.models.gguf.load`.

    Raises: FileNotFoundError, ValueError naming what is missing, damaged, or does not fit together.
    """
    folder = Path(folder)
    model: Any
    tokenizer: Tokenizer
    if folder.is_file() and folder.suffix == ".gguf":
        model, (tokenizer, *_) = gguf.load_with_text(folder, dtype, keep_quantized=keep_quantized)
        check_vocabulary(model, tokenizer)
        return Saved(model, tokenizer, None, folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder of a run or of a model, or a GGUF file")
    path = Checkpoints(folder / "checkpoints").best() if (folder / "config.toml").is_file() else folder
    if (path / adapters.SETTINGS).is_file() and path != folder:
        # Adapters belong to the base's very bits: the model is moved to another dtype when it is whole.
        model, _ = adapters.load(Transformer.from_pretrained(folder / BASE), path)
        adapters.merge(model)
        model.to(dtype)
    else:
        model = Transformer.from_pretrained(path, dtype=dtype)
    tokenizer = Tokenizer.load(path)
    check_vocabulary(model, tokenizer)
    return Saved(model.eval(), tokenizer, load_form(path, model, tokenizer), path)


def load_model(folder: str | Path, *, keep_quantized: bool = False) -> tuple[GPT, Tokenizer]:
    """Load a GPT and its tokenizer, as `load_saved`. Raises: also ValueError if the model is no GPT."""
    model, tokenizer, _, path = load_saved(folder, keep_quantized=keep_quantized)
    if not isinstance(model, GPT):
        raise ValueError(f"{path} holds a model which pygpt.{type(model).__name__} reads, not GPT: it does not write")
    return model, tokenizer


def check_vocabulary(model: Any, tokenizer: Tokenizer) -> None:
    """Raise a ValueError unless a model has the tokenizer's tokens, or also those special ones that texts have not."""
    special = len(SpecialTokens._fields)
    if isinstance(model, Encoder | Seq2Seq) and model.config.vocab_size == tokenizer.vocab_size + special:
        return
    tokenizer.check_model_vocabulary(model.config.vocab_size)
