"""Models on disk, in Hugging Face's GPT-2 layout where it can say what the model is, else in the like of our own.

A folder holds ``config.json`` and ``model.safetensors``, or the parts that ``model.safetensors.index.json`` lists.
``model_type`` in config.json is ``"gpt2"``: the names and shapes of `transformers.GPT2LMHeadModel`, whose maps are
stored (in, out); or ``"pygpt"``: the fields of `GPTConfig` and the names of `GPT.state_dict`. Pickles are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pygpt.files import atomic_path, atomic_write_json, read_json
from pygpt.models.config import GPTConfig
from pygpt.models.gpt import GPT

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

END_OF_TEXT = 50256  # in GPT-2's vocabulary

# Hugging Face's name of an activation -> ours. The first of ours is what we write.
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}

# Settings that change the computation -> the only value that we can compute with, which is also their default.
_FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}

# Ours -> Hugging Face's, where both have a number of the same meaning.
_SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "embedding_dim": "n_embd",
    "hidden_dim": "n_inner",
    "layer_norm_eps": "layer_norm_epsilon",
    "embedding_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "residual_dropout": "resid_pdrop",
    "init_std": "initializer_range",
}
# What config.json may leave out, as transformers.GPT2Config has it.
_DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "initializer_range": 0.02,
}

# Parts of our names -> parts of Hugging Face's; in a block, our map is stored transposed.
_OUTSIDE = {
    "token_embedding": "wte",
    "position_embedding": "wpe",
    "norm": "ln_f",
}
_MAPS = {
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}
_NORMS = {"norm_1": "ln_1", "norm_2": "ln_2"}

# The causal mask, which old files carry along.
_BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def load(folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> GPT:
    """Load a model from a local folder.

    Args:
        folder: holds config.json and the weights, in the layout of GPT-2 or of pygpt.
        device: where the model is made.
        dtype: of the model; None: the weights', or float32 for float16 weights on the CPU, which has no kernels for it.

    Returns:
        The model, in eval mode.

    Raises:
        FileNotFoundError: if the folder, its config.json or its weights are not there.
        ValueError: if the model is of another kind, is computed in a way that is not supported, or its files are
            damaged or do not fit together.
        MemoryError: if the model does not fit into the device's memory.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(folder)!r}; models are loaded from local folders only, nothing is downloaded"
        )
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}")
    values = read_json(folder / CONFIG)
    kind = values.pop("model_type", None)
    if kind == "gpt2":
        config = _config_from_gpt2(values, folder / CONFIG)
    elif kind == "pygpt":
        config = GPTConfig.from_dict(values)
    else:
        raise ValueError(f"{folder / CONFIG} describes a model of type {kind!r}; pygpt reads gpt2 and pygpt")

    device = torch.device(device)
    files = _weight_files(folder)
    if dtype is None:
        dtype = _stored_dtype(files)
        if dtype == torch.float16 and device.type == "cpu":
            dtype = torch.float32
    model = GPT(config, device, dtype, initialise=False)
    targets = _targets(model, kind)
    loaded: set[str] = set()
    for name, tensor, path in _stored_tensors(files):
        name = name.removeprefix("transformer.") if kind == "gpt2" else name
        if kind == "gpt2" and (_BUFFERS.fullmatch(name) or (name == "lm_head.weight" and config.tie_head)):
            continue
        if name not in targets:
            raise ValueError(f"{path} holds {name}, which is no part of the model that {CONFIG} describes")
        target = targets[name]
        if tensor.shape != target.shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, "
                f"but the model that {CONFIG} describes has {tuple(target.shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{path}: {name} is {tensor.dtype}; weights must be floating point")
        with torch.no_grad():
            target.copy_(tensor)
        loaded.add(name)
    missing = sorted(set(targets) - loaded)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"{folder} has no weights for {', '.join(missing[:3])}{more}")
    return model.eval()


