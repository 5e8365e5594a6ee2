"""The loss curve of a run, as a picture and as text for a terminal."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pygpt.files import atomic_path

Points = Sequence[tuple[float, float]]


def loss_curves(records: Sequence[dict[str, Any]]) -> tuple[Points, Points]:
    """The (step, loss) points of training and of evaluation in the records of ``metrics.jsonl``.

    Skipped steps have none.
    """
    train = [(r["step"], r["loss"]) for r in records if r.get("loss") is not None and "skipped" not in r]
    validation = [(r["step"], r["validation_loss"]) for r in records if r.get("validation_loss") is not None]
    return train, validation


def smoothed(points: Points, share: float = 0.02) -> Points:
    """A running mean with exponential weights over about ``share`` of the points, without the pull of its start."""
    weight = 1 / max(1.0, share * len(points))
    mean = total = 0.0
    out = []
    for step, value in points:
        mean = (1 - weight) * mean + weight * value
        total = (1 - weight) * total + weight
        out.append((step, mean / total))
    return out


def save_loss_plot(path: str | Path, records: Sequence[dict[str, Any]], title: str = "") -> None:
    """Draw the loss curve as a PNG file.

    Raises: OSError, see :func:`pygpt.files.atomic_path`.
    """
    from matplotlib.figure import Figure  # without pyplot: no global state, no display, and it loads faster

    train, validation = loss_curves(records)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    if train:
        axes.plot(*zip(*train, strict=True), color="#9ecae1", linewidth=0.8, label="training, each step")
        axes.plot(*zip(*smoothed(train), strict=True), color="#08519c", linewidth=1.8, label="training, smoothed")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="#d94801", marker="o", markersize=4, label="validation")
    if train or validation:
        axes.legend(frameon=False)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def draw_chart(points: Points, width: int = 72, height: int = 12) -> str:
    """Draw a curve with characters: a y axis with its extremes, one column per share of the x range, its mean value.

    Each column is an eight-level block, so that the curve has 8 × ``height`` levels.
    """
    if not points:
        return "(nothing to draw)"
    columns = _column_means(points, width)
    lowest, highest = min(columns), max(columns)
    span = highest - lowest or 1.0
    levels = [1 + round((value - lowest) / span * (8 * height - 1)) for value in columns]
    lines = []
    for row in range(height - 1, -1, -1):
        cells = "".join(" ▁▂▃▄▅▆▇█"[min(8, max(0, level - 8 * row))] for level in levels)
        label = f"{highest:8.3f}" if row == height - 1 else f"{lowest:8.3f}" if row == 0 else " " * 8
        lines.append(f"{label} ┤{cells}")
    first, last = f"{points[0][0]:g}", f"step {points[-1][0]:g}"
    lines.append(" " * 9 + "└" + "─" * len(columns))
    lines.append(" " * 10 + first + last.rjust(len(columns) - len(first)))
    return "\n".join(lines)


def _column_means(points: Points, width: int) -> list[float]:
    """The mean value per column; fewer columns than ``width`` if there are fewer points."""
    width = min(width, len(points))
    sums, counts = [0.0] * width, [0] * width
    for i, (_, value) in enumerate(points):
        column = math.floor(i * width / len(points))
        sums[column] += value
        counts[column] += 1
    return [total / count for total, count in zip(sums, counts, strict=True)]
