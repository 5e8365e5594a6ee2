"""GPT: token and position embeddings, a stack of blocks, a head. Reading order is data order."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pygpt import ops
from pygpt.models.config import GPTConfig
from pygpt.models.memory import check_fits
from pygpt.models.session import Session
from pygpt.nn import Embedding, FeedForward, LayerNorm, Linear, MultiHeadAttention

if TYPE_CHECKING:
    from pygpt.generate import KeyValueCache, TokenBytes


class Block(nn.Module):
    """One layer: attention, then the feed-forward network, each added to the residual stream.

    Args:
        config: of the model.
        layer: which layer of the model this is, from 0.
        device: where the parameters are made.
        dtype: of the parameters.
    """

    def __init__(self, config: GPTConfig, layer: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        width = config.embedding_dim
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.pre_norm = config.norm == "pre"
        self.window = config.window(layer)
        self.dropout = config.residual_dropout
        self.norm_1 = LayerNorm(width, config.layer_norm_eps, config.bias, **made)
        self.attention = MultiHeadAttention(
            width,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.bias,
            config.attention_dropout,
            **made,
        )
        self.norm_2 = LayerNorm(width, config.layer_norm_eps, config.bias, **made)
        self.feed_forward = FeedForward(
            width, config.hidden_dim, config.activation, config.bias, config.residual_dropout, **made
        )

    def forward(self, x: Tensor, **visible: Any) -> Tensor:
        """Map the residual stream (B, T, C) to the next layer's.

        Args:
            x: (B, T, C).
            visible: options of `MultiHeadAttention.forward`.
        """
        if self.pre_norm:
            branch = self._attend(self.norm_1(x), visible)  # (B, T, C)
            branch, x = _add_norm(self.norm_2, branch, x)
            return ops.add(x, self.feed_forward(branch).to(x.dtype))
        x, _ = _add_norm(self.norm_1, self._attend(x, visible), x)  # (B, T, C)
        x, _ = _add_norm(self.norm_2, self.feed_forward(x), x)
        return x

    def _attend(self, x: Tensor, visible: dict[str, Any]) -> Tensor:
        out: Tensor = self.attention(x, window=self.window, **visible)
        return ops.dropout(out, self.dropout) if self.training else out


def _add_norm(norm: LayerNorm, branch: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """``(norm(branch + x), branch + x)``, in the residual stream's dtype: under autocast the branch has another."""
    return ops.add_layer_norm(branch.to(x.dtype), x, norm.weight, norm.bias, norm.eps)


