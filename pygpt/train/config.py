"""Everything that decides a training: one dataclass, filled from the command line and from a TOML file."""

import argparse
import difflib
import math
import sys
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli_w

from pygpt.files import atomic_write_bytes
from pygpt.tasks.records import TASKS
from pygpt.train.schedule import SCHEDULES, Schedule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_THREADS = 1024  # OpenMP, which PyTorch computes with, ends the process when it cannot start what it is asked for
NOISE = ("permutation", "infilling", "masking")
CORPUS = "python-docs"  # as --data: the documentation inside Python's own standard library

# Settings of the model's shape -> its fields.
SHAPE = {
    "layers": "num_layers",
    "heads": "num_heads",
    "kv_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "width": "embedding_dim",
    "hidden": "hidden_dim",
    "context": "context_length",
    "dropout": "dropout",
    "embedding_dropout": "embedding_dropout",
    "attention_dropout": "attention_dropout",
    "residual_dropout": "residual_dropout",
    "activation": "activation",
    "positions": "positions",
    "rope_theta": "rope_theta",
    "norm": "norm",
    "norm_type": "norm_type",
    "norm_eps": "layer_norm_eps",
    "qk_norm": "qk_norm",
    "bias": "bias",
    "tie_head": "tie_head",
    "init_std": "init_std",
}


def _option(
    kind: type,
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    above: bool = False,
    maximum: int | None = None,
) -> Any:
    """A field of the configuration: what its values are, and what ``--help`` says of it."""
    limits = {"minimum": minimum, "above": above, "maximum": maximum}
    return field(default=default, metadata={"kind": kind, "text": text, "choices": choices, **limits})


