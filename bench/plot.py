"""Bars of how many times as fast as PyTorch each row of results is, made from those of bench/compare.py.

    python bench/plot.py bench/results/NAME.json FILE.png

PyTorch's time is that of its fastest way, where a row has several. Bars to the right of 1 are faster, to the left
slower.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # behind the installed pygpt
from pygpt.cli import Parser  # noqa: E402

PANELS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "Ops, forward": lambda row: row["op"] and row["direction"] == "forward" and row["share"],
    "Ops, forward and backward": lambda row: row["op"] and row["direction"] != "forward",
    "The whole model": lambda row: not row["op"],
}
COLORS = {"fp32": "#2a6f97", "bf16": "#f4a259", "fp16": "#8f5aa8"}
BAR, GAP = 0.2, 0.12  # inches


def fastest_ratio(row: dict[str, Any]) -> float:
    """The time of PyTorch's fastest way (eager, compiled where that was measured, or another) over ours."""
    compiled = [row["compiled_seconds"]] if row["compiled_seconds"] else []
    return min([row["peer_seconds"], *compiled, *row["rival_seconds"].values()]) / row["seconds"]


def plot(measured: dict[str, Any], file: Path) -> None:
    """Draws what compare.py measured, a panel each for forward, forward with backward, and the whole model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = measured["results"]
    shapes: dict[str, set[str]] = {}
    for row in rows:
        shapes.setdefault(row["name"], set()).add(row["shape"])

    def label(row: dict[str, Any]) -> str:
        return row["name"] if len(shapes[row["name"]]) == 1 else f"{row['name']} {row['shape']}"

    panels = {title: [row for row in rows if shown(row)] for title, shown in PANELS.items()}
    panels = {title: some for title, some in panels.items() if some}
    bars = {
        title: {
            name: {row["dtype"]: fastest_ratio(row) for row in some if label(row) == name}
            for name in dict.fromkeys(map(label, some))
        }
        for title, some in panels.items()
    }
    heights = {title: sum(BAR * len(group) + GAP for group in groups.values()) for title, groups in bars.items()}
    tallest = max(heights.values())
    wide = 4.2 if tallest < 8 else 6  # long labels come with many bars
    figure, axes = pyplot.subplots(
        ncols=len(panels), figsize=(1 + wide * len(panels), 1.4 + tallest), layout="constrained", squeeze=False
    )
    ratios = [ratio for groups in bars.values() for group in groups.values() for ratio in group.values()]
    slowest, fastest = min(1.0, *ratios), max(1.0, *ratios)
    powers = range(math.floor(math.log2(slowest)), math.ceil(math.log2(fastest)) + 1)
    for axis, (title, groups) in zip(axes[0], bars.items(), strict=True):
        place, middles = 0.0, []
        for group in groups.values():
            middles.append(place + BAR * len(group) / 2)
            for dtype, ratio in group.items():
                middle = place + BAR / 2
                axis.barh(middle, ratio - 1, left=1, height=0.9 * BAR, color=COLORS[dtype], zorder=2)
                side = 1 if ratio >= 1 else -1
                text = axis.annotate(f"{ratio:.2f}", (ratio, middle), (4 * side, 0), textcoords="offset points")
                text.set(va="center_baseline", ha="left" if side > 0 else "right", fontsize=8)
                place += BAR
            place += GAP
        axis.set_yticks(middles, list(groups), fontsize=9)
        axis.set_ylim(tallest, -GAP)
        axis.set_xscale("log", base=2)
        axis.set_xticks([2.0**power for power in powers], [f"{2.0**power:g}×" for power in powers])
        axis.minorticks_off()
        axis.set_xlim(slowest / 1.5, fastest * 1.5)
        axis.set_xlabel("times as fast as PyTorch")
        axis.axvline(1, color="#444444", linewidth=1, zorder=3)
        axis.grid(axis="x", color="#dddddd", zorder=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.set_title(title, loc="left", fontweight="bold", fontsize=10)
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    patches = [pyplot.Rectangle((0, 0), 1, 1, color=COLORS[dtype]) for dtype in dtypes]
    figure.legend(patches, dtypes, loc="outside upper right", ncols=len(dtypes), frameon=False)
    where = measured.get("gpu") or f"{measured['processor']}, {measured['threads']} threads"
    figure.suptitle(f"pygpt beside PyTorch {measured['torch']}: {where}", x=0.01, ha="left", fontsize=11)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="plot.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, metavar="FILE.json", help="what compare.py --json wrote")
    parser.add_argument("file", type=Path, metavar="FILE.png", help="the picture")
    arguments = parser.parse_args(argv)
    try:
        measured = json.loads(arguments.json.read_text(encoding="utf-8"))
        plot(measured, arguments.file)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
