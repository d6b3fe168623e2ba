"""How time grows with pixels, refinement steps and images a batch: measured, and fitted by a line and by a power."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastcap.build import ConfigError, LoadedCheckpoint
from fastcap.model import FastCap
from fastcap.serving.prepare import prepare_model
from fastcap.tools.captioners import machine
from fastcap.tools.measure import Work, matmul_work, median_ms, time_interleaved

METHOD = (
    "Eager, fp32, batch norms folded, uint8 pixels in memory to token ids; medians over interleaved rounds in one "
    "process after two warm-up passes. One of pixels, steps and batch varies, the others stay at the base. exponent: "
    "slope of log(time) over log(what varies), 1 for linear, less where a fixed part counts; exponent_at_end: the same "
    "between the last two points; per_unit_ms and fixed_ms: least-squares line."
)


@dataclass(frozen=True)
class Fit:
    """What the points of one axis say.

    Attributes:
        exponent: Slope of the logarithms, all points.
        exponent_at_end: Slope of the logarithms, the last two points.
        fixed_ms: Where the fitted line starts.
        per_unit_ms: How it rises: a thousand pixels, a step or an image.
        r2: Share of the variance that the line explains.
    """

    exponent: float
    exponent_at_end: float
    fixed_ms: float
    per_unit_ms: float
    r2: float


def fit(units: Sequence[float], milliseconds: Sequence[float]) -> Fit:
    """Fit a line and a power through at least two points."""
    x, y = np.array(units, float), np.array(milliseconds, float)
    slope, start = np.polyfit(x, y, 1)
    residual, spread = ((y - start - slope * x) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    logs = np.polyfit(np.log(x), np.log(y), 1)[0]
    end = np.log(y[-1] / y[-2]) / np.log(x[-1] / x[-2])
    return Fit(*(round(float(v), 4) for v in (logs, end, start, slope, 1 - residual / spread if spread else 1.0)))


def measure_growth(
    loaded: LoadedCheckpoint,
    sizes: Sequence[int],
    steps: Sequence[int],
    batches: Sequence[int],
    *,
    threads: int,
    rounds: int,
    report: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure a checkpoint's time along each axis.

    Args:
        loaded: The checkpoint; its model is prepared in place, as it serves.
        sizes: Sides of square images, in pixels.
        steps: Numbers of refinement steps.
        batches: Images a pass.
        threads: Torch's threads.
        rounds: Interleaved rounds.
        report: Told what goes on.

    Returns:
        One row a point, and what held for all of them, the fits among it.

    Raises:
        ConfigError: If the model writes word after word.
    """
    model, side = loaded.model, loaded.image_size
    if model.decoder.causal:
        raise ConfigError(f"{loaded.path}: it writes word after word and has no refinement steps to vary")
    torch.set_num_threads(threads)
    prepare_model(model, side)
    base_steps = int(model.refinement.num_steps)
    points = [("pixels", size, size, base_steps, 1) for size in sorted(set(sizes))]
    points += [("steps", count, side, count, 1) for count in sorted(set(steps))]
    points += [("batch", count, side, base_steps, count) for count in sorted(set(batches))]
    matmul, gflop = matmul_work()
    works: dict[Any, Work] = {
        point: functools.partial(_generate, model, torch.randint(256, (batch, 3, px, px), dtype=torch.uint8), count)
        for point in points
        for _, _, px, count, batch in [point]
    }
    report(f"timing {len(points)} points in {rounds} interleaved rounds")
    load = os.getloadavg()[0]
    times = time_interleaved(works | {"matmul": matmul}, rounds)
    rows: list[dict[str, Any]] = []
    for axis, value, px, count, batch in points:
        seconds = times[axis, value, px, count, batch]
        units = px * px / 1e3 if axis == "pixels" else value
        milliseconds = round(median_ms(seconds), 3)
        rows.append(
            {"axis": axis, "value": value, "units": units, "size_px": px, "steps": count, "batch": batch}
            | {"p50_ms": milliseconds, "runs": len(seconds)}
        )
    fits = {}
    for axis in dict.fromkeys(row["axis"] for row in rows):
        along = [row for row in rows if row["axis"] == axis]
        if len(along) > 1:
            fits[axis] = vars(fit([row["units"] for row in along], [row["p50_ms"] for row in along]))
    facts = {
        **machine(threads),
        "matmul_gflop_per_s": round(gflop / min(times["matmul"]), 1),
        "load_before": round(load, 2),
        "base": {"size_px": side, "steps": base_steps, "batch": 1},
        "fits": fits,
        "method": METHOD,
    }
    return rows, facts


@torch.inference_mode()
def _generate(model: FastCap, images: torch.Tensor, num_steps: int) -> None:
    model.refinement.num_steps = num_steps
    model.generate(images)
