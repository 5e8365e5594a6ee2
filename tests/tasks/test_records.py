"""Task files: every broken line is told by its number, or counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from pygpt.tasks.records import BadLines, read_records, write_records


def turns(*roles: str) -> dict[str, Any]:
    return {"turns": [{"role": role, "content": f"words {number}"} for number, role in enumerate(roles)]}


GOOD: dict[str, Any] = {
    "generation": {"prompt": "a", "completion": "b"},
    "summarisation": {"document": "long text", "summary": "text", "id": 7},
    "translation": {"source": "eins", "target": "one"},
    "classification": {"text": "so", "label": "yes"},
    "dialogue": turns("system", "user", "assistant", "user", "assistant"),
}


def write(path: Path, *lines: Any) -> Path:
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return path


@pytest.mark.parametrize("task", GOOD)
def test_good_lines_are_read_and_written(task: str, tmp_path: Path) -> None:
    records = read_records(write(tmp_path / "t.jsonl", GOOD[task], b"\n", GOOD[task]), task)
    assert [record.line for record in records] == [1, 3]
    assert records[0].values == {name: value for name, value in GOOD[task].items() if name != "id"}
    write_records(tmp_path / "again.jsonl", records)
    assert [r.values for r in read_records(tmp_path / "again.jsonl", task)] == [r.values for r in records]


@pytest.mark.parametrize(
    "task, line, words",
    [
        ("generation", b'{"prompt": "a", "comp\n', "it is no JSON"),
        ("generation", b"[1, 2]\n", "it should be a JSON object, but is a list"),
        ("generation", b'{"prompt": "\xff"}\n', "it is not UTF-8 text"),
        ("generation", b"[" * 100_000 + b"\n", "it is no JSON"),
        ("generation", {"prompt": "a"}, "it has no 'completion', but 'prompt'"),
        ("generation", {}, "it has no 'prompt', but nothing"),
        ("generation", {"prompt": 3, "completion": "b"}, "its prompt should be a text, but is 3"),
        ("generation", {"prompt": "a", "completion": "\ud800"}, "its completion holds half a character"),
        ("summarisation", {"document": " \n", "summary": "b"}, "its document is empty"),
        ("classification", {"text": "a", "label": ""}, "its label is empty"),
        ("dialogue", {"turns": []}, "its turns should be a list of objects"),
        ("dialogue", {"turns": ["hello"]}, "turn 1 should be an object with role and content"),
        ("dialogue", {"turns": [{"role": "user"}]}, "it has no 'content'"),
        ("dialogue", turns("assistant", "user"), "turn 1 should be of role 'user', but is of 'assistant'"),
        ("dialogue", turns("system", "user", "user"), "turn 3 should be of role 'assistant', but is of 'user'"),
        ("dialogue", turns("user", "assistant", "user"), "the last turn should be the assistant's"),
        ("dialogue", turns("user", "bot"), "turn 2 should be of role 'assistant', but is of 'bot'"),
    ],
)
def test_a_broken_line_is_named_or_counted(task: str, line: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", GOOD[task], GOOD[task], line, GOOD[task])
    with pytest.raises(ValueError, match=r"t\.jsonl, line 3: ") as raised:
        read_records(path, task)
    assert words in str(raised.value) and "--skip-bad" in str(raised.value)
    bad = BadLines(path, skip=True)
    assert [record.line for record in read_records(path, task, bad)] == [1, 2, 4]
    assert bad.count == 1 and f"1 line was left out of {path}, the first of them line 3: " in str(bad)


def test_a_file_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no example of generation"):
        read_records(write(tmp_path / "t.jsonl", b"\n"), "generation")
    path = write(tmp_path / "t.jsonl", b"x\n")
    with pytest.raises(
        ValueError, match=r"has no example of generation: 1 line was left out of .*line 1: it is no JSON"
    ):
        read_records(path, "generation", BadLines(path, skip=True))
    with pytest.raises(ValueError, match="task must be one of generation, "):
        read_records(path, "poetry")
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path / "absent.jsonl", "generation")
