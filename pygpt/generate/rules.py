"""Which tokens may come next: no n-gram twice, banned words, forced words, a choice of beginnings."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from pygpt.generate.prompts import TokenBytes

Word: TypeAlias = Sequence[int]

_MOST_STATES = 1 << 16  # of forced words: places in them, times the sets of those that have come


class Rules:
    """What a search asks about a row of tokens before it adds one.

    Args:
        vocab_size: of the model.
        max_new_tokens: the most tokens that are added to a prompt.
        no_repeat_ngram_size: no n tokens in a row occur twice, the prompt's counted; 0: they may.
        bad_words: what new tokens never complete, whatever stands before them: token sequences, or strings, which then
            occur in no division into tokens.
        force_words: token sequences that the new tokens contain, in any order; or for each several, of which one.
        prefixes: token sequences; the new tokens begin with one of them.
        stop_tokens: those that end a row; they do not come before all forced words have.
        tokenizer: has ``token_bytes``; strings need it.

    Raises:
        ValueError: naming the argument that does not fit, or if ``max_new_tokens`` leaves no room.
        TypeError: if something else than integers stands where tokens should.
    """

    def __init__(
        self,
        vocab_size: int,
        max_new_tokens: int,
        no_repeat_ngram_size: int = 0,
        bad_words: Sequence[str | Word] = (),
        force_words: Sequence[Word | Sequence[Word]] = (),
        prefixes: Sequence[Word] = (),
        stop_tokens: Iterable[int] = (),
        tokenizer: TokenBytes | None = None,
    ) -> None:
        if not isinstance(no_repeat_ngram_size, int) or isinstance(no_repeat_ngram_size, bool):
            raise TypeError(f"no_repeat_ngram_size must be an integer, not {no_repeat_ngram_size!r}")
        if no_repeat_ngram_size < 0:
            raise ValueError(f"no_repeat_ngram_size must be at least 0, but is {no_repeat_ngram_size}")
        if isinstance(bad_words, str) or isinstance(force_words, str):
            raise TypeError("bad_words and force_words must hold words, not be one string")
        self._vocab_size = vocab_size
        self._ngram = no_repeat_ngram_size
        self._stop_tokens = frozenset(stop_tokens)
        self._bad_words = [_word(word, "bad_words", vocab_size) for word in bad_words if not isinstance(word, str)]
        strings = [word for word in bad_words if isinstance(word, str)]
        self._tokenizer, self._completions = tokenizer, _completions(strings, tokenizer, vocab_size)
        self._reach = max((len(word.encode()) for word in strings), default=1) - 1
        self._beginnings = _Beginnings([_word(prefix, "prefixes", vocab_size) for prefix in prefixes])
        self.forced = ForcedWords([_alternatives(word, vocab_size) for word in force_words])
        for prefix in prefixes if prefixes else ((),):
            needed = len(prefix) + self.forced.distance(prefix)
            if needed > max_new_tokens:
                raise ValueError(
                    f"max_new_tokens is {max_new_tokens}, but prefixes and force_words need {needed} tokens"
                )

    @property
    def nothing(self) -> bool:
        """Whether every token may always come."""
        return not (self._ngram or self._bad_words or self._completions or self._beginnings or self.forced)

    def banned(self, rows: Sequence[Sequence[int]], starts: Sequence[int], left: int, device: torch.device) -> Tensor:
        """Which tokens may not come next.

        Args:
            rows: the tokens of each row so far.
            starts: where each row's new tokens begin.
            left: how many tokens may come, the next one included.
            device: of the result.

        Returns:
            (rows, vocabulary) bool.
        """
        mask = torch.zeros(len(rows), self._vocab_size, dtype=torch.bool, device="cpu")
        for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
            if self._ngram:
                mask[number, _seen_after(row, self._ngram)] = True
            for word in self._bad_words:
                if list(row[len(row) - len(word) + 1 :]) == word[:-1]:
                    mask[number, word[-1]] = True
            if self._completions and self._tokenizer is not None:
                tail = _tail(row, self._reach, self._tokenizer)
                for before, tokens in self._completions:
                    if tail.endswith(before):
                        mask[number, tokens] = True
            new = row[start:]
            allowed = self._beginnings.allowed(new)
            if allowed is None and self.forced:
                allowed = self.forced.allowed(new, left)
            if allowed is not None:
                others = torch.ones(self._vocab_size, dtype=torch.bool, device="cpu")
                others[sorted(allowed)] = False
                mask[number] |= others
            if self.forced:
                early = [token for token in self._stop_tokens if self.forced.distance((*new, token)) > 0]
                mask[number, early] = True
        return mask.to(device)

    def forbid(
        self, logits: Tensor, tokens: Tensor, lengths: Tensor, starts: Sequence[int], alive: Tensor, left: int
    ) -> Tensor:
        """Logits, -inf for what is banned.

        Args:
            logits: (rows, vocabulary).
            tokens: (rows, time) of which each row's own are the first.
            lengths: (rows,) how many.
            starts: as in `banned`.
            alive: (rows,) bool: the others keep their logits.
            left: as in `banned`.

        Raises:
            ValueError: if nothing is left in a row.
        """
        rows = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        banned = self.banned(rows, starts, left, logits.device) & alive.unsqueeze(1)
        stuck = banned.all(1)
        if stuck.any():
            raise ValueError(f"row {int(stuck.nonzero()[0])} has no token that prefixes, bad_words and the like allow")
        return logits.masked_fill(banned, -math.inf)


class ForcedWords:
    """How far a row is from having all forced words: an Aho–Corasick automaton over them, with the set of those met.

    Args:
        words: for each, the token sequences of which one must occur.

    Raises:
        ValueError: if there are too many.

    Source: Aho and Corasick, "Efficient String Matching", 1975.
    """

    def __init__(self, words: Sequence[Sequence[list[int]]]) -> None:
        self._children: list[dict[int, int]] = [{}]
        self._ends = [0]  # per node, the words that end there, one bit each
        for number, alternatives in enumerate(words):
            for word in alternatives:
                node = 0
                for token in word:
                    if token not in self._children[node]:
                        self._children[node][token] = len(self._children)
                        self._children.append({})
                        self._ends.append(0)
                    node = self._children[node][token]
                self._ends[node] |= 1 << number
        self._fallback = [0] * len(self._children)
        queue = deque(self._children[0].values())
        while queue:
            node = queue.popleft()
            for token, child in self._children[node].items():
                self._fallback[child] = self._next(self._fallback[node], token)
                self._ends[child] |= self._ends[self._fallback[child]]
                queue.append(child)
        self._alphabet = sorted({token for children in self._children for token in children})
        self._all = (1 << len(words)) - 1
        if len(self._children) << len(words) > _MOST_STATES:
            raise ValueError(f"force_words are too many: {len(words)} words of {len(self._children) - 1} tokens")
        self._distances = self._measure()

    def __bool__(self) -> bool:
        return self._all != 0

    def distance(self, new: Sequence[int]) -> int:
        """The fewest tokens after which these new tokens have all the words."""
        return self._distances[self._state(new)]

    def allowed(self, new: Sequence[int], left: int) -> set[int] | None:
        """The tokens after which the rest still fits into ``left`` tokens, the next included; None: any."""
        state = self._state(new)
        if self._distances[(0, state[1])] < left:
            return None
        return {token for token in self._alphabet if self._distances[self._step(state, token)] < left}

    def nearer(self, new: Sequence[int]) -> list[int]:
        """The tokens that bring these closer to having all the words."""
        state = self._state(new)
        return [token for token in self._alphabet if self._distances[self._step(state, token)] < self._distances[state]]

    def _next(self, node: int, token: int) -> int:
        while node and token not in self._children[node]:
            node = self._fallback[node]
        return self._children[node].get(token, 0)

    def _step(self, state: tuple[int, int], token: int) -> tuple[int, int]:
        node = self._next(state[0], token)
        return node, state[1] | self._ends[node]

    def _state(self, new: Sequence[int]) -> tuple[int, int]:
        state = (0, 0)
        for token in new:
            state = self._step(state, token)
        return state

    def _measure(self) -> dict[tuple[int, int], int]:
        """The distance of every state that can be reached, breadth first from the ends."""
        before: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        known, queue = {(0, 0)}, deque([(0, 0)])
        while queue:
            state = queue.popleft()
            # A token of no word leads to the root.
            for after in {(0, state[1]), *(self._step(state, token) for token in self._alphabet)}:
                before[after].append(state)
                if after not in known:
                    known.add(after)
                    queue.append(after)
        distances = {state: 0 for state in known if state[1] == self._all}
        queue = deque(distances)
        while queue:
            state = queue.popleft()
            for earlier in before[state]:
                if earlier not in distances:
                    distances[earlier] = distances[state] + 1
                    queue.append(earlier)
        return distances


class _Beginnings:
    """A choice of sequences with which a row must begin."""

    def __init__(self, prefixes: Sequence[list[int]]) -> None:
        self._prefixes = prefixes
        self._longest = max(map(len, prefixes), default=0)

    def __bool__(self) -> bool:
        return bool(self._prefixes)

    def allowed(self, new: Sequence[int]) -> set[int] | None:
        """The next tokens of the sequences that these begin; None if one is whole: any."""
        begun, size = list(new), len(new)
        if size >= self._longest or any(begun[: len(prefix)] == prefix for prefix in self._prefixes):
            return None
        return {prefix[size] for prefix in self._prefixes if prefix[:size] == begun}


def _seen_after(row: Sequence[int], size: int) -> list[int]:
    """The tokens that would complete, at the row's end, ``size`` tokens that it has already."""
    row = list(row)
    tail = row[len(row) - size + 1 :] if len(row) >= size - 1 else None
    return [row[i + size - 1] for i in range(len(row) - size + 1) if row[i : i + size - 1] == tail]


