"""SmolLM2-135M-Instruct beside llama-cpp-python, on the same file: greedy text, and logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pygpt.generate.chat import load_chat
from pygpt.nn import Linear
from tests.models.llama_file import expand, smollm2

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

QUESTIONS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain why the sky is blue, in two sentences.",
    "List three uses of a brick.",
    "How do I sort a list in Python?",
]
NEW_TOKENS = 50


@pytest.fixture(scope="module")
def theirs() -> Any:
    return llama_cpp.Llama(str(smollm2()), n_ctx=512, n_threads=1, logits_all=True, verbose=False, seed=0)


def their_logits(llama: Any, tokens: list[int]) -> Tensor:
    """After each token."""
    llama.reset()
    llama.eval(tokens)
    return torch.from_numpy(np.array(llama.scores[: len(tokens)]))


def eight_bits(x: Tensor) -> Tensor:
    """As llama.cpp rounds what a quantised matrix is multiplied with: in groups of 32, multiples of largest / 127."""
    groups = x.unflatten(-1, (-1, 32))
    step = (groups.abs().amax(-1, keepdim=True) / 127).half().float()
    return (torch.where(step > 0, groups / step, 0.0).round() * step).flatten(-2)


@pytest.mark.slow
@torch.no_grad()
def test_without_quantisation_the_text_is_llama_cpps(tmp_path):
    """The file's weights expanded to float32 on both sides, where llama.cpp rounds nothing: the same 50 tokens each."""
    expand(smollm2(), tmp_path / "m.gguf")
    theirs = llama_cpp.Llama(
        str(tmp_path / "m.gguf"),
        n_ctx=128,
        n_threads=torch.get_num_threads(),
        logits_all=True,
        verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32,  # of the cache, which else is in 16 bits
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
    )
    ours, tokenizer, form = load_chat(smollm2())
    for question in QUESTIONS:
        prompt = form.encode([{"role": "user", "content": question}], tokenizer)
        right = list(prompt)
        for token in theirs.generate(prompt, temp=0.0, repeat_penalty=1.0):
            right.append(int(token))
            if len(right) == len(prompt) + NEW_TOKENS:  # also past the end of an answer
                break
        assert ours.generate(torch.tensor([prompt]), NEW_TOKENS, temperature=0.0)[0].tolist() == right, question
        logits, wanted = ours(torch.tensor([right]))[0], their_logits(theirs, right)
        difference = float((logits - wanted).abs().max())
        print(f"{question!r}: logits differ by {difference:.1e} of {float(wanted.abs().max()):.0f}")
        assert difference < 5e-4, question


@pytest.mark.slow
@torch.no_grad()
def test_greedy_text_and_logits_are_llama_cpps(theirs):
    """The same text; or, from the first token on that differs, logits as near as rounding leaves them.

    llama.cpp rounds the input of each product to 8 bits. What that does to the logits is measured on our own model with
    expanded weights, with its inputs rounded so and not: theirs may be twice as far from ours.
    """
    ours, tokenizer, form = load_chat(smollm2(), keep_quantized=True)
    expanded, _, _ = load_chat(smollm2())
    assert ours.quantization == "int4" and expanded.quantization is None
    equal = 0
    for question in QUESTIONS:
        prompt = form.encode([{"role": "user", "content": question}], tokenizer)
        right = list(prompt)
        for token in theirs.generate(prompt, temp=0.0, repeat_penalty=1.0):
            right.append(int(token))
            if len(right) == len(prompt) + NEW_TOKENS or token in form.stop_tokens:
                break
        count = len(right) - len(prompt)
        written = ours.generate(torch.tensor([prompt]), count, temperature=0.0)[0].tolist()
        equal += written == right

        logits, wanted = ours(torch.tensor([right]))[0], their_logits(theirs, right)
        exact = expanded(torch.tensor([right]))[0]
        hooks = [
            module.register_forward_pre_hook(lambda _, inputs: (eight_bits(inputs[0]), *inputs[1:]))
            for module in expanded.modules()
            if isinstance(module, Linear)
        ]
        rounded = expanded(torch.tensor([right]))[0]
        for hook in hooks:
            hook.remove()
        allowed = 2 * float((rounded - exact).abs().max())
        difference = float((logits - wanted).abs().max())
        print(f"{question!r}: {'the same text' if written == right else 'another text'}, {count} tokens; ", end="")
        print(f"logits differ by {difference:.3f}, by rounding {allowed / 2:.3f}, from expanded weights by ", end="")
        print(f"{float((logits - exact).abs().max()):.3f}")
        assert difference <= allowed, question
        for place in range(len(prompt), len(right)):
            if written[place] != right[place]:
                margin = float(logits[place - 1, written[place]] - logits[place - 1, right[place]])
                assert margin <= 2 * allowed, f"{question}: token {place} is off by {margin}"
                break
    print(f"{equal} of {len(QUESTIONS)} texts are equal")
