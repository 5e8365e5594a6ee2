"""Models on disk, in Hugging Face's layouts where these can say what the model is, else in the like of our own.

A folder holds ``config.json`` and ``model.safetensors``, or the parts that ``model.safetensors.index.json`` lists.
``model_type`` in config.json names the layout: ``"gpt2"``, ``"llama"``, ``"bert"``, ``"bart"``, see their modules; or
``"pygpt"``, ``"pygpt-encoder"``, ``"pygpt-seq2seq"``: the fields of the model's configuration and the names of its
state dict. ``"pygpt-quantized"`` is a GPT that `GPT.quantize` made: the same, with the scheme as ``quantization``; its
weights are packed as csrc/ops/quantized_linear.h says, in uint8. Pickles are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pygpt.files import atomic_path, read_json, save_tensors, write_json
from pygpt.models.adapters import has_adapters
from pygpt.models.bart_layout import BART
from pygpt.models.bert_layout import BERT
from pygpt.models.config import GPTConfig, TransformerConfig
from pygpt.models.encoder import Encoder, EncoderConfig
from pygpt.models.gpt import GPT
from pygpt.models.gpt2_layout import GPT2
from pygpt.models.layout import Layout
from pygpt.models.llama_layout import LLAMA
from pygpt.models.seq2seq import Seq2Seq, Seq2SeqConfig
from pygpt.models.transformer import Transformer
from pygpt.ops.quantized_linear import SCHEMES

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Model = TypeVar("Model", bound=Transformer)


def _own(model_type: str, model: type[Transformer], config: type[TransformerConfig]) -> Layout:
    """The layout that says every model of a class: our own names."""
    return Layout(
        model_type,
        model,
        canonical=lambda name: name,
        config=lambda values, names, path: config.from_dict(values),
        targets=lambda model: dict(model.named_parameters()),
        fits=lambda config: True,
        values=lambda model: model.config.to_dict(),
        stored=lambda model: dict(model.named_parameters()),
        head="head.weight",
    )


_SCHEMES = ("quantization", "head_quantization")  # attributes of a model, and fields of config.json

# Of quantised models, whatever their configuration.
QUANTIZED = Layout(
    "pygpt-quantized",
    GPT,
    canonical=lambda name: name,
    config=lambda values, names, path: GPTConfig.from_dict(values),
    targets=lambda model: model.state_dict(keep_vars=True),
    fits=lambda config: False,
    values=lambda model: {**{name: getattr(model, name) for name in _SCHEMES}, **model.config.to_dict()},
    stored=lambda model: model.state_dict(keep_vars=True),
    head="",  # it stands in the file, tied or not
)
# A model is saved in the first layout of its class that fits.
LAYOUTS = (
    GPT2,
    BERT,
    BART,
    LLAMA,
    _own("pygpt", GPT, GPTConfig),
    _own("pygpt-encoder", Encoder, EncoderConfig),
    _own("pygpt-seq2seq", Seq2Seq, Seq2SeqConfig),
    QUANTIZED,
)


def load(
    kind: type[Model], folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Model:
    """Load a model from a local folder, or a GPT from a GGUF file.

    Args:
        kind: the class of the model.
        folder: holds config.json and the weights, in one of the layouts of the class; or is a file that `gguf` reads.
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
    if folder.is_file() and folder.suffix == ".gguf":
        from pygpt.models import gguf

        if not issubclass(GPT, kind):
            raise ValueError(f"{folder} is a GGUF file, which pygpt.GPT reads, not {kind.__name__}")
        return gguf.load(folder, device, dtype)  # type: ignore[return-value]
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(folder)!r}; models are loaded from local folders only, nothing is downloaded"
        )
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}")
    values = read_json(folder / CONFIG)
    layout = _layout(values.pop("model_type", None), kind, folder / CONFIG)
    device = torch.device(device)
    made = _quantization(values, folder / CONFIG) if layout is QUANTIZED else {}
    files = _weight_files(folder)
    stored = {name: layout.canonical(name) for name in _stored_names(files)}
    names = {name for name in stored.values() if name is not None}
    try:
        config = layout.config(values, names, folder / CONFIG)
    except (TypeError, ValueError) as error:  # of a configuration, which does not know where its values come from
        where = f"{folder / CONFIG}: "
        raise ValueError(where + str(error).removeprefix(where)) from error
    if dtype is None:
        dtype = _stored_dtype(files, layout)
        if dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"{folder} holds weights of {dtype}, with which pygpt does not compute: say another dtype")
        if dtype == torch.float16 and device.type == "cpu":
            dtype = torch.float32
    model: Model = layout.model(config, device, dtype, initialise=False, **made)
    targets = layout.targets(model)
    loaded: set[str] = set()
    for name, tensor, path in _stored_tensors(files):
        canonical = stored[name]
        if canonical is None or (canonical == layout.head and config.tie_head):
            continue
        if canonical in layout.zeros:
            if tensor.any():
                raise ValueError(f"{path}: {name} is not zero; pygpt computes without it")
            continue
        if canonical not in targets:
            raise ValueError(f"{path} holds {name}, which is no part of the model that {CONFIG} describes")
        target = targets[canonical]
        if tensor.shape != target.shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, "
                f"but the model that {CONFIG} describes has {tuple(target.shape)}"
            )
        if tensor.dtype != target.dtype and not (tensor.is_floating_point() and target.is_floating_point()):
            expected = "floating point" if target.is_floating_point() else target.dtype
            raise ValueError(f"{path}: {name} is {tensor.dtype}; it must be {expected}")
        with torch.no_grad():
            target.copy_(tensor)
        loaded.add(canonical)
    missing = sorted(set(targets) - loaded)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"{folder} has no weights for {', '.join(missing[:3])}{more}")
    return model.eval()


