"""A run: the folder that a training makes, goes on from, and leaves.

::

    config.toml       every setting; 'pygpt train --config' takes it
    tokenizer.json    what text becomes
    data/             the token files, unless a folder made by 'pygpt data' was given; or a task's examples
    metrics.jsonl     the record, one line per step
    loss.png          the loss curve, drawn anew with every checkpoint
    checkpoints/      see pygpt.train.checkpoint; each is a model by itself, with its tokenizer, or adapters

The folder appears whole: until text, tokenizer and configuration are ready it has a temporary name.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pygpt.files import atomic_path, read_json
from pygpt.models import GPT, TransformerConfig
from pygpt.models.memory import free_memory
from pygpt.optim import AdamW
from pygpt.text import BatchLoader, TokenFile, Tokenizer, prepare, sequential_batches
from pygpt.text.rows import SpecialTokens
from pygpt.train import finetune
from pygpt.train.baselines import Counts
from pygpt.train.checkpoint import Checkpoints
from pygpt.train.config import SHAPE, TrainConfig, read_toml
from pygpt.train.display import Display
from pygpt.train.examples import ExampleLoader, Examples, fixed_batches
from pygpt.train.metrics import Metrics, read_metrics
from pygpt.train.objectives import OBJECTIVES, Batch, pair_scores
from pygpt.train.plot import save_loss_plot
from pygpt.train.text import named_tokenizer, prompt_tokens, read_corpus
from pygpt.train.throughput import flops_per_token, measure_peak
from pygpt.train.trainer import Batches, Trainer, parameter_groups

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SAMPLE_TOKENS = 100

# What a checkpoint's bits depend on; a resumed run keeps it.
FIXED = ("data", "tokenizer", "vocab_size", "validation", "preset", *SHAPE, "attention_windows", "seed", "separator",
         "objective", "mask_rate", "whole_words", "noise", "base", "task", "template", "truncate", "skip_bad",
         "lora_rank", "lora_alpha", "lora_targets")  # fmt: skip


def create(folder: str | Path, config: TrainConfig, progress: bool = True) -> str:
    """Make a run's folder: text, tokenizer and configuration, ready to be trained.

    Args:
        folder: a new or empty folder.
        config: what to train, on what, and how.
        progress: show a progress bar while the text is read.

    Returns: what was left out of a task's file, as a line; empty: nothing.
    Raises: FileExistsError if there is something in the folder; ValueError, FileNotFoundError or OSError naming what is
        wrong with the configuration, the text, the tokenizer or the folder; MemoryError if a step needs more memory
        than is free. Then there is no folder.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; continue it with --resume, or choose another --out")
    named_device(config.device)
    if config.task is None:
        model_config(config, config.vocab_size)  # refused before text is read, which may take long
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        left_out = ""
        if config.task is not None:
            config = replace(config, base=str(Path(config.base or "").resolve()))
            left_out = finetune.write_folder(temporary, config, functools.partial(_check_memory, config=config))
        else:
            config = _write_text_folder(temporary, config, progress)
        config.save(temporary / "config.toml")
    return left_out


def _write_text_folder(folder: Path, config: TrainConfig, progress: bool) -> TrainConfig:
    """Put text and tokenizer into the folder of a new run that pre-trains; gives the configuration as it is saved."""
    prepared = _prepared_folder(config)
    if prepared is None:
        documents = read_corpus(config.data, config.separator)
        kind = config.tokenizer or "bpe"
        tokenizer = named_tokenizer(kind, documents, config.vocab_size if kind == "bpe" else None, progress)
        prepare(documents, tokenizer, folder / "data", config.validation, config.seed, progress)
    else:
        if config.separator is not None:
            raise ValueError(f"{prepared} has its documents already: leave out --separator")
        if config.tokenizer is not None:
            raise ValueError(f"{prepared} has the tokenizer that made its tokens: leave out --tokenizer")
        tokenizer = Tokenizer.load(prepared)
        config = replace(config, data=(str(prepared.resolve()),))
    data = prepared or folder / "data"
    shape = _shape(config, tokenizer)
    _check_memory(shape, config)
    _batches(data, tokenizer, config, shape.context_length)  # refuses what is damaged or too short
    _validation(data, tokenizer, config, shape.context_length)
    _check_prompt(tokenizer, config, shape.context_length)
    tokenizer.save(folder)
    return config


