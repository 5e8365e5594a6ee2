"""Mutation of synchronisation: remove each barrier, arrive, wait and fence that kernels run, one at a time.

Of an acquire or a release the order is removed: the access itself stays, relaxed.

    python -m tests.emulator.mutate -c "x = torch.randn(8, 768); torch.testing.assert_close(
        ops.layer_norm(x, torch.ones(768)), torch.layer_norm(x, (768,), torch.ones(768)))"
    python -m tests.emulator.mutate --kernel attention -- python -m pytest -q tests/ops/test_attention.py -k causal

A removal is noticed if the emulator reports something, or the results become wrong. One that nobody notices stands for
a check or a test that is missing, or for synchronisation that is not needed: each wants an explanation.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.emulator import target


@dataclass(frozen=True)
class Mutation:
    """A synchronising instruction, how often it ran, and what came of its removal."""

    kernel: str
    line: int  # of the PTX
    times: int
    source: str
    text: str
    noticed: bool = False
    why: str = ""


def synchronising(run: Callable[..., target.Outcome], timeout: float) -> list[Mutation]:
    """Every synchronising instruction that one run executes."""
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "synchronised"
        outcome = run({"PYGPT_EMULATOR_SYNCHRONISED_FILE": str(listing)}, timeout)
        if not outcome.passed:
            raise SystemExit(f"it fails with nothing removed: {outcome.why}")
        rows = [row.split("\t", 4) for row in listing.read_text().splitlines()] if listing.exists() else []
    found: dict[tuple[str, int], Mutation] = {}
    for kernel, line, times, source, text in rows:
        key = kernel, int(line)
        before = found[key].times if key in found else 0
        found[key] = Mutation(kernel, int(line), before + int(times), source, text.strip())
    return list(found.values())


def mutations(
    run: Callable[..., target.Outcome], kernel: str = "", timeout: float = 120, part: tuple[int, int] = (0, 1)
) -> Iterable[Mutation]:
    """Each removal and what came of it. ``run(environment, timeout)`` runs what is tested once.

    ``part`` (i, n) takes every n-th removal, from the i-th on.
    """
    i, n = part
    chosen = [m for m in synchronising(run, timeout) if re.search(kernel, m.kernel)]
    for m in chosen[i::n]:
        dropped = {"PYGPT_EMULATOR_DROP_KERNEL": m.kernel, "PYGPT_EMULATOR_DROP_LINE": str(m.line)}
        outcome = run(dropped, timeout)
        yield Mutation(m.kernel, m.line, m.times, m.source, m.text, not outcome.passed, outcome.why)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="", help="only in kernels whose name matches this regular expression")
    parser.add_argument(
        "--timeout", type=float, default=120, help="seconds for a run; one that takes longer is noticed"
    )
    parser.add_argument("--part", default="0/1", help="I/N: every N-th removal, from the I-th on (default 0/1: all)")
    parser.add_argument("--json", type=Path, help="also write all rows to this file")
    target.add_arguments(parser)
    options = parser.parse_args()
    rows = []
    part = tuple(int(x) for x in options.part.split("/"))
    tested = target.from_arguments(options)
    if isinstance(tested, target.Code):
        tested.run_here()
    for m in mutations(tested.run, options.kernel, options.timeout, part):
        rows.append(m)
        verdict = "noticed " if m.noticed else "SURVIVED"
        place = m.source or f"PTX line {m.line}"
        print(
            f"{verdict}  {m.kernel}  {place}  {m.text}  ({m.times} times){'  ' + m.why[:160] if m.why else ''}",
            flush=True,
        )
    survivors = sum(not m.noticed for m in rows)
    print(f"{len(rows)} removed one at a time, {len(rows) - survivors} noticed, {survivors} survived")
    if options.json:
        options.json.write_text(json.dumps([asdict(m) for m in rows], indent=1))
    if not rows:
        sys.exit("no synchronising instruction of an emulated kernel ran")


if __name__ == "__main__":
    main()
