"""bench/decode.py with a tiny GPT-2: everyone has the same weights, and who is missing is named."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import decode, decode_contenders
from bench.decode_contenders import Clock, Weights, _word
from pygpt import GPT, GPTConfig
from pygpt.extension import EMULATED

pytestmark = pytest.mark.skipif(EMULATED is not None, reason="measures the CPU")

TINY = GPTConfig(vocab_size=101, context_length=64, num_layers=2, num_heads=2, embedding_dim=32)
PROMPT = [5, 17, 3, 99, 42, 8]


@pytest.fixture
def weights(tmp_path) -> Weights:
    decode.random_gpt2(tmp_path / "gpt2", TINY)
    return Weights(tmp_path / "gpt2", tmp_path)


def our_logits(weights: Weights) -> torch.Tensor:
    return GPT.from_pretrained(weights.source)(torch.tensor([PROMPT]))[0].detach()


def test_ctranslate2_has_our_weights(weights):
    ctranslate2 = pytest.importorskip("ctranslate2")
    generator = ctranslate2.Generator(str(weights.prepared("CTranslate2", "float32")), device="cpu")
    theirs = generator.forward_batch([[_word(token) for token in PROMPT]])
    torch.testing.assert_close(torch.from_numpy(np.array(theirs))[0], our_logits(weights), atol=1e-4, rtol=1e-4)


def test_llama_cpp_has_our_weights(weights):
    llama_cpp = pytest.importorskip("llama_cpp")
    llama = llama_cpp.Llama(str(weights.prepared("Llama", "f32")), n_ctx=64, logits_all=True, verbose=False)
    llama.eval(PROMPT)
    torch.testing.assert_close(torch.tensor(llama.scores[: len(PROMPT)]), our_logits(weights), atol=1e-3, rtol=1e-3)


def test_rates_are_all_tokens_over_all_time_and_the_share_is_of_reading_the_weights():
    worker = SimpleNamespace(label="one", dtype="fp32", weight_bytes=6_000_000)
    steps = [0.02] * 98 + [0.05, 0.99]  # of 3 rows; a mean of 0.03
    found = decode.result(worker, 3, steps, memory=7, bandwidth=1e9)
    assert found.tokens_per_second == pytest.approx(300 / sum(steps)) == pytest.approx(100)
    assert (found.median_seconds, found.p99_seconds) == (0.02, 0.99)
    assert found.share == pytest.approx(0.006 / 0.03)
    assert (found.label, found.dtype, found.batch, found.memory_bytes, found.steps) == ("one", "fp32", 3, 7, 100)


def test_a_step_is_the_time_between_two_tokens(monkeypatch):
    moments = iter([1.0, 1.5, 3.5, 4.0])
    monkeypatch.setattr(decode_contenders.time, "perf_counter", lambda: next(moments))
    clock = Clock()
    for _ in range(4):
        clock.put(None)
    assert clock.count == 4
    assert clock.steps() == [0.5, 2.0, 0.5]
    assert clock.steps(before=2) == [2.0, 0.5], "of which the first two are the prompt's"


@pytest.mark.slow
def test_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(decode, "installed", lambda: {"pygpt": "1", "torch": "1"})
    file = tmp_path / "results.json"
    command = ["--only", "pygpt", "--only", "CTranslate2", "--rounds", "1", "--tokens", "5", "--batch", "1", "3"]
    assert decode.main([*command, "--json", str(file)], TINY) == 0
    results = json.loads(file.read_text())
    # pygpt with two dtypes, the model alone and generate, of two batches
    pygpt = [(each["label"], each["dtype"], each["batch"]) for each in results["results"]]
    assert {("pygpt, the model alone", "bf16", 1), ("pygpt generate", "fp32", 3)} <= set(pygpt)
    for each in results["results"]:
        assert each["steps"] == 4
        assert 0 < each["median_seconds"] <= each["p99_seconds"]
        assert each["tokens_per_second"] > 0 and each["share"] > 0
        parameters = TINY.num_parameters() - TINY.context_length * TINY.embedding_dim
        if each["dtype"] in ("fp32", "bf16"):
            assert each["weight_bytes"] == parameters * (4 if each["dtype"] == "fp32" else 2)
        assert each["memory_bytes"] > 2**20
    assert "missing: CTranslate2 generate_batch, int8: ctranslate2 is not installed: pip install 'pygpt[bench]'" in (
        capsys.readouterr().out
    )
    assert len(results["missing"]) == 2


@pytest.mark.parametrize(
    "command, words",
    [
        (["--batch", "0"], "--batch must be at least 1"),
        (["--tokens", "2"], "--tokens must be at least 3"),
        (["--model", "/nowhere"], "there is no config.json in /nowhere"),
        (["--only", "nobody"], "--only must be in one of pygpt, the model alone"),
        (["--json", "/nowhere/x.json"], "there is no folder /nowhere"),
    ],
)
def test_bad_input(command, words, capsys):
    with pytest.raises(SystemExit) as error:
        decode.main(command, TINY)
    assert error.value.code == 2
    assert words in capsys.readouterr().err


def test_a_context_that_is_too_short(capsys):
    assert decode.main(["--tokens", "60", "--prompt", "5"], TINY) == 2
    assert "--prompt and --tokens must be at most 64 together" in capsys.readouterr().err
