from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pygpt import GPT, ops
from pygpt.generate import Beams
from tests.generate.test_generate import Letters
from tests.models import test_seq2seq
from tests.models.test_config import small
from tests.models.test_gpt import lively, tokens
from tests.models.test_seq2seq import Reader
from tests.support import assert_same_bits, threads

V = 4  # tokens, of which 3 ends a continuation
STEPS = 4


def tiny(**changes) -> GPT:
    return lively(small(vocab_size=V, **changes))


def logprobs_of(model: GPT | Reader, prompt: list[int], new: tuple[int, ...]) -> list[float]:
    """One whole forward pass, as the loss computes it."""
    row = torch.tensor([[*prompt, *new]])
    logits = model(row[:, :-1])[0, len(prompt) - 1 :].detach()
    return (-ops.cross_entropy(logits, row[0, len(prompt) :], reduction="none")).tolist()


def continuations(steps: int = STEPS, stop: int = 3) -> list[tuple[int, ...]]:
    """All that end with the stop token, or are as long as they may be."""
    every = [new for size in range(1, steps + 1) for new in itertools.product(range(V), repeat=size)]
    return [new for new in every if stop not in new[:-1] and (new[-1] == stop or len(new) == steps)]


def contains(new: tuple[int, ...], word: list[int]) -> bool:
    return any(list(new[i : i + len(word)]) == word for i in range(len(new) - len(word) + 1))


def has_repeats(row: list[int], size: int, start: int) -> bool:
    grams = [tuple(row[i : i + size]) for i in range(len(row) - size + 1)]
    return any(gram in grams[:i] and i + size > start for i, gram in enumerate(grams))


def obeys(prompt: list[int], new: tuple[int, ...], rules: dict) -> bool:
    size = rules.get("no_repeat_ngram_size", 0)
    row = [*prompt, *new]
    if size and has_repeats(row, size, len(prompt)):
        return False
    for word in rules.get("bad_words", ()):
        ends = (len(prompt) + i + 1 for i in range(len(new)))
        if any(row[end - len(word) : end] == word for end in ends):
            return False
    for word in rules.get("force_words", ()):
        alternatives = word if isinstance(word[0], list) else [word]
        if not any(contains(new, part) for part in alternatives):
            return False
    prefixes = rules.get("prefixes", ())
    return not prefixes or any(list(new[: len(prefix)]) == prefix for prefix in prefixes)


def by_enumeration(
    model: GPT | Reader, prompt: list[int], length_penalty: float, rules: dict
) -> list[tuple[float, list[int]]]:
    scored = [
        (sum(logprobs_of(model, prompt, new)) / len(new) ** length_penalty, list(new))
        for new in continuations()
        if obeys(prompt, new, rules)
    ]
    return sorted(scored, key=lambda pair: -pair[0])


RULES = st.fixed_dictionaries(
    {},
    optional={
        "no_repeat_ngram_size": st.sampled_from([1, 2, 3]),
        "bad_words": st.lists(st.lists(st.integers(0, V - 2), min_size=1, max_size=2), max_size=1),
        "force_words": st.sampled_from([[[0]], [[1, 2]], [[0, 1], [1, 2]], [[[0, 0], [2]]], [[2], [2, 1]]]),
        "prefixes": st.sampled_from([[[1]], [[0, 1], [2]], [[2, 2]]]),
    },
)


@settings(max_examples=20)
@given(rules=RULES, length_penalty=st.sampled_from([0.0, 1.0, 2.0, -0.5]), start=st.integers(0, V - 1))
def test_a_wide_search_finds_what_enumeration_finds(rules, length_penalty, start):
    """With a beam for every continuation, the n best are the n best of all that the rules allow."""
    model = tiny()
    prompt = [start, 1, 2]
    right = by_enumeration(model, prompt, length_penalty, rules)

    def search() -> Beams:
        return model.beam_search(
            torch.tensor([prompt]),
            STEPS,
            num_beams=V**STEPS,
            num_return_sequences=5,
            length_penalty=length_penalty,
            early_stopping="never",
            stop_tokens=[3],
            **rules,
        )

    if not right:
        with pytest.raises(ValueError, match=r"prompt 0 has no continuation|prefixes and force_words need"):
            search()
        return
    out = search()
    for place in range(5):
        length = int(out.lengths[place])
        if place >= len(right):
            assert out.scores[place] == -math.inf and length == len(prompt)
            continue
        assert math.isclose(float(out.scores[place]), right[place][0], rel_tol=1e-5)
        found = out.tokens[place, len(prompt) : length].tolist()
        near = [new for score, new in right if math.isclose(score, right[place][0], rel_tol=1e-5)]
        assert found in near
        assert (out.tokens[place, length:] == 0).all()
    assert len({tuple(row) for row in out.tokens[: len(right)].tolist()}) == min(5, len(right))


