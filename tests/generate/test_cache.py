from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pygpt.generate import KeyValueCache
from tests.models.test_config import small
from tests.models.test_gpt import lively, tokens
from tests.support import assert_same_bits, random_generator


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
