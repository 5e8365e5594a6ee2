"""Low-rank adapters (LoRA): fine-tuning of two thin matrices beside each linear map, whose own weights stay.

A map's weight is ``W + alpha / rank · B A``, with A (rank, in) and B (out, rank), which begins at zero; it is computed
anew in each pass, in a session once. Since every kernel then sees one weight, a model with adapters and one into which
they were merged give the same bits. Optimiser state is needed for the adapters alone; in a pass, each adapted map has a
second weight, and for a moment a gradient of its size.

Tokens and heads that the base had not are trained whole, beside the adapters. A folder of adapters holds these and the
adapters, and knows its base by a hash of its weights:

    adapter.json          rank, alpha, targets; what the base must be
    adapter.safetensors   A and B of each map, and what is trained whole

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pygpt.files import atomic_path, atomic_write_json, load_tensors, read_json, save_tensors
from pygpt.models.low_rank import LowRank
from pygpt.models.reshape import reshaped
from pygpt.models.transformer import Transformer
from pygpt.nn import Linear

FORMAT = "pygpt adapter"
VERSION = 1
SETTINGS, WEIGHTS = "adapter.json", "adapter.safetensors"
TABLES = ("token_embedding.weight", "head.weight")  # which have a row for each token
HEADS = ("label_head.", "pooler.")  # trained whole where the model has labels

# Of the entries of the settings, as JSON has them.
_KINDS = {
    "rank": int,
    "alpha": int | float,
    "targets": list,
    "tokens": int,
    "changes": dict,
    "model": dict,
    "base": str,
}

# Fields of a configuration that may differ from the base's: they change no weight, or are listed in ``changes``.
_FREE = ("dropout", "embedding_dropout", "attention_dropout", "residual_dropout", "init_std")


@dataclass(frozen=True)
class Adapters:
    """What adapters are, and for which model.

    Attributes:
        rank, alpha: of each.
        targets: the maps that have one, by the last part of their names.
        tokens: how many tokens the base had; those after them are trained whole.
        changes: fields of the base's configuration that the fine-tuned model has otherwise.
        model: the class and the configuration of the fine-tuned model.
        base: hash of the base's weights.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    tokens: int
    changes: dict[str, Any]
    model: dict[str, Any]
    base: str


def attach(
    model: Transformer,
    rank: int,
    alpha: float,
    targets: Sequence[str] | None = None,
    base_tokens: int | None = None,
    changes: dict[str, Any] | None = None,
) -> Adapters:
    """Give a model adapters, drawn from torch's default generator, and freeze all else that its base had.

    Args:
        model: the base, or what `pygpt.models.reshape.reshaped` made of it.
        rank: of the adapters.
        alpha: they act with alpha / rank.
        targets: names of maps inside the blocks, such as ``"qkv"``; None: all.
        base_tokens: the base's vocabulary; None: the model's.
        changes: what ``reshaped`` was asked for.

    Raises:
        ValueError: if a target is no map of the model, or the rank is larger than a map; or if the model has adapters,
            or is quantised.
    """
    if has_adapters(model):
        raise ValueError("the model has adapters already: merge them before it gets others")
    if model.quantization is not None:
        raise ValueError("a quantised model cannot have adapters: give them to the model that it was made from")
    there = dict.fromkeys(name.rpartition(".")[2] for name, _ in _maps(model))
    targets = tuple(there) if targets is None else tuple(targets)
    for name in targets:
        if name not in there:
            raise ValueError(f"lora_targets must be any of {', '.join(there)}, not {name!r}")
    if not targets:
        raise ValueError(f"lora_targets must be one or more of {', '.join(there)}, but there is none")
    chosen = [(name, module) for name, module in _maps(model) if name.rpartition(".")[2] in targets]
    smallest = min(min(module.weight.shape) for _, module in chosen)
    if not 1 <= rank <= smallest:
        raise ValueError(f"lora_rank must be from 1 to {smallest}, the smallest size of the maps, not {rank}")
    tokens = model.config.vocab_size if base_tokens is None else base_tokens
    about = {"class": type(model).__name__, **model.config.to_dict()}
    adapters = Adapters(rank, alpha, targets, tokens, dict(changes or {}), about, _fingerprint(model, tokens))
    _attach(model, adapters)
    return adapters


def _attach(model: Transformer, adapters: Adapters) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_whole(model, name))
    for name in TABLES:
        table = dict(model.named_parameters()).get(name)
        if table is not None and adapters.tokens < len(table):
            table.requires_grad_()
            table.register_hook(_NewRowsOnly(adapters.tokens))  # type: ignore[no-untyped-call]
    for name, module in list(_maps(model)):
        if name.rpartition(".")[2] in adapters.targets:
            low_rank = LowRank(module.weight.detach(), adapters.rank, adapters.alpha)
            parametrize.register_parametrization(module, "weight", low_rank)


def merge(model: Transformer) -> None:
    """Make the adapters' maps plain again, with their effect in their weights: the same bits come out."""
    _detach(model, keep_effect=True)


def has_adapters(model: Transformer) -> bool:
    """Whether a map of the model has an adapter."""
    return any(parametrize.is_parametrized(module) for module in model.modules())


