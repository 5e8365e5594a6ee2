"""What a model loses when its weights are rounded: its loss on held-out text in float32, bfloat16, int8 and int4.

Beside it stands what llama.cpp makes of the same weights and tokens, in float32, q8_0 and q4_0; it knows GPTs that are
built as GPT-2 is, and GGUF files.

    pygpt demo && python bench/perplexity.py --model runs/demo          on the run's own validation text
    python bench/perplexity.py --model gpt2-folder --text novel.txt     a folder with a tokenizer, on a text
    python bench/perplexity.py --model smollm2.gguf --text novel.txt

The text is cut into pieces of the model's context (at most --context tokens), and every token but a piece's first
counts. `MB` is what the model holds, of llama.cpp its file; `change` that of the perplexity, beside float32 of the same
library on the same tokens. The weights of a GGUF file are in 4 bits already, most of them: there float32 stands for
what the file says.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from pygpt import GPT
from pygpt.cli import Parser
from pygpt.eval.metrics import perplexity
from pygpt.text import Tokenizer
from pygpt.text.token_file import TokenFile
from pygpt.train.saved import load_model

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind the installed pygpt
from bench.decode_contenders import Missing, Weights

KINDS = ("fp32", "bf16", "int8", "int4")
LLAMAS = ("f32", "q8_0", "q4_0")

Line = tuple[str, str, tuple[int, float] | str]  # library, kind of weights; their bytes and the loss, or why not


def main(words: list[str] | None = None) -> int:
    """Measure and print. Returns: the exit code."""
    parser = Parser(prog="perplexity.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="PATH", help="a run, a model's folder or a GGUF file")
    parser.add_argument("--text", metavar="FILE", help="held-out text (default: the validation text of the run)")
    parser.add_argument("--context", type=int, default=512, metavar="N", help="tokens of a piece (default: 512)")
    parser.add_argument("--tokens", type=int, default=20000, metavar="N", help="of the text, at most (default: 20000)")
    arguments = parser.parse_args(words)
    if arguments.context < 2 or arguments.tokens < 2:
        parser.error("--context and --tokens must be at least 2")
    try:
        model, tokenizer = _load(Path(arguments.model))
        tokens = _tokens(arguments, tokenizer)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    if len(tokens) < 2:
        parser.error("the text has fewer than 2 tokens")
    context = min(arguments.context, model.config.context_length)
    table = Table(title=f"{arguments.model}: {len(tokens):,} tokens in pieces of {context}")
    for heading in ("weights", "MB", "loss", "perplexity", "change"):
        table.add_column(heading, justify="left" if heading == "weights" else "right")
    lines = itertools.chain(
        ours(Path(arguments.model), tokens, context), llamas(Path(arguments.model), tokens, context)
    )
    first: dict[str, float] = {}
    missing = []
    for name, kind, measured in track(lines, "measuring", total=len(KINDS) + len(LLAMAS), transient=True):
        if isinstance(measured, str):
            missing.append(f"missing: {name} {kind}: {measured}")
            continue
        held, loss = measured
        change = f"{perplexity(loss - first.setdefault(name, loss)) - 1:+.3%}"
        table.add_row(f"{name} {kind}", f"{held / 1e6:.1f}", f"{loss:.5f}", f"{perplexity(loss):.4f}", change)
    Console().print(table)
    for line in missing:
        print(line)
    return 0


def ours(path: Path, tokens: Tensor, context: int) -> Iterator[Line]:
    """Of each kind of weights."""
    for kind in KINDS:
        model = _load(path)[0].to(torch.bfloat16 if kind == "bf16" else torch.float32)
        if kind in ("int8", "int4"):
            model.quantize(kind)
        held = sum(tensor.nbytes for tensor in model.state_dict().values())
        yield "pygpt", kind, (held, mean_loss(model, tokens, context))


def llamas(path: Path, tokens: Tensor, context: int) -> Iterator[Line]:
    """Of each kind of weights, made from the same ones."""
    with tempfile.TemporaryDirectory() as folder:
        source = path
        if not path.is_file():
            source = Path(folder, "model")
            _load(path)[0].float().save_pretrained(source)
        gpt2 = path.is_file() or json.loads((source / "config.json").read_text())["model_type"] == "gpt2"
        weights = Weights(source, Path(folder))
        for kind in LLAMAS:
            try:
                if not gpt2:
                    raise Missing("it knows no GPT that is built like this one")
                file = weights.prepared("Llama", kind)
            except (Missing, ImportError) as error:
                yield "llama.cpp", kind, str(error)
                continue
            yield "llama.cpp", kind, (file.stat().st_size, llama_loss(file, tokens, context))


def llama_loss(file: Path, tokens: Tensor, context: int) -> float:
    """`mean_loss` by llama.cpp."""
    import llama_cpp

    threads = {"n_threads": torch.get_num_threads(), "n_threads_batch": torch.get_num_threads()}
    llama = llama_cpp.Llama(str(file), n_ctx=context, logits_all=True, verbose=False, **threads)
    total, count = 0.0, 0
    for piece in tokens.split(context):
        if len(piece) > 1:
            llama.reset()
            llama.eval(piece[:-1].tolist())
            logits = torch.from_numpy(llama.scores[: len(piece) - 1])
            total += float(F.cross_entropy(logits, piece[1:], reduction="sum"))
            count += len(piece) - 1
    return total / count


@torch.no_grad()
def mean_loss(model: GPT, tokens: Tensor, context: int) -> float:
    """The mean cross-entropy of a text's tokens, in pieces of a length, each but its first token."""
    total, count = 0.0, 0
    for piece in tokens.split(context):
        if len(piece) > 1:
            total += float(model.loss(piece[None, :-1], piece[None, 1:])) * (len(piece) - 1)
            count += len(piece) - 1
    return total / count


def _load(path: Path) -> tuple[GPT, Tokenizer]:
    if not path.is_file():
        return load_model(path)
    from pygpt.models.gguf import text_parts

    return GPT.from_pretrained(path), text_parts(path).tokenizer


def _tokens(arguments: argparse.Namespace, tokenizer: Tokenizer) -> Tensor:
    if arguments.text is None:
        folder = Path(arguments.model) / "data"
        if not folder.is_dir():
            raise ValueError(f"{arguments.model} has no validation text of its own; name one with --text")
        found = torch.from_numpy(TokenFile(folder, "validation").tokens[: arguments.tokens].astype("int64"))
    else:
        found = torch.tensor(tokenizer.encode(Path(arguments.text).read_text()), dtype=torch.int64)
    return found[: arguments.tokens]


if __name__ == "__main__":
    sys.exit(main())