@dataclass(frozen=True)
class TrainConfig:
    """What to train, on what, and how. Each field is a flag of ``pygpt train`` and a key of its TOML file.

    Raises: ValueError or TypeError naming the field that does not fit.
    """

    # Text
    data: tuple[str, ...] = _option(
        tuple,
        (CORPUS,),
        f"text files, folders, globs, a folder made by 'pygpt data', or {CORPUS}: Python's own documentation",
    )
    separator: str | None = _option(
        str, None, "what stands between the documents of a file, such as '\\n\\n\\n' (a file is one document)"
    )
    tokenizer: str | None = _option(
        str, None, "char, byte, bpe (trained on the data), or a folder that holds one (bpe, or the prepared data's)"
    )
    vocab_size: int = _option(int, 4096, "tokens of a BPE that is trained on the data", minimum=257)
    validation: float = _option(float, 0.05, "share of the text held out for evaluation", minimum=0)

    # Model
    preset: str | None = _option(str, None, "shape of a known model, such as gpt2; the flags below override its parts")
    layers: int | None = _option(int, None, "blocks (6 without a preset)", minimum=1)
    heads: int | None = _option(int, None, "attention heads (6 without a preset)", minimum=1)
    kv_heads: int | None = _option(int, None, "key and value heads, of which 'heads' is a multiple", minimum=1)
    head_dim: int | None = _option(int, None, "size of a head (the width over the heads)", minimum=1)
    width: int | None = _option(int, None, "embedding width (384 without a preset)", minimum=1)
    hidden: int | None = _option(int, None, "width inside the feed-forward network (4 times the width)", minimum=1)
    context: int | None = _option(int, None, "tokens the model sees at once (256 without a preset)", minimum=1)
    dropout: float | None = _option(float, None, "dropout (0 without a preset)", minimum=0)
    embedding_dropout: float | None = _option(float, None, "of the embeddings (as 'dropout')", minimum=0)
    attention_dropout: float | None = _option(float, None, "of the attention weights (as 'dropout')", minimum=0)
    residual_dropout: float | None = _option(float, None, "of what each half of a block adds (as 'dropout')", minimum=0)
    activation: str | None = _option(str, None, "gelu_tanh, gelu, relu, swiglu or geglu (gelu_tanh for a GPT)")
    positions: str | None = _option(
        str, None, "learned, sinusoidal, rope or none (without a preset learned for a GPT, else rope)"
    )
    rope_theta: float | None = _option(float, None, "base of rotary positions' angles (10000)", minimum=0, above=True)
    attention_windows: tuple[str, ...] | None = _option(
        tuple, None, "newest tokens that each layer sees, a number or 'all', from the start again after the last (all)"
    )
    norm: str | None = _option(str, None, "layer norm pre or post the residual sum (pre without a preset)")
    norm_type: str | None = _option(str, None, "layer or rms (layer without a preset)")
    norm_eps: float | None = _option(float, None, "added to the variance in norms (1e-5 for a GPT)", minimum=0)
    qk_norm: bool | None = _option(bool, None, "normalise each head of queries and keys")
    bias: bool | None = _option(bool, None, "biases in linear maps and layer norms (yes without a preset)")
    tie_head: bool | None = _option(bool, None, "use the token embedding as head (yes without a preset)")
    init_std: float | None = _option(float, None, "standard deviation of the first weights (0.02 for a GPT)", minimum=0)
    checkpoint_blocks: bool = _option(bool, False, "recompute each block in the backward pass: slower, less memory")

    # Objective
    objective: str = _option(
        str,
        "clm",
        "what is learned: the next token (clm, a GPT), hidden tokens (mlm, an encoder), these and whether one sentence "
        "follows another (mlm+nsp), or text from text (encoder-decoder): its continuation (seq2seq), or itself from a "
        "noisy copy (denoise)",
        choices=("clm", "mlm", "mlm+nsp", "seq2seq", "denoise"),
    )
    mask_rate: float | None = _option(
        float, None, "share of the tokens that is hidden (mlm: 0.15; denoise: 0.3)", minimum=0, above=True
    )
    whole_words: bool = _option(bool, False, "mlm: hide whole words")
    noise: tuple[str, ...] = _option(tuple, NOISE[:2], "denoise: any of permutation (of lines), infilling and masking")
    label_smoothing: float = _option(
        float, 0.0, "seq2seq, denoise: share of a target that all tokens have evenly", minimum=0
    )

    # Fine-tuning
    base: str | None = _option(
        str, None, "fine-tune this model: a run, a folder with model and tokenizer, or a GGUF file"
    )
    task: str | None = _option(
        str,
        None,
        "what is learned from the file of JSON Lines that 'data' names: generation (prompt, completion), summarisation "
        "(document, summary), translation (source, target), dialogue (turns: role, content) or classification (text, "
        "label)",
        choices=tuple(TASKS),
    )
    template: str | None = _option(
        str, None, "how a GPT reads an example, such as '{document}<|summary|>{summary}<|end|>' (see the task)"
    )
    truncate: bool = _option(bool, False, "cut the end of a given text that is too long for the model")
    skip_bad: bool = _option(bool, False, "leave out, and count, lines of the file that cannot be used")
    lora_rank: int | None = _option(
        int, None, "train adapters of this rank in place of the model's own weights", minimum=1
    )
    lora_alpha: float | None = _option(
        float, None, "adapters act with this over their rank (twice the rank)", minimum=0, above=True
    )
    lora_targets: tuple[str, ...] | None = _option(
        tuple, None, "linear maps that get adapters, any of qkv, out, up, down and gate (all)"
    )
    early_stopping: int | None = _option(
        int, None, "stop after so many evaluations without a lower loss; never, if it is not given", minimum=1
    )

    # Training
    steps: int = _option(int, 1000, "optimiser steps", minimum=1)
    batch_size: int = _option(int, 12, "sequences per forward pass", minimum=1)
    accumulate: int = _option(int, 1, "forward passes per optimiser step", minimum=1)
    lr: float = _option(float, 1e-3, "highest learning rate", minimum=0, above=True)
    min_lr: float | None = _option(float, None, "lowest learning rate after the warm-up (a tenth of lr)", minimum=0)
    schedule: str = _option(str, "cosine", "course of the learning rate after the warm-up", choices=SCHEDULES)
    warmup: int | None = _option(
        int, None, "steps of linear warm-up (a twentieth of the steps, at most 1000)", minimum=0
    )
    decay: int | None = _option(int, None, "steps of the decay that ends wsd (a fifth of the steps)", minimum=0)
    weight_decay: float = _option(float, 0.1, "decay of the weight matrices and embeddings", minimum=0)
    beta1: float = _option(float, 0.9, "AdamW's memory of the gradient", minimum=0)
    beta2: float = _option(float, 0.99, "AdamW's memory of the squared gradient", minimum=0)
    grad_clip: float = _option(float, 1.0, "largest norm of the gradient; 0 never clips", minimum=0)
    dtype: str = _option(
        str, "fp32", "arithmetic of forward and backward; parameters stay fp32", choices=("fp32", "bf16")
    )
    device: str = _option(str, "cpu", "cpu, cuda or cuda:N")
    threads: int | None = _option(int, None, "CPU threads (as many as PyTorch takes)", minimum=1, maximum=MOST_THREADS)
    seed: int = _option(
        int, 0, "of the initial weights, the order of the data and dropout", minimum=0, maximum=2**63 - 1
    )
    spike_sigma: float = _option(
        float, 6.0, "skip a step whose loss or gradient norm is so many deviations above the mean; 0 never", minimum=0
    )
    patience: int = _option(int, 10, "stop after so many skipped steps in a row", minimum=1)

    # Record
    eval_every: int = _option(int, 100, "steps between evaluations; 0 never", minimum=0)
    eval_batches: int = _option(int, 16, "batches of an evaluation", minimum=1)
    save_every: int = _option(int, 100, "steps between checkpoints; 0 only at the end", minimum=0)
    keep: int = _option(int, 2, "newest checkpoints kept", minimum=1)
    sample_every: int = _option(int, 250, "steps between printed samples; 0 never", minimum=0)
    prompt: str | None = _option(str, None, "how printed samples begin (a new line)")
    log_every: int = _option(int, 10, "steps between printed lines when the output is no terminal", minimum=1)

    def __post_init__(self) -> None:
        for option in fields(self):
            _check(option, getattr(self, option.name))
        dropouts = ("dropout", "embedding_dropout", "attention_dropout", "residual_dropout")
        for name in ("beta1", "beta2", "validation", *dropouts, "mask_rate", "label_smoothing"):
            value = getattr(self, name)
            if value is not None and value >= 1:
                raise ValueError(f"{name} must be below 1, not {value:g}")
        if not self.data:
            raise ValueError("data must name at least one file, folder or glob")
        for name, given, able in (
            ("label_smoothing", self.label_smoothing, ("seq2seq", "denoise")),
            ("mask_rate", self.mask_rate, ("mlm", "mlm+nsp", "denoise")),
            ("whole_words", self.whole_words, ("mlm", "mlm+nsp")),
            ("noise", self.noise != NOISE[:2], ("denoise",)),
        ):
            if given and self.objective not in able:
                raise ValueError(f"{name} is for {' and '.join(able)}, not {self.objective}")
        for name in self.noise:
            if name not in NOISE:
                raise ValueError(f"noise must be any of {', '.join(NOISE)}, not {name!r}")
        for window in self.attention_windows or ():
            if window != "all" and not (window.isdecimal() and int(window) > 0):
                raise ValueError(f"attention_windows must be numbers of at least 1 or 'all', not {window!r}")
        self._check_fine_tuning()
        self.learning_rate()  # checks what its parts must be to each other

    def _check_fine_tuning(self) -> None:
        if (self.base is None) != (self.task is None):
            there, missing = ("task", "base") if self.base is None else ("base", "task")
            raise ValueError(f"{there} is given, but {missing} is not: fine-tuning needs both")
        if self.task is None:
            for name in ("template", "truncate", "skip_bad", "lora_rank"):
                if getattr(self, name):
                    raise ValueError(f"{name} is for fine-tuning, with base and task")
        if self.early_stopping is not None and not (self.eval_every and self.validation):
            raise ValueError("early_stopping needs evaluations: eval_every and validation must be above 0")
        if self.lora_rank is None and (self.lora_alpha is not None or self.lora_targets is not None):
            raise ValueError("lora_alpha and lora_targets need a lora_rank")

    def learning_rate(self) -> Schedule:
        """The learning rate of each step."""
        warmup = min(self.steps // 20, 1000) if self.warmup is None else self.warmup
        decay = min(self.steps // 5, self.steps - min(warmup, self.steps)) if self.decay is None else self.decay
        return Schedule(
            kind=self.schedule,
            peak=self.lr,
            steps=self.steps,
            warmup=warmup,
            floor=self.lr / 10 if self.min_lr is None else self.min_lr,
            decay=decay if self.schedule == "wsd" else 0,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields that have a value, as TOML can say them."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> "TrainConfig":
        """Make a configuration of keys and values; ``source`` says in errors where they came from.

        Raises: ValueError naming ``source`` and the key that is unknown or does not fit.
        """
        known = {option.name: option for option in fields(cls)}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise ValueError(f"{source}: unknown key {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        try:
            return cls(**{name: _from_toml(known[name], value) for name, value in values.items()})
        except (ValueError, TypeError) as error:
            raise ValueError(f"{source}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the configuration as TOML. Raises: OSError, see :func:`pygpt.files.atomic_path`."""
        atomic_write_bytes(path, tomli_w.dumps(self.to_dict()).encode("utf-8"))


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file. Raises: FileNotFoundError; ValueError naming ``path`` if it is not TOML."""
    try:
        values: dict[str, Any] = tomllib.loads(Path(path).read_bytes().decode("utf-8"))
    except ValueError as error:  # both tomllib.TOMLDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    return values


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` one flag per field of :class:`TrainConfig`; a flag that is not given leaves no attribute."""
    titles = {
        "data": "text",
        "preset": "model",
        "objective": "objective",
        "base": "fine-tuning",
        "steps": "training",
        "eval_every": "record",
    }
    group: Any = parser
    for option in fields(TrainConfig):
        if option.name in titles:
            group = parser.add_argument_group(titles[option.name])
        settings: dict[str, Any] = {"help": _help(option), "default": argparse.SUPPRESS, "dest": option.name}
        kind = option.metadata["kind"]
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif kind is tuple:
            settings.update(nargs="+", metavar="PATH" if option.name == "data" else "NAME")
        elif option.metadata["choices"]:
            settings["choices"] = option.metadata["choices"]
        else:
            settings.update(type=kind, metavar={int: "N", float: "X", str: "NAME"}[kind])
        group.add_argument("--" + option.name.replace("_", "-"), **settings)


def flags_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of :class:`TrainConfig` for which a flag was given."""
    return {option.name: getattr(arguments, option.name) for option in fields(TrainConfig) if option.name in arguments}


def _help(option: "Field[Any]") -> str:
    default = option.default
    if default is None or option.metadata["kind"] is bool:
        return str(option.metadata["text"])
    shown = (
        " ".join(default) if isinstance(default, tuple) else f"{default:g}" if isinstance(default, float) else default
    )
    return f"{option.metadata['text']} (default: {shown})"


def _from_toml(option: "Field[Any]", value: Any) -> Any:
    """TOML and JSON have lists where the configuration has tuples; a single text stands for a list of one."""
    if option.metadata["kind"] is tuple:
        return tuple(value) if isinstance(value, list) else (value,)
    return value


def _check(option: "Field[Any]", value: Any) -> None:
    kind, minimum, above = (option.metadata[key] for key in ("kind", "minimum", "above"))
    if value is None and option.default is None:
        return
    if kind is tuple:
        fits = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        fits = type(value) is kind
    if not fits:
        wanted = {
            tuple: "a list of texts",
            float: "a number",
            int: "a whole number",
            str: "a text",
            bool: "true or false",
        }
        raise TypeError(f"{option.name} must be {wanted[kind]}, not {value!r}")
    if option.metadata["choices"] and value not in option.metadata["choices"]:
        raise ValueError(f"{option.name} must be one of {', '.join(option.metadata['choices'])}, not {value!r}")
    if minimum is not None and not (math.isfinite(value) and (value > minimum if above else value >= minimum)):
        raise ValueError(f"{option.name} must be {'above' if above else 'at least'} {minimum:g}, not {value:g}")
    maximum = option.metadata["maximum"]
    if maximum is not None and value > maximum:
        raise ValueError(f"{option.name} must be at most {maximum}, not {value}")