@settings(max_examples=10)
@given(
    beams=st.sampled_from([(1, 1), (3, 1), (4, 2), (6, 3)]),
    early=st.sampled_from([True, False, "never"]),
    length_penalty=st.sampled_from([0.0, 1.0, 1.5]),
)
def test_scores_are_the_sums_of_recomputed_log_probabilities(beams, early, length_penalty):
    model = lively(small())
    ids, lengths = tokens(model, 3, 5), [5, 2, 3]
    out = model.beam_search(
        ids,
        8,
        num_beams=beams[0],
        num_beam_groups=beams[1],
        diversity_penalty=0.3 if beams[1] > 1 else 0.0,
        num_return_sequences=beams[0],
        early_stopping=early,
        length_penalty=length_penalty,
        stop_tokens=[4, 7],
        prompt_lengths=lengths,
        no_repeat_ngram_size=2,
        pad_token=1,
    )
    for row in range(len(out.tokens)):
        start, end = lengths[row // beams[0]], int(out.lengths[row])
        if out.scores[row] == -math.inf:
            assert end == start
            continue
        prompt, new = out.tokens[row, :start].tolist(), tuple(out.tokens[row, start:end].tolist())
        assert prompt == ids[row // beams[0], :start].tolist() and not has_repeats([*prompt, *new], 2, start)
        right = logprobs_of(model, prompt, new)
        assert_same_bits(out.logprobs[row, : len(new)], torch.tensor(right), f"row {row}")
        assert math.isclose(float(out.scores[row]), sum(right) / len(new) ** length_penalty, rel_tol=1e-6)
        assert set(new[:-1]).isdisjoint({4, 7}) and (new[-1] in (4, 7) or len(new) == 8)
        assert (out.tokens[row, end:] == 1).all() and (out.logprobs[row, len(new) :] == 0).all()
    scores = out.scores.view(3, -1)
    assert torch.equal(scores, scores.sort(dim=1, descending=True).values), "best first"


def test_one_beam_is_greedy():
    model = lively(small())
    ids = tokens(model, 3, 4)
    greedy = model.generate(ids, 9, temperature=0.0, stop_tokens=[5], return_logprobs=True)
    out = model.beam_search(ids, 9, num_beams=1, stop_tokens=[5])
    assert torch.equal(out.tokens, greedy.tokens) and torch.equal(out.lengths, greedy.lengths)
    assert_same_bits(out.logprobs, greedy.logprobs, "log-probabilities")


def assert_equal(a: Beams, b: Beams) -> None:
    for name, x, y in zip(Beams._fields, a, b, strict=True):
        assert_same_bits(x, y, name)


def test_a_prompt_alone_is_the_prompt_in_a_batch():
    model = lively(small(attention_windows=(None, 3)))
    ids, lengths = tokens(model, 4, 6), [6, 1, 4, 6]
    options = {"num_beams": 4, "num_return_sequences": 3, "stop_tokens": [2], "force_words": [[9, 3]]}
    together = model.beam_search(ids, 7, prompt_lengths=lengths, **options)
    for count in (1, 3):
        with threads(count):
            assert_equal(model.beam_search(ids, 7, prompt_lengths=lengths, **options), together)
    for row, length in enumerate(lengths):
        alone = model.beam_search(ids[row : row + 1, :length], 7, **options)
        rows = slice(3 * row, 3 * row + 3)
        assert torch.equal(alone.lengths, together.lengths[rows])
        assert_same_bits(alone.scores, together.scores[rows], "scores")
        assert_same_bits(alone.logprobs, together.logprobs[rows], "log-probabilities")
        size = length + 7
        assert torch.equal(alone.tokens, together.tokens[rows, :size])


def naive(
    model: GPT | Reader, prompt: list[int], steps: int, groups: int, size: int, penalty: float
) -> list[list[int]]:
    """Diverse beam search without stop tokens, from whole forward passes, as the paper writes it."""
    beams = [[(0.0, prompt)] for _ in range(groups)]
    for _ in range(steps):
        taken: list[int] = []
        for group in range(groups):
            ranked = []
            for score, row in beams[group]:
                logprobs = model(torch.tensor([row]))[0, -1].detach().log_softmax(-1).tolist()
                ranked += [
                    (score + value - penalty * taken.count(token), score + value, [*row, token])
                    for token, value in enumerate(logprobs)
                ]
            ranked.sort(key=lambda entry: -entry[0])
            beams[group] = [(score, row) for _, score, row in ranked[:size]]
            taken += [row[-1] for _, row in beams[group]]
    every = sorted((pair for group in beams for pair in group), key=lambda pair: -pair[0])
    return [row for _, row in every]


def all_beams(model, inputs: torch.Tensor, groups: int, size: int, penalty: float, **options) -> Beams:
    """Six steps of each prompt, or of each source."""
    many = {"num_beams": groups * size, "num_return_sequences": groups * size}
    return model.beam_search(inputs, 6, num_beam_groups=groups, diversity_penalty=penalty, **many, **options)


@pytest.mark.parametrize("groups, size, penalty", [(1, 3, 0.0), (3, 1, 0.7), (2, 2, 1.5), (3, 2, 100.0)])
def test_diverse_groups_are_the_papers(groups, size, penalty):
    model = lively(small())
    prompt = tokens(model, 1, 3)
    out = all_beams(model, prompt, groups, size, penalty)
    right = naive(model, prompt[0].tolist(), 6, groups, size, penalty)
    assert out.tokens.tolist() == right
    if penalty == 100.0:  # no token is shared by two groups in any step
        last = [tuple(row[3:]) for row in out.tokens.tolist()]
        assert len({row[0] for row in last}) >= groups


def test_groups_differ_more_than_beams():
    model = lively(small())
    prompt = tokens(model, 1, 3)
    plain = model.beam_search(prompt, 6, num_beams=4, num_return_sequences=4).tokens[:, 3:]
    diverse = model.beam_search(
        prompt, 6, num_beams=4, num_return_sequences=4, num_beam_groups=4, diversity_penalty=50.0
    ).tokens[:, 3:]
    assert all(len(set(diverse[:, step].tolist())) == 4 for step in range(6))
    assert different_tokens(plain) < different_tokens(diverse) == 4 * 6


def different_tokens(rows: torch.Tensor) -> int:
    """How many there are in each step, summed."""
    return sum(len(set(step)) for step in rows.T.tolist())


@pytest.mark.parametrize("variant", [{}, test_seq2seq.BART])
@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"no_repeat_ngram_size": 2, "bad_words": [[1, 1], [2, 0]]},
        {"force_words": [[1, 2], [[0, 0], [2]]]},
        {"prefixes": [[2], [1, 1]], "force_words": [[0]]},
    ],
)
def test_an_encoder_decoder_searches_like_any_model(variant, rules):
    model = test_seq2seq.lively(test_seq2seq.small(vocab_size=V, end_token=3, **variant))
    source, lengths = torch.randint(V, (2, 5)), [5, 2]
    out = model.beam_search(
        source,
        STEPS,
        num_beams=V**STEPS,
        num_return_sequences=3,
        source_lengths=lengths,
        early_stopping="never",
        **rules,
    )
    for row in range(2):
        reader = Reader(model, source[row : row + 1, : lengths[row]])
        for place, (value, new) in enumerate(by_enumeration(reader, [0], 1.0, rules)[:3]):
            found = 3 * row + place
            assert math.isclose(float(out.scores[found]), value, rel_tol=1e-5)
            assert out.tokens[found, 1 : int(out.lengths[found])].tolist() == new
    begun = model.beam_search(source, 3, ids=torch.tensor([[1, 2], [2, 1]]), num_beams=2)
    assert begun.tokens[:, :2].tolist() == [[1, 2], [2, 1]]


