"""Turn text into token files, which train and eval read without loading them into memory; or make a task's examples.

Example:
  pygpt data 'books/**/*.txt' --out books-tokens --tokenizer bpe --vocab-size 8192
  pygpt train --data books-tokens --out runs/books
  pygpt data --examples summarisation --out summaries   # out of Python's own documentation
"""

import argparse

from pygpt.tasks.records import TASKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which flags there are."""
    parser.add_argument("files", nargs="*", metavar="FILES", help="text files, folders or globs")
    parser.add_argument(
        "--examples",
        choices=TASKS,
        metavar="TASK",
        help=f"make examples, of Python's documentation: {', '.join(TASKS)}",
    )
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where to write the token files, or examples")
    parser.add_argument("--tokenizer", default="bpe", metavar="NAME", help="char, byte, bpe (default), or a folder")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="tokens of a BPE that is trained here (4096)")
    parser.add_argument("--validation", type=float, default=0.05, metavar="X", help="share held out (default: 0.05)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws what is held out (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Prepare the token files, and say what they hold."""
    from pathlib import Path

    from pygpt.tasks.standard_library import write_examples
    from pygpt.text import prepare
    from pygpt.train.text import named_tokenizer, read_corpus

    out = Path(arguments.out)
    if arguments.examples is not None:
        if arguments.files:
            raise ValueError(f"examples are made of Python's documentation: leave out {' '.join(arguments.files)}")
        train, test = write_examples(arguments.examples, out, arguments.validation, arguments.seed)
        print(f"{train:,} examples in {out}/train.jsonl, {test:,} of other modules in {out}/test.jsonl")
        return 0
    if not arguments.files:
        raise ValueError("name text files, folders or globs, or a task with --examples")
    if out.is_dir() and any(out.iterdir()) and not (out / "tokens.json").is_file():
        raise FileExistsError(f"{out} holds something other than token files; choose another --out")
    documents = read_corpus(arguments.files)
    tokenizer = named_tokenizer(arguments.tokenizer, documents, arguments.vocab_size)
    report = prepare(documents, tokenizer, out, arguments.validation, arguments.seed)
    print(f"{report.documents:,} documents, {report.bytes / 1e6:,.1f} MB, {report.tokens:,} tokens of a vocabulary of "
          f"{report.vocab_size:,} ({report.bytes / report.tokens:.2f} bytes a token)")  # fmt: skip
    print(f"{report.train_tokens:,} to train on, {report.validation_tokens:,} held out, in {report.folder}")
    print(f"now try: pygpt train --data {report.folder} --out runs/{report.folder.name}")
    return 0
