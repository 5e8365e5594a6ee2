"""Examples of each task out of what every Python carries: the docstrings and sources of its standard library.

::

    generation      a function's definition -> a call of it
    summarisation   the body of a docstring -> its first line
    dialogue        what does it do, what are its arguments, and where is it?
    translation     an expression -> the instructions of Python's machine, as ``dis`` writes them
    classification  an expression -> what comes last in it: a call, a comparison, an item, arithmetic, …

Sources are parsed and compiled, never imported or run.
"""

from __future__ import annotations

import ast
import dis
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pygpt.files import atomic_path
from pygpt.tasks.records import TASKS, Record, write_records
from pygpt.text.corpus import Described, described, standard_library_sources
from pygpt.text.permutation import permuted

LONGEST_BODY = 500  # characters of a document, cut at a paragraph, line or word
LONGEST_DIALOGUE, LONGEST_DEFINITION = 200, 80
LONGEST_EXPRESSION, LONGEST_INSTRUCTIONS = 40, 120
_SILENT = ("RESUME", "PUSH_NULL", "PRECALL", "CACHE", "RETURN_VALUE", "NOP", "NOT_TAKEN")
_JUMPS = (ast.BoolOp, ast.IfExp, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Await,
          ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.JoinedStr)  # fmt: skip
_KINDS: dict[type[ast.expr], str] = {
    ast.Call: "call",
    ast.Attribute: "attribute",
    ast.Subscript: "item",
    ast.BinOp: "arithmetic",
    ast.Compare: "comparison",
    ast.BoolOp: "logic",
    ast.Tuple: "collection",
    ast.List: "collection",
    ast.Dict: "collection",
}


def write_examples(task: str, folder: str | Path, held_out: float = 0.1, seed: int = 0) -> tuple[int, int]:
    """Write ``train.jsonl`` and ``test.jsonl`` of a task.

    No text is in both: whole modules are held out, and what their examples give occurs in no other module.

    Args:
        task: one of ``TASKS``.
        folder: new or empty.
        held_out: share of the modules that go to the test.
        seed: draws them.

    Returns: how many examples there are in each.
    Raises: ValueError if the task is unknown or this Python has no sources; FileExistsError if the folder is not empty;
        OSError.
    """
    if task not in TASKS:
        raise ValueError(f"examples must be of one of {', '.join(TASKS)}, not {task!r}")
    if not 0 < held_out < 1:
        raise ValueError(f"the share of examples held out must be above 0 and below 1, not {held_out:g}")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; choose another --out")
    modules = [(name, list(_MAKERS[task](name, tree))) for name, tree in standard_library_sources()]
    modules = [(name, examples) for name, examples in modules if examples]
    if len(modules) < 2:
        raise ValueError("this Python has no sources of its standard library to make examples of")
    chosen = set(permuted(np.arange(max(1, round(held_out * len(modules)))), len(modules), seed).tolist())
    train: dict[str, dict[str, Any]] = {}
    test: dict[str, dict[str, Any]] = {}
    for place, (_, examples) in enumerate(modules):
        if place not in chosen:
            train |= {_given(example): example for example in examples}
    for place in sorted(chosen):
        test |= {_given(example): example for example in modules[place][1] if _given(example) not in train}
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for name, split in (("train", train), ("test", test)):
            order = permuted(np.arange(len(split)), len(split), seed).tolist() if split else []
            values = list(split.values())
            write_records(temporary / f"{name}.jsonl", [Record(n, values[n]) for n in order])
    return len(train), len(test)


def _given(example: dict[str, Any]) -> str:
    return str(next(iter(example.values())))


def _generation(name: str, tree: ast.Module) -> Iterator[dict[str, Any]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            prompt, completion = f"def {node.name}({ast.unparse(node.args)})", f"{node.name}({_passed(node.args)})"
            if len(prompt) <= LONGEST_DEFINITION and prompt.isascii() and not completion.endswith("()"):
                yield {"prompt": prompt, "completion": completion}


def _passed(arguments: ast.arguments) -> str:
    """What a call passes for a function's arguments, each by its name; without a method's own object."""
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    names = names[1:] if names[:1] in (["self"], ["cls"]) else names
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [f"{each.arg}={each.arg}" for each in arguments.kwonlyargs]
    return ", ".join([*names, f"**{arguments.kwarg.arg}"] if arguments.kwarg else names)


def _summarisation(name: str, tree: ast.Module) -> Iterator[dict[str, Any]]:
    for each in described(name, tree):
        summary, body = _summary(each), each.docstring.partition("\n\n")[2].strip()
        if summary and len(body) >= 80:
            yield {"document": _shortened(body), "summary": summary}


def _dialogue(name: str, tree: ast.Module) -> Iterator[dict[str, Any]]:
    for each in described(name, tree):
        summary = _summary(each)
        if each.kind == "function" and summary and not each.name.startswith("_"):
            turns = [
                f"What does {each.module}.{each.name}({each.arguments}) do?",
                summary,
                "What are its arguments?",
                each.arguments or "It has none.",
                "Where is it?",
                f"In {each.module}.",
            ]
            roles = ("user", "assistant") * 3
            if sum(map(len, turns)) <= LONGEST_DIALOGUE:
                yield {"turns": [{"role": r, "content": c} for r, c in zip(roles, turns, strict=True)]}


def _translation(name: str, tree: ast.Module) -> Iterator[dict[str, Any]]:
    for value, source in _expressions(tree):
        if any(isinstance(part, _JUMPS) for part in ast.walk(value)):
            continue
        instructions = dis.get_instructions(compile(source, name, "eval"))
        words = [f"{each.opname} {_argument(each)}".strip() for each in instructions if each.opname not in _SILENT]
        target = " ".join(words)
        if len(target) <= LONGEST_INSTRUCTIONS and "JUMP" not in target and "\n" not in target:
            yield {"source": source, "target": target}


def _expressions(tree: ast.Module) -> Iterator[tuple[ast.expr, str]]:
    """What is returned or assigned, where it is more than a name and not long, and its text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Return | ast.Assign) and not isinstance(node.value, ast.Constant | ast.Name | None):
            source = ast.unparse(node.value)
            if len(source) <= LONGEST_EXPRESSION and source.isascii():
                yield node.value, source


def _argument(instruction: dis.Instruction) -> str:
    return instruction.argrepr or ("" if instruction.arg is None else str(instruction.arg))


def _classification(name: str, tree: ast.Module) -> Iterator[dict[str, Any]]:
    for value, source in _expressions(tree):
        if type(value) in _KINDS:
            yield {"text": source, "label": _KINDS[type(value)]}


_MAKERS: dict[str, Callable[[str, ast.Module], Iterator[dict[str, Any]]]] = {
    "generation": _generation,
    "summarisation": _summarisation,
    "dialogue": _dialogue,
    "translation": _translation,
    "classification": _classification,
}


def _summary(each: Described) -> str:
    """The first paragraph, if it is one sentence of a line; else nothing."""
    first = each.docstring.partition("\n\n")[0].strip()
    fits = 15 <= len(first) <= 100 and "\n" not in first and first.endswith(".") and first.isascii()
    return first if fits and re.match(r"[A-Z][a-z]+ ", first) else ""


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_BODY:
        return text
    cut = text[:LONGEST_BODY]
    for end in ("\n\n", "\n", " "):
        head = cut.rpartition(end)[0].strip()
        if len(head) >= 80:
            return head
    return cut