def save(model: GPT, folder: str | Path) -> str:
    """Save a model to a folder: config.json and model.safetensors, in the dtype of the model.

    Args:
        model: what to save.
        folder: made if it is not there; its config.json and weights are replaced, each whole or not at all.

    Returns:
        The layout: ``"gpt2"`` if Hugging Face's GPT-2 can be what the model is, else ``"pygpt"``.

    Raises:
        OSError: if the folder or the disk does not take the files.
    """
    folder = Path(folder)
    config = model.config
    kind = "gpt2" if _fits_gpt2(config) else "pygpt"
    values: dict[str, Any] = {"model_type": kind}
    if kind == "gpt2":
        values |= {"architectures": ["GPT2LMHeadModel"], **_config_to_gpt2(config, model.token_embedding.weight.dtype)}
    else:
        values |= config.to_dict()
    prefix = "transformer." if kind == "gpt2" else ""
    tensors = {
        name if name == "lm_head.weight" else prefix + name: target.detach().cpu().contiguous()
        for name, target in _targets(model, kind).items()
    }
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    atomic_write_json(folder / CONFIG, values)
    (folder / INDEX).unlink(missing_ok=True)  # of a model in parts that was here before
    return kind


def _targets(model: GPT, kind: str) -> dict[str, Tensor]:
    """The model's parameters by their names in the file, as views of the shape that they have there."""
    parameters = dict(model.named_parameters())
    if kind == "pygpt":
        return dict(parameters)
    targets: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        path, _, leaf = name.rpartition(".")
        if path == "head":
            targets["lm_head.weight"] = parameter
        elif path in _OUTSIDE:
            targets[f"{_OUTSIDE[path]}.{leaf}"] = parameter
        else:
            _, layer, part = path.split(".", 2)
            theirs = f"h.{layer}.{_MAPS.get(part) or _NORMS[part]}.{leaf}"
            targets[theirs] = parameter.T if part in _MAPS and leaf == "weight" else parameter
    return targets


def _config_from_gpt2(values: dict[str, Any], path: Path) -> GPTConfig:
    for name, only in _FIXED.items():
        if values.get(name, only) != only:
            raise ValueError(f"{path}: {name} is {values[name]!r}; pygpt computes with {only!r} only")
    activation = values.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"{path}: activation_function is {activation!r}; pygpt computes with {', '.join(_ACTIVATIONS)} only"
        )
    sizes = {ours: values.get(theirs, _DEFAULTS[theirs]) for ours, theirs in _SIZES.items()}
    return GPTConfig.from_dict(
        {
            **sizes,
            "activation": _ACTIVATIONS[activation],
            "tie_head": values.get("tie_word_embeddings", True),
            "dropout": sizes["residual_dropout"],
        }
    )


def _config_to_gpt2(config: GPTConfig, dtype: torch.dtype) -> dict[str, Any]:
    activation = next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation)
    return {
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        **_FIXED,
        "activation_function": activation,
        "tie_word_embeddings": config.tie_head,
        **dict.fromkeys(("bos_token_id", "eos_token_id"), END_OF_TEXT if config.vocab_size > END_OF_TEXT else None),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _fits_gpt2(config: GPTConfig) -> bool:
    return (
        config.num_kv_heads == config.num_heads
        and config.num_heads * config.head_dim == config.embedding_dim
        and config.positions == "learned"
        and config.norm == "pre"
        and config.bias
        and all(window is None for window in config.attention_windows)
    )


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights."""
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{folder / INDEX} has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{folder / INDEX} names {name!r}, which is no .safetensors file of its folder")
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / INDEX} names {name}, which is not there")
        return [folder / name for name in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ValueError(
            f"{folder} has {pickles[0]}, a pickle, which can run any program when it is read; "
            f"pygpt reads {WEIGHTS} only: convert it with transformers' save_pretrained"
        )
    raise FileNotFoundError(f"{folder} has no {WEIGHTS}")


def _stored_dtype(files: list[Path]) -> torch.dtype:
    """The dtype of the first floating-point weight that is no buffer."""
    for name, tensor, _ in _stored_tensors(files):
        if tensor.is_floating_point() and not _BUFFERS.fullmatch(name.removeprefix("transformer.")):
            return tensor.dtype
    return torch.float32


def _stored_tensors(files: list[Path]) -> Iterator[tuple[str, Tensor, Path]]:
    """Every tensor with its name and file, one at a time."""
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (safe_open is no dict)
                    yield name, file.get_tensor(name), path
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
