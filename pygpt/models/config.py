"""What a model is made of, as plain values, and the published models by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, TypeVar

ACTIVATIONS = ("gelu_tanh", "gelu", "relu", "swiglu", "geglu")
GATED = ("swiglu", "geglu")
POSITIONS = ("learned", "sinusoidal", "rope", "none")
NORMS = ("pre", "post")
NORM_TYPES = ("layer", "rms")
MAX_HEAD_DIM = 256

DERIVED: Any = None  # the default of a field that follows from others; it is never None in a config


Config = TypeVar("Config", bound="TransformerConfig")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """What the models have in common: the shape of their blocks, dropout and initialisation; `GPTConfig` explains it.

    Attributes:
        presets: the fields of published models, by name.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    vocab_size: int
    context_length: int
    num_layers: int
    num_heads: int
    embedding_dim: int
    num_kv_heads: int = DERIVED
    head_dim: int = DERIVED
    hidden_dim: int = DERIVED
    activation: str = "gelu_tanh"
    positions: str = "learned"
    norm: str = "pre"
    layer_norm_eps: float = 1e-5
    bias: bool = True
    tie_head: bool = True
    dropout: float = 0.0
    embedding_dropout: float = DERIVED
    attention_dropout: float = DERIVED
    residual_dropout: float = DERIVED
    attention_windows: tuple[int | None, ...] = (None,)
    init_std: float = 0.02
    norm_type: str = "layer"
    rope_theta: float = 10000.0
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "num_layers", "num_heads", "embedding_dim"):
            self._check_integer(name)
        if self.head_dim is None and self.embedding_dim % self.num_heads:
            raise ValueError(
                f"embedding_dim must be a multiple of num_heads, but {self.embedding_dim} is none of {self.num_heads}; "
                "set head_dim"
            )
        for name, value in self._derived().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("num_kv_heads", "head_dim", "hidden_dim"):
            self._check_integer(name)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, but {self.num_heads} is none of {self.num_kv_heads}"
            )
        if self.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"head_dim must be at most {MAX_HEAD_DIM}, but is {self.head_dim}")
        choices = {"activation": ACTIVATIONS, "positions": POSITIONS, "norm": NORMS, "norm_type": NORM_TYPES}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        self._check_booleans("bias", "tie_head", "qk_norm")
        for name in ("dropout", "embedding_dropout", "attention_dropout", "residual_dropout"):
            self._check_number(name, below=1.0)
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim must be even for positions 'rope', but is {self.head_dim}")
        for name in ("layer_norm_eps", "init_std", "rope_theta"):
            self._check_number(name)
        if self.rope_theta == 0:
            raise ValueError("rope_theta must be above 0, but is 0")
        if not isinstance(self.attention_windows, tuple | list):
            raise TypeError(f"attention_windows must be a tuple, not {self.attention_windows!r}")
        object.__setattr__(self, "attention_windows", tuple(self.attention_windows))
        if not self.attention_windows or not all(w is None or _is_positive(w) for w in self.attention_windows):
            raise ValueError(
                "attention_windows must hold one or more of None and integers of at least 1, "
                f"but is {self.attention_windows!r}"
            )

    @classmethod
    def preset(cls: type[Config], name: str, **changes: Any) -> Config:
        """The configuration of a published model.

        Args:
            name: one of ``presets``.
            changes: fields to set otherwise, such as ``dropout=0.1``.

        Raises:
            ValueError: if there is no such preset; the message lists them.
        """
        if name not in cls.presets:
            raise ValueError(f"there is no preset {name!r}; there are {', '.join(cls.presets)}")
        return cls.from_dict({**cls.presets[name], **changes})

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """Make a configuration of what `to_dict` gave.

        Raises:
            ValueError: naming unknown, missing or unfit fields.
        """
        fields = dataclasses.fields(cls)
        unknown = sorted(set(values) - {field.name for field in fields})
        if unknown:
            raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; was this written by a newer pygpt?")
        required = (field.name for field in fields if field.default is dataclasses.MISSING)
        missing = [name for name in required if name not in values]
        if missing:
            raise ValueError(f"{cls.__name__} needs a value for {', '.join(missing)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; None where a value is the one that follows from the others."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["attention_windows"] = list(self.attention_windows)
        values.update({name: None for name, derived in self._derived().items() if values[name] == derived})
        return values

    def num_parameters(self) -> int:
        """How many numbers the model's parameters hold; a tied head is counted once."""
        raise NotImplementedError

    def window(self, layer: int) -> int | None:
        """The attention window of a layer; layers count from 0."""
        return self.attention_windows[layer % len(self.attention_windows)]

    def _position_rows(self) -> int:
        """Rows of a table of learned positions."""
        return self.context_length if self.positions == "learned" else 0

    def _norm_parameters(self) -> int:
        return self.embedding_dim * (2 if self.bias and self.norm_type == "layer" else 1)

    def _block_parameters(self, cross: bool = False) -> int:
        """Parameters of a block; with ``cross`` it attends to a context too."""
        width, hidden, one_if_bias = self.embedding_dim, self.hidden_dim, int(self.bias)
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        attention = width * qkv + one_if_bias * qkv + self.num_heads * self.head_dim * width + one_if_bias * width
        attention += 2 * self.head_dim if self.qk_norm else 0
        into = 2 if self.activation in GATED else 1
        feed_forward = (into + 1) * width * hidden + one_if_bias * (into * hidden + width)
        attentions = 2 if cross else 1
        return (attentions + 1) * self._norm_parameters() + attentions * attention + feed_forward

    def _derived(self) -> dict[str, Any]:
        """What the fields that were not given are."""
        return {
            "num_kv_heads": self.num_heads,
            "head_dim": self.embedding_dim // self.num_heads,
            "hidden_dim": 4 * self.embedding_dim,
            "embedding_dropout": self.dropout,
            "attention_dropout": self.dropout,
            "residual_dropout": self.dropout,
        }

    def _check_booleans(self, *names: str) -> None:
        for name in names:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")

    def _check_integer(self, name: str, least: int = 1) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, not {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, but is {value}")

    def _check_number(self, name: str, below: float = math.inf) -> None:
        value = getattr(self, name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, not {value!r}")
        if not 0 <= value < below:
            limit = "" if below == math.inf else f" and less than {below:g}"
            raise ValueError(f"{name} must be at least 0{limit}, but is {value}")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _published(context_length: int, num_layers: int, num_heads: int, embedding_dim: int) -> dict[str, Any]:
    return {
        "vocab_size": 50257,
        "context_length": context_length,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "embedding_dim": embedding_dim,
    }


# GPT-3: Brown et al., 2020, table 2.1, with two rows that can be built: its 24 heads of 128 do not fit a width of 2048,
# and its width of 5140 is not 40 heads of 128.
PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": _published(1024, 12, 12, 768),
    "gpt2-medium": _published(1024, 24, 16, 1024),
    "gpt2-large": _published(1024, 36, 20, 1280),
    "gpt2-xl": _published(1024, 48, 25, 1600),
    "gpt3-small": _published(2048, 12, 12, 768),
    "gpt3-medium": _published(2048, 24, 16, 1024),
    "gpt3-large": _published(2048, 24, 16, 1536),
    "gpt3-xl": _published(2048, 24, 16, 2048),
    "gpt3-2.7b": _published(2048, 32, 32, 2560),
    "gpt3-6.7b": _published(2048, 32, 32, 4096),
    "gpt3-13b": _published(2048, 40, 40, 5120),
    "gpt3": _published(2048, 96, 96, 12288),
}


@dataclasses.dataclass(frozen=True)
class GPTConfig(TransformerConfig):
    """The shape of a GPT, its dropout and its initialisation.

    Args:
        vocab_size: number of tokens, V.
        context_length: the most tokens that the model sees at once.
        num_layers: number of blocks.
        num_heads: query heads of each block, H.
        embedding_dim: width of the model, C.
        num_kv_heads: key and value heads, G, a divisor of ``num_heads``; None: as many.
        head_dim: size of a head, D, at most 256; None: ``embedding_dim / num_heads``.
        hidden_dim: width inside the feed-forward networks; None: four times ``embedding_dim``.
        activation: ``"gelu_tanh"``, ``"gelu"`` (exact) or ``"relu"``; or ``"swiglu"`` or ``"geglu"``: with a gate, as
            in `pygpt.nn.GatedFeedForward`.
        positions: ``"learned"``, ``"sinusoidal"`` (Vaswani et al., 2017, section 3.5), ``"rope"`` (rotary; Su et al.,
            2021) or ``"none"``.
        norm: ``"pre"``: layer norm before attention and feed-forward network, and one after the last block (GPT-2);
            ``"post"``: after each residual sum (GPT-1).
        layer_norm_eps: added to the variance in layer norms.
        bias: whether layer norms and linear maps have biases.
        tie_head: whether the head is the token embedding, or has a matrix of its own.
        dropout: probability of dropout, where the following do not say otherwise.
        embedding_dropout: of the sum of token and position embeddings; None: ``dropout``.
        attention_dropout: of the attention weights; None: ``dropout``.
        residual_dropout: of what attention and feed-forward network add to the residual stream; None: ``dropout``.
        attention_windows: how many of the newest keys a query sees, layer by layer, from the start again after the
            last; None: all. GPT-3 alternates dense and banded layers: ``(None, 256)``.
        init_std: standard deviation of the initial weights; those that write to the residual stream have this over
            ``sqrt(2 num_layers)``, biases are 0, layer norms the identity (GPT-2).
        norm_type: ``"layer"`` or ``"rms"`` (without biases; Zhang and Sennrich, 2019); both add ``layer_norm_eps``.
        rope_theta: base of the rotary positions' angles.
        qk_norm: whether each head of queries and keys is normalised by its root mean square.

    Raises:
        ValueError: naming the field that does not fit, what was expected and what came.
        TypeError: naming a field of the wrong type.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; Brown et al., "Language Models
    are Few-Shot Learners", 2020.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    def num_parameters(self) -> int:
        """How many numbers the model's parameters hold; a tied head is counted once."""
        tables = self.vocab_size * (1 if self.tie_head else 2) + self._position_rows()
        last_norm = self._norm_parameters() if self.norm == "pre" else 0
        return tables * self.embedding_dim + self.num_layers * self._block_parameters() + last_norm