def save(model: Transformer, folder: str | Path) -> str:
    """Save a model to a folder: config.json and model.safetensors, in the dtype of the model.

    Args:
        model: what to save.
        folder: made if it is not there; its config.json and weights are replaced, each whole or not at all.

    Returns:
        The layout's model_type, such as ``"gpt2"``; one that begins with ``"pygpt"`` if no other can say the model.

    Raises:
        ValueError: if the model has adapters, which are saved alone or merged into it.
        OSError: if the folder or the disk does not take the files.
    """
    if has_adapters(model):
        raise ValueError(
            "the model has adapters: save these by pygpt.models.adapters.save, or merge them into its weights first"
        )
    folder = Path(folder)
    fitting = (each for each in LAYOUTS if isinstance(model, each.model) and each.fits(model.config))
    layout = next(fitting) if model.quantization is None else QUANTIZED
    own = layout.model_type.startswith("pygpt")
    dtype = {} if own else {"torch_dtype": str(model.token_embedding.weight.dtype).removeprefix("torch.")}
    # Parts of one parameter are copied: the file's format has no room for tensors that share memory.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        if tensor._is_view()
        else tensor.detach().cpu().contiguous()
        for name, tensor in layout.stored(model).items()
    }
    # Both are written in full before one takes its name, and an index goes between the two: whoever comes after a kill
    # finds the old model, or the new one, which has the old configuration for the length of a rename.
    with atomic_path(folder / CONFIG) as config:
        write_json(config, {"model_type": layout.model_type, **layout.values(model), **dtype})
        with atomic_path(folder / WEIGHTS) as weights:
            save_tensors(weights, tensors, {"format": "pt"})
        (folder / INDEX).unlink(missing_ok=True)  # of a model in parts that was here before
    return layout.model_type


def _quantization(values: dict[str, Any], path: Path) -> dict[str, str]:
    """The schemes that config.json names, which are taken out of its values; a head without one has the others'."""
    of_all = values.pop("quantization", None)
    schemes = {"quantization": of_all, "head_quantization": values.pop("head_quantization", of_all)}
    for name, scheme in schemes.items():
        if scheme not in SCHEMES:
            raise ValueError(f"{path}: {name} is {scheme!r}; pygpt reads {', '.join(SCHEMES)}")
    return schemes


def _layout(model_type: Any, kind: type[Transformer], path: Path) -> Layout:
    known = {layout.model_type: layout for layout in LAYOUTS}
    layout = known.get(model_type) if isinstance(model_type, str) else None
    if layout is None:
        names = [name for name, each in known.items() if issubclass(each.model, kind)]
        raise ValueError(f"{path} describes a model of type {model_type!r}; {kind.__name__} reads {', '.join(names)}")
    if not issubclass(layout.model, kind):
        raise ValueError(
            f"{path} describes a model of type {model_type!r}, which pygpt.{layout.model.__name__} reads, "
            f"not {kind.__name__}"
        )
    return layout


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


def _stored_dtype(files: list[Path], layout: Layout) -> torch.dtype:
    """The dtype of the first floating-point weight that is no buffer."""
    for name, tensor, _ in _stored_tensors(files):
        if tensor.is_floating_point() and layout.canonical(name) is not None:
            return tensor.dtype
    return torch.float32


def _stored_names(files: list[Path]) -> Iterator[str]:
    for path in files:
        with _opened(path) as file:
            names = list(file.keys())
        yield from names


def _stored_tensors(files: list[Path]) -> Iterator[tuple[str, Tensor, Path]]:
    """Every tensor with its name and file, one at a time.

    A file is opened for each anew: what was read of it stays in memory for as long as it is open.
    """
    for path in files:
        for name in _stored_names([path]):
            with _opened(path) as file:
                yield name, file.get_tensor(name), path


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
