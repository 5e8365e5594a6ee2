"""Encoder–decoder: a stack that reads a source, and one that writes, attending to what the first made of it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from pygpt import generate as decoding
from pygpt import ops
from pygpt.models.block import Memory, Stack
from pygpt.models.config import DERIVED, TransformerConfig
from pygpt.models.sequence import check_ids, check_shape, past_lengths
from pygpt.models.transformer import Transformer
from pygpt.nn import Embedding, Linear

if TYPE_CHECKING:
    from pygpt.generate import Beams, Generation, KeyValueCache, TokenBytes
    from pygpt.generate.rules import Word


def _transformer(num_heads: int, embedding_dim: int) -> dict[str, Any]:
    sizes = {"vocab_size": 37000, "context_length": 1024, "num_layers": 6}
    return {**sizes, "num_heads": num_heads, "embedding_dim": embedding_dim, "init_std": embedding_dim**-0.5}


def _bart(num_layers: int, num_heads: int, embedding_dim: int) -> dict[str, Any]:
    return {
        "vocab_size": 50265,
        "context_length": 1024,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "embedding_dim": embedding_dim,
        "activation": "gelu",
        "positions": "learned",
        "position_offset": 2,
        "scale_embedding": False,
        "embedding_norm": True,
        "start_token": 2,
        "end_token": 2,
        "pad_token": 1,
    }


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig(TransformerConfig):
    """The shape of a `Seq2Seq`: the Transformer of 2017's, where nothing else is said.

    The fields of `pygpt.GPTConfig`, of which ``num_layers`` counts the encoder's blocks, ``context_length`` limits
    source and target each, and initial weights all have the standard deviation ``init_std``; and

    Args:
        num_decoder_layers: the decoder's blocks; None: ``num_layers``.
        position_offset: the row of the table of learned positions that position 0 has (BART: 2).
        scale_embedding: whether token embeddings are multiplied by ``sqrt(embedding_dim)``.
        embedding_norm: whether there is a layer norm after the sum of token and position embeddings (BART).
        start_token: what every target begins with.
        end_token: what every target ends with; None: nothing.
        pad_token: what follows a target in its row.

    The presets ``transformer-base`` and ``transformer-big`` are the paper's, with its shared vocabulary of "about
    37000"; ``bart-base`` and ``bart-large`` are the published models.

    Raises:
        ValueError: naming the field that does not fit, what was expected and what came.
        TypeError: naming a field of the wrong type.

    Source: Vaswani et al., "Attention Is All You Need", 2017, table 3; Lewis et al., "BART", 2020.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "transformer-base": _transformer(8, 512),
        "transformer-big": _transformer(16, 1024),
        "bart-base": _bart(6, 12, 768),
        "bart-large": _bart(12, 16, 1024),
    }

    activation: str = "relu"
    positions: str = "sinusoidal"
    norm: str = "post"
    num_decoder_layers: int = DERIVED
    position_offset: int = 0
    scale_embedding: bool = True
    embedding_norm: bool = False
    start_token: int = 0
    end_token: int | None = None
    pad_token: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_integer("num_decoder_layers")
        self._check_integer("position_offset", least=0)
        self._check_booleans("scale_embedding", "embedding_norm")
        for name in ("start_token", "end_token", "pad_token"):
            if name == "end_token" and self.end_token is None:
                continue
            self._check_integer(name, least=0)
            if getattr(self, name) >= self.vocab_size:
                raise ValueError(
                    f"{name} must be less than vocab_size, {self.vocab_size}, but is {getattr(self, name)}"
                )

    def num_parameters(self) -> int:
        """How many numbers the model's parameters hold; a tied head is counted once."""
        positions = self._position_rows() + (self.position_offset if self.positions == "learned" else 0)
        norms = int(self.embedding_norm) + int(self.norm == "pre")
        total = (self.vocab_size * (1 if self.tie_head else 2) + 2 * positions) * self.embedding_dim
        total += 2 * norms * self._norm_parameters()
        return (
            total
            + self.num_layers * self._block_parameters()
            + self.num_decoder_layers * self._block_parameters(cross=True)
        )

    def _derived(self) -> dict[str, Any]:
        return {**super()._derived(), "num_decoder_layers": self.num_layers}


