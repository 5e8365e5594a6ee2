from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pygpt.extension import C
from pygpt.generate import KeyValueCache
from tests.models.test_config import small
from tests.models.test_gpt import lively, tokens
from tests.support import EMULATED, assert_same_bits, random_generator, unaligned


@settings(max_examples=10)
@given(
    splits=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    changes=st.fixed_dictionaries(
        {
            "positions": st.sampled_from(["learned", "sinusoidal", "none"]),
            "norm": st.sampled_from(["pre", "post"]),
            "num_kv_heads": st.sampled_from([1, 4]),
            "attention_windows": st.sampled_from([(None,), (None, 3)]),
        }
    ),
)
def test_any_split_into_prefill_and_steps_gives_the_bits_of_one_pass(splits, changes):
    """Rows of different lengths, read in parts of different sizes, in a cache that was full of NaN."""
    generator = random_generator()
    model = lively(small(**changes))
    rows, time = 3, 16
    ids = tokens(model, rows, time)
    whole = model.hidden(ids).detach()
    cache = KeyValueCache(rows, time, torch.device("cpu"))
    with torch.no_grad():
        model.hidden(ids[:, :0], cache=cache)
        for layer in range(model.config.num_layers):
            k, v = cache.layer(layer).append(*[torch.empty(rows, 0, model.config.num_kv_heads, 6)] * 2)
            k.fill_(torch.nan)
            v.fill_(torch.nan)
        for most in splits:
            new = torch.randint(0, most + 1, (rows,), generator=generator).minimum(time - cache.lengths)
            before = cache.lengths
            part = torch.full((rows, most), -1)
            for row in range(rows):
                part[row, : new[row]] = ids[row, before[row] : before[row] + new[row]]
            hidden = model.hidden(part, lengths=new, cache=cache)
            assert torch.equal(cache.lengths, before + new)
            for row in range(rows):
                right = whole[row, before[row] : before[row] + new[row]]
                assert_same_bits(hidden[row, : new[row]], right, f"row {row} from {before[row]}")


def test_repeated_rows_go_on_by_themselves():
    model = lively(small())
    ids = tokens(model, 2, 6)
    cache = KeyValueCache(2, 8, torch.device("cpu"))
    with torch.no_grad():
        model.hidden(ids[:, :4], cache=cache)
        cache = cache.repeated(2)
        ends = torch.stack([ids[0, 4:], ids[1, 4:] * 0, ids[0, 4:] * 0, ids[1, 4:]])
        hidden = model.hidden(ends, cache=cache)
        for row, prompt in enumerate((0, 0, 1, 1)):
            alone = model.hidden(torch.cat([ids[prompt, :4], ends[row]]).unsqueeze(0))
            assert_same_bits(hidden[row], alone[0, 4:], f"row {row}")


def test_packed_documents_have_no_cache():
    model = lively(small())
    cache = KeyValueCache(1, 8, torch.device("cpu"))
    with pytest.raises(ValueError, match="cu_seqlens does not go together"):
        model.hidden(tokens(model, 1, 3), cu_seqlens=torch.tensor([0, 3]), cache=cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [5, 16])
