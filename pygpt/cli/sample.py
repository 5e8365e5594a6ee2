"""Let a model write: a run of 'pygpt train', a folder in Hugging Face's layout with its tokenizer, or a GGUF file.

Example:
  pygpt sample --model runs/demo --prompt "Return the" --temperature 0.8 --top-p 0.95
  pygpt sample --model gpt2-folder --prompt "Once upon a time" --num-samples 3 --seed 7
  pygpt sample --model gpt2-folder --prompt "Once upon a time" --quantize int8

The text appears as it is written. The same seed gives the same text.
"""

import argparse
import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pygpt.text import TextStream


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which flags there are."""
    parser.add_argument(
        "--model", metavar="PATH", required=True, help="the folder of a run or of a model, or a GGUF file"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="how the text begins (default: a new line)")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="(default: 200)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="X", help="0 is greedy (default: 0.8)")
    parser.add_argument("--top-k", type=int, metavar="N", help="only the N likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="X", help="only the likeliest tokens that together reach X")
    parser.add_argument(
        "--min-p", type=float, metavar="X", help="only tokens at least X times as likely as the likeliest"
    )
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: fewer repetitions")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end with this text; repeatable")
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="texts to write (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another text (default: 0)")
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4", "none"),
        help="hold the weights in 8 or 4 bits, on a CPU (default: as is)",
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (as many as PyTorch takes)")


def run(arguments: argparse.Namespace) -> int:
    """Write one text as it comes, or several one after another."""
    import torch

    from pygpt.cli import use_threads
    from pygpt.train.run import named_device
    from pygpt.train.saved import load_model
    from pygpt.train.text import prompt_tokens

    if arguments.num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {arguments.num_samples}")
    device = named_device(arguments.device)
    use_threads(arguments.threads)
    as_it_is = arguments.quantize is None and device.type == "cpu"
    model, tokenizer = load_model(arguments.model, keep_quantized=as_it_is)
    if arguments.quantize not in (None, "none"):
        model.quantize(arguments.quantize)
    if model.quantization is not None and device.type != "cpu":
        raise ValueError(f"a quantised model is sampled on the CPU, not on {device}")
    model.to(device)
    tokens = prompt_tokens(tokenizer, arguments.prompt)
    options = {
        name: getattr(arguments, name)
        for name in ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop")
    }
    stop_tokens = () if tokenizer.end_of_document is None else (tokenizer.end_of_document,)
    with model.session():
        for number in range(arguments.num_samples):
            if number:
                print("\n" + "─" * 40)
            written = tokenizer.stream()
            print("".join(map(written.push, tokens)), end="", flush=True)
            model.generate(
                torch.tensor([tokens], device=device),
                seed=arguments.seed + number,
                stop_tokens=stop_tokens,
                tokenizer=tokenizer,
                overflow="slide",
                stream=functools.partial(_show, written),
                **options,
            )
            print(written.flush())
    return 0


def _show(written: "TextStream", row: int, token: int) -> None:
    print(written.push(token), end="", flush=True)
