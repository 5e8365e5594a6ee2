"""Fine-tuning: a run that begins with another model and learns a task from a file of examples.

Its folder has, besides what every run has::

    base/         the model that it begins with: with the tokens and heads that the task needs, its tokenizer, the task
    adapters/     with lora_rank: the adapters as they begin; checkpoints then hold adapters alone
    data/         train.jsonl and validation.jsonl: the examples, those left out that cannot be used
    task.json     the task and its template; beside every checkpoint too

so that it goes on, and its model can be loaded, whatever becomes of the base.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pygpt.eval.answers import write_answers
from pygpt.models import Encoder, Transformer, adapters
from pygpt.models.reshape import reshaped
from pygpt.tasks.form import LabelForm, TaskForm, load_form, make_form, needed_tokens
from pygpt.tasks.records import BadLines, Record, read_records, write_records
from pygpt.text import Tokenizer
from pygpt.text.permutation import permuted
from pygpt.text.rows import Ids
from pygpt.train.config import SHAPE, TrainConfig
from pygpt.train.examples import Draws, ExampleLoader, fixed_batches
from pygpt.train.saved import BASE, Saved, load_saved

ADAPTERS = "adapters"
SAMPLE_TOKENS = 100
DROPOUTS = ("dropout", "embedding_dropout", "attention_dropout", "residual_dropout")

Batch = tuple[Tensor, ...]


class TaskExamples:
    """The examples of a task's file, encoded.

    Args:
        records: of the file.
        form: encodes them.
        truncate: cut texts that are too long.
        bad: is told of records that the model cannot read.

    Raises:
        ValueError: naming the line of the first record that the model cannot read, unless ``bad`` counts them.
    """

    def __init__(self, records: Sequence[Record], form: TaskForm, truncate: bool, bad: BadLines) -> None:
        self._form = form
        self.records: list[Record] = []
        self.encoded: list[tuple[Ids, ...]] = []
        for record in records:
            try:
                self.encoded.append(form.encode(record.values, truncate))
            except ValueError as error:
                bad.add(record.line, str(error))
            else:
                self.records.append(record)

    def __len__(self) -> int:
        """Count them."""
        return len(self.records)

    def example(self, index: int, draws: Draws) -> tuple[Ids, ...]:
        """One of them; nothing is drawn."""
        return self.encoded[index]

    def batch(self, examples: Sequence[tuple[Ids, ...]]) -> Batch:
        """Several as the arguments of the model's loss."""
        return self._form.batch(examples)


@dataclass(frozen=True)
class FineTuning:
    """What a trainer needs of a run that fine-tunes.

    Attributes:
        model: on the CPU, with adapters if there are any.
        form: of the task.
        batches, validation: of the examples.
        steady: parameters that do not decay.
        save_model: writes the model or its adapters into a checkpoint's folder.
        save_extra: writes what belongs to it.
        sample: writes an answer to the first example; None for models that write nothing.
        scores: what an evaluation tells besides the loss.
    """

    model: Any
    form: TaskForm
    batches: ExampleLoader
    validation: list[Batch]
    steady: list[torch.nn.Parameter]
    save_model: Callable[[Path], None]
    save_extra: Callable[[Path], None]
    sample: Callable[[], str] | None
    scores: Callable[[Any, Sequence[Batch]], dict[str, float]] | None


def write_folder(folder: Path, config: TrainConfig, check_memory: Callable[[Any], None]) -> str:
    """Put base, adapters, examples and task into the folder of a new run.

    Args:
        folder: is there, and empty.
        config: has a base and a task.
        check_memory: refuses a shape that is too large.

    Returns: what was left out of the file, as a line; empty: nothing.
    Raises: ValueError, FileNotFoundError naming what is wrong with base, file or settings.
    """
    _check(config)
    assert config.base is not None and config.task is not None, "a run that fine-tunes has both"
    bad = BadLines(config.data[0], config.skip_bad)
    records = read_records(config.data[0], config.task, bad)
    base = load_saved(config.base, torch.float32)
    if base.model.quantization is not None:
        raise ValueError(
            f"{base.folder} holds a quantised model, which cannot be trained: fine-tune the model that it was made from"
        )
    template = _template(config, base)
    tokenizer = base.tokenizer.with_special(needed_tokens(config.task, base.model, base.tokenizer, template))
    model, changes = _prepared(base, tokenizer, config, records)
    form = make_form(config.task, model, tokenizer, template)
    check_memory(model.config)
    examples = TaskExamples(records, form, config.truncate, bad)
    train, validation = _split(examples.records, config)
    if not train:
        raise ValueError(f"{config.data[0]} has {len(examples)} usable examples, too few to train on" + _also(bad))
    model.save_pretrained(folder / BASE)
    for place in (folder / BASE, folder):
        tokenizer.save(place)
        form.save(place)
    (folder / "data").mkdir()
    write_records(folder / "data/train.jsonl", train)
    write_records(folder / "data/validation.jsonl", validation)
    if config.lora_rank is not None:
        alpha = 2.0 * config.lora_rank if config.lora_alpha is None else config.lora_alpha
        torch.manual_seed(config.seed)
        about = adapters.attach(
            model, config.lora_rank, alpha, config.lora_targets, base.model.config.vocab_size, changes
        )
        adapters.save(model, about, folder / ADAPTERS)
    return str(bad) if bad.count else ""


