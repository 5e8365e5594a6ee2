"""Examples out of Python's own documentation: good records, nothing in both files, the same each time."""

import ast
import dis
import re
from pathlib import Path

import pytest

from pygpt.cli import main
from pygpt.tasks import standard_library
from pygpt.tasks.records import TASKS, read_records
from pygpt.tasks.standard_library import write_examples
from tests.cli.conftest import Run, fails  # noqa: F401

SOURCE = '''
"""Do things with numbers."""

def add_up(numbers, *, start=0):
    """Add numbers up to their sum.

    The order in which the numbers are given is kept, so that the sum of
    floating-point numbers is the same each time that it is computed.
    """
    total = start.value + numbers[0]
    return total.result(3) if total else None

def _hidden():
    """Hide what nobody should see."""
    return print(1, end='')

class Counter:
    """Count what comes along."""

    def reset(self):
        """Begin to count anew."""
'''


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A standard library of a few modules."""

    def sources():
        for number in range(10):
            text = SOURCE.replace("add_up", f"add_{number}").replace("numbers up", f"numbers up, {number},")
            text = text.replace("The order", f"{number}: the order")
            yield f"package{number % 2}.module{number}", ast.parse(text.strip())

    monkeypatch.setattr(standard_library, "standard_library_sources", sources)


def read(folder: Path, task: str) -> tuple[list[dict], list[dict]]:
    train, test = (folder / f"{split}.jsonl" for split in ("train", "test"))
    return [r.values for r in read_records(train, task)], [r.values for r in read_records(test, task)]


def test_what_the_examples_are(small: None, tmp_path: Path) -> None:
    for task in TASKS:
        if task not in ("translation", "classification"):  # of which all modules have the same
            assert min(write_examples(task, tmp_path / task, 0.2)) > 0
    train, test = read(tmp_path / "generation", "generation")
    assert len(train) == 8 and len(test) == 2
    assert all(pair["prompt"] == f"def {pair['completion'][:5]}(numbers, *, start=0)" for pair in train + test)
    assert all(re.fullmatch(r"add_\d\(numbers, start=start\)", pair["completion"]) for pair in train + test)
    train, test = read(tmp_path / "summarisation", "summarisation")
    assert all(re.fullmatch(r"Add numbers up, \d, to their sum\.", pair["summary"]) for pair in train + test)
    assert "the order in which" in train[0]["document"] and len(train) == 8 and len(test) == 2
    train, _ = read(tmp_path / "dialogue", "dialogue")
    contents = [turn["content"] for turn in train[0]["turns"]]
    assert re.fullmatch(r"What does package\d\.module\d\.add_\d\(numbers, \*, start=0\) do\?", contents[0])
    assert contents[3] == "numbers, *, start=0" and re.fullmatch(r"In package\d\.module\d\.", contents[5])


def test_translations_are_what_python_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list(standard_library._translation("module", ast.parse(SOURCE)))
    assert [each["source"] for each in made] == ["start.value + numbers[0]", "print(1, end='')"]
    for each in made:
        names = {i.opname for i in dis.get_instructions(compile(each["source"], "", "eval"))}
        assert set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", each["target"])) <= names
    assert "LOAD_NAME start" in made[0]["target"] and "LOAD_CONST 1" in made[1]["target"]


def test_a_call_passes_each_argument() -> None:
    source = "class A:\n def f(self, a: int, /, b=1, *c, d, e=2, **g): pass\ndef h(): pass\nasync def k(*, x): pass\n"
    made = standard_library._generation("module", ast.parse(source))
    assert sorted(each["completion"] for each in made) == ["f(a, b, *c, d=d, e=e, **g)", "k(x=x)"]


def test_an_expression_is_what_comes_last_in_it() -> None:
    made = standard_library._classification(
        "module", ast.parse(SOURCE + "x = a.b(c)[0]\ny = -(f(x)), 1\nz = f(1) == 2\n")
    )
    assert [(each["text"], each["label"]) for each in made] == [
        ("a.b(c)[0]", "item"),
        ("(-f(x), 1)", "collection"),
        ("f(1) == 2", "comparison"),
        ("start.value + numbers[0]", "arithmetic"),
        ("print(1, end='')", "call"),
    ]


def test_the_same_each_time_and_nothing_in_both(small: None, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_examples("summarisation", tmp_path / name, 0.3, seed=5)
    for split in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / "a" / split).read_bytes() == (tmp_path / "b" / split).read_bytes()
    train, test = read(tmp_path / "a", "summarisation")
    assert not {pair["document"] for pair in train} & {pair["document"] for pair in test}


@pytest.mark.slow
def test_this_python_has_examples_of_each_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in TASKS:
        assert main(["data", "--examples", task, "--out", str(tmp_path / task)]) == 0
        assert "of other modules in" in capsys.readouterr().out
        train, test = read(tmp_path / task, task)
        assert len(train) > 300 and len(test) > 10
        given = [{str(next(iter(values.values()))) for values in part} for part in (train, test)]
        assert len(given[0]) == len(train) and not given[0] & given[1]


def test_mistakes(small: None, tmp_path: Path, fails: Run) -> None:  # noqa: F811
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    out = str(tmp_path / "new")
    for words, message in [
        (["--examples", "poetry", "--out", out], "invalid choice: 'poetry'"),
        (["--out", out], "name text files, folders or globs, or a task with --examples"),
        (["a.txt", "--examples", "dialogue", "--out", out], "leave out a.txt"),
        (["--examples", "dialogue", "--clean", "--out", out], "cleaning is for text files"),
        (["--examples", "dialogue", "--out", str(tmp_path / "full")], "full is there already; choose another --out"),
        (["--examples", "dialogue", "--out", out, "--validation", "0"], "must be above 0 and below 1, not 0"),
    ]:
        assert message in fails("data", *words)
        assert not (tmp_path / "new").exists()