@pytest.mark.parametrize("form", ["contiguous", "strided", "unaligned", "parts"])
def test_keys_and_values_go_to_their_slots(form, head_dim, dtype, generator):
    k, v = (torch.randn(2, 3, 2, head_dim, generator=generator).to(dtype) for _ in range(2))
    if form == "strided":
        k, v = (torch.stack([x, x], dim=2)[:, :, 1] for x in (k, v))
    elif form == "unaligned":
        k, v = unaligned(k), unaligned(v)
    elif form == "parts":  # of one product
        k, v = torch.split(torch.cat([k, v], dim=2), 2, dim=2)
    slots = torch.tensor([0, 1, 6, 7, 12, 6])  # 6 is the place that no query sees
    for caches in (torch.zeros(2, 2, 7, 2, head_dim, dtype=dtype), torch.zeros(2, 2, 2, 7, head_dim, dtype=dtype)):
        if caches.shape[2] == 2:
            caches = caches.transpose(2, 3)
        C.session_store(k, v, slots, *caches)
        for cache, x in zip(caches, (k, v), strict=True):
            expected = torch.zeros(14, 2, head_dim, dtype=dtype).index_copy(0, slots, x.reshape(6, 2, head_dim))
            assert_same_bits(cache[:, :-1], expected.view(2, 7, 2, head_dim)[:, :-1], "cache")
    outside = torch.tensor([0, 1, 14, 2, 3, -1])
    if EMULATED:  # as on a GPU: what has no slot is not stored
        C.session_store(k, v, outside, *caches)
    else:
        with pytest.raises(ValueError, match=r"slots\[2\] is 14"):
            C.session_store(k, v, outside, *caches)
    with pytest.raises(ValueError, match="v must have shape"):
        C.session_store(k, v[:, :2], slots, *caches)
    with pytest.raises(TypeError, match="k_cache must be"):
        C.session_store(k, v, slots, caches[0].double(), caches[1])


@pytest.mark.skipif(EMULATED is not None, reason="on CUDA torch's kernels write the tokens, in the step's graph")
def test_the_next_tokens_are_written():
    tokens, chosen = torch.zeros(5, 6, dtype=torch.int64), torch.tensor([7, 8, 9, 8, 7])
    lengths, alive = torch.tensor([0, 5, 3, 6, 2]), torch.tensor([True, True, True, False, True])
    C.session_append(tokens, lengths, alive, chosen, torch.tensor([9, 8]))
    expected = torch.zeros(5, 6, dtype=torch.int64)
    expected[[0, 1, 2, 4], [0, 5, 3, 2]] = torch.tensor([7, 8, 9, 7])
    assert torch.equal(tokens, expected)
    assert lengths.tolist() == [1, 6, 4, 6, 3] and alive.tolist() == [True, False, False, False, True]
    C.session_append(tokens, lengths, alive, chosen, torch.tensor([], dtype=torch.int64))
    assert lengths.tolist() == [2, 6, 4, 6, 4] and alive.tolist() == [True, False, False, False, True]
    alive[1] = True
    before = tokens.clone()
    with pytest.raises(ValueError, match=r"lengths\[1\] is 6, but must be at least 0 and less than 6"):
        C.session_append(tokens, lengths, alive, chosen, torch.tensor([9]))
    assert torch.equal(tokens, before) and lengths.tolist() == [2, 6, 4, 6, 4]
    with pytest.raises(ValueError, match="chosen must have shape"):
        C.session_append(tokens, lengths, alive, chosen[:2], torch.tensor([9]))
    with pytest.raises(TypeError, match="ends must be"):
        C.session_append(tokens, lengths, alive, chosen, torch.tensor([9.0]))


def test_places_of_the_last_tokens():
    tokens = torch.arange(300 * 4).view(300, 4)
    lengths, alive = torch.arange(300) % 4 + 1, torch.arange(300) % 3 != 0
    ids, positions = torch.full((2, 300, 1), -1)
    slots, query_start, key_lengths = torch.full((3, 300), -1)
    for capacity in (4, 9):
        C.session_places(tokens, lengths, alive, capacity, ids, positions, slots, query_start, key_lengths)
        places = torch.where(alive, lengths - 1, 0)
        assert torch.equal(ids[:, 0], torch.where(alive, tokens[torch.arange(300), places], 0))
        assert torch.equal(positions[:, 0], places)
        assert torch.equal(query_start, places)
        assert torch.equal(key_lengths, torch.where(alive, lengths, 0))
        starts = (capacity + 1) * torch.arange(300)
        assert torch.equal(slots, starts + torch.where(alive, places, capacity))
    if EMULATED:  # as on a GPU: lengths are clamped
        lengths = torch.where(torch.arange(300) % 2 == 0, -1, 7)
        C.session_places(tokens, lengths, alive, 3, ids, positions, slots, query_start, key_lengths)
        assert torch.equal(key_lengths, torch.where(alive, lengths.clamp(1, 3), 0))