@pytest.mark.parametrize("variant", [{}, test_seq2seq.BART])
@pytest.mark.parametrize("groups, size, penalty", [(3, 1, 0.7), (2, 2, 1.5)])
def test_diverse_groups_of_an_encoder_decoder_are_the_papers(variant, groups, size, penalty):
    model = test_seq2seq.lively(test_seq2seq.small(**variant))
    source, lengths = torch.randint(29, (2, 5)), [5, 2]
    out = all_beams(model, source, groups, size, penalty, source_lengths=lengths)
    for row, found in enumerate(out.tokens.chunk(2)):
        reader = Reader(model, source[row : row + 1, : lengths[row]])
        assert found.tolist() == naive(reader, [0], 6, groups, size, penalty)


def peer(model: GPT, folder) -> object:
    transformers = pytest.importorskip("transformers", reason="transformers, the peer, is not installed")
    model.save_pretrained(folder)
    return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


@pytest.mark.slow
@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("rules", [{}, {"no_repeat_ngram_size": 2}, {"bad_words": [[3], [5, 6]]}])
def test_the_results_are_those_of_transformers(tmp_path, early, length_penalty, rules):
    model = lively(small(context_length=32))
    theirs = peer(model, tmp_path)
    prompt = tokens(model, 2, 5)
    for row in range(2):  # one at a time: transformers' early_stopping looks at the whole batch
        ids = prompt[row : row + 1]
        right = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=10,
            num_beams=4,
            num_return_sequences=3,
            length_penalty=length_penalty,
            early_stopping=early,
            eos_token_id=[4, 7],
            pad_token_id=1,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            no_repeat_ngram_size=rules.get("no_repeat_ngram_size", 0),
            bad_words_ids=rules.get("bad_words"),
        )
        ours = model.beam_search(
            ids,
            10,
            num_beams=4,
            num_return_sequences=3,
            length_penalty=length_penalty,
            early_stopping=early,
            stop_tokens=[4, 7],
            pad_token=1,
            **rules,
        )
        size = right.sequences.shape[1]
        assert torch.equal(ours.tokens[:, :size], right.sequences)
        assert torch.allclose(ours.scores, right.sequences_scores, rtol=1e-4, atol=1e-4)


