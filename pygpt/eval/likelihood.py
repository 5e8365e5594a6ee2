"""How likely a model finds texts: of the tokens that follow a context, and of whole texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pygpt import ops
from pygpt.text.rows import IGNORED, stacked


class Likelihood(NamedTuple):
    """Of a continuation.

    Attributes:
        logprob: natural logarithm of its probability.
        greedy: whether each of its tokens is the most probable one.
    """

    logprob: float
    greedy: bool


@torch.no_grad()
def continuations(
    model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int = 16
) -> list[Likelihood]:
    """How likely continuations are after their contexts.

    Args:
        model: a `pygpt.GPT`, in eval mode.
        pairs: context and continuation, at least one token each; of a pair that is longer than the model's context, the
            beginning of the context is left out.
        batch_size: pairs at a time; results do not depend on it.

    Raises:
        ValueError: if a context or a continuation is empty, or a continuation is longer than the model's context.
    """
    limit = model.config.context_length
    rows = []
    for context, continuation in pairs:
        if not context or not continuation:
            raise ValueError("a context and its continuation need at least one token each")
        if len(continuation) > limit:
            raise ValueError(f"context_length is {limit}, but a continuation has {len(continuation)} tokens")
        rows.append(([*context, *continuation][-limit - 1 :], len(continuation)))
    order = sorted(range(len(rows)), key=lambda place: len(rows[place][0]))
    found = [Likelihood(0.0, True)] * len(rows)
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        for place, likelihood in zip(places, _batch(model, [rows[place] for place in places]), strict=True):
            found[place] = likelihood
    return found


def _batch(model: Any, rows: Sequence[tuple[list[int], int]]) -> list[Likelihood]:
    device = model.token_embedding.weight.device
    ids = stacked([torch.tensor(tokens[:-1]).numpy() for tokens, _ in rows]).to(device)
    lengths = torch.tensor([len(tokens) - 1 for tokens, _ in rows], device=device)
    hidden = model.hidden(ids, lengths)  # (B, T, C)
    asked = torch.cat(
        [hidden[row, len(tokens) - 1 - count : len(tokens) - 1] for row, (tokens, count) in enumerate(rows)]
    )
    targets = torch.tensor([token for tokens, count in rows for token in tokens[-count:]], device=device)
    logits = model.logits(asked)  # (continuations' tokens, V)
    losses = ops.cross_entropy(logits, targets, reduction="none").tolist()
    greedy = (logits.argmax(-1) == targets).tolist()
    found, at = [], 0
    for _, count in rows:
        found.append(Likelihood(-math.fsum(losses[at : at + count]), all(greedy[at : at + count])))
        at += count
    return found


@torch.no_grad()
def mean_loss(
    model: Any, batches: Iterable[tuple[Tensor, ...]], targets: int, arguments: Sequence[str]
) -> tuple[float, int]:
    """The mean loss of batches' targets, and how many there are.

    Args:
        model: in eval mode.
        batches: arguments of its loss.
        targets: which of them holds the targets.
        arguments: their names.
    """
    total, count = 0.0, 0
    for batch in batches:
        here = int((batch[targets] != IGNORED).sum())
        moved = [each.to(model.token_embedding.weight.device) for each in batch]
        total += float(model.loss(**dict(zip(arguments, moved, strict=True)))) * here
        count += here
    return (total / count if count else math.nan), count
