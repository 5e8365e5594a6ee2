"""Beam search: the continuations of highest log-probability, as far as a few kept at a time lead to them.

Each prompt has ``num_beams`` rows of the cache. A step ranks every continuation of a prompt's rows by the sum of its
log-probabilities, keeps the best that go on, and moves keys and values to the rows that go on from them.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pygpt import ops
from pygpt.generate.cache import KeyValueCache
from pygpt.generate.prompts import (
    LanguageModel,
    Stops,
    TokenBytes,
    check_ids,
    check_room,
    prompt_lengths_of,
)
from pygpt.generate.rules import Rules, Word
from pygpt.nn.evaluating import evaluating


class Beams(NamedTuple):
    """What `beam_search` gives; the rows of one prompt stand together, the best first.

    Attributes:
        tokens: (rows, time + max_new_tokens) int64.
        lengths: (rows,) int64: a row's tokens, prompt and stop included, are ``tokens[row, :lengths[row]]``.
        scores: (rows,) float32: the sum of the log-probabilities of the new tokens over their number to the power of
            ``length_penalty``; -inf, and no new tokens, where there are no more continuations.
        logprobs: (rows, max_new_tokens) float32: the model's, of each new token of a row, in order; 0 after its last.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    logprobs: Tensor


class _Hypothesis(NamedTuple):
    """A prompt's tokens and what a search has added."""

    score: float  # the sum of the log-probabilities; once it has ended, Beams.scores
    tokens: list[int]
    logprobs: list[float]
    tail: bytes  # as Stops.ends has it


class _Step(NamedTuple):
    """A continuation of a hypothesis."""

    row: int  # of the batch
    token: int
    ends: bool


