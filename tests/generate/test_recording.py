"""A recorded step gives the bits of the model's own pass; what cannot be replayed is refused by name."""

from __future__ import annotations

import datetime
import gc
import threading

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pygpt import ops
from pygpt.generate import KeyValueCache, recording
from pygpt.generate.recording import RecordedStep, Unrecordable
from tests.models.test_config import small
from tests.models.test_gpt import lively, tokens
from tests.support import assert_same_bits, on_the_cpu, random_generator, threads

# What a Llama is made of.
LLAMA = {
    "positions": "rope",
    "norm_type": "rms",
    "activation": "swiglu",
    "bias": False,
    "num_kv_heads": 2,
    "head_dim": 16,
}


def prefilled(model, ids, lengths, capacity):
    """A cache of all but the last token of each row."""
    cache = KeyValueCache(len(ids), capacity, torch.device("cpu"))
    model.hidden(ids, lengths=lengths - 1, cache=cache)
    return cache


@on_the_cpu
@settings(max_examples=30)
@example(changes=LLAMA, dtype=torch.float32, rows=3, packed=True, scheme=None, counts=[2])
@example(changes=LLAMA, dtype=torch.bfloat16, rows=1, packed=False, scheme="int4", counts=[1, 3])
@example(changes={**LLAMA, "qk_norm": True}, dtype=torch.float32, rows=3, packed=True, scheme=None, counts=[2])
@given(
    changes=st.fixed_dictionaries(
        {
            "positions": st.sampled_from(["learned", "sinusoidal", "rope", "none"]),
            "norm": st.sampled_from(["pre", "post"]),
            "norm_type": st.sampled_from(["layer", "rms"]),
            "activation": st.sampled_from(["gelu_tanh", "gelu", "relu", "swiglu", "geglu"]),
            "num_kv_heads": st.sampled_from([1, 2, 4]),
            "head_dim": st.sampled_from([6, 16, 34]),
            "qk_norm": st.booleans(),
            "attention_windows": st.sampled_from([(None,), (None, 3)]),
            "bias": st.booleans(),
            "tie_head": st.booleans(),
        }
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    rows=st.sampled_from([1, 3]),
    packed=st.booleans(),
    scheme=st.sampled_from([None, "int8", "int4"]),
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
@torch.no_grad()
def test_replays_give_the_bits_of_a_whole_pass(changes, dtype, rows, packed, scheme, counts):
    """Rows of different lengths, of which one is not alive, on different numbers of threads."""
    generator = random_generator()
    model = lively(small(**changes), dtype)
    if scheme is not None and dtype != torch.float64:
        model.quantize(scheme, "int8")
    sequences = tokens(model, rows, 16)
    lengths = torch.randint(1, 9, (rows,), generator=generator)
    alive = torch.ones(rows, dtype=torch.bool)
    alive[1:2] = False
    with model.session(12 if packed else 0):
        cache = prefilled(model, sequences, lengths, 16)
        step = None
        for number in range(7):
            with threads(counts[number % len(counts)]):
                if step is None:
                    step = RecordedStep(model, cache, sequences, lengths, alive)
                    logits = step.logits
                else:
                    logits = step.run()
            for row in range(rows):
                if alive[row]:
                    whole = model(sequences[row : row + 1, : lengths[row]])[0, -1]
                    assert_same_bits(logits[row], whole, f"row {row}, step {number}")
            lengths += alive


@on_the_cpu
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 7, "top_p": 0.9}, {"repetition_penalty": 1.3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overflow", ["error", "slide"])
def test_generate_gives_the_same_with_and_without_recording(monkeypatch, options, dtype, overflow):
    model = lively(small(attention_windows=(None, 5)), dtype)
    ids, lengths = tokens(model, 3, 6), torch.tensor([6, 1, 4])
    new = 10 if overflow == "error" else 20
    options = {**options, "prompt_lengths": lengths, "num_samples": 2, "return_logprobs": True}
    runs = []
    with monkeypatch.context() as patch:
        patch.setattr(RecordedStep, "run", lambda self, run=RecordedStep.run: runs.append(1) or run(self))
        recorded = [model.generate(ids, new, overflow=overflow, **options)]
    assert len(runs) >= 8
    options["stop_tokens"] = [int(recorded[0].tokens[0, 6 + 4])]  # so that a row ends early
    recorded.append(model.generate(ids, new, overflow=overflow, **options))
    monkeypatch.setattr(recording, "RecordedStep", refuse)
    plain = [model.generate(ids, new, overflow=overflow, **{**options, "stop_tokens": []})]
    plain.append(model.generate(ids, new, overflow=overflow, **options))
    for ours, right in zip(recorded, plain, strict=True):
        assert torch.equal(ours.tokens, right.tokens)
        assert torch.equal(ours.lengths, right.lengths)
        assert_same_bits(ours.logprobs, right.logprobs, "log-probabilities")


def refuse(*_):
    raise Unrecordable("not today")


@torch.no_grad()
def refusal(model) -> str:
    ids = tokens(model, 2, 3)
    cache = prefilled(model, ids, torch.tensor([3, 3]), 8)
    with pytest.raises(Unrecordable) as error, model.session():
        RecordedStep(model, cache, ids, torch.tensor([3, 3]), torch.tensor([True, True]))
    return str(error.value)


@on_the_cpu
def test_a_kernel_of_pytorchs_is_refused_by_its_name_and_its_module(monkeypatch):
    model = lively(small())
    inner = model.blocks[1].feed_forward
    monkeypatch.setattr(inner, "forward", lambda *args, forward=inner.forward: forward(*args).mul(2))
    assert refusal(model) == "FeedForward blocks.1.feed_forward runs aten.mul.Tensor, which is no op of pygpt"


@on_the_cpu
def test_hooks_and_training_are_refused():
    model = lively(small())
    with_hook = model.blocks[0].attention
    handle = with_hook.register_forward_hook(lambda *_: None)
    assert refusal(model) == "MultiHeadAttention blocks.0.attention has hooks, which a replay would not call"
    handle.remove()
    model.blocks[1].norm_2.train()
    assert refusal(model) == "LayerNorm blocks.1.norm_2 is in training mode"


@on_the_cpu
def test_a_dispatch_mode_is_not_passed_by():
    model = lively(small())
    with FlopCounterMode(display=False):
        assert "dispatch mode" in refusal(model)


@on_the_cpu
@torch.no_grad()
def test_a_parameter_that_is_replaced_does_no_harm():
    model = lively(small())
    ids, lengths, alive = tokens(model, 1, 5), torch.tensor([5]), torch.tensor([True])
    with pytest.raises(RuntimeError, match=r"blocks\.0\.attention\.qkv\.weight was changed"), model.session():
        step = RecordedStep(model, prefilled(model, ids, lengths, 8), ids, lengths, alive)
        before = step.logits.clone()
        weight = model.blocks[0].attention.qkv.weight
        weight.add_(1)
        weight.data = torch.zeros_like(weight)
        model.blocks[1].feed_forward.up.weight = torch.nn.Parameter(torch.zeros(96, 24))
        gc.collect()
        after = step.run()  # reads the memory that it was recorded with
    assert after.isfinite().all()
    assert not torch.equal(before, after)


@on_the_cpu
@torch.no_grad()
def test_what_a_step_reads_is_checked_in_every_run():
    model = lively(small())
    ids, lengths, alive = tokens(model, 1, 8), torch.tensor([3]), torch.tensor([True])
    with model.session():
        step = RecordedStep(model, prefilled(model, ids, lengths, 8), ids, lengths, alive)
        right = step.logits.clone()
        for wrong in (0, -1, 9):
            lengths.fill_(wrong)
            with pytest.raises(ValueError, match=rf"lengths\[0\] is {wrong}, but must be at least 1 and at most 8"):
                step.run()
        lengths.fill_(3)
        token = int(ids[0, 2])
        ids[0, 2] = 23
        with pytest.raises(ValueError, match=r"ids\[0, 0\] is 23"):
            step.run()
        ids[0, 2] = token
        assert_same_bits(step.run(), right, "after errors")


@on_the_cpu
def test_only_a_recording_can_be_replayed():
    for wrong in (datetime.datetime_CAPI, None, 3):
        with pytest.raises(TypeError):
            recording.C.session_run(wrong)
    begun = recording.C.session_begin()
    with pytest.raises(ValueError, match="recorded on this thread already"):
        recording.C.session_begin()
    recording.C.session_end(begun)
    recording.C.session_run(begun)  # nothing was recorded


@on_the_cpu
def test_a_recording_may_end_on_another_thread():
    begun = [recording.C.session_begin()]
    thread = threading.Thread(target=begun.clear)
    thread.start()
    thread.join()
    ops.add(torch.ones(3), torch.ones(3))  # is not recorded
    recording.C.session_end(recording.C.session_begin())


class Replay:
    """In a graph's place: does the work again."""

    def __init__(self, model, work, device):
        self._work = work
        self.runs = 0
        made.append(self)

    def run(self):
        self.logits = self._work()
        self.runs += 1


made: list[Replay] = []


def decoded(model, **options):
    ids, lengths = tokens(model, 3, 4), torch.tensor([4, 1, 3])
    options = {"prompt_lengths": lengths, "return_logprobs": True, "seed": 5, "top_k": 9, **options}
    return model.generate(ids, 12, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.0, "repetition_penalty": 1.3}, {"bad_words": [[3]]}, {"exact": True, "stop_tokens": [3, 7]}],
)
@pytest.mark.parametrize("changes", [{}, {"positions": "rope", "head_dim": 6, "norm_type": "rms"}])
def test_generate_gives_the_same_with_and_without_a_graph(monkeypatch, options, changes):
    """Up to the graph itself, whose place a call of the work takes here."""
    model = lively(small(**changes))
    seed = torch.random.get_rng_state()
    expected = decoded(model, **options)
    monkeypatch.setattr(recording, "has_graphs", lambda device: True)
    monkeypatch.setattr(recording, "CapturedStep", Replay)
    made.clear()
    torch.random.set_rng_state(seed)
    captured = decoded(model, **options)
    assert [replay.runs for replay in made] == [10]
    for a, b in zip(captured, expected, strict=True):
        assert_same_bits(a, b, "by a graph")


