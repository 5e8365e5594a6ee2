"""Score a model: at the task that it was fine-tuned for, at a text, or at questions that it is shown a few examples of.

Examples:
  pygpt eval runs/summaries --data test.jsonl                 # the task that the run learned, in its form
  pygpt eval runs/shakespeare --data play.txt                 # perplexity and bits per byte of a text
  pygpt eval runs/shakespeare --task questions.jsonl --shots 5

ROUGE, BLEU and chrF need the extra pygpt[eval]. README says what the files hold.
"""

import argparse
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pygpt.eval.scores import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which flags there are."""
    parser.add_argument("model", metavar="MODEL", help="the folder of a run or of a model")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", nargs="+", metavar="PATH", help="a task's JSON Lines, or text files for other models")
    what.add_argument("--task", metavar="FILE", help="questions in JSON Lines")
    parser.add_argument("--shots", type=int, default=0, metavar="N", help="solved questions before each (default: 0)")
    parser.add_argument("--shots-from", metavar="FILE", help="draw them from this file (default: the other questions)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws them (default: 0)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="score the first N examples or questions; of a text, batches"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="of an answer (64, at most half of the context)"
    )
    parser.add_argument("--truncate", action="store_true", help="cut the end of given texts that are too long")
    parser.add_argument("--skip-bad", action="store_true", help="leave out, and count, lines that cannot be used")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="examples at a time (default: 16)")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N answers (default: 0)")
    parser.add_argument("--json", metavar="FILE", help="write scores and answers to this file (null: not finite)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (as many as PyTorch takes)")


def run(arguments: argparse.Namespace) -> int:
    """Score, and print a line for each score."""
    from pygpt.cli import use_threads
    from pygpt.files import atomic_write_json
    from pygpt.tasks.records import BadLines
    from pygpt.train.run import named_device
    from pygpt.train.saved import load_saved

    for name, least in (("limit", 1), ("max_new_tokens", 1), ("batch_size", 1), ("shots", 0), ("show", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    if arguments.task is None and (arguments.shots or arguments.shots_from is not None):
        raise ValueError("shots are shown before the questions of --task, not before --data")
    use_threads(arguments.threads)
    device = named_device(arguments.device)
    saved = load_saved(arguments.model)
    saved.model.to(device)
    bad = BadLines(arguments.task or arguments.data[0], arguments.skip_bad)
    if arguments.task is not None:
        report = _few_shot(saved, bad, arguments)
    elif saved.form is not None:
        report = _task(saved, bad, arguments)
    else:
        report = _text(saved, arguments)
    if bad.count:
        print(bad)
    print(f"{report.count:,} {'tokens' if not report.answers and arguments.task is None else 'answers'}")
    for name, value in report.scores.items():
        print(f"{name:<36}{value:.4g}" if "perplexity" in name or name == "loss" else f"{name:<36}{value:.2f}")
    for reference, answer in report.answers[: arguments.show]:
        print(f"\n  asked for  {reference}\n  answered   {answer}")
    if arguments.json:
        answers = [{"reference": reference, "answer": answer} for reference, answer in report.answers]
        about = {"model": str(saved.folder), "count": report.count, "left_out": bad.count}
        # JSON cannot say what is not finite, such as the perplexity of a model that has diverged.
        scores = {name: value if math.isfinite(value) else None for name, value in report.scores.items()}
        atomic_write_json(arguments.json, {**about, "scores": scores, "answers": answers})
    return 0


def _task(saved: Any, bad: Any, arguments: argparse.Namespace) -> "Report":
    from pygpt.eval.scores import evaluate_task
    from pygpt.tasks.records import read_records

    if len(arguments.data) != 1:
        raise ValueError(f"data must be one file of JSON Lines for a task, but is {' '.join(arguments.data)!r}")
    half = saved.form.context_length // 2
    records = read_records(arguments.data[0], saved.form.task, bad)[: arguments.limit]
    return evaluate_task(
        saved.model,
        saved.form,
        records,
        bad,
        max_new_tokens=min(64, half) if arguments.max_new_tokens is None else arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        truncate=arguments.truncate,
    )


def _few_shot(saved: Any, bad: Any, arguments: argparse.Namespace) -> "Report":
    from pygpt.eval.few_shot import evaluate_few_shot, read_questions
    from pygpt.models import GPT
    from pygpt.tasks.records import BadLines

    if not isinstance(saved.model, GPT):
        raise ValueError(_another("questions", saved))
    kind, questions = read_questions(arguments.task, bad)
    examples = None
    if arguments.shots_from is not None:
        other, examples = read_questions(arguments.shots_from, BadLines(arguments.shots_from, arguments.skip_bad))
        if other != kind:
            raise ValueError(
                f"{arguments.shots_from} has questions of kind {other!r}, and {arguments.task} of {kind!r}"
            )
    return evaluate_few_shot(
        saved.model,
        saved.tokenizer,
        kind,
        questions,
        arguments.shots,
        examples=examples,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        limit=arguments.limit,
    )


def _text(saved: Any, arguments: argparse.Namespace) -> "Report":
    from tempfile import TemporaryDirectory

    from pygpt.eval.scores import evaluate_text
    from pygpt.models import GPT
    from pygpt.text import TokenFile, prepare, sequential_batches
    from pygpt.train.text import read_corpus

    if not isinstance(saved.model, GPT):
        raise ValueError(_another("texts", saved))
    with TemporaryDirectory() as folder:
        about = prepare(read_corpus(arguments.data), saved.tokenizer, folder, 0)
        file = TokenFile(folder, "train", saved.tokenizer)
        batches = sequential_batches(file, arguments.batch_size, saved.model.config.context_length, arguments.limit)
        return evaluate_text(saved.model, batches, about.bytes / about.tokens)


def _another(what: str, saved: Any) -> str:
    return f"{what} are for a GPT, but the model in {saved.folder} is of class {type(saved.model).__name__}"
