"""Files of examples in JSON Lines: one object a line, with the fields of its task.

::

    generation      {"prompt": "…", "completion": "…"}
    summarisation   {"document": "…", "summary": "…"}
    translation     {"source": "…", "target": "…"}
    classification  {"text": "…", "label": "…"}
    dialogue        {"turns": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]}

An object may have further fields, which are not looked at. A dialogue may begin with a turn of the role "system"; then
"user" and "assistant" follow in turn, and the assistant has the last word.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

ROLES = ("system", "user", "assistant")

# The fields of each task: what is given, and what is asked for.
TASKS = {
    "generation": ("prompt", "completion"),
    "summarisation": ("document", "summary"),
    "translation": ("source", "target"),
    "classification": ("text", "label"),
    "dialogue": ("turns",),
}


class Record(NamedTuple):
    """One example.

    Attributes:
        line: where it stands in its file, from 1.
        values: its task's fields.
    """

    line: int
    values: dict[str, Any]


class BadLines:
    """What becomes of lines that cannot be used: the first one is an error, or they are counted.

    Args:
        path: of the file, for messages.
        skip: count them.
    """

    def __init__(self, path: str | Path, skip: bool = False) -> None:
        self._path, self._skip = path, skip
        self.count = 0
        self._first = ""

    def add(self, line: int, why: str) -> None:
        """Take note of a line. Raises: ValueError naming it, unless such lines are counted."""
        what = f"line {line}: {why}"
        if not self._skip:
            raise ValueError(f"{self._path}, {what}; --skip-bad leaves such lines out")
        self._first = self._first or what
        self.count += 1

    def __str__(self) -> str:
        lines = "line was" if self.count == 1 else "lines were"
        return f"{self.count} {lines} left out of {self._path}, the first of them {self._first}"


def read_records(path: str | Path, task: str, bad: BadLines | None = None) -> list[Record]:
    """Read a task's file.

    Args:
        path: UTF-8 text; empty lines are passed over.
        task: one of ``TASKS``.
        bad: is told of lines that are broken; None: the first one is an error.

    Raises:
        ValueError: naming the line that is no object of JSON, lacks a field, has an empty one, or a turn out of order;
            or if no example is left.
        OSError: if the file cannot be read.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, not {task!r}")
    bad = BadLines(path) if bad is None else bad
    records = []
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                records.append(Record(number, _values(line, task)))
            except ValueError as error:
                bad.add(number, str(error))
    if not records:
        raise ValueError(f"{path} has no example of {task}" + (f": {bad}" if bad.count else ""))
    return records


def write_records(path: Path, records: list[Record]) -> None:
    """Write examples as `read_records` reads them; whoever calls sees to it that the file is whole or absent."""
    lines = (json.dumps(record.values, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")


def _values(line: bytes, task: str) -> dict[str, Any]:
    try:
        given = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text: {error.reason}") from None
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    except RecursionError:
        raise ValueError("it is no JSON that can be read: it is nested too deeply") from None
    if not isinstance(given, dict):
        raise ValueError(f"it should be a JSON object, but is a {type(given).__name__}")
    if task == "dialogue":
        return {"turns": _turns(given.get("turns"))}
    return {name: _text(given, name) for name in TASKS[task]}


def _text(given: dict[str, Any], name: str) -> str:
    if name not in given:
        raise ValueError(f"it has no {name!r}, but {', '.join(map(repr, given)) or 'nothing'}")
    text = given[name]
    if not isinstance(text, str):
        raise ValueError(f"its {name} should be a text, but is {text!r}")
    if not text.strip():
        raise ValueError(f"its {name} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"its {name} holds half a character (a lone surrogate)") from None
    return text


def _turns(turns: Any) -> list[dict[str, str]]:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"its turns should be a list of objects with role and content, but are {turns!r}")
    read = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise ValueError(f"turn {number} should be an object with role and content, but is {turn!r}")
        read.append({"role": str(turn.get("role")), "content": _text(turn, "content")})
    check_order([turn["role"] for turn in read])
    if read[-1]["role"] != "assistant":
        raise ValueError(f"the last turn should be the assistant's, but is of role {read[-1]['role']!r}")
    return read


def check_order(roles: list[str]) -> None:
    """Refuse turns out of order. Raises: ValueError naming the first."""
    first = 1 if roles and roles[0] == "system" else 0
    for number, role in enumerate(roles[first:]):
        expected = ROLES[1 + number % 2]
        if role != expected:
            raise ValueError(f"turn {first + number + 1} should be of role {expected!r}, but is of {role!r}")