def open_folder(folder: Path, config: TrainConfig, checkpoint: Path | None) -> FineTuning:
    """Load what `write_folder` wrote, or a checkpoint of the run.

    Raises: ValueError, FileNotFoundError naming what is missing or damaged.
    """
    tokenizer = Tokenizer.load(folder)
    save: Callable[[Path], None]
    model: Any
    if config.lora_rank is None:
        model = Transformer.from_pretrained(checkpoint or folder / BASE)
        steady, save = [], model.save_pretrained
    else:
        base: Any = Transformer.from_pretrained(folder / BASE)
        model, about = adapters.load(base, checkpoint or folder / ADAPTERS)
        steady, save = adapters.steady(model, about), functools.partial(adapters.save, model, about)
    form = load_form(folder, model, tokenizer)
    if form is None:
        raise FileNotFoundError(f"{folder} has no task.json, though it fine-tunes a model")

    def save_extra(place: Path) -> None:
        tokenizer.save(place)
        form.save(place)

    examples, digest = _read(folder / "data/train.jsonl", form, config)
    identity = {"content_hash": digest, "task": config.task, "template": config.template}
    validation: list[Batch] = []
    asked = examples
    if config.eval_every and (folder / "data/validation.jsonl").stat().st_size:
        asked, _ = _read(folder / "data/validation.jsonl", form, config)
        validation = fixed_batches(asked, config.batch_size, config.eval_batches, config.seed)
    return FineTuning(
        model,
        form,
        ExampleLoader(examples, config.batch_size, config.seed, identity),
        validation,
        steady,
        save,
        save_extra,
        None if isinstance(model, Encoder) else functools.partial(_sample, model, form, asked.records[0]),
        functools.partial(_accuracy, form) if isinstance(form, LabelForm) else None,
    )


def _check(config: TrainConfig) -> None:
    """Refuse settings that say what the base says already."""
    own = (*(name for name in SHAPE if name not in DROPOUTS), "preset", "tokenizer", "separator", "attention_windows")
    for name in own:
        if getattr(config, name) is not None:
            raise ValueError(f"{name} is decided by the base of a fine-tuning: leave it out")
    if config.objective != "clm":
        raise ValueError(f"objective {config.objective!r} is of pre-training: with a task, leave it out")
    if len(config.data) != 1 or not Path(config.data[0]).is_file():
        raise FileNotFoundError(f"data must be one file of JSON Lines for a task, but is {' '.join(config.data)!r}")


def _template(config: TrainConfig, base: Saved) -> str | None:
    """The template: what is asked for, else that of a base that learned the task already, else the task's own."""
    if config.template is not None:
        return config.template.replace("\\n", "\n").replace("\\t", "\t")
    if base.form is not None and base.form.task == config.task:
        return getattr(base.form, "template", None)
    if config.task == "dialogue" and (base.folder.is_file() or (base.folder / "tokenizer_config.json").is_file()):
        raise ValueError(
            f"{base.folder} has a chat template of its own: say by --template how it writes a turn, such as "
            "'<|im_start|>{role}\\n{content}<|im_end|>\\n'"
        )
    return None


def _prepared(
    base: Saved, tokenizer: Tokenizer, config: TrainConfig, records: Sequence[Record]
) -> tuple[Any, dict[str, Any]]:
    """The base with the tokens and heads that the task needs, and what differs."""
    changes: dict[str, Any] = {}
    more = tokenizer.vocab_size - base.tokenizer.vocab_size
    if more:
        changes["vocab_size"] = base.model.config.vocab_size + more
    if isinstance(base.model, Encoder):
        before = base.model.config.labels
        found = sorted({record.values["label"] for record in records})
        if len(found) < 2 and not before:
            raise ValueError(f"{config.data[0]} has one label, {found[0]!r}: classification needs two or more")
        if not before:
            if not base.model.config.pooler:
                changes["pooler"] = True
            changes |= {"labels": found, "mlm_head": False, "nsp_head": False}
    dropouts = {name: value for name in DROPOUTS if (value := getattr(config, name)) is not None}
    if config.dropout is not None:
        dropouts = dict.fromkeys(DROPOUTS, config.dropout) | dropouts
    every = {**changes, **dropouts}
    return reshaped(base.model, config.seed, **every) if every else base.model, changes


def _split(records: list[Record], config: TrainConfig) -> tuple[list[Record], list[Record]]:
    """Training and validation, the latter drawn by the seed."""
    count = len(records)
    held = round(count * config.validation)
    if config.validation and not held and count > 1:
        held = 1
    chosen = set(permuted(np.arange(held), count, config.seed).tolist()) if held else set()
    train = [record for place, record in enumerate(records) if place not in chosen]
    return train, [records[place] for place in sorted(chosen)]


def _read(path: Path, form: TaskForm, config: TrainConfig) -> tuple[TaskExamples, str]:
    bad = BadLines(path)
    examples = TaskExamples(read_records(path, form.task, bad), form, config.truncate, bad)
    return examples, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _sample(model: Any, form: TaskForm, record: Record) -> str:
    room = min(SAMPLE_TOKENS, form.context_length // 2)
    try:
        question = form.ask(record.values, room, truncate=True)[-1]
    except ValueError:  # a dialogue that leaves no room
        return ""
    (answer,) = write_answers(model, form, [question], room)
    return f"{question.answer}\n→ {answer}"


def _accuracy(form: LabelForm, model: Any, batches: Sequence[Batch]) -> dict[str, float]:
    """The share of labels that are told rightly."""
    right, count = 0, 0
    for batch in batches:
        ids, lengths, labels = (each.to(model.token_embedding.weight.device) for each in batch)
        right += int((model.label_logits(model(ids, lengths=lengths)).argmax(-1) == labels).sum())
        count += len(labels)
    return {"accuracy": right / max(1, count)}


def _also(bad: BadLines) -> str:
    return f"; {bad}" if bad.count else ""