def read_config(folder: str | Path, changes: dict[str, Any] | None = None) -> TrainConfig:
    """Read a run's configuration, with changes.

    Raises: FileNotFoundError if the folder is no run; ValueError naming a setting that a run cannot change.
    """
    path = Path(folder) / "config.toml"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no config.toml")
    values = read_toml(path)
    saved = TrainConfig.from_dict(values, str(path))
    changed = TrainConfig.from_dict({**values, **(changes or {})}, "the flags")
    for name in FIXED:
        before, after = getattr(saved, name), getattr(changed, name)
        if before != after:
            raise ValueError(f"{name} cannot change when a run is resumed: {folder} has {before}, not {after}")
    return changed


@contextmanager
def open_run(folder: str | Path, config: TrainConfig, display: Display | None = None) -> Iterator[Trainer]:
    """Get a run ready to train, from its newest checkpoint if it has one, and keep other processes out of it.

    Args:
        folder: made by :func:`create`.
        config: from :func:`read_config`; saved, if it has changed.
        display: what is told of the progress.

    Yields: the trainer.
    Raises: FileNotFoundError, ValueError or OSError naming what is missing, damaged, or does not fit together;
        MemoryError if a step needs more memory than is free.
    """
    folder = Path(folder)
    display = display or Display()
    with _lock(folder):
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        checkpoints = Checkpoints(folder / "checkpoints", config.keep)
        paths = checkpoints.paths()
        newest = paths[-1] if paths else None
        make = _pretraining if config.task is None else _finetuning
        model, batches, validation, options = make(folder, config, newest)
        model.checkpoint_blocks = config.checkpoint_blocks
        model.train()
        groups = parameter_groups(model, config.weight_decay, options.pop("steady", ()))
        trainer = Trainer(
            model,
            AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2)),
            config,
            batches,
            validation,
            checkpoints=checkpoints,
            display=display,
            after_save=lambda: save_loss_plot(folder / "loss.png", read_metrics(folder / "metrics.jsonl"), folder.name),
            peak=measure_peak(DTYPES[config.dtype], named_device(config.device)),
            **options,
        )
        if newest is not None:
            trainer.restore(newest)
        if trainer.steps_done > config.steps:
            raise ValueError(f"steps is {config.steps}, but {folder} has done {trainer.steps_done} already")
        trainer.metrics = Metrics(folder / "metrics.jsonl", trainer.steps_done)
        if config != read_config(folder):
            config.save(folder / "config.toml")
        try:
            yield trainer
        finally:
            trainer.metrics.close()


def _pretraining(
    folder: Path, config: TrainConfig, checkpoint: Path | None
) -> tuple[Any, Batches, Sequence[Batch], dict[str, Any]]:
    """The model, the batches and the other options of the trainer of a run that learns an objective from text."""
    tokenizer = Tokenizer.load(folder)
    data = _data_folder(folder, config)
    objective = OBJECTIVES[config.objective]
    shape = _shape(config, tokenizer)
    _check_memory(shape, config)
    torch.manual_seed(config.seed)
    model: Any
    if checkpoint is not None:
        model = objective.model.from_pretrained(checkpoint).to(named_device(config.device))
    else:
        model = objective.model(shape, device=named_device(config.device))  # type: ignore[call-arg]
    tokenizer.check_model_vocabulary(model.config.vocab_size + tokenizer.vocab_size - objective.vocab_size(tokenizer))
    context_length = model.config.context_length
    options = {
        "sample": (lambda: write_text(model, tokenizer, config.prompt)) if config.objective == "clm" else None,
        "save_extra": tokenizer.save,
        "count_targets": objective.count_targets,
        "count_tokens": objective.count_tokens,
        "loss_options": {"label_smoothing": config.label_smoothing} if config.label_smoothing else None,
        "scores": pair_scores if config.objective == "mlm+nsp" else None,
        "flops_per_token": flops_per_token(model.config) if config.objective == "clm" else None,
    }
    _check_prompt(tokenizer, config, context_length)
    batches = _batches(data, tokenizer, config, context_length)
    return model, batches, _validation(data, tokenizer, config, context_length), options


