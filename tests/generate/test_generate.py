from __future__ import annotations

import itertools
import sys

import pytest
import torch

from pygpt import GPT, ops, reference
from pygpt.generate import Generation, generate
from tests.models.test_config import small
from tests.models.test_gpt import lively, tokens
from tests.support import assert_same_bits, random_generator, threads

VOCABULARY = 23


@pytest.fixture
def model() -> GPT:
    return lively(small(attention_windows=(None, 5)))


class Letters:
    """Token n is a letter, but token 0 is two of them and token 1 is half of one."""

    def token_bytes(self, token: int) -> bytes:
        return {0: b"xy", 1: "é".encode()[:1], 2: "é".encode()[1:]}.get(token, bytes([ord("a") + token]))


def by_hand(model: GPT, prompt: torch.Tensor, new: int, seed: int, **options) -> tuple[list[int], list[float]]:
    """The same without a cache, a batch, or anything else: one whole forward pass for each token."""
    sequence, logprobs = prompt.tolist(), []
    for _ in range(new):
        context = torch.tensor([sequence[-model.config.context_length :]])
        logits = model(context)[:, -1].detach()
        token, logprob = ops.sample(
            logits, seeds=torch.tensor([seed]), positions=torch.tensor([len(sequence)]), **options
        )
        sequence.append(int(token))
        logprobs.append(float(logprob))
    return sequence[len(prompt) :], logprobs


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.0}, {"temperature": 1.7, "top_k": 9, "top_p": 0.9, "min_p": 0.02}]
)
def test_ragged_prompts_in_a_batch_equal_each_by_hand(model, options):
    ids, lengths, new = tokens(model, 3, 6), torch.tensor([6, 1, 4]), 9
    ids[1, 1:], ids[2, 4:] = -5, 999  # padding may be anything
    given = {"seed": 7, "prompt_lengths": lengths, "return_logprobs": True, "pad_token": 3, "exact": True, **options}
    for count in (1, 2):
        with threads(count):
            out = model.generate(ids, new, **given)
        assert isinstance(out, Generation)
        assert out.tokens.shape == (3, 15) and out.tokens.dtype == torch.int64
        assert out.lengths.tolist() == [15, 10, 13]
        for row, length in enumerate(lengths.tolist()):
            chosen, logprobs = by_hand(model, ids[row, :length], new, 7 + row, **options)
            assert out.tokens[row, :length].tolist() == ids[row, :length].tolist()
            assert out.tokens[row, length : length + new].tolist() == chosen
            assert (out.tokens[row, length + new :] == 3).all()
            assert_same_bits(out.logprobs[row], torch.tensor(logprobs), f"log-probabilities of row {row}")


def test_logprobs_are_those_of_forward_and_loss(model):
    ids = tokens(model, 1, 4)
    out = model.generate(ids, 6, top_k=2, temperature=3.0, repetition_penalty=2.0, return_logprobs=True)
    logits = model(out.tokens[:, :-1])[0, 3:]
    right = -ops.cross_entropy(logits, out.tokens[0, 4:], reduction="none")
    assert_same_bits(out.logprobs[0], right.detach(), "log-probabilities")


def test_samples_of_a_prompt_equal_rows_of_their_own(model):
    ids = tokens(model, 2, 4)
    together = model.generate(ids, 8, seed=5, num_samples=3)
    apart = model.generate(ids.repeat_interleave(3, dim=0), 8, seed=list(range(5, 11)))
    assert torch.equal(together, apart)
    assert len({tuple(row) for row in together[:3].tolist()}) == 3
    alone = model.generate(ids[1:], 8, seed=torch.tensor([9]))
    assert torch.equal(alone[0], together[4])


def chi_square_p(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """The chance of counts at least this far from the expected ones."""
    possible = probabilities > 0
    assert int(counts[~possible].sum()) == 0, "drawn, though impossible"
    expected = probabilities[possible] * counts.sum()
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    degrees = max(int(possible.sum()) - 1, 1)
    return float(torch.special.gammaincc(torch.tensor(degrees / 2).double(), statistic.double() / 2))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "top_k": 4, "repetition_penalty": 1.5},
        {"temperature": 1.5, "top_p": 0.8, "min_p": 0.1},
    ],
)
def test_pairs_of_tokens_follow_the_exact_distribution(options):
    """Both tokens of 4000 samples against the product of the two exact conditional distributions."""
    model = lively(small(vocab_size=6))
    prompt, draws = tokens(model, 1, 3), 4000
    seed = random_generator().initial_seed()
    out = model.generate(prompt, 2, num_samples=draws, seed=seed, **options)[:, 3:]
    penalty = options.get("repetition_penalty", 1.0)
    others = {name: value for name, value in options.items() if name != "repetition_penalty"}

    def distribution(sequence: torch.Tensor) -> torch.Tensor:
        logits = model(sequence)[0, -1].detach()
        return reference.sample(reference.repetition_penalty(logits, sequence[0], penalty).unsqueeze(0), **others)[0]

    first = distribution(prompt)
    joint = torch.stack(
        [first[token] * distribution(torch.cat([prompt, torch.tensor([[token]])], dim=1)) for token in range(6)]
    )
    counts = torch.bincount(out[:, 0] * 6 + out[:, 1], minlength=36).double()
    joint = joint.flatten()
    rare = joint * draws < 5  # too few expected for the statistic: one cell together
    counts = torch.cat([counts[~rare], counts[rare].sum().view(1)])
    joint = torch.cat([joint[~rare], joint[rare].sum().view(1)])
    assert chi_square_p(counts, joint) > 1e-6