def test_a_failed_capture_is_told_and_does_no_harm(monkeypatch, caplog):
    model = lively(small())
    seed = torch.random.get_rng_state()
    expected = decoded(model)
    monkeypatch.setattr(recording, "has_graphs", lambda device: True)
    monkeypatch.setattr(recording, "CapturedStep", refuse)
    torch.random.set_rng_state(seed)
    assert torch.equal(decoded(model).tokens, expected.tokens)
    assert [record.getMessage() for record in caplog.records] == ["decoding goes on without a CUDA graph: not today"]


def test_a_session_keeps_the_graph_for_calls_like_the_last(monkeypatch):
    model = lively(small())
    prompts = [tokens(model, 2, 4) for _ in range(3)]
    options = {"top_k": 9, "repetition_penalty": 1.3, "return_logprobs": True}
    calls = [
        (prompts[0], {"stop_tokens": [3, 8]}, 1),
        (prompts[1], {"stop_tokens": [3, 8], "seed": 5, "prompt_lengths": torch.tensor([2, 4])}, 1),
        (prompts[2], {"stop_tokens": [3, 8]}, 1),
        (prompts[2], {"stop_tokens": [3]}, 2),
        (prompts[0], {"bad_words": [[7]]}, 3),
        (prompts[1], {"bad_words": [[2], [3]], "seed": 4}, 3),
        (prompts[1], {"num_samples": 2}, 4),
        (prompts[0], {"num_samples": 2}, 5),
        (prompts[0], {"stream": lambda *_: None}, 6),
        (prompts[2], {"stop": "b", "tokenizer": Letters()}, 6),
        (prompts[2], {"top_k": 3, "stream": lambda *_: None}, 7),
        (prompts[2][:1], {"top_k": 3, "stream": lambda *_: None}, 8),
    ]
    expected = [model.generate(ids, 12, **{**options, **others}) for ids, others, _ in calls]
    monkeypatch.setattr(recording, "has_graphs", lambda device: True)
    monkeypatch.setattr(recording, "CapturedStep", Replay)
    made.clear()
    with model.session():
        results = []
        for ids, others, captured in calls:
            results.append(model.generate(ids, 12, **{**options, **others}))
            assert len(made) == captured, others
        assert model._session.decoding is not None
        handle = model.blocks[0].register_forward_hook(lambda *_: None)
        model.generate(prompts[2][:1], 12, top_k=3, stream=lambda *_: None, repetition_penalty=1.3)
        handle.remove()
    assert len(made) == 9  # this place of a graph does not mind hooks
    for ours, right in zip(results, expected, strict=True):
        for a, b in zip(ours, right, strict=True):
            assert_same_bits(a, b, "by a graph that was kept")


def test_a_call_from_inside_another_has_its_own_memory(monkeypatch):
    model = lively(small())
    prompts = [tokens(model, 2, 4) for _ in range(2)]
    expected = [model.generate(ids, 12, seed=5) for ids in prompts]
    monkeypatch.setattr(recording, "has_graphs", lambda device: True)
    monkeypatch.setattr(recording, "CapturedStep", Replay)
    inside = []

    def call(row, token):
        if len(inside) < 3:
            inside.append(model.generate(prompts[1], 12, seed=5, stream=lambda *_: None))

    with model.session():
        for _ in range(2):
            inside.clear()
            assert torch.equal(model.generate(prompts[0], 12, seed=5, stream=call), expected[0])
            assert len(inside) == 3 and all(torch.equal(result, expected[1]) for result in inside)


class Letters:
    """Token n is the n-th letter."""

    def token_bytes(self, token: int) -> bytes:
        return bytes([ord("a") + token])