def _finetuning(
    folder: Path, config: TrainConfig, checkpoint: Path | None
) -> tuple[Any, Batches, Sequence[Batch], dict[str, Any]]:
    """The same of a run that learns a task from a base."""
    work = finetune.open_folder(folder, config, checkpoint)
    _check_memory(work.model.config, config)
    torch.manual_seed(config.seed)
    options = {
        "steady": work.steady,
        "sample": work.sample,
        "save_model": work.save_model,
        "save_extra": work.save_extra,
        "count_targets": work.form.count_targets,
        "count_tokens": work.form.count_tokens,
        "arguments": work.form.arguments,
        "scores": work.scores,
    }
    return work.model.to(named_device(config.device)), work.batches, work.validation, options


def describe(trainer: Trainer) -> str:
    """What is about to be trained, in a line or two."""
    config, model = trainer.config, trainer.model
    shape = model.config
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    sequences = config.batch_size * config.accumulate
    size = f"{sequences:,} examples" if config.task else f"{sequences * shape.context_length:,} tokens"
    lines = [
        f"{parameters / 1e6:,.2f} million parameters: {shape.num_layers} layers, {shape.num_heads} heads, "
        f"{shape.embedding_dim} wide, context {shape.context_length}, vocabulary {shape.vocab_size:,}",
        f"{config.steps:,} steps of {size}, {config.dtype}, {torch.get_num_threads()} threads",
    ]
    if trained < parameters:
        lines[0] += f"; {trained / 1e6:,.2f} million are trained"
    if trainer.flops_per_token and trainer.peak:
        lines[1] += (
            f"; {trainer.flops_per_token / 1e6:,.1f} MFLOP a token, measured peak {trainer.peak / 1e9:,.0f} GFLOP/s"
        )
    if trainer.steps_done:
        lines.append(f"going on after step {trainer.steps_done:,}")
    return "\n".join(lines)


def describe_baselines(folder: str | Path, trainer: Trainer) -> str:
    """The losses of counting tokens and pairs of tokens on the validation text; nothing if there is none, or a task."""
    if not trainer.validation or trainer.config.task is not None:
        return ""
    objective = OBJECTIVES[trainer.config.objective]
    data = _data_folder(Path(folder), trainer.config)
    counts = Counts(TokenFile(data, "train"), trainer.model.config.vocab_size)
    unigram, bigram = counts.losses(map(objective.neighbours, trainer.validation))
    return f"to beat on the validation text: unigram loss {unigram:.3f}, bigram loss {bigram:.3f}"


def model_config(config: TrainConfig, vocab_size: int, **settings: Any) -> Any:
    """The shape of the objective's model: the preset's, or the defaults, with what the configuration sets.

    Raises: ValueError naming the preset or the part of the shape that does not fit.
    """
    given = {field: getattr(config, name) for name, field in SHAPE.items() if getattr(config, name) is not None}
    if config.attention_windows is not None:
        given["attention_windows"] = tuple(None if w == "all" else int(w) for w in config.attention_windows)
    objective = OBJECTIVES[config.objective]
    kind = objective.config
    if config.preset is not None:
        return kind.preset(config.preset, **{**given, **settings, "vocab_size": vocab_size})
    return kind.from_dict({**objective.shape, **given, **settings, "vocab_size": vocab_size})


def _shape(config: TrainConfig, tokenizer: Tokenizer) -> TransformerConfig:
    objective = OBJECTIVES[config.objective]
    shape: TransformerConfig = model_config(config, objective.vocab_size(tokenizer), **objective.settings(tokenizer))
    return shape


