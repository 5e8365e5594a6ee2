"""The record of a run, ``metrics.jsonl``: one JSON object per line, appended as the training goes.

Every line has ``step`` (how many steps were done) and one of these forms:

* a step: ``loss``, ``gradient_norm``, ``learning_rate``, ``tokens``, ``tokens_per_second``, ``share_of_peak``,
  ``seconds``
* a skipped step: the same with ``skipped``, the reason; values that are not finite are null
* an evaluation: ``validation_loss``
* a sample: ``sample``, the text
"""

import json
import math
from pathlib import Path
from typing import Any

from pygpt.files import atomic_write_bytes


class Metrics:
    """Appends to ``metrics.jsonl``.

    Each line is handed to the operating system as it is written, so that a killed process loses none.

    Args:
        path: the file.
        step: the step from which the run goes on. Lines of later steps, written before a crash and after the checkpoint
            that is resumed from, are removed, as is a line that a crash cut off.

    Raises: OSError if the file cannot be written.
    """

    def __init__(self, path: str | Path, step: int = 0) -> None:
        path = Path(path)
        if path.exists():
            kept = [record for record in read_metrics(path) if record["step"] <= step]
            atomic_write_bytes(path, b"".join(_line(record) for record in kept))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def write(self, step: int, **values: Any) -> None:
        """Append one line. Floats that are not finite, which JSON cannot say, become null."""
        self._file.write(_line({"step": step, **values}))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read the lines of ``metrics.jsonl``, in order. A last line without its end, cut off by a crash, is left out.

    Raises: FileNotFoundError; ValueError naming the file and the line that is not a record.
    """
    *lines, _ = Path(path).read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("not an object with a step")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not a record of a training: {error}") from error
        records.append(record)
    return records


def _line(record: dict[str, Any]) -> bytes:
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
