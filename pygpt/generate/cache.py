"""Keys and values of the tokens that a batch has seen, so that a new token costs one position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of every layer, each row with its own length.

    A row's tokens lie at the places 0 to its length; what lies behind them is never seen, whatever it holds.
    `pygpt.GPT.hidden` calls `begin`, then `LayerCache.append` of every layer, then `end`.

    Args:
        batch: number of rows, B.
        capacity: the most tokens of a row.
        device: where the lengths are kept; keys and values lie where the model makes them.
    """

    def __init__(self, batch: int, capacity: int, device: torch.device) -> None:
        self.capacity = capacity
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
            The options of `pygpt.ops.attention` with which the new tokens see themselves and what came before.
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
        return {"causal": True, "query_start": self.lengths, "key_lengths": self._after}

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
        out.lengths = self.lengths.repeat_interleave(times)
        out._layers = [layer.repeated(out, times) for layer in self._layers]
        return out

    def write(self, storage: Tensor, new: Tensor) -> None:
        """Put (B, T, G, D) of the new tokens into (B, capacity + 1, G, D).

        Not by ``storage[rows, slots] = new``: that wakes torch's threads, for however few numbers, and they spin where
        pygpt's are about to compute.
        """
        storage.flatten(0, 1).index_copy_(0, self._slots, new.flatten(0, 1))


class LayerCache:
    """Keys and values of one layer, (B, capacity + 1, G, D) each, made when the first ones come."""

    def __init__(self, cache: KeyValueCache) -> None:
        self._cache = cache
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the new tokens, (B, T, G, D); give those of all tokens."""
        if self._k is None or self._v is None:
            shape = (k.shape[0], self._cache.capacity + 1, *k.shape[2:])
            self._k, self._v = k.new_empty(shape), v.new_empty(shape)
        self._cache.write(self._k, k)
        self._cache.write(self._v, v)
        return self._k, self._v

    def copy_rows(self, targets: Tensor, sources: Tensor, time: int) -> None:
        """This layer for `KeyValueCache.reorder`: the first ``time`` places of some rows to others."""
        for storage in (self._k, self._v):
            if storage is not None:
                part = storage[:, :time]
                part.index_copy_(0, targets, part.index_select(0, sources))

    def repeated(self, cache: KeyValueCache, times: int) -> LayerCache:
        """This layer for `KeyValueCache.repeated`."""
        out = LayerCache(cache)
        if self._k is not None and self._v is not None:
            out._k, out._v = self._k.repeat_interleave(times, dim=0), self._v.repeat_interleave(times, dim=0)
        return out