def named_device(name: str) -> torch.device:
    """The device of a flag. Raises: ValueError if it is none, or not here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, not {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, not {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but PyTorch finds no CUDA device here")
    if (device.index or 0) >= (1 if device.type == "cpu" else torch.cuda.device_count()):
        raise ValueError(f"device is {name!r}, but there is no such one here")
    return device


def write_text(model: GPT, tokenizer: Tokenizer, prompt: str | None = None, seed: int = 0) -> str:
    """A text that the model writes after ``prompt``, the prompt included; the same for the same seed."""
    tokens = prompt_tokens(tokenizer, prompt)
    room = model.config.context_length - len(tokens)
    ids = torch.tensor([tokens], device=next(model.parameters()).device)
    written = model.generate(ids, max_new_tokens=min(SAMPLE_TOKENS, room), temperature=0.8, top_p=0.95, seed=seed)
    return tokenizer.decode(written[0].tolist())


def _prepared_folder(config: TrainConfig) -> Path | None:
    """The folder of token files that ``data`` names, if it names one."""
    if len(config.data) == 1 and (Path(config.data[0]) / "tokens.json").is_file():
        return Path(config.data[0])
    return None


def _data_folder(folder: Path, config: TrainConfig) -> Path:
    """The token files of a run: its own where it has them, whatever its text's place holds by now."""
    own = folder / "data"
    return own if own.is_dir() else _prepared_folder(config) or own


def _batches(data: Path, tokenizer: Tokenizer, config: TrainConfig, context_length: int) -> Batches:
    file = TokenFile(data, "train", tokenizer)
    examples = _examples(file, tokenizer, config, context_length)
    if examples is None:
        return BatchLoader(file, config.batch_size, context_length, config.seed)
    identity = {"content_hash": file.content_hash, "split": file.split}
    settings = {"context_length": context_length, "objective": config.objective}
    return ExampleLoader(examples, config.batch_size, config.seed, {**identity, **settings})


def _examples(file: TokenFile, tokenizer: Tokenizer, config: TrainConfig, context_length: int) -> Examples | None:
    """What the objective makes of a token file; None: plain windows."""
    make = OBJECTIVES[config.objective].make
    return make and make(file, context_length, SpecialTokens.above(tokenizer.vocab_size), config, tokenizer)


def _validation(data: Path, tokenizer: Tokenizer, config: TrainConfig, context_length: int) -> Sequence[Batch]:
    if not config.eval_every or "validation" not in read_json(data / "tokens.json")["splits"]:
        return []
    file = TokenFile(data, "validation", tokenizer)
    examples = _examples(file, tokenizer, config, context_length)
    if examples is not None:
        return fixed_batches(examples, config.batch_size, config.eval_batches, config.seed)
    return list(sequential_batches(file, config.batch_size, context_length, config.eval_batches))


def _check_prompt(tokenizer: Tokenizer, config: TrainConfig, context_length: int) -> None:
    """Refuse a prompt that no sample can begin with, before the training comes to it."""
    if config.objective != "clm" or not config.sample_every:
        return
    tokens = len(prompt_tokens(tokenizer, config.prompt))
    if tokens >= context_length:
        raise ValueError(f"prompt has {tokens} tokens, and a context of {context_length} leaves no room after it")


def _check_memory(shape: TransformerConfig, config: TrainConfig) -> None:
    """Refuse what would end in the system killing this process: it gives memory away before it knows that it has it.

    Counted is what a step cannot do without: parameters, gradients and AdamW's two moments (with adapters: parameters
    and the weights that adapters make of them); the batches of a step; of one batch what each block keeps for its
    backward pass.
    """
    free = free_memory(named_device(config.device))
    tokens = config.batch_size * shape.context_length
    head_sizes = 2 * (shape.num_heads + shape.num_kv_heads) * shape.head_dim  # q, k, v and attention's result
    in_dtype = head_sizes + shape.hidden_dim if not config.checkpoint_blocks else 0
    kept = tokens * shape.num_layers * (in_dtype * DTYPES[config.dtype].itemsize + shape.embedding_dim * 4)
    copies = 4 if config.lora_rank is None else 2
    needed = 4 * copies * shape.num_parameters() + 2 * 8 * tokens * config.accumulate + kept
    if free is not None and needed > free:
        raise MemoryError(
            f"a step needs at least {needed / 2**30:,.1f} GiB ({shape.num_parameters():,} parameters, {tokens:,} "
            f"tokens at a time), but {config.device} has {free / 2**30:,.1f} GiB free: use a smaller batch_size, "
            "accumulate, context or model, or checkpoint_blocks"
        )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep a second process from training in the folder; the system gives the lock back however this one ends."""
    if os.name != "posix":
        yield
        return
    import fcntl

    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is training in {folder}") from None
        yield