def test_chi_square_would_notice():
    counts = torch.tensor([1000.0, 1000.0, 2000.0])
    assert chi_square_p(counts, torch.tensor([0.25, 0.25, 0.5])) > 0.99
    assert chi_square_p(counts, torch.tensor([0.3, 0.2, 0.5])) < 1e-6


def test_rows_end_at_their_stop_tokens(model):
    ids = tokens(model, 4, 3)
    free = model.generate(ids, 10, seed=1)
    stops = [int(free[0, 5]), int(free[2, 8])]
    told: list[tuple[int, int]] = []
    out = model.generate(
        ids,
        10,
        seed=1,
        stop_tokens=stops,
        pad_token=9,
        return_logprobs=True,
        stream=lambda row, token: told.append((row, token)),
    )
    for row in range(4):
        new = free[row, 3:].tolist()
        first = next((place for place, token in enumerate(new) if token in stops), len(new) - 1)
        assert out.lengths[row] == 3 + first + 1
        assert out.tokens[row, 3:].tolist() == new[: first + 1] + [9] * (9 - first)
        assert (out.logprobs[row, first + 1 :] == 0).all() and (out.logprobs[row, : first + 1] < 0).all()
        assert [token for r, token in told if r == row] == new[: first + 1]
    assert out.lengths[0] <= 6
    by_step = [row for row, _ in told]
    assert by_step[:4] == [0, 1, 2, 3], "a token is told as soon as it is chosen"


@pytest.mark.parametrize("begin, end", [(0, 1), (2, 4), (1, 4), (0, 6)])
def test_a_stop_string_may_be_split_across_tokens(model, begin, end):
    ids, letters = tokens(model, 1, 3), Letters()
    free = model.generate(ids, 8, seed=3)[0, 3:].tolist()
    texts = [letters.token_bytes(token) for token in free]
    # any byte string that decodes: halves of the é may stand at the ends
    string = b"".join(texts[begin:end]).decode(errors="ignore")
    if not string or string.encode() not in b"".join(texts):
        pytest.skip("half a letter")
    first = next(n for n in range(1, 9) if string.encode() in b"".join(texts[:n]))
    out = model.generate(ids, 8, seed=3, stop=string, tokenizer=letters, return_logprobs=True)
    assert out.lengths.tolist() == [3 + first]
    assert out.tokens[0, 3 : 3 + first].tolist() == free[:first]
    several = model.generate(ids, 8, seed=3, stop=["#", string], tokenizer=letters, return_logprobs=True)
    assert torch.equal(several.tokens, out.tokens)


def test_a_stop_string_may_end_inside_a_token(model):
    """The stop 'x' is half of the token 'xy', and the letter é is two tokens."""
    letters = Letters()
    from pygpt.generate.prompts import Stops

    stops = Stops((), ("ax", "é"), letters)
    tail, ended = b"", False
    for token, right in ((ord("b") - 97, False), (3, False), (1, False), (2, True)):
        ended, tail = stops.ends(token, tail)
        assert ended == right
    ended, tail = stops.ends(5, b"a")
    assert not ended
    assert stops.ends(0, b"a")[0] and not stops.ends(0, b"b")[0]


def test_stop_strings_do_not_count_the_prompt(model):
    letters, ids = Letters(), torch.tensor([[5, 6, 7]])
    out = model.generate(ids, 4, stop="fgh", tokenizer=letters, return_logprobs=True)
    assert out.lengths.tolist() == [7]


