"""A sweep as one picture: the score of every job against each value that the sweep varies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastcap.reporting.figure import BLUE, VERMILION, new_figure, plain, save

_MANY = 12  # values of one key that still have a place each on the axis


def draw_sweep(path: Path, keys: Sequence[str], points: Sequence[tuple[Mapping[str, str], float]]) -> None:
    """Draw one panel for each key: a point for each job, a line through the best of each value.

    Args:
        path: The PNG file to write.
        keys: What the sweep varies.
        points: Overrides and CIDEr-D (times 100) of each job.
    """
    figure = new_figure(max(4.0, 3.2 * len(keys)), 3.6, layout="constrained")
    axes = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    best = max(points, key=lambda point: point[1])
    for axis, key in zip(axes, keys, strict=True):
        values = list(dict.fromkeys(point[0].get(key, "–") for point in points))
        numbers = {value: _number(value) for value in values}
        ordered = sorted(values, key=lambda value: (numbers[value] is None, numbers[value] or 0.0, value))
        continuous = len(values) > _MANY and all(number is not None for number in numbers.values())
        places = {v: float(numbers[v] or 0) if continuous else float(i) for i, v in enumerate(ordered)}
        if continuous and min(places.values()) > 0 and max(places.values()) > 20 * min(places.values()):
            axis.set_xscale("log")
        if not continuous:
            axis.set_xticks(range(len(ordered)), [plain(value) for value in ordered], rotation=30, ha="right")
            tops = [max(score for given, score in points if given.get(key, "–") == value) for value in ordered]
            axis.plot(range(len(ordered)), tops, color=BLUE, linewidth=1, alpha=0.5)
        axis.plot([places[given.get(key, "–")] for given, _ in points], [s for _, s in points], "o", color=BLUE, ms=5)
        axis.plot(places[best[0].get(key, "–")], best[1], "o", markersize=12, fillstyle="none", color=VERMILION, mew=2)
        axis.set_xlabel(plain(key))
        axis.grid(color="#e6e6e6")
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("CIDEr-D × 100")
    figure.suptitle(f"{len(points)} jobs; ringed: the best, {best[1]:.1f}", fontsize=11)
    save(figure, path, dpi=110)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
