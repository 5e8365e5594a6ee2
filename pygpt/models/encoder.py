"""BERT: a stack of blocks in which every token sees all others, and the heads of its pre-training."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pygpt import ops
from pygpt.extension import EMULATED
from pygpt.models.block import Stack, make_norm
from pygpt.models.config import GATED, TransformerConfig
from pygpt.models.sequence import check_ids, check_shape, past_lengths
from pygpt.models.transformer import Transformer
from pygpt.nn import Embedding, LayerNorm, Linear, RMSNorm
from pygpt.nn.evaluating import evaluating


def _published(num_layers: int, num_heads: int, embedding_dim: int) -> dict[str, Any]:
    sizes = {"num_layers": num_layers, "num_heads": num_heads, "embedding_dim": embedding_dim}
    return {"vocab_size": 30522, "context_length": 512, **sizes}


@dataclasses.dataclass(frozen=True)
class EncoderConfig(TransformerConfig):
    """The shape of an `Encoder`: BERT's, where nothing else is said.

    The fields of `pygpt.GPTConfig`, of which ``tie_head`` speaks of the masked-LM head, and initial weights all have
    the standard deviation ``init_std``; and

    Args:
        num_segments: rows of the table of segments (sentence A, sentence B); 0: no segments.
        pooler: whether there is the map of the first token, which sentence classification begins with.
        mlm_head: whether there is the head that predicts masked tokens.
        nsp_head: whether there is the head that says whether segment B follows segment A; it needs the pooler.
        labels: names of the classes that a head tells texts apart by, none or at least two; it needs the pooler.

    Raises:
        ValueError: naming the field that does not fit, what was expected and what came.
        TypeError: naming a field of the wrong type.

    Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2019.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "bert-base": _published(12, 12, 768),
        "bert-large": _published(24, 16, 1024),
    }

    activation: str = "gelu"
    norm: str = "post"
    layer_norm_eps: float = 1e-12
    num_segments: int = 2
    pooler: bool = True
    mlm_head: bool = True
    nsp_head: bool = True
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_integer("num_segments", least=0)
        self._check_booleans("pooler", "mlm_head", "nsp_head")
        if self.nsp_head and not self.pooler:
            raise ValueError("nsp_head needs the pooler, but pooler is False")
        if self.mlm_head and self.activation in GATED:
            raise ValueError(f"the masked-LM head has no gate: activation must be another than {self.activation!r}")
        if not isinstance(self.labels, tuple | list):
            raise TypeError(f"labels must be a tuple of names, not {self.labels!r}")
        object.__setattr__(self, "labels", tuple(self.labels))
        if not all(isinstance(label, str) and label for label in self.labels):
            raise TypeError(f"labels must be names, but are {self.labels!r}")
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must be none, or two or more, each once, but are {', '.join(self.labels)}")
        if self.labels and not self.pooler:
            raise ValueError("labels need the pooler, but pooler is False")

    def num_parameters(self) -> int:
        """How many numbers the model's parameters hold; a tied head is counted once."""
        width, one_if_bias = self.embedding_dim, int(self.bias)
        square = width * width + one_if_bias * width
        norms = 2 if self.norm == "pre" else 1
        total = (self.vocab_size + self._position_rows() + self.num_segments) * width + norms * self._norm_parameters()
        total += self.num_layers * self._block_parameters()
        if self.pooler:
            total += square
        if self.mlm_head:
            total += square + self._norm_parameters() + self.vocab_size
            total += 0 if self.tie_head else self.vocab_size * width
        classes = len(self.labels) + (2 if self.nsp_head else 0)
        return total + classes * (width + one_if_bias)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; None where a value is the one that follows from the others."""
        return {**super().to_dict(), "labels": list(self.labels)}


class Encoder(Transformer):
    """A stack of blocks without causality, for text that is all there.

    Args:
        config: its shape.
        device: where the parameters are made; ``"meta"`` makes a model without memory.
        dtype: of the parameters.
        initialise: draw the initial weights. False leaves them as the memory happens to be, for whoever loads others.

    Raises:
        MemoryError: if the parameters do not fit into the device's free memory.

    Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2019.
    """

    config: EncoderConfig

    def __init__(
        self,
        config: EncoderConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        initialise: bool = True,
    ) -> None:
        device = torch.device(device)
        super().__init__(config, EncoderConfig, device, dtype)
        meta = torch.device("meta")
        made: dict[str, Any] = {"device": meta, "dtype": dtype}
        width, bias = config.embedding_dim, config.bias
        self.token_embedding = Embedding(config.vocab_size, width, **made)
        self.segment_embedding = Embedding(config.num_segments, width, **made) if config.num_segments else None
        self.stack = Stack(config, config.num_layers, meta, dtype, embedding_norm=True)
        self.pooler = Linear(width, width, bias, **made) if config.pooler else None
        self.mlm_transform: Linear | None = None
        self.mlm_norm: LayerNorm | RMSNorm | None = None
        self.mlm_bias: nn.Parameter | None = None
        self.head = None
        if config.mlm_head:
            self.mlm_transform = Linear(width, width, bias, **made)
            self.mlm_norm = make_norm(config, **made)
            self.mlm_bias = nn.Parameter(torch.empty(config.vocab_size, **made))
            self.head = None if config.tie_head else Linear(width, config.vocab_size, bias=False, **made)
        self.nsp_head = Linear(width, 2, bias, **made) if config.nsp_head else None
        self.label_head = Linear(width, len(config.labels), bias, **made) if config.labels else None
        self._materialise(device, initialise)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights from torch's default generator, as `EncoderConfig` says."""
        super().reset_parameters()
        if self.mlm_bias is not None:
            nn.init.zeros_(self.mlm_bias)

    def forward(self, ids: Tensor, segments: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """What the last block makes of each token.

        Args:
            ids: (batch, time) int64.
            segments: (batch, time) int64, 0 for the first sentence, 1 for the second; None: all 0.
            lengths: (batch,) int64, 0 to time: each row's own tokens; what follows them may be anything.

        Returns:
            (batch, time, width); zeros past a row's length.

        Raises:
            ValueError: if a shape or value does not fit.
            TypeError: if a dtype does not fit.
        """
        check_ids(ids, self.config.context_length, lengths)
        if segments is not None:
            check_shape("segments", segments, ids)
            if self.segment_embedding is None:
                raise ValueError("segments must be None: this model has no segments (num_segments is 0)")
        self._count_pass()
        past = past_lengths(ids, lengths)
        if past is not None:
            ids = ids.masked_fill(past, 0)
            segments = None if segments is None else segments.masked_fill(past, 0)
        if segments is not None:
            self._check_segments(segments)
        x: Tensor = self.token_embedding(ids)  # (B, T, C)
        if self.segment_embedding is not None:
            x = ops.add(x, self.segment_embedding(torch.zeros_like(ids) if segments is None else segments))
        x = self.stack(x, lengths, recompute=self.checkpoint_blocks)
        return x if past is None else x.masked_fill(past.unsqueeze(-1), 0.0)

    def pool(self, hidden: Tensor) -> Tensor:
        """``tanh(first token W^T + b)``: (batch, time, width) to (batch, width).

        Raises:
            ValueError: if the model has no pooler.
        """
        if self.pooler is None:
            raise ValueError("this model has no pooler")
        pooled: Tensor = self.pooler(hidden[:, 0])
        return pooled.tanh()

    def mlm_logits(self, hidden: Tensor) -> Tensor:
        """What stands behind masks: (..., width) to (..., vocabulary), in float32 (float64 for a float64 model).

        Raises:
            ValueError: if the model has no masked-LM head.
        """
        return self.logits(self._predict(hidden))

    def nsp_logits(self, hidden: Tensor) -> Tensor:
        """Whether the second segment follows the first: (batch, time, width) to (batch, 2) float32; class 0: it does.

        Raises:
            ValueError: if the model has no next-sentence head.
        """
        if self.nsp_head is None:
            raise ValueError("this model has no next-sentence head")
        pooled = self.pool(hidden)
        dtype = torch.float64 if pooled.dtype == torch.float64 else torch.float32
        return ops.linear(pooled, self.nsp_head.weight, self.nsp_head.bias, out_dtype=dtype)

    def label_logits(self, hidden: Tensor) -> Tensor:
        """Which label a text has: (batch, time, width) to (batch, labels) float32.

        Raises:
            ValueError: if the model has no labels.
        """
        if self.label_head is None:
            raise ValueError("this model has no labels")
        pooled = self.pool(hidden)
        if self.training:
            pooled = ops.dropout(pooled, self.config.residual_dropout)
        dtype = torch.float64 if pooled.dtype == torch.float64 else torch.float32
        return ops.linear(pooled, self.label_head.weight, self.label_head.bias, out_dtype=dtype)

    def loss(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        segments: Tensor | None = None,
        lengths: Tensor | None = None,
        next_sentence: Tensor | None = None,
        ignore_index: int = -100,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy of masked tokens, of next sentences, of labels, or the sum of those that are given.

        Args:
            ids: as in `forward`.
            targets: (batch, time) int64, what stands behind each mask and ``ignore_index`` elsewhere; None: masked
                tokens do not count.
            segments: as in `forward`.
            lengths: as in `forward`; targets past a row's length do not count.
            next_sentence: (batch,) int64: 0 if the second segment follows the first, 1 if not, ``ignore_index`` where
                it does not count; None: next sentences do not count.
            ignore_index: targets of this value do not count.
            labels: (batch,) int64, places in ``config.labels``, ``ignore_index`` where it does not count; None: labels
                do not count.

        Returns:
            A scalar, float32; float64 for a float64 model.

        Raises:
            ValueError: if a shape or value does not fit, or the model lacks the head.
            TypeError: if a dtype does not fit.
        """
        if targets is None and next_sentence is None and labels is None:
            raise ValueError("loss needs targets, next_sentence or labels")
        if targets is not None:
            check_shape("targets", targets, ids)
        hidden = self(ids, segments, lengths)  # (B, T, C)
        losses = []
        if targets is not None:
            past = past_lengths(ids, lengths)
            targets = targets if past is None else targets.masked_fill(past, ignore_index)
            predicted = self._predict(hidden)
            losses.append(
                ops.linear_cross_entropy(
                    predicted, self.head_weight, targets, bias=self.head_bias, ignore_index=ignore_index
                )
            )
        if next_sentence is not None:
            losses.append(ops.cross_entropy(self.nsp_logits(hidden), next_sentence, ignore_index=ignore_index))
        if labels is not None:
            losses.append(ops.cross_entropy(self.label_logits(hidden), labels, ignore_index=ignore_index))
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total

    @torch.no_grad()
    def embed(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """A vector of length 1 for each text, in eval mode: the normalised mean of its tokens' outputs.

        Args:
            ids: (batch, time) int64.
            lengths: as in `forward`.

        Returns:
            (batch, width) float32; zeros for a row of no tokens.

        Source: Reimers and Gurevych, "Sentence-BERT", 2019.
        """
        with evaluating(self):
            total = self(ids, lengths=lengths).float().sum(1)  # (B, C); what is past a length is 0
        return nn.functional.normalize(total, dim=-1)  # the count of tokens cancels

    def _check_segments(self, segments: Tensor) -> None:
        """Refuse values that are no segments, where looking at them costs no wait."""
        if segments.device.type != "cpu" or EMULATED or torch.compiler.is_compiling():
            return
        outside = segments[(segments < 0) | (segments >= self.config.num_segments)]
        if outside.numel():
            raise ValueError(
                f"segments must be at least 0 and less than {self.config.num_segments}, but has {int(outside[0])}"
            )

    @property
    def head_bias(self) -> nn.Parameter | None:
        """The masked-LM head's bias, (vocabulary,)."""
        return self.mlm_bias

    def _predict(self, hidden: Tensor) -> Tensor:
        """What the masked-LM head multiplies with the vocabulary: ``norm(activation(hidden W^T + b))``."""
        if self.mlm_transform is None or self.mlm_norm is None:
            raise ValueError("this model has no masked-LM head")
        weight, bias = self.mlm_transform.weight, self.mlm_transform.bias
        return self.mlm_norm(ops.linear(hidden, weight, bias, activation=self.config.activation))  # type: ignore[no-any-return]
