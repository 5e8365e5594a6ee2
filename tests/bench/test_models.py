"""The whole-model rows: both contenders do the same work with the same weights."""

from __future__ import annotations

import gc

import pytest
import torch

from bench import models
from bench.peers import PlainGPT
from pygpt import GPTConfig
from pygpt.models.transformer import Session

TINY = GPTConfig(vocab_size=101, context_length=64, num_layers=2, num_heads=2, embedding_dim=16)


@pytest.mark.parametrize("case", list(models.cases(TINY, 2, 9)), ids=lambda case: f"{case.name}, {case.dtype}")
def test_both_sides_of_a_row_run_and_are_near_float64(case: models.Case) -> None:
    ours, theirs = case.errors()
    allowed = 16 * torch.finfo(case.dtype).eps
    assert ours < allowed
    assert theirs is not None
    assert theirs < allowed
    for call in case.contenders(False).values():
        call()


@pytest.mark.parametrize("in_session", [False, True])
def test_both_sides_of_decode_write_the_same_tokens(in_session: bool) -> None:
    contenders = models._decode(TINY, torch.float32, 2, 40, in_session=in_session)
    expected = contenders["eager"]()
    assert expected.shape == (2, models.PROMPT + 40)
    for _ in range(2):
        assert torch.equal(contenders["pygpt"](), expected)


def test_a_session_lasts_as_long_as_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    monkeypatch.setattr(Session, "close", lambda session: ended.append(session))
    contenders = models._decode(TINY, torch.float32, 1, in_session=True)
    contenders["pygpt"]()
    gc.collect()
    assert not ended
    contenders.clear()
    gc.collect()
    assert len(ended) == 1


def test_all_learners_arrive_at_the_same_weights() -> None:
    learned = {}
    for who in models.LEARNERS[:-1]:  # compiling takes minutes
        learned[who], step = models.training_step(who, TINY, torch.float32, 2, 9)
        step()
    for name, parameter in learned["eager"].named_parameters():
        for who in ("pygpt", "pygpt, whole logits"):
            torch.testing.assert_close(learned[who].get_parameter(name), parameter, atol=1e-4, rtol=0)


def test_the_peer_generates_what_its_forward_pass_says() -> None:
    torch.manual_seed(1)
    peer = PlainGPT(TINY)
    ids = torch.randint(101, (2, 5))
    written = peer.generate(ids, 7)
    for _ in range(7):
        ids = torch.cat([ids, peer(ids)[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(written, ids)
