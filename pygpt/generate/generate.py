"""Sampling tokens one after the other, each computed from the keys and values of those before it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pygpt import ops
from pygpt.extension import EMULATED, C
from pygpt.generate import recording
from pygpt.generate.cache import KeyValueCache
from pygpt.generate.prompts import (
    LanguageModel,
    Stops,
    TokenBytes,
    check_ids,
    check_room,
    prompt_lengths_of,
    tell_and_stop,
)
from pygpt.generate.recording import DecodingStep
from pygpt.generate.rules import Rules, Word
from pygpt.nn.evaluating import evaluating

# On a device: how many tokens come between two looks at whether a row goes on.
LOOK_EVERY = 16


class Generation(NamedTuple):
    """What `generate` gives with ``return_logprobs``.

    Attributes:
        tokens: (rows, time + max_new_tokens) int64.
        lengths: (rows,) int64: a row's tokens, prompt and stop included, are ``tokens[row, :lengths[row]]``.
        logprobs: (rows, max_new_tokens) float32: of each new token of a row, in order; 0 after its last.
    """

    tokens: Tensor
    lengths: Tensor
    logprobs: Tensor


@torch.no_grad()
def generate(
    model: LanguageModel,
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
    no_repeat_ngram_size: int = 0,
    bad_words: Sequence[str | Word] = (),
    force_words: Sequence[Word | Sequence[Word]] = (),
    prefixes: Sequence[Word] = (),
) -> Tensor | Generation:
    """Sample tokens after prompts, in eval mode and without gradient.

    The distribution of a token is the model's after, in this order: the repetition penalty, what is forbidden, the
    temperature, top-k, top-p, min-p, renormalising. A row's tokens depend on its prompt and its seed alone, not on the
    rows beside it.

    Args:
        model: what computes the logits.
        ids: (batch, time) int64, the prompts.
        max_new_tokens: the most tokens to add to a prompt.
        temperature: divides the logits; 0 takes the most probable token, the lower id of a tie.
        top_k: keep the k most probable tokens.
        top_p: keep the smallest set of most probable tokens that reaches this probability.
        min_p: keep tokens of at least this share of the highest probability.
        repetition_penalty: positive logits of tokens that the row has already are divided by this, others multiplied.
        seed: an int gives row r the seed ``seed + r``; or one seed for each row of the result.
        prompt_lengths: (batch,) 1 to time; what follows a prompt in its row may be anything. None: all of time.
        num_samples: continuations of each prompt; those of one prompt stand together.
        stop_tokens: a row ends after one of these.
        stop: a row ends with the token in which its new text has one of these strings; needs a tokenizer.
        tokenizer: has ``token_bytes``, as those of `pygpt.text`.
        overflow: what to do where a prompt and ``max_new_tokens`` exceed the model's context: ``"error"``, or
            ``"slide"``: each token is computed from the last ``context_length`` tokens, at positions from 0.
        return_logprobs: give a `Generation`, with the model's log-probabilities before all of the above.
        stream: is called with row and token when a token has been chosen.
        exact: whether the bits must be those of ``forward``; on the CPU they always are. None: on CUDA they need not.
            Where they need not, tokens after a row's first are computed by kernels for few rows (``decode`` of
            `pygpt.ops.linear`): their bits, too, depend on nothing but the row.
        pad_token: what follows a row's last token.
        no_repeat_ngram_size: as in `beam_search`.
        bad_words: as in `beam_search`.
        force_words: as in `beam_search`; each comes as late as ``max_new_tokens`` allows, unless by itself.
        prefixes: as in `beam_search`.

    Returns:
        (batch × num_samples, time + max_new_tokens) int64, a row's new tokens directly after its prompt; or a
        `Generation`.

    Raises:
        ValueError: naming the argument that does not fit, before any work; or if no token is allowed in a row.
        TypeError: if a type or dtype does not fit.

    Source: Keskar et al., "CTRL", 2019 (repetition penalty); Fan et al., 2018 (top-k); Holtzman et al., "The Curious
    Case of Neural Text Degeneration", 2020 (top-p); Nguyen et al., 2024 (min-p).
    """
    _check_options(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, num_samples, overflow, exact)
    prompt_lengths = prompt_lengths_of(ids, prompt_lengths)
    stops = Stops(stop_tokens, stop, tokenizer)
    if stream is not None and not callable(stream):
        raise TypeError(f"stream must be a function of row and token, not {stream!r}")
    check_ids(ids, prompt_lengths, stops, pad_token, model.config.vocab_size)
    check_room(prompt_lengths, max_new_tokens, model.config.context_length, overflow)
    rules = Rules(
        model.config.vocab_size,
        max_new_tokens,
        no_repeat_ngram_size,
        bad_words,
        force_words,
        prefixes,
        stops.tokens,
        tokenizer,
    )
    batch, time = ids.shape
    rows = batch * num_samples
    on_cuda = ids.device.type == "cuda" or EMULATED is not None
    decode = exact is False or (exact is None and on_cuda)

    padding = torch.arange(time, device=ids.device) >= prompt_lengths.unsqueeze(1)
    tokens = ids.new_full((batch, time + max_new_tokens), pad_token)
    tokens[:, :time] = ids.masked_fill(padding, pad_token)
    starts = prompt_lengths.repeat_interleave(num_samples)
    writer = _Writer(
        tokens.repeat_interleave(num_samples, dim=0),
        starts,
        max_new_tokens,
        rules,
        stops,
        stream,
        vocabulary=model.config.vocab_size,
        seeds=_seeds(seed, rows, ids.device),
        pad_token=pad_token,
        repetition_penalty=repetition_penalty,
        logprobs=return_logprobs,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    )
    if rows and max_new_tokens:
        with evaluating(model), model.session(max_new_tokens) as session:
            kind = ids.device.type
            cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            key = model, decode, cast, num_samples, *writer.key()
            # Taken out while it is in use: a call on another thread or inside ``stream`` is not to write to its memory.
            kept: _Decoding | None = vars(session).pop("decoding", None)
            if kept is not None and kept.key == key and kept.step.is_captured():
                kept.writer.begin_as(writer)
                _, cache, writer, step = kept
                cache.clear()
                cache.decode = False
            else:
                kept = None  # its memory may be needed
                cache, step = KeyValueCache(batch, _capacity(model, tokens), ids.device), None
            logits = model.logits(_read(model, cache, tokens, prompt_lengths)).repeat_interleave(num_samples, dim=0)
            if num_samples > 1:
                cache = cache.repeated(num_samples)
            cache.decode = decode
            # How many of the steps leave every row inside the context.
            inside = min(max_new_tokens, cache.capacity - max(writer.starts) + 1)
            if step is None:
                step = DecodingStep(
                    *(model, cache, writer.tokens, writer.lengths, writer.alive, writer.choose),
                    steps=inside - 1,
                    on_device=writer.on_device,
                )
            _write(model, cache, writer, step, inside, logits)
            if num_samples == 1 and step.is_captured():
                session.decoding = _Decoding(key, cache, writer, step)
    # Copies: a graph that is kept writes to the same memory again.
    result = Generation(writer.tokens.clone(), writer.lengths.clone(), writer.logprobs.clone())
    return result if return_logprobs else result.tokens


class _Decoding(NamedTuple):
    """What writes tokens by a captured step, and can again with other prompts.

    Attributes:
        key: what has to be the same then.
        cache: of the rows.
        writer: of their tokens.
        step: of the model, with the writer's choice.
    """

    key: tuple[Any, ...]
    cache: KeyValueCache
    writer: _Writer
    step: DecodingStep


def _capacity(model: LanguageModel, tokens: Tensor) -> int:
    """The most tokens of a row that a cache has to have."""
    return min(tokens.shape[1], int(model.config.context_length))


def _write(
    model: LanguageModel, cache: KeyValueCache, writer: _Writer, step: DecodingStep, inside: int, logits: Tensor
) -> None:
    """Add tokens to the rows until all have ended: one by the logits, as many as are ``inside`` by the step."""
    for number in range(writer.steps):
        if number == 0:
            writer.choose(logits)
        elif number < inside:
            step.run()
        else:
            if number == inside:
                cache.lengths = (writer.lengths - 1).clamp(max=cache.capacity)
            hidden = _read(model, cache, writer.tokens, writer.lengths, writer.alive)
            writer.choose(model.logits(hidden, cache.decode))
        if not writer.goes_on(number + 1):
            break


class _Writer:
    """Rows of tokens, and how the next ones are chosen and written.

    What changes from one token to the next is in tensors that are always the same.

    Args:
        tokens: (R, most) int64, the prompts, and pad_token where nothing is yet.
        starts: (R,) int64, the prompts' lengths.
        steps: how many tokens a row gets at most.
        rules: what may come.
        stops: when a row ends.
        stream: is told of every token.
        vocabulary: how many tokens there are.
        seeds: (R,) int64.
        pad_token: follows the last token of a row.
        repetition_penalty: as in `generate`, as are the following.
        logprobs: whether log-probabilities are kept.
        sampling: the options of `pygpt.ops.sample`.

    Attributes:
        lengths: (R,) int64.
        alive: (R,) bool: which rows go on.
        logprobs: (R, steps) float32, if they are kept.
        on_device: whether `choose` does nothing but work on the device.
    """

    def __init__(
        self,
        tokens: Tensor,
        starts: Tensor,
        steps: int,
        rules: Rules,
        stops: Stops,
        stream: Callable[[int, int], None] | None,
        *,
        vocabulary: int,
        seeds: Tensor,
        pad_token: int,
        repetition_penalty: float,
        logprobs: bool,
        **sampling: Any,
    ) -> None:
        rows, device = len(tokens), tokens.device
        self.tokens = tokens
        self.lengths = starts.clone()
        self.alive = torch.ones(rows, dtype=torch.bool, device=device)
        self.logprobs = torch.zeros(rows, steps, device=device)
        self.starts: list[int] = starts.tolist()
        self.steps = steps
        self.on_device = rules.nothing
        self._on_host = device.type == "cpu" and not EMULATED
        self._chosen = self.lengths  # (R,) the last tokens
        self._first = starts
        self._rules = rules
        self._stops = stops
        self._stream = stream
        self._told = stream is not None or bool(stops.strings)  # the host reads every token
        self._on, self._tails = [True] * rows, [b""] * rows  # what it knows of them then
        watched = [] if self._told else sorted(stops.tokens)
        self._ends = torch.tensor(watched, dtype=torch.int64, device=device)
        self._look_every = LOOK_EVERY if recording.has_graphs(device) or EMULATED else 1
        self._all_alive = rows == 1 and self._look_every == 1  # a single row's end is seen before the next step
        self._seeds = seeds
        self._pad_token = pad_token
        self._penalty = repetition_penalty
        self._history = _history(tokens, self.starts, vocabulary) if repetition_penalty != 1 else None
        self._keep_logprobs = logprobs
        self._sampling = sampling
        self._step = 0  # counts those of which the rules are asked

    def key(self) -> tuple[Any, ...]:
        """What a step that was captured with `choose` in it depends on, besides what is in tensors."""
        ends = None if self._told else self._stops.tokens
        options = self._pad_token, self._penalty, self._keep_logprobs, *self._sampling.items()
        return self.tokens.shape, self.tokens.device, self.steps, self.on_device, self._told, ends, *options

    def begin_as(self, other: _Writer) -> None:
        """Begin with the prompts of another that has the same key, in the memory of this one."""
        for name, value in vars(other).items():
            if isinstance(value, Tensor):
                getattr(self, name).copy_(value)
            else:
                setattr(self, name, value)

    def choose(self, logits: Tensor) -> None:
        """Choose the next token of each row that is alive by the logits, (R, vocabulary), and write it."""
        allowed = logits if self._history is None else _penalise(logits, self._history, self._penalty)
        if not self._rules.nothing:
            left = self.steps - self._step
            allowed = self._rules.forbid(allowed, self.tokens, self.lengths, self.starts, self.alive, left)
            self._step += 1
        chosen, _ = ops.sample(allowed, seeds=self._seeds, positions=self.lengths, **self._sampling)
        if not self._all_alive:
            chosen = chosen.masked_fill(~self.alive, self._pad_token)  # (R,)
        if self._keep_logprobs:
            logprobs = ops.cross_entropy(logits, chosen, reduction="none").neg().masked_fill(~self.alive, 0.0)
            self.logprobs.scatter_(1, (self.lengths - self._first).unsqueeze(1), logprobs.unsqueeze(1))
        if self._history is not None:
            column = chosen.unsqueeze(1)  # (R, 1)
            self._history.scatter_(1, column, self._history.gather(1, column) | self.alive.unsqueeze(1))
        if self._on_host:
            C.session_append(self.tokens, self.lengths, self.alive, chosen, self._ends)
        else:
            column = chosen.unsqueeze(1)  # (R, 1)
            self.tokens.scatter_(1, self.lengths.unsqueeze(1), column)
            self.lengths += self.alive
            if self._ends.numel():
                self.alive &= (column != self._ends).all(1)
        self._chosen = chosen

    def goes_on(self, step: int) -> bool:
        """After so many steps: tell the caller of the last, and give whether there is a row that has not ended.

        Where nobody is told, a device is asked rarely, as that waits for it; a row that has ended stays as it is.
        """
        if self._told:
            if tell_and_stop(self._chosen, self._on, self._stops, self._tails, self._stream):
                self.alive.copy_(torch.tensor(self._on, device="cpu"))
            return any(self._on)
        return not self._ends.numel() or step % self._look_every != 0 or bool(self.alive.any())


def _read(
    model: LanguageModel, cache: KeyValueCache, tokens: Tensor, lengths: Tensor, alive: Tensor | None = None
) -> Tensor:
    """What the head sees at the last token of each row, (rows, width); anything in rows that are not alive.

    Every token is read once while its row fits the context; rows that are longer are read anew, as far as the context
    reaches: the position of every token in it has moved.
    """
    limit = model.config.context_length
    alive = torch.ones_like(lengths, dtype=torch.bool) if alive is None else alive
    slid = alive & (lengths > limit)
    new = (lengths - cache.lengths).masked_fill(slid | ~alive, 0)  # (R,) tokens that were not read yet
    most = int(new.max())
    hidden = None
    if most:
        places = cache.lengths.unsqueeze(1) + torch.arange(most, device=tokens.device)
        ids = tokens.gather(1, places.clamp(max=tokens.shape[1] - 1))
        read = model.hidden(ids, lengths=new, cache=cache)  # (R, most, C)
        # Not by read[rows, places], which wakes torch's threads; they would spin where pygpt's compute.
        last = most * torch.arange(len(new), device=tokens.device) + (new - 1).clamp(min=0)  # (R,)
        hidden = read.flatten(0, 1).index_select(0, last)
    if slid.any():
        places = (lengths[slid] - limit).unsqueeze(1) + torch.arange(limit, device=tokens.device)
        window = model.hidden(tokens[slid].gather(1, places))[:, -1]
        hidden = window.new_zeros(len(new), window.shape[1]) if hidden is None else hidden
        hidden[slid] = window
    assert hidden is not None, "rows are read while one is alive, and that has a new token"
    return hidden


def _history(tokens: Tensor, lengths: Sequence[int], vocabulary: int) -> Tensor:
    """Which tokens each row has, (rows, vocabulary) bool."""
    history = torch.zeros(len(tokens), vocabulary, dtype=torch.bool, device=tokens.device)
    for row, length in enumerate(lengths):
        history[row, tokens[row, :length]] = True
    return history


def _penalise(logits: Tensor, history: Tensor, penalty: float) -> Tensor:
    return torch.where(history, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _seeds(seed: int | Sequence[int] | Tensor, rows: int, device: torch.device) -> Tensor:
    if isinstance(seed, numbers.Integral):  # NumPy's are none of int
        seed = int(seed)
        if not -(2**63) <= seed <= 2**63 - max(rows, 1):
            raise ValueError(f"seed must fit in 64 bits, as must seed + {rows} rows, but is {seed}")
        return seed + torch.arange(rows, device=device)
    if not isinstance(seed, Sequence | Tensor):
        raise TypeError(f"seed must be an int, or one for each row, not {seed!r}")
    try:
        seeds = torch.as_tensor(seed, device=device)
    except (ValueError, RuntimeError) as error:  # torch's for an int that is too large; PyTorch 2.6 had the latter
        raise ValueError(f"seed must fit in 64 bits, but is {seed!r}") from error
    if seeds.dtype != torch.int64 or seeds.shape != (rows,):
        raise ValueError(
            f"seed must be an int, or int64 with one for each of the {rows} rows, "
            f"not {seeds.dtype} of shape {tuple(seeds.shape)}"
        )
    return seeds


def _check_options(
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float,
    num_samples: int,
    overflow: str,
    exact: bool | None,
) -> None:
    for name, value, least in (
        ("max_new_tokens", max_new_tokens, 0),
        ("num_samples", num_samples, 1),
        ("top_k", top_k, 1),
    ):
        if value is None and name == "top_k":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
    for name, number in (
        ("temperature", temperature),
        ("top_p", top_p),
        ("min_p", min_p),
        ("repetition_penalty", repetition_penalty),
    ):
        if not isinstance(number, int | float) and not (number is None and name in ("top_p", "min_p")):
            raise TypeError(f"{name} must be a number, not {number!r}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0 and finite, but is {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be more than 0 and at most 1, but is {top_p}")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"min_p must be at least 0 and at most 1, but is {min_p}")
    if not 0 < repetition_penalty < math.inf:
        raise ValueError(f"repetition_penalty must be more than 0 and finite, but is {repetition_penalty}")
    if overflow not in ("error", "slide"):
        raise ValueError(f"overflow must be 'error' or 'slide', not {overflow!r}")
    if exact not in (None, True, False):
        raise ValueError(f"exact must be True, False or None, not {exact!r}")