def test_strings_are_banned_in_every_division():
    model, letters = lively(small()), Letters()  # token 0 is "xy", 1 and 2 the halves of é
    model.token_embedding.weight.data[[0, 1, 2, 23 - 1]] *= 1.5
    ids = torch.tensor([[5, 23 - 1]])
    out = model.beam_search(
        ids, 8, num_beams=8, num_return_sequences=8, bad_words=["x", "é", "dx", "b"], tokenizer=letters
    )
    for row in out.tokens[:, 2:].tolist():
        text = b"".join(letters.token_bytes(token) for token in row)
        assert all(word.encode() not in text for word in ("x", "é", "b"))
    before = model.beam_search(
        torch.tensor([[1]]), 1, num_beams=23, num_return_sequences=23, bad_words=["é"], tokenizer=letters
    )
    assert 2 not in before.tokens[:, 1].tolist(), "the prompt's half counts"


def test_forced_words_come_where_they_fit():
    """Beams are kept for continuations with more of the words, so that these need not come at the very end."""
    model = lively(small(context_length=64))
    prompt = tokens(model, 2, 4)
    words = [[3, 9, 4], [11], [[5, 6], [8, 7]]]
    forced_last = 0
    for _ in range(6):  # models: one that likes none of the words brings them all at the end
        with torch.no_grad():
            model.token_embedding.weight.normal_(std=0.3)
        out = model.beam_search(prompt, 20, num_beams=8, num_return_sequences=8, force_words=words, stop_tokens=[2])
        for row, length in zip(out.tokens.tolist(), out.lengths.tolist(), strict=True):
            new = tuple(row[4:length])
            assert contains(new, [3, 9, 4]) and 11 in new and (contains(new, [5, 6]) or contains(new, [8, 7]))
            forced_last += len(new) == 20 and new[-1] in (4, 11, 6, 7)
    assert forced_last < 6 * 16
    overlap = model.beam_search(prompt, 3, force_words=[[1, 3], [3, 9]])
    assert overlap.tokens[:, 4:].tolist() == [[1, 3, 9]] * 2


def test_a_stop_string_ends_a_continuation():
    model, letters = lively(small()), Letters()
    prompt = tokens(model, 1, 3)
    out = model.beam_search(prompt, 8, num_beams=6, num_return_sequences=6, stop=["e", "xy", "f"], tokenizer=letters)
    for row, length in zip(out.tokens.tolist(), out.lengths.tolist(), strict=True):
        texts = [letters.token_bytes(token) for token in row[3:length]]
        assert not any(string in b"".join(texts[:-1]) for string in (b"e", b"xy", b"f"))
        assert len(texts) == 8 or any(string in b"".join(texts) for string in (b"e", b"xy", b"f"))


