"""Benchmarks as pictures: captioners side by side, and how time grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcap.reporting.figure import BLUE, GREY, VERMILION, new_figure, plain, save


def draw_latency(path: Path, rows: Sequence[Mapping[str, str]], note: str) -> None:
    """Draw a bar of latency for each system, and latency against parameters.

    Args:
        path: The PNG file to write.
        rows: Of ``bench.csv``.
        note: What it was measured on.
    """
    ordered = sorted(rows, key=lambda row: -float(row["p50_ms"]))
    figure = new_figure(13, 1.8 + 0.34 * len(ordered), layout="constrained")
    bars, scatter = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, row in enumerate(ordered):
        p50, p95, parameters, megabytes = (float(row[name]) for name in ("p50_ms", "p95_ms", "params", "file_mb"))
        colour = VERMILION if row["system"].startswith("fastcap") else BLUE
        bars.barh(place, p50, color=colour, height=0.7)
        bars.plot([p50, p95], [place, place], color="black", linewidth=1)
        bars.text(1.06 * max(p50, p95), place, f"{p50:.0f}" if p50 >= 20 else f"{p50:.1f}", va="center", fontsize=8)
        scatter.scatter(parameters / 1e6, p50, s=10 + 0.6 * megabytes, color=colour, alpha=0.5, edgecolors=GREY)
    bars.set_yticks(range(len(ordered)), [plain(_title(row)) for row in ordered], fontsize=8)
    bars.set(xscale="log", xlabel="ms an image, p50 (line to p95)")
    scatter.set(xscale="log", yscale="log", xlabel="million parameters", ylabel="ms an image, p50")
    times = [float(row[name]) for row in rows for name in ("p50_ms", "p95_ms")]
    sizes = [float(row["params"]) / 1e6 for row in rows]
    bars.set_xlim(min(times) / 2, 2 * max(times))
    scatter.set_ylim(min(times) / 2, 2 * max(times))
    scatter.set_xlim(min(sizes) / 2, 2 * max(sizes))
    for axis in (bars.xaxis, scatter.xaxis, scatter.yaxis):
        axis.set_major_formatter("{x:g}")
    scatter.set_title("area: size of the file", fontsize=9)
    for axis in (bars, scatter):
        axis.grid(color="#e6e6e6")
        axis.set_axisbelow(True)
    figure.suptitle(plain(f"Image file to text, batch 1; ours in red. {note}"), fontsize=10)
    save(figure, path, dpi=110)


def draw_growth(
    path: Path, rows: Sequence[Mapping[str, Any]], fits: Mapping[str, Mapping[str, float]], note: str
) -> None:
    """Draw latency along each axis with its fitted line.

    Args:
        path: The PNG file to write.
        rows: Points with ``axis``, ``value``, ``units`` and ``p50_ms``.
        fits: Of each axis ``fixed_ms``, ``per_unit_ms``, ``exponent`` and ``r2``.
        note: What it was measured on.
    """
    labels = {"pixels": "thousand pixels", "steps": "refinement steps", "batch": "images a batch"}
    axes_names = list(dict.fromkeys(row["axis"] for row in rows))
    figure = new_figure(4.4 * len(axes_names), 4, layout="constrained")
    for axis, name in zip(figure.subplots(1, len(axes_names), squeeze=False)[0], axes_names, strict=True):
        points = [row for row in rows if row["axis"] == name]
        units = [row["units"] for row in points]
        axis.plot(units, [row["p50_ms"] for row in points], "o", color=VERMILION)
        if name == "pixels":
            for row in points:
                axis.annotate(f"{row['value']} px", (row["units"], row["p50_ms"]), fontsize=7, xytext=(3, -9),
                              textcoords="offset points")  # fmt: skip
        if name in fits:
            found = fits[name]
            line = [found["fixed_ms"] + found["per_unit_ms"] * unit for unit in units]
            axis.plot(units, line, color=BLUE, linewidth=1)
            axis.set_title(
                f"{found['fixed_ms']:.3g} + {found['per_unit_ms']:.3g} n ms, R² {found['r2']:.4f}\n"
                f"exponent {found['exponent']:.2f}, at the end {found['exponent_at_end']:.2f}",
                fontsize=9,
            )
        axis.set(xlabel=labels[name], ylabel="ms, p50")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.grid(color="#e6e6e6")
        axis.set_axisbelow(True)
    figure.suptitle(plain(note), fontsize=10)
    save(figure, path, dpi=110)


def _title(row: Mapping[str, str]) -> str:
    writing = f"beams {row['beams']}" if row["beams"] else f"steps {row['steps']}"
    return f"{row['system']} {row['resolution']} px, {row['runtime']} {row['precision']}, {writing}"