def test_the_window_slides(model):
    limit = model.config.context_length
    ids, lengths = tokens(model, 3, 20), [20, 14, 3]
    out = model.generate(ids, 6, seed=2, prompt_lengths=lengths, overflow="slide")
    for row, length in enumerate(lengths):
        chosen, _ = by_hand(model, ids[row, :length], 6, 2 + row)
        assert out[row, length : length + 6].tolist() == chosen
    with pytest.raises(ValueError, match=rf"context_length is {limit}, but the prompt has 20 tokens .*slide"):
        model.generate(ids, 6)
    with pytest.raises(ValueError, match="the prompt has 14 tokens and max_new_tokens is 3"):
        model.generate(ids[:, :14], 3)
    assert model.generate(ids[:, :14], 2).shape == (3, 16)


def test_repetition_penalty_is_the_references(model):
    sequence = tokens(model, 1, 3)
    out = model.generate(sequence, 12, repetition_penalty=3.0, temperature=0.0)
    for _ in range(12):
        logits = reference.repetition_penalty(model(sequence)[0, -1].detach(), sequence[0], 3.0)
        sequence = torch.cat([sequence, logits.argmax().view(1, 1)], dim=1)
    assert torch.equal(out, sequence)
    assert not torch.equal(out, model.generate(sequence[:, :3], 12, temperature=0.0))


def test_dropout_is_off_and_the_modules_modes_are_kept():
    model = lively(small(dropout=0.9))
    model.train()
    model.blocks[0].eval()
    ids = tokens(model, 2, 4)
    first = model.generate(ids, 5, temperature=0.0)
    assert model.training and not model.blocks[0].attention.training and model.blocks[1].attention.training
    assert torch.equal(first, model.eval().generate(ids, 5, temperature=0.0))


def test_nothing_to_do(model):
    ids = tokens(model, 2, 4)
    assert torch.equal(model.generate(ids, 0), ids)
    assert model.generate(ids[:0], 5).shape == (0, 9)
    assert model.generate(ids[:0], 5, repetition_penalty=2.0, stop_tokens=[1], num_samples=2).shape == (0, 9)
    empty = model.generate(ids, 0, num_samples=2, return_logprobs=True)
    assert empty.tokens.shape == (4, 4) and empty.logprobs.shape == (4, 0)


def test_bfloat16_weights_and_autocast(model):
    ids = tokens(model, 2, 4)
    half = GPT(model.config, dtype=torch.bfloat16)
    half.load_state_dict(model.state_dict())
    out = half.generate(ids, 5, temperature=0.0)
    rows = half(out[:, :-1])[:, 3:].argmax(-1)
    assert torch.equal(rows, out[:, 4:])
    with torch.autocast("cpu", torch.bfloat16):
        out = model.generate(ids, 5, temperature=0.0)
        assert torch.equal(model(out[:, :-1])[:, 3:].argmax(-1), out[:, 4:])


PROMPT = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"ids": [[1, 2]]}, TypeError, "ids must be an int64 tensor, not list"),
        ({"ids": PROMPT.float()}, TypeError, "ids must be an int64 tensor, not torch.float32"),
        ({"ids": PROMPT[0]}, ValueError, r"ids must have shape \(batch, time\)"),
        ({"ids": PROMPT[:, :0]}, ValueError, "time of at least 1"),
        ({"ids": PROMPT + 23}, ValueError, "ids must be .* less than the vocabulary of 23, but has 23"),
        ({"ids": PROMPT - 1}, ValueError, "ids must be at least 0 .* has -1"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens must be an integer of at least 0, not -1"),
        ({"temperature": -0.5}, ValueError, "temperature must be at least 0 and finite, but is -0.5"),
        ({"temperature": float("nan")}, ValueError, "temperature must be at least 0"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number, not 'hot'"),
        ({"top_p": "most"}, TypeError, "top_p must be a number, not 'most'"),
        ({"repetition_penalty": None}, TypeError, "repetition_penalty must be a number, not None"),
        ({"stop_tokens": [1.5]}, TypeError, r"stop_tokens must hold integers, but is \[1.5\]"),
        ({"stop_tokens": 3}, TypeError, "stop_tokens must hold integers, but is 3"),
        ({"stream": 3}, TypeError, "stream must be a function of row and token, not 3"),
        ({"top_k": 0}, ValueError, "top_k must be an integer of at least 1, not 0"),
        ({"top_p": 0.0}, ValueError, "top_p must be more than 0 and at most 1"),
        ({"top_p": 1.1}, ValueError, "top_p must be more than 0 and at most 1, but is 1.1"),
        ({"min_p": 1.5}, ValueError, "min_p must be at least 0 and at most 1"),
        ({"repetition_penalty": 0.0}, ValueError, "repetition_penalty must be more than 0"),
        ({"num_samples": 0}, ValueError, "num_samples must be an integer of at least 1"),
        ({"seed": [1]}, ValueError, "seed must be an int, or int64 with one for each of the 2 rows"),
        ({"seed": [2**63, 1]}, ValueError, "seed must fit in 64 bits, but is"),
        ({"seed": None}, TypeError, "seed must be an int, or one for each row, not None"),
        ({"seed": 2**63 - 1}, ValueError, "seed must fit in 64 bits"),
        ({"prompt_lengths": [3]}, ValueError, r"prompt_lengths must be int64 of shape \(2,\)"),
        ({"prompt_lengths": [3, 0]}, ValueError, "prompt_lengths must be at least 1 and at most 3"),
        ({"prompt_lengths": [4, 1]}, ValueError, "prompt_lengths must be at least 1 and at most 3"),
        ({"stop_tokens": [23]}, ValueError, "stop_tokens must be at least 0 and less than 23, but has 23"),
        ({"pad_token": 99}, ValueError, "pad_token must be at least 0 and less than 23, but is 99"),
        ({"stop": "a"}, ValueError, "stop needs a tokenizer"),
        ({"pad_token": "a"}, TypeError, "pad_token must be an integer, not 'a'"),
        ({"stop": 5, "tokenizer": Letters()}, TypeError, "stop must be a string or hold strings, but is 5"),
        ({"stop": ["a", ""], "tokenizer": Letters()}, ValueError, "stop must hold strings that are not empty"),
        ({"overflow": "wrap"}, ValueError, "overflow must be 'error' or 'slide', not 'wrap'"),
        ({"exact": "yes"}, ValueError, "exact must be True, False or None"),
    ],
)
def test_bad_input(changes, error, words):
    model = GPT(small())
    with pytest.raises(error, match=words):
        model.generate(**{"ids": PROMPT, "max_new_tokens": 4, **changes})