def test_nothing_to_do():
    model = lively(small())
    ids = tokens(model, 2, 4)
    out = model.beam_search(ids, 0, num_beams=2, num_return_sequences=2)
    assert torch.equal(out.tokens, ids.repeat_interleave(2, 0)) and out.scores.tolist() == [0, -math.inf] * 2
    assert model.beam_search(ids[:0], 5).tokens.shape == (0, 9)
    assert model.contrastive_search(ids[:0], 5).shape == (0, 9) and torch.equal(model.contrastive_search(ids, 0), ids)


PROMPT = torch.zeros(1, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"num_beams": 0}, ValueError, "num_beams must be an integer of at least 1, not 0"),
        ({"num_return_sequences": 5}, ValueError, "num_return_sequences must be at most num_beams, 4, but is 5"),
        ({"num_beam_groups": 3}, ValueError, "num_beam_groups must divide num_beams, 4, but is 3"),
        ({"diversity_penalty": 1.0}, ValueError, "diversity_penalty needs num_beam_groups of at least 2"),
        ({"diversity_penalty": -1.0}, ValueError, "diversity_penalty must be at least 0, but is -1.0"),
        ({"length_penalty": "long"}, TypeError, "length_penalty must be a number, not 'long'"),
        ({"length_penalty": math.inf}, ValueError, "length_penalty must be finite, but is inf"),
        ({"length_penalty": 1e3}, ValueError, r"length_penalty is 1000\.0, and no float holds \d+ tokens to its power"),
        ({"length_penalty": -1e3}, ValueError, r"length_penalty is -1000\.0, and no float holds"),
        ({"early_stopping": "soon"}, ValueError, "early_stopping must be True, False or 'never', not 'soon'"),
        ({"max_new_tokens": 1.5}, ValueError, "max_new_tokens must be an integer of at least 0, not 1.5"),
        ({"max_new_tokens": 14}, ValueError, "context_length is 16, but the prompt has 3 tokens"),
        ({"no_repeat_ngram_size": -1}, ValueError, "no_repeat_ngram_size must be at least 0, but is -1"),
        ({"no_repeat_ngram_size": None}, TypeError, "no_repeat_ngram_size must be an integer, not None"),
        ({"bad_words": "word"}, TypeError, "must hold words, not be one string"),
        ({"bad_words": ["word"]}, ValueError, "bad_words has strings, which need a tokenizer"),
        ({"bad_words": [""], "tokenizer": Letters()}, ValueError, "strings that are not empty"),
        ({"bad_words": [[]]}, ValueError, "bad_words must hold sequences that are not empty"),
        ({"bad_words": [[23]]}, ValueError, "bad_words must hold tokens of at least 0 and less than 23, but has 23"),
        ({"force_words": [[1.5]]}, TypeError, r"force_words must hold sequences of token ids, but has \[1.5\]"),
        ({"force_words": [3]}, TypeError, "force_words must hold sequences of token ids, but has 3"),
        ({"force_words": [[1, 2, 3], [4, 5]]}, ValueError, "max_new_tokens is 4, but .* need 5 tokens"),
        ({"force_words": [[n] for n in range(20)], "max_new_tokens": 13}, ValueError, "force_words are too many: 20"),
        ({"prefixes": [[1, 2, 3, 4, 5]]}, ValueError, "max_new_tokens is 4, but prefixes .* need 5 tokens"),
        ({"prefixes": [[-1]]}, ValueError, "prefixes must hold tokens of at least 0"),
        ({"stop_tokens": [23]}, ValueError, "stop_tokens must be at least 0 and less than 23"),
        ({"ids": PROMPT + 23}, ValueError, "ids must be .* less than the vocabulary of 23"),
        ({"force_words": [[1]], "bad_words": [[1]]}, ValueError, "prompt 0 has no continuation"),
    ],
)
def test_bad_input(changes, error, words):
    with pytest.raises(error, match=words):
        GPT(small()).beam_search(**{"ids": PROMPT, "max_new_tokens": 4, **changes})


def test_weights_that_are_not_finite_are_an_error():
    model = lively(small())
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    for search in (model.beam_search, model.contrastive_search):
        with pytest.raises(ValueError, match="NaN"):
            search(PROMPT, 2)
