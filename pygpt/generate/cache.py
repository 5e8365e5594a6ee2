"""Keys and values of the tokens that a batch has seen, so that a new token costs one position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygpt.extension import EMULATED, C


class KeyValueCache:
    """Keys and values of every layer, each row with its own length.

    A row's tokens lie at the places 0 to its length; what lies behind them is never seen, whatever it holds.
    `pygpt.GPT.hidden` calls `begin`, then `LayerCache.append` of every layer, then `end`.

    Args:
        batch: number of rows, B.
        capacity: the most tokens of a row.
        device: where the lengths are kept; keys and values lie where the model makes them.

    Attributes:
        decode: whether new tokens are computed by kernels for few rows, as `pygpt.ops.linear` says. Not from the first,
            as prompts have many.
    """

    def __init__(self, batch: int, capacity: int, device: torch.device) -> None:
        self.capacity = capacity
        self.decode = False
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.positions = self.lengths.unsqueeze(1)  # (B, T) of the new tokens, each from its row's first
        self._slots = self.positions.flatten()  # (B T,) where the new tokens' keys and values go, in the flat cache
        self._starts = (capacity + 1) * torch.arange(batch, device=device).unsqueeze(1)  # (B, 1) each row's place 0
        self._after = self.lengths
        self._layers: list[LayerCache] = []

    def begin(self, time: int, new_tokens: Tensor | None) -> dict[str, Any]:
        """Make room for new tokens.

        Args:
            time: T, the most new tokens of a row.
            new_tokens: (B,) int64, how many each row has, 0 to T; None: T.

        Returns:
            The options of `Block.forward` with which the new tokens see themselves and what came before.
        """
        offsets = torch.arange(time, device=self.lengths.device)  # (T,)
        self.positions = slots = self.lengths.unsqueeze(1) + offsets
        if new_tokens is None:
            self._after = self.lengths + time
        else:
            padding = offsets >= new_tokens.unsqueeze(1)
            self.positions = self.positions.masked_fill(padding, 0)
            slots = slots.masked_fill(padding, self.capacity)  # a place behind all tokens, never seen
            self._after = self.lengths + new_tokens
        self._slots = (slots + self._starts).flatten()
        return {"causal": True, "query_start": self.lengths, "key_lengths": self._after, "decode": self.decode}

    def clear(self) -> None:
        """Forget all tokens; the memory stays."""
        self.lengths = torch.zeros_like(self.lengths)

    def layer(self, index: int) -> LayerCache:
        """The cache of one layer."""
        while len(self._layers) <= index:
            self._layers.append(LayerCache(self))
        return self._layers[index]

    def end(self) -> None:
        """Count the new tokens, when all layers have them."""
        self.lengths = self._after

    def reorder(self, rows: Tensor) -> None:
        """Give each row what another had, as searches do that go on from their best rows.

        Args:
            rows: (B,) int64, for each row the one whose tokens it takes.
        """
        changed = (rows != torch.arange(len(rows), device=rows.device)).nonzero().flatten()
        if len(changed) == 0:
            return
        sources = rows.index_select(0, changed)
        longest = int(self.lengths.index_select(0, sources).max())
        for layer in self._layers:
            layer.copy_rows(changed, sources, longest)
        self.lengths = self.lengths.index_select(0, rows)

    def repeated(self, times: int) -> KeyValueCache:
        """A cache in which each row stands that many times, one after the other."""
        out = KeyValueCache(len(self.lengths) * times, self.capacity, self.lengths.device)
        out.decode = self.decode
        out.lengths = self.lengths.repeat_interleave(times)
        out._layers = [layer.repeated(out, times) for layer in self._layers]
        return out

    def store(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
        """Put the new tokens' keys and values (B, T, G, D) into a layer's, (B, capacity + 1, G, D)."""
        if not k.requires_grad:
            C.session_store(_unit_stride(k), _unit_stride(v), self._slots, k_cache, v_cache)
            return
        rows, places = self._slots // (self.capacity + 1), self._slots % (self.capacity + 1)
        for cache, new in ((k_cache, k), (v_cache, v)):
            if cache.is_contiguous():
                cache.flatten(0, 1).index_copy_(0, self._slots, new.flatten(0, 1))
            else:
                cache.index_put_((rows, places), new.flatten(0, 1))


def _room(like: Tensor, capacity: int) -> Tensor:
    """Uninitialised (B, capacity + 1, G, D), for keys or values like (B, T, G, D).

    On the CPU each head's lie together, in large pages where there are: attention of one query reads them as they come
    from memory (a step of 32 rows in bfloat16, GPT-2 124M: a fifth of its time before, AMD Zen 4).
    """
    batch, _, heads, head_dim = like.shape
    if like.device.type != "cpu" or EMULATED:
        return like.new_empty((batch, capacity + 1, heads, head_dim))
    room = like.new_empty((batch, heads, capacity + 1, head_dim))
    C.use_huge_pages(room)
    return room.transpose(1, 2)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


class StepCache(KeyValueCache):
    """A cache for steps of one token a row, in places that `find_places` writes into the same memory every time.

    Keys and values go to the cache that it is made of, whose own lengths stay as they are.

    Args:
        cache: has layers already.

    Attributes:
        ids: (rows, 1) int64, the tokens of the step.
    """

    def __init__(self, cache: KeyValueCache) -> None:
        rows = len(cache.lengths)
        super().__init__(rows, cache.capacity, cache.lengths.device)
        self.decode = cache.decode
        self.ids = torch.zeros_like(self.positions)
        self.positions = torch.zeros_like(self.positions)
        self._slots = torch.zeros_like(self.lengths)
        self._after = torch.zeros_like(self.lengths)
        self._layers = [layer.shared(self) for layer in cache._layers]

    def find_places(self, tokens: Tensor, lengths: Tensor, alive: Tensor) -> None:
        """Make the last token of each row that is alive the step's; `DecodingStep` says what these are."""
        places = self.ids, self.positions, self._slots, self.lengths, self._after
        C.session_places(tokens, lengths, alive, self.capacity, *places)

    def begin(self, time: int, new_tokens: Tensor | None) -> dict[str, Any]:
        """As `KeyValueCache.begin`, for the places that were found."""
        return {"causal": True, "query_start": self.lengths, "key_lengths": self._after, "decode": self.decode}

    def end(self) -> None:
        """There is nothing to count: the next step's places are found anew."""