def test_weights_that_are_not_finite_are_an_error(model):
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        model.generate(PROMPT, 2)


def test_seeds_and_positions_alone_decide(model):
    """The same prompt with the same seed gives the same tokens anywhere; another seed gives others."""
    ids = tokens(model, 1, 4).expand(6, 4)
    out = model.generate(ids, 8, seed=[3, 3, -4, 3, 2**62, -4], temperature=2.0)
    for a, b in itertools.combinations(range(6), 2):
        same = [3, 3, -4, 3, 2**62, -4][a] == [3, 3, -4, 3, 2**62, -4][b]
        assert torch.equal(out[a], out[b]) == same


@pytest.mark.parametrize("exact", [None, True])
@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": 7, "top_p": 0.9, "seed": 11}, {"repetition_penalty": 1.4}]
)
def test_rows_that_end_early_are_cut_off_and_change_nothing(model, options, exact, monkeypatch):
    """However rarely the device is asked whether a row goes on."""
    ids, lengths, new = tokens(model, 3, 4), torch.tensor([4, 1, 3]), 11
    options = {**options, "exact": exact, "prompt_lengths": lengths, "return_logprobs": True, "pad_token": 2}
    whole = model.generate(ids, new, **options)
    stop = [int(whole.tokens[0, 4 + 2]), int(whole.tokens[1, 1 + 5])]
    for every in (4, 16):
        monkeypatch.setattr(sys.modules[generate.__module__], "LOOK_EVERY", every)
        out = model.generate(ids, new, stop_tokens=stop, **options)
        told = []
        heard = model.generate(ids, new, stop_tokens=stop, stream=lambda *x, told=told: told.append(x), **options)
        for row, length in enumerate(lengths.tolist()):
            written = whole.tokens[row, length : length + new].tolist()
            count = next((i + 1 for i, token in enumerate(written) if token in stop), new)
            for ours in (out, heard):
                assert int(ours.lengths[row]) == length + count
                assert ours.tokens[row, length : length + count].tolist() == written[:count]
                assert (ours.tokens[row, length + count :] == 2).all()
                assert_same_bits(ours.logprobs[row, :count], whole.logprobs[row, :count], f"row {row}")
                assert not ours.logprobs[row, count:].any()
            assert [token for spoken, token in told if spoken == row] == written[:count]


def test_everything_is_where_the_ids_are(model):
    """Not on the default device."""
    ids = tokens(model, 2, 3)
    told = []
    options = {
        "stop_tokens": [4],
        "bad_words": [[5], [6, 7]],
        "force_words": [[8]],
        "repetition_penalty": 1.2,
        "num_samples": 2,
        "stream": lambda *token: told.append(token),
    }
    for chosen in ({}, options):
        expected = model.generate(ids, 8, **chosen)
        with torch.device("meta"):
            out = model.generate(ids, 8, **chosen)
        assert torch.equal(out, expected)