@torch.no_grad()
def beam_search(
    model: LanguageModel,
    ids: Tensor,
    max_new_tokens: int = 64,
    *,
    num_beams: int = 4,
    num_return_sequences: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    num_beam_groups: int = 1,
    diversity_penalty: float = 0.0,
    no_repeat_ngram_size: int = 0,
    bad_words: Sequence[str | Word] = (),
    force_words: Sequence[Word | Sequence[Word]] = (),
    prefixes: Sequence[Word] = (),
    prompt_lengths: Sequence[int] | Tensor | None = None,
    stop_tokens: Sequence[int] = (),
    stop: str | Sequence[str] = (),
    tokenizer: TokenBytes | None = None,
    pad_token: int = 0,
) -> Beams:
    """Search for probable continuations of prompts, in eval mode and without gradient.

    What is forbidden has no probability; that of the rest is not renormalised, so that the score of a continuation is
    what the model says of it. With ``num_beams`` 1 this is greedy decoding. What comes of a prompt does not depend on
    the prompts beside it.

    Args:
        model: what computes the logits.
        ids: (batch, time) int64, the prompts.
        max_new_tokens: the most tokens to add to a prompt.
        num_beams: continuations that are kept at a time.
        num_return_sequences: continuations that are given, at most ``num_beams``.
        length_penalty: the power of its length that divides a continuation's log-probability when it has ended: above
            0, long ones gain; 0: their log-probabilities decide.
        early_stopping: True: the search ends when ``num_beams`` continuations have ended; ``"never"``: when no other
            can become better than those; False: when none can without growing longer.
        num_beam_groups: a divisor of ``num_beams``: groups of beams that are searched one after the other in each step.
        diversity_penalty: what a token costs a group each time that an earlier group has chosen it in this step. It
            decides which continuations are kept, and is no part of their scores.
        no_repeat_ngram_size: no n tokens in a row occur twice, the prompt's counted; 0: they may.
        bad_words: what new tokens never complete, whatever stands before them: token sequences, or strings (which need
            a tokenizer), which then occur in no division into tokens.
        force_words: token sequences that the new tokens contain, in any order; or for each several, of which one.
            Beams are shared out among continuations that have more and less of them.
        prefixes: token sequences; the new tokens begin with one of them.
        prompt_lengths: (batch,) 1 to time; what follows a prompt in its row may be anything. None: all of time.
        stop_tokens: a continuation ends after one of these.
        stop: a continuation ends with the token in which its new text has one of these strings; needs a tokenizer.
        tokenizer: has ``token_bytes``, as those of `pygpt.text`.
        pad_token: what follows a row's last token.

    Raises:
        ValueError: naming the argument that does not fit, before any work; if a prompt has no continuation that is
            allowed; or if logits are NaN.
        TypeError: if a type or dtype does not fit.

    Source: Graves, 2012 (beam search); Wu et al., 2016, section 7 (length); Paulus et al., 2018 (n-grams);
    Vijayakumar et al., "Diverse Beam Search", 2018; Post and Vilar, "Fast Lexically Constrained Decoding", 2018.
    """
    _check_beams(num_beams, num_return_sequences, num_beam_groups, diversity_penalty, length_penalty, early_stopping)
    prompt_lengths = prompt_lengths_of(ids, prompt_lengths)
    if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool) or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be an integer of at least 0, not {max_new_tokens!r}")
    if abs(length_penalty) * math.log(max(1, max_new_tokens)) > math.log(sys.float_info.max):
        raise ValueError(f"length_penalty is {length_penalty}, and no float holds {max_new_tokens} tokens to its power")
    stops = Stops(stop_tokens, stop, tokenizer)
    vocab_size, limit = model.config.vocab_size, model.config.context_length
    check_ids(ids, prompt_lengths, stops, pad_token, vocab_size)
    check_room(prompt_lengths, max_new_tokens, limit, "error")
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
    prompts = [row[:length] for row, length in zip(ids.tolist(), prompt_lengths.tolist(), strict=True)]
    groups = [
        _Group(
            prompt,
            max_new_tokens,
            first=(number * num_beam_groups + group) * (num_beams // num_beam_groups),
            size=num_beams // num_beam_groups,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            stops=stops,
            rules=rules,
        )
        for number, prompt in enumerate(prompts)
        for group in range(num_beam_groups)
    ]
    if groups and max_new_tokens:
        with evaluating(model), model.session(max_new_tokens):
            _search(model, ids, prompt_lengths, groups, num_beam_groups, diversity_penalty, rules, max_new_tokens)

    tokens = ids.new_full((len(prompts) * num_return_sequences, ids.shape[1] + max_new_tokens), pad_token)
    lengths = prompt_lengths.repeat_interleave(num_return_sequences)
    scores = torch.full((len(tokens),), -math.inf, device=ids.device)
    logprobs = torch.zeros(len(tokens), max_new_tokens, device=ids.device)
    for number, prompt in enumerate(prompts):
        own = groups[number * num_beam_groups : (number + 1) * num_beam_groups]
        ended = [hypothesis for group in own for hypothesis in group.ended]
        if not ended and max_new_tokens:
            raise ValueError(f"prompt {number} has no continuation that prefixes, bad_words and the like allow")
        ended.sort(key=lambda hypothesis: -hypothesis.score)  # stable: of equals, an earlier group's stands first
        if not max_new_tokens:
            ended = [_Hypothesis(0.0, prompt, [], b"")]
        for place in range(num_return_sequences):
            row = number * num_return_sequences + place
            kept = ended[place] if place < len(ended) else _Hypothesis(-math.inf, prompt, [], b"")
            tokens[row, : len(kept.tokens)] = torch.tensor(kept.tokens)
            lengths[row], scores[row] = len(kept.tokens), kept.score
            logprobs[row, : len(kept.logprobs)] = torch.tensor(kept.logprobs)
    return Beams(tokens, lengths, scores, logprobs)


def _search(
    model: LanguageModel,
    ids: Tensor,
    prompt_lengths: Tensor,
    groups: Sequence[_Group],
    groups_of_a_prompt: int,
    diversity_penalty: float,
    rules: Rules,
    max_new_tokens: int,
) -> None:
    """Go on until every group is done."""
    device = ids.device
    rows = sum(group.size for group in groups)
    cache = KeyValueCache(len(ids), int(prompt_lengths.max()) + max_new_tokens, device)
    hidden = _last_hidden(model, ids, prompt_lengths, cache)  # (B, C)
    beams = rows // len(ids)
    hidden, cache = hidden.repeat_interleave(beams, dim=0), cache.repeated(beams)
    for step in range(max_new_tokens):
        logits = model.logits(hidden)  # (R, V)
        logprobs = logits.log_softmax(-1)
        if logprobs.isnan().any():
            raise ValueError("the model's logits are NaN")
        if not rules.nothing:
            known = [[] if beam is None else beam.tokens for group in groups for beam in group.beams]
            starts = [group.start for group in groups for _ in group.beams]
            logprobs = logprobs.masked_fill(rules.banned(known, starts, max_new_tokens - step, device), -math.inf)
        steps: list[list[_Step]] = []
        taken = logprobs.new_zeros(logprobs.shape[-1])  # (V,) how often earlier groups have chosen each token
        for number, group in enumerate(groups):
            if number % groups_of_a_prompt == 0:
                taken.zero_()
            steps.append(group.choose(logprobs, diversity_penalty * taken, step))
            for chosen in steps[-1]:
                taken[chosen.token] += 1
        # As `loss` computes them, for the few that were chosen.
        flat = [chosen for group_steps in steps for chosen in group_steps]
        sources = torch.tensor([chosen.row for chosen in flat], dtype=torch.int64, device=device)
        targets = torch.tensor([chosen.token for chosen in flat], dtype=torch.int64, device=device)
        exact = deque((-ops.cross_entropy(logits.index_select(0, sources), targets, reduction="none")).tolist())
        parents = list(range(rows))
        for group, group_steps in zip(groups, steps, strict=True):
            for row, parent in group.advance(group_steps, [exact.popleft() for _ in group_steps], step).items():
                parents[row] = parent
        going_on = [beam for group in groups for beam in group.beams]
        if all(beam is None for beam in going_on) or step + 1 == max_new_tokens:
            break
        cache.reorder(torch.tensor(parents, device=device))
        newest = torch.tensor([[0 if beam is None else beam.tokens[-1]] for beam in going_on], device=device)
        alive = torch.tensor([int(beam is not None) for beam in going_on], device=device)
        hidden = model.hidden(newest, lengths=alive, cache=cache)[:, 0]


def _last_hidden(model: LanguageModel, ids: Tensor, lengths: Tensor, cache: KeyValueCache) -> Tensor:
    """Read prompts into a cache; give what the head sees at their last tokens, (batch, width)."""
    read = model.hidden(ids, lengths=lengths, cache=cache)  # (B, T, C)
    places = ids.shape[1] * torch.arange(len(ids), device=ids.device) + lengths - 1
    return read.flatten(0, 1).index_select(0, places)


class _Group:
    """The beams of one prompt, or a part of them.

    Args:
        prompt: its tokens.
        max_new_tokens: the most to add.
        first: the first of the group's rows in the batch.
        size: how many beams there are.
        length_penalty: as `beam_search` has it.
        early_stopping: as `beam_search` has it.
        stops: when a hypothesis ends.
        rules: for the forced words, among which beams are shared out.

    Attributes:
        start: where new tokens begin.
        beams: the hypotheses that go on, the best first; None where there are fewer.
        ended: those that have ended, the best first.
    """

    def __init__(
        self,
        prompt: list[int],
        max_new_tokens: int,
        *,
        first: int,
        size: int,
        length_penalty: float,
        early_stopping: bool | str,
        stops: Stops,
        rules: Rules,
    ) -> None:
        self.start = len(prompt)
        self.size = size
        self.beams: list[_Hypothesis | None] = [_Hypothesis(0.0, prompt, [], b""), *[None] * (size - 1)]
        self.ended: list[_Hypothesis] = []
        self._first = first
        self._max_new_tokens = max_new_tokens
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self._stops = stops
        self._rules = rules

    def choose(self, logprobs: Tensor, penalties: Tensor, step: int) -> list[_Step]:
        """The continuations that this step keeps.

        Args:
            logprobs: (rows of the batch, vocabulary), -inf for what is forbidden.
            penalties: (vocabulary,) what each token costs in this step.
            step: how many new tokens there are.
        """
        if all(beam is None for beam in self.beams):
            return []
        sums = [-math.inf if beam is None else beam.score for beam in self.beams]
        own = logprobs[self._first : self._first + self.size].double() - penalties  # (K, V)
        own += torch.tensor(sums, dtype=torch.float64, device=own.device).unsqueeze(1)
        count = 2 * self.size
        while True:
            ranked = highest(own.flatten(), count)
            running, ended = self._sort(self._with_forced(ranked, own), step, own.shape[1])
            enough = step + 1 == self._max_new_tokens or sum(map(len, running.values())) >= self.size
            if enough or len(ranked) < count:
                return self._share_out(running) + ended
            count *= 2

    def _with_forced(self, ranked: list[int], scores: Tensor) -> list[int]:
        """Candidates, and what brings their rows closer to the forced words, the best first."""
        if not self._rules.forced:
            return ranked
        vocabulary = scores.shape[1]
        more = {
            beam * vocabulary + token
            for beam, known in enumerate(self.beams)
            if known is not None
            for token in self._rules.forced.nearer(known.tokens[self.start :])
            if scores[beam, token] > -math.inf
        }
        flat = scores.flatten()
        return sorted({*ranked, *more}, key=lambda place: (-float(flat[place]), place))

    def _sort(self, ranked: list[int], step: int, vocabulary: int) -> tuple[dict[int, list[_Step]], list[_Step]]:
        """Which candidates go on, by how far they are from all forced words, and which end.

        One may only end if it is among the best ``size`` of those that are as far: the others are here to fill up the
        beams.
        """
        running: dict[int, list[_Step]] = defaultdict(list)
        ended: list[_Step] = []
        ranks: dict[int, int] = defaultdict(int)
        last = step + 1 == self._max_new_tokens
        for place in ranked:
            beam, token = divmod(place, vocabulary)
            known = self.beams[beam]
            assert known is not None, "what was ranked has a score"
            missing = self._rules.forced.distance((*known.tokens[self.start :], token)) if self._rules.forced else 0
            ends = last or self._stops.ends(token, known.tail)[0]
            chosen = _Step(self._first + beam, token, ends)
            if not ends:
                running[missing].append(chosen)
            elif missing == 0 and ranks[missing] < self.size:
                ended.append(chosen)
            ranks[missing] += 1
        return running, ended

    def _share_out(self, running: dict[int, list[_Step]]) -> list[_Step]:
        """The best ones; where there are forced words, by turns of those that have more and less of them."""
        banks = [deque(running[missing]) for missing in sorted(running)]
        kept: list[_Step] = []
        while len(kept) < self.size and any(banks):
            kept += [bank.popleft() for bank in banks if bank][: self.size - len(kept)]
        return kept

    def advance(self, steps: Sequence[_Step], logprobs: Sequence[float], step: int) -> dict[int, int]:
        """Take the chosen continuations, with their log-probabilities; give the parent of each row that goes on."""
        if not steps:
            self.beams = [None] * self.size
            return {}
        running: list[tuple[_Hypothesis, int]] = []
        for chosen, logprob in zip(steps, logprobs, strict=True):
            known = self.beams[chosen.row - self._first]
            assert known is not None, "what was chosen has a row"
            score, tokens = known.score + logprob, [*known.tokens, chosen.token]
            tail = self._stops.ends(chosen.token, known.tail)[1]
            longer = _Hypothesis(score, tokens, [*known.logprobs, logprob], tail)
            if chosen.ends:
                self.ended.append(longer._replace(score=score / (step + 1) ** self._length_penalty))
            else:
                running.append((longer, chosen.row))
        self.ended.sort(key=lambda hypothesis: -hypothesis.score)
        del self.ended[self.size :]
        running.sort(key=lambda pair: -pair[0].score)
        if running and self._is_done(running[0][0].score, step + 1):
            running = []
        self.beams = [hypothesis for hypothesis, _ in running]
        self.beams += [None] * (self.size - len(running))
        return {self._first + beam: parent for beam, (_, parent) in enumerate(running)}

    def _is_done(self, best: float, length: int) -> bool:
        """Whether nothing better than what has ended can come of hypotheses of this length."""
        if len(self.ended) < self.size:
            return False
        if self._early_stopping is True:
            return True
        longest = self._early_stopping == "never" and self._length_penalty > 0
        bound: float = best / (self._max_new_tokens if longest else length) ** self._length_penalty
        return bound <= self.ended[-1].score


def highest(scores: Tensor, count: int) -> list[int]:
    """The places of the highest scores that are not -inf, the highest first, of equals the lower place.

    Args:
        scores: (n,).
        count: the most places.
    """
    least = scores.topk(min(count, len(scores))).values[-1]
    places = (scores >= least).nonzero().flatten()  # with all that equal the last
    values = scores.index_select(0, places)
    order = values.sort(descending=True, stable=True).indices[:count]
    order = order[values.index_select(0, order) > -math.inf]
    return places.index_select(0, order).tolist()


def _check_beams(
    num_beams: int,
    num_return_sequences: int,
    num_beam_groups: int,
    diversity_penalty: float,
    length_penalty: float,
    early_stopping: bool | str,
) -> None:
    for name, value in (
        ("num_beams", num_beams),
        ("num_return_sequences", num_return_sequences),
        ("num_beam_groups", num_beam_groups),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
    if num_return_sequences > num_beams:
        raise ValueError(f"num_return_sequences must be at most num_beams, {num_beams}, but is {num_return_sequences}")
    if num_beams % num_beam_groups:
        raise ValueError(f"num_beam_groups must divide num_beams, {num_beams}, but is {num_beam_groups}")
    for name, number in (("diversity_penalty", diversity_penalty), ("length_penalty", length_penalty)):
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise TypeError(f"{name} must be a number, not {number!r}")
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, but is {number}")
    if diversity_penalty < 0:
        raise ValueError(f"diversity_penalty must be at least 0, but is {diversity_penalty}")
    if diversity_penalty and num_beam_groups == 1:
        raise ValueError("diversity_penalty needs num_beam_groups of at least 2")
    if early_stopping not in (True, False, "never"):
        raise ValueError(f"early_stopping must be True, False or 'never', not {early_stopping!r}")