class GPT(nn.Module):
    """A decoder-only transformer.

    Args:
        config: its shape.
        device: where the parameters are made; ``"meta"`` makes a model without memory.
        dtype: of the parameters.
        initialise: draw the initial weights. False leaves them as the memory happens to be, for whoever loads others.

    Raises:
        MemoryError: if the parameters do not fit into the device's free memory.

    Attributes:
        checkpoint_blocks: in training, keep each block's input only and compute the block again in the backward pass.
            Bits do not change, dropout included.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """

    position_table: Tensor | None

    def __init__(
        self,
        config: GPTConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        initialise: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(config, GPTConfig):
            raise TypeError(f"config must be a GPTConfig, not {config!r}")
        device = torch.device(device)
        check_fits(config.num_parameters(), device, dtype)
        self.config = config
        self.checkpoint_blocks = False
        self.packed_head: Tensor | None = None  # of head_weight, inside a session
        self._session: Session | None = None

        meta = torch.device("meta")  # nothing is drawn twice: the weights are, once, at the end
        width = config.embedding_dim
        self.token_embedding = Embedding(config.vocab_size, width, device=meta, dtype=dtype)
        self.position_embedding: Embedding | None = None
        if config.positions == "learned":
            self.position_embedding = Embedding(config.context_length, width, device=meta, dtype=dtype)
        self.blocks = nn.ModuleList(Block(config, layer, meta, dtype) for layer in range(config.num_layers))
        self.norm: LayerNorm | None = None
        if config.norm == "pre":
            self.norm = LayerNorm(width, config.layer_norm_eps, config.bias, device=meta, dtype=dtype)
        self.head: Linear | None = None
        if not config.tie_head:
            self.head = Linear(width, config.vocab_size, bias=False, device=meta, dtype=dtype)
        self.to_empty(device=device)
        table = sinusoids(config.context_length, width) if config.positions == "sinusoidal" else None
        self.register_buffer("position_table", None if table is None else table.to(device, dtype), persistent=False)
        if initialise and device.type != "meta":
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights from torch's default generator, as `GPTConfig.init_std` says."""
        std = self.config.init_std
        for module in self.modules():
            if isinstance(module, LayerNorm):
                module.reset_parameters()
            elif isinstance(module, Embedding):
                nn.init.normal_(module.weight, std=std)
            elif isinstance(module, Linear):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        residual_std = std / math.sqrt(2 * self.config.num_layers)
        for block in self._blocks():
            nn.init.normal_(block.attention.out.weight, std=residual_std)
            nn.init.normal_(block.feed_forward.down.weight, std=residual_std)

    def forward(self, ids: Tensor, lengths: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Logits of the next token at every position.

        Args:
            ids: (batch, time) int64.
            lengths: (batch,) int64, 0 to time: each row's own tokens; what follows them may be anything.
            cu_seqlens: (documents + 1,) int64, from 0 to time: where packed documents begin and end, for batch 1.
                Not together with ``lengths``.

        Returns:
            (batch, time, vocabulary), float32; float64 for a float64 model. Zeros past a row's length.

        Raises:
            ValueError: if a shape or value does not fit.
            TypeError: if a dtype does not fit.
        """
        logits = self.logits(self.hidden(ids, lengths, cu_seqlens))  # (B, T, V)
        past = _past(ids, lengths)
        return logits if past is None else logits.masked_fill(past.unsqueeze(-1), 0.0)

    def loss(
        self,
        ids: Tensor,
        targets: Tensor,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        ignore_index: int = -100,
    ) -> Tensor:
        """Mean cross-entropy of the targets; the logits are never held.

        Args:
            ids: (batch, time) int64.
            targets: (batch, time) int64, shifted by the caller: ``targets[b, t]`` is the token after ``ids[b, t]``.
            lengths: as in `forward`; targets past a row's length do not count.
            cu_seqlens: as in `forward`.
            ignore_index: targets of this value do not count.

        Returns:
            A scalar, float32; float64 for a float64 model. 0 if no target counts.

        Raises:
            ValueError: if a shape or value does not fit.
            TypeError: if a dtype does not fit.
        """
        if targets.shape != ids.shape:
            raise ValueError(f"targets must have the shape of ids, {tuple(ids.shape)}, not {tuple(targets.shape)}")
        hidden = self.hidden(ids, lengths, cu_seqlens)  # (B, T, C)
        past = _past(ids, lengths)
        targets = targets if past is None else targets.masked_fill(past, ignore_index)
        return ops.linear_cross_entropy(hidden, self.head_weight, targets, ignore_index=ignore_index)

    def hidden(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """What the head sees: the last block's output, after the last layer norm.

        Args:
            ids: (batch, time) int64.
            lengths: as in `forward`; with a cache, how many of each row's ids are new tokens.
            cu_seqlens: as in `forward`; not with a cache.
            cache: keys and values of the tokens before ``ids``, to which those of ``ids`` are added.

        Returns:
            (batch, time, width).

        Raises:
            ValueError: if a shape or value does not fit.
            TypeError: if a dtype does not fit.
        """
        self._check(ids, lengths, cu_seqlens, cache)
        if self._session is not None and not torch.is_grad_enabled():
            self._session.count_pass()
        past = _past(ids, lengths)
        if past is not None:
            ids = ids.masked_fill(past, 0)
        time = ids.shape[1]
        x: Tensor = self.token_embedding(ids)  # (B, T, C)
        if cache is None:
            visible: dict[str, Any] = {"causal": True, "key_lengths": lengths, "cu_seqlens": cu_seqlens}
            positions = _positions(time, cu_seqlens, ids.device)  # (T,)
        else:
            visible = cache.begin(time, lengths)
            positions = cache.positions  # (B, T)
        embedded = self._embed(positions)  # (T, C) or (B, T, C)
        if embedded is not None:
            x = ops.add(x, embedded)
        if self.training:
            x = ops.dropout(x, self.config.embedding_dropout)
        for layer, block in enumerate(self._blocks()):
            if cache is not None:
                visible["cache"] = cache.layer(layer)
            if self.checkpoint_blocks and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, **visible)
            else:
                x = block(x, **visible)  # (B, T, C)
        if cache is not None:
            cache.end()
        if self.norm is not None:
            x = self.norm(x)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """The head: (..., width) to (..., vocabulary), in float32 (float64 for a float64 model), never rounded."""
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        packed = None if torch.is_autocast_enabled(hidden.device.type) else self.packed_head
        return ops.linear(hidden, self.head_weight, out_dtype=dtype, packed_weight=packed)

    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | Sequence[int] | Tensor = 0,
        prompt_lengths: Sequence[int] | Tensor | None = None,
        num_samples: int = 1,
        stop_tokens: Sequence[int] = (),
        stop: str | Sequence[str] = (),
        tokenizer: TokenBytes | None = None,
        overflow: str = "error",
        return_logprobs: bool = False,
        stream: Callable[[int, int], None] | None = None,
        exact: bool | None = None,
        pad_token: int = 0,
    ) -> Any:
        """Sample tokens after prompts; `pygpt.generate.generate` says everything."""
        from pygpt.generate import generate  # which imports this module

        return generate(
            self,
            ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            prompt_lengths=prompt_lengths,
            num_samples=num_samples,
            stop_tokens=stop_tokens,
            stop=stop,
            tokenizer=tokenizer,
            overflow=overflow,
            return_logprobs=return_logprobs,
            stream=stream,
            exact=exact,
            pad_token=pad_token,
        )

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Promise that the weights do not change inside the ``with`` block, so that packed copies of them may be kept.

        Raises:
            RuntimeError: at the end of the block, naming a parameter that was written to or replaced in it.
        """
        if self._session is not None:
            yield  # inside another, which knows all that this one would
            return
        self._session = session = Session(self)
        try:
            yield
        finally:
            self._session = None
            session.close()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> GPT:
        """Load a model; `pygpt.models.huggingface.load` says everything."""
        from pygpt.models import huggingface  # which imports this module

        return huggingface.load(folder, device, dtype)

    def save_pretrained(self, folder: str | Path) -> str:
        """Save the model; `pygpt.models.huggingface.save` says everything."""
        from pygpt.models import huggingface

        return huggingface.save(self, folder)

    @property
    def head_weight(self) -> nn.Parameter:
        """The head's matrix, (vocabulary, width): the token embedding's if the head is tied to it."""
        return (self.token_embedding if self.head is None else self.head).weight

    def _blocks(self) -> Iterator[Block]:
        return iter(self.blocks)  # type: ignore[arg-type]

    def _embed(self, positions: Tensor) -> Tensor | None:
        if self.position_embedding is not None:
            return self.position_embedding(positions)  # type: ignore[no-any-return]
        return None if self.position_table is None else ops.embedding(positions, self.position_table)

    def _check(
        self, ids: Tensor, lengths: Tensor | None, cu_seqlens: Tensor | None, cache: KeyValueCache | None
    ) -> None:
        """Refuse what does not fit; what depends on the values of lengths is left to attention's check where it can."""
        if not isinstance(ids, Tensor):
            raise TypeError(f"ids must be a tensor, not a {type(ids).__name__}")
        if ids.dim() != 2:
            raise ValueError(f"ids must have shape (batch, time), not {tuple(ids.shape)}")
        if ids.dtype != torch.int64:
            raise TypeError(f"ids must be int64, not {ids.dtype}")
        batch, time = ids.shape
        limit = self.config.context_length
        if lengths is not None and (lengths.shape != (batch,) or lengths.dtype != torch.int64):
            raise ValueError(f"lengths must be int64 of shape ({batch},), not {lengths.dtype} {tuple(lengths.shape)}")
        if cu_seqlens is None:
            if time > limit:
                raise ValueError(f"context_length is {limit}, but ids has {time} positions; shorten it")
        else:
            if lengths is not None or cache is not None:
                raise ValueError("cu_seqlens does not go together with lengths or a cache")
            if batch != 1 or cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int64:
                raise ValueError(
                    "cu_seqlens must be int64 of shape (documents + 1,), for ids of batch 1, "
                    f"not {cu_seqlens.dtype} {tuple(cu_seqlens.shape)} for batch {batch}"
                )
        if ids.device.type != "cpu" or torch.compiler.is_compiling():
            return  # the rest depends on values, which would have to be waited for
        if lengths is not None and batch and (int(lengths.min()) < 0 or int(lengths.max()) > time):
            raise ValueError(f"lengths must be at least 0 and at most {time}, but is {lengths.tolist()}")
        if cu_seqlens is not None:
            sizes = cu_seqlens.diff()
            if len(cu_seqlens) < 2 or int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != time or int(sizes.min()) < 0:
                raise ValueError(f"cu_seqlens must go from 0 to {time} and never back, but is {cu_seqlens.tolist()}")
            if int(sizes.max()) > limit:
                raise ValueError(f"context_length is {limit}, but a document has {int(sizes.max())} tokens")


def sinusoids(time: int, width: int) -> Tensor:
    """Positions as sines and cosines, (time, width) float64: ``sin(t / 10000^(2i / width))`` at 2i, cos at 2i + 1.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.5.
    """
    pair = torch.arange(width, dtype=torch.float64) // 2
    angle = torch.arange(time, dtype=torch.float64).unsqueeze(1) / 10000 ** (2 * pair / width)  # (T, C)
    return torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos())


def _past(ids: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Which positions lie past their row's length, (B, T) bool; None if there are no lengths."""
    return None if lengths is None else torch.arange(ids.shape[1], device=ids.device) >= lengths.unsqueeze(1)


def _positions(time: int, cu_seqlens: Tensor | None, device: torch.device) -> Tensor:
    """The position of each token in its document, (T,)."""
    positions = torch.arange(time, device=device)
    if cu_seqlens is None:
        return positions
    document = torch.searchsorted(cu_seqlens, positions, right=True) - 1
    return positions - cu_seqlens[document]
