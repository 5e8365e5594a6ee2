"""Turn text into token files, which train and eval read without loading them into memory; or make a task's examples.

Example:
  pygpt data 'books/**/*.txt' --out books-tokens --tokenizer bpe --vocab-size 8192
  pygpt train --data books-tokens --out runs/books
  pygpt data pages/ --clean --near-duplicates 0.8 --drop-words words.txt --report --out pages-tokens
  pygpt data --examples summarisation --out summaries   # out of Python's own documentation

With any of the third line's flags but --out, text is cleaned before it becomes tokens: the main text of HTML files, one
normal form of Unicode, no broken characters, no needless whitespace, no document twice. --report says what each step
did; without --out, that is all.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pygpt.text import Cleaning

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
    parser.add_argument("--out", metavar="FOLDER", help="where to write the token files, or examples")
    parser.add_argument("--tokenizer", default="bpe", metavar="NAME", help="char, byte, bpe (default), or a folder")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="tokens of a BPE that is trained here (4096)")
    parser.add_argument("--validation", type=float, default=0.05, metavar="X", help="share held out (default: 0.05)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws what is held out (default: 0)")
    parser.add_argument("--whole-documents", action="store_true", help="hold out whole documents only, never a part")
    cleaning = parser.add_argument_group("cleaning")
    cleaning.add_argument("--clean", action="store_true", help="clean the text")
    cleaning.add_argument("--report", action="store_true", help="and say what each step did")
    cleaning.add_argument("--repair", action="store_true", help="also mend wrongly decoded text (needs ftfy)")
    cleaning.add_argument("--form", choices=("NFC", "NFKC"), help="Unicode's normal form (default: NFC)")
    cleaning.add_argument("--min-characters", type=int, metavar="N", help="leave out shorter documents (default: 1)")
    cleaning.add_argument("--max-characters", type=int, metavar="N", help="leave out longer documents")
    cleaning.add_argument("--drop-words", metavar="FILE", help="leave out documents that have one of these, one a line")
    cleaning.add_argument(
        "--near-duplicates",
        type=float,
        metavar="X",
        help="leave out documents that share X, such as 0.8, with an earlier one (needs datasketch)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prepare the token files, and say what they hold."""
    from pathlib import Path

    from pygpt.tasks.standard_library import write_examples
    from pygpt.text import HTML_SUFFIXES, TEXT_SUFFIXES, clean, load_corpus, prepare
    from pygpt.train.config import CORPUS
    from pygpt.train.text import named_tokenizer, read_corpus

    if arguments.out is None and (not arguments.report or arguments.examples is not None):
        raise ValueError("say with --out where to write the token files, or ask for a --report alone")
    out = None if arguments.out is None else Path(arguments.out)
    if arguments.examples is not None and out is not None:
        if arguments.files:
            raise ValueError(f"examples are made of Python's documentation: leave out {' '.join(arguments.files)}")
        if _cleaning(arguments) is not None:
            raise ValueError("cleaning is for text files: leave it out where examples are made")
        train, test = write_examples(arguments.examples, out, arguments.validation, arguments.seed)
        print(f"{train:,} examples in {out}/train.jsonl, {test:,} of other modules in {out}/test.jsonl")
        return 0
    if not arguments.files:
        raise ValueError("name text files, folders or globs, or a task with --examples")
    if out is not None and out.is_dir() and any(out.iterdir()) and not (out / "tokens.json").is_file():
        raise FileExistsError(f"{out} holds something other than token files; choose another --out")
    cleaning = _cleaning(arguments)
    if cleaning is not None and arguments.files != [CORPUS]:
        documents = load_corpus(arguments.files, TEXT_SUFFIXES + HTML_SUFFIXES)
    else:
        documents = read_corpus(arguments.files)
    if cleaning is not None:
        documents, cleaned = clean(documents, cleaning)
        if arguments.report:
            print(cleaned)
        if out is not None and not documents:
            raise ValueError(f"no document is left of the {cleaned.documents} that were read; --report says why")
    if out is None:
        return 0
    tokenizer = named_tokenizer(arguments.tokenizer, documents, arguments.vocab_size)
    report = prepare(
        documents, tokenizer, out, arguments.validation, arguments.seed, cut_documents=not arguments.whole_documents
    )
    print(f"{report.documents:,} documents, {report.bytes / 1e6:,.1f} MB, {report.tokens:,} tokens of a vocabulary of "
          f"{report.vocab_size:,} ({report.bytes / report.tokens:.2f} bytes a token)")  # fmt: skip
    print(f"{report.train_tokens:,} to train on, {report.validation_tokens:,} held out, in {report.folder}")
    print(f"now try: pygpt train --data {report.folder} --out runs/{report.folder.name}")
    return 0


def _cleaning(arguments: argparse.Namespace) -> "Cleaning | None":
    """What the flags say; None if there are none."""
    from pygpt.text import Cleaning, WordList

    values = {
        "repair": arguments.repair or None,
        "form": arguments.form,
        "least_characters": arguments.min_characters,
        "most_characters": arguments.max_characters,
        "drop_words": None if arguments.drop_words is None else WordList.read(arguments.drop_words),
        "near_duplicates": arguments.near_duplicates,
    }
    given = {name: value for name, value in values.items() if value is not None}
    return Cleaning(**given) if given or arguments.clean or arguments.report else None