def _detach(model: Transformer, keep_effect: bool) -> None:
    """Make the model what it was before `_attach`, with the adapters' effect in its weights or without."""
    for _, module in list(_maps(model)):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=keep_effect)
    for name, table in list(model.named_parameters()):
        if name in TABLES:  # a new parameter, without the hook that keeps its first rows
            model.get_submodule(name.removesuffix(".weight")).weight = nn.Parameter(table.detach())
    for parameter in model.parameters():
        parameter.requires_grad_()


def steady(model: Transformer, adapters: Adapters) -> list[nn.Parameter]:
    """The trained tables of tokens, most of whose rows must stay: weight decay may not touch them."""
    return [p for name, p in model.named_parameters() if name in TABLES and adapters.tokens < len(p)]


def save(model: Transformer, adapters: Adapters, folder: str | Path) -> None:
    """Write adapters, and what is trained whole, without the model's other weights.

    Raises:
        OSError: if they cannot be written.
    """
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _trained(model, adapters).items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_tensors(temporary, tensors)
    atomic_write_json(folder / SETTINGS, {"format": FORMAT, "version": VERSION, **asdict(adapters)})


def load(model: Transformer, folder: str | Path) -> tuple[Any, Adapters]:
    """Give a model the adapters in a folder.

    Args:
        model: the base that they were trained beside; it is changed, or, where it lacks tokens or heads, copied.
        folder: what `save` wrote.

    Returns:
        The model with adapters, to be trained further or merged; and what they are.

    Raises:
        FileNotFoundError: if the folder holds none.
        ValueError: if they are damaged, or of another model; what differs is named.
    """
    folder = Path(folder)
    adapters = _read(folder)
    stored = load_tensors(folder / WEIGHTS)
    if adapters.model["class"] != type(model).__name__:
        raise ValueError(f"{folder} has adapters of a {adapters.model['class']}, not of a {type(model).__name__}")
    mine = {"class": type(model).__name__, **model.config.to_dict()}
    lacking = {name: value for name, value in adapters.changes.items() if mine.get(name) != value}
    for name, value in adapters.model.items():
        if name not in (*_FREE, *adapters.changes) and mine.get(name) != value:
            raise ValueError(
                f"{folder} has adapters of another model: its {name} is {value!r}, and this one's {mine.get(name)!r}"
            )
    if lacking:
        if model.config.vocab_size not in (adapters.tokens, adapters.model["vocab_size"]):
            raise ValueError(
                f"{folder} has adapters of another model: it had {adapters.tokens} tokens, and this one has "
                f"{model.config.vocab_size}"
            )
        model = reshaped(model, **adapters.changes)
    if _fingerprint(model, adapters.tokens) != adapters.base:
        raise ValueError(f"{folder} has adapters of another model: its weights are others, in the same shapes")
    _attach(model, adapters)
    try:
        _fill(_trained(model, adapters), stored, folder / WEIGHTS)
    except ValueError:
        _detach(model, keep_effect=False)
        raise
    return model, adapters


@torch.no_grad()
def _fill(targets: dict[str, Tensor], stored: dict[str, Tensor], path: Path) -> None:
    """Put stored tensors into their places. Raises: ValueError if they do not fit; then none was put."""
    if stored.keys() != targets.keys():
        odd = min(stored.keys() ^ targets.keys())
        raise ValueError(f"{path} is damaged: {'lacks' if odd in targets else 'has'} {odd}")
    for name, target in targets.items():
        if target.shape != stored[name].shape:
            raise ValueError(f"{path}: {name} has shape {tuple(stored[name].shape)}, not {tuple(target.shape)}")
    for name, target in targets.items():
        target.copy_(stored[name])


def _read(folder: Path) -> Adapters:
    values = read_json(folder / SETTINGS)
    if values.pop("format", None) != FORMAT or values.pop("version", None) != VERSION:
        raise ValueError(f"{folder / SETTINGS} is of no adapters that this pygpt reads")
    if values.keys() != {field.name for field in fields(Adapters)}:
        raise ValueError(f"{folder / SETTINGS} is damaged: its entries are {', '.join(values)}")
    for name, kind in _KINDS.items():
        if not isinstance(values[name], kind) or (name == "model" and "class" not in values[name]):
            raise ValueError(f"{folder / SETTINGS} is damaged: its {name} is {values[name]!r}")
    return Adapters(**{**values, "targets": tuple(values["targets"])})


def _maps(model: Transformer) -> Iterator[tuple[str, Linear]]:
    """The linear maps inside the blocks, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and ("blocks." in name):
            yield name, module


def _whole(model: Transformer, name: str) -> bool:
    """Whether a parameter is trained whole: that of a head which the base need not have had."""
    return bool(getattr(model.config, "labels", ())) and name.startswith(HEADS)


def _trained(model: Transformer, adapters: Adapters) -> dict[str, Tensor]:
    """What is saved, as views of the model's parameters."""
    trained: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if name in TABLES:
            if adapters.tokens < len(parameter):
                trained[name] = parameter[adapters.tokens :]
        elif parameter.requires_grad:
            trained[name.replace("parametrizations.weight.0.", "lora_")] = parameter
    return trained


def _fingerprint(model: Transformer, tokens: int) -> str:
    """A hash of what the base had: names and values of its weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        if _whole(model, name):
            continue
        weight = parameter.detach()[:tokens] if name in TABLES else parameter.detach()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _NewRowsOnly:
    """Keeps the gradient of a table's first rows at zero."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __call__(self, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[: self._rows] = 0
        return gradient
