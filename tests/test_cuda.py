"""What only a GPU shows: streams, devices, graphs, memory beyond 32-bit indices, autocast, compiled code.

Run with ``pytest -m cuda``, which also runs the op tests on the GPU.
"""

from __future__ import annotations

import gc

import pytest
import torch

import pygpt
from pygpt import ops
from pygpt.extension import C
from pygpt.generate import recording
from tests.support import EMULATED, DrawnOnTheCpu, assert_same_bits, normal

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def gpu():
    if EMULATED:
        pytest.skip("emulated")
    if why_none := C.cuda_devices()[1] or ("" if torch.cuda.is_available() else "this torch is built without CUDA"):
        pytest.skip(why_none)
    with torch.device("cuda"), DrawnOnTheCpu():
        yield


def step(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Several ops in a row, with scratch memory: loss and gradients."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    hidden = ops.layer_norm(ops.dropout(ops.add(x, x.detach()), 0.1, 3), weight)
    loss = ops.cross_entropy(hidden, targets)
    return [loss.detach(), *torch.autograd.grad(loss, [x, weight])]


@pytest.fixture
def inputs(generator):
    return normal(generator, 300, 768), normal(generator, 768), torch.arange(300) % 768


def test_work_follows_the_current_stream(inputs):
    expected = step(*inputs)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    x = torch.full_like(inputs[0], torch.nan)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # the values come late on this stream
        x.copy_(inputs[0])
        results = step(x, *inputs[1:])
    stream.synchronize()
    for a, b in zip(expected, results, strict=True):
        assert_same_bits(a, b, "on another stream")


def test_a_graph_replays_with_new_values(inputs, generator):
    static = [tensor.clone() for tensor in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(*static)  # warms up
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(*static)
    for _ in range(2):
        x = normal(generator, *inputs[0].shape)
        static[0].copy_(x)
        graph.replay()
        for a, b in zip(step(x, *inputs[1:]), results, strict=True):
            assert_same_bits(a, b, "replayed")


def test_a_device_that_is_not_the_current_one(inputs):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    results = step(*(tensor.to("cuda:1") for tensor in inputs))
    assert torch.cuda.current_device() == 0
    for a, b in zip(step(*inputs), results, strict=True):
        assert_same_bits(a, b.to("cuda:0"), "on the second GPU")


@pytest.mark.slow
def test_more_elements_than_32_bits_count():
    rows, width = 2**21 + 3, 1024
    if torch.cuda.mem_get_info()[0] < 3 * rows * width * 2 + 2**30:
        pytest.skip("needs 14 GB of free memory")
    x = torch.zeros(rows, width, dtype=torch.bfloat16)
    pattern = torch.randn(3, width).bfloat16()
    x[-3:] = pattern
    weight = torch.ones(width, dtype=torch.bfloat16)
    for run in (
        lambda x: ops.layer_norm(x, weight),
        lambda x: ops.add(x, weight),
        lambda x: ops.cross_entropy(x, torch.zeros(len(x), dtype=torch.int64), reduction="none"),
    ):
        assert_same_bits(run(x)[-3:], run(pattern), "rows beyond 2^31 elements")
    ids = torch.tensor([0, rows - 1, rows - 3])
    assert_same_bits(ops.embedding(ids, x), x[ids], "embedding")
    total = ops.grad_norm([x])
    assert abs(float(total) - float(pattern.double().norm())) < 1e-5 * float(total)


def test_compiled_code_and_autocast_give_the_same_bits(inputs):
    x, weight, _ = inputs
    compiled = torch.compile(ops.layer_norm, fullgraph=True)
    assert_same_bits(compiled(x, weight), ops.layer_norm(x, weight), "compiled")
    with torch.autocast("cuda", torch.bfloat16):
        assert_same_bits(ops.layer_norm(x, weight), ops.layer_norm(x.clone(), weight), "autocast keeps the dtype")


def test_values_out_of_range_are_no_fault(generator):
    table = normal(generator, 5, 40)
    assert ops.embedding(torch.tensor([7, -3]), table).isnan().all()
    assert ops.cross_entropy(table, torch.tensor([1, 2, 3, 40, -5])).isnan()
    torch.cuda.synchronize()


@pytest.mark.slow
def test_a_model_trains_and_writes_as_on_the_cpu():
    config = pygpt.GPTConfig(vocab_size=61, context_length=32, num_layers=2, num_heads=4, embedding_dim=64)
    with torch.device("cpu"):
        torch.manual_seed(1)
        model = pygpt.GPT(config)
        tokens = torch.randint(61, (4, 33))
    losses = {}
    for device in ("cpu", "cuda"):
        copy = pygpt.GPT(config, device=device)
        copy.load_state_dict(model.state_dict())
        optimizer = pygpt.optim.AdamW(copy.parameters(), lr=1e-3)
        ids, targets = tokens[:, :-1].to(device), tokens[:, 1:].to(device)
        losses[device] = []
        for _ in range(20):
            loss = copy.loss(ids, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[device].append(float(loss))
        copy.eval()
        exact = [copy.generate(ids[:, :8], max_new_tokens=16, temperature=0.0, exact=True) for _ in range(2)]
        assert_same_bits(*exact, "generation")
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-4)


def test_a_whole_training_step_is_captured_and_counted():
    """A graph of it takes the steps that calls take: their number and the learning rate are read with every replay."""
    config = pygpt.GPTConfig(101, 32, 2, 2, 64)
    torch.manual_seed(2)
    start = pygpt.GPT(config, device="cuda")
    tokens = torch.randint(101, (4, 33), device="cuda")
    rates = [1e-3 * 0.8**number for number in range(8)]

    def training(captured):
        model = pygpt.GPT(config, device="cuda")
        model.load_state_dict(start.state_dict())
        rate = torch.tensor(rates[0], device="cuda")
        optimizer = pygpt.optim.AdamW(model.parameters(), lr=rate, capturable=True)

        def step():
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss

        run, losses, graph, static = step, [], torch.cuda.CUDAGraph(), []
        for number, value in enumerate(rates):
            rate.fill_(value)
            if captured and number == 3:  # the first ones make the optimiser's state
                with torch.cuda.graph(graph):
                    static.append(step())

                def run():
                    graph.replay()
                    return static[0]

            losses.append(float(run()))
        assert {float(state["step"]) for state in optimizer.state.values()} == {float(len(rates))}
        return losses, [parameter.detach().clone() for parameter in model.parameters()]

    (losses, parameters), (of_graph, parameters_of_graph) = training(False), training(True)
    assert losses == of_graph
    for a, b in zip(parameters, parameters_of_graph, strict=True):
        assert_same_bits(a, b, "after eight steps")


def test_a_captured_step_asks_for_capturable():
    param = torch.nn.Parameter(torch.ones(3, device="cuda"))
    param.grad = torch.ones_like(param)
    optimizer = pygpt.optim.AdamW([param])
    optimizer.step()
    with pytest.raises(RuntimeError, match="needs capturable=True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


@pytest.fixture
def replays(monkeypatch):
    """Counts the replays of graphs."""
    runs = []
    run = recording.CapturedStep.run
    monkeypatch.setattr(recording.CapturedStep, "run", lambda self: runs.append(1) or run(self))
    return runs


@pytest.mark.parametrize("exact", [None, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"top_k": 7, "top_p": 0.9, "seed": 11, "num_samples": 2},
        {"repetition_penalty": 1.3, "stop_tokens": [1, 5, 17]},
        {"bad_words": [[3]]},
        {"stream": lambda row, token: None},
        {"overflow": "slide", "max_new_tokens": 40},
        {"max_new_tokens": 1},
    ],
)
@pytest.mark.parametrize("changes", [{}, {"positions": "rope", "norm_type": "rms", "activation": "swiglu"}])
def test_decoding_by_a_graph_gives_the_same_tokens(monkeypatch, replays, generator, changes, options, dtype, exact):
    config = {"vocab_size": 61, "context_length": 32, "num_layers": 2, "num_heads": 4, "embedding_dim": 64, **changes}
    model = pygpt.GPT(pygpt.GPTConfig(**config), device="cuda", dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(normal(generator, *parameter.shape) * 0.3)
    ids = torch.randint(61, (3, 6), generator=generator)
    options = {"max_new_tokens": 24, **options, "exact": exact, "return_logprobs": True}
    outs = []
    for after, lengths in ((6, [6, 1, 4]), (10**9, [6, 1, 4])):
        monkeypatch.setattr(recording, "GRAPH_AFTER_STEPS", after)
        replays.clear()
        outs.append(model.generate(ids, prompt_lengths=lengths, **options))
        assert bool(replays) == (after == 6 and options["max_new_tokens"] > 8)
    for a, b in zip(*outs, strict=True):
        assert_same_bits(a, b, "by a graph")


def test_a_session_keeps_the_graph_for_calls_like_the_last(monkeypatch, replays, generator):
    config = pygpt.GPTConfig(vocab_size=61, context_length=64, num_layers=2, num_heads=4, embedding_dim=64)
    model = pygpt.GPT(config, device="cuda")
    prompts = [torch.randint(61, (2, 6), generator=generator) for _ in range(3)]
    options = [{}, {"seed": 9, "prompt_lengths": [2, 6]}, {"seed": 3}]
    expected = [model.generate(ids, 40, **others) for ids, others in zip(prompts, options, strict=True)]
    captured = []
    capture = recording.CapturedStep._capture
    monkeypatch.setattr(
        recording.CapturedStep, "_capture", lambda self, work: captured.append(1) or capture(self, work)
    )
    replays.clear()
    with model.session():
        outs = [model.generate(ids, 40, **others) for ids, others in zip(prompts, options, strict=True)]
    assert len(captured) == 1
    assert len(replays) == 38 + 2 * 39
    for out, right in zip(outs, expected, strict=True):
        assert torch.equal(out, right)


def test_a_graph_goes_with_the_call_that_captured_it(replays, generator):
    config = pygpt.GPTConfig(vocab_size=61, context_length=64, num_layers=2, num_heads=4, embedding_dim=64)
    model = pygpt.GPT(config, device="cuda")
    ids = torch.randint(61, (2, 6), generator=generator)
    expected = model.generate(ids, 40)
    reserved = []
    for _ in range(3):  # what a first capture on a stream leaves, it leaves once
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            out = model.generate(ids, 40)
        torch.cuda.current_stream().wait_stream(side)
        assert torch.equal(out, expected)
        del out
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert len(replays) == 4 * 38
    assert reserved[2] <= reserved[1]