class LayerCache:
    """Keys and values of one layer, (B, capacity + 1, G, D) each, made when the first ones come."""

    def __init__(self, cache: KeyValueCache) -> None:
        self._cache = cache
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the new tokens, (B, T, G, D); give those of all tokens."""
        if self._k is None or self._v is None:
            self._k, self._v = _room(k, self._cache.capacity), _room(v, self._cache.capacity)
        self._cache.store(k, v, self._k, self._v)
        return self._k, self._v

    def copy_rows(self, targets: Tensor, sources: Tensor, time: int) -> None:
        """This layer for `KeyValueCache.reorder`: the first ``time`` places of some rows to others."""
        for storage in (self._k, self._v):
            if storage is not None:
                part = storage[:, :time]
                part.index_copy_(0, targets, part.index_select(0, sources))

    def shared(self, cache: KeyValueCache) -> LayerCache:
        """This layer's memory, for another cache."""
        out = LayerCache(cache)
        out._k, out._v = self._k, self._v
        return out

    def repeated(self, cache: KeyValueCache, times: int) -> LayerCache:
        """This layer for `KeyValueCache.repeated`."""
        out = LayerCache(cache)
        if self._k is not None and self._v is not None:
            out._k, out._v = (_repeated(storage, times) for storage in (self._k, self._v))
        return out


def _repeated(storage: Tensor, times: int) -> Tensor:
    """Each row that many times, in the same order of memory."""
    if storage.is_contiguous():
        return storage.repeat_interleave(times, dim=0)
    return storage.transpose(1, 2).repeat_interleave(times, dim=0).transpose(1, 2)
