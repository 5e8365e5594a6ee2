from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pygpt import GPT
from pygpt.models import session
from pygpt.nn import Linear
from pygpt.nn.evaluating import evaluating
from tests.models.test_config import small
from tests.models.test_gpt import lively, tokens
from tests.support import assert_same_bits


def packed(model: GPT) -> list[bool]:
    linears = [module for module in model.blocks.modules() if isinstance(module, Linear)]
    return [model.packed_head is not None, *(module.packed_weight is not None for module in linears)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tie_head", [True, False])
@torch.no_grad()
def test_weights_are_packed_when_it_pays_and_give_the_same_bits(dtype, tie_head):
    model = lively(small(tie_head=tie_head), dtype)
    ids = tokens(model, 2, 5)
    logits = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(ids)
    with model.session():
        for _ in range(session.PACK_AFTER_PASSES):
            assert not any(packed(model))
            assert_same_bits(model(ids), logits, "before")
        with model.session():  # inside another, and its end is not the other's
            assert all(packed(model))
        assert all(packed(model))
        assert_same_bits(model(ids), logits, "packed")
        with torch.autocast("cpu", torch.bfloat16):
            assert_same_bits(model(ids), cast, "cast")
    assert not any(packed(model))
    assert_same_bits(model(ids), logits, "after")


@torch.no_grad()
def test_nothing_is_packed_without_memory_for_it(monkeypatch):
    model = lively(small())
    monkeypatch.setattr(session, "free_memory", lambda device: 1000)
    with model.session():
        for _ in range(2 * session.PACK_AFTER_PASSES):
            model(tokens(model, 1, 2))
        assert not any(packed(model))


def test_passes_with_gradients_do_not_count():
    model = lively(small())
    with model.session():
        for _ in range(2 * session.PACK_AFTER_PASSES):
            model(tokens(model, 1, 2))
        assert not any(packed(model))


@torch.no_grad()
def test_weights_are_packed_at_once_for_many_passes():
    model = lively(small())
    with model.session(session.PACK_AFTER_PASSES - 1):
        assert not any(packed(model))
        model(tokens(model, 1, 2))
        with model.session(session.PACK_AFTER_PASSES - 1):  # with the one before
            assert all(packed(model))
    with model.session(session.PACK_AFTER_PASSES):
        assert all(packed(model))
    assert not any(packed(model))


def test_generate_packs_and_tidies_up():
    model = lively(small(context_length=64))
    ids = tokens(model, 2, 3)
    long = model.generate(ids, 2 * session.PACK_AFTER_PASSES, temperature=0.0)
    assert not any(packed(model))
    for new in range(1, 2 * session.PACK_AFTER_PASSES, 7):
        assert torch.equal(model.generate(ids, new, temperature=0.0), long[:, : 3 + new])


def test_changed_weights_are_noticed():
    model = lively(small())
    changed = pytest.raises(RuntimeError, match=r"blocks\.1\.norm_2\.weight was changed inside model\.session")
    with changed, model.session(), torch.no_grad():
        model.blocks[1].norm_2.weight.add_(1)
    with pytest.raises(RuntimeError, match=r"^norm\.weight was changed"), model.session():
        model.norm.weight = torch.nn.Parameter(torch.ones(24))
    with pytest.raises(RuntimeError, match=r"token_embedding\.weight was changed"), model.session():
        model.bfloat16()  # the same parameters, in other memory
    with model.session():
        model(tokens(model, 1, 3))


def test_a_model_that_was_made_in_inference_mode_writes_too():
    model = lively(small())
    ids = tokens(model, 2, 5)
    expected = model.generate(ids, 8), model.beam_search(ids, 8).tokens
    with torch.inference_mode():
        made = GPT(model.config)
        made.load_state_dict(model.state_dict())
        assert torch.equal(made.generate(ids, 8), expected[0])
        assert torch.equal(made.beam_search(ids, 8).tokens, expected[1])


def test_a_copy_made_inside_has_no_session():
    model = lively(small())
    ids = tokens(model, 2, 5)
    with model.session(session.PACK_AFTER_PASSES):
        assert all(packed(model))
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert all(packed(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        for other in copies:
            assert not any(packed(other)) and other._session is None
            for parameter in other.parameters():
                parameter.mul_(1.5)
            assert_same_bits(other(ids), model(ids), "a copy whose weights were changed")


def test_a_failure_inside_ends_the_session():
    model = lively(small())
    with pytest.raises(KeyError), model.session():
        raise KeyError
    with model.session():
        assert not any(packed(model))


def test_what_one_thread_ends_another_may_still_be_in():
    """Threads enter and leave in any order: model and weights are as before when the last has left."""
    model = lively(small(dropout=0.5)).train()
    ids = tokens(model, 2, 5)
    first, second = evaluating(model), evaluating(model)
    with first:
        second.__enter__()
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        right = model(ids)
        assert_same_bits(model(ids), right, "no dropout")
    second.__exit__(None, None, None)
    assert all(module.training for module in model.modules())
    model.blocks.eval()
    with evaluating(model):
        pass
    assert model.training and not model.blocks.training

    first, second = model.session(session.PACK_AFTER_PASSES), model.session()
    kept = first.__enter__()
    assert second.__enter__() is kept
    first.__exit__(None, None, None)
    assert all(packed(model))
    second.__exit__(None, None, None)
    kept.expect_passes(session.PACK_AFTER_PASSES)
    assert not any(packed(model))


def test_a_model_in_training_may_write_in_several_threads():
    model = lively(small(dropout=0.5)).train()
    ids = tokens(model, 2, 3)
    right = model.generate(ids, 12, seed=5)
    with ThreadPoolExecutor(3) as pool:
        for written in pool.map(lambda _: model.generate(ids, 12, seed=5), range(12)):
            assert torch.equal(written, right)
    assert model.training and not any(packed(model))
