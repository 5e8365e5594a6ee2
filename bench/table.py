"""The README's tables of speed, made from results of bench/compare.py, bench/decode.py and bench/training.py.

    python bench/table.py bench/results/NAME.json            prints it
    python bench/table.py bench/results/NAME.json --readme   puts it into README.md, where its marks stand

Of compare.py, a cell is our median time and how many times as fast as PyTorch that is: as its fastest way, where it has
several; folded, if variables of the environment held it back. Of decode.py, tokens a second; of training.py, those with
one thread and with all, and memory.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # behind the installed pygpt
from bench.compare import time_text  # noqa: E402
from bench.plot import fastest_ratio  # noqa: E402
from pygpt.cli import Parser  # noqa: E402

COLUMNS = [(dtype, direction) for dtype in ("fp32", "bf16") for direction in ("forward", "forward + backward")]
MARKED = re.compile(r"<!-- speed: (\S+) -->\n(.*?)<!-- end of speed -->", re.DOTALL)


def markdown(measured: dict[str, Any]) -> str:
    """A line for each case; then where and with what it was measured."""
    first = measured["results"][0]
    kind = learners if "scaling" in first else writers if "label" in first else cases
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {of}" for of, rate in measured["operations_per_second"].items())
    machine = measured.get("gpu") or f"{measured['processor']}, {measured['threads']} threads"
    where = f"{machine}; its limits: {rates}, "
    peers = {"PyTorch": measured["torch"], **measured.get("versions", {})}
    peers.pop("pygpt", None)
    where += f"{measured['bytes_per_second'] / 1e9:.0f} GB/s. {', '.join(map(' '.join, peers.items()))}; "
    where += f"{measured['date']}, "
    where += f"pygpt {measured['commit']}."
    block = "\n".join([*kind(measured), "", where, ""])
    environment = measured.get("environment")  # results from before it was noted were held back by nothing
    return folded(environment, block) if environment else block


def folded(environment: dict[str, str], block: str) -> str:
    """A table behind a line that says which variables held pygpt, or PyTorch, back."""
    said = " ".join(f"{name}={value}" for name, value in environment.items())
    return f"<details>\n<summary>With <code>{said}</code></summary>\n\n{block}\n</details>\n"


def cases(measured: dict[str, Any]) -> list[str]:
    """Of compare.py: dtypes and directions beside each other."""
    cells = {(r["name"], r["shape"], r["dtype"], r["direction"]): cell(r) for r in measured["results"]}
    lines = ["| | fp32, forward | with backward | bf16, forward | with backward |", "| --- |" + " --- |" * len(COLUMNS)]
    for name, shape in dict.fromkeys(key[:2] for key in cells):
        line = [f"{name} {shape}", *(cells.get((name, shape, *column), "") for column in COLUMNS)]
        lines.append(f"| {' | '.join(line)} |")
    return lines


def writers(measured: dict[str, Any]) -> list[str]:
    """Of decode.py: who writes, and with which weights, in the order of the results; a column for each batch."""
    speeds: dict[str, dict[int, list[str]]] = {}
    for r in measured["results"]:
        of_batch = speeds.setdefault(r["label"], {}).setdefault(r["batch"], [])
        of_batch.append(f"{r['dtype']} {r['tokens_per_second']:.0f}")
    batches = list(dict.fromkeys(r["batch"] for r in measured["results"]))
    rows = [f"{batch} rows" if batch > 1 else "1 row" for batch in batches]
    heads = ["tokens/s"] if batches == [1] else [f"tokens/s, {rows[0]}", *rows[1:]]
    lines = [f"| | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    return [
        *lines,
        *(f"| {who} | {' | '.join(', '.join(each.get(b, [])) for b in batches)} |" for who, each in speeds.items()),
    ]


def learners(measured: dict[str, Any]) -> list[str]:
    """Of training.py."""
    tokens = measured["batch"] * measured["time"]
    lengths = list(measured["results"][0]["memory_bytes"])
    heads = ["tokens/s, 1 thread", f"{measured['threads']} threads", "scaling"]
    heads += [f"memory, {measured['batch']} × {length} tokens" for length in lengths]
    lines = [f"| | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for r in measured["results"]:
        alone = [f"{tokens / r['one_thread_seconds']:.0f}", f"{r['scaling']:.2f}×"] if r["scaling"] else ["", ""]
        line = [f"{r['label']}, {r['dtype']}", alone[0], f"{r['tokens_per_second']:.0f}", alone[1]]
        line += [f"{r['memory_bytes'][each] / 1e9:.2f} GB" if r["memory_bytes"] else "" for each in lengths]
        lines.append(f"| {' | '.join(line)} |")
    return lines


def cell(result: dict[str, Any]) -> str:
    ratio = fastest_ratio(result)
    text = f"{ratio:.2f}×"
    return f"{time_text(result['seconds'])}, {f'**{text}**' if ratio >= 1 else text}"


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, metavar="FILE.json", help="what the benchmark wrote by --json")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    arguments = parser.parse_args(argv)
    try:
        table = markdown(json.loads(arguments.json.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        parser.error(f"{arguments.json}: {error}")
    if not arguments.readme:
        print(table)
        return 0
    readme, file = ROOT / "README.md", arguments.json.resolve()
    text = readme.read_text(encoding="utf-8")
    if file not in [ROOT / name for name, _ in MARKED.findall(text)]:
        parser.error(f"{readme} has no marks of {arguments.json}")
    name = file.relative_to(ROOT).as_posix()
    marked = f"<!-- speed: {name} -->\n{table}<!-- end of speed -->"
    readme.write_text(MARKED.sub(lambda old: marked if old[1] == name else old[0], text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
