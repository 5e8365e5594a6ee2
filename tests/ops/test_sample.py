from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import pygpt
from pygpt import ops, reference
from tests.philox import SAMPLE, philox
from tests.support import (
    assert_accurate,
    assert_bits_hold,
    assert_same_bits,
    dtypes_of,
    normal,
    on_the_cpu,
    random_generator,
    smaller,
    strided,
    unaligned,
)


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that draws the token at a position of a sequence."""
    low, high = position & 0xFFFFFFFF, position >> 32 & 0xFFFFFFFF
    first, second = philox(seed, np.array([low, high, 0, SAMPLE]))[:2].tolist()
    return ((first << 32 | second) >> 11) * 2.0**-53


def rows(seeds, positions=None):
    seeds = torch.as_tensor(seeds, dtype=torch.int64)
    return {"seeds": seeds, "positions": torch.zeros_like(seeds) if positions is None else positions}


def logit_dtypes(implementation):
    return [dtype for dtype in dtypes_of(implementation) if dtype in (torch.float32, torch.float64)]


@given(
    vocabulary=st.sampled_from([1, 2, 3, 17, 64, 65, 200, 1000]),
    scale=st.sampled_from([0.0, 0.1, 1.0, 5.0]),
    offset=st.sampled_from([0.0, -100.0]),
    step=st.sampled_from([None, 0.5]),
    temperature=st.sampled_from([1e-3, 0.7, 1.0, 3.0, 1e6]),
    top_k=st.none() | st.integers(1, 1200),
    top_p=st.none() | st.floats(1e-6, 1, exclude_min=True),
    min_p=st.none() | st.floats(0, 1),
)
@example(1000, 0.0, 0.0, None, 1.0, 7, None, None)  # all equal: the lowest ids
@example(1000, 1.0, 0.0, 0.5, 1.0, 300, 0.9, 0.01)  # many ties, more than one block can bound
@example(1000, 1.0, 0.0, None, 1.0, None, 1e-9, None)
def test_each_draw_is_the_inverse_of_the_reference_distribution(
    implementation, vocabulary, scale, offset, step, temperature, top_k, top_p, min_p
):
    generator = random_generator()
    count = 8
    logits = normal(generator, count, vocabulary) * scale + offset
    if step:  # ties
        logits = (logits / step).round() * step
    seeds, positions = (
        torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator),
        torch.randint(2**40, (count,), generator=generator),
    )
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    for dtype in logit_dtypes(implementation):
        tokens, logprobs = ops.sample(logits.to(dtype), **options, seeds=seeds, positions=positions)
        exact = reference.sample(logits, **options)
        for row, token in enumerate(tokens.tolist()):
            u, upper = uniform(int(seeds[row]), int(positions[row])), exact[row].cumsum(0)
            # The token's part of [0, 1), widened by rounding; wider where rounding moves the last kept token.
            slack = 1e-5 + (0 if top_p is None else 2 * float(exact[row][exact[row] > 0].min()))
            assert upper[token] >= u - slack, f"row {row}: {token} comes before the draw"
            assert token == 0 or upper[token - 1] <= u + slack, f"row {row}: {token} comes after the draw"
            if top_p is None and min_p is None:
                assert exact[row][token] > 0, f"row {row}: {token} is not kept"
        chosen = torch.log_softmax(logits.double(), -1).gather(1, tokens[:, None])[:, 0]
        peer = torch.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0]
        if vocabulary > 1:
            assert_accurate(logprobs + offset, chosen + offset, peer + offset, f"{dtype}")


@pytest.mark.parametrize(
    "options, kept",
    [
        ({"top_k": 2}, [1, 3]),
        ({"top_p": 0.5}, [1]),
        ({"top_p": 0.6}, [1, 3]),
        ({"top_p": 0.7}, [0, 1, 3]),
        ({"top_p": 0.8}, [0, 1, 2, 3]),
        ({"min_p": 0.2}, [0, 1, 2, 3, 4]),
        ({"min_p": 0.3}, [1]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 3, "top_p": 0.7}, [1, 3]),  # of what top_k left, these are 2/3 and 1/6
        ({"top_k": 1, "temperature": 100.0}, [1]),
        ({"temperature": 0.0}, [1]),
        ({}, [0, 1, 2, 3, 4]),
    ],
)
def test_what_is_kept(implementation, options, kept):
    logits = torch.tensor([1 / 8, 1 / 2, 1 / 8, 1 / 8, 1 / 8]).log()
    logits[[1, 3]] += 1e-5  # clear of rounding; id 3 comes before its equals, which stay in order of id
    count = smaller(2000, 200)
    tokens, _ = ops.sample(logits.expand(count, 5).contiguous(), **options, **rows(range(count)))
    assert sorted(set(tokens.tolist())) == kept


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.1}])
def test_frequencies_follow_the_distribution(implementation, generator, options):
    count, vocabulary = smaller(20_000, 1000), 40
    logits = normal(generator, vocabulary)
    first = int(torch.randint(2**62, (), generator=generator))
    tokens, _ = ops.sample(
        logits.expand(count, vocabulary).contiguous(), **options, **rows(torch.arange(first, first + count))
    )
    expected = reference.sample(logits[None], **options)[0] * count
    seen = torch.bincount(tokens, minlength=vocabulary).double()
    assert (seen[expected == 0] == 0).all()
    likely = expected > 0
    chi_square = float(((seen - expected)[likely] ** 2 / expected[likely]).sum())
    freedom = int(likely.sum()) - 1
    assert chi_square < freedom + 6 * (2 * freedom) ** 0.5 + 10  # beyond one in a million


def test_a_row_depends_on_itself_alone(implementation, generator):
    for dtype in logit_dtypes(implementation):
        batch = smaller(9, 6)
        logits = normal(generator, batch, smaller(3001, 1201), dtype=dtype) * 3
        seeds, positions = torch.arange(batch) * 7, torch.arange(batch) + 100
        for options in ({}, {"top_k": 40}, {"top_p": 0.9}, {"top_k": 900, "top_p": 0.9, "min_p": 1e-3}):

            def run(logits=logits, seeds=seeds, positions=positions, options=options):
                return ops.sample(logits, **options, seeds=seeds, positions=positions)

            assert_bits_hold(run, f"{dtype}, {options}")
            for awkward in (unaligned, strided):
                for a, b in zip(run(), run(awkward(logits), awkward(seeds), awkward(positions)), strict=True):
                    assert_same_bits(a, b, awkward.__name__)
            for a, b in zip(run(), run(logits[5:6], seeds[5:6], positions[5:6]), strict=True):
                assert_same_bits(a[5:6], b, "row 5 alone")
    assert (
        len(set(ops.sample(logits[:1].expand(batch, -1).contiguous(), **rows([0] * batch, positions))[0].tolist())) > 1
    )


def test_greedy_takes_the_lowest_id_of_the_highest(implementation):
    logits = torch.zeros(3, 300)
    logits[0, [70, 201]] = 5.0
    logits[1, 299] = 1.0
    tokens, logprobs = ops.sample(logits, temperature=0.0, **rows([0, 1, 2]))
    assert tokens.tolist() == [70, 299, 0]
    with pygpt.force("cross_entropy", implementation):
        losses = ops.cross_entropy(logits, tokens, reduction="none")
    assert_same_bits(logprobs, -losses, "log-probability and loss")


def test_what_is_minus_infinity_never_comes(implementation):
    count = smaller(400, 60)
    logits = torch.full((count, 300), -torch.inf)
    logits[:, [3, 250]] = -2.0
    for options in ({}, {"top_k": 100}, {"top_p": 0.999}, {"min_p": 1e-6}, {"temperature": 1e-30}):
        tokens, logprobs = ops.sample(logits, **options, **rows(range(count)))
        assert set(tokens.tolist()) == {3, 250}, options
        assert torch.allclose(logprobs, torch.tensor(0.5).log())


@pytest.mark.float64
@on_the_cpu
def test_logits_may_be_as_near_as_numbers_can_be(implementation):
    for dtype in logit_dtypes(implementation):
        least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        logits = torch.tensor([[0.0, least, 2 * least]], dtype=dtype).expand(200, 3)
        for options, tokens in (({"top_k": 2}, {1, 2}), ({"top_p": 0.5}, {1, 2}), ({"top_k": 2, "top_p": 0.3}, {2})):
            assert set(ops.sample(logits, **options, **rows(range(200)))[0].tolist()) == tokens, (dtype, options)


@on_the_cpu
@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.5}])
def test_at_the_highest_temperature_all_are_alike(implementation, options):
    for dtype in logit_dtypes(implementation):
        most = torch.finfo(torch.float32).max
        logits = torch.tensor([[most, -most, -torch.inf]], dtype=dtype).expand(200, 3)
        tokens, _ = ops.sample(logits, temperature=torch.finfo(torch.float64).max, **options, **rows(range(200)))
        assert 60 < int((tokens == 0).sum()) < 140 and set(tokens.tolist()) == {0, 1}, dtype


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_from_which_nothing_can_be_drawn(implementation, bad):
    logits = torch.zeros(4, 200)
    logits[2] = bad if bad == -torch.inf else logits[2]
    logits[2, 150] = bad
    for options in ({}, {"temperature": 0.0}, {"top_k": 3}):
        if implementation.startswith("cpu"):
            with pytest.raises(ValueError, match=r"logits must hold no NaN.*row 2"):
                ops.sample(logits, **options, **rows([0, 1, 2, 3]))
        else:
            tokens, logprobs = ops.sample(logits, **options, **rows([0, 1, 2, 3]))
            assert tokens[2] == 0 and logprobs.isnan().tolist() == [False, False, True, False]


def test_library_and_numpy(generator):
    logits = normal(generator, 3, 50)
    where = rows([1, 2, 3])
    torch.library.opcheck(torch.ops.pygpt.sample, (logits, 0.8, 10, 0.9, None, where["seeds"], where["positions"]))
    tokens, logprobs = ops.sample(logits.numpy(), **{name: value.numpy() for name, value in where.items()})
    assert isinstance(tokens, np.ndarray) and isinstance(logprobs, np.ndarray)
    for a, b in zip((tokens, logprobs), ops.sample(logits, **where), strict=True):
        assert_same_bits(torch.from_numpy(a), b, "NumPy")
    empty_tokens, empty_logprobs = ops.sample(logits[:0], **rows([]))
    assert empty_tokens.shape == empty_logprobs.shape == (0,)


LOGITS, WHERE = torch.zeros(2, 3), rows([0, 1])


@pytest.mark.parametrize(
    "logits, options, error, words",
    [
        (LOGITS, {"temperature": -1.0}, ValueError, "temperature must be finite and at least 0, but is -1"),
        (LOGITS, {"temperature": float("nan")}, ValueError, "temperature"),
        (LOGITS, {"temperature": float("inf")}, ValueError, "temperature"),
        (LOGITS, {"top_k": 0}, ValueError, "top_k must be at least 1, but is 0"),
        (LOGITS, {"top_p": 0.0}, ValueError, "top_p must be above 0 and at most 1, but is 0"),
        (LOGITS, {"top_p": 1.5}, ValueError, "top_p"),
        (LOGITS, {"min_p": -0.1}, ValueError, "min_p must be at least 0 and at most 1"),
        (LOGITS, {"min_p": 1.1}, ValueError, "min_p"),
        (LOGITS, {"seeds": torch.zeros(3, dtype=torch.int64)}, ValueError, r"seeds must have shape \(2,\).*\(3,\)"),
        (LOGITS, {"positions": torch.zeros(2)}, TypeError, "positions must be int64.*float32"),
        (LOGITS[0], {}, ValueError, r"logits must be \(batch, vocabulary\)"),
        (LOGITS.bfloat16(), {}, TypeError, "logits must be of dtype float32, float64"),
        (torch.zeros(2, 0), {}, ValueError, "vocabulary of at least 1"),
        ([0.0], {}, TypeError, "logits must be a torch.Tensor"),
    ],
)
def test_bad_input(logits, options, error, words):
    with pytest.raises(error, match=words):
        ops.sample(logits, **{**WHERE, **options})
