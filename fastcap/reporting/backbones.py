"""Backbones side by side as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcap.reporting.figure import new_figure, plain, save


def draw_backbones(path: Path, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """Draw latency, GFLOP/s and memory (if measured) over the image size, one column of panels a batch size."""
    panels = {"latency_p50_ms": "latency, ms", "gflop_per_s": "GFLOP/s", "peak_memory_mb": "peak memory, MB"}
    panels = {field: label for field, label in panels.items() if any(row[field] > 0 for row in rows)}
    batches = sorted({row["batch"] for row in rows})
    names = list(dict.fromkeys(row["backbone"] for row in rows))
    colours = {base: f"C{i}" for i, base in enumerate(dict.fromkeys(map(_base, names)))}
    figure = new_figure(5.5 * len(batches) + 2.5, 10, layout="constrained")
    axes = figure.subplots(len(panels), len(batches), squeeze=False)
    for (field, label), line in zip(panels.items(), axes, strict=True):
        for axis, batch in zip(line, batches, strict=True):
            for name in names:
                points = [row for row in rows if row["backbone"] == name and row["batch"] == batch]
                sides, values = [p["size_px"] for p in points], [p[field] for p in points]
                style = "--" if name != _base(name) else "-"
                axis.plot(sides, values, style, marker="o", color=colours[_base(name)], label=name)
            if field == "gflop_per_s":
                axis.axhline(facts["matmul_peak_gflop_per_s"], color="grey", linestyle=":", label="matmul peak")
            axis.set(xscale="log", yscale="log", xlabel="image side, px", ylabel=label, title=f"batch {batch}")
            ticks = sorted({row["size_px"] for row in rows})
            axis.set_xticks(ticks, map(str, ticks))
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    handles, labels = axes[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.suptitle(plain(f"{facts['processor']}, {facts['threads']} threads, fp32"), fontsize=10)
    save(figure, path, dpi=110)


def _base(name: str) -> str:
    """The network's name, whichever way it scans: both versions share a colour."""
    return name.removesuffix("+sequential")
