"""Each epoch visits every window once, in an order of its own, from any saved position on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pygpt.text import BatchLoader, ByteTokenizer, CharTokenizer, Document, TokenFile, prepare, sequential_batches

ALPHABET = "".join(chr(0x4E00 + i) for i in range(500))


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    """Tokens 0 to 500: a window's first token says where it begins."""
    folder = tmp_path_factory.mktemp("tokens")
    prepare([Document("", ALPHABET)], CharTokenizer(ALPHABET), folder, 0)
    return TokenFile(folder)


@given(batch_size=st.integers(1, 9), context_length=st.integers(1, 120), seed=st.integers())
def test_an_epoch_is_every_window_once(token_file: TokenFile, batch_size: int, context_length: int, seed: int) -> None:
    loader = BatchLoader(token_file, batch_size, context_length, seed)
    windows = loader.num_windows
    assert windows == 500 // context_length
    starts: list[int] = []
    while len(starts) < 2 * windows:
        assert loader.epoch == len(starts) // windows
        inputs, targets = next(loader)
        assert inputs.shape == targets.shape == (batch_size, context_length)
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.is_contiguous()
        assert targets.is_contiguous()
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(context_length))
        assert torch.equal(targets, inputs + 1)
        starts += inputs[:, 0].tolist()
    every = [window * context_length for window in range(windows)]
    assert sorted(starts[:windows]) == every
    assert sorted(starts[windows : 2 * windows]) == every
    assert windows < 20 or len({tuple(starts[:windows]), tuple(starts[windows : 2 * windows]), tuple(every)}) == 3


def test_the_seed_decides_the_order(token_file: TokenFile) -> None:
    def order(seed: int) -> list[int]:
        return [
            int(inputs[0, 0]) for _, (inputs, _) in zip(range(50), BatchLoader(token_file, 1, 10, seed), strict=False)
        ]

    assert order(0) == order(0) != order(1)


@given(before=st.integers(0, 120), sizes=st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_a_saved_position_continues_exactly(token_file: TokenFile, before: int, sizes: tuple[int, int]) -> None:
    loader = BatchLoader(token_file, sizes[0], 10, seed=5)
    for _ in range(before):
        next(loader)
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = BatchLoader(token_file, sizes[0], 10, seed=5)
    resumed.load_state_dict(state)
    for _ in range(20):
        for ours, theirs in zip(next(resumed), next(loader), strict=True):
            assert torch.equal(ours, theirs)
    # The position counts windows, so another batch size goes on with the same ones.
    other = BatchLoader(token_file, sizes[1], 10, seed=5)
    other.load_state_dict(state)
    loader.load_state_dict(state)
    ours, theirs = (torch.cat([next(each)[0] for _ in range(7)]) for each in (other, loader))
    shorter = min(len(ours), len(theirs))
    assert torch.equal(ours[:shorter], theirs[:shorter])


def test_in_order_for_evaluation(token_file: TokenFile) -> None:
    batches = list(sequential_batches(token_file, 4, 70))
    assert [len(inputs) for inputs, _ in batches] == [4, 3]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]).flatten(), torch.arange(490))
    assert torch.equal(torch.cat([targets for _, targets in batches]).flatten(), torch.arange(1, 491))
    assert [len(inputs) for inputs, _ in sequential_batches(token_file, 2, 70, max_batches=2)] == [2, 2]
    assert [len(inputs) for inputs, _ in sequential_batches(token_file, 500, 1)] == [500]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content_hash": "0"}, "state was saved with content_hash '0'"),
        ({"split": "validation"}, "state was saved with split 'validation', but this loader has 'train'"),
        ({"context_length": 11}, "state was saved with context_length 11, but this loader has 10"),
        ({"seed": 1}, "state was saved with seed 1, but this loader has 0"),
        ({"position": -1}, "its position is -1"),
        ({"position": "3"}, "its position is '3'"),
    ],
)
def test_a_foreign_state_is_refused(token_file: TokenFile, change: dict[str, Any], message: str) -> None:
    loader = BatchLoader(token_file, 2, 10)
    next(loader)
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict({**loader.state_dict(), **change})
    with pytest.raises(ValueError, match="state is no BatchLoader's: it has no 'content_hash'"):
        loader.load_state_dict({"position": 3})
    assert loader.position == 2


def test_bad_arguments_are_named(token_file: TokenFile) -> None:
    for arguments, name in (((0, 10), "batch_size"), ((2, 0), "context_length"), ((2, -1), "context_length")):
        for function in (BatchLoader, sequential_batches):
            with pytest.raises(ValueError, match=f"{name} must be at least 1, got"):
                function(token_file, *arguments)
    with pytest.raises(ValueError, match="max_batches must be at least 1, got 0"):
        sequential_batches(token_file, 1, 1, max_batches=0)
    assert BatchLoader(token_file, 1, 500).num_windows == 1
    for function in (BatchLoader, sequential_batches):
        with pytest.raises(ValueError, match="has 501 tokens, but context_length 501 needs at least 502"):
            function(token_file, 1, 501)


def test_an_id_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    prepare([Document("", "some text")], ByteTokenizer(), tmp_path, 0)
    path = tmp_path / "train.bin"
    path.write_bytes(np.array([257], "<u2").tobytes() + path.read_bytes()[2:])
    with pytest.raises(ValueError, match=r"train\.bin is damaged: it holds token 257, but its vocabulary has 257"):
        next(BatchLoader(TokenFile(tmp_path), 2, 4))