def _tail(row: Sequence[int], size: int, tokenizer: TokenBytes) -> bytes:
    """The last bytes of a row, at least ``size`` of them if it has as many."""
    parts: list[bytes] = []
    length = 0
    for token in reversed(row):
        if length >= size:
            break
        parts.append(tokenizer.token_bytes(token))
        length += len(parts[-1])
    return b"".join(reversed(parts))


def _completions(
    strings: Sequence[str], tokenizer: TokenBytes | None, vocab_size: int
) -> list[tuple[bytes, list[int]]]:
    """For every way in which a token can complete one of the strings: what stands before it, and those tokens."""
    if not strings:
        return []
    if tokenizer is None:
        raise ValueError("bad_words has strings, which need a tokenizer to know the text of the tokens")
    if not all(strings):
        raise ValueError("bad_words must hold strings that are not empty")
    texts = [tokenizer.token_bytes(token) for token in range(vocab_size)]
    found = []
    for string in strings:
        word = string.encode()
        for cut in range(len(word)):
            rest = word[cut:]
            if cut:
                tokens = [token for token, text in enumerate(texts) if text.startswith(rest)]
            else:
                tokens = [token for token, text in enumerate(texts) if rest in text]
            if tokens:
                found.append((word[:cut], tokens))
    return found


def _alternatives(word: Word | Sequence[Word], vocab_size: int) -> list[list[int]]:
    """A forced word: a token sequence, or several of which one will do."""
    if isinstance(word, Sequence) and word and all(isinstance(part, Sequence) for part in word):
        return [_word(part, "force_words", vocab_size) for part in word]
    return [_word(word, "force_words", vocab_size)]


def _word(word: object, name: str, vocab_size: int) -> list[int]:
    """A token sequence. Raises: as `Rules`."""
    if not isinstance(word, Sequence) or not all(type(token) is int for token in word):
        raise TypeError(f"{name} must hold sequences of token ids, but has {word!r}")
    if not word:
        raise ValueError(f"{name} must hold sequences that are not empty")
    for token in word:
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name} must hold tokens of at least 0 and less than {vocab_size}, but has {token}")
    return list(word)