class Seq2Seq(Transformer):
    """An encoder–decoder, whose two sides and head share their token embedding.

    Args:
        config: its shape.
        device: where the parameters are made; ``"meta"`` makes a model without memory.
        dtype: of the parameters.
        initialise: draw the initial weights. False leaves them as the memory happens to be, for whoever loads others.

    Raises:
        MemoryError: if the parameters do not fit into the device's free memory.

    Source: Vaswani et al., "Attention Is All You Need", 2017.
    """

    config: Seq2SeqConfig

    def __init__(
        self,
        config: Seq2SeqConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        initialise: bool = True,
    ) -> None:
        device = torch.device(device)
        super().__init__(config, Seq2SeqConfig, device, dtype)
        meta = torch.device("meta")
        width = config.embedding_dim
        both: dict[str, Any] = {
            "embedding_norm": config.embedding_norm,
            "position_offset": config.position_offset,
        }
        self.token_embedding = Embedding(config.vocab_size, width, device=meta, dtype=dtype)
        self.encoder = Stack(config, config.num_layers, meta, dtype, **both)
        self.decoder = Stack(config, config.num_decoder_layers, meta, dtype, causal=True, cross=True, **both)
        self.head = None if config.tie_head else Linear(width, config.vocab_size, False, device=meta, dtype=dtype)
        self._materialise(device, initialise)

    def forward(
        self, source: Tensor, ids: Tensor, source_lengths: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """Logits of the target's next token at every position.

        Args:
            source: (batch, source time) int64.
            ids: (batch, time) int64, the target so far: from ``start_token`` on.
            source_lengths: (batch,) int64, 0 to source time: each row's own tokens; what follows may be anything.
            lengths: (batch,) int64, 0 to time: the same of ``ids``.

        Returns:
            (batch, time, vocabulary), float32; float64 for a float64 model. Zeros past a row's length.

        Raises:
            ValueError: if a shape or value does not fit.
            TypeError: if a dtype does not fit.
        """
        logits = self.logits(self.hidden(source, ids, source_lengths, lengths))  # (B, T, V)
        past = past_lengths(ids, lengths)
        return logits if past is None else logits.masked_fill(past.unsqueeze(-1), 0.0)

    def loss(
        self,
        source: Tensor,
        ids: Tensor,
        targets: Tensor,
        source_lengths: Tensor | None = None,
        lengths: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Mean cross-entropy of the targets; the logits are never held.

        Args:
            source: as in `forward`.
            ids: as in `forward`.
            targets: (batch, time) int64, shifted by the caller: ``targets[b, t]`` is the token after ``ids[b, t]``.
            source_lengths: as in `forward`.
            lengths: as in `forward`; targets past a row's length do not count.
            ignore_index: targets of this value do not count.
            label_smoothing: the share, from 0 to below 1, of each target's weight that all tokens have evenly.

        Returns:
            A scalar, float32; float64 for a float64 model. 0 if no target counts.

        Raises:
            ValueError: if a shape or value does not fit.
            TypeError: if a dtype does not fit.

        Source: Szegedy et al., "Rethinking the Inception Architecture", 2016, section 7 (label smoothing).
        """
        check_shape("targets", targets, ids)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and less than 1, but is {label_smoothing}")
        hidden = self.hidden(source, ids, source_lengths, lengths)  # (B, T, C)
        past = past_lengths(ids, lengths)
        targets = targets if past is None else targets.masked_fill(past, ignore_index)
        loss = ops.linear_cross_entropy(hidden, self.head_weight, targets, ignore_index=ignore_index)
        if label_smoothing == 0:
            return loss
        # (1 - s) (lse - z_target) + s (lse - mean z) = loss + s (z_target - mean z), where z is linear in the hidden.
        counted = targets != ignore_index
        weight = self.head_weight
        chosen = ops.embedding(targets.masked_fill(~counted, 0), weight)  # (B, T, C)
        gap = (hidden.to(loss.dtype) * (chosen - weight.mean(0)).to(loss.dtype)).sum(-1)  # (B, T)
        share = counted.to(loss.dtype) * (label_smoothing / counted.sum().clamp(min=1))
        return loss + ops.linear(gap.view(1, -1), share.view(1, -1)).view(())  # a sum whose order threads do not change

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> Memory:
        """Read a source: what the decoder's blocks attend to, their keys and values, computed once.

        Args:
            source: (batch, source time) int64.
            source_lengths: (batch,) int64, 0 to source time.

        Raises:
            ValueError: if a shape or value does not fit.
            TypeError: if a dtype does not fit.
        """
        check_ids(source, self.config.context_length, source_lengths, "source", "source_lengths")
        x = self._embed(source, source_lengths)
        encoded = self.encoder(x, source_lengths, recompute=self.checkpoint_blocks)  # (B, S, C)
        return self.decoder.remember(encoded, source_lengths)

    def decode(
        self, ids: Tensor, memory: Memory, lengths: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """What the head sees.

        Args:
            ids: (batch, time) int64, tokens of the target.
            memory: from `encode`.
            lengths: (batch,) int64, 0 to time; with a cache, how many of each row's ids are new tokens.
            cache: keys and values of the target's tokens before ``ids``, to which those of ``ids`` are added.

        Returns:
            (batch, time, width).

        Raises:
            ValueError: if a shape or value does not fit.
            TypeError: if a dtype does not fit.
        """
        check_ids(ids, self.config.context_length, lengths)
        rows = len(memory.layers[0][0])
        if len(ids) != rows:
            raise ValueError(f"ids must have a row for each of the {rows} sources, but has {len(ids)}")
        self._count_pass()
        x = self._embed(ids, lengths)
        return self.decoder(x, lengths, cache, memory, self.checkpoint_blocks)  # type: ignore[no-any-return]

    def hidden(
        self, source: Tensor, ids: Tensor, source_lengths: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """What the head sees, (batch, time, width); arguments and errors as in `forward`."""
        return self.decode(ids, self.encode(source, source_lengths), lengths)

    def generate(
        self,
        source: Tensor,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | Sequence[int] | Tensor = 0,
        source_lengths: Sequence[int] | Tensor | None = None,
        ids: Tensor | None = None,
        prompt_lengths: Sequence[int] | Tensor | None = None,
        num_samples: int = 1,
        stop_tokens: Sequence[int] | None = None,
        stop: str | Sequence[str] = (),
        tokenizer: TokenBytes | None = None,
        return_logprobs: bool = False,
        stream: Callable[[int, int], None] | None = None,
        exact: bool | None = None,
        no_repeat_ngram_size: int = 0,
        bad_words: Sequence[str | Word] = (),
        force_words: Sequence[Word | Sequence[Word]] = (),
        prefixes: Sequence[Word] = (),
    ) -> Any:
        """Sample targets of sources; `pygpt.generate.generate` says what the options do.

        Args:
            source: (batch, source time) int64.
            max_new_tokens: the most tokens to add.
            temperature: divides the logits; 0 takes the most probable token, the lower id of a tie.
            top_k: keep the k most probable tokens.
            top_p: keep the smallest set of most probable tokens that reaches this probability.
            min_p: keep tokens of at least this share of the highest probability.
            repetition_penalty: above 1, tokens that the target has already are less probable.
            seed: an int gives row r the seed ``seed + r``; or one seed for each row of the result.
            source_lengths: (batch,) 0 to source time.
            ids: (batch, time) int64, how the targets begin; None: with ``start_token``.
            prompt_lengths: (batch,) 1 to time, of ``ids``.
            num_samples: targets of each source; those of one source stand together.
            stop_tokens: a row ends after one of these; None: after ``end_token``.
            stop: a row ends with the token in which its new text has one of these strings; needs a tokenizer.
            tokenizer: has ``token_bytes``.
            return_logprobs: give a `Generation`, with the model's log-probabilities.
            stream: is called with row and token when a token has been chosen.
            exact: whether the bits must be those of ``forward``; on the CPU they always are.
            no_repeat_ngram_size: as in `pygpt.generate.beam_search`, like the following.
            bad_words: what new tokens never complete.
            force_words: what the new tokens contain.
            prefixes: what the new tokens begin with.

        Returns:
            (batch × num_samples, time + max_new_tokens) int64, the beginning included, ``pad_token`` after a row's
            last token; or a `Generation`.

        Raises:
            ValueError: naming the argument that does not fit, before any work.
            TypeError: if a type or dtype does not fit.
        """
        writer, prompts = self._writing(source, source_lengths, ids, stop_tokens)
        return decoding.generate(
            writer,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            prompt_lengths=prompt_lengths,
            num_samples=num_samples,
            stop=stop,
            tokenizer=tokenizer,
            return_logprobs=return_logprobs,
            stream=stream,
            exact=exact,
            no_repeat_ngram_size=no_repeat_ngram_size,
            bad_words=bad_words,
            force_words=force_words,
            prefixes=prefixes,
            **prompts,
        )

    def beam_search(
        self,
        source: Tensor,
        max_new_tokens: int = 64,
        *,
        source_lengths: Sequence[int] | Tensor | None = None,
        ids: Tensor | None = None,
        stop_tokens: Sequence[int] | None = None,
        **options: Any,
    ) -> Beams:
        """Search for probable targets of sources.

        Args:
            source: (batch, source time) int64.
            max_new_tokens: the most tokens to add.
            source_lengths: (batch,) 0 to source time.
            ids: (batch, time) int64, how the targets begin; None: with ``start_token``.
            stop_tokens: a target ends after one of these; None: after ``end_token``.
            options: the others of `pygpt.generate.beam_search`.

        Raises: as `pygpt.generate.beam_search`.
        """
        writer, prompts = self._writing(source, source_lengths, ids, stop_tokens)
        return decoding.beam_search(writer, max_new_tokens=max_new_tokens, **prompts, **options)

    def contrastive_search(
        self,
        source: Tensor,
        max_new_tokens: int = 64,
        *,
        source_lengths: Sequence[int] | Tensor | None = None,
        ids: Tensor | None = None,
        stop_tokens: Sequence[int] | None = None,
        **options: Any,
    ) -> Tensor | Generation:
        """Write targets of sources without repetition; arguments as in `beam_search`.

        The options are those of `pygpt.generate.contrastive_search`, whose result this is.

        Raises: as `pygpt.generate.contrastive_search`.
        """
        writer, prompts = self._writing(source, source_lengths, ids, stop_tokens)
        return decoding.contrastive_search(writer, max_new_tokens=max_new_tokens, **prompts, **options)

    def _writing(
        self,
        source: Tensor,
        source_lengths: Sequence[int] | Tensor | None,
        ids: Tensor | None,
        stop_tokens: Sequence[int] | None,
    ) -> tuple[_Writer, dict[str, Any]]:
        """What writes targets of these sources, and how they begin and end. Raises: as `generate`."""
        config = self.config
        if source_lengths is not None:
            source_lengths = torch.as_tensor(source_lengths, device=source.device)
        check_ids(source, config.context_length, source_lengths, "source", "source_lengths")
        if ids is None:
            ids = source.new_full((len(source), 1), config.start_token)
        if len(ids) != len(source):
            raise ValueError(f"ids must have a row for each of the {len(source)} sources, but has {len(ids)}")
        if stop_tokens is None:
            stop_tokens = () if config.end_token is None else (config.end_token,)
        writer = _Writer(self, source, source_lengths)
        return writer, {"ids": ids, "stop_tokens": stop_tokens, "pad_token": config.pad_token}

    def _embed(self, ids: Tensor, lengths: Tensor | None) -> Tensor:
        """Embeddings of tokens, (B, T, C), without their positions."""
        past = past_lengths(ids, lengths)
        x: Tensor = self.token_embedding(ids if past is None else ids.masked_fill(past, 0))
        return x * math.sqrt(self.config.embedding_dim) if self.config.scale_embedding else x


class _Writer:
    """A `Seq2Seq` with its sources, in the place of a decoder-only model: what `pygpt.generate.generate` samples from.

    The sources are read at the first step, in the mode and session that hold then, and repeated when its rows are.
    """

    def __init__(self, model: Seq2Seq, source: Tensor, source_lengths: Tensor | None) -> None:
        self.config = model.config
        self._model = model
        self._source = source, source_lengths
        self._memory: Memory | None = None

    def modules(self) -> Iterator[nn.Module]:
        """Those of the model."""
        return self._model.modules()

    def session(self, passes: int = 0) -> contextlib.AbstractContextManager[Any]:
        """The model's."""
        return self._model.session(passes)

    def hidden(self, ids: Tensor, lengths: Tensor | None = None, *, cache: KeyValueCache | None = None) -> Tensor:
        """What the head sees, (rows, time, width)."""
        if self._memory is None:
            self._memory = self._model.encode(*self._source)
        rows = len(self._memory.layers[0][0])
        if len(ids) != rows:
            self._memory = self._memory.repeated(len(ids) // rows)
        return self._model.decode(ids, self._memory, lengths, cache)

    def logits(self, hidden: Tensor, decode: bool = False) -> Tensor:
        """Those of the model."""
        return self._model.logits(hidden, decode)
