"""Contrastive search: of the most probable tokens, the one that is least like what stands before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pygpt import ops
from pygpt.generate.beam import highest
from pygpt.generate.cache import KeyValueCache
from pygpt.generate.generate import Generation
from pygpt.generate.prompts import (
    LanguageModel,
    Stops,
    TokenBytes,
    check_ids,
    check_room,
    prompt_lengths_of,
    tell_and_stop,
)
from pygpt.generate.rules import Rules, Word
from pygpt.nn.evaluating import evaluating


@torch.no_grad()
def contrastive_search(
    model: LanguageModel,
    ids: Tensor,
    max_new_tokens: int = 64,
    *,
    penalty_alpha: float = 0.6,
    top_k: int = 4,
    no_repeat_ngram_size: int = 0,
    bad_words: Sequence[str | Word] = (),
    force_words: Sequence[Word | Sequence[Word]] = (),
    prefixes: Sequence[Word] = (),
    prompt_lengths: Sequence[int] | Tensor | None = None,
    stop_tokens: Sequence[int] = (),
    stop: str | Sequence[str] = (),
    tokenizer: TokenBytes | None = None,
    return_logprobs: bool = False,
    stream: Callable[[int, int], None] | None = None,
    pad_token: int = 0,
) -> Tensor | Generation:
    """Write after prompts without repetition and without chance, in eval mode and without gradient.

    The next token is, of the ``top_k`` most probable ones v, the one of the highest
    ``(1 - alpha) p(v) - alpha max_j cos(h(v), h(j))``, where h is what the head sees at a token, and j goes over the
    row's tokens so far. What comes of a prompt does not depend on the prompts beside it.

    Args:
        model: what computes the logits.
        ids: (batch, time) int64, the prompts.
        max_new_tokens: the most tokens to add to a prompt.
        penalty_alpha: from 0, which is greedy decoding, to 1.
        top_k: how many tokens are compared.
        no_repeat_ngram_size: as in `beam_search`.
        bad_words: as in `beam_search`.
        force_words: as in `beam_search`; each comes as late as ``max_new_tokens`` allows, unless by itself.
        prefixes: as in `beam_search`.
        prompt_lengths: (batch,) 1 to time; what follows a prompt in its row may be anything. None: all of time.
        stop_tokens: a row ends after one of these.
        stop: a row ends with the token in which its new text has one of these strings; needs a tokenizer.
        tokenizer: has ``token_bytes``, as those of `pygpt.text`.
        return_logprobs: give a `Generation`, with the model's log-probabilities.
        stream: is called with row and token when a token has been chosen.
        pad_token: what follows a row's last token.

    Returns:
        (batch, time + max_new_tokens) int64, a row's new tokens directly after its prompt; or a `Generation`.

    Raises:
        ValueError: naming the argument that does not fit, before any work; or if no token is allowed in a row.
        TypeError: if a type or dtype does not fit.

    Source: Su et al., "A Contrastive Framework for Neural Text Generation", 2022, equation 5.
    """
    _check(max_new_tokens, penalty_alpha, top_k)
    prompt_lengths = prompt_lengths_of(ids, prompt_lengths)
    stops = Stops(stop_tokens, stop, tokenizer)
    if stream is not None and not callable(stream):
        raise TypeError(f"stream must be a function of row and token, not {stream!r}")
    vocab_size, device = model.config.vocab_size, ids.device
    check_ids(ids, prompt_lengths, stops, pad_token, vocab_size)
    check_room(prompt_lengths, max_new_tokens, model.config.context_length, "error")
    rules = Rules(
        vocab_size,
        max_new_tokens,
        no_repeat_ngram_size,
        bad_words,
        force_words,
        prefixes,
        stops.tokens,
        tokenizer,
    )
    (batch, time), k = ids.shape, min(top_k, vocab_size)
    padding = torch.arange(time, device=device) >= prompt_lengths.unsqueeze(1)
    tokens = ids.new_full((batch, time + max_new_tokens), pad_token)
    tokens[:, :time] = ids.masked_fill(padding, pad_token)
    lengths, alive = prompt_lengths, torch.ones(batch, dtype=torch.bool, device=device)
    logprobs = torch.zeros(batch, max_new_tokens, device=device)
    starts, on, tails = prompt_lengths.tolist(), [True] * batch, [b""] * batch
    every_row = torch.arange(batch, device=device)

    with evaluating(model), model.session(max_new_tokens):
        if batch and max_new_tokens:
            cache = KeyValueCache(batch, int(lengths.max()) + max_new_tokens, device)
            read = model.hidden(ids, lengths=lengths, cache=cache)  # (B, T, C)
            seen = [F.normalize(row[:length].float(), dim=-1) for row, length in zip(read, starts, strict=True)]
            last = torch.stack([row[length - 1] for row, length in zip(read, starts, strict=True)])  # (B, C)
            cache = cache.repeated(k)
        for step in range(max_new_tokens):
            if not any(on):
                break
            logits = model.logits(last)  # (B, V)
            allowed = logits
            if not rules.nothing:
                allowed = rules.forbid(logits, tokens, lengths, starts, alive, max_new_tokens - step)
            best = _candidates(allowed, alive, k)  # (B, k), fewer than k filled up with the last
            hidden = model.hidden(best.view(-1, 1), lengths=alive.long().repeat_interleave(k), cache=cache)
            hidden = hidden.view(batch, k, -1)
            probabilities = allowed.softmax(-1).gather(1, best)  # (B, k)
            choice = torch.zeros(batch, dtype=torch.int64, device=device)
            for row in alive.nonzero().flatten().tolist():
                unit = F.normalize(hidden[row].float(), dim=-1)  # (k, C)
                likeness = ops.linear(unit, seen[row]).amax(-1)  # (k,)
                scores = (1 - penalty_alpha) * probabilities[row] - penalty_alpha * likeness
                choice[row] = highest(scores, 1)[0]
                seen[row] = torch.cat([seen[row], unit[choice[row]].unsqueeze(0)])
            cache.reorder((k * every_row + choice).repeat_interleave(k))
            last = hidden[every_row, choice]
            chosen = best.gather(1, choice.unsqueeze(1)).squeeze(1).masked_fill(~alive, pad_token)  # (B,)
            if return_logprobs:
                logprobs[:, step] = -ops.cross_entropy(logits, chosen, reduction="none").masked_fill(~alive, 0.0)
            tokens[every_row, lengths] = chosen
            lengths = lengths + alive
            if tell_and_stop(chosen, on, stops, tails, stream):
                alive = torch.tensor(on, device=device)
    return Generation(tokens, lengths, logprobs) if return_logprobs else tokens


def _candidates(logits: Tensor, alive: Tensor, k: int) -> Tensor:
    """The k highest tokens of each row, (B, k); where fewer are allowed, the last of them again."""
    best = torch.zeros(len(logits), k, dtype=torch.int64, device=logits.device)
    for row in alive.nonzero().flatten().tolist():
        if logits[row].isnan().any():
            raise ValueError("the model's logits are NaN")
        found = highest(logits[row], k)
        best[row] = torch.tensor(found + found[-1:] * (k - len(found)))
    return best


def _check(max_new_tokens: int, penalty_alpha: float, top_k: int) -> None:
    for name, value, least in (("max_new_tokens", max_new_tokens, 0), ("top_k", top_k, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
    if not isinstance(penalty_alpha, int | float) or isinstance(penalty_alpha, bool):
        raise TypeError(f"penalty_alpha must be a number, not {penalty_alpha!r}")
    if not 0 <= penalty_alpha <= 1:
        raise ValueError(f"penalty_alpha must be at least 0 and at most 1, but is {penalty_alpha}")
